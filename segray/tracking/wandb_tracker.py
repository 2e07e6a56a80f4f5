"""The tracker that talks to W&B: every call into the client is guarded, silent, bounded in time."""

import logging
import math
import netrc
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from numbers import Real
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the client is slow to import, and absent is a case to survive
    import wandb

    from segray.tracking import Mode, TrackedImage

_log = logging.getLogger("segray")
_T = TypeVar("_T")
_Online = Literal["online", "offline"]

INIT_SECONDS = 20.0  # for a run to start, and for any later call but the last
FINISH_SECONDS = 60.0  # for what is left to upload; the rest stays on disk for `wandb sync`
_GRACE_SECONDS = 10.0  # the client's own limits come first: they leave it in order
_IGNORED = 255

# A reused worker starts one tracker a trial: a server that is down is news only once a process.
_said: set[str] = set()


class WandbTracker:
    """One W&B run: online, or else offline, or else nothing."""

    def __init__(
        self, mode: "Mode", *, folder: Path, classes: Sequence[str], **identity: Any
    ) -> None:
        self._folder, self._classes, self._identity = folder, classes, identity
        self._offline = f"this run goes on offline in {folder / 'wandb'}"
        self._run: wandb.Run | None = None
        self._modes: list[_Online] = []  # still to be tried, the best first
        try:
            self._modes = _within(INIT_SECONDS, lambda: _modes(mode))
        except (Exception, SystemExit) as error:
            self._say(error, "this run is not tracked")
        if mode == "online" and self._modes == ["offline"]:
            self._say(LookupError("no API key is known"), self._offline)
        self._use(lambda run: None)

    def log(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """See Tracker."""
        row = _finite(metrics)
        # commit: W&B would otherwise hold the row back until the next epoch arrives.
        self._use(lambda run: run.log(row, step=epoch, commit=True))

    def finish(
        self,
        summary: Mapping[str, object],
        *,
        confusion: NDArray[np.int64] | None = None,
        images: Sequence["TrackedImage"] = (),
        failed: bool = False,
    ) -> None:
        """See Tracker."""
        run, self._run, self._modes = self._run, None, []
        if run is None:
            return

        def summarize() -> None:
            run.summary.update(_finite(summary))

        def chart(counts: NDArray[np.int64]) -> None:
            run.log({"confusion": _confusion_chart(counts, self._classes)}, commit=False)

        def gallery() -> None:
            shown = [_masked_image(image, self._classes) for image in images]
            run.log({"images": shown}, commit=False)

        # One by one: a picture that cannot be shown must not cost the summary. The pictures share a
        # row of their own, as the last epoch's has been sent.
        self._last(INIT_SECONDS, summarize, "the summary is not shown")
        if confusion is not None:
            self._last(INIT_SECONDS, lambda: chart(confusion), "the confusion matrix is not shown")
        if images:
            self._last(INIT_SECONDS, gallery, "the images are not shown")
        kept = f"what was not uploaded is kept in {self._folder / 'wandb'}"
        close = FINISH_SECONDS + _GRACE_SECONDS
        self._last(close, lambda: run.finish(exit_code=int(failed)), kept)

    def _last(self, seconds: float, action: Callable[[], None], otherwise: str) -> None:
        try:
            _within(seconds, action)
        except (Exception, SystemExit) as error:
            self._say(error, otherwise)

    def _use(self, action: Callable[["wandb.Run"], None]) -> None:
        """Do `action` on the run; where that fails, on a new run in the next mode that is left."""
        while self._run is not None or self._modes:
            try:
                if self._run is None:
                    start = partial(self._start, self._modes.pop(0))
                    self._run = _within(INIT_SECONDS + _GRACE_SECONDS, start)
                _within(INIT_SECONDS, partial(action, self._run))
                return
            except (Exception, SystemExit) as error:
                self._run = None
                otherwise = "this run is not tracked any further"
                self._say(error, self._offline if self._modes else otherwise)
                _tear_down()

    def _start(self, mode: _Online) -> "wandb.Run":
        import wandb

        wandb.setup(_settings())  # silent for login too, also after a tear-down
        # Made here, as the client would silently turn to the system's temporary folder.
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        return wandb.init(
            **self._identity,
            mode=mode,
            dir=self._folder,
            resume="allow",
            reinit="finish_previous",  # one that a crashed trial left open in this process
            settings=_settings(),
        )

    def _say(self, error: BaseException, consequence: str) -> None:
        cause = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
        if key := os.environ.get("WANDB_API_KEY"):
            cause = cause.replace(key, "(key)")
        news = cause.replace(str(self._identity["id"]), "")
        if news in _said:
            return
        _said.add(news)
        _log.warning(
            "W&B: %s; %s. segray's own records are complete. Check the network, WANDB_BASE_URL"
            " and `wandb login`; upload later with `wandb sync`, or switch tracking off.",
            cause,
            consequence,
        )


def _within(seconds: float, action: Callable[[], _T]) -> _T:
    """The result of `action`; TimeoutError when it takes longer (it is then left behind)."""
    result: Future[_T] = Future()

    def work() -> None:
        try:
            result.set_result(action())
        except BaseException as error:  # carried to the caller, whatever it is
            result.set_exception(error)

    # Not an executor: that one would wait for a stuck thread when Python exits.
    Thread(target=work, daemon=True, name="segray-tracking").start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError:
        if result.done():
            raise
        raise TimeoutError(f"W&B did not answer within {seconds:g} s") from None


def _tear_down() -> None:
    """End the client's service process: it would hold on to the id of the run that failed."""
    try:
        import wandb

        _within(_GRACE_SECONDS, wandb.teardown)
    except (Exception, SystemExit) as error:
        _log.debug("W&B: the client did not end in order: %r", error)


def _settings() -> "wandb.Settings":
    """Silent, bounded, and without what W&B would collect about the host, the code and the user."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        login_timeout=INIT_SECONDS,
        x_service_wait=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        allow_offline_artifacts=False,  # would put tables outside the folder, unsynced
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        save_code=False,
        use_dot_wandb=False,
        host="segray",
        program="segray",
        x_disable_meta=True,
        x_save_requirements=False,
        stop_fn=_stop_pressed,
    )


def _stop_pressed() -> None:
    """W&B's stop button would interrupt the main thread, which is the worker, not the trial."""
    _log.warning("W&B: a stop was asked for in the browser; segray ends trials itself and goes on.")


def _modes(mode: "Mode") -> list[_Online]:
    """The modes to try, the best first."""
    # Read at import. The client's reports about itself would go to W&B even from an offline run,
    # be printed when they cannot, and hold Python back at exit (30 s, measured).
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.setup(_settings()).settings  # environment and W&B's settings file
    if mode == "auto" and settings.mode == "disabled":
        return []
    if mode == "offline" or (mode == "auto" and settings.mode in ("offline", "dryrun")):
        return ["offline"]
    # Never init online without a key: on a terminal the client would ask for one, and wait.
    return ["online", "offline"] if _key_known(settings) else ["offline"]


def _key_known(settings: "wandb.Settings") -> bool:
    if settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        login = netrc.netrc(path).authenticators(urlsplit(settings.base_url).netloc)
    except (OSError, netrc.NetrcParseError):
        return False
    return login is not None and bool(login[2])


def _finite(values: Mapping[str, object]) -> dict[str, object]:
    """`values` without None, NaN and infinity; numbers of any library as Python's own."""
    kept: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Real) and not isinstance(value, bool):
            value = int(value) if isinstance(value, int) else float(value)
            if not math.isfinite(value):
                continue
        if value is not None:
            kept[name] = value
    return kept


def _confusion_chart(counts: NDArray[np.int64], classes: Sequence[str]) -> Any:
    """W&B's confusion-matrix chart over (K, K) counts, [true, predicted].

    wandb.plot.confusion_matrix wants every pixel's label; this fills the table it would arrive at.
    """
    import wandb

    cells = [
        [true, predicted, int(counts[t, p])]
        for t, true in enumerate(classes)
        for p, predicted in enumerate(classes)
    ]
    columns = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=[*columns], data=cells),
        fields={column: column for column in columns},
        string_fields={"title": "Confusion matrix (pixels)"},
    )


def _masked_image(image: "TrackedImage", classes: Sequence[str]) -> "wandb.Image":
    import wandb

    labels = {**dict(enumerate(classes)), _IGNORED: "ignored"}
    return wandb.Image(
        image.image,
        caption=image.id,
        masks={
            "truth": {"mask_data": image.truth, "class_labels": labels},
            "prediction": {"mask_data": image.pred, "class_labels": labels},
        },
    )

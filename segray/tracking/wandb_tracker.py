"""The tracker that talks to W&B: every call into the client is guarded, silent, bounded in time."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from segray.tracking import client
from segray.tracking.client import GRACE_SECONDS, Online, tear_down, told, ways, within

if TYPE_CHECKING:  # the client is slow to import, and absent is a case to survive
    import wandb

    from segray.tracking import Mode, TrackedImage

_log = logging.getLogger("segray")
_IGNORED = 255

# A reused worker starts one tracker a trial: a server that is down is news only once a process.
_said: set[str] = set()


class WandbTracker:
    """One W&B run: online, or else offline, or else nothing.

    All its epochs are told again whenever a run is started, so the newest of its folders, with what
    the server has, is always the whole story: W&B's own log of a process that was killed is cut off
    or empty, as the client writes it late.
    """

    def __init__(
        self, mode: Mode, *, folder: Path, classes: Sequence[str], **identity: Any
    ) -> None:
        self.warning: str | None = None
        self._folder, self._classes, self._identity = folder, classes, identity
        self._offline = f"this run goes on offline in {folder / 'wandb'}"
        self._run: wandb.Run | None = None
        self._writing: FileLock | None = None
        self._told: dict[int, dict[str, object]] = {}  # by epoch
        self._modes: list[Online] = []  # still to be tried, the best first
        try:
            self._modes, why = within(client.INIT_SECONDS, lambda: ways(mode))
            if mode == "online" and self._modes == ["offline"]:
                self._say(why, self._offline)
        except (Exception, SystemExit) as error:
            self._say(told(error), "this run is not tracked")
        self._use(lambda run: None)

    def log(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """See Tracker."""
        if epoch in self._told:
            return
        row = _finite(metrics)
        self._use(lambda run: _log_row(run, epoch, row))
        self._told[epoch] = row

    def finish(
        self,
        summary: Mapping[str, object],
        *,
        confusion: NDArray[np.int64] | None = None,
        images: Sequence[TrackedImage] = (),
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
        limit = client.INIT_SECONDS
        self._last(limit, summarize, "the summary is not shown")
        if confusion is not None:
            self._last(limit, lambda: chart(confusion), "the confusion matrix is not shown")
        if images:
            self._last(limit, gallery, "the images are not shown")
        kept = f"what was not uploaded is kept in {self._folder / 'wandb'}"
        self._last(client.FINISH_SECONDS + GRACE_SECONDS, lambda: _close(run, failed), kept)
        self._release()

    def _last(self, seconds: float, action: Callable[[], None], otherwise: str) -> None:
        try:
            within(seconds, action)
        except (Exception, SystemExit) as error:
            self._say(told(error), otherwise)

    def _use(self, action: Callable[[wandb.Run], None]) -> None:
        """Do `action` on the run; where that fails, on a new run in the next mode that is left."""
        while self._run is not None or self._modes:
            try:
                if self._run is None:
                    start = partial(self._start, self._modes.pop(0))
                    self._run = within(client.INIT_SECONDS + GRACE_SECONDS, start)
                within(client.INIT_SECONDS, partial(action, self._run))
                return
            except (Exception, SystemExit) as error:
                self._run = None
                self._release()
                otherwise = "this run is not tracked any further"
                self._say(told(error), self._offline if self._modes else otherwise)
                tear_down()

    def _start(self, mode: Online) -> wandb.Run:
        import wandb

        wandb.setup(client.settings())  # silent for login too, also after a tear-down
        # Made here, as the client would silently turn to the system's temporary folder.
        (self._folder / "wandb").mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            **self._identity,
            mode=mode,
            dir=self._folder,
            resume="allow",
            reinit="finish_previous",  # one that a crashed trial left open in this process
            settings=client.settings(),
        )
        self._writing = writing(Path(run.settings.sync_dir))
        self._writing.acquire(blocking=False)
        for epoch, row in self._told.items():
            _log_row(run, epoch, row)
        return run

    def _release(self) -> None:
        if self._writing is not None:
            self._writing.release()

    def _say(self, cause: str, consequence: str) -> None:
        self.warning = f"W&B: {cause}; {consequence}"
        news = cause.replace(str(self._identity["id"]), "")
        if news in _said:
            return
        _said.add(news)
        _log.warning(
            "%s. segray's own records are complete. Check network, WANDB_BASE_URL and key;"
            " upload later with `segray sync %s`, or switch tracking off.",
            self.warning,
            self._folder,
        )


def writing(run_folder: Path) -> FileLock:
    """The lock that whoever writes or uploads a run's folder holds; it ends with the process."""
    return FileLock(run_folder / "segray.lock", thread_local=False)


def _log_row(run: wandb.Run, epoch: int, row: Mapping[str, object]) -> None:
    # commit: W&B would otherwise hold the row back until the next epoch arrives. Epochs that the
    # server has are left out by the client: they lie before the step that it goes on from.
    run.log(dict(row), step=epoch, commit=True)


def _close(run: wandb.Run, failed: bool) -> None:
    """Finish the run; one whose upload is whole is marked as `wandb sync` marks it."""
    settings = run.settings
    run.finish(exit_code=int(failed))
    if settings.mode == "online":
        # Refused uploads are no errors to the client: it finishes, and only its log says so.
        lines = Path(settings.log_internal).read_text().splitlines()
        faults = [e["msg"] for e in map(json.loads, lines) if e["level"].startswith("ERROR")]
        if faults:
            raise ConnectionError(f"the server did not take everything: {faults[-1]}")
        Path(f"{settings.sync_file}.synced").touch()


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


def _masked_image(image: TrackedImage, classes: Sequence[str]) -> wandb.Image:
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

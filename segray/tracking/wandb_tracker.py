"""The tracker that talks to W&B: every call into the client is guarded, silent, bounded in time."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from segray.tracking import client
from segray.tracking.client import GRACE_SECONDS, Online, tear_down, told, ways, within

if TYPE_CHECKING:  # the client is slow to import, and absent is a case to survive
    import wandb

    from segray.tracking import Mode, Table, TrackedImage

_log = logging.getLogger("segray")
_T = TypeVar("_T")
_IGNORED = 255

PAUSE_SECONDS = 600.0  # that runs stay offline once the server failed: each would wait in vain
# A run may wait for the server this long in all, or a tenth of its own time where that is more.
SLOW_SECONDS = 20.0
SLOW_SHARE = 0.1


@dataclass
class _Server:
    """What this process knows of the server: a reused worker starts one tracker a trial."""

    fault: str = ""
    shunned_until: float = -math.inf  # on the monotonic clock
    said: set[str] = field(default_factory=set)  # what is no news any more


_server = _Server()


@dataclass(frozen=True)
class _Part:
    """Something that a run shows at its end."""

    loss: str  # what it means when it cannot be shown
    put: Callable[[wandb.Run], object]


def _part(subject: str, put: Callable[..., object], *given: object) -> _Part:
    return _Part(f"{subject} not shown", lambda run: put(run, *given))


class WandbTracker:
    """One W&B run: online, or else offline, or else nothing.

    All its epochs are told again whenever a run is started, so the newest of its folders, with what
    the server has, is always the whole story: W&B's own log of a process that was killed is cut off
    or empty, as the client writes it late.
    """

    def __init__(
        self, mode: Mode, *, folder: Path, place: str, classes: Sequence[str], **identity: Any
    ) -> None:
        self.warning: str | None = None
        self._folder, self._place = folder, place
        self._classes, self._identity = classes, identity
        self._began, self._waited = time.monotonic(), 0.0
        self._run: wandb.Run | None = None
        self._writing: FileLock | None = None
        self._told: dict[int, dict[str, object]] = {}  # by epoch
        self._modes: list[Online] = []  # still to be tried, the best first
        try:
            self._modes, why = self._within(client.INIT_SECONDS, lambda: ways(mode))
            if mode == "online" and self._modes == ["offline"]:
                self._keep(why)
            elif "online" in self._modes and time.monotonic() < _server.shunned_until:
                self._modes.remove("online")
                self._keep(_server.fault)
        except (Exception, SystemExit) as error:
            self._say("this run is not tracked", told(error))
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
        confusion: Mapping[str, NDArray[np.int64]] | None = None,
        images: Mapping[str, Sequence[TrackedImage]] | None = None,
        tables: Mapping[str, Table] | None = None,
        files: Sequence[Path] = (),
        failed: bool = False,
    ) -> None:
        """See Tracker."""
        classes = self._classes
        parts = [_part("the summary is", lambda run: run.summary.update(_finite(summary)))]
        parts += [
            _part(f"the confusion matrix of {name} is", _log_confusion, name, counts, classes)
            for name, counts in (confusion or {}).items()
        ]
        parts += [
            _part(f"the images of {name} are", _log_images, name, shown, classes)
            for name, shown in (images or {}).items()
        ]
        parts += [
            _part(f"the table {name} is", _log_table, name, table)
            for name, table in (tables or {}).items()
        ]
        if files:
            parts.append(_part("the report is", _log_files, files))
        self._show(parts)
        run, self._run, self._modes = self._run, None, []
        if run is None:
            return
        online = run.settings.mode == "online"
        try:
            self._within(client.FINISH_SECONDS + GRACE_SECONDS, lambda: _close(run, failed))
        except (Exception, SystemExit) as error:
            self._shun(told(error)) if online else self._keep(told(error))
        else:
            lived = time.monotonic() - self._began
            if online and self._waited > max(SLOW_SECONDS, SLOW_SHARE * lived):
                self._shun(f"the server is slow: {self._waited:.0f} s of waiting for this run")
        # The client's service writes the end of its log some time after finish() has returned.
        tear_down()
        self._release()

    def _show(self, parts: Sequence[_Part]) -> None:
        """Put the parts, each with what its loss means, into the last row and the summary.

        One by one: a picture that cannot be shown must not cost the summary. The client asks the
        server before it logs a table: where that fails, all parts go into an offline run.
        """
        for part in parts:
            if self._run is None:
                return
            try:
                self._within(client.INIT_SECONDS, partial(part.put, self._run))
            except (Exception, SystemExit) as error:
                if self._modes:
                    self._leave(error)
                    self._use(lambda run: None)
                    self._show(parts)
                    return
                self._say(part.loss, told(error))

    def _use(self, action: Callable[[wandb.Run], None]) -> None:
        """Do `action` on the run; where that fails, on a new run in the next mode that is left."""
        while self._run is not None or self._modes:
            try:
                if self._run is None:
                    start = partial(self._start, self._modes.pop(0))
                    self._run = self._within(client.INIT_SECONDS + GRACE_SECONDS, start)
                self._within(client.INIT_SECONDS, partial(action, self._run))
                return
            except (Exception, SystemExit) as error:
                self._leave(error)

    def _leave(self, error: BaseException) -> None:
        """Give the run up; another may follow in the next mode that is left."""
        self._run = None
        self._release()
        if self._modes:
            self._shun(told(error))
        else:
            self._say("this run is not tracked any further", told(error))
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

    def _within(self, seconds: float, action: Callable[[], _T]) -> _T:
        """As `within`; what it takes is booked."""
        started = time.monotonic()
        try:
            return within(seconds, action)
        finally:
            self._waited += time.monotonic() - started

    def _shun(self, fault: str) -> None:
        """The server failed: this process leaves it alone for a while."""
        _server.fault = fault.replace(f" for run {self._identity['id']}", "")
        _server.shunned_until = time.monotonic() + PAUSE_SECONDS
        self._keep(_server.fault)

    def _keep(self, cause: str) -> None:
        sync = shlex.join(["segray", "sync", self._place])
        self._say(f"what its server lacks is kept in {self._place}/wandb, for `{sync}`", cause)

    def _say(self, consequence: str, cause: str) -> None:
        """The consequence first: all runs share it, while each process words the cause anew."""
        self.warning = f"W&B: {consequence} ({cause})"
        if consequence in _server.said:
            return
        _server.said.add(consequence)
        _log.warning(
            "%s. segray's own records are complete. Check network, WANDB_BASE_URL and key, or "
            "switch tracking off.",
            self.warning,
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


def _log_confusion(
    run: wandb.Run, name: str, counts: NDArray[np.int64], classes: Sequence[str]
) -> None:
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
    chart = wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=[*columns], data=cells),
        fields={column: column for column in columns},
        string_fields={"title": f"Confusion matrix, {name} (pixels)"},
    )
    run.log({f"confusion/{name}": chart}, commit=False)


def _log_images(
    run: wandb.Run, name: str, images: Sequence[TrackedImage], classes: Sequence[str]
) -> None:
    """The images, with truth and prediction as masks to be switched on."""
    import wandb

    labels = {**dict(enumerate(classes)), _IGNORED: "ignored"}
    shown = [
        wandb.Image(
            image.image,
            caption=image.id,
            masks={
                "truth": {"mask_data": image.truth, "class_labels": labels},
                "prediction": {"mask_data": image.pred, "class_labels": labels},
            },
        )
        for image in images
    ]
    run.log({f"images/{name}": shown}, commit=False)


def _log_table(run: wandb.Run, name: str, table: Table) -> None:
    import wandb

    columns: list[str | int] = [*table.columns]
    rows = [[_finite({"": cell}).get("") for cell in row] for row in table.rows]
    run.log({name: wandb.Table(columns=columns, data=rows)}, commit=False)
    if table.lines is not None:
        chart = wandb.plot_table(
            vega_spec_name="wandb/line/v0",
            data_table=wandb.Table(columns=columns, data=rows),
            fields=dict(zip(("x", "y", "stroke"), table.lines, strict=True)),
            string_fields={"title": f"{table.lines[1]} by {table.lines[0]}"},
        )
        run.log({f"{name}/chart": chart}, commit=False)


def _log_files(run: wandb.Run, files: Sequence[Path]) -> None:
    """An artifact of copies in the run's folder, where `segray sync` finds them as they are now."""
    import wandb

    kept = Path(run.settings.sync_dir) / "report"
    kept.mkdir(exist_ok=True)
    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    for file in files:
        copy = Path(shutil.copy(file, kept))
        artifact.add_file(str(copy), skip_cache=True, policy="immutable")
        if file.suffix == ".html":
            # As it is: the client would link a style sheet of W&B's.
            run.log({file.stem: wandb.Html(copy, inject=False)}, commit=False)
    run.log_artifact(artifact)

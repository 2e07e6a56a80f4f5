"""Tracking: a view of a run in Weights & Biases (online or offline), or none; it never fails a run.

segray's own records hold everything; a tracker only shows them elsewhere. `wandb` is imported in
this folder alone, and only once a tracker really starts, because its import is slow.

Letters: H, W image height and width in pixels, K number of classes.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segray.tracking.client import Readiness, check

__all__ = ["Mode", "Readiness", "Table", "TrackedImage", "Tracker", "check", "start_tracker"]

Mode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True, eq=False)
class TrackedImage:
    """One image with both masks; a class index of 255 in `truth` marks ignored pixels.

    Shapes: image (H, W, 3) uint8 RGB, truth (H, W) uint8, pred (H, W) uint8.
    """

    id: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    pred: NDArray[np.uint8]


@dataclass(frozen=True)
class Table:
    """Rows of numbers and texts; in a column all are of one kind. None and NaN are empty cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    lines: tuple[str, str, str] | None = None
    """Columns of x, of y and of the line's name, where the table is to be a chart as well."""


class Tracker(Protocol):
    """What a training tells the outside world. No method raises, and none waits for long."""

    warning: str | None
    """What last went wrong and what it means, in one line; None while all is well."""

    def log(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Show one epoch's metrics at step `epoch`; NaN, infinity and None are left out.

        An epoch that was told before is left out: after a resume, tell all of them again, as what a
        killed process had told may not have left it.
        """

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
        """Close the run with its summary; later calls do nothing.

        `confusion` is (K, K) int64 pixel counts, [true, predicted], by what they are of: a split, a
        model. `images` are by split, `tables` by name. `files` become one artifact of the type
        report, and HTML pages among them are shown as well. All of it leaves this machine when the
        run is online. `failed` marks the run as failed. Takes two minutes at most.
        """


class _NoTracker:
    """Tracking switched off: touches nothing."""

    warning: str | None = None

    def log(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        pass

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
        pass


def start_tracker(
    mode: Mode,
    *,
    project: str,
    entity: str | None,
    run_id: str,
    run_name: str,
    group: str,
    job_type: str,
    config: Mapping[str, object],
    folder: Path,
    classes: Sequence[str],
    place: str | None = None,
) -> Tracker:
    """Start tracking one run; call it in one process of the run only (rank 0).

    `auto` obeys WANDB_MODE, and otherwise is online where W&B knows a key (WANDB_API_KEY, or its
    netrc entry) and offline where not. Files go to `folder`/wandb. A `run_id` seen before goes on.
    `classes` are the K class names; `place` is where people find `folder`, if that is a copy.
    Whatever goes wrong stands in the tracker's `warning`, and is said once by the logger "segray":
    online falls back to offline, offline to none. A server that failed a run, or was slow, is left
    alone by this process for ten minutes: runs that start meanwhile are offline. Nothing is raised.
    """
    # Decided before the import below: switched off must not cost it.
    disabled_by_environment = os.environ.get("WANDB_MODE", "").lower() == "disabled"
    if mode == "disabled" or (mode == "auto" and disabled_by_environment):
        return _NoTracker()
    from segray.tracking.wandb_tracker import WandbTracker

    return WandbTracker(
        mode,
        folder=Path(folder),
        place=place or str(folder),
        classes=classes,
        project=project,
        entity=entity,
        id=run_id,
        name=run_name,
        group=group,
        job_type=job_type,
        config=config,
    )

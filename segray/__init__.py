"""segray: which segmentation model is best on my street images once each is tuned fairly?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segray.sweep.runner import SweepResult

__all__ = ["run_sweep"]
__version__ = "0.1.0"


def run_sweep(
    file: str | Path, overrides: Mapping[str, Any] | None = None, *, resume: bool = False
) -> SweepResult:
    """Run a sweep file to its end: `segray sweep` for Python.

    `overrides` are dotted config keys and their values, as in {"train.epochs": 5, "data.root":
    "/data/cityscapes"}. The result has `best` (the winning trial: its assignment and outcome),
    `trials` (all, best first), `final`, `table` (the leaderboard, a mapping a row) and `folder`.

    Raises segray.config.ConfigError for what is wrong with the file or the overrides,
    RequestError for what cannot be met, WorkError where no trial could be scored.
    """
    from segray.config import load_sweep, one_line  # here, so that `import segray` costs nothing
    from segray.sweep.runner import run_sweep as run

    plain = {k: str(v) if isinstance(v, Path) else v for k, v in (overrides or {}).items()}
    texts = [f"{key}={one_line(value)}" for key, value in plain.items()]
    return run(load_sweep(file, texts), resume=resume)

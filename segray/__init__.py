"""segray: which segmentation model is best on my street images once each is tuned fairly?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segray.predict import Predictor
    from segray.sweep.runner import SweepResult

__all__ = ["load", "run_sweep"]
__version__ = "0.1.0"


def run_sweep(
    file: str | Path, overrides: Mapping[str, Any] | None = None, *, resume: bool = False
) -> SweepResult:
    """Run a sweep file to its end: `segray sweep` for Python.

    `overrides` are dotted config keys and their values, as in {"train.epochs": 5, "data.root":
    "/data/cityscapes"}; tuples, paths and NumPy's numbers are taken too. The result has `best` (the
    winning trial: its assignment and outcome), `trials` (all, best first), `final`, `table` (the
    leaderboard, a mapping a row) and `folder`.

    Raises segray.config.ConfigError for what is wrong with the file or the overrides,
    RequestError for what cannot be met, WorkError where no trial could be scored.
    """
    from segray.config import load_sweep, one_line  # here, so that `import segray` costs nothing
    from segray.sweep.runner import run_sweep as run

    given = overrides or {}
    texts = [f"{key}={one_line(_plain(value, key))}" for key, value in given.items()]
    return run(load_sweep(file, texts), resume=resume)


def load(folder: str | Path, device: str = "auto") -> Predictor:
    """The model that a sweep left, to predict with: `load("runs/unet").predict("street.jpg")`.

    `predict` takes a path, a PIL image or an (H, W, 3) uint8 array, and gives (H, W) class indices;
    a list of them gives a list. The result also has `classes`, `colours`, `size` (H, W it was
    trained at), `model` and `overlay(image, mask)`.

    `folder` is a run, or any folder with a saved model; `device` is auto, cpu or cuda. Raises
    segray.config.RequestError where there is no such model or device.
    """
    from segray.predict import load as load_predictor  # here, so that `import segray` costs nothing

    return load_predictor(folder, device)


def _plain(value: Any, key: str) -> Any:
    """`value` as a sweep file could hold it; raises ConfigError where it could not."""
    import numpy as np

    from segray.config import ConfigError, Problem

    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, key) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item, key) for name, item in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    rule = "expected numbers, text, true, false, None, and lists and mappings of these"
    raise ConfigError([Problem(f"override {key}", key, rule, f"a {type(value).__qualname__}")])

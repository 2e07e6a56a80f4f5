"""A training that takes a second: images in memory, and a model of a few thousand parameters.

As a program (`tiny.py FOLDER CONFIG`, a TrialConfig as JSON) it trains in a process of its own.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segray.config import CATEGORIES, TrialConfig
from segray.data import IGNORE, Dataset
from segray.data.samples import Splits
from segray.train import Metrics, Outcome, Stop, read_records, train

CPU = torch.device("cpu")
SIZE = (32, 48)
UNET = {"name": "unet", "width": 4, "depth": 2}
SEGFORMER = {"name": "segformer", "variant": "b0", "width": 0.125, "drop_path": 0.5}


def dataset(train: int = 6, val: int = 3, test: int = 3, ignore: str = "void") -> Dataset:
    """Striped images: a class has a colour, with noise that keeps it from being too easy."""
    rng = np.random.default_rng(1)
    classes = CATEGORIES if ignore == "void" else ("void", *CATEGORIES)
    count = train + val + test
    height, width = SIZE
    masks = np.repeat(rng.integers(0, len(classes), (count, height // 4, width // 4)), 4, axis=1)
    masks = np.repeat(masks, 4, axis=2).astype(np.uint8)
    colours = rng.integers(40, 216, (len(classes), 3))
    images = (colours[masks] + rng.normal(0, 25, (*masks.shape, 3))).clip(0, 255).astype(np.uint8)
    if ignore == "void":
        masks[:, :5] = IGNORE
    names = tuple(f"image{i}" for i in range(count))
    splits = Splits(
        tuple(range(train)),
        tuple(range(train, train + val)),
        tuple(range(train + val, count)),
    )
    native = masks.repeat(2, axis=1).repeat(2, axis=2)
    return Dataset(names, names, splits, classes, images, masks, native.__getitem__)


def config(changes: dict[str, Any] | None = None) -> TrialConfig:
    """A TrialConfig; `changes` are dotted paths and their values."""
    raw: dict[str, Any] = {
        "model": dict(UNET),
        "data": {"format": "scenes", "size": SIZE},
        "train": {
            "epochs": 4,
            "batch_size": 2,
            "optimizer": {"lr": 0.01},
            "schedule": {"name": "poly"},
        },
        "metric": {"name": "val/miou", "goal": "maximize"},
        "seed": 3,
        "workers": 1,
        "gpus_per_worker": 0,
        "threads": 1,
    }
    for path, value in (changes or {}).items():
        *parents, key = path.split(".")
        place = raw
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
    return TrialConfig.model_validate(raw)


class Told:
    """A reporter that keeps what it is told, and answers or raises at an epoch."""

    def __init__(
        self, at: int | None = None, answer: Stop | None = None, error: Exception | None = None
    ) -> None:
        self.at, self.answer, self.error = at, answer, error
        self.metrics: list[Metrics] = []

    def report(self, metrics: Metrics) -> Stop | None:
        self.metrics.append(metrics)
        if metrics["epoch"] != self.at:
            return None
        if self.error is not None:
            raise self.error
        return self.answer


def fit(
    folder: Path,
    changes: dict[str, Any] | None = None,
    reporter: Told | None = None,
    data: Dataset | None = None,
) -> Outcome:
    """Train in this process."""
    made = config(changes)
    if data is None:
        data = dataset(ignore=made.data.ignore)
    return train(made, data, folder, reporter or Told(), CPU)


def records(folder: Path) -> list[Metrics]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_records(folder / "metrics.jsonl")
    ]


def scripted(values: Sequence[float], name: str = "val/miou") -> Callable[..., Any]:
    """Takes the place of the loop's scoring: the metric of each epoch as written here."""

    def score(training: Any) -> tuple[Metrics, np.ndarray]:
        value = values[training.progress.epoch]
        return {"val/loss": 1.0, name: value}, np.zeros((7, 7), dtype=np.int64)

    return score


if __name__ == "__main__":
    settings = TrialConfig.model_validate_json(sys.argv[2])
    train(settings, dataset(), Path(sys.argv[1]), Told(), CPU)

"""What a comparison found: every figure of the page, and all that compare.json holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segray.compare.statistics import Estimate


@dataclass(frozen=True)
class Ending:
    """A trial or final training that ended otherwise than it should: it has a story to tell."""

    id: str
    state: str
    reason: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """A final training: the winner's parameters, with one seed."""

    seed: int
    state: str
    reason: str
    val: float  # the metric's best on val, at best_epoch
    test_miou: float
    best_epoch: int
    epochs: int
    seconds: float
    curves: Mapping[str, Sequence[float | None]]
    """By name, a value an epoch: epoch, the metric, train/loss, val/loss, ..."""


@dataclass(frozen=True)
class Cost:
    """What a model costs at the size it was trained at, measured here."""

    parameters: int
    gflops: float  # of a forward pass of one image; a multiplication and an addition are two
    image_size: tuple[int, int]  # H, W
    device: str
    latency_ms: float  # batch 1, the fastest of several
    images_per_s: float  # at best_batch
    best_batch: int
    peak_memory_mb: float  # of the process (CPU) or of the device's allocations, at batch 1


@dataclass(frozen=True)
class Spent:
    """What a sweep spent on its search, on each axis that a budget can be declared on."""

    trials: int
    epochs: int
    gpu_hours: float  # of its trials' training, times GPUs, or times workers where there are none
    to_best_gpu_hours: float  # until the winner's best epoch had ended


@dataclass(frozen=True)
class Model:
    """A sweep's winner, and the sweep behind it."""

    name: str  # the sweep's, unique among the models of a comparison
    described: str  # "UNet, width 16, from scratch"
    pretrained: str | None  # where its encoder's weights come from, or None
    folder: str
    metric: str
    trial: str  # the winning trial's id
    parameters: Mapping[str, Any]  # what the search chose for it
    miou: Estimate
    iou: Mapping[str, Estimate]  # by class; NaN where a figure cannot be given
    confusion: Sequence[Sequence[int]]  # pixels [true][predicted], of all images and seeds
    trainings: Sequence[Training]
    spent: Spent
    budget: Mapping[str, Any]  # as the sweep file declared it
    states: Mapping[str, int]  # how its trials ended
    endings: Sequence[Ending]
    cost: Cost | None
    trials: Sequence[Mapping[str, Any]]  # the leaderboard's rows
    sweep_yaml: str  # the resolved config with its header: versions, command
    commands: Sequence[str]  # what reproduces it


@dataclass(frozen=True)
class Pair:
    """Two models: `a` less `b`."""

    a: str
    b: str
    miou: Estimate
    iou: Mapping[str, Estimate]
    verdict: str  # one sentence


@dataclass(frozen=True)
class Comparison:
    """A comparison of one model (a sweep's own report) or more."""

    verdict: str  # in a sentence, of all models
    models: Sequence[Model]  # best first
    pairs: Sequence[Pair]
    unfair: Sequence[str]  # what makes the comparison unfair, said loudly
    notes: list[str]  # how the figures came about
    not_covered: Sequence[str]  # what the verdict does not say
    classes: Sequence[str]
    colours: Sequence[tuple[int, int, int]]
    images: int
    cities: Mapping[str, int]  # images of each; empty where images have none
    evaluated_at: str
    created: str
    version: str

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and texts; what is not finite is None."""
        plain: dict[str, Any] = _plain(self)
        return plain


@dataclass(frozen=True)
class Picture:
    """An image of the test split beside what the models made of it."""

    id: str
    why: str  # "the models differ most", "worst of unet"
    panels: Sequence[tuple[str, Any]]
    """(caption, PIL image): input, truth, and of each model its prediction and its errors."""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        shown = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, Estimate):
            shown |= {"p_corrected": value.p_corrected, "differs": value.differs}
        return _plain(shown)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

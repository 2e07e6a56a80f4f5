"""What every model of segray keeps to, and the one error the stage raises.

Letters used throughout `segray.models`: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from segray.config.errors import MissingInput, RequestError

MIN_SIDE = 32  # SegFormer's last stage has stride 32


class ModelError(RequestError):
    """A model cannot be built, fed, saved or loaded as asked; the message says what to do."""


class MissingWeights(ModelError, MissingInput):
    """Pretrained weights are neither on this machine nor to be had from the hub."""


@runtime_checkable
class Segmenter(Protocol):
    """What a model offers beside being an `nn.Module` that maps images to logits.

    `name` and `options` are plain JSON values: with `num_classes` and the files that
    `save_weights` writes they are all that the module's `load` needs.
    """

    name: str
    num_classes: int
    options: dict[str, Any]

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K, h, w): what `forward` upsamples, bilinearly, to H, W."""

    def save_weights(self, folder: Path, class_names: Sequence[str] | None) -> None:
        """Writes the weights to `folder`, as model.safetensors and what its format asks beside."""


def require(holds: bool, what: str, expected: str, got: object) -> None:
    """Raises ModelError, naming option, rule and value, unless `holds`."""
    if not holds:
        raise ModelError(
            f"{what} must be {expected}, got {got!r}. Correct it where the model is configured."
        )


def is_int(value: object, low: int, high: float = float("inf")) -> bool:
    """Whether `value` is an integer in [low, high]; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether `value` is an int or a float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_num_classes(num_classes: object) -> None:
    """Raises ModelError unless `num_classes` is an integer >= 1."""
    require(is_int(num_classes, 1), "num_classes", "an integer >= 1", num_classes)


def check_images(images: torch.Tensor) -> None:
    """Raises ModelError unless `images` is (N, 3, H, W) with H, W >= MIN_SIDE."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < MIN_SIDE:
        raise ModelError(
            f"a model takes (N, 3, H, W) with H and W of at least {MIN_SIDE} pixels, got {shape}. "
            "Pad or enlarge smaller images first; bring the colour channels to dimension 1."
        )

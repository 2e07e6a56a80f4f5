"""Segmentation models: (N, 3, H, W) float -> logits (N, K, H, W).

Each name in `MODELS` is a module of this package with `build(num_classes, **options)` and
`load(folder, num_classes, options)`; it is imported when it is asked for, so a UNet never waits
for transformers. Every model has an `encoder` submodule, which pretraining may fill; all its
other parameters are the head, to which an optimizer's head_lr_mult applies.
"""

import difflib
import importlib
import inspect
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from torch import nn

from segray.models.contract import MIN_SIDE, ModelError, Segmenter
from segray.models.record import ADVICE, RECORD, Record, new_record, read_record, write_record

__all__ = [
    "MIN_SIDE",
    "MODELS",
    "ModelError",
    "Record",
    "Segmenter",
    "build_model",
    "load_model",
    "read_record",
    "save_model",
]

MODELS = ("unet", "segformer")
FILES = {RECORD, "config.json", "model.safetensors"}  # all that a saved model consists of


def build_model(name: str, *, num_classes: int, **options: object) -> nn.Module:
    """A new model in training mode; its random weights depend on torch's global seed alone.

    It maps images (N, 3, H, W), float and ImageNet-normalised, to logits (N, K, H, W) for any
    H, W >= 32, which may differ and be odd; smaller images raise ModelError. `model.encoder` is
    the part that pretraining may fill.

    Args:
        name: "unet" or "segformer".
        num_classes: K.
        options: unet: width=64, depth=4. segformer: exactly one of pretrained (a hub name or a
            local folder) and variant ("b0".."b5"); width=1.0, drop_path=0.1. See their modules.

    Raises:
        ModelError: an unknown name or option, a wrong value, or weights that cannot be had.
    """
    build = _module(name).build
    valid = list(inspect.signature(build).parameters)[1:]  # the first is num_classes
    for option in options:
        if option not in valid:
            near = difflib.get_close_matches(option, valid, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelError(
                f"model {name!r} takes the options {', '.join(valid)}, got {option!r}.{hint}"
            )
    model: nn.Module = build(num_classes, **options)
    return model


def save_model(
    model: nn.Module,
    folder: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    image_size: Sequence[int] | None = None,
    class_colours: Iterable[Iterable[int]] | None = None,
) -> None:
    """Writes what `load_model` needs to `folder`, which appears whole or not at all.

    model.safetensors holds the weights and segray.json the name, options, num_classes and what else
    is given here, for `read_record`. A SegFormer's folder has transformers' config.json too, and
    `SegformerForSemanticSegmentation.from_pretrained(folder)` loads it to the same weights; its
    architecture is recorded there and nothing refers to the hub. A model that was saved to
    `folder` before is replaced.

    Args:
        model: from `build_model` or `load_model`; of a DistributedDataParallel, its `.module`.
        folder: a new folder, an empty one, or one that holds a saved model and nothing else.
        class_names: one for each class, in order.
        image_size: H, W that images were resized to.
        class_colours: (K, 3) RGB, 0 to 255, to draw masks with.

    Raises:
        ModelError: another kind of module, names, size or colours that do not fit, or a folder with
            other files.
    """
    if not isinstance(model, Segmenter):
        raise ModelError(
            f"save_model takes a model from build_model, got {type(model).__name__}. "
            "If it wraps one (DistributedDataParallel), pass its .module."
        )
    record = new_record(
        model.name, model.num_classes, model.options, class_names, image_size, class_colours
    )
    target = Path(folder).absolute()
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target, so that the renames below stay on one file system
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    old = new.with_suffix(".old")
    new.mkdir()
    try:
        model.save_weights(new, class_names)
        write_record(record, new)
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists():  # the model saved before must not be lost
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: str | Path) -> nn.Module:
    """The model that `save_model` wrote to `folder`, on the CPU and in eval mode.

    Needs no network, whatever the model started from.

    Raises:
        ModelError: no such folder, or files that are missing, damaged or of another model.
    """
    folder = Path(folder)
    record = read_record(folder)
    module = _module(record.name)
    try:
        model: nn.Module = module.load(folder, record.num_classes, record.options)
    except ModelError:
        raise
    # safetensors, torch and the file system each have their own errors for a damaged folder
    except Exception as error:
        raise ModelError(
            f"expected a whole {record.name} as {RECORD} describes it in {folder}, got "
            f"{type(error).__name__}: {error}. {ADVICE}"
        ) from error
    return model.eval()


def _module(name: object) -> ModuleType:
    """The module of a model."""
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"model.name must be one of {', '.join(MODELS)}, got {name!r}.{hint}")
    return importlib.import_module(f"{__name__}.{name}")


def _check_replaceable(target: Path) -> None:
    """Raises ModelError if saving to `target` would delete what is no saved model."""
    if target.exists():
        others = (
            [target.name]
            if not target.is_dir()
            else sorted(path.name for path in target.iterdir() if path.name not in FILES)
        )
        if others:
            raise ModelError(
                f"a model's folder holds nothing but {', '.join(sorted(FILES))}, as it is replaced "
                f"whole, but {target} has {', '.join(others[:4])}. Save to a folder of its own."
            )

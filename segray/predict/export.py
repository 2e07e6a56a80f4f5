"""A saved model as an ONNX file, checked against the model itself. See `export_onnx`."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import json
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segray.config import RequestError, WorkError
from segray.data.augment import MEAN, STD, colour_and_normalise
from segray.predict.images import Pixels
from segray.predict.predictor import Predictor, model_input

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # of the largest logit, between torch and onnxruntime
EQUAL = 0.999  # share of pixels of the same class; the rest are ties within rounding
TRACED_AT = (50, 77)  # odd, so that the padding of a UNet is traced too
ODD = (97, 131)  # another size to check at


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and how it compared."""

    file: Path
    equal: float  # share of the pixels whose class is the same
    difference: float  # the largest between two logits


def export_onnx(predictor: Predictor, file: str | Path, image: Pixels | None = None) -> Exported:
    """Writes the model to `file`: images (N, 3, H, W) -> logits (N, K, H, W), all of N, H, W free.

    Images are RGB in [0, 1], less mean, over deviation, float32; H and W are 32 or more. The file's
    metadata says so: `mean` and `std` (of each channel), `size` (H, W the model was trained at;
    left out where that is not known), `class_names` and `class_colours`, each as JSON.

    Before the file gets its name, onnxruntime's logits and masks are compared with the model's, in
    two batches of other sizes: on `image` (H, W, 3), or else on drawn patches, at the model's size,
    and on patches at an odd size.

    Raises:
        RequestError: packages are missing.
        WorkError: torch cannot export the model, or the file gives other masks.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(
            f"--export: ONNX needs {', '.join(NEEDED)}, and there is no {', '.join(missing)} here: "
            f"pip install 'segray[onnx]', or pip install {' '.join(missing)}"
        )
    file = Path(file)
    if file.suffix != ".onnx":
        raise RequestError(f"--export: expected a file that ends in .onnx, got {file}")
    if file.is_dir():
        raise RequestError(f"--export: expected a file, got {file}, which is a folder")
    model = copy.deepcopy(predictor.model).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(model, predictor, new)
        result = _compare(model, new, _samples(predictor, image))
        difference, largest, equal = result
        if not (difference <= TOLERANCE * largest and equal >= EQUAL):
            raise WorkError(
                f"{file} was not written: onnxruntime gives other masks than the model "
                f"({equal:.2%} of the pixels equal, logits up to {largest:.3g} differ by up to "
                f"{difference:.3g}). Try other versions of {', '.join(NEEDED)}"
            )
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
    return Exported(file, equal, difference)


def _write(model: nn.Module, predictor: Predictor, file: Path) -> None:
    try:
        with _silence(), torch.no_grad():
            program: Any = torch.onnx.export(
                model,
                (torch.zeros(2, 3, *TRACED_AT),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
                dynamo=True,
                verbose=False,
            )
    # the exporter has its own errors, and lets through those of what it traces
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise WorkError(
            f"torch.onnx.export failed: {type(error).__name__}: {first}. Try other versions of "
            f"torch, {', '.join(NEEDED)}"
        ) from error
    facts: dict[str, object] = {
        "mean": MEAN,
        "std": STD,
        "class_names": predictor.classes,
        "class_colours": predictor.colours.tolist(),
    }
    if predictor.size is not None:
        facts["size"] = predictor.size
    program.model.metadata_props.update({key: json.dumps(fact) for key, fact in facts.items()})
    program.save(file)


def _samples(predictor: Predictor, image: Pixels | None) -> list[Tensor]:
    """Two batches (N, 3, H, W), normalised, of other N, H and W."""
    rng = np.random.default_rng(0)

    def patches(size: tuple[int, int]) -> Pixels:
        coarse = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]

    size = predictor.size or ODD
    first = patches(size) if image is None else model_input(image, predictor.size)
    batches = [np.stack([first]), np.stack([patches(ODD), patches(ODD)])]
    return [
        colour_and_normalise(torch.from_numpy(batch).permute(0, 3, 1, 2), None, None)
        for batch in batches
    ]


def _compare(model: nn.Module, file: Path, batches: list[Tensor]) -> tuple[float, float, float]:
    """Largest difference between two logits, largest logit, share of pixels of the same class."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    difference, largest, equal, pixels = 0.0, 0.0, 0, 0
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for batch in batches:
            with torch.inference_mode():
                ours = model(batch).numpy()
            (theirs,) = session.run(["logits"], {"images": batch.numpy()})
            if theirs.shape != ours.shape:
                raise ValueError(f"logits of {theirs.shape} for those of {ours.shape}")
            difference = max(difference, float(np.abs(ours - theirs).max()))
            largest = max(largest, float(np.abs(ours).max()))
            equal += int((ours.argmax(1) == theirs.argmax(1)).sum())
            pixels += ours[:, 0].size
    # onnxruntime has a dozen classes of errors that share only Exception
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise WorkError(
            f"the ONNX file was not kept: onnxruntime cannot run it: {first}. Try other versions "
            f"of {', '.join(NEEDED)}"
        ) from error
    return difference, largest, equal / pixels


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps away what the exporter and its optimiser say of themselves, for the block only."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

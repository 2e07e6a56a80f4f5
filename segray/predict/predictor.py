"""A saved model that takes images of any size. N images, K classes, H x W pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from segray.config import RequestError, WorkError
from segray.data import to_device
from segray.data.augment import colour_and_normalise
from segray.data.labels import generated_colours, palette_image
from segray.models import MIN_SIDE, ModelError, Segmenter, load_model, read_record
from segray.models.record import RECORD
from segray.predict.images import (
    Pixels,
    as_pixels,
    blend,
    draw_legend,
)
from segray.sweep.store import readable
from segray.train.metrics import leading_class, upsample, upsampled_preds

BATCH = 4  # as evaluation takes
OVERLAP = 1 / 3  # of a window's side, at least, between neighbours
AT_ONCE = 2**27  # logits of one image that are made at once: 512 MB


class Predictor:
    """Predicts the class of every pixel; made by `load`.

    Attributes:
        model: (N, 3, H, W) ImageNet-normalised -> logits (N, K, H, W), in eval mode.
        classes: K names.
        colours: (K, 3) RGB uint8.
        size: H, W that images are resized to, as in training; None, where a folder saved by an
            earlier segray does not say, takes each image at its own size.
        device: where it computes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[str],
        colours: Pixels,
        size: tuple[int, int] | None,
        device: torch.device,
    ) -> None:
        # channels_last, as evaluation has it: the layout decides how sums round
        self.model: nn.Module = model.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes = tuple(classes)
        self.colours = colours
        self.size = size
        self.device = device

    @overload
    def predict(
        self,
        image: str | Path | Image.Image | Pixels,
        *,
        batch: int = ...,
        window: tuple[int, int] | None = ...,
    ) -> Pixels: ...

    @overload
    def predict(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        batch: int = ...,
        window: tuple[int, int] | None = ...,
    ) -> list[Pixels]: ...

    def predict(
        self, image: Any, *, batch: int = BATCH, window: tuple[int, int] | None = None
    ) -> Pixels | list[Pixels]:
        """The class index of every pixel, (H, W) uint8, at the image's own size.

        An image is a path, a PIL image or an (H, W, 3) uint8 array in RGB. Of a list of them, or an
        array (N, H, W, 3), comes a list. Files are turned as their EXIF says; a PIL image and an
        array are taken as they lie.

        The whole image is resized to `size` and its logits are upsampled to the image, unless
        `window` is given: then a window of so many pixels (H, W) slides over the image at its own
        size, neighbours overlapping by a third or more, and their logits are averaged.

        Args:
            image: one image, or several.
            batch: images, or windows, that a forward pass takes. Results do not depend on it, but
                for pixels where two classes are equal within rounding.
            window: height and width, 32 or more; an image that is smaller is one window.

        Raises:
            BadImage: a file that cannot be read, or something that is no image.
            RequestError: a batch or window that cannot be.
            WorkError: out of memory.
        """
        if batch < 1:
            raise RequestError(f"batch: expected 1 or more images a forward pass, got {batch}")
        if window is not None and (len(window) != 2 or min(window) < MIN_SIDE):
            raise RequestError(
                f"window: expected height and width, {MIN_SIDE} pixels or more each, got {window}"
            )
        several = isinstance(image, list | tuple) or (
            isinstance(image, np.ndarray) and image.ndim == 4
        )
        images = [as_pixels(one) for one in (image if several else [image])]
        try:
            with torch.inference_mode():
                if window is not None:
                    masks = [self._by_windows(pixels, window, batch) for pixels in images]
                else:
                    masks = list(self._whole(images, batch))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            sizes = {f"{pixels.shape[0]}x{pixels.shape[1]}" for pixels in images}
            raise WorkError(
                f"out of memory on {self.device.type} with images of {', '.join(sorted(sizes))} "
                f"and a batch of {batch}: take a smaller batch, or a window (as in 512,512) if "
                "whole images are too large"
            ) from error
        return masks if several else masks[0]

    def overlay(self, image: Any, mask: Pixels, opacity: float = 0.5) -> Image.Image:
        """The image under the colours of its mask (H, W), which `predict` gave for it.

        Raises BadImage for what is no image, RequestError for a mask of another size.
        """
        pixels = as_pixels(image)
        if mask.shape != pixels.shape[:2]:
            raise RequestError(
                f"expected a mask of the image's size {pixels.shape[:2]}, got {mask.shape}: give "
                "the image that it was predicted from"
            )
        return blend(pixels, mask, self.colours, opacity)

    def palette(self, mask: Pixels) -> Image.Image:
        """The mask as an image whose pixels are the class indices, shown in the class colours."""
        return palette_image(mask, self.colours)

    def legend(self) -> Image.Image:
        """Colour, index and name of every class."""
        return draw_legend(self.classes, self.colours)

    def _whole(self, images: Sequence[Pixels], batch: int) -> Iterator[Pixels]:
        """Masks of whole images; neighbours that the model sees at one size share its batches."""
        for _, group in groupby(images, key=lambda pixels: self.size or pixels.shape):
            alike = list(group)
            for start in range(0, len(alike), batch):
                part = alike[start : start + batch]
                inputs = [model_input(pixels, self.size) for pixels in part]
                logits = self._logits(inputs)
                for pixels, resized, one in zip(part, inputs, logits, strict=True):
                    size = pixels.shape[:2]
                    if resized.shape == pixels.shape or self.size is not None:
                        yield _classes(one, size)
                    else:  # too small for a model, so padded: there the logits end where it did
                        full = _classes(one, resized.shape[:2])
                        yield np.ascontiguousarray(full[: size[0], : size[1]])

    def _by_windows(self, pixels: Pixels, window: tuple[int, int], batch: int) -> Pixels:
        """(H, W) classes: rows of windows from top to bottom, in memory of one row's logits."""
        padded = model_input(pixels, None)
        height, width = padded.shape[:2]
        h, w = min(window[0], height), min(window[1], width)
        tops, lefts = _starts(height, h), _starts(width, w)
        classes = np.empty((height, width), dtype=np.uint8)
        band = torch.zeros((len(self.classes), h, width), device=self.device)
        for top, following in zip(tops, [*tops[1:], height], strict=True):
            for start in range(0, len(lefts), batch):
                part = lefts[start : start + batch]
                cut = [padded[top : top + h, left : left + w] for left in part]
                for left, one in zip(part, upsample(self._logits(cut), (h, w)), strict=True):
                    # a sum, as dividing by the number of windows would not move the largest
                    band[:, :, left : left + w] += one
            done = following - top  # rows that no later window reaches
            classes[top:following] = leading_class(band[None, :, :done])[0].cpu().numpy()
            rest = torch.zeros_like(band)
            rest[:, : h - done] = band[:, done:]
            band = rest
        return np.ascontiguousarray(classes[: pixels.shape[0], : pixels.shape[1]])

    def _logits(self, inputs: Sequence[Pixels]) -> Tensor:
        """N of (H, W, 3) uint8, of one size -> (N, K, h, w), which upsample to H, W."""
        assert isinstance(self.model, Segmenter)
        images = to_device(torch.from_numpy(np.stack(inputs)), self.device).permute(0, 3, 1, 2)
        normalised = colour_and_normalise(images, None, None)
        coarse = self.model.coarse(normalised.contiguous(memory_format=torch.channels_last))
        return coarse.float().contiguous()


def load(folder: str | Path, device: str = "auto") -> Predictor:
    """The model of `runs/<name>`, or of any folder that `segray.models.save_model` wrote.

    `device` is auto (a GPU if there is one), cpu, cuda, or one that torch knows.

    Raises RequestError for a folder that holds no model, or a device that is not there.
    """
    where = _device(device)
    at = _model_folder(readable(str(folder), "best"))
    record = read_record(at)
    colours = record.class_colours
    return Predictor(
        load_model(at),
        classes=record.class_names or [f"class {k}" for k in range(record.num_classes)],
        colours=generated_colours(record.num_classes) if colours is None else _array(colours),
        size=record.image_size,
        device=where,
    )


def model_input(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Image (H, W, 3), resized to `size` as the cache does it.

    Without a size it stays as it is, but for sides that are too short for a model: those are
    continued by their last pixels, at the right and the bottom.
    """
    if size is not None:
        target = (size[1], size[0])
        return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BILINEAR))
    missing = [(0, max(0, MIN_SIDE - side)) for side in pixels.shape[:2]]
    return np.pad(pixels, [*missing, (0, 0)], mode="edge") if any(map(sum, missing)) else pixels


def _array(colours: Sequence[Sequence[int]]) -> Pixels:
    return np.array(colours, dtype=np.uint8)


def _classes(logits: Tensor, size: Sequence[int]) -> Pixels:
    """Logits (K, h, w) -> the leading class (H, W) = `size` once they are upsampled to it."""
    k, h, _ = logits.shape
    height, width = size
    if k * height * width <= AT_ONCE:
        return upsampled_preds(logits, size).cpu().numpy()
    # Strips of rows: upsampled downwards here, as F.interpolate places pixels, sideways by itself.
    place = ((torch.arange(height) + 0.5) * (h / height) - 0.5).clamp(0, h - 1).to(logits.device)
    above = place.long()
    below, share = (above + 1).clamp(max=h - 1), place - above
    classes = np.empty((height, width), dtype=np.uint8)
    rows = max(1, AT_ONCE // (k * width))
    for start in range(0, height, rows):
        part = slice(start, start + rows)
        lines = torch.lerp(logits[:, above[part]], logits[:, below[part]], share[part, None])
        full = F.interpolate(lines[None], (lines.shape[1], width), mode="bilinear")
        classes[part] = leading_class(full)[0].cpu().numpy()
    return classes


def _starts(length: int, window: int) -> list[int]:
    """Along one axis: where windows start, evenly, so that the first and last touch the ends."""
    steps = math.ceil((length - window) / max(1, math.floor(window * (1 - OVERLAP))))
    return [round(step * (length - window) / max(1, steps)) for step in range(steps + 1)]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch has several classes for a device that is unknown, not built in or not there
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"device: expected auto, cpu or a GPU that is here, got {name}: {reason}"
        ) from None
    return device


def _model_folder(folder: Path) -> Path:
    """`folder`, or its best/ where it is a run; raises ModelError where neither holds a model."""
    for place in (folder, folder / "best"):
        if (place / RECORD).is_file():
            return place
    if not folder.exists():
        got = "which does not exist"
    elif not folder.is_dir():
        got = "which is a file"
    elif (folder / "sweep.yaml").is_file():
        got = f"a run that has no best/ yet; `segray status {folder}` says how it goes on"
    else:
        names = sorted(path.name for path in folder.iterdir())
        got = f"which holds {', '.join(names[:5]) or 'nothing'}{', ...' if names[5:] else ''}"
    raise ModelError(
        f"expected a folder with a saved model ({RECORD} in it), as runs/<name>/best, got "
        f"{folder}, {got}"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "CPUAllocator" in str(error)  # torch has no class of its own for a CPU's memory

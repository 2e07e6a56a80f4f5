"""Reading one image and its mask as a model takes them. H, W are data.size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from segray.config import Data, FoldersData
from segray.data.labels import UNKNOWN, label_table
from segray.data.samples import BadPair, Finding, Sample

# What Pillow raises for files that are damaged, cut short or absurdly large.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ID_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L")
COLOUR_MODES = ("RGB", "RGBA", "P", "L", "1")
# What makes an image upright, by the orientation in its EXIF; 1 is upright already.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Pair:
    """An image and its mask, as they are cached."""

    image: NDArray[np.uint8]  # (H, W, 3)
    mask: NDArray[np.uint8]  # (H, W) class index, IGNORE or UNKNOWN
    size: tuple[int, int]  # height and width of the image before it was resized
    unknown: Mapping[int, int]  # label in no class -> pixels before the mask was resized


class PairReader:
    """Reads the pairs of a data section; several threads may at once."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._by_colour = isinstance(data, FoldersData) and data.by_colour
        self._table = label_table(data)

    def read(self, sample: Sample) -> Pair:
        """The image in RGB, turned as its EXIF says, and its mask, both resized to data.size.

        Labels in no class are left to the caller. Raises BadPair for a file that cannot be read, a
        mask of another size than its image, and one that holds neither ids nor, where masks are by
        colour, colours.
        """
        image, stored = open_upright(sample.image)
        mask, _ = open_upright(sample.mask, lossless=True)
        if mask.size != image.size:
            raise BadPair(_other_size(sample, mask.size, image.size, stored))
        classes, strange = self._classes(sample.mask, mask)
        target = (self._data.size[1], self._data.size[0])
        return Pair(
            image=np.asarray(as_rgb(sample.image, image).resize(target, Image.Resampling.BILINEAR)),
            mask=np.asarray(Image.fromarray(classes).resize(target, Image.Resampling.NEAREST)),
            size=(image.size[1], image.size[0]),
            unknown=Counter(strange),
        )

    def read_mask(self, sample: Sample) -> NDArray[np.uint8]:
        """(h, w) class indices, or IGNORE, of a mask in its own size; see `read` for the errors."""
        mask, _ = open_upright(sample.mask, lossless=True)
        classes, _ = self._classes(sample.mask, mask)
        return classes

    def unknown(self, labels: Sequence[int], pixels: int, first: Path, masks: int = 1) -> Finding:
        """What to say of labels in no class, found in `pixels` pixels of so many masks."""
        shown = [self._name(label) for label in labels[:5]]
        shown += [f"{len(labels) - 5} others"] if len(labels) > 5 else []
        what = f"{'color' if self._by_colour else 'id'} {', '.join(shown)}"
        where = f"{pixels:,} pixels" + (f" of {masks} masks" if masks > 1 else "")
        if isinstance(self._data, FoldersData):
            key = "color" if self._by_colour else "ids"
            rule = f"in no class; add it to the {key} of a class, or of void to leave it out"
        else:
            rule = "expected Cityscapes' labelIds, 0 to 33 (255 for a licence plate)"
        return Finding("pixels of no class", f"{first}: {what} ({where}): {rule}")

    def _name(self, label: int) -> str:
        return str([*label.to_bytes(3, "big")] if self._by_colour else label)

    def _classes(self, path: Path, mask: Image.Image) -> tuple[NDArray[np.uint8], list[int]]:
        """(h, w) class indices, and the labels of the pixels that are of no class."""
        labels = self._labels(path, mask)
        if labels.dtype == np.uint8:
            classes = self._table.take(labels)
        else:
            inside = labels.clip(0, len(self._table) - 1)  # a mask may have 32 bits
            classes = self._table[inside]
            classes[inside != labels] = UNKNOWN
        unknown = classes == UNKNOWN
        return classes, labels[unknown].tolist() if unknown.any() else []

    def _labels(self, path: Path, mask: Image.Image) -> NDArray[np.int32] | NDArray[np.uint8]:
        """(h, w), the mask's own size: ids, of 8 bits if stored so, or 65536 r + 256 g + b."""
        if self._by_colour:
            if mask.mode not in COLOUR_MODES:
                rule = "colours (RGB or palette)", "for masks of label ids, give every class ids"
                raise BadPair(_other_kind(path, mask.mode, *rule))
            rgb = np.asarray(as_rgb(path, mask)).astype(np.int32)
            return (rgb[:, :, 0] << 16) | (rgb[:, :, 1] << 8) | rgb[:, :, 2]
        if mask.mode not in ID_MODES:
            advice = "export the masks as label ids"
            if isinstance(self._data, FoldersData):
                advice = "where colours are the classes, give every class color and none ids"
            expected = "one label id a pixel (8- or 16-bit grey, palette or 1-bit)"
            raise BadPair(_other_kind(path, mask.mode, expected, advice))
        ids = np.asarray(mask)
        return ids if ids.dtype == np.uint8 else ids.astype(np.int32)


def open_upright(path: Path, *, lossless: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    """The decoded image, upright, and its width and height as stored."""
    try:
        with Image.open(path) as file:
            stored = file.size
            if lossless and "jpeg" in ((file.format or "").lower(), file.info.get("compression")):
                raise BadPair(lossy_mask(path))
            file.load()
            # Not ImageOps.exif_transpose: it writes the EXIF again, and cameras' own tags break it.
            turn = TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
            return file if turn is None else file.transpose(turn), stored
    except UNREADABLE as error:
        # Pillow names the file in some of its messages.
        reason = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
        message = f"cannot read {path}: {reason}; is it whole? copy or export it again"
        raise BadPair(Finding("files that cannot be read", message)) from None


def lossy_mask(path: Path) -> Finding:
    """What to say of a mask that a photograph's compression went over."""
    message = (
        f"{path}: expected a mask without loss (png, bmp, tif, tiff); JPEG and WebP change labels "
        "near edges: export the masks again as PNG from where they were drawn"
    )
    return Finding("masks that lose pixels to compression", message)


def as_rgb(path: Path, image: Image.Image) -> Image.Image:
    """RGB of 8 bits; transparency is dropped, and of 16 bits of grey the lower 8."""
    if image.mode == "F":
        message = f"{path}: expected 8 or 16 bits a channel, got floating point; export it as PNG"
        raise BadPair(Finding("files that cannot be read", message))
    if image.mode.startswith("I"):
        upper = np.asarray(image).astype(np.int32).clip(0, 65535) >> 8
        return Image.fromarray(upper.astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # Pillow warns where a palette with transparency goes straight to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")


def _other_size(
    sample: Sample, mask: tuple[int, int], image: tuple[int, int], stored: tuple[int, int]
) -> Finding:
    """Sizes are (width, height)."""
    got = f"{sample.mask}: {mask[0]}x{mask[1]} pixels, but {sample.image} has {image[0]}x{image[1]}"
    if mask == stored:
        got += (
            f" once turned as its EXIF says; the mask fits the {stored[0]}x{stored[1]} pixels "
            "before that. Turn the mask, or remove the orientation from the image's EXIF"
        )
    return Finding("masks of another size", got)


def _other_kind(path: Path, mode: str, expected: str, advice: str) -> Finding:
    message = f"{path}: expected {expected}, got Pillow mode {mode}; {advice}"
    return Finding("masks of another kind", message)

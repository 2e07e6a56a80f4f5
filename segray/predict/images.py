"""Images in, pictures of masks out. H x W pixels, K classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segray.config import RequestError
from segray.data.pairs import as_rgb, open_upright
from segray.data.samples import BadPair

Pixels = NDArray[np.uint8]


class BadImage(RequestError):
    """An image that cannot be read, or an array that is none."""


def read_image(path: str | Path) -> Pixels:
    """(H, W, 3) RGB of an image file, turned as its EXIF says, read as training reads it.

    Raises BadImage, naming the file, where it cannot be read.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels and refuses from 179 million: the latter is enough
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image, _ = open_upright(path)
            return np.asarray(as_rgb(path, image))
    except BadPair as error:
        raise BadImage(error.finding.message) from None


def as_pixels(image: object) -> Pixels:
    """(H, W, 3) of a path, a PIL image or an array of that shape; raises BadImage for others."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        try:
            return np.asarray(as_rgb(Path(getattr(image, "filename", "") or "image"), image))
        except BadPair as error:
            raise BadImage(error.finding.message) from None
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image
        got = f"an array {image.shape} of {image.dtype}"
    else:
        got = f"a {type(image).__qualname__}"
    raise BadImage(
        f"expected a path, a PIL image or an array (H, W, 3) of uint8, got {got}; "
        "bring the colours to the last axis, in RGB from 0 to 255"
    )


def blend(image: Pixels, mask: Pixels, colours: Pixels, opacity: float) -> Image.Image:
    """Image (H, W, 3) under the colours of its mask (H, W)."""
    return Image.blend(Image.fromarray(image), Image.fromarray(colours[mask]), opacity)


def draw_legend(classes: Sequence[str], colours: Pixels) -> Image.Image:
    """A line a class: colour, index, name."""
    line, edge = 28, 6
    font = ImageFont.load_default(16)
    texts = [f"{k}  {name}" for k, name in enumerate(classes)]
    width = max(int(font.getlength(text)) for text in texts) + 2 * line + 2 * edge
    picture = Image.new("RGB", (width, line * len(texts) + edge), "white")
    pen = ImageDraw.Draw(picture)
    for k, text in enumerate(texts):
        top = edge + k * line
        box = (edge, top, edge + 2 * (line - edge), top + line - edge)
        pen.rectangle(box, fill=tuple(colours[k].tolist()), outline="black")
        pen.text((box[2] + edge, (box[1] + box[3]) / 2), text, "black", font, anchor="lm")
    return picture

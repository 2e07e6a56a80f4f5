"""What masks hold -> the class indices that a model is trained on.

Masks of your own hold ids or colours, and the sweep file says which are what. Cityscapes' label
ids become 8 categories, both those of cityscapesScripts (helpers/labels.py). Going through the
category, not through the 19 training ids, keeps parking, rail track, guard rail, bridge, tunnel,
pole group, caravan and trailer, which the training ids drop.
"""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.config import Data, FoldersData

IGNORE = 255
"""In a mask: this pixel counts nowhere."""
UNKNOWN = 254
"""In a table: no class has this label."""

# fmt: off
_CATEGORY_OF_ID = {
    0: "void", 1: "void", 2: "void", 3: "void", 4: "void", 5: "void", 6: "void",
    7: "flat", 8: "flat", 9: "flat", 10: "flat",
    11: "construction", 12: "construction", 13: "construction", 14: "construction",
    15: "construction", 16: "construction",
    17: "object", 18: "object", 19: "object", 20: "object",
    21: "nature", 22: "nature", 23: "sky", 24: "human", 25: "human",
    26: "vehicle", 27: "vehicle", 28: "vehicle", 29: "vehicle", 30: "vehicle", 31: "vehicle",
    32: "vehicle", 33: "vehicle", -1: "vehicle",  # -1 is the licence plate: 255 in an 8-bit mask
}
_COLOURS = {  # cityscapesScripts' colour of the category's most common label
    "void": (0, 0, 0), "flat": (128, 64, 128), "construction": (70, 70, 70),
    "object": (153, 153, 153), "nature": (107, 142, 35), "sky": (70, 130, 180),
    "human": (220, 20, 60), "vehicle": (0, 0, 142),
}
# fmt: on


def class_colours(data: Data) -> NDArray[np.uint8]:
    """(K, 3) RGB, to draw masks with: those of the sweep file, of Cityscapes, or of ours."""
    if isinstance(data, FoldersData):
        given = {name: masked.color[0] for name, masked in data.classes.items() if masked.color}
    else:
        given = _COLOURS
    ours = generated_colours(len(data.class_names)).tolist()
    if data.class_names[0] == "void":
        ours[0] = [0, 0, 0]
    colours = [given.get(name, ours[k]) for k, name in enumerate(data.class_names)]
    return np.array(colours, dtype=np.uint8)


def generated_colours(k: int) -> NDArray[np.uint8]:
    """(K, 3) RGB. Hues a golden section apart: neighbours differ, however many there are."""
    colours = [
        [round(255 * c) for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.65, 0.9)] for i in range(k)
    ]
    return np.array(colours, dtype=np.uint8)


def palette_image(mask: NDArray[np.uint8], colours: NDArray[np.uint8]) -> Image.Image:
    """A mask (H, W) as a palette image: its pixels are the class indices, its palette (K, 3)."""
    image = Image.fromarray(mask).convert("L")
    # all 256, or Pillow would pack few classes into 1, 2 or 4 bits
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: len(colours)] = colours
    image.putpalette(palette.tobytes())
    return image


def label_table(data: Data) -> NDArray[np.uint8]:
    """What a mask's label is: class index, IGNORE (void, where it is no class) or UNKNOWN.

    (65536,) by label id, or (2^24,) by 65536 r + 256 g + b where masks are by colour.
    """
    by_colour = isinstance(data, FoldersData) and data.by_colour
    table = np.full(2**24 if by_colour else 2**16, UNKNOWN, dtype=np.uint8)
    index = {name: k for k, name in enumerate(data.class_names)}
    if not isinstance(data, FoldersData):
        for label_id, category in _CATEGORY_OF_ID.items():
            table[label_id % 256] = index.get(category, IGNORE)
        return table
    for name, masked in data.classes.items():
        labels = [65536 * r + 256 * g + b for r, g, b in masked.color] if by_colour else masked.ids
        table[list(labels)] = index.get(name, IGNORE)
    return table

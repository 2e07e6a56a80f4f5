"""Cityscapes' label ids -> 8 categories -> the class indices that a model is trained on.

The ids and their categories are those of cityscapesScripts (helpers/labels.py). Going through the
category, not through the 19 training ids, keeps parking, rail track, guard rail, bridge, tunnel,
pole group, caravan and trailer, which the training ids drop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segray.config import CATEGORIES

IGNORE = 255
"""In a mask: this pixel counts nowhere."""

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


def class_names(ignore: str) -> tuple[str, ...]:
    """The classes in the order of a model's logits: 7 categories, or void and the 7."""
    return CATEGORIES if ignore == "void" else ("void", *CATEGORIES)


def class_colours(names: tuple[str, ...]) -> NDArray[np.uint8]:
    """(K, 3) RGB, to draw masks with."""
    return np.array([_COLOURS[name] for name in names], dtype=np.uint8)


def label_table(ignore: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(256,) class index of each label id of an 8-bit mask, and (256,) which ids are known.

    Void becomes IGNORE (`ignore` = void) or class 0 (none).
    """
    names = class_names(ignore)
    table = np.full(256, IGNORE, dtype=np.uint8)
    known = np.zeros(256, dtype=np.bool_)
    for label_id, category in _CATEGORY_OF_ID.items():
        known[label_id % 256] = True
        if category in names:
            table[label_id % 256] = names.index(category)
    return table, known

"""Images and masks in Cityscapes' layout, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segray.config import CITYSCAPES_HELP, RequestError
from segray.config.errors import MissingInput

PARTS = ("train", "val")  # Cityscapes' own test part has no public masks
MASK_ENDING = "_gtFine_labelIds.png"


@dataclass(frozen=True)
class Sample:
    """One image and its mask."""

    id: str
    city: str
    part: str  # the folder it came in: train or val
    image: Path
    mask: Path


@dataclass(frozen=True)
class Splits:
    """Positions in the list of samples: disjoint, sorted."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]


def find_samples(root: Path) -> list[Sample]:
    """Every image below leftImg8bit/{train,val}/<city>/ with its mask, sorted by part and id.

    Raises MissingInput where there are no images, RequestError where a mask is missing.
    """
    if not root.is_dir():
        raise MissingInput(f"data.root: no folder at {root}\n{CITYSCAPES_HELP}")
    samples: list[Sample] = []
    lacking: list[Path] = []
    for part in PARTS:
        for image in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.*")):
            stem = image.name[: image.name.rindex("_leftImg8bit.")]
            city = image.parent.name
            mask = root / "gtFine" / part / city / f"{stem}{MASK_ENDING}"
            samples.append(Sample(stem, city, part, image, mask))
            if not mask.is_file():
                lacking.append(mask)
    if not samples:
        expected = f"{root}/leftImg8bit/train/<city>/<name>_leftImg8bit.png"
        raise MissingInput(
            f"data.root: expected images as {expected}, found none\n{CITYSCAPES_HELP}"
        )
    if lacking:
        raise RequestError(
            f"data.root: {len(lacking)} of {len(samples)} images have no mask; the first one "
            f"lacking is {lacking[0]}\nExpected a *{MASK_ENDING} for each image: "
            "unzip gtFine_trainvaltest.zip into the same folder"
        )
    return samples


def split_samples(samples: Sequence[Sample], *, split: str, val_share: float, seed: int) -> Splits:
    """Train, val (tuning) and test (the final stage only).

    official: whole cities of the train part, in an order drawn from `seed`, are held out as val
    until they hold `val_share` of it; the val part is test. pooled: both parts shuffled by `seed`
    into 85 / 7.5 / 7.5 %. Raises RequestError where a split would be empty.
    """
    if split == "pooled":
        order = np.random.default_rng(seed).permutation(len(samples)).tolist()
        held_out = round(0.075 * len(samples))
        chosen = (order[2 * held_out :], order[:held_out], order[held_out : 2 * held_out])
    else:
        chosen = _by_city(samples, val_share, seed)
    for name, positions in zip(("train", "val", "test"), chosen, strict=True):
        if not positions:
            cities = len({sample.city for sample in samples})
            raise RequestError(
                f"data.split: {split} leaves no image for {name}, of {len(samples)} images in "
                f"{cities} cities; official needs two cities in train and one in val, "
                "pooled needs 7 images"
            )
    train, val, test = (tuple(sorted(positions)) for positions in chosen)
    return Splits(train, val, test)


def _by_city(
    samples: Sequence[Sample], val_share: float, seed: int
) -> tuple[list[int], list[int], list[int]]:
    development = [i for i, sample in enumerate(samples) if sample.part == "train"]
    cities = sorted({samples[i].city for i in development})
    held_out: set[str] = set()
    val: list[int] = []
    for position in np.random.default_rng(seed).permutation(len(cities))[:-1]:
        if len(val) >= val_share * len(development):
            break
        held_out.add(cities[position])
        val = [i for i in development if samples[i].city in held_out]
    train = [i for i in development if samples[i].city not in held_out]
    return train, val, [i for i, sample in enumerate(samples) if sample.part == "val"]

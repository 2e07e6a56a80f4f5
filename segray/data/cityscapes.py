"""Images and masks in Cityscapes' layout, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from segray.config import CITYSCAPES_HELP
from segray.config.errors import MissingInput
from segray.data.folders import IMAGE_TYPES, one_place
from segray.data.samples import Finding, Sample, Splits, pooled

PARTS = ("train", "val")  # Cityscapes' own test part has no public masks
IMAGE_STEM = "_leftImg8bit"
MASK_ENDING = "_gtFine_labelIds.png"


def find_samples(root: Path) -> tuple[list[Sample], list[Finding]]:
    """Every pair below leftImg8bit/{train,val}/<city>/, sorted by part and id, and what is wrong.

    Raises MissingInput where there are no images.
    """
    if not root.is_dir():
        raise MissingInput(f"data.root: no folder at {root}\n{CITYSCAPES_HELP}")
    samples: list[Sample] = []
    findings: list[Finding] = []
    for part in PARTS:
        # By city and stem: tools leave files like .png.aux.xml beside an image.
        found: dict[tuple[str, str], list[Path]] = {}
        for image in sorted((root / "leftImg8bit" / part).glob("*/*")):
            if is_image(image.name):
                stem = image.stem.removesuffix(IMAGE_STEM)
                found.setdefault((image.parent.name, stem), []).append(image)
        for (city, stem), images in found.items():
            mask = root / "gtFine" / part / city / f"{stem}{MASK_ENDING}"
            if len(images) > 1:
                findings.append(one_place(images))
            elif mask.is_file():
                samples.append(Sample(stem, city, part, images[0], mask))
            else:
                message = f"{images[0]}: no mask; expected {mask}, from gtFine_trainvaltest.zip"
                findings.append(Finding("images without a mask", message))
    if not samples and not findings:
        expected = f"{root}/leftImg8bit/train/<city>/<name>_leftImg8bit.png"
        raise MissingInput(
            f"data.root: expected images as {expected}, found none\n{CITYSCAPES_HELP}"
        )
    return samples, findings


def is_image(name: str) -> bool:
    """Whether a file of that name is an image; macOS keeps a ._ file beside each."""
    path = PurePath(name)
    return (
        path.suffix.lower() in IMAGE_TYPES
        and path.stem.endswith(IMAGE_STEM)
        and not name.startswith(".")
    )


def split_samples(samples: Sequence[Sample], *, split: str, val_share: float, seed: int) -> Splits:
    """Train, val (tuning) and test (the final stage only); any of them may come out empty.

    official: whole cities of the train part, in an order drawn from `seed`, are held out as val
    until they hold `val_share` of it; the val part is test. pooled: both parts shuffled by `seed`
    into 85 / 7.5 / 7.5 %.
    """
    if split == "pooled":
        return pooled(len(samples), seed)
    development = [i for i, sample in enumerate(samples) if sample.part == "train"]
    cities = sorted({samples[i].city for i in development})
    held_out: set[str] = set()
    val: list[int] = []
    for position in np.random.default_rng(seed).permutation(len(cities))[:-1]:
        if len(val) >= val_share * len(development):
            break
        held_out.add(cities[position])
        val = [i for i in development if samples[i].city in held_out]
    return Splits(
        train=tuple(i for i in development if samples[i].city not in held_out),
        val=tuple(val),
        test=tuple(i for i, sample in enumerate(samples) if sample.part == "val"),
    )

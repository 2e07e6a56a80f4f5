"""Images and masks in Cityscapes' layout, and their splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segray.config import CITYSCAPES_HELP
from segray.config.errors import MissingInput
from segray.data.samples import Finding, Sample, Splits, pooled

PARTS = ("train", "val")  # Cityscapes' own test part has no public masks
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
        for image in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.*")):
            if image.name.startswith("."):  # macOS keeps a ._ file beside each
                continue
            stem = image.name[: image.name.rindex("_leftImg8bit.")]
            city = image.parent.name
            mask = root / "gtFine" / part / city / f"{stem}{MASK_ENDING}"
            if mask.is_file():
                samples.append(Sample(stem, city, part, image, mask))
            else:
                message = f"{image}: no mask; expected {mask}, from gtFine_trainvaltest.zip"
                findings.append(Finding("images without a mask", message))
    if not samples and not findings:
        expected = f"{root}/leftImg8bit/train/<city>/<name>_leftImg8bit.png"
        raise MissingInput(
            f"data.root: expected images as {expected}, found none\n{CITYSCAPES_HELP}"
        )
    return samples, findings


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

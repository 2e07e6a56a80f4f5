"""What every source of images yields: pairs of files, their splits, what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from segray.config import RequestError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images of it are, and of how many."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image and its mask."""

    id: str  # among the images of one split no two have the same
    city: str  # "" where images come in no cities
    part: str  # the part of the files it came in: train, val, test, or "" where there is none
    image: Path
    mask: Path


@dataclass(frozen=True)
class Splits:
    """Positions in the list of samples: disjoint, sorted."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]

    def named(self) -> dict[str, tuple[int, ...]]:
        """The three by name, in order."""
        return {"train": self.train, "val": self.val, "test": self.test}


Kind = Literal[
    "images without a mask",
    "masks without an image",
    "files with one stem",
    "masks that lose pixels to compression",
    "lines that name no pair",
    "overlapping splits",
    "empty splits",
    "files that cannot be read",
    "masks of another size",
    "masks of another kind",
    "pixels of no class",
    "classes without a pixel",
    "changed proportions",
    "images smaller than data.size",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a dataset."""

    kind: Kind
    message: str  # the file or key, what was expected, what came, what to do
    fatal: bool = True  # whether a sweep refuses the dataset for it


class BadPair(RequestError):
    """A pair of files that cannot be used."""

    def __init__(self, finding: Finding) -> None:
        """`finding` says why; the error adds how to see all there is to say."""
        self.finding = finding
        super().__init__(f"{finding.message}\n{SEE_ALL}")


SEE_ALL = "To see everything that is wrong with the images at once: segray data check FILE"


def refuse(findings: Iterable[Finding]) -> None:
    """Raises RequestError with the first fatal finding, and how many more of its kind there are."""
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        return
    same = sum(finding.kind == fatal[0].kind for finding in fatal)
    more = f"; {same - 1} more of this kind ({fatal[0].kind})" if same > 1 else ""
    raise RequestError(f"{fatal[0].message}{more}\n{SEE_ALL}")


def pooled(count: int, seed: int) -> Splits:
    """`count` samples shuffled by `seed` into 85 / 7.5 / 7.5 %; the last two may be empty."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    held_out = round(0.075 * count)
    return Splits(
        train=tuple(sorted(order[2 * held_out :])),
        val=tuple(sorted(order[:held_out])),
        test=tuple(sorted(order[held_out : 2 * held_out])),
    )

"""Everything that is wrong with a dataset, found before a sweep trips over the first of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segray.config import Data
from segray.data.cache import cores
from segray.data.dataset import find_pairs
from segray.data.labels import IGNORE
from segray.data.pairs import PairReader
from segray.data.samples import BadPair, Finding, Progress, Splits

SHOWN = 5  # findings of a kind that are printed
MOST_UNKNOWN = 20  # labels that get a finding of their own
SQUEEZE = 0.1  # a larger change of proportions is worth a word


@dataclass(frozen=True)
class Report:
    """What `check_dataset` found."""

    classes: tuple[str, ...]
    splits: Splits
    pixels: NDArray[np.int64]  # (3, K + 1) at data.size, in train, val and test; the last: ignored
    read: int  # pairs that were read, of all in the splits
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What a sweep would fail for."""
        return tuple(finding for finding in self.findings if finding.fatal)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What a sweep would pass over."""
        return tuple(finding for finding in self.findings if not finding.fatal)

    def shares(self) -> dict[str, float]:
        """The share of each class in all pixels that were read and count."""
        counts = self.pixels[:, :-1].sum(0)
        return dict(zip(self.classes, (counts / max(1, counts.sum())).tolist(), strict=True))

    def print(self, console: Console) -> None:
        """The share of each class in the splits, what was found by kind, and a verdict.

        Findings are lines that are never broken or cut, so that their paths can be copied.
        """
        if self.read:
            console.print(self._shares())
        for title, colour, findings in (
            ("problems", "red", self.problems),
            ("warnings", "yellow", self.warnings),
        ):
            if findings:
                console.print(Text(f"\n{title}", style=f"bold {colour}"))
                for line in _grouped(findings):
                    console.print(line, soft_wrap=True)
        style = "red" if self.problems else "green"
        console.print(Text(f"\n{self._verdict()}", style=style), soft_wrap=True)

    def _shares(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("% of pixels", no_wrap=True)
        for name in self.splits.named():
            table.add_column(name, justify="right", no_wrap=True)
        totals = self.pixels.sum(1)
        rows = [*self.classes, *(["left out"] if self.pixels[:, -1].any() else [])]
        for k, name in enumerate(rows):
            shares = [_percent(self.pixels[split, k], totals[split]) for split in range(3)]
            table.add_row(name, *shares)
        table.add_section()
        counts = [str(len(positions)) for positions in self.splits.named().values()]
        table.add_row("images", *counts, style="bold")
        return table

    def _verdict(self) -> str:
        total = sum(len(positions) for positions in self.splits.named().values())
        pairs = f"{total} pairs" if self.read == total else f"{self.read} of {total} pairs"
        counts = [(len(self.problems), "problem"), (len(self.warnings), "warning")]
        said = [f"{n} {what}{'s' * (n != 1)}" for n, what in counts if n]
        outlook = "a sweep would fail" if self.problems else "ready for a sweep"
        return f"{pairs} read, {outlook}" + (f": {', '.join(said)}" if said else "")


def check_dataset(
    data: Data, *, limit: int | None = None, progress: Progress | None = None
) -> Report:
    """Read every pair of a data section, or `limit` pairs spread over it, and report all findings.

    It is read as a sweep reads it, so that a dataset without problems can be cached and trained on.
    Raises MissingInput where there are no images at all.
    """
    samples, splits, findings = find_pairs(data, progress)
    chosen = list(range(len(samples)))
    if limit is not None and limit < len(samples):
        chosen = np.linspace(0, len(samples) - 1, limit).round().astype(int).tolist()
    reader = PairReader(data)
    classes = data.class_names

    def read(position: int) -> _Reading | Finding:
        try:
            pair = reader.read(samples[position])
        except BadPair as error:
            return error.finding
        counts = np.bincount(pair.mask.reshape(-1), minlength=256)
        return _Reading(np.append(counts[: len(classes)], counts[IGNORE]), pair.size, pair.unknown)

    pixels = np.zeros((len(samples), len(classes) + 1), dtype=np.int64)
    sizes: Counter[tuple[int, int]] = Counter()
    unknown: dict[int, _Unknown] = defaultdict(_Unknown)
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for done, reading in enumerate(pool.map(read, chosen), start=1):
                position = chosen[done - 1]
                if isinstance(reading, Finding):
                    findings.append(reading)
                else:
                    pixels[position] = reading.pixels
                    sizes[reading.size] += 1
                    for label, count in reading.unknown.items():
                        unknown[label].add(count, samples[position].mask)
                if progress is not None:
                    progress("pairs read", done, len(chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    shares = np.stack([pixels[list(part)].sum(0) for part in splits.named().values()])
    findings += _unknown_labels(reader, unknown)
    findings += _resized(sizes, data.size)
    if len(chosen) == len(samples):
        findings += _without_a_pixel(classes, shares, splits)
    return Report(classes, splits, shares, len(chosen), tuple(findings))


@dataclass(frozen=True)
class _Reading:
    """What is kept of one pair."""

    pixels: NDArray[np.int64]  # (K + 1,) at data.size; the last: ignored
    size: tuple[int, int]  # of the image, H, W
    unknown: Mapping[int, int]  # label in no class -> pixels


@dataclass
class _Unknown:
    """Where a label that is in no class was seen."""

    pixels: int = 0
    masks: int = 0
    first: Path = Path()

    def add(self, pixels: int, mask: Path) -> None:
        self.first = self.first if self.masks else mask
        self.pixels += pixels
        self.masks += 1


def _unknown_labels(reader: PairReader, seen: Mapping[int, _Unknown]) -> list[Finding]:
    """One finding a label, the most common first; smoothed masks have thousands, so not for all."""
    order = sorted(seen, key=lambda label: (-seen[label].pixels, label))
    findings = [
        reader.unknown([label], one.pixels, one.first, one.masks)
        for label in order[:MOST_UNKNOWN]
        for one in [seen[label]]
    ]
    if rest := order[MOST_UNKNOWN:]:
        pixels = sum(seen[label].pixels for label in rest)
        findings.append(reader.unknown(rest, pixels, seen[rest[0]].first))
    return findings


def _resized(sizes: Counter[tuple[int, int]], size: tuple[int, int]) -> Iterator[Finding]:
    """What resizing to `size` does to the images; all sizes are H, W."""
    for (height, width), count in sizes.most_common():
        images = f"{count} image{'s' * (count != 1)} of {width}x{height} pixels (W x H)"
        ratio = (width / height) / (size[1] / size[0])
        change = max(ratio, 1 / ratio) - 1
        if change > SQUEEZE:
            fitting = [size[0], max(32, 32 * round(size[0] * width / height / 32))]
            message = (
                f"{images}: data.size {list(size)} (H, W) changes their proportions by "
                f"{change:.0%}; {fitting} would keep them"
            )
            yield Finding("changed proportions", message, fatal=False)
        if height < size[0] or width < size[1]:
            message = f"{images}: enlarged to data.size {list(size)} (H, W), without more detail"
            yield Finding("images smaller than data.size", message, fatal=False)


def _without_a_pixel(
    classes: Sequence[str], pixels: NDArray[np.int64], splits: Splits
) -> Iterator[Finding]:
    harm = {
        "train": "nothing to learn it from",
        "val": "tuning cannot see it",
        "test": "the final score leaves it out",
    }
    for row, (split, positions) in zip(pixels, splits.named().items(), strict=True):
        for name, count in zip(classes, row, strict=False):
            if positions and not count:
                message = f"{name} has no pixel in {split}: {harm[split]}"
                yield Finding("classes without a pixel", message, fatal=False)


def _grouped(findings: Sequence[Finding]) -> Iterator[Text]:
    """The first of each kind, a line each."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding.message)
    for kind, messages in kinds.items():
        yield Text(f"{kind}: {len(messages)}", style="bold")
        for message in messages[:SHOWN]:
            yield Text(f"  {message}")
        if len(messages) > SHOWN:
            yield Text(f"  and {len(messages) - SHOWN} more")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "-"

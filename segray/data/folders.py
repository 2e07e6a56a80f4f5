"""Images and masks in folders of any layout, paired by where they lie, or else by stem.

The place of a file is its path below its folder without its ending: seq1/0001 for seq1/0001.png. A
mask's place leaves out `data.mask_suffix`, so that an image and its mask share one.
"""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path

from segray.config import Folders, FoldersData
from segray.config.errors import MissingInput
from segray.data.pairs import lossy_mask
from segray.data.samples import SPLITS, Finding, Sample, Splits, pooled

MASK_TYPES = (".png", ".bmp", ".tif", ".tiff")  # an id or a colour has to survive exactly
IMAGE_TYPES = (*MASK_TYPES, ".jpg", ".jpeg", ".webp")


def find_samples(data: FoldersData) -> tuple[list[Sample], list[Finding]]:
    """Every pair that the section names, in the order of parts and paths, and what is wrong.

    Raises MissingInput where a folder or list is not there or a folder holds no images.
    """
    root = Path(data.root)
    if not root.is_dir():
        rule = "name the folder that holds your images and masks"
        raise MissingInput(f"data.root: no folder at {root}: {rule}")
    if data.images is not None and data.masks is not None:
        shared = _Pairing("data", root / data.images, root / data.masks, data.mask_suffix)
    if data.split == "pooled":
        return shared.all_pairs("")
    samples: list[Sample] = []
    findings: list[Finding] = []
    for name, part in data.parts.items():
        if isinstance(part, Folders):
            folders = root / part.images, root / part.masks
            found, wrong = _Pairing(f"data.{name}", *folders, data.mask_suffix).all_pairs(name)
        else:
            found, wrong = shared.listed_pairs(name, root / part)
        samples += found
        findings += wrong
    return samples, findings + _overlaps(samples)


def split_samples(samples: Sequence[Sample], *, split: str, seed: int) -> Splits:
    """pooled: shuffled by `seed` into 85 / 7.5 / 7.5 %; explicit: by the part of each sample."""
    if split == "pooled":
        return pooled(len(samples), seed)
    train, val, test = (
        tuple(i for i, sample in enumerate(samples) if sample.part == name) for name in SPLITS
    )
    return Splits(train, val, test)


class _Pairing:
    """The files of two folders, and which mask is whose."""

    def __init__(self, key: str, images: Path, masks: Path, suffix: str) -> None:
        """`key` is the section that names the folders."""
        self.folder, self.masks, self.suffix = images, masks, suffix
        files = image_files(images, f"{key}.images")
        self.every_mask = image_files(masks, f"{key}.masks")
        mine = [path for path in self.every_mask if path.stem.endswith(suffix)]
        # One folder may lie in the other: a file is an image or a mask. Only lists of pairs come
        # without anything that tells the two apart.
        mixed = masks == images and not suffix
        if mixed:
            mine = []
        elif masks.is_relative_to(images):
            files = sorted(set(files) - set(mine))
        elif images.is_relative_to(masks):
            mine = sorted(set(mine) - set(files))
        if not files:
            types = ", ".join(kind[1:] for kind in IMAGE_TYPES)
            raise MissingInput(f"{key}.images: no images in {images}: expected files of {types}")
        self.images = [] if mixed else files
        self.images_at = _grouped(self.images, self.place)
        self.images_by_stem = _grouped(self.images, lambda image: image.stem)
        self.masks_at = _grouped(mine, self.mask_place)
        free = [mask for mask in mine if self.mask_place(mask) not in self.images_at]
        self.free_by_stem = _grouped(free, lambda mask: mask.stem.removesuffix(suffix))

    def place(self, image: Path) -> str:
        """Where an image lies, which is also its sample's id."""
        return image.relative_to(self.folder).with_suffix("").as_posix()

    def mask_place(self, mask: Path) -> str:
        """Where the image of a mask would lie."""
        place = mask.relative_to(self.masks).with_suffix("").as_posix()
        return place.removesuffix(self.suffix)

    def all_pairs(self, part: str) -> tuple[list[Sample], list[Finding]]:
        """Every image with a mask; what has none, on either side, is a finding."""
        samples: list[Sample] = []
        findings: list[Finding] = []
        for images in self.images_at.values():
            mask = self.mask_of(images[0])
            if len(images) > 1:
                findings.append(one_place(images))
            elif isinstance(mask, Finding):
                findings.append(mask)
            else:
                samples.append(self.sample(images[0], mask, part))
        if not samples and all(finding.kind == "images without a mask" for finding in findings):
            findings = [self.no_mask_at_all()]
        wanted = {mask for images in self.images_at.values() for mask in self.masks_for(images[0])}
        findings += [
            Finding("masks without an image", f"{mask}: left out, has no image", fatal=False)
            for masks in self.masks_at.values()
            for mask in masks
            if mask not in wanted
        ]
        return samples, findings

    def listed_pairs(self, part: str, file: Path) -> tuple[list[Sample], list[Finding]]:
        """The pairs that the lines of a text file name."""
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text in UTF-8"
            raise MissingInput(f"data.{part}: cannot read the list {file}: {reason}") from None
        by_path = {path.relative_to(self.folder).as_posix(): path for path in self.images}
        samples: dict[str, Sample] = {}
        findings: list[Finding] = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line:
                continue
            pair = self.listed_pair(line, by_path, f"{file}:{number}")
            if isinstance(pair, Finding):
                findings.append(pair)
                continue
            sample = self.sample(*pair, part)
            known = samples.setdefault(sample.id, sample)
            if known.image != sample.image:
                findings.append(one_place([known.image, sample.image]))
            elif known is not sample:
                message = f"{file}:{number}: {line} is listed twice: leave one line"
                findings.append(Finding("lines that name no pair", message))
        return list(samples.values()), findings

    def listed_pair(
        self, line: str, by_path: dict[str, Path], where: str
    ) -> tuple[Path, Path] | Finding:
        """The image and the mask that one line names."""
        if line in by_path:
            image = by_path[line]
        elif line in self.images_at:
            if len(self.images_at[line]) > 1:
                return one_place(self.images_at[line])
            image = self.images_at[line][0]
        elif line in self.images_by_stem:
            if len(self.images_by_stem[line]) > 1:
                names = _both(self.images_by_stem[line])
                message = (
                    f"{where}: {line} is the stem of {names}: give the path below {self.folder}"
                )
                return Finding("lines that name no pair", message)
            image = self.images_by_stem[line][0]
        else:
            fields = line.split()
            ends = [_ending(self.folder, fields[0]), _ending(self.masks, fields[-1])]
            if len(fields) == 2 and ends[0] is not None and ends[1] is not None:
                return ends[0], ends[1]
            single = f"the stem of an image, its path below {self.folder}, or "
            message = (
                f"{where}: expected {single if self.images else ''}"
                f'"image-path mask-path" with ends below {self.folder} and {self.masks}; '
                f"got {line!r}"
            )
            return Finding("lines that name no pair", message)
        mask = self.mask_of(image)
        return mask if isinstance(mask, Finding) else (image, mask)

    def masks_for(self, image: Path) -> list[Path]:
        """The masks at the image's place; where there are none, those of its stem that lie at the
        place of no image."""
        free = self.free_by_stem.get(image.stem, [])
        return self.masks_at.get(self.place(image), free)

    def mask_of(self, image: Path) -> Path | Finding:
        """The mask of an image, or why there is none."""
        masks, place = self.masks_for(image), self.place(image)
        alike = self.images_by_stem[image.stem]
        expected = self.masks / f"{place}{self.suffix}.png"
        if not masks:
            message = f"{image}: no mask; expected {expected} (or bmp, tif, tiff)"
            return Finding("images without a mask", message)
        by_stem = place not in self.masks_at
        if by_stem and (len(masks) > 1 or len(alike) > 1):
            fits = f"{masks[0]} fits {_both(alike)} by stem"
            if len(masks) > 1:
                fits = f"its stem fits {_both(masks)}"
            message = (
                f"{image}: no mask at {expected}, and {fits}: give each mask the same subfolder as "
                "its image"
            )
            return Finding("files with one stem", message)
        if len(masks) > 1:
            return one_place(masks)
        return masks[0] if masks[0].suffix.lower() in MASK_TYPES else lossy_mask(masks[0])

    def no_mask_at_all(self) -> Finding:
        """Instead of the same finding for every image: most likely the key is wrong."""
        image, first = self.images[0], self.every_mask[0].name if self.every_mask else "no mask"
        near = [mask.stem for mask in self.every_mask if mask.stem.startswith(image.stem)]
        right = near[0].removeprefix(image.stem) if near else "what a mask's stem has beyond that"
        message = (
            f"none of the {len(self.images)} images has a mask: {image.name} expects "
            f"{image.stem}{self.suffix}.png, and {self.masks} holds {near[0] if near else first}; "
            f"set data.mask_suffix to {right or 'nothing'}"
        )
        return Finding("images without a mask", message)

    def sample(self, image: Path, mask: Path, part: str) -> Sample:
        """Its city is the subfolder that the image lies in."""
        city = image.parent.relative_to(self.folder).as_posix()
        return Sample(self.place(image), "" if city == "." else city, part, image, mask)


def image_files(folder: Path, key: str) -> list[Path]:
    """The image files below a folder, sorted; hidden ones (and macOS's ._ twins) are left out.

    Links are followed. Each folder is searched once, under its own name where it has one here, so
    that links end in no circle and show no image twice.
    """
    if not folder.is_dir():
        raise MissingInput(f"{key}: no folder at {folder}")
    found: list[Path] = []
    searched: set[str] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        at = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(at)
        if real in searched:
            continue
        searched.add(real)
        for path in sorted(at.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in IMAGE_TYPES and path.is_file():
                found.append(path)
    return sorted(found)


def _grouped(files: Iterable[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        found[key(path)].append(path)
    return dict(found)


def one_place(files: Sequence[Path]) -> Finding:
    """What to say of files that would be one sample."""
    message = f"{_both(files)} differ only in their ending: rename or remove one"
    return Finding("files with one stem", message)


def _both(files: Sequence[Path]) -> str:
    """The first two of some files, in words."""
    return " and ".join(map(str, files[:2]))


def _ending(folder: Path, path: str) -> Path | None:
    """The file below `folder` at the longest end of `path`: lists name folders of elsewhere."""
    parts = Path(path).parts
    ends = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end.is_relative_to(folder) and end.is_file()), None)


def _overlaps(samples: Sequence[Sample]) -> list[Finding]:
    """Images that two splits share: the same file, or one of the same stem and content."""
    by_stem: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:  # by size, too, as every video may have a 0001
        by_stem[sample.image.stem, sample.image.stat().st_size].append(sample)
    return [
        Finding(
            "overlapping splits",
            f"{one.image} is in {one.part} and in {other.part} (as {other.image}): an image that "
            "tuning has seen measures nothing in another split; leave it in one",
        )
        for alike in by_stem.values()
        for one, other in combinations(alike, 2)
        if one.part != other.part
        and (one.image == other.image or filecmp.cmp(one.image, other.image, shallow=False))
    ]

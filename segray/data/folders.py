"""Images and masks in folders of any layout, paired by stem."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterable, Sequence
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
        files = _files(images, f"{key}.images")
        self.every_mask = _files(masks, f"{key}.masks")
        mine = [path for path in self.every_mask if path.stem.endswith(suffix)]
        # One folder may lie in the other: a file is an image or a mask. Only lists of pairs come
        # without anything that tells the two apart.
        if masks == images and not suffix:
            pass
        elif masks.is_relative_to(images):
            files = sorted(set(files) - set(mine))
        elif images.is_relative_to(masks):
            mine = sorted(set(mine) - set(files))
        if not files:
            types = ", ".join(kind[1:] for kind in IMAGE_TYPES)
            raise MissingInput(f"{key}.images: no images in {images}: expected files of {types}")
        self.images = files
        self.images_by_stem = _by_stem(files)
        self.masks_by_stem = _by_stem(mine)

    def all_pairs(self, part: str) -> tuple[list[Sample], list[Finding]]:
        """Every image with a mask; what has none, on either side, is a finding."""
        samples: list[Sample] = []
        findings: list[Finding] = []
        for stem, images in self.images_by_stem.items():
            mask = self.mask_of(stem, images[0])
            if len(images) > 1:
                findings.append(_one_stem(images))
            elif isinstance(mask, Finding):
                findings.append(mask)
            else:
                samples.append(self.sample(images[0], mask, part))
        if not samples and all(finding.kind == "images without a mask" for finding in findings):
            findings = [self.no_mask_at_all()]
        wanted = {stem + self.suffix for stem in self.images_by_stem}
        findings += [
            Finding("masks without an image", f"{mask}: left out, has no image", fatal=False)
            for stem, masks in self.masks_by_stem.items()
            if stem not in wanted
            for mask in masks
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
        samples: dict[Path, Sample] = {}
        findings: list[Finding] = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line:
                continue
            pair = self.listed_pair(line, by_path, f"{file}:{number}")
            if isinstance(pair, Finding):
                findings.append(pair)
            elif pair[0] in samples:
                message = f"{file}:{number}: {line} is listed twice: leave one line"
                findings.append(Finding("lines that name no pair", message))
            else:
                samples[pair[0]] = self.sample(*pair, part)
        return list(samples.values()), findings

    def listed_pair(
        self, line: str, by_path: dict[str, Path], where: str
    ) -> tuple[Path, Path] | Finding:
        """The image and the mask that one line names."""
        if line in by_path:
            image = by_path[line]
        elif line in self.images_by_stem:
            if len(self.images_by_stem[line]) > 1:
                return _one_stem(self.images_by_stem[line])
            image = self.images_by_stem[line][0]
        else:
            fields = line.split()
            ends = [_ending(self.folder, fields[0]), _ending(self.masks, fields[-1])]
            if len(fields) == 2 and ends[0] is not None and ends[1] is not None:
                return ends[0], ends[1]
            message = (
                f"{where}: expected the stem of an image, its path below {self.folder}, or "
                f'"image-path mask-path" with ends below {self.folder} and {self.masks}; '
                f"got {line!r}"
            )
            return Finding("lines that name no pair", message)
        mask = self.mask_of(image.stem, image)
        return mask if isinstance(mask, Finding) else (image, mask)

    def mask_of(self, stem: str, image: Path) -> Path | Finding:
        """The mask of an image, or why there is none."""
        masks = self.masks_by_stem.get(stem + self.suffix, [])
        lossless = [mask for mask in masks if mask.suffix.lower() in MASK_TYPES]
        if len(masks) > 1:
            return _one_stem(masks)
        if lossless:
            return lossless[0]
        if masks:
            return lossy_mask(masks[0])
        expected = self.masks / f"{stem}{self.suffix}.png"
        message = f"{image}: no mask; expected {expected} (or bmp, tif, tiff)"
        return Finding("images without a mask", message)

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
        return Sample(image.stem, "" if city == "." else city, part, image, mask)


def _files(folder: Path, key: str) -> list[Path]:
    """The image files below a folder, sorted; hidden ones (and macOS's ._ twins) are left out."""
    if not folder.is_dir():
        raise MissingInput(f"{key}: no folder at {folder}")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_TYPES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _by_stem(files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        found[path.stem].append(path)
    return dict(found)


def _one_stem(files: Sequence[Path]) -> Finding:
    names = " and ".join(map(str, files[:2]))
    message = f"{names} have one stem, which pairs images with masks: rename or remove one"
    return Finding("files with one stem", message)


def _ending(folder: Path, path: str) -> Path | None:
    """The file below `folder` at the longest end of `path`: lists name folders of elsewhere."""
    parts = Path(path).parts
    ends = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end.is_relative_to(folder) and end.is_file()), None)


def _overlaps(samples: Sequence[Sample]) -> list[Finding]:
    """Images that two splits share: the same file, or one of the same stem and content."""
    by_stem: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_stem[sample.id].append(sample)
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

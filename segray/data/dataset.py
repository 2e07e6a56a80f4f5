"""A data section of the config -> images, masks and splits, ready to be trained on."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import posixpath
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from segray.config import Data, FoldersData, RequestError, ScenesData
from segray.config.errors import MissingInput
from segray.data import cityscapes, folders
from segray.data.cache import RUN_LOCK, cache_root, is_whole, lock_path, open_cache
from segray.data.fetch import FilesData, Survey, fetch, fetch_few, imitate, is_fetched, survey
from segray.data.pairs import PairReader
from segray.data.remote import is_remote
from segray.data.samples import Finding, Progress, Sample, Splits, refuse
from segray.data.scenes import write_scenes


@dataclass(frozen=True)
class Dataset:
    """N images of one size, mapped from the cache."""

    ids: tuple[str, ...]
    cities: tuple[str, ...]
    splits: Splits
    classes: tuple[str, ...]
    images: NDArray[np.uint8]  # (N, H, W, 3)
    masks: NDArray[np.uint8]  # (N, H, W)
    native_mask: Callable[[int], NDArray[np.uint8]]  # position -> (h, w), read from its file

    def pair(self, position: int) -> tuple[Tensor, Tensor]:
        """Image (H, W, 3) and mask (H, W), uint8, without a copy."""
        return torch.from_numpy(self.images[position]), torch.from_numpy(self.masks[position])

    def class_pixels(self) -> NDArray[np.int64]:
        """(K,) pixels of each class in the train split."""
        counts = np.zeros(256, dtype=np.int64)
        for position in self.splits.train:
            counts += np.bincount(self.masks[position].reshape(-1), minlength=256)
        return counts[: len(self.classes)]


_opened: dict[str, Dataset] = {}


def open_dataset(
    data: Data, progress: Progress | None = None, version: str | None = None
) -> Dataset:
    """The images of a data section; generates, fetches, decodes and caches them where that is not
    done.

    A process that opens the same section again gets the same object, and while that lives no
    clearing of the cache takes away the files whose masks it reads. `version` is that of fetched
    files (see `data_version`): others are refused. Raises RequestError (see `read_splits`,
    `open_cache`), RemoteError where an object store does not answer.
    """
    # Not `data` itself: equal sections may list classes in another order.
    key = f"{data.model_dump_json()} {version}"
    if key in _opened:
        return _opened[key]
    samples, splits = read_splits(data, progress, version)
    held = _hold(samples)
    caching = partial(progress, "images cached") if progress else None
    images, masks = open_cache(samples, data, caching)
    reader = PairReader(data)
    opened = Dataset(
        ids=tuple(sample.id for sample in samples),
        cities=tuple(sample.city for sample in samples),
        splits=splits,
        classes=data.class_names,
        images=images,
        masks=masks,
        native_mask=lambda position: reader.read_mask(samples[position]),
    )
    weakref.finalize(opened, held.close)
    _opened[key] = opened
    return opened


def _hold(samples: Sequence[Sample]) -> contextlib.ExitStack:
    """Mark the folder of the cache that the samples' files stand in, if any, as in use.

    By a lock, which the kernel drops with the process. Decoded images need none: they are mapped.
    """
    held, root = contextlib.ExitStack(), cache_root()
    mask = samples[0].mask
    if mask.is_relative_to(root):
        folder = mask.relative_to(root).parts[0]
        if folder.startswith(("files-", "scenes-")):
            lock = root / folder / RUN_LOCK
            with contextlib.suppress(OSError):  # somebody else's cache, or one that is only read
                lock.touch()
            with contextlib.suppress(OSError):  # there it may be missing; or there are no locks
                fcntl.flock(held.enter_context(lock.open()), fcntl.LOCK_SH)
    return held


def is_cached(data: Data) -> bool:
    """Whether `open_dataset` would find the images decoded."""
    samples, _ = read_splits(data)
    return is_whole(samples, data)


def data_version(data: Data) -> str | None:
    """What tells the files of a section from those after a change, where they were fetched."""
    if isinstance(data, ScenesData) or not is_remote(data.root):
        return None
    return fetch(data).version


def read_splits(
    data: Data, progress: Progress | None = None, version: str | None = None
) -> tuple[list[Sample], Splits]:
    """The files of a data section and their splits; no image is decoded, so this takes seconds.

    But for files in an object store: they are fetched first, see `fetch`. Raises RequestError for
    images without masks, splits that overlap or are empty, MissingInput where there are no images
    at all.
    """
    samples, splits, findings = find_pairs(data, progress, version)
    refuse(findings)
    return samples, splits


def count_images(data: Data) -> tuple[dict[str, int], Survey | None]:
    """How many images each split has, and, of an object store, what is yet to be fetched.

    Nothing is fetched; raises what `read_splits` raises.
    """
    if isinstance(data, ScenesData) or not is_remote(data.root):
        _, splits = read_splits(data)
        return {name: len(part) for name, part in splits.named().items()}, None
    found = survey(data)
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        imitate(data, found.listing, Path(folder))
        _, splits, findings = _pairs_in(data, Path(folder))
        refuse(findings)
    return {name: len(part) for name, part in splits.named().items()}, found


@contextlib.contextmanager
def few_samples(data: Data, ids: Collection[str]) -> Iterator[dict[str, Sample]]:
    """By id those images of the test split that are named and there; their files can be read here.

    Of an object store no more than these files are fetched, to be gone afterwards, unless all that
    the section needs stands here already. Raises what `read_splits` raises.
    """

    def few(samples: list[Sample], splits: Splits) -> dict[str, Sample]:
        found = (samples[position] for position in splits.test)
        return {sample.id: sample for sample in found if sample.id in ids}

    if isinstance(data, ScenesData) or not is_remote(data.root) or is_fetched(data):
        yield few(*read_splits(data))
        return
    found = survey(data)
    if not found.missing:
        yield few(*read_splits(data, version=found.version))
        return
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        imitate(data, found.listing, Path(folder))
        samples, splits, findings = _pairs_in(data, Path(folder))
        refuse(findings)
        chosen = few(samples, splits)
        files = [file for sample in chosen.values() for file in (sample.image, sample.mask)]
        # data.images may go up and down again, as in masks/../images
        names = {posixpath.normpath(file.relative_to(folder).as_posix()) for file in files}
        fetch_few(data, found.listing, names, Path(folder))
        yield chosen


def find_pairs(
    data: Data, progress: Progress | None = None, version: str | None = None
) -> tuple[list[Sample], Splits, list[Finding]]:
    """As `read_splits`, but what is wrong with the files comes as findings.

    Raises MissingInput where there are no images at all.
    """
    if not isinstance(data, ScenesData) and is_remote(data.root):
        return _pairs_in(data, fetch(data, progress, version).folder)
    return _find_pairs(data, progress)


def _pairs_in(data: FilesData, folder: Path) -> tuple[list[Sample], Splits, list[Finding]]:
    """The pairs of an object store's files that stand in a folder here.

    What is wrong is said of the store's files, as they are what has to be put right.
    """
    url = data.root.rstrip("/")
    try:
        found = _find_pairs(data.model_copy(update={"root": str(folder)}), None)
    except MissingInput as error:
        raise MissingInput(str(error).replace(str(folder), url)) from None
    samples, splits, findings = found
    told = [replace(one, message=one.message.replace(str(folder), url)) for one in findings]
    return samples, splits, told


def _find_pairs(
    data: Data, progress: Progress | None
) -> tuple[list[Sample], Splits, list[Finding]]:
    if isinstance(data, FoldersData):
        samples, findings = folders.find_samples(data)
        splits = folders.split_samples(samples, split=data.split, seed=data.split_seed)
    else:
        drawing = partial(progress, "scenes drawn") if progress else None
        root = _write_scenes(data, drawing) if isinstance(data, ScenesData) else Path(data.root)
        samples, findings = cityscapes.find_samples(root)
        splits = cityscapes.split_samples(
            samples, split=data.split, val_share=data.val_share, seed=data.split_seed
        )
    empty = [name for name, positions in splits.named().items() if not positions]
    if empty and (samples or not findings):
        cities = len({sample.city for sample in samples})
        found = f"{len(samples)} images" + f" in {cities} cities" * (data.split == "official")
        message = (
            f"data.split: {data.split} leaves no image for {' and '.join(empty)}, of {found}; "
            f"{_NEEDS[data.split]}"
        )
        findings = [*findings, Finding("empty splits", message)]
    return *_first_of_each(samples, splits, data.limit), findings


_NEEDS = {
    "official": "official needs two cities in train and one in val",
    "pooled": "pooled needs 7 images",
    "explicit": "explicit needs an image in each",
}


def _first_of_each(
    samples: list[Sample], splits: Splits, limit: int | None
) -> tuple[list[Sample], Splits]:
    """The first `limit` samples of each split, and where they then stand."""
    kept = [positions[:limit] for positions in splits.named().values()]
    order = sorted(position for positions in kept for position in positions)
    place = {position: new for new, position in enumerate(order)}
    train, val, test = (tuple(place[position] for position in positions) for positions in kept)
    return [samples[position] for position in order], Splits(train, val, test)


def _write_scenes(data: ScenesData, progress: Callable[[int, int], None] | None) -> Path:
    facts = data.model_dump(
        include={"train_images", "test_images", "cities", "test_cities", "seed"}
    )
    facts["size"] = list(data.size)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(data.root) if data.root is not None else cache_root() / f"scenes-{digest}"
    cache_root().mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_path(cache_root() / f"scenes-{digest}")):
            write_scenes(
                root,
                train=data.train_images,
                val=data.test_images,
                cities=data.cities,
                val_cities=data.test_cities,
                size=data.size,
                seed=data.seed,
                progress=progress,
            )
    except FileExistsError as error:
        raise RequestError(f"data.root: {error}") from None
    if data.root is None:
        with contextlib.suppress(OSError):  # somebody else's scenes
            os.utime(root / "scenes.json")  # says when they were last used
    return root

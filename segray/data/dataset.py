"""A data section of the config -> images, masks and splits, ready to be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from segray.config import CityscapesData, RequestError, ScenesData
from segray.data.cache import Progress, cache_folder, cache_root, open_cache
from segray.data.cityscapes import Sample, Splits, find_samples, split_samples
from segray.data.labels import class_names
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

    def pair(self, position: int) -> tuple[Tensor, Tensor]:
        """Image (H, W, 3) and mask (H, W), uint8, without a copy."""
        return torch.from_numpy(self.images[position]), torch.from_numpy(self.masks[position])

    def class_pixels(self) -> NDArray[np.int64]:
        """(K,) pixels of each class in the train split."""
        counts = np.zeros(256, dtype=np.int64)
        for position in self.splits.train:
            counts += np.bincount(self.masks[position].reshape(-1), minlength=256)
        return counts[: len(self.classes)]


_opened: dict[CityscapesData | ScenesData, Dataset] = {}


def open_dataset(
    data: CityscapesData | ScenesData, progress: Callable[[str, int, int], None] | None = None
) -> Dataset:
    """The images of a data section; generates, decodes and caches them where that is not done.

    `progress` is called with what is being done, how many images of it are, and of how many.

    A process that opens the same section again gets the same object. Raises RequestError (see
    `find_samples`, `split_samples`, `open_cache`).
    """
    if data in _opened:
        return _opened[data]
    samples, splits = read_splits(data, progress)
    caching = partial(progress, "images cached") if progress else None
    images, masks = open_cache(samples, size=data.size, ignore=data.ignore, progress=caching)
    _opened[data] = Dataset(
        ids=tuple(sample.id for sample in samples),
        cities=tuple(sample.city for sample in samples),
        splits=splits,
        classes=class_names(data.ignore),
        images=images,
        masks=masks,
    )
    return _opened[data]


def is_cached(data: CityscapesData | ScenesData) -> bool:
    """Whether `open_dataset` would find the images decoded."""
    samples, _ = read_splits(data)
    return cache_folder(samples, size=data.size, ignore=data.ignore).is_dir()


def read_splits(
    data: CityscapesData | ScenesData, progress: Callable[[str, int, int], None] | None = None
) -> tuple[list[Sample], Splits]:
    """The files of a data section and their splits; no image is decoded, so this takes seconds."""
    drawing = partial(progress, "scenes drawn") if progress else None
    root = _write_scenes(data, drawing) if isinstance(data, ScenesData) else Path(data.root)
    samples = find_samples(root)
    splits = split_samples(
        samples, split=data.split, val_share=data.val_share, seed=data.split_seed
    )
    return samples, splits


def _write_scenes(data: ScenesData, progress: Progress | None) -> Path:
    facts = data.model_dump(
        include={"train_images", "test_images", "cities", "test_cities", "seed"}
    )
    facts["size"] = list(data.size)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(data.root) if data.root is not None else cache_root() / f"scenes-{digest}"
    cache_root().mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache_root() / f"scenes-{digest}.lock"):
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
    return root

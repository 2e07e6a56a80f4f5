"""Decoded, resized, label-mapped images in two uint8 arrays that every trial on a node maps.

The name of a cache is a digest of all that its bytes depend on, so a cache is never updated: other
files, another size or label map make another one. It is built under a file lock into a temporary
folder and renamed, so a folder with the final name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from segray.config import Data, RequestError
from segray.data.labels import label_table
from segray.data.pairs import PairReader
from segray.data.samples import BadPair, Sample

FORMAT = 2


def cache_root() -> Path:
    """$SEGRAY_CACHE, or the system's place for caches."""
    return Path(os.environ.get("SEGRAY_CACHE") or platformdirs.user_cache_dir("segray")).absolute()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_cache(
    samples: Sequence[Sample], data: Data, progress: Callable[[int, int], None] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W, 3) and masks of class indices (N, H, W), mapped; built if need be.

    `progress` is called with (done, total) images. Raises BadPair for a pair that cannot be used
    (see `PairReader.read`), RequestError for a disk without room.
    """
    folder = cache_folder(samples, data)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have built it meanwhile
                _build(folder, samples, data, progress)
    # "c" lets torch wrap the arrays without a warning; nobody writes to them.
    images = np.load(folder / "images.npy", mmap_mode="c")
    masks = np.load(folder / "masks.npy", mmap_mode="c")
    return images, masks


def cache_folder(samples: Sequence[Sample], data: Data) -> Path:
    """Where these samples stand, or will stand, decoded."""
    return cache_root() / f"images-{_digest(samples, data)}"


def _digest(samples: Sequence[Sample], data: Data) -> str:
    files = []
    for sample in samples:
        for path in (sample.image, sample.mask):
            stat = path.stat()
            files.append((str(path), stat.st_size, stat.st_mtime_ns))
    table = hashlib.sha256(label_table(data).tobytes()).hexdigest()
    facts = json.dumps([FORMAT, list(data.size), table, files])
    return hashlib.sha256(facts.encode()).hexdigest()[:20]


def _build(
    folder: Path,
    samples: Sequence[Sample],
    data: Data,
    progress: Callable[[int, int], None] | None,
) -> None:
    size = data.size
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed build: we hold the lock
    need = len(samples) * size[0] * size[1] * 4
    free = shutil.disk_usage(folder.parent).free
    if need > 0.95 * free:
        raise RequestError(
            f"the image cache needs {need / 1e9:.1f} GB ({len(samples)} images x {size[0]} x "
            f"{size[1]} x 4 bytes) and {folder.parent} has {free / 1e9:.1f} GB free: make room, "
            "name another folder in SEGRAY_CACHE, or lower data.size"
        )
    temporary.mkdir()
    shape = (len(samples), *size)
    images = _allocate(temporary / "images.npy", (*shape, 3))
    masks = _allocate(temporary / "masks.npy", shape)
    reader = PairReader(data)

    def fill(position: int) -> None:
        pair = reader.read(samples[position])
        if pair.unknown:
            labels = sorted(pair.unknown)
            pixels = sum(pair.unknown.values())
            raise BadPair(reader.unknown(labels, pixels, samples[position].mask))
        images[position], masks[position] = pair.image, pair.mask

    # Threads are enough: Pillow decodes and resizes without the interpreter's lock.
    with ThreadPoolExecutor(cores()) as pool:
        try:
            for done, _ in enumerate(pool.map(fill, range(len(samples))), start=1):
                if progress is not None:
                    progress(done, len(samples))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    images.flush()
    masks.flush()
    temporary.rename(folder)


def _allocate(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new mapped array whose space on disk is taken now: a mapped page that finds the disk full
    later kills the process.
    """
    array: np.memmap[Any, np.dtype[np.uint8]]
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array

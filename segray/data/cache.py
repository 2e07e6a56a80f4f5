"""Decoded, resized, label-mapped images in two uint8 arrays that every trial on a node maps.

The name of a cache is a digest of all that its bytes depend on, so a cache is never updated: other
files, another size or label map make another one. It is built under a file lock into a temporary
folder and renamed, so a folder with the final name was whole once; one that no longer is, after a
copy that broke off or a disk that failed, is noticed when it is opened and built again.

Nodes that share the folder over NFS build once too, as far as its locks reach: Linux passes flock
to an NFS server (not with `nolock`), and rename is atomic there. A node that looks too early, for
NFS remembers for a while that a name is not there, builds for nothing and keeps what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from segray.config import Data, RequestError
from segray.data.labels import label_table
from segray.data.pairs import PairReader
from segray.data.samples import BadPair, Sample

FORMAT = 3
META = "meta.json"  # what a cache holds; its time of change is when the cache was last opened
COPIES = ("runs", "read")  # copies of runs in an object store, <kind>/<storage>/<name>: sweep/store
COPY_OF = ".url"  # a file beside the copies of runs of one storage: where that is
RUN_LOCK = ".lock"  # in a run's folder, and one of files that masks are read from: held while used

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]
_log = logging.getLogger(__name__)


def cache_root() -> Path:
    """$SEGRAY_CACHE, or the system's place for caches."""
    return Path(os.environ.get("SEGRAY_CACHE") or platformdirs.user_cache_dir("segray")).absolute()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_cache(
    samples: Sequence[Sample], data: Data, progress: Callable[[int, int], None] | None = None
) -> Arrays:
    """Images (N, H, W, 3) and masks of class indices (N, H, W), mapped; built if need be.

    `progress` is called with (done, total) images. Raises BadPair for a pair that cannot be used
    (see `PairReader.read`), RequestError for a disk without room.
    """
    folder = cache_folder(samples, data)
    shape = (len(samples), *data.size)
    with contextlib.suppress(_Unusable):
        return _use(folder, shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_path(folder)):
        try:
            return _use(folder, shape)  # another process may have built it meanwhile
        except _Unusable as error:
            if folder.exists():
                _log.warning("%s is damaged (%s): building it again", folder, error)
        _build(folder, samples, data, progress)
        return _use(folder, shape)


def is_whole(samples: Sequence[Sample], data: Data) -> bool:
    """Whether `open_cache` would find the arrays there, as a whole."""
    try:
        _map(cache_folder(samples, data), (len(samples), *data.size))
    except _Unusable:
        return False
    return True


class _Unusable(Exception):
    """A cache that is not there, or not whole."""


def _use(folder: Path, shape: tuple[int, int, int]) -> Arrays:
    """As `_map`, and notes that the cache was used now."""
    arrays = _map(folder, shape)
    with contextlib.suppress(OSError):  # somebody else's cache, or one on a disk that is only read
        os.utime(folder / META)
    return arrays


def _map(folder: Path, shape: tuple[int, int, int]) -> Arrays:
    """The arrays of N, H, W = `shape`. Raises _Unusable where they are not there as a whole.

    Their length and header are looked at, not their pixels: that would read them all.
    """
    if not (folder / META).is_file():
        raise _Unusable(f"{META} is missing")
    arrays = []
    for name, expected in (("images.npy", (*shape, 3)), ("masks.npy", shape)):
        try:
            # "c" lets torch wrap the arrays without a warning; nobody writes to them.
            array = np.lib.format.open_memmap(folder / name, "c")
        except FileNotFoundError:
            raise _Unusable(f"{name} is missing") from None
        except (OSError, ValueError, SyntaxError, TokenError) as error:
            raise _Unusable(f"{name}: {error}") from None
        if array.shape != expected or array.dtype != np.uint8:
            raise _Unusable(f"{name}: expected uint8 {expected}, got {array.dtype} {array.shape}")
        if (length := (folder / name).stat().st_size) != array.offset + array.nbytes:
            raise _Unusable(f"{name}: expected {array.offset + array.nbytes} bytes, got {length}")
        arrays.append(array)
    return arrays[0], arrays[1]


def lock_path(folder: Path) -> Path:
    """What is locked while a folder of the cache is being written, or deleted."""
    return folder.parent / f"{folder.name.removeprefix('.').split('.')[0]}.lock"


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
    temporary = _doomed(folder)
    discard(folder)  # where it is damaged; and with it what a build killed on this node left
    need = len(samples) * size[0] * size[1] * 4
    free = shutil.disk_usage(folder.parent).free
    if need > 0.95 * free:
        raise RequestError(
            f"the image cache needs {need / 1e9:.1f} GB ({len(samples)} images x {size[0]} x "
            f"{size[1]} x 4 bytes) and {folder.parent} has {free / 1e9:.1f} GB free: make room, "
            "name another folder in SEGRAY_CACHE, or lower data.size"
        )
    try:
        temporary.mkdir()
        _fill(temporary, samples, data, progress)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(temporary)  # a node that locks did not reach was first
    except BaseException:
        # Its room was taken all at once, and other files or settings would not find it again.
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(
    folder: Path,
    samples: Sequence[Sample],
    data: Data,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the arrays, and last what they are."""
    shape = (len(samples), *data.size)
    images = _allocate(folder / "images.npy", (*shape, 3))
    masks = _allocate(folder / "masks.npy", shape)
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
    meta = {"images": len(samples), "size": data.size, "format": data.format, "root": data.root}
    (folder / META).write_text(json.dumps(meta) + "\n")


def discard(folder: Path) -> None:
    """Delete a folder of the cache, if it is there; its lock must be held.

    It is renamed first, so that a kill in between leaves nothing that looks whole. Who has it
    mapped keeps what is mapped.
    """
    doomed = _doomed(folder)
    if folder != doomed:
        shutil.rmtree(doomed, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _doomed(folder: Path) -> Path:
    """The name under which this node writes a folder, or deletes it.

    Another node has another: one that the lock does not reach may be writing at the same time.
    """
    return folder.parent / f"{lock_path(folder).stem}.{platform.node() or 'here'}.tmp"


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

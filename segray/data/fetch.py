"""Images and masks that stand in an object store, fetched to this machine's own disk.

From there they are read as a local folder is. Only what the section needs is fetched: of the
objects of Cityscapes two fifths. Files stand at cache_root()/files-<digest of the URL>, below the
same names and with the store's time of change, so that what was fetched once is not fetched again,
a fetch that was interrupted goes on, and a file that changed in the store is fetched anew and, as
its time is in the digest of the decoded cache, decoded anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from segray.config import CityscapesData, Folders, FoldersData, RequestError, WorkError
from segray.data import cityscapes
from segray.data.cache import cache_root, lock_path
from segray.data.cityscapes import MASK_ENDING, PARTS
from segray.data.folders import IMAGE_TYPES
from segray.data.remote import RemoteFile, RemoteFolder
from segray.data.samples import Progress

FACTS = ".segray.json"  # what a folder of files holds; its mtime is when they were last used
ROUNDS = 3  # how often files may change while they are being fetched

Listing = Mapping[str, RemoteFile]
FilesData = CityscapesData | FoldersData


@dataclass(frozen=True)
class Fetched:
    """The files of a section on this machine."""

    folder: Path  # stands for data.root
    version: str  # a digest of every file's name, size and time of change in the store


@dataclass(frozen=True)
class Survey:
    """What the store has for a section, and what of it is not on this machine."""

    listing: Listing
    missing: Listing

    @property
    def bytes(self) -> int:
        """What is to be fetched."""
        return sum(file.bytes for file in self.missing.values())

    @property
    def version(self) -> str:
        """What `fetch` is asked for, to get these files and no others."""
        return _version(self.listing)


_fetched: dict[tuple[Path, str], Fetched] = {}


def fetch(data: FilesData, progress: Progress | None = None, version: str | None = None) -> Fetched:
    """Bring the files that a section needs to this machine, where they are not there already.

    The store is asked what it has once in the life of a process: what changes there later belongs
    to the next one. That is a request for every 1000 objects. With a `version`, that of the driver
    of a sweep, it is not asked at all where that version was fetched whole; files that are by now
    another version are refused, as a sweep must not train on both.

    Raises RequestError for another version and for a disk without room, RemoteRefused for a bucket
    that is not there or not ours, RemoteError where the store does not answer.
    """
    folder, scope = fetched_folder(data.root), _Scope(data)
    known = _fetched.get((folder, scope.digest))
    if known is not None and folder.is_dir() and version in (None, known.version):
        return known
    record = folder / f".segray-{scope.digest}.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock_path(folder)):
        folder.mkdir(exist_ok=True)
        if version is None or version != _standing(folder, record):
            listing = scope.listing()
            if version is not None and version != _version(listing):
                raise RequestError(
                    f"data.root: in {data.root} files were added, removed or written again since "
                    "this sweep began, and a sweep must not train on both; put them back and "
                    "--resume, or begin anew under another name="
                )
            _write(folder / FACTS, {"root": scope.source.url, "whole": False})
            record.unlink(missing_ok=True)
            listing = _bring(folder, scope, listing, progress)
            _write(record, {name: [one.bytes, one.changed_ns] for name, one in listing.items()})
            version = _version(listing)
        _write(folder / FACTS, {"root": scope.source.url, "whole": True})
    found = _fetched[folder, scope.digest] = Fetched(folder, version)
    return found


def is_fetched(data: FilesData) -> bool:
    """Whether this process has fetched a section, and so `fetch` asks the store nothing more."""
    folder = fetched_folder(data.root)
    return (folder, _Scope(data).digest) in _fetched and folder.is_dir()


def survey(data: FilesData) -> Survey:
    """Ask the store what a section needs, and look what of it is here; nothing is fetched.

    Raises what `fetch` raises, but for the disk.
    """
    listing = _Scope(data).listing()
    folder = fetched_folder(data.root)
    return Survey(listing, _missing(folder, listing))


def fetch_few(data: FilesData, listing: Listing, names: Iterable[str], folder: Path) -> None:
    """Fetch some of the listed files below `folder`, in place of those that `imitate` made."""
    few = {name: listing[name] for name in names}
    for _ in _Scope(data).source.download_listed(few, folder):
        pass


def imitate(data: FilesData, listing: Listing, folder: Path) -> None:
    """Make the listed files below `folder`, with their sizes and nothing in them but their names.

    Enough to pair them and count the splits. Lists of images are fetched, as they are read.
    """
    scope = _Scope(data)
    for name, file in listing.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in scope.lists:
            scope.source.download(name, path)
            continue
        with path.open("wb") as made:  # its name, as two files of one content are taken for one
            made.write(name.encode())
            made.truncate(file.bytes)  # takes no room on disk


def fetched_folder(url: str) -> Path:
    """Where the files of a URL stand, or will stand."""
    digest = hashlib.sha256(RemoteFolder(url).url.encode()).hexdigest()[:20]
    return cache_root() / f"files-{digest}"


class _Scope:
    """Which of the objects below its root a section needs."""

    def __init__(self, data: FilesData) -> None:
        """Raises RequestError for a path that leaves the root."""
        self.data, self.source = data, RemoteFolder(data.root)
        self.folders: dict[str, Callable[[str], bool]] = {}  # -> which of the names below it
        self.lists: list[str] = []
        if isinstance(data, CityscapesData):
            for part in PARTS:
                self.folders[f"leftImg8bit/{part}"] = _is_street
                self.folders[f"gtFine/{part}"] = lambda name: name.endswith(MASK_ENDING)
        else:
            for key, path in _named(data):
                inside = posixpath.normpath(path)
                if inside.startswith(("/", "..")):
                    raise RequestError(
                        f"data.{key}: expected a path below data.root ({data.root}), got {path}"
                    )
                if key in ("train", "val", "test"):
                    self.lists.append(inside)
                else:
                    self.folders["" if inside == "." else inside] = _is_image
        facts = [data.format, sorted(self.folders), sorted(self.lists)]
        self.digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def listing(self) -> Listing:
        """What the store has of it, by name below the root."""
        # A folder in another one is listed with that.
        tops = [at for at in self.folders if not any(_below(at, other) for other in self.folders)]

        def files(top: str) -> dict[str, RemoteFile]:
            if not top:
                return self.source.files()
            return {f"{top}/{name}": file for name, file in (self.source / top).files().items()}

        with ThreadPoolExecutor(max(1, len(tops))) as pool:
            found = {name: file for some in pool.map(files, tops) for name, file in some.items()}
        chosen = {name: file for name, file in found.items() if self._needs(name)}
        for name in self.lists:
            if (file := self.source.file(name)) is not None:
                chosen[name] = file
        return dict(sorted(chosen.items()))

    def on_disk(self, folder: Path) -> Iterator[str]:
        """The names of the files that it has on this machine."""
        for top in self.folders:
            for path in (folder / top).rglob("*"):
                name = path.relative_to(folder).as_posix()
                if self._needs(name) and path.is_file():
                    yield name
        yield from (name for name in self.lists if (folder / name).is_file())

    def _needs(self, name: str) -> bool:
        parts = name.split("/")
        if any(not part or part.startswith(".") for part in parts):
            return False  # hidden, or no path of a file at all
        return any(
            _below(name, top) and rule(name.removeprefix(top)) for top, rule in self.folders.items()
        )


def _named(data: FoldersData) -> Iterator[tuple[str, str]]:
    """Key and path of each folder and list that a section names."""
    if data.images is not None and data.masks is not None:
        yield from (("images", data.images), ("masks", data.masks))
    for name, part in data.parts.items() if data.split == "explicit" else ():
        if isinstance(part, Folders):
            yield from ((f"{name}.images", part.images), (f"{name}.masks", part.masks))
        else:
            yield name, part


def _below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/") if folder else bool(name)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_TYPES)


def _is_street(name: str) -> bool:
    return cityscapes.is_image(posixpath.basename(name))


def _version(listing: Listing) -> str:
    facts = [[name, file.bytes, file.changed_ns] for name, file in sorted(listing.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _standing(folder: Path, record: Path) -> str | None:
    """The version that was fetched whole, if all of it is still there."""
    try:
        facts = json.loads(record.read_text())
        listing = {name: RemoteFile(*file) for name, file in facts.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None
    return None if _missing(folder, listing) else _version(listing)


def _missing(folder: Path, listing: Listing) -> Listing:
    """The files that are not here as the store has them."""

    def is_here(name: str, file: RemoteFile) -> bool:
        try:
            found = (folder / name).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (file.bytes, file.changed_ns)

    return {name: file for name, file in listing.items() if not is_here(name, file)}


def _bring(folder: Path, scope: _Scope, listing: Listing, progress: Progress | None) -> Listing:
    """Make the files here those of the listing, or of a later one; returns which."""
    for _ in range(ROUNDS):
        for name in scope.on_disk(folder):
            if name not in listing:  # the store has it no longer
                (folder / name).unlink(missing_ok=True)
        missing = _missing(folder, listing)
        if not missing:
            return listing
        for left in folder.rglob(".*.part"):  # of a process that was killed
            left.unlink()
        _check_room(folder, scope.data, listing, missing)
        there = len(listing) - len(missing)
        for done in scope.source.download_listed(missing, folder):
            if progress is not None:
                progress("files fetched", there + done, len(listing))
        listing = scope.listing()  # what was written meanwhile may be half the one, half the other
    raise WorkError(
        f"{scope.source.url}: files there changed {ROUNDS} times while they were being fetched; "
        "wait until whoever writes them is done"
    )


def _check_room(folder: Path, data: FilesData, listing: Listing, missing: Listing) -> None:
    """Raises RequestError where the files, and the images once decoded, do not fit."""
    files = sum(file.bytes for file in missing.values())
    images = len(listing) // 2  # the other half are masks
    if data.limit is not None:
        images = min(images, 3 * data.limit)
    decoded = images * math.prod(data.size) * 4
    free = shutil.disk_usage(folder).free
    if files + decoded > 0.95 * free:
        raise RequestError(
            f"data.root: {len(missing)} files of {data.root} take {files / 1e9:.1f} GB, and "
            f"decoded {decoded / 1e9:.1f} GB ({images} images x {data.size[0]} x {data.size[1]} x "
            f"4 bytes); {cache_root()} has {free / 1e9:.1f} GB free: make room, name another "
            "folder in SEGRAY_CACHE, or lower data.size"
        )


def _write(path: Path, facts: object) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(facts) + "\n")
    os.replace(temporary, path)

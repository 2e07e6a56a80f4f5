"""What the cache folder holds, and its clearing: decoded images, generated scenes, fetched files,
copies of runs in an object store, leftovers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from segray.config import RequestError
from segray.data.cache import (
    COPIES,
    COPY_OF,
    META,
    RUN_LOCK,
    cache_root,
    discard,
    lock_path,
)
from segray.data.fetch import FACTS

# Ours: a cache, a set of scenes, files of an object store, what is being written or what a killed
# process left of it.
_OURS = re.compile(r"\.?(images|scenes|files)-[0-9a-f]+(\.[\w.-]+)?")
_SCRATCH = re.compile(r"bench-\w+")  # of `segray bench`, which takes a minute
_IN_USE = "in use by a sweep"
HOUR = 60 * 60
DAY = 24 * HOUR


@dataclass(frozen=True)
class Stored:
    """A folder of the cache."""

    path: Path
    holds: str  # for people
    bytes: int
    used: float  # when it was last opened, in seconds since 1970
    busy: str  # what it is busy with, or ""

    @property
    def name(self) -> str:
        """By which it is known: its path below the cache folder."""
        return self.path.relative_to(cache_root()).as_posix()

    @property
    def unused_days(self) -> int:
        """Whole days since it was last opened."""
        return int(max(0.0, time.time() - self.used) // DAY)


def stored() -> list[Stored]:
    """All that stands in the cache folder, last used first."""
    root = cache_root()
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # renamed or deleted meanwhile
            left = _SCRATCH.fullmatch(path.name) and time.time() - path.stat().st_mtime > HOUR
            if path.is_dir() and (left or _OURS.fullmatch(path.name)):
                found.append(_look_at(path))
    for path in (copy for kind in COPIES for copy in root.glob(f"{kind}/*/*/")):
        with contextlib.suppress(FileNotFoundError):
            found.append(_look_at_copy(path))
    return sorted(found, key=lambda one: (-one.used, one.name))


def show_stored() -> None:
    """Print all that stands in the cache folder."""
    found = stored()
    if not found:
        _say(f"{cache_root()}: nothing is cached")
        return
    _say(f"{cache_root()} holds {_total(found)}; by when it was last used:")
    _list(found)


def clear_stored(
    names: Sequence[str], unused_days: int | None, confirm: Callable[[str], bool]
) -> None:
    """Delete the folders so named, or those that nobody opened for so many days, or else all.

    Asks `confirm` first, and leaves alone what is being built, and files that a sweep still reads.
    A sweep that needs one of them again builds it again. Raises RequestError for a name that is
    not there.
    """
    if names and unused_days is not None:
        raise RequestError("expected names or --unused-days, got both: leave one of them out")
    found = stored()
    there = {one.name for one in found}
    if unknown := [name for name in names if name not in there]:
        raise RequestError(
            f"{cache_root()}: expected the name of a folder there, got {', '.join(unknown)}; "
            "to see their names: segray data cache ls"
        )
    chosen = [
        one
        for one in found
        if (not names or one.name in names) and one.unused_days >= (unused_days or 0)
    ]
    for one in chosen:
        if one.busy:
            _say(f"{one.name} is {one.busy} and stays")
    chosen = [one for one in chosen if not one.busy]
    if not chosen:
        _say(f"{cache_root()}: nothing to clear")
        return
    _say(f"{cache_root()} could free {_total(chosen)}:")
    _list(chosen)
    if not confirm("Delete them?"):
        return
    for one in chosen:
        try:
            _delete(one.path)
        except Timeout:
            _say(f"{one.name} is in use by now and stays")
        except PermissionError as error:
            _say(f"{one.name} is somebody else's and stays ({error})")
    gone = [one for one in chosen if not one.path.exists()]
    _say(f"freed {_total(gone)}")


def _delete(path: Path) -> None:
    """Raises Timeout where somebody is at work in it."""
    if _is_copy(path):
        with (path / RUN_LOCK).open("a+") as lock:
            _lock_alone(lock)
            shutil.rmtree(path)
        return
    with FileLock(lock_path(path), timeout=0), contextlib.ExitStack() as held:
        if (path / RUN_LOCK).is_file():
            _lock_alone(held.enter_context((path / RUN_LOCK).open("a+")))
        discard(path)


def _lock_alone(file: IO[str]) -> None:
    """Hold an open file alone until it is closed; raises Timeout where another has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Timeout(file.name) from None


def _is_copy(path: Path) -> bool:
    return (path.parent / COPY_OF).is_file()


def _look_at_copy(path: Path) -> Stored:
    """A copy's facts; what it was used for last may have changed nothing but its lock."""
    files = [(file, file.stat()) for file in path.rglob("*") if file.is_file()]
    used = max((facts.st_mtime for _, facts in files), default=path.stat().st_mtime)
    holds = f"a copy of {(path.parent / COPY_OF).read_text()}/{path.name}"
    busy = _IN_USE if _is_in_use(path) else ""
    return Stored(path, holds, sum(facts.st_size for _, facts in files), used, busy)


def _is_in_use(path: Path) -> bool:
    lock = path / RUN_LOCK
    if not lock.is_file() or not os.access(lock, os.W_OK):
        return False
    with lock.open("r+") as file:
        try:
            _lock_alone(file)
        except Timeout:
            return True
    return False


def _look_at(path: Path) -> Stored:
    """A folder's facts. Raises FileNotFoundError where it goes missing meanwhile."""
    kinds = {"images": META, "scenes": "scenes.json", "files": FACTS}
    meta = path / kinds.get(path.name.lstrip(".").split("-")[0], META)
    used = (meta if meta.is_file() else path).stat().st_mtime
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    busy = "being built" if _is_locked(path) else _IN_USE if _is_in_use(path) else ""
    if busy and busy != _IN_USE:
        holds = busy
    elif "." in path.name or _SCRATCH.fullmatch(path.name):
        holds = "left by a process that was killed"
    elif not any(path.iterdir()):
        holds = "nothing: what should have come there did not"
    else:
        try:
            holds = _described(json.loads(meta.read_text()))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            holds = "of another version of segray, or damaged"
    return Stored(path, holds, size, used, busy)


def _described(facts: dict[str, Any]) -> str:
    """What meta.json, scenes.json or .segray.json says."""
    if "size" not in facts:
        return f"files fetched from {facts['root']}" + ("" if facts["whole"] else ", not all yet")
    height, width = facts["size"]
    if "images" not in facts:
        return f"{facts['train'] + facts['val']} generated scenes of {height}x{width}"
    where = f"{facts['format']}, {facts['root']}" if facts["root"] else facts["format"]
    return f"{facts['images']} images at {height}x{width}: {where}"


def _is_locked(path: Path) -> bool:
    lock = lock_path(path)
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # somebody else's lock
        return False


def _list(found: Sequence[Stored]) -> None:
    width = max(len(one.name) for one in found)
    for one in found:
        days = one.unused_days
        used = "today" if days == 0 else f"{days} day{'s' * (days != 1)} ago"
        line = f"  {one.name:{width}}  {decimal(one.bytes):>9}  {used:>12}  {one.holds}"
        _say(line)


def _total(found: Sequence[Stored]) -> str:
    return decimal(sum(one.bytes for one in found))


def _say(line: str) -> None:
    Console(highlight=False, soft_wrap=True).print(Text(line))

"""Locks on the files of a run folder, which the kernel drops with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from segray.config import RequestError, WorkError
from segray.data.cache import RUN_LOCK

DRIVER = ".driver"  # of the one that runs it
ORPHANS_S = 120.0  # a killed sweep's trials end with Ray, within seconds if the machine is free


@contextlib.contextmanager
def at_work_in(run_folder: Path) -> Iterator[None]:
    """For a process that trains: while the context lasts, nobody else takes the folder up."""
    with (run_folder / RUN_LOCK).open("a+") as file:
        lock_shared(file)
        yield


def alone_with(file: IO[str]) -> None:
    """Wait until no other process holds `file`, and hold it until it is closed.

    Of a trial whose process died, workers can live on for a moment. Raises WorkError where one
    still does after ORPHANS_S.
    """
    until = time.monotonic() + ORPHANS_S
    while not lock_alone(file):
        if time.monotonic() > until:
            raise WorkError(f"another process still writes {file.name} after {ORPHANS_S:g} s")
        time.sleep(0.1)


def lock_shared(file: IO[str]) -> None:
    """Hold an open file together with others that share it, after any that has it alone.

    Raises RequestError, as all that lock do, where the file system has no locks.
    """
    _lock(file, fcntl.LOCK_SH)


def lock_alone(file: IO[str]) -> bool:
    """Hold an open file alone; False where another process has it."""
    return _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_unless_at_work(file: IO[str]) -> bool:
    """`lock_alone`, but for those who only look, and hold the file for a moment."""
    for pause in (0.0, 0.1, 0.2):
        time.sleep(pause)
        if lock_alone(file):
            return True
    return False


def _lock(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RequestError(
            f"{file.name}: the file system has no locks ({error.strerror}), which keep two sweeps "
            "out of one run folder: name another one with storage=/some/folder"
        ) from None
    return True

"""Run folders in an object store (storage: s3://bucket/folder), and each machine's copy of them.

Every process works on files of its own machine, as with any other storage, and this module brings
them to the store and from there: the driver what it writes itself, a trial its own folder after
each epoch. Only whole objects go there, and in an order in which a kill between any two leaves what
a kill would leave on a disk. What the store has is what counts: who takes a run up, on this machine
or on another, begins with a copy of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from segray.config import RequestError, SweepConfig, WorkError
from segray.data import cache_root
from segray.data.cache import COPIES, COPY_OF
from segray.data.remote import RemoteError, RemoteFolder, RemoteRefused, is_remote

LEASE = ".driver.json"  # in the store: which driver has the run, and that it lives
ATTEMPT = ".attempt"  # in a trial's folder there: which attempt at the trial is the last
BEAT_S = 10.0  # between two signs of life
GONE_S = 45.0  # without one, and the driver is taken for dead
TRIES_S = (1.0, 5.0, 20.0, 60.0, 120.0)  # between attempts at a store that does not answer
PARTS = ("best", "checkpoint", "preds", "wandb")  # folders that only some readers need
_WORK, _READ = COPIES  # those that sweeps work in, those of readers
_log = logging.getLogger(__name__)


def run_path(config: SweepConfig) -> Path:
    """The folder on this machine that a sweep works in; of an object store, the copy of it."""
    if is_remote(config.storage):
        return _copies(_WORK, config.storage) / config.name
    return Path(config.storage) / config.name


def run_place(config: SweepConfig) -> str:
    """Where a sweep's results are, for a person."""
    return f"{config.storage.rstrip('/')}/{config.name}"


def readable(place: str, *parts: str) -> Path:
    """A run folder to read from: `place` itself, or a copy of what the store has at this moment.

    A driver's own copy is another one, so that whoever reads is in nobody's way. Of the large
    `PARTS` those that are named are fetched; in wandb/ `segray sync` may be at work, so it stays.
    """
    if not is_remote(place):
        return Path(place)
    storage, _, name = place.rstrip("/").rpartition("/")
    copy = Copy(_copies(_READ, storage) / name, RemoteFolder(place))
    copy.fetch(
        lambda name: not heavy(name, but=parts), drop=lambda name: not name.startswith("wandb/")
    )
    if not copy.path.is_dir():
        raise RequestError(f"{place}: there is nothing; expected a run's folder, <storage>/<name>")
    return copy.path


def publish(path: Path, *names: str) -> None:
    """Bring files of a run folder to the store, if it is a copy."""
    if (remote := remote_of(path)) is not None:
        insist(lambda: Copy(path, remote).push(names))


def publish_new(path: Path, part: str) -> None:
    """Bring files below `part` of a run folder to the store that lacks them, if it is a copy."""
    if (remote := remote_of(path)) is None:
        return
    copy = Copy(path / part, remote / part)
    there = copy.remote.files()
    insist(lambda: copy.push([name for name in _files(copy.path) if name not in there]))


def remote_of(path: Path) -> RemoteFolder | None:
    """Where the run in `path` really is, if that is a copy."""
    file = path.parent / COPY_OF
    return RemoteFolder(f"{file.read_text()}/{path.name}") if file.is_file() else None


def _copies(kind: str, storage: str) -> Path:
    url = storage.rstrip("/")
    folder = cache_root() / kind / hashlib.sha256(url.encode()).hexdigest()[:12]
    if not (folder / COPY_OF).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{COPY_OF}.{os.getpid()}"
        temporary.write_text(url)
        temporary.replace(folder / COPY_OF)
    return folder


def heavy(name: str, but: Collection[str] = ()) -> bool:
    """Whether a file is in one of the large parts of a run, other than `but`."""
    folders = name.split("/")[:-1]
    return any(part in folders for part in PARTS if part not in but)


class Copy:
    """A folder of this machine, and its twin in an object store."""

    def __init__(self, path: Path, remote: RemoteFolder) -> None:
        self.path, self.remote = path, remote
        self._known: dict[str, tuple[int, int]] = {}  # what was brought: time of change, length

    def fetch(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        *,
        drop: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Bring here what the store has of the wanted names.

        Of the files that the store does not have, those to `drop` are deleted. Signs of
        life stay there: they come and go.
        """
        there = [n for n in self.remote.files() if n.split("/")[-1] not in (LEASE, ATTEMPT)]
        for name in _files(self.path):
            if name not in there and drop(name):
                (self.path / name).unlink(missing_ok=True)
        self.fetch_named([name for name in there if wanted(name)])

    def fetch_named(self, names: Sequence[str]) -> None:
        """Bring these files here."""
        for _ in self.remote.download_all(names, self.path):
            pass
        self._known |= {name: _stamp((self.path / name).stat()) for name in names}

    def push(self, names: Iterable[str]) -> None:
        """Bring files to the store, in this order, that changed since they were brought."""
        for name in names:
            with contextlib.suppress(FileNotFoundError), (self.path / name).open("rb") as source:
                self.push_open(source, name)

    def push_open(self, source: BinaryIO, name: str) -> None:
        """`push` of an open file."""
        stamp = _stamp(os.fstat(source.fileno()))
        if self._known.get(name) != stamp:
            self.remote.upload(source, name)
            self._known[name] = stamp

    def push_gone(self, wanted: Callable[[str], bool]) -> None:
        """Delete in the store what was brought there or from there, and is no longer here."""
        gone = [n for n in self._known if wanted(n) and not (self.path / n).exists()]
        self.remote.delete(gone)
        for name in gone:
            del self._known[name]


def _files(folder: Path) -> list[str]:
    """The files below a folder, as names in a store, but for those that are being written."""
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.endswith((".tmp", ".part"))
    )


def _stamp(known: os.stat_result) -> tuple[int, int]:
    return known.st_mtime_ns, known.st_size


def insist(action: Callable[[], None]) -> None:
    """Do something with a store, and again where it does not answer; raises RemoteError at last."""
    for pause in TRIES_S:
        try:
            action()
        except RemoteRefused:
            raise
        except RemoteError:
            time.sleep(pause)
        else:
            return
    action()


class Lease:
    """The one driver that a run in a store may have: a store has no locks.

    The driver writes a sign of life every few seconds. Who wants to take a run up watches it for a
    while, and compares no clock with another machine's. Only where the copy that the driver worked
    in is the caller's own, and so are its locks, is it known to be dead.
    """

    def __init__(self, remote: RemoteFolder, copy: Path) -> None:
        self.remote = remote
        self.id, self.copy = secrets.token_hex(8), _identity(copy.parent)
        self._ended = threading.Event()
        self._beats = 0

    @contextlib.contextmanager
    def held(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Have the run while the context lasts; calls `waiting` where an earlier driver left it.

        The caller holds the locks of its copy. Raises RequestError where another driver lives.
        """
        before = read_lease(self.remote)
        if before and before["copy"] != self.copy:
            waiting()
            until = time.monotonic() + GONE_S
            while time.monotonic() < until:
                time.sleep(1.0)
                if (now := read_lease(self.remote)) is None:
                    break
                if now != before:
                    raise RequestError(
                        f"{self.remote.url} is in use by a sweep that is at work on {now['host']}: "
                        "wait for it, or stop it there (Ctrl-C, or SIGTERM to its process)"
                    )
        self._beat()
        beating = threading.Thread(target=self._go_on, daemon=True, name="segray-lease")
        beating.start()
        try:
            yield
        finally:
            self._ended.set()
            beating.join()
            with contextlib.suppress(RemoteError):
                if (last := read_lease(self.remote)) and last["id"] == self.id:
                    self.remote.delete([LEASE])

    def check(self) -> None:
        """Raises WorkError where another driver took the run over."""
        now = read_lease(self.remote)
        if now is not None and now["id"] != self.id:
            raise WorkError(
                f"{self.remote.url} was taken over by a sweep on {now['host']}, which found no "
                "sign of life of this one; it ends here, and that one goes on"
            )

    def _beat(self) -> None:
        self._beats += 1
        sign: dict[str, Any] = {"id": self.id, "host": platform.node(), "copy": self.copy}
        sign |= {"beat": self._beats, "time": time.time()}
        self.remote.write(LEASE, json.dumps(sign).encode())

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(RemoteError, WorkError):
                self.check()
                self._beat()


def _identity(folder: Path) -> str:
    """Of a folder of copies: a random text that stays with it."""
    file = folder / ".copy"
    with contextlib.suppress(FileExistsError), file.open("x") as new:
        new.write(secrets.token_hex(8))
    return file.read_text()


def read_lease(remote: RemoteFolder) -> dict[str, Any] | None:
    """The last sign of life of the run's driver; None where it has none."""
    content = remote.read(LEASE)
    try:
        sign: dict[str, Any] | None = json.loads(content) if content else None
    except ValueError:  # some stores of one's own show an object that is just being written
        raise RemoteError(f"{remote.url}/{LEASE}: cannot be read, as it is no JSON") from None
    return sign


def at_work(remote: RemoteFolder) -> bool:
    """Whether the run's driver gave a sign of life lately, by its clock and this machine's."""
    sign = read_lease(remote)
    return sign is not None and time.time() - float(sign["time"]) < GONE_S


class Keeper:
    """Brings a trial's folder to the store while it trains, from the one process that writes it.

    A machine that Ray has lost from sight may go on for a while with a trial that is tried again
    elsewhere: what it then has to bring is left out, as is that of a driver that was replaced.
    """

    def __init__(self, run: RemoteFolder, name: str, folder: Path, lease: str) -> None:
        self._run, self._lease = run, lease
        self._attempt = secrets.token_hex(8).encode()
        self._copy = Copy(folder, run / name)
        self._waiting: list[tuple[str, BinaryIO]] = []
        self._wake, self._ended = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, daemon=True, name="segray-keeper")

    def claim(self) -> None:
        """From here on nothing is brought by an earlier attempt; before `fetch`, so that this one
        sees all that those have brought.
        """
        self._copy.remote.write(ATTEMPT, self._attempt)

    def fetch(self) -> None:
        """Make the folder what the store has of it."""
        shutil.rmtree(self._copy.path, ignore_errors=True)
        self._copy.path.mkdir(parents=True)
        self._copy.fetch()

    def start(self) -> None:
        """Begin to bring epochs to the store."""
        self._thread.start()

    def epoch(self, *, is_best: bool) -> None:
        """The files of an epoch are there: bring them, while training goes on.

        `last` before `best` where both are of this epoch, as `best` can be made from it; else
        `best` first, as an epoch that was passed over may have left it behind. Checkpoints are
        opened now, since the next epoch's take their names; the record may have grown by the time
        it is read, which does no harm. The log goes last: should the process die, there is at least
        so much of it. An epoch that finds the one before still waiting takes its place.
        """
        last, best = "checkpoint/last.safetensors", "checkpoint/best.safetensors"
        order = (last, best) if is_best else (best, last)
        with self._wake:
            self._close()
            for name in ("config.yaml", "metrics.jsonl", *order, "log.txt"):
                with contextlib.suppress(FileNotFoundError):
                    self._waiting.append((name, (self._copy.path / name).open("rb")))
            self._wake.notify()

    def finish(self) -> None:
        """Bring all that is there, the outcome last; raises RemoteError where that fails."""
        with self._wake:
            self._ended = True
            self._close()
            self._wake.notify()
        self._thread.join()
        insist(self._finish)

    def _finish(self) -> None:
        if not self._mine():
            return
        copy, last = self._copy, "outcome.json"
        copy.push([*(name for name in _files(copy.path) if name != last), last])
        if (copy.path / last).is_file():  # only now is it of no use
            copy.push_gone(lambda name: name == "checkpoint/last.safetensors")
        copy.remote.delete([ATTEMPT])

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._ended:
                    self._wake.wait()
                if not self._waiting:
                    return
                files, self._waiting = self._waiting, []
            try:
                for name, source in files:
                    if self._mine():
                        self._copy.push_open(source, name)
            except RemoteError:
                _log.warning("the next epoch's checkpoint is tried instead", exc_info=True)
            finally:
                for _, source in files:
                    source.close()

    def _mine(self) -> bool:
        """Whether the driver that started this trial still has the run, and has not begun it anew.

        What is being brought at that moment is still brought; it is whole, and of an epoch that the
        new attempt may not have seen.
        """
        sign = read_lease(self._run)
        if sign is not None and sign["id"] != self._lease:
            return False
        return self._copy.remote.read(ATTEMPT) == self._attempt

    def _close(self) -> None:
        for _, source in self._waiting:
            source.close()
        self._waiting = []

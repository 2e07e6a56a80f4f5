"""What went wrong with a trial whose process raised or died, from Ray's account of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segray.config import TrialConfig

Kind = Literal[
    "out_of_memory", "disk_full", "cache_full", "store_lost", "node_lost", "died", "raised"
]
LINES = 40  # of a failure's account that error.txt keeps

_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|running low on memory"
    r"|OutOfMemoryError|^MemoryError|bad_alloc",
    re.IGNORECASE | re.MULTILINE,
)
_STORE = re.compile(r"Remote(?:Error|Refused): (.*)")
_CACHE = re.compile(r"DiskFull: (.*)")  # which names the disk: it is not that of the run's folder
_DISK = re.compile(r"No space left on device|Disk quota exceeded")
# What Ray says of a process that is gone: of a trial's own, and of one of Ray Train's workers.
_DIED = re.compile(r"died unexpectedly|worker process has died|WORKER_DIED|ActorDiedError")


@dataclass(frozen=True)
class Fault:
    """A failure: its kind, and a line for a person."""

    kind: Kind
    reason: str


def understand(account: str, config: TrialConfig, oom_kills: int = 0) -> Fault:
    """What an account of a failure, a traceback or Ray's words, comes to.

    `oom_kills`: how many processes the system killed for want of memory while the trial ran. It
    kills without a word and counts for the whole machine, so a death beside one is suspected only.
    """
    if cache := _CACHE.search(account):
        return Fault("cache_full", cache[1])
    if disk := _DISK.search(account):
        return Fault("disk_full", disk[0])
    if store := _STORE.search(account):
        return Fault("store_lost", store[1])
    died = _DIED.search(account) is not None
    if _MEMORY.search(_without_rays_advice(account)):
        said = _line(account, _MEMORY)
        return Fault("out_of_memory", f"out of memory ({_size(config)}): {said}")
    if died and oom_kills:
        return Fault(
            "died",
            f"its process died, perhaps out of memory ({_size(config)}): the system killed "
            "processes for want of it meanwhile",
        )
    if died:
        return Fault("died", "its process died, as after kill -9 or a crash in a library")
    lines = [line.strip() for line in account.splitlines() if line.strip()]
    return Fault("raised", lines[-1][:300] if lines else "it ended without saying how")


def halved(config: TrialConfig) -> TrialConfig | None:
    """The trial with half as many images a pass; None where a pass holds an odd number."""
    passes = config.train.accumulate
    share = config.train.batch_size // config.workers // passes
    if share % 2:
        return None
    return config.model_copy(
        update={"train": config.train.model_copy(update={"accumulate": 2 * passes})}
    )


def put_down(folder: Path, reason: str, account: str) -> None:
    """Add a failure to the trial's error.txt: its reason, and the account's last lines."""
    lines = "\n".join(account.rstrip().splitlines()[-LINES:])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "error.txt").open("a", encoding="utf-8") as file:
        file.write(f"{reason}\n\n{lines}\n\n")


def oom_kills() -> int:
    """How many processes of this machine the system has killed for want of memory since it started;
    0 where it does not say.
    """
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", counters, re.MULTILINE)
    return int(found[1]) if found else 0


def _without_rays_advice(account: str) -> str:
    """Ray names the OOM killer among the possible reasons of every death."""
    return re.sub(r"There are some potential root causes.*", "", account)


def _line(account: str, pattern: re.Pattern[str]) -> str:
    """The last line of an account in which the pattern stands."""
    lines = [line.strip() for line in account.splitlines() if pattern.search(line)]
    return lines[-1][:300]


def _size(config: TrialConfig) -> str:
    """What a step's memory hangs on."""
    height, width = config.train.crop or config.data.size
    passes = f" in {config.train.accumulate} passes" if config.train.accumulate > 1 else ""
    workers = f" on {config.workers} workers" if config.workers > 1 else ""
    return f"train.batch_size={config.train.batch_size}{passes}{workers}, {height}x{width}"

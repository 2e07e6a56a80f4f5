"""What the benchmarks share: contenders that take turns in one process, medians and ratios.

A benchmark is a script: `python tests/bench/<subject>.py`, with --help. It prints figures and
asserts what must be equal, never a time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

STREETS = Path(__file__).parents[3] / "shared" / "data" / "streets"


class Silent:
    """A reporter that takes an epoch's metrics and lets training go on."""

    def report(self, metrics: object) -> None:
        return None


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    return parser


def conditions(threads: int) -> str:
    """One line on where this runs; sets torch's threads."""
    torch.set_num_threads(threads)
    return f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {threads=}"


def in_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every turn of each contender, all of them taking turns: what slows the machine
    down for a while slows all.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(title: str, seconds: Mapping[str, Sequence[float]], ours: str, units: float = 1) -> None:
    """Medians, the range, and how many times as fast `ours` is as each of the others.

    `units` is the work of a turn, such as images: with it a rate is printed too.
    """
    print(f"\n{title}")
    mine = statistics.median(seconds[ours])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        spread = f"({1000 * min(taken):.2f}-{1000 * max(taken):.2f})"
        line = f"  {name:34} {1000 * median:10.2f} ms {spread}"
        if units != 1:
            line += f"  {units / median:8.1f}/s"
        if name != ours:
            line += f"   {ours} is {median / mine:.2f} times as fast"
        print(line, flush=True)

"""What segray raises.

SegrayError                 shown to the user as one message, never as a traceback
├── RequestError            the request was wrong: exit code 2
│   ├── ConfigError         the sweep file is wrong: every problem in it, at once
│   └── MissingInput        a dataset or pretrained weights are not there
├── WorkError               the work failed: exit code 1
└── Interrupted             Ctrl-C: exit code 130, as shells have it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SegrayError(Exception):
    """An error with a message for the user; `exit_code` is what the process ends with."""

    exit_code = 1


class RequestError(SegrayError):
    """What was asked for cannot be done: a wrong path, key, value or dataset."""

    exit_code = 2


class MissingInput(RequestError):
    """A dataset or pretrained weights are not where they should be."""


class WorkError(SegrayError):
    """The request was right and the work failed: every trial crashed, the disk is full."""


class Interrupted(SegrayError):
    """Somebody pressed Ctrl-C."""

    exit_code = 130


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a sweep file: where it stands, the rule, and what came."""

    where: str  # "sweeps/unet.yaml:12" or "override train.epochs=0"
    path: str  # "train.optimizer.lr"
    rule: str  # what was expected, and what to do
    value: str | None = None  # what came, as YAML would show it

    def __str__(self) -> str:
        came = "" if self.value is None else f" (got {self.value})"
        path = f"{self.path}: " if self.path else ""
        return f"{self.where}: {path}{self.rule}{came}"


class ConfigError(RequestError):
    """A sweep file that does not validate; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        """`hint` is printed below the problems: what to do next, where a rule has no room."""
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = [f"{count} in the request", *(f"  {problem}" for problem in problems)]
        super().__init__("\n".join([*lines, *([hint] if hint else [])]))

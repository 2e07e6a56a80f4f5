"""What a search has spent of its budget, and whether another trial fits into what is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from segray.config import RequestError, SweepConfig, reachable
from segray.config.schema import Budget
from segray.train import Outcome

LIMITS = ("hours", "gpu_hours", "epochs")


class Ledger:
    """The account of a search: of every trial that began what it spent, or at most will spend.

    What a trial will take nobody knows; the median of those that ended stands for it. Epochs are
    promised whole, so that their number is never exceeded.
    """

    def __init__(self, budget: Budget, longest: int, gpus: float, before_s: float = 0.0) -> None:
        """`longest`: epochs of a trial at most; `gpus`: what it holds; `before_s`: seconds that
        earlier processes of this search were at work.
        """
        self.budget, self.longest, self.gpus = budget, longest, gpus
        self._opened = time.monotonic() - before_s
        self._ended: list[Outcome] = []
        self._ended_s = 0.0  # that trials which ended were at work
        self._waiting: dict[str, tuple[float, int]] = {}  # trial -> its seconds and epochs so far
        self._running: dict[str, tuple[float, int]] = {}  # trial -> when it began, its epochs

    @property
    def seconds(self) -> float:
        """How long the search has been at work, in all of its processes."""
        return time.monotonic() - self._opened

    @property
    def deadline(self) -> float | None:
        """When budget.hours are over, in seconds since 1970."""
        if self.budget.hours is None:
            return None
        return time.time() + 3600 * self.budget.hours - self.seconds

    @property
    def exhausted(self) -> str | None:
        """Which limit is used up, so that running trials have to end; None: none is."""
        if self.budget.hours is not None and self.seconds > 3600 * self.budget.hours:
            return f"budget.hours={self.budget.hours:g} is used up"
        if self.budget.gpu_hours is not None and self._gpu_hours() > self.budget.gpu_hours:
            return f"budget.gpu_hours={self.budget.gpu_hours:g} is used up"
        return None

    def refusal(self) -> str | None:
        """Why no further trial can start now, in words; None: one can."""
        if self.exhausted:
            return self.exhausted
        budget, typical = self.budget, self._typical_s()
        begun = len(self._running) + len(self._waiting)
        promised = sum(outcome.epochs for outcome in self._ended) + self.longest * begun
        if budget.epochs is not None and promised + self.longest > budget.epochs:
            return (
                f"budget.epochs={budget.epochs}: {promised} are spent, and another trial may take "
                f"{self.longest}"
            )
        if budget.hours is not None and self.seconds + typical > 3600 * budget.hours:
            left = 3600 * budget.hours - self.seconds
            return (
                f"budget.hours={budget.hours:g}: {left:.0f} s are left, a trial takes {typical:.0f}"
            )
        if budget.gpu_hours is not None:
            one = typical * self.gpus / 3600
            promised_h = self._gpu_hours(at_least=typical)
            if promised_h + one > budget.gpu_hours:
                return (
                    f"budget.gpu_hours={budget.gpu_hours:g}: {promised_h:.2f} are spent, and a "
                    f"trial takes {one:.2f}"
                )
        return None

    def wait(self, trial_id: str, seconds: float, epochs: int) -> None:
        """A trial that spent so much in earlier processes is to go on."""
        self._waiting[trial_id] = (seconds, epochs)

    def begin(self, trial_id: str) -> None:
        """A trial starts, or goes on."""
        seconds, epochs = self._waiting.pop(trial_id, (0.0, 0))
        self._running[trial_id] = (time.monotonic() - seconds, epochs)

    def epoch(self, trial_id: str, epochs: int) -> None:
        """A running trial has come so far."""
        began, _ = self._running[trial_id]
        self._running[trial_id] = (began, epochs)

    def end(self, trial_id: str, outcome: Outcome) -> None:
        """A trial has ended; what it was at work beside its epochs counts as well."""
        waited, _ = self._waiting.pop(trial_id, (0.0, 0))
        began, _ = self._running.pop(trial_id, (time.monotonic() - waited, 0))
        self._ended_s += max(outcome.seconds, time.monotonic() - began)
        self._ended.append(outcome)

    def used(self) -> str:
        """How much of each limit is spent, for a line on the screen; empty without limits."""
        begun = [*self._running.values(), *self._waiting.values()]
        epochs = sum(o.epochs for o in self._ended) + sum(epochs for _, epochs in begun)
        spent = {
            "hours": f"{self.seconds / 3600:.2f}",
            "gpu_hours": f"{self._gpu_hours():.2f}",
            "epochs": str(epochs),
        }
        return used(self.budget, spent)

    def _typical_s(self) -> float:
        seconds: Sequence[float] = [o.seconds for o in self._ended if o.state != "failed"]
        return statistics.median(seconds) if seconds else 0.0

    def _gpu_hours(self, at_least: float = 0.0) -> float:
        """Of all trials, each running one counted with at least so many seconds."""
        now = time.monotonic()
        begun = [now - began for began, _ in self._running.values()]
        begun += [seconds for seconds, _ in self._waiting.values()]
        seconds = self._ended_s + sum(max(at_least, one) for one in begun)
        return seconds * self.gpus / 3600


def used(budget: Budget, spent: dict[str, str]) -> str:
    """`spent` of the limits that a budget has: "epochs 37/100, hours 0.20/12"."""
    limits = budget.model_dump(include=set(LIMITS), exclude_none=True)
    return ", ".join(f"{name} {spent[name]}/{limits[name]:g}" for name in LIMITS if name in limits)


def check_gpus(budget: Budget, gpus: float) -> None:
    """Raises RequestError for a budget of GPU-hours where trials are given no GPU."""
    if budget.gpu_hours is not None and not gpus:
        raise RequestError(
            "budget.gpu_hours: trials are given no GPU here, so none would be counted: use "
            "budget.hours or budget.epochs"
        )


def longest(config: SweepConfig) -> int:
    """The epochs of the longest trial that a sweep can come to."""
    return int(max(reachable(config, "train.epochs")))


def shared(configs: Sequence[SweepConfig]) -> list[SweepConfig]:
    """Sweeps that one command runs, each with its even share of the budget they have in common.

    Raises RequestError where their budgets differ.
    """
    for name in LIMITS:
        limits = {getattr(config.budget, name) for config in configs}
        if len(limits) > 1:
            told = ", ".join(f"{c.name}: {getattr(c.budget, name)}" for c in configs)
            raise RequestError(
                f"budget.{name}: sweeps of one command share one budget, and these differ ({told})"
                f": give one for all, as in budget.{name}=VALUE, or run them one by one"
            )
    budget = configs[0].budget
    share = {
        name: whole // len(configs) if name == "epochs" else whole / len(configs)
        for name in LIMITS
        if (whole := getattr(budget, name)) is not None
    }
    if share.get("epochs") == 0:
        raise RequestError(
            f"budget.epochs={budget.epochs} cannot be shared by {len(configs)} sweeps"
        )
    return [
        config.model_copy(update={"budget": config.budget.model_copy(update=share)})
        for config in configs
    ]

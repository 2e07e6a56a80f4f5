"""What a person sees while a sweep runs: a live table in a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from segray.sweep.trial_files import TrialResult, ranked
from segray.train import Outcome

HEARTBEAT = 30.0  # seconds between status lines where there is no terminal
FIXED_WIDTH = 54  # columns that the table takes before the first parameter
ROWS = 12  # ended trials in the live table, the best ones
_TOLD = ("pruned", "diverged", "failed")  # states that the status line counts
_COLOURS = {"pruned": "dim", "failed": "red", "diverged": "red", "budget": "yellow"}


@dataclass
class Running:
    """A trial that has started and not ended."""

    id: str
    assignment: Mapping[str, Any]
    started: float
    epoch: int = 0
    value: float | None = None
    best: float | None = None
    stopped: bool = False  # by a kill or a Ctrl-C
    waiting: bool = False  # for a place

    @property
    def state(self) -> str:
        """In a word, for its row."""
        if self.stopped or self.waiting:
            return "stopped" if self.stopped else "waiting"
        return "running" if self.epoch else "starting"


@dataclass
class Screen:
    """Prints what happens. `total` trials of up to `epochs` epochs each."""

    metric: str
    goal: str
    epochs: int
    # The file is named: a Console that looks sys.stdout up each time would, in `segray train`,
    # follow its redirection to the trial's log.
    console: Console = field(default_factory=lambda: Console(highlight=False, file=sys.stdout))
    total: int = 0
    ended: list[TrialResult] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _searching_since: float = 0.0
    _before: int = 0
    _noted: set[str] = field(default_factory=set)
    _last_line: float = 0.0
    _budget: Callable[[], str] = lambda: ""
    _notes: dict[str, str] = field(default_factory=dict)  # lines that change, by what they are of
    _told: dict[str, tuple[str, float]] = field(default_factory=dict)  # without a terminal: when
    _live: Live | None = None
    _lively: bool = False  # whether the terminal can redraw lines

    def __post_init__(self) -> None:
        self._lively = self.console.is_terminal and not self.console.is_dumb_terminal
        if not self.console.is_terminal:
            self.console = Console(highlight=False, width=160, file=self.console.file)

    def say(self, text: str) -> None:
        """A line, with the time since the start."""
        self.console.print(Text(f"[{clock(time.monotonic() - self.began)}] {text}"), soft_wrap=True)

    def line(self, text: str) -> None:
        """A line as it is."""
        self.console.print(Text(text), soft_wrap=True)

    @contextlib.contextmanager
    def bars(self) -> Iterator[Callable[[str, int, int], None]]:
        """Progress bars; yields what to call with (title, done, total)."""
        if not self._lively:
            yield self._quarters
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            tasks: dict[str, TaskID] = {}

            def tell(title: str, done: int, total: int) -> None:
                if title not in tasks:
                    tasks[title] = progress.add_task(title, total=total)
                progress.update(tasks[title], completed=done)

            yield tell

    @contextlib.contextmanager
    def notes(self) -> Iterator[Callable[[str, str], None]]:
        """Lines that change, where there is no table yet; yields `note`."""
        try:
            if not self._lively:
                yield self.note
                return
            with Live(
                get_renderable=lambda: Group(*self._note_lines()),
                console=self.console,
                refresh_per_second=4,
                transient=True,
            ) as self._live:
                yield self.note
        finally:
            self._live = None
            self._notes.clear()

    def note(self, key: str, text: str) -> None:
        """A line below the table, in place of the one of the same key; without text it goes."""
        if not text:
            self._notes.pop(key, None)
            return
        self._notes[key] = text
        before, when = self._told.get(key, ("", 0.0))
        now = time.monotonic()
        if self._live is None and text != before and now > when + HEARTBEAT:
            self._told[key] = text, now
            self.say(text)

    def _note_lines(self) -> list[Text]:
        return [Text(text, style="yellow") for text in self._notes.values()]

    @contextlib.contextmanager
    def trials(
        self,
        total: int,
        ended: Sequence[TrialResult] = (),
        budget: Callable[[], str] = lambda: "",
    ) -> Iterator[None]:
        """Show `total` trials as they come and go; `ended` have ended before.

        `budget` says what is used of it, if there is one.
        """
        self._budget = budget
        self.total, self.ended, self.running = total, list(ended), {}
        self._before = len(ended)
        self._searching_since = self._last_line = time.monotonic()
        if not self._lively:
            yield
            return
        with Live(
            get_renderable=self._table, console=self.console, refresh_per_second=4, transient=True
        ) as self._live:
            yield
        self._live = None
        self._notes.clear()

    def wait(self, trial_id: str, assignment: Mapping[str, Any]) -> None:
        """A trial waits for a place on the cluster."""
        self.running[trial_id] = Running(trial_id, assignment, time.monotonic(), waiting=True)

    def waiting(self, seconds: float) -> tuple[int, int]:
        """How many trials have waited for a place for so long, and how many were so long starting
        without an epoch since.
        """
        until = time.monotonic() - seconds
        late = Counter(trial.state for trial in self.running.values() if trial.started < until)
        return late["waiting"], late["starting"]

    def start(self, trial_id: str, assignment: Mapping[str, Any]) -> None:
        """A trial has started."""
        self.running[trial_id] = Running(trial_id, assignment, time.monotonic())
        if self._live is None:
            self.say(f"{trial_id} started  {_pairs(assignment)}")

    def epoch(self, trial_id: str, epoch: int, value: float, best: float) -> None:
        """A trial has finished an epoch."""
        trial = self.running[trial_id]
        trial.epoch, trial.value, trial.best = epoch, value, best
        if self._live is None and time.monotonic() - self._last_line > HEARTBEAT:
            self.say(self._status())
            self._last_line = time.monotonic()

    def again(self, trial_id: str, why: str) -> None:
        """A trial has failed, and will start again from its last epoch."""
        self.running.pop(trial_id, None)
        self.say(f"{trial_id}: {why}")

    def end(self, result: TrialResult) -> None:
        """A trial has ended."""
        self.running.pop(result.id, None)
        self.ended.append(result)
        outcome = result.outcome
        told, _, _ = outcome.note.partition(" (")  # without the cause, which may be worded anew
        # A server is down for every trial; of a second try the table has told.
        if "W&B" in told and told not in self._noted:
            self._noted.add(told)
            self.say(f"{result.id}: {outcome.note}")
        if self._live is not None:
            if told := _story(outcome):
                self.say(f"{result.id} {told}")
        else:
            value = "-" if outcome.best_value is None else f"{outcome.best_value:.4f}"
            reason = f": {outcome.reason}" if outcome.reason else ""
            self.say(
                f"{result.id} {outcome.state}{reason}  {self.metric} {value} "
                f"in {count(outcome.epochs, 'epoch')}, {outcome.seconds:.0f} s  | {self._status()}"
            )
            self._last_line = time.monotonic()

    def leaderboard(
        self, results: Sequence[TrialResult], title: str, others: Sequence[Running] = ()
    ) -> None:
        """The table of ended trials, best first, others below, and what befell some of them."""
        best_first = ranked(results, self.goal)
        self.line("")
        self.console.print(self._rows(best_first, others, title))
        for result in best_first:
            if told := _story(result.outcome):
                self.line(f"{result.id} {told}")

    def _status(self) -> str:
        best = ranked(self.ended, self.goal)[:1]
        shown = [best[0].outcome.best_value] if best else []
        shown += [trial.best for trial in self.running.values()]
        values = [value for value in shown if value is not None]
        top = f"{(max if self.goal == 'maximize' else min)(values):.4f}" if values else "-"
        states = Counter[str](trial.outcome.state for trial in self.ended)
        kinds = "".join(f"  {n} {state}" for state in _TOLD if (n := states[state]))
        budget = f"  {used}" if (used := self._budget()) else ""
        return (
            f"{len(self.ended)}/{self.total} trials{kinds}  best {top}{budget}  ETA {self._eta()}"
        )

    def _eta(self) -> str:
        """From the share of the trials' epochs that is done; ended trials count as whole."""
        done = len(self.ended) + sum(t.epoch / self._last(t) for t in self.running.values())
        here = done - self._before
        if here <= 0 or not self.total:
            return "-"
        passed = time.monotonic() - self._searching_since
        return clock(passed * max(0.0, self.total - done) / here)

    def _last(self, trial: Running) -> int:
        """The epoch that a trial would reach."""
        return int(trial.assignment.get("train.epochs", self.epochs))

    def _table(self) -> RenderableType:
        best = ranked(self.ended, self.goal)
        hidden = len(best) - ROWS
        table = self._rows(best[:ROWS], list(self.running.values()), None)
        more = [Text(f"  and {hidden} more trials below these", style="dim")] if hidden > 0 else []
        elapsed = clock(time.monotonic() - self.began)
        status = Text(f"{self._status()}  elapsed {elapsed}", style="bold")
        return Group(table, *more, *self._note_lines(), status)

    def _rows(
        self, ended: Sequence[TrialResult], running: Sequence[Running], title: str | None
    ) -> Table:
        table = Table(
            title=title, title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        everything = [*(r.assignment for r in ended), *(t.assignment for t in running)]
        names = list(dict.fromkeys(name for assignment in everything for name in assignment))
        for column in ("trial", "state", self.metric, "epoch", "s"):
            numeric = column not in ("trial", "state")
            table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
        names = self._that_fit(names, everything)
        for column in _short_names(names):
            table.add_column(column, justify="right", no_wrap=True)
        for place, result in enumerate(ended):
            o = result.outcome
            value = "-" if o.best_value is None else f"{o.best_value:.4f}"
            table.add_row(
                result.id,
                o.state,
                value,
                f"{o.epochs} (best {o.best_epoch})" if o.best_epoch else str(o.epochs),
                f"{o.seconds:.0f}",
                *(_brief(result.assignment.get(name)) for name in names),
                style=_COLOURS.get(o.state) or ("bold green" if place == 0 else None),
            )
        for trial in running:
            table.add_row(
                trial.id,
                trial.state,
                "-" if trial.best is None else f"{trial.best:.4f}",
                f"{trial.epoch}/{self._last(trial)}",
                f"{time.monotonic() - trial.started:.0f}",
                *(_brief(trial.assignment.get(name)) for name in names),
                style="cyan",
            )
        return table

    def _that_fit(self, names: Sequence[str], everything: Sequence[Mapping[str, Any]]) -> list[str]:
        """The first parameters, as many as the console is wide: leaderboard.csv has them all."""
        room = self.console.width - FIXED_WIDTH
        for count, name in enumerate(names):
            cells = [_brief(assignment.get(name)) for assignment in everything]
            room -= 2 + max(map(len, [_short_names(names)[count], *cells]))
            if room < 0:
                return list(names[:count])
        return list(names)

    def _quarters(self, title: str, done: int, total: int) -> None:
        if done * 4 // total != (done - 1) * 4 // total:
            self.say(f"{title}: {done}/{total}")


def _story(outcome: Outcome) -> str:
    """What a person should know of a trial beside its row; nothing of one that just ended."""
    odd = outcome.state in ("failed", "diverged") or "collapsed" in outcome.reason
    note = "" if "W&B" in outcome.note else outcome.note  # of all trials alike, told once
    told = "; ".join(filter(None, [outcome.reason if odd else "", note]))
    return f"{outcome.state}: {told}" if told else ""


def count(number: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(number: float) -> str:
    """Bytes as people read them: 12 kB, 340 MB, 7.3 GB."""
    if number < 1e6:
        return f"{number / 1e3:.0f} kB"
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"


def _short_names(paths: Sequence[str]) -> list[str]:
    """The last key of each dotted path, with as many before it as tell the paths apart."""
    names = []
    for path in paths:
        parts = path.split(".")
        for start in range(len(parts) - 1, -1, -1):
            name = ".".join(parts[start:])
            if sum(other == name or other.endswith(f".{name}") for other in paths) == 1:
                break
        names.append(name)
    return names


def _pairs(assignment: Mapping[str, Any]) -> str:
    names = _short_names(list(assignment))
    return "  ".join(
        f"{name}={_brief(value)}" for name, value in zip(names, assignment.values(), strict=True)
    )


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "-".join(_brief(item) for item in value)
    return "-" if value is None else str(value)


def clock(seconds: float) -> str:
    """0:40, 12:05, 3:20:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"

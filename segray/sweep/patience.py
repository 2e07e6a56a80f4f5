"""Early stopping replayed: what each patience would have cost and saved, from a run's records.

A trial says what a patience would have done to it as far as its records go and no further. Where
that patience would have ended it by then, what comes of it is known. Where it would not, and the
trial was cut short (by a smaller patience, ASHA, the budget, a fault), nothing is known, and
nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from segray.config import Metric, RequestError, SweepConfig
from segray.sweep.progress import Screen, clock, count
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import rank, read_config, read_outcome, reading
from segray.train import Progress, read_records

Says = Literal["exact", "at_least", "unknown"]
"""What a trial says about a patience: all; no more than a bound on what is lost, since it was cut
short itself; or nothing, since it was cut short before the patience would have ended it."""

_MARKS: dict[Says, str] = {"exact": "", "at_least": "+", "unknown": "?"}


@dataclass(frozen=True)
class Course:
    """A trial as it is on record."""

    trial: str
    state: str  # an Outcome's; "running" or "stopped" where it has not ended
    patience: int | None  # that it ran with; None: without early stopping
    min_delta: float
    limit: int  # epochs that it was to run
    values: Sequence[float]  # of the metric, after each epoch
    seconds: Sequence[float]  # that each epoch took
    broken: bool = False  # it ended in a way that ranks it last


@dataclass(frozen=True)
class Replay:
    """A trial, had it been run with a patience; where that is unknown, as far as it ran."""

    trial: str
    patience: int | None  # None: as it ran
    says: Says
    state: str
    broken: bool
    epochs: int
    seconds: float
    best: float | None
    best_epoch: int | None
    objective: float | None  # best less the price of the epochs
    lost: float | None  # of the best that the trial came to as it ran; None: unknown
    epochs_saved: int
    seconds_saved: float


@dataclass(frozen=True)
class Row:
    """All trials of a run, had they been run with a patience.

    What is lost and saved is of the `known` trials alone. Of those, `at_least` give a bound: where
    there are any, both figures of what is lost are bounds too.
    """

    patience: int
    known: int
    at_least: int
    unknown: int
    earlier: int  # trials that it would have ended before their own end
    lost_mean: float | None  # None: no trial is known
    lost_most: float | None
    lost_most_trial: str | None
    epochs: int  # as the known trials ran
    epochs_saved: int
    seconds: float
    seconds_saved: float
    best: float | None  # of the trial that would have won, among what is on record
    best_trial: str | None


def replay(course: Course, patience: int | None, metric: Metric) -> Replay:
    """What would have become of a trial with `patience`, by the loop's own rule."""
    sign = 1.0 if metric.goal == "maximize" else -1.0
    ran, _ = _book(course, None, sign)
    at, ended = _book(course, patience, sign)
    whole = ran.epoch == course.limit
    says: Says = "exact"
    if not whole:
        if not ended:
            says = "unknown"
        elif course.state != "early_stopped":
            says = "at_least"
    lost = None
    if says != "unknown" and ran.best is not None and at.best is not None:
        lost = sign * (ran.best - at.best)
    return Replay(
        trial=course.trial,
        patience=patience,
        says=says,
        state="early_stopped" if ended else course.state,
        broken=course.broken and not ended,
        epochs=at.epoch,
        seconds=at.seconds,
        best=at.best,
        best_epoch=at.best_epoch,
        objective=at.objective(sign, metric.cost_per_epoch),
        lost=lost,
        epochs_saved=ran.epoch - at.epoch,
        seconds_saved=sum(course.seconds[at.epoch :]),
    )


def summarise(patience: int, replays: Sequence[Replay], goal: str) -> Row:
    """The trials of a run, all replayed with `patience`, in one row."""
    known = [one for one in replays if one.says != "unknown"]
    lost = [(one.lost, one.trial) for one in known if one.lost is not None]
    most, most_trial = max(lost, key=lambda pair: pair[0], default=(None, None))
    won = winner(replays, goal)
    return Row(
        patience=patience,
        known=len(known),
        at_least=sum(one.says == "at_least" for one in known),
        unknown=len(replays) - len(known),
        earlier=sum(one.epochs_saved > 0 for one in known),
        lost_mean=sum(value for value, _ in lost) / len(lost) if lost else None,
        lost_most=most,
        lost_most_trial=most_trial if most else None,
        epochs=sum(one.epochs + one.epochs_saved for one in known),
        epochs_saved=sum(one.epochs_saved for one in known),
        seconds=sum(one.seconds + one.seconds_saved for one in known),
        seconds_saved=sum(one.seconds_saved for one in known),
        best=won.best if won else None,
        best_trial=won.trial if won else None,
    )


def winner(replays: Iterable[Replay], goal: str) -> Replay | None:
    """The trial that would have won, of those with an epoch on record."""
    scored = (one for one in replays if one.objective is not None)
    return min(scored, key=lambda one: _rank(one, goal), default=None)


def largest_patience(courses: Iterable[Course]) -> int:
    """The largest patience to ask for; 0 where no trial has an epoch on record.

    That is the largest that a trial ran with: its own epochs, for one without early stopping.
    """
    return max(
        (min(c.patience or len(c.values), c.limit) for c in courses if c.values),
        default=0,
    )


def read_courses(folder: RunFolder) -> list[Course]:
    """The trials of a run that have begun; raises RequestError for records it cannot read."""
    unfinished = "running" if folder.running() else "stopped"
    courses = []
    for path in sorted(folder.path.glob("trials/*")):
        outcome = read_outcome(path)  # before the records, which then have all of its epochs
        config = read_config(path)
        if config is None:
            continue
        rule = config.train.early_stop
        with reading(path / "metrics.jsonl"):
            records = read_records(path / "metrics.jsonl")
            courses.append(
                Course(
                    trial=path.name,
                    state=outcome.state if outcome else unfinished,
                    patience=rule.patience if rule else None,
                    min_delta=rule.min_delta if rule else 0.0,
                    limit=config.train.epochs,
                    values=[record["value"] for record in records],
                    seconds=[record["time/epoch_s"] for record in records],
                    broken=outcome is not None and outcome.broken,
                )
            )
    return courses


def show_patience(path: Path, *, as_json: bool = False) -> None:
    """Print what every patience would have cost and saved in a run; `as_json`: all figures.

    Reads the records alone. Raises RequestError for a folder that is no run's, and where no trial
    has an epoch on record.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    metric = config.metric
    courses = read_courses(folder)
    largest = largest_patience(courses)
    if largest == 0:
        raise RequestError(
            f"{path}: no trial has an epoch on record yet, and early stopping is replayed from "
            f"those; `segray status {path}` says how far the run is"
        )
    trials = [(replay(course, None, metric), course) for course in courses]
    trials.sort(key=lambda trial: _rank(trial[0], metric.goal))
    columns = [
        [replay(course, patience, metric) for _, course in trials]
        for patience in range(1, largest + 1)
    ]
    rows = [summarise(p, column, metric.goal) for p, column in enumerate(columns, start=1)]
    won = winner([ran for ran, _ in trials], metric.goal)
    if as_json:
        known = ("epochs", "best", "best_epoch", "objective")
        whole = {
            "run": str(path),
            "metric": metric.model_dump(mode="json"),
            "winner": won.trial if won else None,
            "patiences": [asdict(row) for row in rows],
            "trials": [
                asdict(course)
                | {name: getattr(ran, name) for name in known}
                | {"replays": [asdict(column[at]) for column in columns]}
                for at, (ran, course) in enumerate(trials)
            ],
        }
        print(json.dumps(whole, indent=2))  # noqa: T201
        return
    screen = Screen(metric.name, metric.goal, config.train.epochs)
    screen.line(f"{config.name}: {config.model.name} on {config.data.format}, {path}")
    screen.line(
        f"{count(len(trials), 'trial')} on record. {metric.name} (to {metric.goal}), had "
        f"{'each' if len(trials) > 1 else 'it'} been run with patience p:\n"
    )
    screen.console.print(_summary(rows))
    screen.line("\nWhat each trial would have lost at p, best trial first:\n")
    for table in _by_trial(trials, columns, screen.console.width):
        screen.console.print(table)
    for paragraph in (_legend(rows), _findings(config, folder, rows, won, len(trials))):
        screen.line("")
        for text in paragraph:
            screen.console.print(Text(text))


def _book(course: Course, patience: int | None, sign: float) -> tuple[Progress, bool]:
    """A trial's epochs up to where `patience` ends it, and whether it does."""
    at = Progress()
    for value, seconds in zip(course.values, course.seconds, strict=True):
        at.end_epoch(value, sign, course.min_delta)
        at.seconds += seconds
        # As in the loop, patience is asked before an epoch begins, so not after the last one.
        if patience is not None and at.epoch < course.limit and at.out_of_patience(patience):
            return at, True
    return at, False


def _rank(one: Replay, goal: str) -> tuple[bool, bool, float, str]:
    return rank(one.trial, one.broken, one.objective, goal)


def _summary(rows: Sequence[Row]) -> Table:
    """A row a patience; those that say the same share one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("\np", "trials\nknown", "ended\nearly"):
        table.add_column(header, justify="right")
    for header in ("lost on\naverage", "lost at\nmost"):
        table.add_column(header)
    for header in ("epochs\nsaved", "time\nsaved"):
        table.add_column(header, justify="right")
    table.add_column("best of\nthe run")
    for header in ("\n+", "\n?"):
        table.add_column(header, justify="right")
    for label, cells in _merged((str(row.patience), _cells(row)) for row in rows):
        table.add_row(label, *cells)
    return table


def _cells(row: Row) -> tuple[str, ...]:
    bound = _MARKS["at_least"] if row.at_least else ""
    unsure = _MARKS["unknown"] if row.unknown else ""
    return (
        str(row.known),
        str(row.earlier) if row.known else "-",
        f"{_lost(row.lost_mean)}{bound}",
        f"{_lost(row.lost_most)}{bound} {row.lost_most_trial or ''}".rstrip(),
        f"{row.epochs_saved} {row.epochs_saved / row.epochs:.0%}" if row.earlier else "-",
        f"{clock(row.seconds_saved)} {row.seconds_saved / row.seconds:.0%}" if row.earlier else "-",
        f"{_value(row.best)}{unsure} {row.best_trial or ''}",
        str(row.at_least),
        str(row.unknown),
    )


def _by_trial(
    trials: Sequence[tuple[Replay, Course]], columns: Sequence[Sequence[Replay]], width: int
) -> Iterator[Table]:
    """A row a trial, a column a patience; columns that do not fit stand in further tables below."""
    merged = _merged(
        (str(p), tuple(_cell(one) for one in column)) for p, column in enumerate(columns, start=1)
    )
    facts = [
        ("trial", [ran.trial for ran, _ in trials]),
        ("state", [ran.state for ran, _ in trials]),
        ("with", [str(course.patience or "none") for _, course in trials]),
        ("epochs", [str(ran.epochs) for ran, _ in trials]),
        ("best", [_value(ran.best) for ran, _ in trials]),
    ]
    while facts:
        shown = list(facts)
        room = width - sum(2 + max(map(len, [name, *cells])) for name, cells in shown) + 2
        while merged:
            room -= 2 + max(map(len, [merged[0][0], *merged[0][1]]))
            if room < 0 and len(shown) > len(facts):
                break
            shown.append((merged[0][0], list(merged.pop(0)[1])))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, _ in shown:
            table.add_column(name, justify="right" if name in ("with", "epochs") else "left")
        for place, cells in enumerate(zip(*(cells for _, cells in shown), strict=True)):
            table.add_row(*cells, style="bold green" if place == 0 else None)
        yield table
        facts = facts[:1] if merged else []


def _cell(one: Replay) -> str:
    """What a trial would have lost, and its mark."""
    if one.says == "exact" and not one.epochs_saved:
        return "-"
    return f"{_lost(one.lost) if one.lost is not None else ''}{_MARKS[one.says]}"


def _legend(rows: Sequence[Row]) -> Iterator[str]:
    """What the marks mean, of those that occur."""
    yield "Lost: of the best that a trial came to with the patience it had, under 'with'."
    if any(row.known > row.earlier for row in rows):
        yield "-  p would not have ended it earlier"
    if any(row.at_least for row in rows):
        yield "+  at least: it was cut short itself (ASHA, budget, a fault) or has not ended"
    if any(row.unknown for row in rows):
        yield "?  unknown, and in no figure: it ended for another reason, or by a smaller"
        yield "   patience, before p could end it; beside the best: one of those may be better"


def _findings(
    config: SweepConfig, folder: RunFolder, rows: Sequence[Row], won: Replay | None, trials: int
) -> Iterator[str]:
    """What stands out, in words."""
    yield _free(rows, trials)
    if won is not None and trials > 1:
        known = ", as far as is known" if any(row.unknown for row in rows) else ""
        for label, (trial, best) in _merged(
            (str(row.patience), (str(row.best_trial), _value(row.best))) for row in rows
        ):
            if trial != won.trial:
                yield (
                    f"At p = {label} trial {trial} would have won, with {best}, instead of "
                    f"{won.trial} with {_value(won.best)}{known}."
                )
        if all(row.best_trial == won.trial for row in rows):
            yield f"Trial {won.trial} would have won at every p{known}."
    if config.metric.cost_per_epoch:
        yield (
            f"To win, a trial pays {config.metric.cost_per_epoch:g} for each epoch "
            "(metric.cost_per_epoch); what is lost is without that price."
        )
    if folder.kind == "sweep" and (config.method == "tpe" or config.early_terminate):
        yield (
            "The trials are those of this sweep: run with another patience, it would have drawn "
            "or pruned others."
        )


def _free(rows: Sequence[Row], trials: int) -> str:
    """The smallest patience that would have cost nothing, and what that is known from."""
    free = next((row for row in rows if row.lost_most == 0 and row.known > row.at_least), None)
    if free is None:
        return "Of no patience do the records show that it would have cost nothing."
    seen = (
        f"seen over {free.known} of {count(trials, 'trial')}, of which it would have ended "
        f"{free.earlier or 'none'} earlier"
    )
    if free.at_least:
        seen += f" ({free.at_least} of them cut short: no loss up to there)"
    return f"p = {free.patience} is the smallest that would have cost nothing here, {seen}."


def _merged(
    lines: Iterable[tuple[str, tuple[str, ...]]],
) -> list[tuple[str, tuple[str, ...]]]:
    """Neighbours that say the same under one label: 4 and 5 and 6 become 4-6."""
    found = []
    for cells, group in groupby(lines, key=lambda line: line[1]):
        labels = [label for label, _ in group]
        found.append((labels[0] if len(labels) == 1 else f"{labels[0]}-{labels[-1]}", cells))
    return found


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _lost(value: float | None) -> str:
    """0 for nothing at all, 0.0000 for less than a figure shows."""
    return "0" if value == 0 else _value(value)

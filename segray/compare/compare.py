"""Run folders -> the comparison, compare.json and report.html."""

from __future__ import annotations

import json
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from segray import __version__
from segray.compare import pictures, runs, statistics, verdict
from segray.compare.comparison import Comparison, Cost, Ending, Model, Pair, Picture, Spent
from segray.compare.cost import measure_cost
from segray.compare.report import write_report
from segray.compare.runs import Run
from segray.config import RequestError, SegrayError
from segray.data import class_colours
from segray.sweep.trial_files import row, write_text

Say = Callable[[str], None]


def compare_runs(
    paths: Sequence[Path],
    out: Path | None = None,
    say: Say = lambda line: None,
    *,
    cost: bool = True,
) -> tuple[Comparison, Path]:
    """Compare the winners of finished sweeps on their test split; one run gives its own report.

    Writes compare.json and report.html into `out`: by default into the run's own folder, or for
    several beside the first one, as <name>-vs-<name>. `say` is told what is at work; `cost`
    measures the models' latency and memory here. Nothing is trained, and no model sees a test
    image: the final stages kept what is needed. Returns the comparison and the page's path.

    Raises RequestError for runs that cannot be compared, see `runs.open_runs` and
    `runs.check_comparable`.
    """
    found = runs.open_runs(paths)
    runs.check_comparable(found)
    folder = out or _default_folder(found)
    _check_writable(folder)
    comparison = _compare(found, say, cost)
    shown: list[Picture] = []
    try:
        say("drawing the pictures")
        shown = list(pictures.draw(_ordered(found, comparison)))
    except SegrayError as error:
        say(f"the page has no pictures: {error}")
        comparison.notes.append(f"No image is shown: {error}")
    page = folder / "report.html"
    studies = {run.name: study for run in found if (study := _study(run)) is not None}
    write_report(page, comparison, shown, studies)
    write_text(folder / "compare.json", json.dumps(comparison.as_json(), indent=1) + "\n")
    return comparison, page


def _default_folder(found: Sequence[Run]) -> Path:
    first = found[0].folder.path
    if len(found) == 1:
        return first
    return first.resolve().parent / "-vs-".join(run.folder.path.resolve().name for run in found)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"cannot write to {folder}: {error.strerror}; name another folder with --out"
        ) from None


def _compare(found: Sequence[Run], say: Say, cost: bool) -> Comparison:
    first = found[0]
    keep = runs.scored_classes(first.classes)
    spent = {run.name: runs.spent(run) for run in found}
    scores = {run.name: statistics.estimate(run.confusion, run.cities, keep) for run in found}
    ordered = sorted(found, key=lambda run: -scores[run.name].miou.value)
    costs: dict[str, Cost | None] = dict.fromkeys(spent)
    for run in ordered if cost else ():
        say(f"measuring what {run.name} costs on this machine")
        try:
            costs[run.name] = measure_cost(run.folder.path / "best", run.config.data.size)
        except SegrayError as error:
            say(str(error))
    models = [_model(run, scores[run.name], spent[run.name], costs[run.name]) for run in ordered]
    couples = list(combinations(ordered, 2))
    pairs = []
    for a, b in couples:
        gap = statistics.difference(a.confusion, b.confusion, a.cities, keep, tests=len(couples))
        iou = {first.classes[k]: estimate for k, estimate in gap.iou.items()}
        pairs.append(Pair(a.name, b.name, gap.miou, iou, verdict.of_pair(a, b, gap.miou)))
    miou = {run.name: scores[run.name].miou for run in ordered}
    return Comparison(
        verdict=verdict.of_all(models, pairs),
        models=models,
        pairs=pairs,
        unfair=runs.unfair(ordered, [spent[run.name] for run in ordered]),
        notes=verdict.notes(ordered, miou, pairs),
        not_covered=verdict.not_covered(ordered),
        classes=list(first.classes),
        colours=[(int(r), int(g), int(b)) for r, g, b in class_colours(first.config.data)],
        images=len(first.ids),
        cities=Counter(city for city in first.cities if city),
        evaluated_at="the size of the masks' files",
        created=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        version=__version__,
    )


def _model(run: Run, scores: statistics.Estimates, spent: Spent, cost: Cost | None) -> Model:
    header = (run.folder.path / "sweep.yaml").read_text(encoding="utf-8")
    told = [*run.trials, *run.finals]
    config = run.config
    return Model(
        name=run.name,
        described=run.described,
        pretrained=run.pretrained,
        folder=run.folder.place,
        metric=config.metric.name,
        trial=run.winner.id,
        parameters=dict(run.winner.assignment),
        miou=scores.miou,
        iou={run.classes[k]: estimate for k, estimate in scores.iou.items()},
        confusion=run.confusion.sum((0, 1)).tolist(),
        trainings=run.trainings,
        spent=spent,
        budget=config.budget.model_dump(mode="json") | {"run_cap": config.run_cap},
        states=Counter(trial.outcome.state for trial in run.trials),
        endings=[
            Ending(trial.id, trial.outcome.state, trial.outcome.reason, dict(trial.assignment))
            for trial in told
            if trial.outcome.state in ("diverged", "failed") or "collapsed" in trial.outcome.reason
        ],
        cost=cost,
        trials=[row(trial) for trial in run.trials],
        sweep_yaml=header,
        commands=_commands(header, run.folder.path),
    )


def _commands(header: str, path: Path) -> list[str]:
    """What makes the run again: the command that began it, or one that takes its own record."""
    command = next(
        (line.removeprefix("# command: ") for line in header.splitlines() if "# command:" in line),
        "",
    )
    again = shlex.join(["segray", "sweep", str(path / "sweep.yaml"), f"name={path.name}-again"])
    return [*([command] if command else []), again]


def _ordered(found: Sequence[Run], comparison: Comparison) -> list[Run]:
    place: Mapping[str, int] = {model.name: k for k, model in enumerate(comparison.models)}
    return sorted(found, key=lambda run: place[run.name])


def _study(run: Run) -> optuna.Study | None:
    """The sweep's study, where it is there."""
    if not run.folder.study.is_file():
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(run.folder.study)))
    return optuna.load_study(study_name=None, storage=storage)

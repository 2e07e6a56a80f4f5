"""Finished sweeps as a comparison reads them, and whether they can be compared fairly.

S seeds of the final stage, N test images, K classes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.compare.comparison import Spent, Training
from segray.config import Data, FoldersData, RequestError, SweepConfig, UNet, trial_count
from segray.sweep.progress import count
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import (
    TrialResult,
    ranked,
    read_config,
    read_confusion,
    reading,
)
from segray.train import read_records
from segray.train.metrics import scores

VOID = "void"
TOLERANCE = 0.1  # between what two sweeps have spent, for their comparison to be fair
_PLACES = ("root", "size")  # of a data section: may differ, as what is compared is counted
_CURVES = ("train/loss", "val/loss", "val/miou", "train/lr", "train/grad_norm")
_UNITS = {"trials": "trials", "epochs": "epochs", "gpu_hours": "GPU-hours"}


@dataclass(frozen=True)
class Run:
    """A sweep, its trials best first, and its final stage; `name` is unique in the comparison."""

    name: str
    folder: RunFolder
    config: SweepConfig
    trials: tuple[TrialResult, ...]
    winner: TrialResult  # what the final stage trained
    finals: tuple[TrialResult, ...]  # those with a score on test, by seed
    trainings: tuple[Training, ...]  # of `finals`
    missing: tuple[str, ...]  # final trainings without a score, and why
    confusion: NDArray[np.int64]  # (S, N, K, K) [true, predicted]
    ids: tuple[str, ...]
    cities: tuple[str, ...]
    classes: tuple[str, ...]
    tuned_on: str | None  # a digest of the images of train and val; earlier versions had none

    @property
    def pretrained(self) -> str | None:
        """Where the encoder's weights come from; None: from scratch."""
        return None if isinstance(self.config.model, UNet) else self.config.model.pretrained

    @property
    def described(self) -> str:
        """The model in a few words."""
        model = self.config.model
        if isinstance(model, UNet):
            return f"UNet, width {model.width}, from scratch"
        if model.pretrained is not None:
            return f"SegFormer, pretrained encoder {model.pretrained}"
        width = "" if model.width == 1 else f" at {model.width:g} of its width"
        return f"SegFormer {model.variant}{width}, from scratch"

    @property
    def chosen(self) -> TrialResult:
        """The final training whose weights are in best/: the best on val."""
        return ranked(self.finals, self.config.metric.goal)[0]


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises RequestError for a folder that is no run's, that has no score on test, or whose files
    cannot be read.
    """
    if twice := [path for path in paths if sum(path.resolve() == p.resolve() for p in paths) > 1]:
        raise RequestError(f"{twice[0]} is named twice: name each run once")
    folders = [RunFolder.open(path) for path in paths]
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):  # as in lab-a/runs/unet and lab-b/runs/unet
        names = [folder.place for folder in folders]
    metrics = [folder.config().metric.name for folder in folders]  # each is drawn of all runs
    return [_open(folder, name, metrics) for folder, name in zip(folders, names, strict=True)]


def _open(folder: RunFolder, name: str, metrics: Sequence[str]) -> Run:
    place, config = folder.place, folder.config()
    again = folder.resume_command()
    if folder.kind == "train":
        raise RequestError(
            f"{place} was made by `segray train`, which scores nothing on test: compare sweeps"
        )
    if config.final is None:
        section = shlex.quote("final={seeds: [0, 1, 2]}")
        raise RequestError(
            f"{place} has no final stage, so nothing of it was scored on test. To add one:\n"
            f"  {again} {section}"
        )
    ended = folder.final_results(config.final.seeds)
    finals, missing = [], []
    for seed in config.final.seeds:
        result = ended.get(seed)
        if result is not None and (result.folder / "metrics.json").is_file():
            finals.append((seed, result))
            continue
        why = "it has not ended"
        if result is not None:
            why = result.outcome.reason or result.outcome.state
        missing.append(f"seed {seed}: {why}")
    if not finals and folder.running():
        raise RequestError(
            f"{place}: a sweep is at work there, and nothing is scored on test yet: wait for it "
            f"(`segray status {place}` says how far it is)"
        )
    if not finals:
        raise RequestError(
            f"{place}: its final stage has no score on test ({'; '.join(missing)}). To go on:\n"
            f"  {again}"
        )
    try:
        tables = [read_confusion(result.folder / "confusion.npz") for _, result in finals]
    except RequestError as error:
        raise RequestError(f"{error}:\n  {again}") from None
    first = tables[0]
    for table, (_, result) in zip(tables, finals, strict=True):
        if not _same_truth(first, table):
            raise RequestError(
                f"{result.folder}: it was scored on other images or masks than "
                f"{finals[0][1].folder}. Remove both, and train and score them again:\n  {again}"
            )
    trials = ranked(folder.results(), config.metric.goal)
    assignment = finals[0][1].assignment
    winner = next((trial for trial in trials if trial.assignment == assignment), None)
    if winner is None:
        raise RequestError(
            f"{place}: its final stage trained {assignment}, and no trial in trials/ had these "
            "parameters: the folder is not whole"
        )
    return Run(
        name=name,
        folder=folder,
        config=config,
        trials=tuple(trials),
        winner=winner,
        finals=tuple(result for _, result in finals),
        trainings=tuple(
            _training(seed, result, metrics, first["classes"].tolist(), table["confusion"].sum(0))
            for (seed, result), table in zip(finals, tables, strict=True)
        ),
        missing=tuple(missing),
        confusion=np.stack([table["confusion"] for table in tables]),
        ids=tuple(first["ids"].tolist()),
        cities=tuple(first["cities"].tolist()),
        classes=tuple(first["classes"].tolist()),
        tuned_on=str(first["tuned_on"]) if "tuned_on" in first else None,
    )


def scored_classes(classes: Sequence[str]) -> list[int]:
    """The classes that count: all but void, where it is one."""
    return [k for k, name in enumerate(classes) if name != VOID]


def _same_truth(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    """Whether both were scored on the same pixels."""
    same = all(np.array_equal(one[name], other[name]) for name in ("ids", "classes"))
    return same and np.array_equal(one["confusion"].sum(2), other["confusion"].sum(2))


def _training(
    seed: int,
    result: TrialResult,
    metrics: Sequence[str],
    classes: Sequence[str],
    confusion: NDArray[np.int64],
) -> Training:
    of_test = scores(confusion, classes)
    miou = "miou_without_void" if VOID in classes else "miou"
    records = read_records(result.folder / "metrics.jsonl")
    outcome = result.outcome
    names = dict.fromkeys([*metrics, *_CURVES])
    curves = {name: [record.get(name) for record in records] for name in names}
    return Training(
        seed=seed,
        state=outcome.state,
        reason=outcome.reason,
        val=outcome.best_value if outcome.best_value is not None else float("nan"),
        test_miou=of_test.get(miou, float("nan")),
        best_epoch=outcome.best_epoch or 0,
        epochs=outcome.epochs,
        seconds=outcome.seconds,
        curves={"epoch": [record["epoch"] for record in records]} | curves,
    )


def spent(run: Run) -> Spent:
    """What the search of a run has spent; how final stages differ is for `unfair` to say."""
    ended, hours, until = [], [], float("inf")
    for trial in run.trials:
        begun = read_config(trial.folder)
        devices = begun.workers * (begun.gpus_per_worker or 1) if begun else 1
        file = trial.folder / "metrics.jsonl"
        with reading(file):
            for record in read_records(file):
                ended.append(record["time/ended"])
                hours.append(record["time/epoch_s"] * devices / 3600)
                if trial is run.winner and record["epoch"] == trial.outcome.best_epoch:
                    until = record["time/ended"]
    return Spent(
        trials=len(run.trials),
        epochs=sum(trial.outcome.epochs for trial in run.trials),
        gpu_hours=sum(hours),
        to_best_gpu_hours=sum(h for h, end in zip(hours, ended, strict=True) if end <= until),
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises RequestError where runs were not scored on the same pixels, or trained on others."""
    first = runs[0]
    for run in runs[1:]:
        both = f"{first.folder.place} and {run.folder.place} cannot be compared"
        if run.classes != first.classes:
            raise RequestError(
                f"{both}: other classes ({', '.join(first.classes)} against "
                f"{', '.join(run.classes)}). Run both with the same data.ignore and label map"
            )
        if run.ids != first.ids:
            only = sorted({*first.ids} ^ {*run.ids})
            told = f"{only[0]} is in one alone" if only else "their order differs"
            raise RequestError(
                f"{both}: their test splits have {len(first.ids)} and {len(run.ids)} images, and "
                f"{told}. Run both on the same data with the same data.split"
            )
        truths = (first.confusion[0].sum(2), run.confusion[0].sum(2))  # (N, K) pixels
        if other := np.flatnonzero((truths[0] != truths[1]).any(1)).tolist():
            at = other[0]
            raise RequestError(
                f"{both}: the masks differ in {count(len(other), 'image')}: {first.ids[at]} has "
                f"{truths[0][at].sum():,} labelled pixels in the one, {truths[1][at].sum():,} in "
                "the other, or other labels. Score both on the same masks, at the same size"
            )
        before, now = (_trained_on(run.config.data) for run in (first, run))
        changed = [
            f"  data.{key}: {before.get(key, '(absent)')} against {now.get(key, '(absent)')}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ]
        if run.tuned_on != first.tuned_on and None not in (run.tuned_on, first.tuned_on):
            changed.append("  the ids of the images in train and val")
        if changed:
            lines = "\n".join(changed)
            raise RequestError(
                f"{both}: they were not trained and tuned on the same images.\n{lines}"
            )


def _trained_on(data: Data) -> dict[str, Any]:
    """A data section without what may differ between two sweeps that trained on the same images."""
    facts = data.model_dump(mode="json", exclude=set(_PLACES))
    if isinstance(data, FoldersData) and not data.by_colour:  # colours only draw
        facts["classes"] = {
            name: {key: value for key, value in masked.items() if key != "color"}
            for name, masked in facts["classes"].items()
        }
    return facts


def unfair(runs: Sequence[Run], costs: Sequence[Spent]) -> list[str]:
    """What makes a comparison unfair, in sentences; pretraining stands in the verdict itself."""
    found = []
    for unit in dict.fromkeys(run.config.budget.unit for run in runs):
        amounts = [float(getattr(cost, unit)) for cost in costs]
        if max(amounts) > (1 + TOLERANCE) * min(amounts):
            told = _each(runs, [f"{amount:.4g}" for amount in amounts])
            found.append(
                f"The searches did not spend the same: {told} {_UNITS[unit]} (budget.unit says "
                f"{unit}; {TOLERANCE:.0%} apart would do)."
            )
    seeds = [len(run.finals) for run in runs]
    if len(set(seeds)) > 1:
        found.append(f"The winners were not trained with as many seeds: {_each(runs, seeds)}.")
    found += [
        f"Of {run.name}'s final stage there is no score of {'; '.join(run.missing)}."
        for run in runs
        if run.missing
    ]
    for run in runs:
        if again := run.folder.past_finals:
            found.append(
                f"Of {run.name} the test split was scored {again + 1} times, as trials were added "
                "after its score was known."
            )
        all_ended = len(run.trials) >= trial_count(run.config)
        if run.folder.running() or not (run.folder.done or all_ended):
            found.append(f"The sweep {run.name} has not come to its end: its winner may change.")
    kinds: list[tuple[str, list[Any]]] = [
        ("images were not taken at the same size", [list(run.config.data.size) for run in runs]),
        ("trainings may not last as many epochs", [run.config.train.epochs for run in runs]),
        ("sweeps were not tuned for the same metric", [run.config.metric.name for run in runs]),
        ("search methods differ", [run.config.method for run in runs]),
        ("trials are not stopped early alike", [_stops(run.config) for run in runs]),
        (
            "final stages did not choose among as many trials (final.top_k)",
            [run.config.final.top_k if run.config.final else 0 for run in runs],
        ),
    ]
    for what, values in kinds:
        if any(value != values[0] for value in values):
            found.append(f"The {what}: {_each(runs, values)}.")
    return found


def _stops(config: SweepConfig) -> str:
    rule = config.early_terminate
    return rule.type if rule is not None else "never"


def _each(runs: Sequence[Run], values: Sequence[object]) -> str:
    return ", ".join(f"{run.name} {value}" for run, value in zip(runs, values, strict=True))

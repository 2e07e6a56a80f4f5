"""Finished sweeps as a comparison reads them, and whether they can be compared fairly.

S seeds of the final stage, N test images, K classes.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.compare.comparison import Spent, Training
from segray.config import RequestError, SweepConfig, UNet
from segray.sweep.progress import count
from segray.sweep.records import (
    RunFolder,
    TrialResult,
    ranked,
    read_assignment,
    read_config,
    read_outcome,
    reading,
)
from segray.train import read_records

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
        names = [str(folder.path) for folder in folders]
    return [_open(folder, name) for folder, name in zip(folders, names, strict=True)]


def _open(folder: RunFolder, name: str) -> Run:
    path, config = folder.path, folder.config()
    again = folder.resume_command()
    if folder.kind == "train":
        raise RequestError(
            f"{path} was made by `segray train`, which scores nothing on test: compare sweeps"
        )
    if config.final is None:
        section = shlex.quote("final={seeds: [0, 1, 2]}")
        raise RequestError(
            f"{path} has no final stage, so nothing of it was scored on test. To add one:\n"
            f"  {again} {section}"
        )
    finals, missing = [], []
    for seed in config.final.seeds:
        at = folder.final(seed)
        outcome = read_outcome(at)
        if outcome is not None and (at / "metrics.json").is_file():
            result = TrialResult(folder.final_id(at), at, read_assignment(at), outcome)
            finals.append((seed, result))
        else:
            why = "it has not ended" if outcome is None else outcome.reason or outcome.state
            missing.append(f"seed {seed}: {why}")
    if not finals:
        raise RequestError(
            f"{path}: its final stage has no score on test ({'; '.join(missing)}). To go on:\n"
            f"  {again}"
        )
    tables = [_read_confusion(result.folder / "confusion.npz", again) for _, result in finals]
    first = tables[0]
    for table, (_, result) in zip(tables, finals, strict=True):
        if not _same_truth(first, table):
            raise RequestError(
                f"{result.folder}: it was scored on other images or masks than "
                f"{finals[0][1].folder}. Remove both, and train and score them again:\n  {again}"
            )
    trials = ranked(_ended(folder), config.metric.goal)
    assignment = finals[0][1].assignment
    return Run(
        name=name,
        folder=folder,
        config=config,
        trials=tuple(trials),
        winner=next((t for t in trials if t.assignment == assignment), trials[0]),
        finals=tuple(result for _, result in finals),
        trainings=tuple(_training(seed, result, config) for seed, result in finals),
        missing=tuple(missing),
        confusion=np.stack([table["confusion"] for table in tables]),
        ids=tuple(first["ids"].tolist()),
        cities=tuple(first["cities"].tolist()),
        classes=tuple(first["classes"].tolist()),
    )


def _ended(folder: RunFolder) -> Iterator[TrialResult]:
    for path in sorted(folder.path.glob("trials/*")):
        if (outcome := read_outcome(path)) is not None:
            yield TrialResult(path.name, path, read_assignment(path), outcome)


def _read_confusion(path: Path, again: str) -> dict[str, NDArray[Any]]:
    """confusion.npz, checked; raises RequestError where it is not what a final stage writes."""
    try:
        # Opened here, as np.load leaves a torn file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            table = {name: saved[name] for name in ("confusion", "ids", "cities", "classes")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
    else:
        n, k = len(table["ids"]), len(table["classes"])
        counts = table["confusion"]
        if counts.shape == (n, k, k) and counts.dtype == np.int64 and len(table["cities"]) == n:
            return table
        said = f"its matrices are {counts.dtype} of {counts.shape}, for {n} images, {k} classes"
    raise RequestError(
        f"{path}: expected a matrix for each test image, as the final stage writes them ({said}). "
        f"Remove the folder {path.parent}, and train and score it again:\n  {again}"
    )


def _same_truth(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    """Whether both were scored on the same pixels."""
    same = all(np.array_equal(one[name], other[name]) for name in ("ids", "classes"))
    return same and np.array_equal(one["confusion"].sum(2), other["confusion"].sum(2))


def _training(seed: int, result: TrialResult, config: SweepConfig) -> Training:
    file = result.folder / "metrics.json"
    with reading(file):
        miou = float(json.loads(file.read_text())["test/miou"])
    records = read_records(result.folder / "metrics.jsonl")
    outcome = result.outcome
    names = dict.fromkeys([config.metric.name, *_CURVES])
    curves = {name: [record.get(name) for record in records] for name in names}
    return Training(
        seed=seed,
        state=outcome.state,
        reason=outcome.reason,
        val=outcome.best_value if outcome.best_value is not None else float("nan"),
        test_miou=miou,
        best_epoch=outcome.best_epoch or 0,
        epochs=outcome.epochs,
        seconds=outcome.seconds,
        curves={"epoch": [record["epoch"] for record in records]} | curves,
    )


def spent(run: Run) -> Spent:
    """What the search of a run has spent; a final stage is paid for by all alike."""
    ended, hours, until = [], [], float("inf")
    for trial in run.trials:
        begun = read_config(trial.folder)
        devices = begun.workers * (begun.gpus_per_worker or 1) if begun else 1
        for record in read_records(trial.folder / "metrics.jsonl"):
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
        both = f"{first.folder.path} and {run.folder.path} cannot be compared"
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
        before, now = (run.config.data.model_dump(mode="json") for run in (first, run))
        changed = [
            f"  data.{key}: {before.get(key, '(absent)')} against {now.get(key, '(absent)')}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key) and key not in _PLACES
        ]
        if changed:
            lines = "\n".join(changed)
            raise RequestError(
                f"{both}: they were not trained and tuned on the same images.\n{lines}"
            )


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
    kinds: list[tuple[str, list[Any]]] = [
        ("images were not taken at the same size", [list(run.config.data.size) for run in runs]),
        ("trainings may not last as many epochs", [run.config.train.epochs for run in runs]),
        ("sweeps were not tuned for the same metric", [run.config.metric.name for run in runs]),
        ("search methods differ", [run.config.method for run in runs]),
    ]
    for what, values in kinds:
        if any(value != values[0] for value in values):
            found.append(f"The {what}: {_each(runs, values)}.")
    return found


def _each(runs: Sequence[Run], values: Sequence[object]) -> str:
    return ", ".join(f"{run.name} {value}" for run, value in zip(runs, values, strict=True))

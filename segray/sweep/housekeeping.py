"""What a run folder says from outside: how far its sweep is, and what it could free."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from segray.config import SweepConfig, trial_count
from segray.sweep.budget import used
from segray.sweep.progress import Running, Screen, count, size
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import TrialResult, read_assignment, read_config, read_result
from segray.tracking.sync import remember_uploaded, uploaded
from segray.train import read_records


def show_status(path: Path) -> None:
    """Print a run's trials, whether it is at work, and how it goes on.

    Reads the records alone, so it works from any machine that sees the folder. Raises RequestError
    for a folder that is no run's.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    screen = Screen(config.metric.name, config.metric.goal, config.train.epochs)
    running = folder.running()
    ended, begun = _trials(path / "trials", running)
    finals_ended, finals_begun = _trials(path / "final", running)
    candidates = [
        result
        for trial in sorted(path.glob("candidates/*"))
        for result in _trials(trial, running)[0]
    ]
    wanted = len(config.final.seeds) if config.final else 0
    missing = trial_count(config) - len(ended)
    screen.line(f"{config.name}: {config.model.name} on {config.data.format}, {folder.place}")
    states = Counter(trial.outcome.state for trial in ended)
    kinds = "".join(f", {number} {state}" for state, number in states.items())
    screen.line(
        f"{len(ended)} of {count(trial_count(config), 'trial')} ended"
        + (f", {len(candidates)} trainings of candidates" if candidates else "")
        + (f", {len(finals_ended)} of {count(wanted, 'final training')}" if wanted else "")
        + (f" ({kinds[2:]})" if kinds else "")
    )
    if spent := _spent(config, folder, ended, begun):
        screen.line(f"budget: {spent}")
    screen.leaderboard(ended, "Trials, best first", begun)
    if finals_ended or finals_begun:
        screen.leaderboard(finals_ended, "Final", finals_begun)
    if running:
        screen.line("\nA sweep is at work in this folder.")
    elif not folder.done if folder.kind == "sweep" else missing > 0:
        screen.line(
            "\nNo sweep is at work in this folder, and not all is done. To go on:\n"
            f"  {folder.resume_command()}"
        )
    else:
        screen.line("\nThe sweep is done.")


def _spent(
    config: SweepConfig, run: RunFolder, ended: Sequence[TrialResult], begun: Sequence[Running]
) -> str:
    """What a search has used of its budget, as its records have it."""
    gpus = [
        begun_with.workers * begun_with.gpus_per_worker
        for folder in run.path.glob("trials/*")
        if (begun_with := read_config(folder)) is not None
    ]
    seconds = sum(trial.outcome.seconds for trial in ended)
    seconds += sum(time.monotonic() - trial.started for trial in begun)
    epochs = sum(trial.outcome.epochs for trial in ended) + sum(trial.epoch for trial in begun)
    return used(
        config.budget,
        {
            "hours": f"{run.seconds_at_work() / 3600:.2f}",
            "gpu_hours": f"{seconds * max(gpus, default=0) / 3600:.2f}",
            "epochs": str(epochs),
        },
    )


def clean_run(path: Path, confirm: Callable[[str], bool]) -> None:
    """Say what a run could free, and free it if `confirm` agrees.

    What results depend on stays: records, study, best/, the final stage, W&B runs that were not
    uploaded, and as long as trials are missing every checkpoint. Raises RequestError for a folder
    that is no run's, or in which a sweep is at work; one that starts meanwhile waits.
    """
    folder = RunFolder.open(path)
    with folder.alone():
        _clean(folder, confirm)


def _clean(folder: RunFolder, confirm: Callable[[str], bool]) -> None:
    path = folder.path
    found = [(entry, _bytes(entry)) for entry in _spare(folder)]
    console = Console(highlight=False, soft_wrap=True)
    if not found:
        console.print(f"{path}: nothing to free")
        return
    total = size(sum(taken for _, taken in found))
    console.print(f"{path} could free {total}:")
    for entry, taken in found:
        console.print(f"  {size(taken):>8}  {entry.relative_to(path)}")
    if confirm("Free it?"):
        remember_uploaded(path)
        for entry, _ in found:
            shutil.rmtree(entry)
        console.print(f"freed {total}")


def _spare(folder: RunFolder) -> Iterator[Path]:
    """Folders that nothing will ask for again."""
    config = folder.config()
    ended, _ = _trials(folder.path / "trials")
    finals, _ = _trials(folder.path / "final")
    wanted = len(config.final.seeds) if config.final else 0
    all_ended = len(ended) >= trial_count(config) and len(finals) >= wanted
    if (folder.done or all_ended) and (folder.path / "best").is_dir():
        yield from sorted(folder.path.glob("trials/*/checkpoint"))
        yield from sorted(folder.path.glob("candidates/*/*/checkpoint"))
    yield from uploaded(folder.path)
    scratch = folder.path / ".ray"
    if scratch.is_dir():
        yield scratch


def _trials(path: Path, running: bool = False) -> tuple[list[TrialResult], list[Running]]:
    """Of the trials in a folder: those that have ended, and those that have not."""
    ended, begun = [], []
    for folder in sorted(path.glob("[!.]*/")):  # a dot begins what is not whole yet
        if (result := read_result(folder.name, folder)) is not None:
            ended.append(result)
            continue
        records = read_records(folder / "metrics.jsonl")
        last = records[-1] if records else {}
        begun.append(
            Running(
                folder.name,
                read_assignment(folder),
                started=time.monotonic() - sum(record["time/epoch_s"] for record in records),
                epoch=last.get("epoch", 0),
                value=last.get("value"),
                best=last.get("best"),
                stopped=not running,
            )
        )
    return ended, begun


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

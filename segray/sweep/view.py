"""What W&B is told of a trial: by the trial itself or, in the same words, from its records."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.data import open_dataset
from segray.sweep.records import RunFolder
from segray.sweep.store import publish_new
from segray.sweep.trial_files import (
    Stage,
    TrialSpec,
    read_assignment,
    read_config,
    read_confusion,
    read_outcome,
    read_tracking,
)
from segray.tracking import Mode, Table, TrackedImage, Tracker, start_tracker
from segray.tracking.run_log import Told
from segray.tracking.sync import Recorded, is_comparison, sync_runs
from segray.train import Metrics, Outcome, kept_records, read_records


def start(spec: TrialSpec, mode: Mode) -> Tracker:
    """Start a trial's run."""
    return start_tracker(
        mode,
        project=spec.wandb["project"],
        entity=spec.wandb["entity"],
        run_id=spec.run_id,
        run_name=f"{spec.sweep}-{spec.id}",
        group=spec.sweep,
        job_type=spec.stage,
        config=spec.config.model_dump(mode="json") | {"assignment": dict(spec.assignment)},
        folder=spec.run_folder,
        place=spec.remote or str(spec.run_folder),
        classes=spec.config.data.class_names,
    )


def tell(tracker: Tracker, record: Metrics) -> None:
    """Tell a trial's run an epoch."""
    hidden = ("confusion", "time/ended")
    shown = {name: value for name, value in record.items() if name not in hidden}
    tracker.log(shown, epoch=record["epoch"])


def finish(
    tracker: Tracker, spec: TrialSpec, outcome: Outcome | None, images: Sequence[TrackedImage] = ()
) -> None:
    """Close a trial's run with its summary, the best epoch's matrix, and `images` of val.

    A final training also shows how it did on test; the images of test only where `images` are, as
    both are photographs that leave this machine. Without an outcome the trial was stopped, and may
    go on later. Raises RequestError for a confusion.npz that cannot be read.
    """
    if outcome is None:
        tracker.finish({"state": "stopped"}, failed=True)
        return
    test = _test_scores(spec.folder)
    summary = {
        "state": outcome.state,
        "reason": outcome.reason,
        "objective": outcome.objective,
        "best": outcome.best_value,
        "best_epoch": outcome.best_epoch,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        **test,
    }
    confusion: dict[str, NDArray[np.int64]] = {}
    shown = {"val": images} if images else {}
    tables = {}
    # A failed training may get another chance, and its next epoch then has the place of these.
    if outcome.state != "failed":
        at_best: Metrics = next(
            (
                record
                for record in read_records(spec.folder / "metrics.jsonl")
                if record["epoch"] == outcome.best_epoch
            ),
            {},
        )
        if at_best:
            confusion["val"] = np.array(at_best["confusion"], dtype=np.int64)
        if test:
            confusion["test"] = read_confusion(spec.folder / "confusion.npz")["confusion"].sum(0)
            tables["categories"] = _categories(spec.config.data.class_names, test, at_best)
            if images:
                try:
                    shown["test"] = _test_images(spec)
                except Exception:  # those of val are shown all the same
                    traceback.print_exc()
    tracker.finish(
        summary,
        confusion=confusion,
        images=shown,
        tables=tables,
        failed=outcome.state in ("diverged", "failed"),
    )


def sync(paths: Sequence[Path], say: Callable[[str], None], *, untracked: bool = False) -> int:
    """Bring the runs of run folders and of comparisons to W&B's server, as `sync_runs` does.

    Raises RequestError for a folder that is neither's.
    """
    folders = [RunFolder.open(path) for path in paths if not is_comparison(path)]
    recorded = [run for folder in folders for run in _recorded(folder)]
    try:
        return sync_runs(paths, say, recorded, untracked=untracked)
    finally:
        for path in paths:  # copies: what tells that a run was uploaded belongs to all of them
            publish_new(path, "wandb")


def _recorded(folder: RunFolder) -> Iterator[Recorded]:
    """The runs of trials and final trainings that have begun."""
    at_work = folder.running()
    for spec in _specs(folder):
        outcome, records = _story(spec)
        if outcome is None and not records:
            continue  # nothing to tell yet
        yield Recorded(
            folder=folder.path,
            id=spec.run_id,
            entity=spec.wandb["entity"],
            project=spec.wandb["project"],
            known=Told(len(records), outcome.state if outcome else None),
            tracked=spec.wandb["mode"] != "disabled",
            at_work=at_work,
            retell=partial(_retell, folder, spec),
        )


def _specs(folder: RunFolder) -> Iterator[TrialSpec]:
    """Trials and final trainings that have begun, as they were given to their processes."""
    paths = sorted(
        [
            *folder.path.glob("trials/*"),
            *folder.path.glob("candidates/*/seed_*"),
            *folder.path.glob("final*/seed_*"),
        ]
    )
    if not paths:
        return
    sweep = folder.config()
    # What an earlier version recorded does not say whether it was tracked.
    unknown = sweep.tracking.wandb.model_dump() | {"mode": "disabled"}
    for path in paths:
        config = read_config(path)
        if config is None:
            continue
        stage = _stage(path)
        trial_id = path.name if stage == "trial" else folder.final_id(path)
        yield TrialSpec(
            id=trial_id,
            folder=path,
            config=config,
            assignment=read_assignment(path),
            sweep=sweep.name,
            run_id=f"{folder.sweep_id}-{trial_id}",
            run_folder=folder.path,
            wandb=read_tracking(path) or unknown,
            cpus=config.threads,
            stage=stage,
        )


def _stage(path: Path) -> Stage:
    """Of a trial's folder."""
    if path.parent.name == "trials":
        return "trial"
    return "candidate" if path.parent.parent.name == "candidates" else "final"


def _story(spec: TrialSpec) -> tuple[Outcome | None, list[Metrics]]:
    """How a trial ended, if it has, and its epochs."""
    outcome = read_outcome(spec.folder)
    if outcome is None:  # an epoch without its checkpoint would be trained again
        return None, kept_records(spec.folder)
    return outcome, read_records(spec.folder / "metrics.jsonl")


def _retell(folder: RunFolder, spec: TrialSpec) -> str | None:
    """Tell a trial's run to a new folder in wandb/; returns what went wrong."""
    with folder.alone():
        outcome, records = _story(spec)
        tracker = start(spec, "offline")
        for record in records:
            tell(tracker, record)
        finish(tracker, spec, outcome)
    return tracker.warning


def _test_scores(folder: Path) -> Metrics:
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    scores: Metrics = json.loads(path.read_text())
    return {name: value for name, value in scores.items() if name.startswith("test/")}


def _categories(classes: Sequence[str], test: Metrics, val: Metrics) -> Table:
    """A row a class: its IoU on test and on val, empty where the class is not there."""
    rows = [[name, test.get(f"test/iou/{name}"), val.get(f"val/iou/{name}")] for name in classes]
    return Table(["category", "IoU test", "IoU val, best epoch"], rows)


def _test_images(spec: TrialSpec) -> list[TrackedImage]:
    """A few images of test and what the final evaluation kept: no model sees them once more."""
    dataset = open_dataset(spec.config.data, version=spec.data_version)
    shown = []
    for at in dataset.splits.test[: spec.wandb["images"]]:
        truth = dataset.masks[at]  # (H, W)
        with Image.open(spec.folder / "preds" / f"{dataset.ids[at]}.png") as kept:
            # Predicted at the size of the mask's file, shown at the size that images are kept in.
            pred = kept.resize(truth.shape[::-1], Image.Resampling.NEAREST)
        classes = np.asarray(pred, dtype=np.uint8)
        shown.append(TrackedImage(dataset.ids[at], dataset.images[at], truth, classes))
    return shown

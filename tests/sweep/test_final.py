"""The final stage: who is trained again, who meets the test split, and what is left of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segray.config import load_sweep
from segray.data import open_dataset
from segray.data.scenes import write_scenes
from segray.sweep.placement import Plan
from segray.sweep.records import RunFolder
from segray.sweep.runner import run_sweep
from segray.sweep.search import make_spec
from segray.sweep.trial import run_trial
from segray.sweep.trial_files import read_outcome

LR = "train.optimizer.lr"
QUIET = {"wandb": {"mode": "disabled"}}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, private_surroundings, write_tiny):
    """A sweep whose two best trials are trained again with two seeds."""
    file = write_tiny(tmp_path_factory.mktemp("chosen"), final={"top_k": 2, "seeds": [1, 2]})
    config = load_sweep(file)
    return file, run_sweep(config)


@pytest.mark.slow
def test_of_the_best_trials_the_one_with_the_best_mean_on_val_is_the_winner(chosen):
    _, result = chosen
    best_two = result.trials[:2]
    means = {}
    for trial in best_two:
        folders = [result.folder / "candidates" / trial.id / f"seed_{seed}" for seed in (1, 2)]
        means[trial.id] = np.mean([read_outcome(folder).best_value for folder in folders])
    winner = max(best_two, key=lambda trial: means[trial.id])
    assert [final.assignment for final in result.final] == [winner.assignment] * 2
    for final in result.final:  # nothing was trained twice
        candidate = result.folder / "candidates" / winner.id / final.folder.name
        assert (final.folder / "metrics.jsonl").read_text() == (
            candidate / "metrics.jsonl"
        ).read_text()


@pytest.mark.slow
def test_only_the_winner_met_the_test_split(chosen):
    _, result = chosen
    scored = {path.parent.parent.name for path in result.folder.rglob("confusion.npz")}
    assert scored == {"final"}
    runs = sorted(path.name.split("-", 3)[3] for path in result.folder.glob("wandb/offline-run-*"))
    kinds = [name.split("-")[1] for name in runs]
    assert [kinds.count(kind) for kind in ("candidate", "final")] == [4, 2]


@pytest.mark.slow
def test_a_choice_that_was_cut_short_goes_on_to_the_same_end(chosen, tmp_path):
    _, result = chosen
    copy = shutil.copytree(result.folder, tmp_path / "copy")
    (copy / ".done").unlink()
    shutil.rmtree(copy / "final")
    cut = next(copy.glob("candidates/*/seed_2"))
    (cut / "outcome.json").unlink()
    config = load_sweep(copy / "sweep.yaml", [f"storage={tmp_path}", "name=copy"])
    again = run_sweep(config, resume=True)
    assert [trial.id for trial in again.final] == [trial.id for trial in result.final]
    for one, other in zip(again.final, result.final, strict=True):
        assert (one.folder / "metrics.json").read_text() == (
            other.folder / "metrics.json"
        ).read_text()


def final_training(folder: Path, root: Path) -> Path:
    """A final training without Ray, on the scenes in `root`; returns its folder."""
    config = load_sweep_of(folder, root)
    run = RunFolder.create(config)
    path = run.final(0)
    spec = make_spec(config, run, Plan(1, 1, 0, 1), "final-seed0", path, {}, 0, "final")
    run_trial(spec, torch.device("cpu"), lambda metrics: None)
    return path


def load_sweep_of(folder: Path, root: Path):
    folder.mkdir()
    file = folder / "sweep.yaml"
    section = {
        "name": "tiny",
        "storage": str(folder / "runs"),
        "model": {"name": "unet", "width": 4, "depth": 2},
        "data": {
            "format": "cityscapes",
            "root": str(root),
            "size": [32, 64],
            "split": "official",
            "val_share": 0.25,
        },
        "train": {"epochs": 3, "batch_size": 4, "optimizer": {"lr": 1e-2}},
        "parameters": {LR: {"values": [1e-2, 1e-3]}},
        "tracking": QUIET,
        "final": {},
    }
    file.write_text(json.dumps(section))
    return load_sweep(file)


@pytest.fixture
def scenes(tmp_path):
    """Scenes of 64x128, and the same with other test images."""
    write_scenes(tmp_path / "one", train=12, val=3, cities=4, val_cities=1, size=(64, 128), seed=0)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    noise = np.random.default_rng(0)
    for path in (tmp_path / "other/leftImg8bit/val").rglob("*.png"):
        Image.fromarray(noise.integers(0, 256, (64, 128, 3), dtype=np.uint8)).save(path)
    return tmp_path / "one", tmp_path / "other"


def test_nothing_but_the_score_depends_on_the_test_images(scenes, tmp_path):
    """Other images in the test split change neither a weight nor a record, only the score."""
    one, other = (final_training(tmp_path / f"of-{root.name}", root) for root in scenes)
    weights = [(path / "checkpoint/best.safetensors").read_bytes() for path in (one, other)]
    assert weights[0] == weights[1]
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if "time/" not in name}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (one, other)
    ]
    assert lines[0] == lines[1]
    scores = [json.loads((path / "metrics.json").read_text()) for path in (one, other)]
    assert scores[0]["val"] == scores[1]["val"]
    assert scores[0]["test/miou"] != scores[1]["test/miou"]


def test_test_is_scored_at_the_size_of_the_masks_files_and_the_predictions_are_kept(
    scenes, tmp_path
):
    """Counted again from the files alone, by a loop over classes."""
    folder = final_training(tmp_path / "scored", scenes[0])
    dataset = open_dataset(load_sweep_of(tmp_path / "again", scenes[0]).data)
    place = {image_id: position for position, image_id in enumerate(dataset.ids)}
    with np.load(folder / "confusion.npz") as saved:
        confusion, ids, cities = saved["confusion"], saved["ids"], saved["cities"]
    assert sorted(ids) == sorted(dataset.ids[position] for position in dataset.splits.test)
    assert len(set(cities)) == 1
    for matrix, image_id in zip(confusion, ids, strict=True):
        pred = np.array(Image.open(folder / "preds" / f"{image_id}.png"))
        truth = dataset.native_mask(place[image_id])
        assert pred.shape == truth.shape == (64, 128)
        for true in range(7):
            for predicted in range(7):
                found = ((truth == true) & (pred == predicted)).sum()
                assert matrix[true, predicted] == found

"""The arithmetic of time and size, with numbers that can be checked by head."""

import dataclasses
import math
import random
from pathlib import Path

import pytest

from segray.config import load_sweep
from segray.config.schema import Asha, Hyperband, Median
from segray.sweep import estimate as subject
from segray.sweep import space
from segray.sweep.board import Board
from segray.sweep.estimate import Bench, Bounds, duration, epochs_of, estimate
from segray.sweep.placement import Plan

IMAGES = (41, 10, 20)  # with batches of 4: 40 are trained on
ASHA = Asha(type="asha", min_iter=1, eta=3)
HYPERBAND = Hyperband(type="hyperband", min_iter=1, eta=3)
MEDIAN = Median(type="median", min_iter=2, min_trials=3)
LR = {"train.optimizer.lr": {"min": 0.1, "max": 0.2}}


def bench(**changes):
    """An epoch of one worker takes 40 / 8 + 10 / 4 + 0.5 = 8 seconds."""
    figures = {
        "facts": {"train": {"batch_size": 4}},
        "parameters": 1000,
        "steps": 1,
        "train_images_per_s": 8.0,
        "eval_images_per_s": 4.0,
        "loader_images_per_s": 100.0,
        "model_images_per_s": 9.0,
        "data_wait": 0.1,
        "train_parts": {"data": 0.05, "forward": 0.45},
        "train_step_s": 0.5,
        "eval_parts": {"data": 0.1, "forward": 0.9},
        "peak_bytes": 10**9,
        "checkpoint_bytes": 12_000,
        "weights_bytes": 4000,
        "checkpoint_s": 0.5,
        "record_bytes": 100,
        "bounds": None,
    }
    return Bench(**figures | changes)


@pytest.mark.parametrize(
    ("trials", "epochs", "rule", "expected"),
    [
        (10, 9, None, 90),
        (9, 9, Asha(type="asha", min_iter=9, eta=3), 81),  # no rung before the end
        (1, 9, Asha(type="asha", min_iter=1, eta=3), 9),
        (2, 8, Asha(type="asha", min_iter=2, eta=4), 2 * 2 + 1.5 * 6),  # the second may be worse
        (3, 4, Asha(type="asha", min_iter=2, eta=2), 3 * 2 + 11 / 6 * 2),  # 1 + 1/2 + 1/3 go on
        (10**9, 8, Asha(type="asha", min_iter=4, eta=4), 10**9 * (4 + 1)),
        # Two brackets of as many trials: one looks after 2 epochs, the other after 4, the last.
        (1, 4, Hyperband(type="hyperband", min_iter=2, eta=2), 4),
        (10**9, 4, Hyperband(type="hyperband", min_iter=2, eta=2), 10**9 * 3.5),
        (3, 9, MEDIAN, 27),
        (4, 9, MEDIAN, 27 + (2 + 9) / 2),  # the fourth is below the middle one of three
    ],
)
def test_epochs_of_all_trials_under_a_rule(trials, epochs, rule, expected):
    assert epochs_of(trials, epochs, rule) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("rule", [ASHA, HYPERBAND, MEDIAN], ids=lambda rule: rule.type)
def test_epochs_expected_under_a_rule_are_those_of_its_pruner(sweep_file, rule):
    """Optuna's own on trials of random quality, many times over."""
    config = load_sweep(
        sweep_file(early_terminate=rule.model_dump(), run_cap=10), ["train.epochs=9"]
    )
    chance = random.Random(0)
    total = 0
    for _ in range(100):
        board = Board(space.pruner(config), "maximize", None, Path("no/such/folder"))
        for trial in chance.sample(range(50), 10):  # Hyperband's bracket hangs on the number
            quality = chance.random()
            ends = (epoch for epoch in range(1, 10) if board.report(str(trial), epoch, quality))
            epochs = next(ends, None)
            total += epochs or 9
            if epochs is None:
                board.finish(str(trial))
    assert total / 100 == pytest.approx(epochs_of(10, 9, rule), rel=0.05)


@pytest.mark.parametrize(
    ("changes", "search", "expected", "most"),
    [
        ({"run_cap": 10}, Plan(1, 1, 0, 1), 10 * 9 * 8, 10 * 9 * 8),
        ({"run_cap": 10}, Plan(1, 1, 0, 4), 10 * 9 / 4 * 8, 3 * 9 * 8),  # three rounds at most
        ({"run_cap": 2}, Plan(1, 1, 0, 4), 9 * 8, 9 * 8),  # a trial is not shared
        ({"run_cap": 1}, Plan(2, 1, 0, 1), 9 * 4.25, 9 * 4.25),  # 5/2 + 2.5/2 + 0.5
        (
            {"run_cap": 9, "early_terminate": ASHA.model_dump()},
            Plan(1, 1, 0, 1),
            epochs_of(9, 9, ASHA) * 8,
            81 * 8,
        ),
        ({"run_cap": 10, "budget": {"hours": 0.1}}, Plan(1, 1, 0, 1), 368, 368),
        ({"run_cap": 10, "budget": {"gpu_hours": 0.1}}, Plan(1, 1, 1, 2), 188, 188),
        (
            {"train": {"batch_size": 4}, "parameters": {"train.epochs": {"values": [3, 20]}}},
            Plan(1, 1, 0, 3),
            20 * 8,
            20 * 8,
        ),
    ],
)
def test_the_time_of_the_search(sweep_file, changes, search, expected, most):
    train = {"train": {"epochs": 9, "batch_size": 4}}
    config = load_sweep(sweep_file(**(train | changes)))
    found = estimate(config, bench(), IMAGES, search, None)
    assert found.search_s == pytest.approx(expected)
    assert found.search_most_s == pytest.approx(most)
    assert found.final_s == 0


@pytest.mark.parametrize(
    ("seeds", "final", "expected"),
    [
        ([0], Plan(1, 2, 0, 1), 3 * 8 + 20 / 4),
        ([0, 1, 2], Plan(1, 1, 0, 2), 2 * (3 * 8 + 20 / 4)),
        ([0, 1], Plan(2, 1, 0, 1), 2 * (3 * 4.25 + 20 / 8)),
    ],
)
def test_the_time_of_the_final_stage(sweep_file, seeds, final, expected):
    config = load_sweep(sweep_file(final={"seeds": seeds, "workers": final.workers}))
    found = estimate(config, bench(), IMAGES, Plan(1, 1, 0, 2), final)
    assert found.final_s == pytest.approx(expected)


def test_sizes(sweep_file):
    config = load_sweep(sweep_file(run_cap=5, final={"seeds": [0, 1]}))
    found = estimate(config, bench(), IMAGES, Plan(1, 1, 0, 3), Plan(1, 1, 0, 2))
    assert found.cache_bytes == 71 * 32 * 64 * 4
    # The three best trials' weights, three running with moments, two seeds and best/.
    assert found.checkpoint_bytes == 4000 * (3 + 3 * 4 + 3)
    assert found.record_bytes == (5 + 2) * 3 * 100


def test_what_is_taken_for_granted_is_said(sweep_file):
    file = sweep_file(
        early_terminate={"type": "asha", "min_iter": 1, "eta": 4},
        parameters={"model.width": {"values": [4, 8]}, **LR},
    )
    config = load_sweep(file, ["train.early_stop={patience: 2}", "final={workers: 2}"])
    found = estimate(config, bench(), IMAGES, Plan(1, 1, 0, 2), Plan(2, 1, 0, 1))
    told = "\n".join(found.assumptions)
    for words in ("1/4", "patience", "2 trials at once", "2 workers", "searched: model.width\n"):
        assert words in told
    plain = load_sweep(sweep_file(run_cap=1))
    assert len(estimate(plain, bench(), IMAGES, Plan(1, 1, 0, 1), None).assumptions) == 1


@pytest.mark.parametrize("bounds", [None, Bounds(1e9, 1e6, 1e12, 1e10)])
def test_a_bench_is_found_by_the_same_speed_on_the_same_machine_alone(
    sweep_file, monkeypatch, tmp_path, bounds
):
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    stage = Plan(1, 1, 0.0, 2)
    config = load_sweep(sweep_file())
    kept = bench(facts=subject.facts(config, stage), bounds=bounds)
    subject.write_bench(kept)
    assert subject.read_bench(config, stage) == kept
    same = ["name=other", "train.epochs=50", "train.precision=fp32", "run_cap=9"]
    assert subject.read_bench(load_sweep(sweep_file(), same), stage) == kept
    for key in ("model.width=8", "data.size=[64,64]", "train.batch_size=2", "train.crop=[32,32]"):
        assert subject.read_bench(load_sweep(sweep_file(), [key]), stage) is None
    assert subject.read_bench(config, dataclasses.replace(stage, threads=2)) is None
    monkeypatch.setattr(subject, "_cpu", lambda: "another processor")
    assert subject.read_bench(config, stage) is None


@pytest.mark.parametrize(
    ("rule", "words"), [(HYPERBAND, "bracket of Hyperband"), (MEDIAN, "median")]
)
def test_what_is_taken_for_granted_of_a_rule_is_said(sweep_file, rule, words):
    config = load_sweep(
        sweep_file(early_terminate=rule.model_dump(), run_cap=9), ["train.epochs=9"]
    )
    found = estimate(config, bench(), IMAGES, Plan(1, 1, 0, 1), None)
    assert words in found.assumptions[0]
    assert found.search_s == pytest.approx(epochs_of(9, 9, rule) * 8)
    assert found.search_most_s == pytest.approx(81 * 8)


def test_bounds_of_a_gpu():
    bounds = Bounds(flops_per_image=2e12, bytes_per_image=5e9, flops_per_s=6e14, bytes_per_s=2.5e12)
    assert math.isclose(bounds.by_compute, 300)
    assert math.isclose(bounds.by_bandwidth, 500)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0123, "0.012 s"),
        (9.6, "10 s"),
        (119, "119 s"),
        (150, "2 min"),
        (12_000, "3 h 20 min"),
        (400_000, "4.6 days"),
    ],
)
def test_durations_as_people_read_them(seconds, words):
    assert duration(seconds) == words

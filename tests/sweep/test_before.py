"""What is found, shown and tried before the first trial."""

import contextlib
import re
import subprocess
import sys

import pytest
import torch

from segray.config import RequestError, load_sweep, read_sweep, trial_config
from segray.sweep import preflight
from segray.sweep.dry_run import show_plan
from segray.sweep.preflight import largest_corner
from segray.sweep.records import RunFolder
from segray.sweep.space import left_to_chance
from segray.train import probe

HEAD = """
import logging, sys, ray
memory = int(sys.argv[1])
context = ray.init(
    "local", num_cpus=2, _memory=memory, log_to_driver=False, logging_level=logging.ERROR
)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
QUIET = "tracking.wandb.mode=disabled"


@contextlib.contextmanager
def cluster(memory):
    """A Ray of somebody else, with so much memory; yields its address."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, str(memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as head:
        try:
            yield head.stdout.readline().strip()
        finally:
            head.stdin.close()


def test_memory_is_tried_on_a_worker_of_the_cluster_and_refused_with_the_arithmetic(
    sweep_file, segray, tmp_path
):
    file = sweep_file(run_cap=2)
    with cluster(600_000_000) as address:
        asked = ["--address", address, QUIET]
        run = segray("sweep", file, "resources.max_concurrent=2", *asked)
        assert run.returncode == 2
        assert "2 trials at once need" in run.stderr
        assert "there are 600 MB of memory" in run.stderr
        assert "Lower resources.max_concurrent to 1" in run.stderr
        assert not (tmp_path / "runs").exists()
        run = segray("sweep", file, "train.epochs=1", *asked)
        assert run.returncode == 0, run.stderr
        assert "1 trial at once rather than 2" in run.stdout
    with cluster(100_000_000) as address:
        run = segray("sweep", file, QUIET, "name=other", "--address", address)
        assert run.returncode == 2
        assert "there are 100 MB of memory" in run.stderr
        assert "model.width=4" in run.stderr


def test_memory_of_a_step_is_extrapolated_from_a_smaller_one(sweep_file):
    """Each in a process of its own, since a process's peak never falls."""
    code = """
import sys, torch
from segray.config import RequestError, load_sweep, trial_config
from segray.train import probe
probe.LONG_S = float(sys.argv[2])
config = load_sweep(sys.argv[1], ["train.batch_size=12"])
trial = trial_config(config, {}, seed=0, workers=1, gpus_per_worker=0, threads=1)
cost = probe.measure_step(trial, torch.device("cpu"), 10**12)
print(cost.peak_bytes, cost.images)
"""
    file = sweep_file(
        model={"name": "unet", "width": 16, "depth": 3},
        data={"format": "scenes", "size": [128, 256], "train_images": 20, "test_images": 3},
        parameters={},
    )

    def measured(limit):
        command = [sys.executable, "-c", code, str(file), str(limit)]
        return map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())

    peak, images = measured(60)
    assert images == 12
    guess, images = measured(0)
    assert images == 4
    assert 0.8 < guess / peak < 1.5  # rather too much than too little


def test_a_step_that_cannot_fit_is_not_tried(sweep_file):
    config = load_sweep(sweep_file(), ["train.batch_size=8"])
    trial = trial_config(config, {}, seed=0, workers=1, gpus_per_worker=0, threads=1)
    assert probe.measure_step(trial, torch.device("cpu"), 1).images == 4


def test_the_largest_corner_is_what_needs_most_memory(sweep_file):
    parameters = {
        "model.width": {"values": [4, 16, 8]},
        "train.batch_size": {"values": [2, 4]},
        "train.crop": {"values": [[32, 32], None]},
        "train.optimizer.lr": {"min": 0.1, "max": 0.2},
    }
    config = load_sweep(sweep_file(parameters=parameters))
    corner = {"model.width": 16, "train.batch_size": 4, "train.crop": None}
    assert largest_corner(config) == corner


@pytest.mark.parametrize(
    ("images", "parameters", "what"),
    [(10**12, 1000, "8192000.0 GB for the image cache"), (10, 10**14, "GB for checkpoints")],
)
def test_a_disk_without_room_is_refused_with_the_arithmetic(
    sweep_file, monkeypatch, tmp_path, images, parameters, what
):
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))  # nothing is cached there
    config = load_sweep(sweep_file())
    with pytest.raises(RequestError, match=f"this sweep needs .*{what}.* are free there"):
        preflight._check_disk(config, (images, 0, 0), parameters, True)


def test_a_dry_run_shows_every_value_with_its_source_and_starts_nothing(
    sweep_file, segray, tmp_path
):
    file = sweep_file(
        early_terminate={"type": "asha", "min_iter": 1, "eta": 2}, final={"seeds": [0, 1]}
    )
    run = segray("sweep", file, "train.epochs=5", "--dry-run")
    assert run.returncode == 0, run.stderr
    lines = {line.split()[0]: " ".join(line.split()) for line in run.stdout.splitlines() if line}
    assert lines["train.epochs"] == "train.epochs 5 override train.epochs=5"
    assert lines["train.augment.flip"] == "train.augment.flip 0.0 default"
    assert f"{file}:" in lines["train.batch_size"]
    assert "log-uniform from 0.0001 to 0.1" in lines["train.optimizer.lr"]
    assert "after epoch 1, 2, 4 the best 1/2 go on" in lines["trials"]
    assert "15 in the search; then 2 final trainings" in lines["epochs"]
    assert "here" in lines["places"]
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_counts_the_epochs_of_the_longest_trial(sweep_file, segray):
    longer = {"train.epochs": {"values": [2, 40]}}
    run = segray("sweep", sweep_file(parameters=longer, method="random", run_cap=3), "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "up to 40 a trial, 120 in the search" in " ".join(run.stdout.split())


def test_a_dry_run_fetches_nothing_of_an_earlier_run_in_a_store(
    sweep_file, segray, bucket, tmp_path, monkeypatch
):
    bucket.put("runs/tiny/sweep.yaml", b"name: tiny\n")
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "empty"))
    run = segray("sweep", sweep_file(storage=f"{bucket.url}/runs"), "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "which holds an earlier run" in " ".join(run.stdout.split())
    assert not list((tmp_path / "empty").rglob("sweep.yaml"))


NAME, PATIENCE = "train.schedule.name", "train.schedule.patience"


@pytest.mark.parametrize(
    ("method", "rule", "expected"),
    [
        (
            "gp",
            {"type": "hyperband", "min_iter": 1},
            [
                "trials 9 by gp; after epoch 1, 3 (53% of trials) or 3 (29% of trials) or none "
                "(18% of trials) the best 1/3 go on (Hyperband)",
                f"at random {PATIENCE} (FILE:, not searched in every trial): gp cannot learn of "
                "these, method: tpe can",
            ],
        ),
        (
            "cmaes",
            {"type": "median", "min_iter": 2},
            [
                "trials 9 by cmaes; from epoch 2 on, one that is worse than the median of 5 or "
                "more finished ones ends",
                f"at random {NAME} (FILE:, values, no range), {PATIENCE} (FILE:, not searched in "
                "every trial): cmaes cannot learn of these, method: tpe can",
            ],
        ),
        ("qmc", {"type": "none"}, ["trials 9 by qmc, each to its end", "epochs up to 9 a trial"]),
    ],
)
def test_a_dry_run_says_what_a_method_leaves_to_chance_and_when_trials_stop(
    sweep_file, capsys, method, rule, expected
):
    lr = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    file = sweep_file(
        method=method,
        run_cap=9,
        early_terminate=rule,
        train={"epochs": 9, "batch_size": 4},
        parameters={
            "train.optimizer.lr": lr,
            NAME: {"values": ["poly", "plateau"]},
            PATIENCE: {"min": 1, "max": 3, "when": {NAME: "plateau"}},
        },
    )
    show_plan(read_sweep(file))
    shown = re.sub(rf"{re.escape(str(file))}:\d+", "FILE:", capsys.readouterr().out)
    plan = " ".join(shown[shown.index("Plan") :].split())  # long lines are broken
    assert plan.startswith(" ".join(["Plan", *expected]))


@pytest.mark.parametrize(("method", "first"), [("cmaes", 6), ("gp", 4)])
def test_a_sweep_too_short_for_a_method_to_learn_is_told(sweep_file, method, first):
    lr = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    parameters = {"train.optimizer.lr": lr, "train.augment.flip": {"min": 0.0, "max": 0.5}}
    file = sweep_file(method=method, parameters=parameters)
    sweeps = [load_sweep(file, [f"run_cap={trials}"]) for trials in (first, first + 1)]
    told = f"all {first} trials: {method} begins to learn after {first}"
    assert [left_to_chance(sweep, {}) for sweep in sweeps] == [told, ""]


def test_a_dry_run_names_the_environment(sweep_file, segray, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_RUNS", str(tmp_path / "mine"))
    run = segray("sweep", sweep_file(storage="${MY_RUNS}"), "--dry-run")
    assert "environment MY_RUNS" in run.stdout


def test_a_smoke_test_runs_the_whole_file_small(sweep_file, segray, tmp_path, leaderboard):
    file = sweep_file(
        run_cap=50,
        early_terminate={"type": "asha", "min_iter": 1, "eta": 2},
        final={"seeds": [3, 4]},
    )
    small = ["--smoke-test", "train.epochs=300", QUIET]
    earlier = load_sweep(file, ["name=tiny-smoke", "data.limit=8"])
    with RunFolder.create(earlier).hold(lambda: None):
        assert "a sweep is at work" in segray("sweep", file, *small).stderr
    run = segray("sweep", file, *small)
    assert run.returncode == 0, run.stderr
    rows = leaderboard(tmp_path / "runs/tiny-smoke")
    assert [row["epochs"] for row in rows.values()] == ["1", "1"]
    assert "images 8 train" in run.stdout
    assert [p.name for p in (tmp_path / "runs/tiny-smoke/final").iterdir()] == ["seed_3"]


def test_a_smoke_test_replaces_no_run_but_a_smoke_test(sweep_file, segray):
    file = sweep_file()
    folder = RunFolder.create(load_sweep(file, ["name=tiny-smoke"]))
    run = segray("sweep", file, "--smoke-test", QUIET)
    assert run.returncode == 2
    assert "holds an earlier run" in run.stderr
    assert (folder.path / "sweep.yaml").is_file()


def test_a_dry_run_of_a_smoke_test_names_it_as_a_source(sweep_file, segray):
    file = sweep_file(early_terminate={"type": "asha", "min_iter": 1, "eta": 2})
    run = segray("sweep", file, "--smoke-test", "--dry-run")
    assert run.returncode == 0, run.stderr
    lines = [" ".join(line.split()) for line in run.stdout.splitlines()]
    for shown in ("name tiny-smoke", "early_terminate null", "data.limit 8", "train.epochs 1"):
        assert f"{shown} --smoke-test" in lines


def test_ray_that_runs_in_this_process_already_is_refused_with_the_way_on():
    """In a process of its own, as Ray keeps what it once read from the environment."""
    code = """
import logging, ray
from segray.config import RequestError
from segray.sweep.cluster import ray_cluster
ray.init("local", num_cpus=1, include_dashboard=False, logging_level=logging.CRITICAL)
try:
    with ray_cluster():
        pass
except RequestError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "call ray.shutdown() first" in run.stdout

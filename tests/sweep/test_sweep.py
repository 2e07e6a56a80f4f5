"""Whole sweeps through real Ray, Optuna and W&B."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from segray.config import WorkError, load_sweep
from segray.data import open_dataset
from segray.models import load_model
from segray.sweep.runner import run_sweep
from segray.sweep.trial_files import read_outcome
from segray.train import evaluate, scores

LR = "train.optimizer.lr"
WANDB = Path(sys.executable).with_name("wandb")


def leet(run, *arguments):
    command = [WANDB, "leet", "inspect", *arguments, run]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_trial_is_in_leaderboard_records_and_study(finished, leaderboard, records):
    config, result = finished
    rows = leaderboard(result.folder)
    assert sorted(rows) == [f"{number:03d}" for number in range(6)]
    assert {trial.id for trial in result.trials} == set(rows)
    for trial_id, row in rows.items():
        lines = records(result.folder / "trials" / trial_id)
        assert len(lines) == int(row["epochs"])
        if lines:
            assert float(row["best_value"]) == max(line["val/miou"] for line in lines)
            assert float(row["last_value"]) == lines[-1]["val/miou"]
            assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    study = optuna.load_study(
        study_name=config.name,
        storage=JournalStorage(JournalFileBackend(str(result.folder / "study.journal"))),
    )
    assert [f"{trial.number:03d}" for trial in study.trials] == sorted(rows)
    assert study.metric_names == ["val/miou"]  # what optuna-dashboard writes at its axes
    for trial in study.trials:
        row = rows[f"{trial.number:03d}"]
        curve = [line["objective"] for line in records(result.folder / "trials" / row["trial"])]
        assert list(trial.intermediate_values.values()) == curve
        told = {name: trial.user_attrs[name] for name in ("state", "reason", "epochs")}
        assert {name: str(value) for name, value in told.items()}.items() <= row.items()
        if row["state"] == "finished":
            assert trial.value == float(row["best_value"])


def test_start_points_ran_first_and_a_divergence_is_told(finished, leaderboard):
    _, result = finished
    rows = leaderboard(result.folder)
    assert float(rows["000"][LR]) == 1e30
    assert rows["000"]["state"] == "diverged"
    assert "epoch 1, step" in rows["000"]["reason"]
    assert "(lr 8.33e+29" in rows["000"]["reason"]  # poly, step 2 of 6
    assert (float(rows["001"][LR]), rows["001"]["train.augment.scale"]) == (1e-2, "[0.75, 1.5]")
    assert result.best.outcome.state != "diverged"


def test_asha_stopped_trials_after_an_epoch_and_let_the_best_finish(finished):
    _, result = finished
    pruned = [trial.outcome for trial in result.trials if trial.outcome.state == "pruned"]
    assert pruned
    assert all(outcome.epochs == 1 for outcome in pruned)
    assert result.best.outcome.epochs == 3


def test_each_trial_leaves_config_and_log_and_only_the_best_keep_weights(finished):
    _, result = finished
    kept = [t for t in result.trials if (t.folder / "checkpoint/best.safetensors").exists()]
    assert kept == list(result.trials[: len(kept)])
    assert 1 <= len(kept) <= 3
    assert not list(result.folder.glob("trials/*/checkpoint/last.safetensors"))
    for trial in result.trials:
        config = (trial.folder / "config.yaml").read_text()
        assert "threads: 1" in config
        assert trial.outcome.state in (trial.folder / "log.txt").read_text()


def test_the_winner_was_trained_again_on_two_workers_and_scored_on_test_once(finished):
    config, result = finished
    (final,) = result.final
    assert final.assignment == result.best.assignment
    folder = result.folder / "final" / "seed_7"
    assert "workers: 2" in (folder / "config.yaml").read_text()
    dataset = open_dataset(config.data)
    with np.load(folder / "confusion.npz") as saved:
        confusion, ids = saved["confusion"], saved["ids"]
    assert ids.tolist() == [dataset.ids[position] for position in dataset.splits.test]
    assert confusion.shape == (3, 7, 7)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/miou"] == scores(confusion.sum(0), dataset.classes)["miou"]


def test_best_holds_the_winners_weights(finished):
    config, result = finished
    dataset = open_dataset(config.data)
    model = load_model(result.folder / "best")
    model.to(memory_format=torch.channels_last)
    confusion, _ = evaluate(model, dataset, dataset.splits.val, device=torch.device("cpu"))
    value = scores(confusion.sum(0), dataset.classes)["miou"]
    assert value == result.final[0].outcome.best_value


def test_wandb_holds_a_run_a_trial_with_history_matrix_images_and_summary(finished, records):
    _, result = finished
    runs = {path.name.split("-", 3)[3]: path for path in result.folder.glob("wandb/offline-run-*")}
    ids = {name.split("-", 1)[1] for name in runs}
    assert ids == {t.id for t in result.trials} | {"final-seed7"}
    best = next(path for name, path in runs.items() if name.endswith(f"-{result.best.id}"))
    log = next(best.glob("*.wandb"))
    summary = leet(log, "--summary", "--json")
    assert "confusion" in summary
    assert repr(result.best.outcome.best_value)[:8] in summary
    history = leet(log, "--json")
    for line in records(result.best.folder):
        assert repr(line["val/miou"])[:8] in history
    assert len(list((best / "files/media").rglob("*.png"))) >= 2  # an image and its masks


def test_a_sweep_leaves_nothing_of_rays_behind(finished):
    _, result = finished
    names = {path.name for path in result.folder.iterdir()}
    expected = {
        ".lock",
        ".done",
        ".driver",
        ".seconds",
        "sweep.yaml",
        "study.journal",
        "trials",
        "leaderboard.csv",
        "final",
        "best",
        "wandb",
    }
    assert names == expected


def ray_trials():
    """The pids of processes in which a sweep that this process started runs trials."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            pid = int(path.parent.name)
            if b"ray::ImplicitFunc" in path.read_bytes() and os.getpid() in ancestors(pid):
                yield pid


def ancestors(pid):
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


@pytest.mark.parametrize("retries", [0, 1])
def test_a_killed_trial_goes_on_or_is_booked_as_failed(retries, sweep_file, leaderboard, records):
    config = load_sweep(
        sweep_file(
            run_cap=2,
            method="random",
            resources={"max_concurrent": 1},
            failure={"retries": retries},
            tracking={"wandb": {"mode": "disabled"}},
        ),
        ["train.epochs=30"],
    )
    folder = Path(config.storage) / config.name
    file = folder / "trials/000/metrics.jsonl"

    def kill_the_first():
        while not (file.exists() and file.read_text().count("\n") > 2):
            time.sleep(0.02)
        for pid in ray_trials():
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    result = run_sweep(config)
    killer.join()
    rows = leaderboard(result.folder)
    states = [rows[f"{k:03d}"]["state"] for k in range(2)]
    assert "process died" in (folder / "trials/000/error.txt").read_text()
    if retries:
        assert states == ["finished", "finished"]
        assert [line["epoch"] for line in records(file.parent)] == [*range(1, 31)]
        note = read_outcome(file.parent).note
        assert note.startswith("its process died")
        assert note.endswith("try 2 of 2 went on from there")
    else:
        assert states == ["failed", "finished"]
        assert "process died" in rows["000"]["reason"]


def test_a_trial_that_is_killed_while_only_its_tracker_is_at_work_has_finished(sweep_file):
    config = load_sweep(sweep_file(run_cap=1))
    trial = Path(config.storage) / config.name / "trials/000"

    def kill_at_its_end():
        while not (trial / "outcome.json").exists():
            time.sleep(0.005)
        for pid in ray_trials():
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_at_its_end)
    killer.start()
    result = run_sweep(config)
    killer.join()
    assert result.best.outcome.state == "finished"
    assert result.best.outcome.epochs == 3
    assert not (trial / "error.txt").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_seconds_and_it_says_where_things_are(sweep_file, tmp_path, stop):
    file = sweep_file(tracking={"wandb": {"mode": "disabled"}})
    command = [sys.executable, "-m", "segray", "sweep", file, "train.epochs=10000"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(tmp_path.glob("runs/tiny/trials/*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.1)
        trials = list(ray_trials())
        process.send_signal(stop)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("error: interrupted")
    assert str(tmp_path / "runs/tiny") in said
    assert "Traceback" not in said
    assert trials
    assert not [pid for pid in trials if Path(f"/proc/{pid}").exists()]
    # They did not fail: they wait for --resume.
    assert not list(tmp_path.glob("runs/tiny/trials/*/outcome.json"))


def test_more_failures_than_the_budget_allows_end_the_sweep(sweep_file):
    config = load_sweep(
        sweep_file(
            budget={"max_failed_trials": 1},
            failure={"retries": 0},
            run_cap=9,
            resources={"max_concurrent": 1},
            tracking={"wandb": {"mode": "disabled"}},
        ),
        ["train.epochs=1000"],
    )
    folder = Path(config.storage) / config.name

    def kill_two():
        for trial in ("000", "001"):
            while not (folder / "trials" / trial / "metrics.jsonl").exists():
                time.sleep(0.05)
            for pid in ray_trials():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_two)
    killer.start()
    with pytest.raises(WorkError, match=r"2 trials failed, more than budget.max_failed_trials=1"):
        run_sweep(config)
    killer.join()
    assert len(list(folder.glob("trials/*"))) == 2


def test_trials_of_two_workers_are_pruned_beside_another_ray(sweep_file, leaderboard, tmp_path):
    """Their places are freed: the sweep ends. The other Ray instance would mislead Train's own
    clean-up, which asks a dashboard.
    """
    code = (
        "import ray, sys; ray.init('local', num_cpus=1); print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert any("up" in line for line in other.stdout), "the other Ray has not come up"
            config = load_sweep(
                sweep_file(
                    method="grid",
                    parameters={"train.optimizer.lr": {"values": [1.0e-2, 1.0e-4]}},
                    run_cap=2,
                    resources={"workers": 2, "max_concurrent": 1},
                    early_terminate={"type": "median", "min_iter": 1, "min_trials": 1},
                    tracking={"wandb": {"mode": "disabled"}},
                )
            )
            result = run_sweep(config)
        finally:
            other.stdin.close()
    rows = leaderboard(result.folder)
    assert [rows[trial]["state"] for trial in ("000", "001")] == ["finished", "pruned"]
    log = (result.folder / "trials/000/log.txt").read_text()
    assert log.count("epoch 1/") == 1  # of both workers


def test_train_runs_once_without_ray_and_leaves_what_a_trial_leaves(sweep_file, segray, tmp_path):
    run = segray("train", sweep_file(), "train.epochs=2", "tracking.wandb.mode=disabled")
    assert run.returncode == 0, run.stderr
    assert "000 finished" in run.stdout
    folder = tmp_path / "runs/tiny"
    names = {path.name for path in (folder / "trials/000").iterdir()}
    assert names >= {"config.yaml", "metrics.jsonl", "log.txt", "outcome.json", "checkpoint"}
    assert {"leaderboard.csv", "sweep.yaml", "best"} <= {path.name for path in folder.iterdir()}


def test_the_same_training_twice_gives_the_same_metrics(sweep_file, segray, tmp_path, records):
    for name in ("one", "two"):
        segray("train", sweep_file(name=name), "tracking.wandb.mode=disabled")
    one, two = (
        [
            {key: value for key, value in line.items() if not key.startswith("time/")}
            for line in records(tmp_path / "runs" / name / "trials/000")
        ]
        for name in ("one", "two")
    )
    assert len(one) == 3
    assert one == two


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_wrong_request_ends_with_2_and_no_traceback(sweep_file, segray, command):
    run = segray(command, sweep_file(), "train.epoch=2", "model.width=0")
    assert run.returncode == 2
    assert "2 problems" in run.stderr
    assert "did you mean epochs?" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize("arguments", [["train.epochs=2"], ["missing.yaml"], ["a.yaml", "b.yaml"]])
def test_a_missing_file_ends_with_2(segray, arguments):
    run = segray("sweep", *arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.startswith("error: ")


def test_without_dataset_or_hub_the_shipped_sweep_says_how_to_get_them(root, segray):
    run = segray("sweep", root / "sweeps/segformer.yaml")
    assert run.returncode == 2
    assert "CITYSCAPES_ROOT" in run.stderr
    assert "csDownload" in run.stderr


def test_without_the_hub_the_shipped_sweep_says_how_to_get_the_weights(root, segray, tmp_path):
    from segray.data.scenes import write_scenes

    write_scenes(tmp_path / "city", train=4, val=1, cities=2, val_cities=1, size=(32, 64), seed=0)
    small = ["data.size=[32,64]", "train.crop=null", "train.batch_size=1"]
    file = root / "sweeps/segformer.yaml"
    small += ["train.schedule.warmup_steps=0"]
    run = segray("sweep", file, f"data.root={tmp_path}/city", *small)
    assert run.returncode == 2
    assert "hf download nvidia/mit-b3" in run.stderr
    assert not (tmp_path / "runs").exists()


def test_the_command_it_gives_instead_works(root, segray, tmp_path, leaderboard):
    advice = segray("sweep", root / "sweeps/segformer.yaml").stderr
    line = next(line for line in advice.splitlines() if "data={format: scenes}" in line)
    run = subprocess.run(
        shlex.split(line), cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr
    rows = leaderboard(tmp_path / "runs/no-download")
    assert {row["state"] for row in rows.values()} == {"finished"}
    assert "\x1b" not in run.stdout


def test_no_key_reaches_the_run_folder(sweep_file, segray, tmp_path):
    key = "0123456789abcdef0123456789abcdef01234567"
    environment = os.environ | {"WANDB_API_KEY": key, "WANDB_MODE": "offline"}
    run = segray("sweep", sweep_file(run_cap=1), "train.epochs=1", env=environment)
    assert run.returncode == 0, run.stderr
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path


def test_losing_every_trial_is_a_failure_of_the_work(sweep_file):
    config = load_sweep(sweep_file(parameters={LR: {"value": 1.0e30}}, run_cap=2))
    with pytest.raises(WorkError, match=r"no trial has a result: .*not finite"):
        run_sweep(config)

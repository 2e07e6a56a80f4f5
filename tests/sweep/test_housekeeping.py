"""Run folders from outside, several files at once, and Python instead of the command line."""

import json
import shutil
import subprocess
import sys

import pytest

import segray
from segray.config import ConfigError, load_sweep
from segray.sweep.records import RunFolder

QUIET = "tracking.wandb.mode=disabled"


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run that a test may change."""
    _, result = finished
    return shutil.copytree(result.folder, tmp_path / "copy")


def test_status_of_a_finished_run(copy, segray):
    run = segray("status", copy)
    assert run.returncode == 0, run.stderr
    assert "6 of 6 trials ended, 1 of 1 final training" in run.stdout
    assert "The sweep is done." in run.stdout
    assert "diverged" in run.stdout


def test_status_of_a_run_that_was_killed(copy, segray):
    (copy / "trials/003/outcome.json").unlink()
    shutil.rmtree(copy / "final")
    run = segray("status", copy)
    assert "5 of 6 trials ended, 0 of 1 final training" in run.stdout
    assert "stopped" in run.stdout
    assert f"segray sweep {copy}/sweep.yaml --resume" in run.stdout


def test_status_of_a_run_at_work(copy, segray):
    (copy / "trials/003/outcome.json").unlink()
    with RunFolder.open(copy).hold(lambda: None):
        run = segray("status", copy)
        assert "at work" in run.stdout
        assert "running" in run.stdout
        assert segray("clean", copy, "--yes").returncode == 2


def test_clean_says_what_it_would_free_and_frees_it_only_when_told(copy, segray):
    weights = list(copy.glob("trials/*/checkpoint/best.safetensors"))
    assert weights
    run = segray("clean", copy, stdin=subprocess.DEVNULL)
    assert run.returncode == 0
    assert "trials/" in run.stdout
    assert "--yes" in run.stdout
    assert all(path.exists() for path in weights)
    run = segray("clean", copy, "--yes")
    assert "freed" in run.stdout
    assert not any(path.exists() for path in weights)
    assert (copy / "best/model.safetensors").is_file()
    assert list(copy.glob("final/*/checkpoint/best.safetensors"))
    assert list(copy.glob("wandb/offline-run-*"))  # not uploaded: the only copy
    assert "nothing to free" in segray("clean", copy, "--yes").stdout


def test_clean_leaves_what_a_resume_needs(copy, segray):
    (copy / "trials/003/outcome.json").unlink()
    (copy / ".ray").mkdir()
    (copy / ".ray/scratch").write_text("x" * 1000)
    before = set(copy.rglob("*.safetensors"))
    run = segray("clean", copy, "--yes")
    assert run.returncode == 0
    assert set(copy.rglob("*.safetensors")) == before
    assert not (copy / ".ray").exists()


def test_clean_frees_runs_that_were_uploaded(copy, segray):
    uploaded, *others = sorted(copy.glob("wandb/offline-run-*"))
    (uploaded / "run-x.wandb.synced").touch()
    segray("clean", copy, "--yes")
    assert not uploaded.exists()
    assert all(path.exists() for path in others)


def test_several_files_run_one_after_the_other(sweep_file, segray, tmp_path, leaderboard):
    """The one that fails does not keep the next from its turn."""
    first = sweep_file(
        name="first", run_cap=1, parameters={"train.optimizer.lr": {"value": 1.0e30}}
    )
    first = first.rename(tmp_path / "first.yaml")
    second = sweep_file(name="second", run_cap=1)
    run = segray("sweep", first, second, "train.epochs=1", QUIET)
    assert run.returncode == 1
    assert "first ended with an error: no trial has a result" in run.stdout
    assert "1 of 2 sweeps" in run.stderr
    assert leaderboard(tmp_path / "runs/second")["000"]["state"] == "finished"


def test_two_files_with_one_run_folder_are_refused(sweep_file, segray, tmp_path):
    file = sweep_file()
    other = shutil.copy(file, tmp_path / "other.yaml")
    run = segray("sweep", file, other)
    assert run.returncode == 2
    assert "is the run folder of two of these files" in run.stderr


def test_from_python(sweep_file):
    result = segray.run_sweep(
        sweep_file(run_cap=2),
        {"train.epochs": 1, "tracking.wandb.mode": "disabled", "name": "7"},
    )
    assert result.folder.name == "7"
    assert result.best.outcome.best_value == result.table[0]["best_value"]
    assert [row["trial"] for row in result.table] == [trial.id for trial in result.trials]
    assert set(result.table[0]) >= {"state", "epochs", "train.optimizer.lr"}


def test_from_python_a_mistake_names_the_key(sweep_file):
    with pytest.raises(ConfigError, match=r"override train.epoch=1: .*did you mean epochs"):
        segray.run_sweep(sweep_file(), {"train.epoch": 1})


def test_what_a_trial_prints_is_in_its_log_whoever_prints_it(tmp_path):
    """Python, a library's own writes, and the last words of a crash."""
    code = """
import os, faulthandler, pathlib, sys
from segray.sweep.trial import _everything_to
faulthandler.enable()
with _everything_to(pathlib.Path("log.txt")):
    print("from Python", flush=True)
    os.write(2, b"from a library\\n")
    if len(sys.argv) > 1:
        faulthandler._sigsegv()
print("afterwards")
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout == "afterwards\n"
    assert (tmp_path / "log.txt").read_text() == "from Python\nfrom a library\n"
    subprocess.run([sys.executable, "-c", code, "crash"], cwd=tmp_path, capture_output=True)
    assert "Segmentation fault" in (tmp_path / "log.txt").read_text()


def test_the_schema_command_prints_json(segray):
    assert json.loads(segray("schema").stdout)["properties"]["name"]


def test_a_run_moved_elsewhere_is_still_a_run(copy, segray):
    assert RunFolder.open(copy).config() == load_sweep(copy / "sweep.yaml")

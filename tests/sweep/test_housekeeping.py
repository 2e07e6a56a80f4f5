"""Run folders from outside, several files at once, and Python instead of the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import segray
from segray.cli import main
from segray.config import ConfigError, load_sweep
from segray.sweep.housekeeping import clean_run
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
    (copy / ".done").unlink()
    (copy / "trials/003/outcome.json").unlink()
    shutil.rmtree(copy / "final")
    run = segray("status", copy)
    assert "5 of 6 trials ended, 0 of 1 final training" in run.stdout
    assert "stopped" in run.stdout
    # It was copied to another place and name.
    command = f"segray sweep {copy}/sweep.yaml --resume storage={copy.parent} name=copy"
    assert command in run.stdout


def test_status_of_a_run_whose_winner_may_not_stand(copy, segray):
    """All there was to do has ended, but the sweep had not come to its end: trials were added to
    it, its final training failed, or it was killed before it wrote best/.
    """
    (copy / ".done").unlink()
    run = segray("status", copy)
    assert "6 of 6 trials ended, 1 of 1 final training" in run.stdout
    assert "not all is done" in run.stdout
    assert "--resume" in run.stdout


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
    (copy / ".done").unlink()
    (copy / "trials/003/outcome.json").unlink()
    (copy / ".ray").mkdir()
    (copy / ".ray/scratch").write_text("x" * 1000)
    before = set(copy.rglob("*.safetensors"))
    run = segray("clean", copy, "--yes")
    assert run.returncode == 0
    assert set(copy.rglob("*.safetensors")) == before
    assert not (copy / ".ray").exists()


def test_clean_frees_runs_that_were_uploaded(copy, segray):
    """And what an earlier start of such a run has left, which `segray sync` would take for it."""
    uploaded, *others = sorted(copy.glob("wandb/offline-run-*"))
    run_id = uploaded.name.split("-", 3)[3]
    (uploaded / f"run-{run_id}.wandb.synced").touch()
    superseded = copy / f"wandb/offline-run-20200101_000000-{run_id}"
    older = copy / f"wandb/offline-run-20200101_000000-{others[0].name.split('-', 3)[3]}"
    for path in (superseded, older):
        path.mkdir()
        (path / "run.wandb").write_text("half")
    segray("clean", copy, "--yes")
    assert not uploaded.exists()
    assert not superseded.exists()
    assert all(path.exists() for path in (older, *others))


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


def test_an_error_that_nobody_foresaw_ends_one_sweep_of_several(sweep_file, segray, tmp_path):
    files = []
    for name in ("first", "second"):
        files.append(sweep_file(name=name).rename(tmp_path / f"{name}.yaml"))
        lock = RunFolder.create(load_sweep(files[-1])).path / ".lock"
        lock.unlink()
        lock.mkdir()
    run = segray("sweep", *files, "--resume", QUIET)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    for name in ("first", "second"):
        story = tmp_path / f"runs/{name}/error.txt"
        assert f"{name} ended with an error: IsADirectoryError" in run.stdout
        assert f"the traceback is in {story}" in run.stdout
        assert "Traceback" in story.read_text()


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


def test_from_python_values_are_made_plain(sweep_file, tmp_path):
    """To be refused with what they had become is enough to see it."""
    given = {
        "name": Path("7"),
        "train.augment.scale": (np.float64(0.5), np.float32(2)),
        "train.epochs": np.int64(0),
        "parameters": {"train.batch_size": {"values": np.int64(3), "when": (Path("a"),)}},
    }
    with pytest.raises(ConfigError) as refused:
        segray.run_sweep(sweep_file(), given)
    assert "(got 0)" in str(refused.value)
    assert "scale" not in str(refused.value)


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, [object()], np.longdouble(1), b"x"])
def test_from_python_a_value_that_no_file_could_hold_names_its_key(sweep_file, value):
    with pytest.raises(ConfigError, match=r"override train\.epochs: .*expected numbers, text"):
        segray.run_sweep(sweep_file(), {"train.epochs": value})


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


def test_a_run_that_was_moved_and_renamed_is_taken_up_where_it_lies(copy, segray, leaderboard):
    """Under the study's old name: trials that had ended are not run again."""
    before = (copy / "trials/000/outcome.json").read_bytes()
    (copy / "trials/003/outcome.json").unlink()
    shutil.rmtree(copy / "final")  # once it has begun, the search stays as it is
    command = RunFolder.open(copy).resume_command().split()[1:]
    run = segray(*command, QUIET, "resources.max_concurrent=1")
    assert run.returncode == 0, run.stderr
    assert "5 trials had ended, 1 had begun" in run.stdout
    assert len(leaderboard(copy)) == 6
    assert (copy / "trials/000/outcome.json").read_bytes() == before


def test_clean_holds_the_run_while_it_asks(copy):
    asked = []
    clean_run(copy, lambda question: asked.append(RunFolder.open(copy).running()) or False)
    assert asked == [True]
    assert not RunFolder.open(copy).running()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("sweep.yaml", b"# id: ab\nname: caf\xe9\n", "sweep.yaml:2: expected UTF-8"),
        ("sweep.yaml", b"# id: ab\nname: a\nnovel: 1\n", "novel: no such key"),
        ("trials/000/config.yaml", b"model: {name: unet}\n", "'assignment'"),
        ("trials/000/outcome.json", b'{"state": "finished", "joy": 1}', "joy"),
        ("trials/000/outcome.json", b"{", "JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("command", ["status", "patience", "clean"])
def test_a_record_that_cannot_be_read_is_named(copy, capsys, command, file, content, said):
    (copy / file).write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main([command, str(copy)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert str(copy / file) in told
    assert said in told


def test_sync_names_a_sweep_file_that_cannot_be_read(copy, capsys):
    (copy / "sweep.yaml").write_bytes(b"# id: ab\nname: caf\xe9\n")
    with pytest.raises(SystemExit) as ended:
        main(["sync", str(copy)])
    assert ended.value.code == 2
    assert f"{copy}/sweep.yaml:2: expected UTF-8" in capsys.readouterr().err

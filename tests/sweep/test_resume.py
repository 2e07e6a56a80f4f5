"""A sweep that was killed, and taken up again, gives what one that was never stopped gives."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from segray.config import RequestError, load_sweep
from segray.sweep.locks import at_work_in
from segray.sweep.records import RunFolder
from segray.sweep.runner import run_sweep

LR = "train.optimizer.lr"
SECONDS = ("seconds",)


def epochs_on_record(run: Path) -> int:
    files = [*run.glob("trials/*/metrics.jsonl"), *run.glob("final/*/metrics.jsonl")]
    return sum(file.read_text().count("\n") for file in files)


def test_killed_three_times_it_equals_the_undisturbed_sweep_to_the_bit(
    sweep_file, leaderboard, start, kill_when, without_time, tmp_path
):
    """The driver is killed in the search, at its end, and in the final stage on two workers."""
    changes = {
        "method": "random",
        "run_cap": 4,
        "train": {"epochs": 4, "batch_size": 4, "optimizer": {"lr": 1e-2}},
        "final": {"seeds": [7], "workers": 2},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    whole = run_sweep(load_sweep(sweep_file(**changes), ["name=whole"])).folder
    file, cut = sweep_file(**changes), tmp_path / "runs/cut"
    for count, option in ((3, []), (11, ["--resume"]), (18, ["--resume"])):
        kill_when(start(file, "name=cut", *option), lambda at=count: epochs_on_record(cut) >= at)
    last = start(file, "name=cut", "--resume")
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert "taken up again" in said
    rows = [
        {trial: {k: v for k, v in row.items() if k not in SECONDS} for trial, row in each.items()}
        for each in (leaderboard(whole), leaderboard(cut))
    ]
    assert list(rows[0]) == list(rows[1])
    assert rows[0] == rows[1]
    assert without_time(whole) == without_time(cut)
    tests = [json.loads((run / "final/seed_7/metrics.json").read_text()) for run in (whole, cut)]
    assert tests[0] == tests[1]
    study = optuna.load_study(
        study_name="cut", storage=JournalStorage(JournalFileBackend(str(cut / "study.journal")))
    )
    assert [t.user_attrs["trial"] for t in study.trials] == [f"{k:03d}" for k in range(4)]
    assert {t.state.name for t in study.trials} == {"COMPLETE"}


def test_a_finished_sweep_taken_up_again_stays_as_it_is(sweep_file, segray, tmp_path):
    file = sweep_file(run_cap=1, tracking={"wandb": {"mode": "disabled"}})
    assert segray("sweep", file).returncode == 0
    before = {p: p.read_bytes() for p in (tmp_path / "runs/tiny/trials").rglob("*") if p.is_file()}
    assert segray("clean", tmp_path / "runs/tiny", "--yes").returncode == 0
    run = segray("sweep", file, "--resume")
    assert run.returncode == 0, run.stderr
    assert "has come to its end" in run.stdout
    assert "starting Ray" not in run.stdout
    assert "Best: trial 000" in run.stdout
    for path, content in before.items():
        if "checkpoint" not in path.parts:
            assert path.read_bytes() == content


def test_resume_begins_where_nothing_was_begun(sweep_file, segray, tmp_path):
    file = sweep_file(run_cap=1, tracking={"wandb": {"mode": "disabled"}})
    run = segray("sweep", file, "--resume", "train.epochs=1")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "runs/tiny/leaderboard.csv").is_file()


@pytest.fixture
def begun(sweep_file):
    """A run folder as it stands before its first trial."""
    file = sweep_file()
    return file, RunFolder.create(load_sweep(file))


def test_another_config_is_refused_with_what_changed(begun):
    file, folder = begun
    with pytest.raises(RequestError) as refused:
        RunFolder.resume(load_sweep(file, ["train.epochs=5", "model.width=8", "seed=1"]))
    message = str(refused.value)
    assert "train.epochs: 3 -> 5" in message
    assert "model.width: 4 -> 8" in message
    assert f"segray sweep {folder.path}/sweep.yaml --resume" in message


@pytest.mark.parametrize(
    "change",
    ["budget.hours=3", "resources.max_concurrent=1", "tracking.wandb.mode=disabled"],
)
def test_what_changes_no_number_may_change(begun, change):
    file, folder = begun
    assert RunFolder.resume(load_sweep(file, [change])).sweep_id == folder.sweep_id


def test_a_folder_in_use_is_refused_at_once(begun):
    _, folder = begun
    waited = []
    with folder.hold(lambda: None):
        assert folder.running()
        with (
            pytest.raises(RequestError, match="in use by a sweep"),
            folder.hold(lambda: waited.append(1)),
        ):
            pass
    assert waited == []
    assert not folder.running()


def test_a_folder_that_is_left_in_use_is_refused_in_the_end(begun, monkeypatch):
    _, folder = begun
    monkeypatch.setattr("segray.sweep.records.ORPHANS_S", 0.5)
    waited = []
    with (
        at_work_in(folder.path),
        pytest.raises(RequestError, match="in use by a sweep"),
        folder.hold(lambda: waited.append(1)),
    ):
        pass
    assert waited == [1]


def test_a_process_that_still_trains_is_waited_for(begun):
    """As a trial of a killed sweep is, until Ray has noticed that its driver is gone."""
    _, folder = begun
    code = f"""
import time, pathlib
from segray.sweep.locks import at_work_in
with at_work_in(pathlib.Path({str(folder.path)!r})):
    print("at work", flush=True)
    time.sleep(2)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "at work\n"
        waited = []
        with folder.hold(lambda: waited.append(1)):
            assert other.wait(10) == 0
    assert waited == [1]


def test_a_journal_cut_off_in_the_middle_of_a_line_is_mended(sweep_file, segray, tmp_path):
    """And the lock that Optuna's storage leaves when its process is killed."""
    file = sweep_file(run_cap=2, tracking={"wandb": {"mode": "disabled"}})
    assert segray("sweep", file, "train.epochs=1").returncode == 0
    run = tmp_path / "runs/tiny"
    (run / ".done").unlink()
    journal = run / "study.journal"
    with journal.open("ab") as stream:
        stream.write(b'{"op_code": 5, "worker')
    journal.with_name("study.journal.lock").symlink_to(journal)
    again = segray("sweep", file, "train.epochs=1", "--resume")
    assert again.returncode == 0, again.stderr
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_one_training_goes_on_too(sweep_file, segray, kill_when, without_time, tmp_path):
    file = sweep_file(tracking={"wandb": {"mode": "disabled"}})
    assert segray("train", file, "name=whole", "train.epochs=6").returncode == 0
    command = [sys.executable, "-m", "segray", "train", str(file), "name=cut", "train.epochs=6"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    kill_when(process, lambda: epochs_on_record(tmp_path / "runs/cut") >= 2)
    run = segray("train", file, "name=cut", "train.epochs=6", "--resume")
    assert run.returncode == 0, run.stderr
    whole, cut = (without_time(tmp_path / "runs" / name) for name in ("whole", "cut"))
    assert whole == cut
    assert not list((tmp_path / "runs/cut").rglob("last.safetensors"))
    assert "1 of 1 trial ended" in segray("status", tmp_path / "runs/cut").stdout
    as_sweep = segray("sweep", tmp_path / "runs/cut/sweep.yaml", "--resume")
    assert as_sweep.returncode == 2
    assert "was made by `segray train`" in as_sweep.stderr


def test_once_the_final_stage_has_begun_the_search_stays_as_it_was(sweep_file, segray, tmp_path):
    """Or another trial could win whose final training nobody would have seen."""
    quiet = {"wandb": {"mode": "disabled"}}
    file = sweep_file(run_cap=2, final={"seeds": [7]}, tracking=quiet)
    assert segray("sweep", file, "train.epochs=1").returncode == 0
    run = tmp_path / "runs/tiny"
    # A trial without an ending, as budget.hours leaves those that never began; a final cut short.
    shutil.rmtree(run / "trials/001")
    (run / "final/seed_7/outcome.json").unlink()
    again = segray("sweep", file, "train.epochs=1", "--resume")
    assert again.returncode == 0, again.stderr
    assert "the search stays as it was" in again.stdout
    assert not (run / "trials/001").exists()

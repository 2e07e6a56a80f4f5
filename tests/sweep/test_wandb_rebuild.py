"""`segray sync` where W&B's folders hold less than segray's records: runs are told once more."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml

from segray.sweep.records import RunFolder
from segray.sweep.trial import run_trial
from segray.sweep.trial_files import failed_outcome, read_outcome, write_config, write_outcome
from segray.sweep.view import _specs

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def account(server, tmp_path, monkeypatch):
    """The server, as a person with a key has it."""
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return server


@pytest.fixture
def copy(finished, tmp_path):
    """Three trials and a final training, tracked offline, of a run that a test may change."""
    _, result = finished
    folder = shutil.copytree(result.folder, tmp_path / "copy")
    for name in ("003", "004", "005"):
        shutil.rmtree(folder / "trials" / name)
        shutil.rmtree(folder_of(folder, name))
    return folder


def folder_of(run, name):
    (folder,) = run.glob(f"wandb/offline-run-*-{name}")
    return folder


def log_of(run, name):
    (log,) = folder_of(run, name).glob("*.wandb")
    return log


def told(server):
    """What the server was told of each run, but for times and images."""
    runs = {}
    for run_id, run in server.runs.items():
        opened = {
            key: run.opened[key]
            for key in ("name", "displayName", "project", "groupName", "jobType")
        }
        rows = [without_times(row) for row in run.rows]
        config = {name: value for name, value in run.config.items() if name != "_wandb"}
        tables = {
            path: body for _, path, body in server.requests if f"/put/{run_id}/media/table/" in path
        }
        runs[run_id.split("-", 1)[1]] = (
            *(opened, config, rows, without_times(run.summary), run.exit_code),
            *(sorted(map(bytes.decode, tables.values())),),
        )
    return runs


def without_times(values):
    return {
        name: value
        for name, value in values.items()
        if name not in ("_timestamp", "_runtime", "_wandb", "images/val", "images/test")
    }


def forget(server):
    server.runs.clear()
    server.requests.clear()


def test_a_run_told_from_the_records_is_the_one_that_the_trial_told(copy, segray, account):
    """Of trials that finished, were pruned and diverged, and of a final training on two workers."""
    assert segray("sync", copy).returncode == 0
    before = told(account)
    assert len(before) == 4
    shutil.rmtree(copy / "wandb")
    forget(account)
    done = segray("sync", copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made again from segray's records, without images; uploaded") == 4
    after = told(account)
    for name, run in before.items():
        assert after[name] == run
    assert not [path for _, path, _ in account.requests if "/media/images" in path]
    requests = len(account.requests)
    assert "nothing to upload; 4 runs uploaded already" in segray("sync", copy).stdout
    assert len(account.requests) == requests


def test_what_is_lost_or_cut_off_is_made_again_and_the_rest_uploaded(copy, segray, account):
    shutil.rmtree(folder_of(copy, "000"))
    log_of(copy, "001").write_bytes(log_of(copy, "001").read_bytes()[:7])
    log_of(copy, "final-seed7").write_bytes(log_of(copy, "final-seed7").read_bytes()[:1500])
    done = segray("sync", copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made again") == 3
    assert done.stdout.count("002: uploaded") == 1
    runs = told(account)
    assert len(runs) == 4
    for name, (_, _, rows, summary, _, _) in runs.items():
        path = copy / ("final/seed_7" if name.startswith("final") else f"trials/{name}")
        outcome = read_outcome(path)
        assert (summary["state"], summary["epochs"]) == (outcome.state, outcome.epochs)
        assert [row["_step"] for row in rows if "val/miou" in row] == [
            *range(1, outcome.epochs + 1)
        ]
    assert "4 runs uploaded already" in segray("sync", copy).stdout


def test_what_the_server_has_is_not_sent_again_with_less(copy, segray, account):
    assert segray("sync", copy).returncode == 0
    shutil.rmtree(copy / "wandb")
    name = next(name for name in account.runs if name.endswith("002"))
    del account.runs[name].summary["state"]  # killed before its end
    before = len(account.calls("UpsertBucket"))
    done = segray("sync", copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on the server already") == 3
    assert {call["name"] for call in account.calls("UpsertBucket")[before:]} == {name}
    assert account.runs[name].summary["state"] == read_outcome(copy / "trials/002").state
    requests = len(account.requests)
    assert "4 runs uploaded already" in segray("sync", copy).stdout
    assert len(account.requests) == requests


def test_what_was_cleaned_away_is_remembered(copy, segray, account):
    segray("sync", copy)
    segray("clean", copy, "--yes")
    assert not list(copy.glob("wandb/*run-*"))
    requests = len(account.requests)
    assert "4 runs uploaded already" in segray("sync", copy).stdout
    assert len(account.requests) == requests


def test_what_was_not_tracked_goes_to_a_server_only_when_asked(copy, segray, account):
    for spec in _specs(RunFolder.open(copy)):
        write_config(spec_with(spec, mode="disabled", project="private"))
    shutil.rmtree(copy / "wandb")
    done = segray("sync", copy)
    assert (done.returncode, account.requests) == (0, [])
    assert "4 runs not tracked; --rebuild" in done.stdout
    assert segray("sync", copy, "--rebuild").returncode == 0
    assert {run.opened["project"] for run in account.runs.values()} == {"private"}
    assert len(account.runs) == 4
    assert "4 runs uploaded already" in segray("sync", copy).stdout


def spec_with(spec, **wandb):
    return replace(spec, wandb={**spec.wandb, **wandb})


def test_trials_that_may_be_at_work_are_left_alone(copy, segray, account):
    shutil.rmtree(folder_of(copy, "000"))
    with RunFolder.open(copy).hold(lambda: None):
        done = segray("sync", copy)
        assert done.returncode == 0, done.stderr
        assert "1 run not whole in wandb/, left until its sweep has ended" in done.stdout
        assert len(account.runs) == 3
    assert "made again" in segray("sync", copy).stdout
    assert len(account.runs) == 4


@pytest.mark.parametrize("place", ["told again", "uploading"])
def test_a_sync_that_is_killed_goes_on_the_next_time(place, copy, segray, account):
    names = ("000", "001")
    for name in names:
        shutil.rmtree(folder_of(copy, name))
    account.behaviour_later = "stall" if place == "uploading" else None
    command = [sys.executable, "-m", "segray", "sync", copy]
    with subprocess.Popen(command, cwd=copy.parent) as sync:
        if place == "uploading":
            while not account.runs:
                time.sleep(0.05)
        else:
            while not list(copy.glob("wandb/offline-run-*-000")):
                time.sleep(0.01)
        os.kill(sync.pid, signal.SIGKILL)
    account.recover()
    done = segray("sync", copy)
    assert done.returncode == 0, done.stderr
    assert len(account.runs) == 4
    for name in names:
        (run,) = (run for run_id, run in account.runs.items() if run_id.endswith(f"-{name}"))
        outcome = read_outcome(copy / "trials" / name)
        assert sorted(run.curve("val/miou")) == [*range(1, outcome.epochs + 1)]
        assert run.summary["state"] == outcome.state
        assert run.exit_code is not None
    assert "4 runs uploaded already" in segray("sync", copy).stdout


def test_a_trial_that_failed_is_told_in_the_same_words(copy, segray, account, monkeypatch):
    spec = next(_specs(RunFolder.open(copy)))
    shutil.rmtree(copy / "wandb")
    for path in (copy / "trials").iterdir():
        shutil.rmtree(path)
    shutil.rmtree(copy / "final")

    def tell(metrics):
        if metrics["epoch"] == 2:
            raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError):
        run_trial(spec, torch.device("cpu"), tell)
    # As the sweep says once it does not try again.
    write_outcome(spec.folder, failed_outcome(spec.folder, "RuntimeError: no memory left"))
    segray("sync", copy)
    before = told(account)
    shutil.rmtree(copy / "wandb")
    forget(account)
    segray("sync", copy)
    assert told(account) == before
    ((_, _, rows, summary, exit_code, _),) = before.values()
    assert (summary["state"], summary["reason"]) == ("failed", "RuntimeError: no memory left")
    assert (len(rows), exit_code) == (2, 1)


def test_a_sweep_that_was_killed_is_shown_as_far_as_it_came(
    sweep_file, segray, account, records, tmp_path
):
    train = {"epochs": 30, "batch_size": 4, "optimizer": {"lr": 1e-2}}
    file = sweep_file(run_cap=1, train=train)
    folder = tmp_path / "runs/tiny"
    command = [sys.executable, "-m", "segray", "sweep", file]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as sweep:
        record = folder / "trials/000/metrics.jsonl"
        while not record.exists() or len(record.read_text().splitlines()) < 3:
            assert sweep.poll() is None
            time.sleep(0.02)
        os.kill(sweep.pid, signal.SIGKILL)
    while "made again" not in (said := segray("sync", folder).stdout):  # until its trial is gone
        assert "left" in said, said
        time.sleep(0.5)
    (run,) = account.runs.values()
    so_far = len(run.curve("val/miou"))
    assert so_far in (2, 3, 4, 5, 6, 7, 8)
    assert (run.summary["state"], run.exit_code) == ("stopped", 1)
    assert "1 run uploaded already" in segray("sync", folder).stdout
    assert segray("sweep", file, "--resume").returncode == 0
    assert segray("sync", folder).returncode == 0
    (run,) = account.runs.values()
    assert run.curve("val/miou") == {
        row["epoch"]: row["val/miou"] for row in records(folder / "trials/000")
    }
    assert (run.summary["state"], run.exit_code) == ("finished", 0)
    assert yaml.safe_load((folder / "trials/000/config.yaml").read_text())["tracking"]

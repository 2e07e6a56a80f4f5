"""Whole sweeps whose runs go to a W&B server: one on loopback, with the real client."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def account(server, tmp_path, monkeypatch):
    """The server, as a person with a key has it; Ray's logs in a folder of their own."""
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("RAY_TMPDIR", short)  # sockets have short names
        yield server


def trials(folder):
    """The folder of each training, by the last part of its run's id."""
    found = {path.name: path for path in folder.glob("trials/*")}
    return found | {path.name.replace("_", ""): path for path in folder.glob("final/*")}


def run_of(server, name):
    (run,) = (run for run_id, run in server.runs.items() if run_id.split("-", 1)[1].endswith(name))
    return run


def assert_whole(server, folder, name, records):
    """Everything that a trial has on record is at the server, once."""
    path = trials(folder)[name]
    run = run_of(server, name)
    for metric in ("val/miou", "train/loss", "train/lr"):
        assert run.curve(metric) == {row["epoch"]: row[metric] for row in records(path)}
    outcome = yaml.safe_load((path / "outcome.json").read_text())
    assert run.summary["state"] == outcome["state"]
    assert run.summary["best"] == outcome["best_value"]
    assert run.exit_code == 0
    media = server.uploads(run.opened["name"])
    assert [name for name in media if name.startswith("media/images/mask/images/val")]
    assert [name for name in media if name.startswith("media/table/confusion/val_table")]


def values(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def files_with_the_key(*folders):
    files = (path for folder in folders for path in Path(folder).rglob("*") if path.is_file())
    return [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_sweep_is_a_group_of_runs(sweep_file, segray, account, records, tmp_path):
    online = {"wandb": {"mode": "online", "images": 1}}
    done = segray("sweep", sweep_file(run_cap=2, tracking=online, final={"seeds": [7]}))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/tiny"
    assert sorted(trials(folder)) == ["000", "001", "seed7"]
    for name, path in trials(folder).items():
        assert_whole(account, folder, name, records)
        opened = run_of(account, name).opened
        job = "final" if name == "seed7" else "trial"
        assert (opened["groupName"], opened["jobType"], opened["project"]) == (
            "tiny",
            job,
            "segray",
        )
        config = {k: v for k, v in run_of(account, name).config.items() if k != "_wandb"}
        recorded = yaml.safe_load((path / "config.yaml").read_text())
        assert config == {k: v for k, v in recorded.items() if k != "tracking"}
        assert "train.optimizer.lr" in config["assignment"]
    metrics = yaml.safe_load((folder / "final/seed_7/metrics.json").read_text())
    final = run_of(account, "seed7")
    assert final.summary["test/miou"] == metrics["test/miou"]
    media = account.uploads(final.opened["name"])
    for start in ("images/images/test", "table/confusion/test_table", "table/categories"):
        assert [name for name in media if name.startswith(f"media/{start}")]
    of_test = [f for run in account.runs for f in account.uploads(run) if "/test" in f]
    assert {f for f in media if "/test" in f} == {*of_test}  # no trial has seen it
    assert Path(os.environ["RAY_TMPDIR"], "ray").is_dir()
    assert files_with_the_key(folder, os.environ["RAY_TMPDIR"]) == []
    assert KEY not in done.stdout + done.stderr
    before = len(account.requests)
    assert "3 runs uploaded already" in segray("sync", folder).stdout
    assert len(account.requests) == before


@pytest.mark.parametrize("trouble", ["quota", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_server_lost_during_a_sweep_costs_nothing(
    trouble, sweep_file, segray, account, records, leaderboard, tmp_path
):
    """No trial, no number, and on the screen one line."""
    file = sweep_file(run_cap=3, resources={"max_concurrent": 1})
    alone = segray("sweep", file, "name=alone", "tracking.wandb.mode=disabled")
    assert alone.returncode == 0, alone.stderr
    command = [sys.executable, "-m", "segray", "sweep", file, "tracking.wandb.mode=auto"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as sweep:
        while not any(run.exit_code == 0 for run in account.runs.values()):
            assert sweep.poll() is None
            time.sleep(0.05)
        account.behaviour = trouble
        shown, said = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, said
    assert shown.count("what its server lacks is kept in") == 1
    folder = tmp_path / "runs/tiny"
    assert [row["state"] for row in leaderboard(folder).values()] == ["finished"] * 3
    for name in ("000", "001", "002"):
        assert values(records(folder / "trials" / name)) == values(
            records(tmp_path / "runs/alone/trials" / name)
        )
    assert list(folder.glob("wandb/offline-run-*"))
    account.recover()
    synced = segray("sync", folder)
    assert synced.returncode == 0, synced.stderr
    print(synced.stdout)  # shown where what follows fails
    for name in ("000", "001", "002"):
        assert_whole(account, folder, name, records)
    assert "nothing to upload" in segray("sync", folder).stdout
    assert files_with_the_key(folder, os.environ["RAY_TMPDIR"]) == []

"""A sweep that is killed and resumed is one set of W&B runs, each with its whole history."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_killed_sweep_goes_on_in_the_same_runs(
    mode, sweep_file, segray, records, server, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    tracking = {"wandb": {"mode": mode, "images": 1}}
    resources = {"max_concurrent": 1}
    train = {"epochs": 20, "batch_size": 4, "optimizer": {"lr": 1e-2}}
    file = sweep_file(run_cap=2, tracking=tracking, resources=resources, train=train)
    folder = tmp_path / "runs/tiny"
    command = [sys.executable, "-m", "segray", "sweep", file]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as sweep:
        record = folder / "trials/000/metrics.jsonl"
        while not record.exists() or len(record.read_text().splitlines()) < 3:
            assert sweep.poll() is None
            time.sleep(0.02)
        os.kill(sweep.pid, signal.SIGKILL)
    assert not (folder / "trials/000/outcome.json").exists()

    resumed = segray("sweep", file, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    if mode == "offline":
        assert server.requests == []
        assert segray("sync", folder).returncode == 0
    assert sorted(name.split("-", 1)[1] for name in server.runs) == ["000", "001"]
    for name, run in server.runs.items():
        trial = folder / "trials" / name.split("-", 1)[1]
        of_record = {row["epoch"]: row["val/miou"] for row in records(trial)}
        assert len(of_record) == 20
        assert run.curve("val/miou") == of_record
        steps = [row["_step"] for row in run.rows if "val/miou" in row]
        assert steps == sorted(set(steps))
        outcome = yaml.safe_load((trial / "outcome.json").read_text())
        assert run.summary["best"] == outcome["best_value"]
        assert run.exit_code == 0

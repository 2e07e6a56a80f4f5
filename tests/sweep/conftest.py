"""A sweep small enough to run many times: tiny scenes, a tiny UNet."""

import csv
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from segray.config import load_sweep
from segray.sweep.runner import run_sweep

TINY = {
    "name": "tiny",
    "model": {"name": "unet", "width": 4, "depth": 2},
    "data": {
        "format": "scenes",
        "size": [32, 64],
        "train_images": 12,
        "test_images": 3,
        "cities": 4,
        "test_cities": 1,
        "val_share": 0.25,
    },
    "train": {"epochs": 3, "batch_size": 4, "optimizer": {"lr": 1e-2}},
    "parameters": {
        "train.optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    },
    "run_cap": 3,
    "tracking": {"wandb": {"mode": "offline", "images": 1}},
}


def write_sweep(folder: Path, **changes) -> Path:
    path = folder / "sweep.yaml"
    content = TINY | {"storage": str(folder / "runs")} | changes
    path.write_text("# a test's sweep\n" + yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def write_tiny():
    """Writes the tiny sweep with changes into a folder."""
    return write_sweep


@pytest.fixture
def sweep_file(tmp_path):
    """Writes the tiny sweep with changes to a file, storing into tmp_path/runs."""
    return functools.partial(write_sweep, tmp_path)


LR = "train.optimizer.lr"


@pytest.fixture(scope="session")
def finished(tmp_path_factory, private_surroundings):
    """A run of six trials of one worker, one of which diverges, with a final on two workers."""
    file = write_sweep(
        tmp_path_factory.mktemp("finished"),
        parameters={
            LR: {"values": [1.0e-4, 3.0e-3, 1.0e-2, 1.0e30]},
            "train.augment.scale": {"values": [[1.0, 1.0], [0.75, 1.5]]},
        },
        start_points=[{LR: 1.0e30}, {LR: 1.0e-2, "train.augment.scale": [0.75, 1.5]}],
        early_terminate={"type": "asha", "min_iter": 1, "eta": 3},
        run_cap=6,
        final={"seeds": [7], "workers": 2},
    )
    config = load_sweep(file)
    return config, run_sweep(config)


@pytest.fixture
def segray(tmp_path):
    """Runs the command line as a person does; returns the finished process."""

    def run(*arguments, timeout=300, **options) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "segray", *map(str, arguments)]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            **({"cwd": tmp_path} | options),
        )

    return run


@pytest.fixture
def leaderboard():
    """The rows of a run's leaderboard.csv, by trial."""

    def read(run: Path) -> dict[str, dict[str, str]]:
        with (run / "leaderboard.csv").open() as file:
            return {row["trial"]: row for row in csv.DictReader(file)}

    return read


@pytest.fixture
def records():
    """The lines of a trial's metrics.jsonl."""

    def read(trial: Path) -> list[dict]:
        return [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]

    return read


@pytest.fixture
def start():
    """Starts `segray sweep FILE ...` and returns the process."""

    def begin(file: Path, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "segray", "sweep", str(file), *arguments]
        return subprocess.Popen(
            command, cwd=file.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return begin


@pytest.fixture
def kill_when():
    """SIGKILL for a driver once `reached()`; it must not have ended by then."""

    def kill(process: subprocess.Popen, reached) -> None:
        while not reached():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

    return kill


@pytest.fixture
def without_time():
    """Every trial's records in a run folder, less the measured times."""

    def read(run: Path) -> dict[str, list[dict]]:
        return {
            str(file.parent.relative_to(run)): [
                {k: value for k, value in json.loads(line).items() if not k.startswith("time/")}
                for line in file.read_text().splitlines()
            ]
            for file in sorted(run.glob("*/*/metrics.jsonl"))
        }

    return read

"""Trials that go wrong, for real: memory that runs out, a training that diverges."""

import re
import resource
import threading
import time
from pathlib import Path

import pytest
import yaml

from segray.config import load_sweep
from segray.sweep.runner import run_sweep
from segray.sweep.trial_files import read_outcome

LR = "train.optimizer.lr"
ROOM = 250 * 2**20


def process_of(trial: Path) -> int | None:
    """The process that writes a trial's log."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if trial / "log.txt" in [file.readlink() for file in (process / "fd").iterdir()]:
                return int(process.name)
        except OSError:
            continue
    return None


def starve(trial: Path) -> None:
    """Let the trial's process have little more memory than it begins with: room for its threads,
    none for a step's tensors.
    """
    while (pid := process_of(trial)) is None:
        time.sleep(0.01)
    status = Path(f"/proc/{pid}/status").read_text()
    size = 1024 * int(re.search(r"VmSize:\s+(\d+)", status)[1])
    resource.prlimit(pid, resource.RLIMIT_AS, (size + ROOM, size + ROOM))


@pytest.mark.parametrize("way", ["stop", "accumulate"])
def test_out_of_memory_is_named_and_if_asked_tried_once_more_with_half_a_pass(
    way, sweep_file, leaderboard
):
    file = sweep_file(
        model={"name": "unet", "width": 16, "depth": 2},
        method="random",
        run_cap=2,
        failure={"on_out_of_memory": way},
        resources={"max_concurrent": 1},
        tracking={"wandb": {"mode": "disabled"}},
    )
    changes = [
        "data.size=[256,512]",
        "train.epochs=1",
        "data.train_images=16",
        "train.batch_size=8",
    ]
    config = load_sweep(file, changes)
    folder = Path(config.storage) / config.name
    thief = threading.Thread(target=starve, args=(folder / "trials/000",))
    thief.start()
    run_sweep(config)
    thief.join()
    rows = leaderboard(folder)
    assert rows["001"]["state"] == "finished"
    story = (folder / "trials/000/error.txt").read_text()
    assert story.startswith("out of memory (train.batch_size=8, 256x512): ")
    outcome = read_outcome(folder / "trials/000")
    kept = yaml.safe_load((folder / "trials/000/config.yaml").read_text())
    if way == "stop":
        assert outcome.state == "failed"
        assert outcome.reason.startswith("out of memory (train.batch_size=8")
        assert kept["train"]["accumulate"] == 1
    else:
        assert outcome.state == "finished"
        assert outcome.epochs == 1
        assert outcome.note.endswith("it went on with train.accumulate=2")
        assert kept["train"]["accumulate"] == 2
        assert kept["train"]["batch_size"] == 8


@pytest.mark.parametrize("way", ["stop", "keep"])
def test_the_best_epoch_of_a_trial_that_diverged_counts_only_if_asked(way, sweep_file, leaderboard):
    """At 1000 AdamW's weight decay alone grows the weights by a factor in each step."""
    file = sweep_file(
        parameters={LR: {"values": [1.0e3, 1.0e-6]}},
        method="grid",
        metric={"name": "val/accuracy"},
        train={"epochs": 40, "batch_size": 4, "schedule": {"name": "constant"}},
        failure={"on_divergence": way},
        tracking={"wandb": {"mode": "disabled"}},
    )
    folder = run_sweep(load_sweep(file)).folder
    rows = leaderboard(folder)
    assert rows["000"]["state"] == "diverged"
    value, other = (float(rows[trial]["best_value"]) for trial in ("000", "001"))
    best = "000" if way == "keep" and value > other else "001"
    assert next(iter(rows)) == best
    assert read_outcome(folder / "trials/000").kept == (way == "keep")

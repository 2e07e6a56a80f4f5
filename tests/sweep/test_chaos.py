"""Kills at random moments, all over a sweep; SEGRAY_CHAOS_KILLS=30 gives the long form."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from segray.config import load_sweep
from segray.sweep.runner import run_sweep

KILLS = int(os.environ.get("SEGRAY_CHAOS_KILLS", "5"))
EPOCHS = max(30, 5 * KILLS)  # of a trial: the sweep has to outlast the kills
CHAOS = Path(__file__).with_name("chaos.py")
APART = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
LONG = {
    "train": {"epochs": EPOCHS, "batch_size": 4, "optimizer": {"lr": 1e-2}},
    "run_cap": 6,
    # Weights of all are kept, and none has failed for good when it is killed again and again.
    "keep_trials": 6,
    "failure": {"retries": 100},
    "final": {"seeds": [7], "workers": 2},
    "tracking": {"wandb": {"mode": "disabled"}},
}


@pytest.fixture
def chaos():
    """Runs chaos.py on a sweep file; returns what it killed. Skips where it cannot be apart."""
    if subprocess.run([*APART, "true"], capture_output=True).returncode:
        pytest.skip(
            "no PID namespace to be had here, which takes root: other processes of Ray "
            "on this machine would be killed"
        )

    def run(file: Path, seed: int) -> dict:
        command = [*APART, sys.executable, str(CHAOS), str(file), str(KILLS), str(seed)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=file.parent, timeout=60 + 60 * KILLS
        )
        said = (file.parent / "output.txt").read_text()
        assert done.returncode == 0, f"{done.stderr}\n{said}"
        assert "Traceback" not in said
        return json.loads(done.stdout)

    return run


def records_of(run: Path) -> dict[str, list[dict]]:
    """Every training's records, less the measured times."""
    return {
        str(file.parent.relative_to(run)): [
            {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
            for line in file.read_text().splitlines()
        ]
        for file in sorted(run.glob("*/*/metrics.jsonl"))
    }


def told_of(study: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(study)))
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [trial for trial in trials if "trial" in trial.user_attrs]


@pytest.mark.slow
@pytest.mark.timeout(120 + 120 * KILLS)
def test_killed_all_over_it_equals_the_undisturbed_sweep_to_the_bit(
    chaos, sweep_file, leaderboard, tmp_path
):
    file = sweep_file(method="random", **LONG)
    killed = chaos(file, seed=1)
    print(killed)
    assert len(killed["killed"]) == KILLS
    cut = tmp_path / "runs/tiny"
    whole = run_sweep(load_sweep(file, ["name=whole"])).folder
    assert records_of(cut) == records_of(whole)
    boards = [leaderboard(run) for run in (cut, whole)]
    assert list(boards[0]) == list(boards[1])
    for one, other in zip(*(board.values() for board in boards), strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}
    tests = [json.loads((run / "final/seed_7/metrics.json").read_text()) for run in (cut, whole)]
    assert tests[0] == tests[1]


@pytest.mark.slow
@pytest.mark.timeout(120 + 120 * KILLS)
def test_killed_all_over_with_tpe_and_asha_nothing_is_lost_or_doubled(
    chaos, sweep_file, leaderboard, tmp_path
):
    asha = {"type": "asha", "min_iter": 3, "eta": 2}
    file = sweep_file(method="tpe", early_terminate=asha, **(LONG | {"run_cap": 8}))
    killed = chaos(file, seed=2)
    print(killed)
    assert len(killed["killed"]) == KILLS
    run = tmp_path / "runs/tiny"
    rows = leaderboard(run)
    names = {f"{k:03d}" for k in range(8)}
    assert set(rows) == {path.name for path in (run / "trials").iterdir()} == names
    assert {row["state"] for row in rows.values()} <= {"finished", "pruned"}
    for trial, lines in records_of(run).items():
        assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
        if trial.startswith("trials"):
            row = rows[Path(trial).name]
            assert int(row["epochs"]) == len(lines)
            assert float(row["best_value"]) == max(line["value"] for line in lines)
            assert row["state"] == "pruned" or len(lines) == EPOCHS
    trials = told_of(run / "study.journal", "tiny")
    assert [trial.user_attrs["trial"] for trial in trials] == sorted(names)
    for trial in trials:
        row = rows[trial.user_attrs["trial"]]
        assert trial.state.name == ("PRUNED" if row["state"] == "pruned" else "COMPLETE")
        assert trial.value == float(row["best_value"])

import dataclasses
import itertools
import json
import os
import signal
import time

import pytest
import ray

from segray.config.schema import SweepConfig
from segray.sweep import space
from segray.sweep.board import Board, find_board, open_board
from segray.sweep.cluster import ray_cluster
from segray.sweep.records import failed_outcome, write_outcome

ASHA = {"type": "asha", "min_iter": 2, "eta": 2}
RULES = [
    ASHA,
    {"type": "hyperband", "min_iter": 1, "eta": 2},
    {"type": "median", "min_iter": 1, "min_trials": 2},
]


def pruner(rule):
    return space.pruner(
        SweepConfig.model_validate(
            {
                "name": "s",
                "model": {"name": "unet"},
                "data": {"format": "scenes"},
                "train": {"epochs": 8},
                "early_terminate": rule,
            }
        )
    )


@pytest.fixture
def board(tmp_path):
    def make(rule=ASHA, direction="maximize", deadline=None):
        return Board(pruner(rule), direction, deadline, tmp_path)

    return make


@pytest.fixture
def record(tmp_path):
    """Writes what a trial that reported an epoch leaves, in the order of the calls."""
    clock = itertools.count()

    def write(trial, epoch, objective, state=None):
        folder = tmp_path / trial
        folder.mkdir(exist_ok=True)
        line = {"epoch": epoch, "objective": objective, "best": objective, "value": objective}
        line |= {"best_epoch": epoch, "time/ended": next(clock), "time/epoch_s": 1.0}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if state is not None:
            write_outcome(folder, dataclasses.replace(failed_outcome(folder, ""), state=state))

    return write


def run(judge, trial, values):
    """Posts epoch after epoch until the trial is asked to end: (epochs, why)."""
    for epoch, value in enumerate(values, start=1):
        if verdict := judge.report(trial, epoch, value):
            return epoch, verdict
    return len(values), None


def test_asha_stops_the_worse_half_at_the_rungs_and_never_before_the_first(board):
    judge = board()
    assert run(judge, "000", [0.1, 0.5, 0.5, 0.6]) == (4, None)
    assert run(judge, "001", [0.0, 0.4, 0.9, 0.9]) == (2, "pruned")
    assert run(judge, "002", [0.0, 0.7, 0.7, 0.7]) == (4, None)


def test_a_smaller_loss_is_better_when_minimizing(board):
    judge = board(direction="minimize")
    assert run(judge, "000", [1.0, 0.5, 0.5]) == (3, None)
    assert run(judge, "001", [1.0, 0.9, 0.1]) == (2, "pruned")
    assert run(judge, "002", [1.0, 0.2, 0.2]) == (3, None)


def test_past_the_deadline_every_trial_ends_for_the_budget(board):
    assert board(deadline=time.time() - 1).report("000", 1, 0.5) == "budget"
    assert board(deadline=time.time() + 60).report("000", 1, 0.5) is None


def test_a_closed_board_ends_every_trial(board):
    judge = board()
    judge.close()
    assert judge.report("000", 1, 0.5) == "budget"


def test_what_is_on_record_fills_the_rungs(board, record):
    for epoch, value in enumerate([0.1, 0.5, 0.5, 0.6], start=1):
        record("000", epoch, value)
    record("002", 1, 0.0)
    judge = board(deadline=time.time() + 60)
    assert run(judge, "001", [0.0, 0.4]) == (2, "pruned")
    assert judge.report("002", 1, 0.0) is None  # told again, as by a trial that goes on
    assert judge.report("002", 2, 0.7) is None


def test_an_epoch_posted_again_is_told_the_same(board):
    judge = board()
    run(judge, "000", [0.1, 0.5])
    assert judge.report("001", 2, 0.1) == "pruned"
    assert judge.report("001", 2, 0.1) == "pruned"
    assert judge.report("001", 1, 0.1) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["type"])
def test_opened_anew_at_any_moment_it_judges_as_one_that_was_there_all_the_time(
    rule, board, record
):
    """Six trials that begin one after the other, three at a time, and whose values cross."""
    judge = board(rule)
    done = dict.fromkeys([f"{k:03d}" for k in range(6)], 0)
    told = []
    for moment in range(24):
        for trial, epoch in list(done.items()):
            if moment < 3 * int(trial):
                continue
            epoch += 1
            done[trial] = epoch
            value = 0.1 * epoch * (6 - int(trial)) if epoch < 4 else 1 / (int(trial) + epoch)
            verdict = judge.report(trial, epoch, value)
            ended = "pruned" if verdict else "finished" if epoch == 8 else None
            record(trial, epoch, value, ended)
            assert board(rule).report(trial, epoch, value) == verdict
            told.append(verdict)
            if ended == "finished":
                judge.finish(trial)
            if ended:
                del done[trial]
    assert not done
    assert "pruned" in told


def test_a_board_whose_process_is_killed_comes_back_with_all_it_knew(board, record, tmp_path):
    with ray_cluster():
        opened = open_board("killed", pruner(ASHA), "maximize", None, tmp_path)
        handle = find_board("killed")
        for epoch, value in enumerate([0.1, 0.5, 0.5], start=1):
            record("000", epoch, value)
            assert ray.get(handle.report.remote("000", epoch, value)) is None
        pid = ray.get(handle.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert ray.get(handle.report.remote("001", 2, 0.4), timeout=60) == "pruned"
        assert ray.get(handle.__ray_call__.remote(lambda self: os.getpid())) != pid
        ray.kill(opened)

import dataclasses
import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import ray

from segray.config.schema import Hyperband, SweepConfig
from segray.sweep import space
from segray.sweep.board import Board, find_board, open_board
from segray.sweep.cluster import ray_cluster
from segray.sweep.trial_files import failed_outcome, write_outcome

EPOCHS = 9
RULES = {
    "asha": {"type": "asha", "min_iter": 2, "eta": 2},
    "hyperband": {"type": "hyperband", "min_iter": 1, "eta": 2},
    "median": {"type": "median", "min_iter": 2, "min_trials": 3},
    "none": None,
}


NOTHING = Path("no/such/folder")


def pruner(rule):
    config = SweepConfig.model_validate(
        {
            "name": "s",
            "model": {"name": "unet"},
            "data": {"format": "scenes"},
            "train": {"epochs": EPOCHS},
            "early_terminate": RULES[rule],
        }
    )
    return space.pruner(config)


def board(direction="maximize", deadline=None, rule="asha", trials=NOTHING):
    return Board(pruner(rule), direction, deadline, trials)


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


def run(board, trial, values):
    """Posts epoch after epoch until the trial is asked to end: (epochs, why)."""
    for epoch, value in enumerate(values, start=1):
        if verdict := board.report(trial, epoch, value):
            return epoch, verdict
    board.finish(trial)
    return len(values), None


def test_asha_stops_the_worse_half_at_the_rungs_and_never_before_the_first():
    judge = board()
    assert run(judge, "000", [0.1, 0.5, 0.5, 0.6]) == (4, None)
    assert run(judge, "001", [0.0, 0.4, 0.9, 0.9]) == (2, "pruned")
    assert run(judge, "002", [0.0, 0.7, 0.7, 0.7]) == (4, None)


def test_a_smaller_loss_is_better_when_minimizing():
    judge = board("minimize")
    assert run(judge, "000", [1.0, 0.5, 0.5]) == (3, None)
    assert run(judge, "001", [1.0, 0.9, 0.1]) == (2, "pruned")
    assert run(judge, "002", [1.0, 0.2, 0.2]) == (3, None)


def test_the_median_is_that_of_finished_trials_that_came_so_far():
    judge = board(rule="median")
    assert run(judge, "000", [0.1, 0.1, 0.1, 0.1]) == (4, None)
    assert judge.report("003", 1, 0.0) is None
    assert run(judge, "001", [0.5, 0.5, 0.5, 0.5]) == (4, None)
    assert run(judge, "002", [0.2, 0.2, 0.2]) == (3, None)  # the third that finishes
    assert judge.report("003", 2, 0.15) == "pruned"
    assert judge.report("004", 1, 0.0) is None  # too early
    assert judge.report("004", 2, 0.2) is None  # the median itself
    assert judge.report("004", 3, 0.2) is None
    assert judge.report("004", 4, 0.2) is None  # two came to this epoch: too few


def test_a_smaller_loss_is_better_for_the_median_too():
    judge = board("minimize", rule="median")
    for trial in ("000", "001", "002"):
        assert run(judge, trial, [1.0, 0.5]) == (2, None)
    assert run(judge, "003", [1.0, 0.6]) == (2, "pruned")
    assert run(judge, "004", [1.0, 0.4]) == (2, None)


def test_hyperband_spreads_trials_over_brackets_by_their_number_alone():
    """Whatever the order: one that is worse than all before it ends at its bracket's first rung,
    and of many trials each bracket has the share that is told of it.
    """
    numbers = list(range(200))
    ends = []
    for seed in (0, 1):
        random.Random(seed).shuffle(numbers)
        judge = board(rule="hyperband")
        for number in range(200, 230):  # every bracket has its best
            run(judge, f"{number:03d}", [1.0] * EPOCHS)
        ended = {}
        for worse, number in enumerate(numbers):
            ended[number], _ = run(judge, f"{number:03d}", [-float(worse)] * EPOCHS)
        ends.append(ended)
    assert ends[0] == ends[1]
    parts = space.brackets(Hyperband(**RULES["hyperband"]), EPOCHS)
    assert [rungs for _, rungs in parts] == [[1, 2, 4, 8], [2, 4, 8], [4, 8], [8]]
    for share, (first, *_) in parts:
        assert list(ends[0].values()).count(first) / 200 == pytest.approx(share, abs=0.08)


def test_past_the_deadline_every_trial_ends_for_the_budget():
    assert board(deadline=time.time() - 1).report("000", 1, 0.5) == "budget"
    assert board(deadline=time.time() + 60).report("000", 1, 0.5) is None


def test_a_closed_board_ends_every_trial():
    judge = board()
    judge.close()
    assert judge.report("000", 1, 0.5) == "budget"


def test_without_a_rule_a_trial_of_any_name_goes_on():
    judge = board(rule="none")
    assert run(judge, "final-seed7", [0.5, 0.1]) == (2, None)


def test_what_is_on_record_fills_the_rungs(record, tmp_path):
    for epoch, value in enumerate([0.1, 0.5, 0.5, 0.6], start=1):
        record("000", epoch, value)
    record("002", 1, 0.0)
    judge = board(deadline=time.time() + 60, trials=tmp_path)
    assert run(judge, "001", [0.0, 0.4]) == (2, "pruned")
    assert judge.report("002", 1, 0.0) is None  # told again, as by a trial that goes on
    assert judge.report("002", 2, 0.7) is None


def test_an_epoch_posted_again_is_told_the_same():
    judge = board()
    run(judge, "000", [0.1, 0.5])
    assert judge.report("001", 2, 0.1) == "pruned"
    assert judge.report("001", 2, 0.1) == "pruned"
    assert judge.report("001", 1, 0.1) is None


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median"])
def test_opened_anew_at_any_moment_it_judges_as_one_that_was_there_all_the_time(
    rule, record, tmp_path
):
    """Trials that begin one after the other, three at a time, and whose values cross."""
    judge = board(rule=rule)
    done = dict.fromkeys([f"{k:03d}" for k in range(7)], 0)
    told = []
    for moment in range(40):
        for trial, epoch in list(done.items()):
            if moment < 3 * int(trial):
                continue
            epoch += 1
            done[trial] = epoch
            value = 0.1 * epoch * (7 - int(trial)) if epoch < 4 else 1 / (int(trial) + epoch)
            verdict = judge.report(trial, epoch, value)
            ended = "pruned" if verdict else "finished" if epoch == EPOCHS else None
            record(trial, epoch, value, ended)
            assert board(rule=rule, trials=tmp_path).report(trial, epoch, value) == verdict
            told.append(verdict)
            if ended == "finished":
                judge.finish(trial)
            if ended:
                del done[trial]
    assert not done
    assert "pruned" in told


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in a store"])
def test_a_board_whose_process_is_killed_comes_back_with_all_it_knew(
    elsewhere, record, bucket, tmp_path
):
    trials, store = (NOTHING, f"{bucket.url}/trials") if elsewhere else (tmp_path, None)
    with ray_cluster():
        opened = open_board("killed", pruner("asha"), "maximize", None, trials, store)
        handle = find_board("killed")
        for epoch, value in enumerate([0.1, 0.5, 0.5], start=1):
            record("000", epoch, value)
            assert ray.get(handle.report.remote("000", epoch, value)) is None
        bucket.put_tree(tmp_path, "trials")
        pid = ray.get(handle.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        assert ray.get(handle.report.remote("001", 2, 0.4), timeout=60) == "pruned"
        assert ray.get(handle.__ray_call__.remote(lambda self: os.getpid())) != pid
        ray.kill(opened)

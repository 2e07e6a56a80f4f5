import itertools
import random
import time

import pytest

from segray.config.schema import Hyperband, SweepConfig
from segray.sweep import space
from segray.sweep.board import Board

EPOCHS = 9
RULES = {
    "asha": {"type": "asha", "min_iter": 2, "eta": 2},
    "hyperband": {"type": "hyperband", "min_iter": 1, "eta": 2},
    "median": {"type": "median", "min_iter": 2, "min_trials": 3},
    "none": None,
}


def board(direction="maximize", deadline=None, past=None, rule="asha"):
    config = SweepConfig.model_validate(
        {
            "name": "s",
            "model": {"name": "unet"},
            "data": {"format": "scenes"},
            "train": {"epochs": EPOCHS},
            "early_terminate": RULES[rule],
        }
    )
    return Board(space.pruner(config), direction, deadline, past or {})


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


def test_what_was_reported_before_fills_the_rungs():
    """Another board, opened with the curves so far, judges as the first one would have."""
    past = {"000": ([(1, 0.1), (2, 0.5), (3, 0.5), (4, 0.6)], True), "002": ([(1, 0.0)], False)}
    judge = board(past=past)
    assert run(judge, "001", [0.0, 0.4]) == (2, "pruned")
    assert judge.report("002", 1, 0.0) is None  # told again, as by a trial that goes on
    assert judge.report("002", 2, 0.7) is None
    assert board().report("001", 2, 0.4) is None  # without the past there is nobody to lose to


def test_a_deadline_does_not_keep_the_past_out():
    past = {"000": ([(1, 0.1), (2, 0.5)], True)}
    judge = board(deadline=time.time() + 60, past=past)
    assert run(judge, "001", [0.0, 0.4]) == (2, "pruned")


@pytest.mark.parametrize("rule", ["asha", "hyperband", "median"])
def test_after_a_replay_every_verdict_is_the_same(rule):
    """Two to four trials side by side, in any order; at each report the sweep may be killed, and a
    new board opened with what was reported and who had finished.
    """
    verdicts = set()
    for seed in range(8):
        chance = random.Random(seed)
        judge, past, running = board(rule=rule), {}, []
        waiting = (f"{number:03d}" for number in itertools.count())
        curves = {}
        for _ in range(90):
            if len(running) < chance.randint(2, 4):
                running.append(next(waiting))
                curves[running[-1]] = sorted(chance.random() for _ in range(EPOCHS))
                past[running[-1]] = ([], False)
            if chance.random() < 0.1:
                judge = board(rule=rule, past=past)
            reference = board(rule=rule, past=dict(reversed(past.items())))
            trial = chance.choice(running)
            reported, _ = past[trial]
            epoch = len(reported) + 1
            value = curves[trial][epoch - 1]
            verdict = judge.report(trial, epoch, value)
            assert verdict == reference.report(trial, epoch, value)
            verdicts.add(verdict)
            reported.append((epoch, value))
            if verdict or epoch == EPOCHS:
                running.remove(trial)
            if epoch == EPOCHS and not verdict:
                past[trial] = (reported, True)
                judge.finish(trial)
    assert verdicts == {None, "pruned"}

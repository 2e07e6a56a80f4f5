import time

from segray.config.schema import SweepConfig
from segray.sweep import space
from segray.sweep.board import Board


def board(direction="maximize", deadline=None, past=None):
    config = SweepConfig.model_validate(
        {
            "name": "s",
            "model": {"name": "unet"},
            "data": {"format": "scenes"},
            "early_terminate": {"type": "asha", "min_iter": 2, "eta": 2},
        }
    )
    return Board(space.pruner(config), direction, deadline, past or {})


def run(board, trial, values):
    """Posts epoch after epoch until the trial is asked to end: (epochs, why)."""
    for epoch, value in enumerate(values, start=1):
        if verdict := board.report(trial, epoch, value):
            return epoch, verdict
    return len(values), None


def test_asha_stops_the_worse_half_at_the_rungs_and_never_before_the_first():
    judge = board()
    assert run(judge, "a", [0.1, 0.5, 0.5, 0.6]) == (4, None)
    assert run(judge, "b", [0.0, 0.4, 0.9, 0.9]) == (2, "pruned")
    assert run(judge, "c", [0.0, 0.7, 0.7, 0.7]) == (4, None)


def test_a_smaller_loss_is_better_when_minimizing():
    judge = board("minimize")
    assert run(judge, "a", [1.0, 0.5, 0.5]) == (3, None)
    assert run(judge, "b", [1.0, 0.9, 0.1]) == (2, "pruned")
    assert run(judge, "c", [1.0, 0.2, 0.2]) == (3, None)


def test_past_the_deadline_every_trial_ends_for_the_budget():
    assert board(deadline=time.time() - 1).report("a", 1, 0.5) == "budget"
    assert board(deadline=time.time() + 60).report("a", 1, 0.5) is None


def test_a_closed_board_ends_every_trial():
    judge = board()
    judge.close()
    assert judge.report("a", 1, 0.5) == "budget"


def test_what_was_reported_before_fills_the_rungs():
    """Another board, opened with the curves so far, judges as the first one would have."""
    past = {"a": [(1, 0.1), (2, 0.5), (3, 0.5), (4, 0.6)], "c": [(1, 0.0)]}
    judge = board(past=past)
    assert run(judge, "b", [0.0, 0.4]) == (2, "pruned")
    assert judge.report("c", 1, 0.0) is None  # told again, as by a trial that goes on
    assert judge.report("c", 2, 0.7) is None
    assert board().report("b", 2, 0.4) is None  # without the past there is nobody to lose to


def test_a_deadline_does_not_keep_the_past_out():
    past = {"a": [(1, 0.1), (2, 0.5)]}
    judge = board(deadline=time.time() + 60, past=past)
    assert run(judge, "b", [0.0, 0.4]) == (2, "pruned")

"""The search on its own: real studies in a run folder, and outcomes that no training made."""

import itertools
import json
import math

import optuna
import pytest
import torch
from optuna.trial import TrialState

from segray.config import SweepConfig, satisfied
from segray.sweep import space
from segray.sweep.board import Board
from segray.sweep.placement import Plan
from segray.sweep.records import RunFolder
from segray.sweep.search import Search
from segray.sweep.trial_files import FINISHED, TrialResult, write_outcome
from segray.train import Outcome, checkpoint

optuna.logging.set_verbosity(optuna.logging.ERROR)
EPOCHS, TRIALS = 6, 18
clock = itertools.count()
LR, FLIP, BLUR = "train.optimizer.lr", "train.augment.flip", "train.augment.blur"
PATIENCE, NAME = "train.schedule.patience", "train.schedule.name"
PARAMETERS = {
    LR: {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
    FLIP: {"min": 0.0, "max": 0.5},
    BLUR: {"min": 0.0, "max": 0.5, "q": 0.1},
    NAME: {"values": ["poly", "plateau"]},
    PATIENCE: {"min": 1, "max": 9, "when": {NAME: "plateau"}},
}


class Sweep:
    """A sweep of trials one after the other, each over at once; it can be killed at any place."""

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        self.take_up()

    def take_up(self):
        """As a new process does."""
        self.search = Search(self.config, self.folder, Plan(1, 1, 0, 1))
        self.board = Board(space.pruner(self.config), "maximize", None, self.folder.path / "trials")

    def draw_and_die(self, number):
        """What the search does for its next trial, until the trial has its values."""
        fixed = self.search.fixed[number] if number < len(self.search.fixed) else {}
        for attempt in range(1000):
            self.search.study.sampler = space.sampler(self.config, number, fixed, attempt)
            trial = self.search.study.ask()
            if satisfied(self.config, space.suggest(trial, self.config.parameters)):
                return
            trial.set_user_attr("refused", [number, attempt])
            self.search.study.tell(trial, state=TrialState.FAIL)

    def end(self, spec):
        """The nearer to lr 1e-2 and flip 0.2 a trial is, the better. It diverges at a large lr,
        crashes at a large flip, and the board may stop it.
        """
        made = spec.assignment
        best = 1 - math.log10(made[LR] / 1e-2) ** 2 / 4 - (made[FLIP] - 0.2) ** 2
        curve = [best * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)]
        state = "finished"
        if made[FLIP] > 0.45:
            state, curve = "failed", []
        elif made[LR] > 5e-2:
            state, curve = "diverged", curve[:1]
        for epoch, value in enumerate(curve, start=1):
            if self.board.report(spec.id, epoch, value):
                state, curve = "pruned", curve[:epoch]
                break
        records = [
            {"epoch": e, "objective": value, "time/ended": next(clock), "time/epoch_s": 1.0}
            for e, value in enumerate(curve, start=1)
        ]
        spec.folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (spec.folder / "metrics.jsonl").write_text(lines)
        last = curve[-1] if curve else None
        outcome = Outcome(state, "", last, last, len(curve) or None, last, len(curve), 1.0)
        write_outcome(spec.folder, outcome)
        return TrialResult(spec.id, spec.folder, made, outcome)

    def book(self, result):
        self.search.end(result)
        if result.outcome.state in FINISHED:
            self.board.finish(result.id)


def run(sweep, kills=()):
    """What each trial was given and came to.

    At the numbers in `kills` the sweep is killed in the middle of a draw, then before the drawn
    trial begins, then when the trial's end is on disk but not booked.
    """
    for number in range(TRIALS):
        if number in kills:
            sweep.draw_and_die(number)
            sweep.take_up()
            assert sweep.search.next().id == f"{number:03d}"
            sweep.take_up()
        spec = sweep.search.next()
        assert spec.id == f"{number:03d}"
        result = sweep.end(spec)
        if number in kills:
            sweep.take_up()
        else:
            sweep.book(result)
    assert sweep.search.next() is None
    return [
        (result.id, result.assignment, result.outcome.state, result.outcome.objective)
        for result in sorted(sweep.search.results, key=lambda result: result.id)
    ]


RULES = {
    "asha": {"type": "asha", "min_iter": 2},
    "hyperband": {"type": "hyperband", "min_iter": 1, "eta": 2},
    "median": {"type": "median", "min_iter": 2},
    "none": None,
}


@pytest.fixture
def begin(tmp_path):
    """A sweep at its beginning, by its name and method."""

    def make(name, method, rule="none"):
        config = SweepConfig.model_validate(
            {
                "name": name,
                "seed": 2,  # with which gp's draw for trial 7 is refused
                "storage": str(tmp_path),
                "model": {"name": "unet"},
                "data": {"format": "scenes"},
                "method": method,
                "train": {"epochs": EPOCHS},
                "parameters": PARAMETERS,
                "require": f"{FLIP} + {BLUR} < 0.6",
                "start_points": [{FLIP: 0.4}, {LR: 1e-3, NAME: "poly"}],
                "early_terminate": RULES[rule],
                "budget": {"max_failed_trials": TRIALS},
                "run_cap": TRIALS,
            }
        )
        return Sweep(config, RunFolder.create(config))

    return make


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ("random", "hyperband"),
        ("tpe", "median"),
        ("gp", "asha"),
        ("cmaes", "median"),
        ("qmc", "hyperband"),
    ],
)
def test_a_sweep_that_was_killed_draws_and_stops_as_one_that_was_not(begin, method, rule):
    whole = run(begin("whole", method, rule))
    states = {state for _, _, state, _ in whole}
    assert states >= {"finished", "pruned"} if rule != "none" else {"finished"}
    assert len({str(made) for _, made, _, _ in whole}) == TRIALS
    assert run(begin("cut", method, rule), kills=(0, 7, 12)) == whole


@pytest.mark.parametrize("method", ["gp", "cmaes"])
def test_trials_side_by_side_differ_and_so_does_what_comes_after_a_kill(begin, method):
    sweep = begin("whole", method)
    for _ in range(8):
        sweep.book(sweep.end(sweep.search.next()))
    side_by_side = [sweep.search.next() for _ in range(3)]
    sweep.take_up()
    again = [sweep.search.next() for _ in range(5)]
    assert [spec.assignment for spec in again[:3]] == [spec.assignment for spec in side_by_side]
    assert len({str(spec.assignment) for spec in again}) == 5


def test_what_began_and_may_not_go_on_is_booked_as_it_stands(begin):
    """The hours were used up while the sweep was down."""
    sweep = begin("late", "random")
    sweep.book(sweep.end(sweep.search.next()))
    halfway, drawn = sweep.search.next(), sweep.search.next()
    halfway.folder.mkdir(parents=True)
    line = {"epoch": 1, "objective": 0.9, "best": 0.9, "best_epoch": 1, "value": 0.9}
    line |= {"time/ended": 0.0, "time/epoch_s": 5.0}
    beyond = line | {"epoch": 2, "best": 0.95, "best_epoch": 2}  # killed before its checkpoint
    lines = "".join(json.dumps(record) + "\n" for record in (line, beyond))
    (halfway.folder / "metrics.jsonl").write_text(lines)
    last = halfway.folder / "checkpoint" / "last.safetensors"
    checkpoint.save(last, {"progress": {"epoch": 1}}, torch.nn.Linear(1, 1))
    sweep.folder.write_seconds_at_work(3601)
    budget = sweep.config.budget.model_copy(update={"hours": 1.0})
    late = Search(
        sweep.config.model_copy(update={"budget": budget}), sweep.folder, Plan(1, 1, 0, 1)
    )
    assert late.closed
    assert late.next() is None
    assert late.refusal == "budget.hours=1 is used up"
    late.end_unfinished()
    assert {result.id: result.outcome.state for result in late.results} == {
        "000": late.results[0].outcome.state,
        halfway.id: "budget",
    }
    assert late.results[-1].outcome.best_value == 0.9
    assert late.results[-1].outcome.epochs == 1
    assert not drawn.folder.exists()  # it had not begun, and may yet

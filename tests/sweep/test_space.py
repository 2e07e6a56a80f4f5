import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config import Parameter
from segray.config.schema import SweepConfig
from segray.sweep import space

SCALES = ([1.0, 1.0], [0.5, 2.0])
PARAMETERS = {
    "train.optimizer.lr": Parameter(distribution="log_uniform_values", min=1e-5, max=1e-2),
    "train.early_stop.patience": Parameter(values=(2, 3, 5)),
    "train.augment.scale": Parameter(values=SCALES),
    "train.epochs": Parameter(min=3, max=9),
    "train.augment.flip": Parameter(min=0.0, max=0.5),
    "train.batch_size": Parameter(value=8),
}


def config(**changes):
    return SweepConfig.model_validate(
        {
            "name": "s",
            "model": {"name": "unet"},
            "data": {"format": "scenes"},
            "parameters": PARAMETERS,
            **changes,
        }
    )


def draw(study):
    trial = study.ask()
    return trial, space.suggest(trial, PARAMETERS)


@given(st.integers(0, 10_000))
def test_what_is_drawn_lies_in_the_space_and_keeps_its_type(seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    _, assignment = draw(study)
    assert assignment.keys() == PARAMETERS.keys()
    for name, value in assignment.items():
        assert PARAMETERS[name].contains(value), (name, value)
    assert assignment["train.augment.scale"] in SCALES
    assert type(assignment["train.epochs"]) is int


def test_start_points_come_first_and_leave_the_rest_to_the_sampler():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    point = {"train.optimizer.lr": 1e-3, "train.augment.scale": [0.5, 2.0]}
    study.enqueue_trial(space.enqueued(point, PARAMETERS))
    _, first = draw(study)
    assert {name: first[name] for name in point} == point
    assert first.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_draws_the_same_trials(method):
    def sequence():
        study = optuna.create_study(sampler=space.sampler(config(method=method, seed=3)))
        drawn = []
        for _ in range(8):
            trial, assignment = draw(study)
            study.tell(trial, assignment["train.optimizer.lr"])
            drawn.append(assignment)
        return drawn

    assert sequence() == sequence()


def test_tpe_beats_random_on_a_known_function():
    """Mean of the best over 10 seeds of 24 trials: |log10(lr) + 3.7|, plus a penalty by choice."""

    def best(method, seed):
        study = optuna.create_study(
            sampler=space.sampler(config(method=method, seed=seed, run_cap=24))
        )
        for _ in range(24):
            trial, a = draw(study)
            distance = abs(a["train.optimizer.lr"] / 2e-4 - 1) / 50
            study.tell(trial, distance + 0.2 * (a["train.early_stop.patience"] != 3))
        return study.best_value

    seeds = range(10)
    tpe = sum(best("tpe", seed) for seed in seeds)
    assert tpe < sum(best("random", seed) for seed in seeds)


def test_no_rule_prunes_nothing():
    assert isinstance(space.pruner(config()), optuna.pruners.NopPruner)

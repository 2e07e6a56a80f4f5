import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config import Parameter, grid
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


def draw(study, config=None, number=0, fixed=None):
    """Trial `number` of a sweep, or whatever the study's own sampler draws."""
    if config is not None:
        study.sampler = space.sampler(config, number, fixed or {})
    trial = study.ask()
    return trial, space.suggest(trial, config.parameters if config else PARAMETERS)


@given(st.integers(0, 10_000))
def test_what_is_drawn_lies_in_the_space_and_keeps_its_type(seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    _, assignment = draw(study)
    assert assignment.keys() == PARAMETERS.keys()
    for name, value in assignment.items():
        assert PARAMETERS[name].contains(value), (name, value)
    assert assignment["train.augment.scale"] in SCALES
    assert type(assignment["train.epochs"]) is int


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_start_point_is_taken_and_the_rest_drawn(method):
    point = {"train.optimizer.lr": 1e-3, "train.augment.scale": [0.5, 2.0]}
    _, first = draw(optuna.create_study(), config(method=method), 0, point)
    assert {name: first[name] for name in point} == point
    assert first.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_the_same_seed_draws_the_same_trials_whoever_asks(method):
    """Also a process that takes the study up in the middle, with a sampler of its own."""

    def sequence():
        study = optuna.create_study()
        drawn = []
        for number in range(8):
            trial, assignment = draw(study, config(method=method, seed=3), number)
            study.tell(trial, assignment["train.optimizer.lr"])
            drawn.append(assignment)
        return drawn

    first = sequence()
    assert first == sequence()
    assert len({assignment["train.optimizer.lr"] for assignment in first}) == 8


def test_another_attempt_draws_anew():
    drawn = set()
    for attempt in range(5):
        study = optuna.create_study(sampler=space.sampler(config(), 0, {}, attempt))
        drawn.add(draw(study)[1]["train.optimizer.lr"])
    assert len(drawn) == 5


def test_tpe_beats_random_on_a_known_function():
    """Mean of the best over 10 seeds of 24 trials: |lr / 2e-4 - 1|, plus a penalty by choice."""

    def best(method, seed):
        study = optuna.create_study()
        for number in range(24):
            trial, a = draw(study, config(method=method, seed=seed, run_cap=24), number)
            distance = abs(a["train.optimizer.lr"] / 2e-4 - 1) / 50
            study.tell(trial, distance + 0.2 * (a["train.early_stop.patience"] != 3))
        return study.best_value

    seeds = range(10)
    tpe = sum(best("tpe", seed) for seed in seeds)
    assert tpe < sum(best("random", seed) for seed in seeds)


def test_no_rule_prunes_nothing():
    assert isinstance(space.pruner(config()), optuna.pruners.NopPruner)


CONDITIONAL = {
    "train.schedule.factor": Parameter(
        values=(0.1, 0.3), when={"train.schedule.name": "plateau", "train.schedule.patience": 1}
    ),
    "train.schedule.patience": Parameter(min=1, max=3, when={"train.schedule.name": "plateau"}),
    "train.schedule.name": Parameter(values=("poly", "plateau")),
}


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_parameter_whose_condition_fails_is_not_drawn(method):
    study = optuna.create_study()
    for number in range(30):
        trial, made = draw(study, config(method=method, parameters=CONDITIONAL), number)
        study.tell(trial, len(made))
        assert set(made) == set(trial.params)
        assert ("train.schedule.patience" in made) == (made["train.schedule.name"] == "plateau")
        assert ("train.schedule.factor" in made) == (made.get("train.schedule.patience") == 1)


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Parameter(min=0.1, max=0.5, q=0.1), {0.1, 0.2, 0.3, 0.4, 0.5}),
        (Parameter(min=1, max=7, q=3), {1, 4, 7}),
        (Parameter(min=0, max=2), {0, 1, 2}),
    ],
)
def test_steps_are_drawn_exactly(parameter, values):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert {space.suggest(study.ask(), {"x": parameter})["x"] for _ in range(100)} == values


def test_a_combination_of_the_grid_is_run_as_it_stands():
    stepped = {"train.augment.flip": Parameter(min=0.1, max=0.3, q=0.1)}
    whole = config(method="grid", parameters=CONDITIONAL | stepped)
    study = optuna.create_study()
    combinations = list(grid(whole))
    assert len(combinations) == 15
    for number, made in enumerate(combinations):
        assert draw(study, whole, number, made)[1] == made

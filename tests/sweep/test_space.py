import itertools
import math
import statistics

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from segray.config import Parameter, grid
from segray.config.schema import SweepConfig
from segray.sweep import space

optuna.logging.set_verbosity(optuna.logging.ERROR)
METHODS = ["tpe", "random", "gp", "cmaes", "qmc"]
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


@pytest.mark.parametrize("method", METHODS)
def test_a_start_point_is_taken_and_the_rest_drawn(method):
    point = {"train.optimizer.lr": 1e-3, "train.augment.scale": [0.5, 2.0]}
    _, first = draw(optuna.create_study(), config(method=method), 0, point)
    assert {name: first[name] for name in point} == point
    assert first.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("method", METHODS)
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
    assert len(set(map(str, first))) == 8


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


@pytest.mark.parametrize("method", METHODS)
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


LR, BRIGHTNESS, FLIP = "train.optimizer.lr", "train.augment.brightness", "train.augment.flip"
SMOOTH = {
    LR: Parameter(distribution="log_uniform_values", min=1e-5, max=1e-1),
    BRIGHTNESS: Parameter(min=0.0, max=1.0),
    FLIP: Parameter(min=0.0, max=1.0),
}


def smooth(**changes):
    """A sweep of the first `dims` keys of SMOOTH."""
    names = list(SMOOTH)[: changes.pop("dims", 2)]
    return config(parameters={name: SMOOTH[name] for name in names}, **changes)


def unit(assignment):
    """The point in the unit cube."""
    return [
        (math.log10(value) + 5) / 4 if name == LR else value for name, value in assignment.items()
    ]


def bowl(assignment):
    """Squared distance from the optimum at (0.43, 0.7, 0.2)."""
    pairs = zip(unit(assignment), (0.43, 0.7, 0.2), strict=False)
    return sum((x - best) ** 2 for x, best in pairs)


def drawn(config, tell=lambda study, trial, made: study.tell(trial, bowl(made))):
    """What a sweep of run_cap trials, one after the other, draws: its study, the assignments."""
    study = optuna.create_study()
    made = []
    for number in range(config.run_cap):
        trial, assignment = draw(study, config, number)
        trial.set_user_attr("trial", f"{number:03d}")
        tell(study, trial, assignment)
        made.append(assignment)
    return study, made


@pytest.mark.parametrize(
    ("method", "dims", "trials"), [("gp", 2, 10), ("tpe", 2, 30), ("cmaes", 3, 40)]
)
def test_a_method_that_learns_beats_random_on_a_known_function(method, dims, trials):
    def best(method):
        sweeps = (smooth(dims=dims, method=method, seed=seed, run_cap=trials) for seed in range(20))
        return [drawn(sweep)[0].best_value for sweep in sweeps]

    found, by_chance = best(method), best("random")
    assert sum(a < b for a, b in zip(found, by_chance, strict=True)) >= 15
    assert statistics.median(found) < statistics.median(by_chance) / 3


def test_qmc_draws_the_first_points_of_one_sequence():
    """Point for point SciPy's, each from a sampler of its own; another seed, another sequence."""
    first, second = (
        np.array(
            [unit(made) for made in drawn(smooth(dims=3, method="qmc", run_cap=32, seed=s))[1]]
        )
        for s in (0, 1)
    )
    sequence = qmc.Sobol(3, scramble=True, seed=space._seed(0, 0)).random(32)
    assert first == pytest.approx(sequence[:, [2, 0, 1]])  # by name: brightness, flip, lr
    assert not np.isclose(first, second).any()


def test_qmc_spreads_more_evenly_than_chance_over_every_kind_of_key():
    """Also over choices, and a key that is not searched in every trial."""
    parameters = CONDITIONAL | {
        "train.schedule.factor": Parameter(
            min=0.1, max=0.9, when={"train.schedule.name": "plateau"}
        ),
        "train.epochs": Parameter(min=1, max=4),
    }

    def discrepancy(method, seed):
        sweep = config(method=method, seed=seed, parameters=parameters, run_cap=64)
        made = drawn(sweep, lambda study, trial, made: study.tell(trial, 0.0))[1]
        active = [one for one in made if "train.schedule.factor" in one]
        points = [
            ((one["train.schedule.factor"] - 0.1) / 0.8, (one["train.epochs"] - 0.5) / 4)
            for one in active
        ]
        return qmc.discrepancy(points), len(active)

    even, chance = (
        [discrepancy(method, seed) for seed in range(5)] for method in ("qmc", "random")
    )
    assert max(d for d, _ in even) < min(d for d, _ in chance)
    assert {number for _, number in even} == {32}  # just half have name: plateau


def test_cmaes_goes_on_learning_beside_choices_conditions_and_start_points():
    """Optuna's own gives up for good when the keys that all trials have change."""
    sweep = config(method="cmaes", parameters=PARAMETERS | CONDITIONAL, run_cap=40)
    study = optuna.create_study()
    points = {5: {"train.optimizer.lr": 3e-4}, 11: {"train.augment.flip": 0.3, "train.epochs": 4}}
    for number in range(40):
        trial, made = draw(study, sweep, number, points.get(number))
        assert made.items() >= points.get(number, {}).items()
        study.tell(trial, math.log(made["train.optimizer.lr"] / 1e-3) ** 2)
    generations = [trial.system_attrs["cma:generation"] for trial in study.trials]
    assert generations == [number // 7 for number in range(40)]  # 4 + floor(3 ln 3) trials each
    learned = [abs(math.log(t.params["train.optimizer.lr"] / 1e-3)) for t in study.trials]
    assert statistics.median(learned[28:]) < statistics.median(learned[:14])


@pytest.mark.parametrize("method", ["gp", "cmaes"])
@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(distribution="log_uniform_values", min=1e-5, max=1e-2),
        Parameter(min=0.0, max=0.3, q=0.1),
        Parameter(min=2, max=8, q=3),
        Parameter(min=1, max=1000),
    ],
    ids=["log", "stepped", "integer steps", "integer"],
)
def test_a_range_is_learned_of_whatever_its_kind(method, parameter):
    """What is best lies at the end of it, and is drawn more and more."""
    sweep = config(method=method, parameters={LR: parameter, FLIP: SMOOTH[FLIP]}, run_cap=24)
    _, made = drawn(sweep, lambda study, trial, made: study.tell(trial, -float(made[LR])))
    values = [one[LR] for one in made]
    assert all(parameter.contains(value) for value in values)
    assert statistics.mean(values[-6:]) > statistics.mean(values[:6])


@pytest.mark.parametrize("method", ["tpe", "gp", "cmaes", "qmc"])
def test_trials_side_by_side_are_given_different_points(method):
    sweep = smooth(method=method, run_cap=12)
    study, _ = drawn(sweep)
    points = [unit(draw(study, sweep, number)[1]) for number in range(12, 18)]
    assert min(math.dist(*pair) for pair in itertools.combinations(points, 2)) > 1e-3


def diverging(study, trial, made):
    """Trials end without an objective where brightness is large, and elsewhere the larger it is
    the better: what has no value looks promising."""
    if made[BRIGHTNESS] > 0.6:
        trial.set_user_attr("state", "diverged")
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, (made[FLIP] - 0.3) ** 2 - made[BRIGHTNESS])


CORNER = {BRIGHTNESS: SMOOTH[BRIGHTNESS], FLIP: SMOOTH[FLIP]}


@pytest.mark.parametrize("method", ["tpe", "gp", "cmaes"])
def test_where_trials_diverge_no_method_stays(method):
    sweep = config(method=method, parameters=CORNER, run_cap=24)
    states = [trial.state for trial in drawn(sweep, diverging)[0].trials]
    assert states[12:].count(TrialState.PRUNED) <= 6


def test_a_gaussian_process_learns_what_require_refuses():
    """The larger brightness the better, were it not refused."""
    sweep = config(method="gp", parameters=CORNER, run_cap=12)
    study = optuna.create_study()
    refused = [0] * 12
    for number in range(12):
        trial, made = draw(study, sweep, number)
        while made[BRIGHTNESS] > 0.5:
            trial.set_user_attr("refused", [number, refused[number]])
            study.tell(trial, state=TrialState.FAIL)
            refused[number] += 1
            study.sampler = space.sampler(sweep, number, {}, refused[number])
            trial = study.ask()
            made = space.suggest(trial, CORNER)
        study.tell(trial, -made[BRIGHTNESS])
    assert sum(refused[4:]) <= 8
    assert study.best_value < -0.45


def test_alone_optunas_gaussian_process_would_stay_there():
    """Why it is shown what became of the other trials."""
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=0, n_startup_trials=6))
    with threadpool_limits(1):
        for _ in range(18):
            trial = study.ask()
            diverging(study, trial, space.suggest(trial, CORNER))
    assert [trial.state for trial in study.trials[12:]] == [TrialState.PRUNED] * 6


def test_a_gaussian_process_learns_of_trials_that_were_stopped():
    """As of what finished ones gained from there on: stopped early is not the same as bad."""
    sweep = smooth(method="gp", run_cap=14)

    def learning(study, trial, made):
        for epoch in range(1, 5):
            trial.report(bowl(made) + 4 - epoch, epoch)
        study.tell(trial, bowl(made))

    def stopped(study, trial, made):
        if trial.number < 2:
            return learning(study, trial, made)
        trial.report(bowl(made) + 3, 1)
        trial.set_user_attr("state", "pruned")
        return study.tell(trial, state=TrialState.PRUNED)

    whole, cut = (
        np.array([unit(made) for made in drawn(sweep, tell)[1]]) for tell in (learning, stopped)
    )
    assert cut == pytest.approx(whole, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_study_of_failures_does_no_harm(method):
    """Trials cut short by a kill while they were drawn, failed ones and stopped ones alone."""
    sweep = config(method=method, run_cap=12)
    study = optuna.create_study()
    for number in range(12):
        study.tell(study.ask(), state=TrialState.FAIL)
        trial, made = draw(study, sweep, number)
        assert all(PARAMETERS[name].contains(value) for name, value in made.items())
        trial.report(0.5, 1)
        trial.set_user_attr("state", "failed" if number % 2 else "pruned")
        study.tell(trial, state=TrialState.FAIL if number % 2 else TrialState.PRUNED)

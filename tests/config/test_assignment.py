"""Which assignments a sweep has: conditional parameters, `require`, the grid."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config import (
    ConfigError,
    Parameter,
    SweepConfig,
    dump,
    grid,
    load_sweep,
    reachable,
    satisfied,
    trial_count,
)
from segray.config.assignment import combinations, draw_order, is_active, random_draws

HEAD = {"name": "a", "model": {"name": "unet"}, "data": {"format": "scenes"}}
NAME, FACTOR = "train.schedule.name", "train.schedule.factor"
PATIENCE, EPOCHS = "train.schedule.patience", "train.epochs"
SCHEDULES = {
    FACTOR: {"values": [0.1, 0.3], "when": {NAME: "plateau", PATIENCE: [1, 2]}},
    PATIENCE: {"values": [1, 2, 5], "when": {NAME: "plateau"}},
    NAME: {"values": ["poly", "plateau"]},
    EPOCHS: {"values": [3, 6]},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.yaml"


def load(file: Path, *overrides: str, **keys: Any) -> SweepConfig:
    file.write_text(dump(HEAD | keys))
    return load_sweep(file, overrides, {})


def problems(file: Path, *overrides: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, *overrides, **keys)
    return [f"{problem.path}: {problem.rule}" for problem in caught.value.problems]


def parameters(raw: dict[str, Any]) -> dict[str, Parameter]:
    return {name: Parameter.model_validate(one) for name, one in raw.items()}


# ---- when -----------------------------------------------------------------------------------


def test_a_parameter_is_drawn_after_what_it_asks_and_only_where_that_holds() -> None:
    searched = parameters(SCHEDULES)
    assert draw_order(searched) == [NAME, PATIENCE, FACTOR, EPOCHS]
    draws = list(random_draws(searched, 300))
    assert (
        {PATIENCE in draw for draw in draws} == {FACTOR in draw for draw in draws} == {True, False}
    )
    for draw in draws:
        assert (PATIENCE in draw) == (draw[NAME] == "plateau")
        assert (FACTOR in draw) == (draw.get(PATIENCE) in (1, 2))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"train.schedule.nam": "poly"}, f"when.train.schedule.nam: not one of .* mean {NAME}"),
        ({NAME: "cosine"}, f"when.{NAME}: outside the values that {NAME} takes"),
        ({NAME: ["poly", "cosine"]}, "outside the values"),
        ({"train.augment.flip": 0.5}, "is a continuous range, which hits no value: give values"),
        ({"train.augment.scale": [1.0, 1.0]}, r"one of its items: write \[\[1.0, 1.0\]\]"),
        ({PATIENCE: 1}, f"circle: {PATIENCE} -> {PATIENCE}"),
        ({EPOCHS: 3}, f"in a circle: {EPOCHS} -> {PATIENCE} -> {EPOCHS}"),
    ],
)
def test_a_condition_that_can_never_be_met_is_refused(
    file: Path, when: dict[str, Any], expected: str
) -> None:
    searched = {
        NAME: {"values": ["poly", "plateau"]},
        "train.augment.flip": {"min": 0.0, "max": 1.0},
        "train.augment.scale": {"values": [[1.0, 1.0], [0.5, 2.0]]},
        EPOCHS: {"values": [3, 6], "when": {PATIENCE: 1}},
        PATIENCE: {"values": [1, 2], "when": when},
    }
    (line,) = problems(file, parameters=searched)
    assert re.search(expected, line), line


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ({PATIENCE: 1}, None),
        ({PATIENCE: 1, NAME: "plateau"}, None),
        ({FACTOR: 0.1, EPOCHS: 3}, None),
        ({PATIENCE: 1, NAME: "poly"}, PATIENCE),
        ({FACTOR: 0.1, NAME: "poly"}, FACTOR),
        ({FACTOR: 0.1, PATIENCE: 5}, FACTOR),
    ],
)
def test_a_start_point_names_what_its_own_values_let_be_searched(
    file: Path, point: dict[str, Any], expected: str | None
) -> None:
    if expected is None:
        assert load(file, parameters=SCHEDULES, start_points=[point]).start_points == (point,)
    else:
        (line,) = problems(file, parameters=SCHEDULES, start_points=[point])
        assert line.startswith(f"start_points[0].{expected}: not searched in this point")


def test_a_key_that_needs_another_is_tried_beside_it(file: Path) -> None:
    searched = {"train.early_stop.min_delta": {"values": [0.0, 0.1]}}
    (line,) = problems(file, parameters=searched)
    assert "train.early_stop.patience: this key is required" in line
    load(file, parameters=searched | {"train.early_stop.patience": {"values": [2, 3]}})
    load(
        file,
        parameters={
            "train.early_stop.patience": {"values": [2, 3]},
            "train.early_stop.min_delta": {"value": 0.1, "when": {"train.early_stop.patience": 3}},
        },
    )


def test_values_that_do_not_fit_together_are_refused(file: Path) -> None:
    model = {"name": "segformer", "variant": "b0"}
    searched = {"model.pretrained": [None, "x"], "model.variant": [None, "b0"]}
    lines = problems(file, model=model, parameters=searched)
    assert any("give either pretrained" in line for line in lines)


def test_what_a_key_can_be_counts_the_files_own_value_where_it_is_conditional(file: Path) -> None:
    config = load(
        file,
        parameters=SCHEDULES | {"train.batch_size": {"value": 4, "when": {NAME: "poly"}}},
        train={"batch_size": 16},
    )
    assert reachable(config, "train.batch_size") == (16, 4)
    assert reachable(config, EPOCHS) == (3, 6)


# ---- require --------------------------------------------------------------------------------

STOP = {"early_stop": {"patience": 5}, "epochs": 20}
LESS = "train.early_stop.patience < train.epochs"


def test_a_condition_sees_the_whole_trial(file: Path) -> None:
    config = load(
        file,
        train=STOP,
        require=[LESS, "model.depth >= 2"],
        parameters={EPOCHS: {"values": [4, 9]}},
    )
    assert satisfied(config, {EPOCHS: 9})
    assert not satisfied(config, {EPOCHS: 4})
    assert satisfied(load(file, require=LESS, train=STOP), {})
    assert load(file, "require=null", require="model.depth > 9").require == ()


@pytest.mark.parametrize(
    ("require", "expected"),
    [
        ("train.epohcs > 2", "require: no such key of model or train: train.epohcs; did you mean"),
        ("data.val_share > 0", "require: no such key of model or train: data.val_share"),
        (["train.epochs > 2", "lr < 1"], "require[1]: no such key of model or train: lr; did you "),
        ("train.epochs >", "require: expected a condition such as"),
        ([LESS, 3], "require[1]: expected text"),
        ("train.epochs > 99", "require: no combination of the values meets this condition"),
        ("train.batch_size > 99", "require: it does not hold, and nothing in it is searched: "),
        ("train.optimizer.clip_norm > 1", "require: it does not hold, and nothing in it is search"),
        ("train.precision > 16", "require: train.precision is text and 16 is a number: the two"),
        (
            ["train.epochs > 5", "train.epochs < 4"],
            "require[1]: no combination of the values meets this condition and those above it",
        ),
    ],
)
def test_a_condition_that_no_trial_meets_is_refused(
    file: Path, require: Any, expected: str
) -> None:
    (line,) = problems(file, require=require, parameters={EPOCHS: {"values": [3, 6]}}, train=STOP)
    assert line.startswith(expected)


def test_a_condition_on_ranges_is_tried_with_draws(file: Path) -> None:
    searched = {"train.optimizer.lr": {"min": 1e-4, "max": 1e-2}}
    load(file, parameters=searched, require="train.optimizer.lr < 1e-3")
    (line,) = problems(file, parameters=searched, require="train.optimizer.lr > 1")
    assert line == "require: none of 1000 draws meets this condition"


def test_a_start_point_that_breaks_a_condition_is_refused(file: Path) -> None:
    searched = {EPOCHS: {"values": [3, 6]}, "train.early_stop.patience": {"values": [2, 4]}}
    decided = {EPOCHS: 3, "train.early_stop.patience": 4}
    (line,) = problems(file, parameters=searched, require=LESS, start_points=[{EPOCHS: 3}, decided])
    assert line == f"start_points[1]: breaks `require`: {LESS}"


def test_a_value_that_require_keeps_out_breaks_no_other_rule(file: Path) -> None:
    searched = {"train.batch_size": {"min": 2, "max": 6}}
    with_workers = {"parameters": searched, "resources": {"workers": 2}}
    load(file, require="train.batch_size % 2 == 0", **with_workers)
    load(file, require="train.batch_size == 4", **with_workers)
    (line,) = problems(file, require="train.batch_size > 4", **with_workers)
    assert "the batch of 5 images cannot be shared by 2 workers" in line
    (line,) = problems(file, **with_workers)
    assert "the batch of 3 images cannot be shared by 2 workers" in line


# ---- grid -----------------------------------------------------------------------------------


def test_a_grid_is_every_combination_the_last_key_fastest(file: Path) -> None:
    searched = {
        EPOCHS: {"values": [3, 6]},
        "train.batch_size": {"value": 4},
        "train.augment.flip": {"min": 0.1, "max": 0.3, "q": 0.1},
        "train.schedule.warmup_steps": {"min": 0, "max": 1},
    }
    config = load(file, method="grid", parameters=searched)
    rows = [tuple(made.values()) for made in grid(config)]
    assert rows == list(itertools.product([3, 6], [4], [0.1, 0.2, 0.3], [0, 1]))
    assert [type(value) for value in rows[0]] == [int, int, float, int]
    assert trial_count(config) == 12
    assert trial_count(load(file, "parameters={}", method="grid")) == 1


def test_a_grid_leaves_out_what_when_and_require_do(file: Path) -> None:
    config = load(file, method="grid", parameters=SCHEDULES, require="train.schedule.patience < 5")
    made = [tuple(one.get(name) for name in (NAME, PATIENCE, FACTOR)) for one in grid(config)]
    assert made[::2] == [
        ("poly", None, None),
        *(("plateau", patience, factor) for patience in (1, 2) for factor in (0.1, 0.3)),
    ]
    assert trial_count(config) == 10
    assert trial_count(load(file, "run_cap=3", method="grid", parameters=SCHEDULES)) == 3


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"parameters": {"train.augment.flip": {"min": 0.0, "max": 1.0}}},
            "parameters.train.augment.flip: method grid needs single values: give values, or q",
        ),
        ({"start_points": [{EPOCHS: 3}]}, "start_points: method grid runs every combination"),
        (
            {"parameters": {"train.schedule.warmup_steps": {"min": 0, "max": 10_000}}},
            "method: the grid has 10,001 combinations: set a run_cap of at most 10,000",
        ),
        (
            {
                "parameters": {"train.schedule.warmup_steps": {"min": 0, "max": 10_000}},
                "require": "train.epochs > 1",
                "run_cap": 5,
            },
            "method: the grid has 10,001 combinations: give fewer values",
        ),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(
    file: Path, keys: dict[str, Any], expected: str
) -> None:
    (line,) = problems(
        file, **{"method": "grid", "parameters": {EPOCHS: {"values": [3, 6]}}} | keys
    )
    assert line.startswith(expected)


def test_a_large_grid_runs_its_first_combinations(file: Path) -> None:
    searched = {name: {"min": 1, "max": 10**9} for name in (EPOCHS, "train.batch_size")}
    config = load(file, method="grid", parameters=searched, run_cap=3)
    assert [made["train.batch_size"] for made in grid(config)] == [1, 2, 3]
    assert trial_count(config) == 3


def test_other_methods_run_twenty_trials_unless_told(file: Path) -> None:
    assert trial_count(load(file)) == 20
    assert trial_count(load(file, "method=random", "run_cap=7")) == 7


names = st.sampled_from(["a", "b", "c", "d"])


@given(st.dictionaries(names, st.tuples(st.integers(1, 3), st.sets(names, max_size=2))))
def test_combinations_are_all_different_complete_and_what_draws_can_be(
    space: dict[str, tuple[int, set[str]]],
) -> None:
    searched = parameters(
        {
            name: {
                "values": list(range(count)),
                "when": {other: 0 for other in asked if other in space and other < name},
            }
            for name, (count, asked) in space.items()
        }
    )
    found = list(combinations(searched))
    assert len({str(made) for made in found}) == len(found)
    for made in found:
        assert made.keys() == {name for name, one in searched.items() if is_active(one, made)}
        assert all(searched[name].contains(value) for name, value in made.items())
    assert all(draw in found for draw in random_draws(searched, 20))

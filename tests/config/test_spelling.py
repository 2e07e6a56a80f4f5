"""W&B's and Ray's ways to write a parameter, in our words or refused with what to write."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segray.config import Parameter


def dumped(raw: Any) -> dict[str, Any]:
    return Parameter.model_validate(raw).model_dump(mode="json")


def ranged(distribution: str, low: float, high: float, **q: float) -> dict[str, Any]:
    return {"distribution": distribution, "min": low, "max": high, **q}


CHOICES = {"distribution": "categorical", "values": [1, "a", None]}
LOG = ranged("log_uniform_values", 1e-5, 1e-2)
UNIFORM = ranged("uniform", 0, 1)
STEPS = ranged("uniform", 0.0, 1.0, q=0.25)


@pytest.mark.parametrize(
    ("raw", "ours"),
    [
        ([1, "a", None], CHOICES),
        ("choice([1, 'a', None])", CHOICES),
        ("tune.choice(categories=[1, 'a', None])", CHOICES),
        ("ray.tune.grid_search((1, 'a', None))", CHOICES),
        ({"distribution": "choice", "categories": [1, "a", None]}, CHOICES),
        ("loguniform(1e-5, 1e-2)", LOG),
        (" tune.loguniform(lower=1e-5, upper=1e-2) ", LOG),
        ({"distribution": "loguniform", "lower": 1e-5, "upper": 1e-2}, LOG),
        ("uniform(0, 1)", UNIFORM),
        ({"distribution": "uniform", "lower": 0, "upper": 1}, UNIFORM),
        ("quniform(0.0, 1.0, 0.25)", STEPS),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.25}, STEPS),
        ({"min": 0.0, "max": 1.0, "q": 0.25}, STEPS),
        ({"distribution": "q_uniform", "min": 0, "max": 3}, ranged("uniform", 0, 3, q=1)),
        ("randint(1, 10)", ranged("int_uniform", 1, 9)),
        ({"distribution": "randint", "lower": 1, "upper": 10}, ranged("int_uniform", 1, 9)),
        ("qrandint(2, 10, 2)", ranged("int_uniform", 2, 10, q=2)),
        ({"min": 1, "max": 9, "q": 2}, ranged("int_uniform", 1, 9, q=2)),
        (
            {"distribution": "choice", "categories": [1, "a", None], "when": {"x": 1}},
            CHOICES | {"when": {"x": [1]}},
        ),
    ],
    ids=str,
)
def test_a_spelling_is_put_in_our_words_which_stay(raw: Any, ours: dict[str, Any]) -> None:
    assert dumped(raw) == ours
    assert dumped(ours) == ours


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ({"distribution": "normal", "mu": 0, "sigma": 1}, "expected values: .* or Ray's choice"),
        ({"distribution": "inv_log_uniform_values", "min": 1, "max": 2}, "got inv_log_uniform_va"),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 2}, "got q_log_uniform_values"),
        ({"distribution": "beta"}, "got beta"),
        ("lograndint(1, 10)", r"got lograndint\(1, 10\)"),
        ("1e-5..1e-3", r"got 1e-5\.\.1e-3"),
        ("choice(open('x').read())", "expected values"),
        ("choice({1, 2})", "expected values"),
        ("(" * 5000, r"got \(+\.\.\."),
        ("choice([1])()", "expected values"),
        ("choice([1], [2])", "expected values"),
        ("uniform(1)", "uniform takes lower and upper, got lower"),
        ("uniform(a=1, b=2)", "uniform takes lower and upper, got a and b"),
        ("randint('a', 2)", "randint needs numbers for lower and upper, got a"),
        ("randint(True, 2)", "needs numbers"),
        (
            {"distribution": "randint", "min": 1, "max": 10},
            r"write \{min: 1, max: 10\} if 10 may be drawn, else max: 9",
        ),
        ({"distribution": "choice", "values": [1]}, "choice takes categories, got values"),
        (
            {"distribution": "log_uniform", "min": -9, "max": -3},
            r"min: 0.000123, max: 0.0498\} for e\^-9 to e\^-3",
        ),
        (
            {"distribution": "log_uniform", "min": 1e-5, "max": 1e-2},
            r"min: 1, max: 1.01\} for e\^1e-05 to e\^0.01, or .* max: 0.01\} for 1e-05 to 0.01",
        ),
        ({"distribution": "log_uniform", "min": "a"}, "write log_uniform_values with min and max"),
        ("quniform(0.1, 1.0, 0.3)", r"multiples of q=0.3, and min=0.1 is none.*min: 0.1, max: 1.0"),
        ({"min": 0, "max": 1, "q": 0.3}, "whole steps of q=0.3 from min=0 miss max=1"),
        ({"min": 0, "max": 4, "q": 0}, "the step q must be a whole number above 0, got 0"),
        ({"min": 0.0, "max": 4, "q": -1}, "the step q must be above 0, got -1"),
        ({"min": 0.0, "max": 1.0, "q": 1e-300}, r"at most 10\^9 steps"),
        ({"distribution": "int_uniform", "min": 0, "max": 3, "q": 1.5}, "a whole number above 0"),
        (LOG | {"q": 1e-5}, "q is the step of uniform and int_uniform, got log_uniform_values"),
        ({"values": [1], "q": 1}, "q is the step of"),
        ({"values": [1, 2, 1]}, "every value is listed once, got 1 twice"),
        ({"values": [1, 1.0]}, "every value is listed once, got 1.0 twice"),
        ({"values": [[1], [1]]}, "every value is listed once"),
        ({"values": [1], "when": {"x": []}}, "at least 1 item"),
    ],
    ids=str,
)
def test_what_is_not_ours_says_what_to_write(raw: Any, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Parameter.model_validate(raw)


def test_steps_are_the_numbers_that_people_write() -> None:
    parameter = Parameter.model_validate({"min": 0.1, "max": 0.7, "q": 0.2})
    assert list(parameter.choices()) == [0.1, 0.3, 0.5, 0.7]
    assert parameter.count == 4
    assert parameter.contains(0.3)
    assert not parameter.contains(0.2)


@given(st.integers(-100, 100), st.integers(1, 50), st.sampled_from([1, 2, 0.1, 0.05, 2.5]))
def test_every_choice_is_contained_and_probed_ends_are_choices(
    low: int, steps: int, q: float
) -> None:
    high = float(f"{low + steps * q:.6g}")
    parameter = Parameter(distribution="uniform", min=low, max=high, q=q)
    choices = list(parameter.choices())
    assert len(choices) == parameter.count == steps + 1
    assert all(parameter.contains(choice) for choice in choices)
    assert set(parameter.probes()) <= set(choices)


@given(st.text(max_size=40) | st.from_regex(r"(tune\.)?[a-z]{1,9}\([0-9e., \[\]'-]{0,20}\)"))
def test_any_text_is_a_parameter_or_refused(text: str) -> None:
    try:
        parameter = Parameter.model_validate(text)
    except ValidationError:
        return
    assert dumped(parameter.model_dump(mode="json")) == parameter.model_dump(mode="json")

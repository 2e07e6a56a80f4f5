"""Conditions of `require`: what they mean, and that nothing else of Python gets in."""

import contextlib
import math
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config.require import parse

VALUES: dict[str, Any] = {
    "a": 2,
    "b": 3.5,
    "train.x": 10,
    "text": "poly",
    "none": None,
    "list": (1, 2),
    "huge": 10**400,
}


def holds(text: str) -> bool:
    return parse(text).holds(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", True),
        ("a < b < train.x", True),
        ("a < b > train.x", False),
        ("train.x == 10 and not a == b", True),
        ("train.x != 10 or a >= 2", True),
        ("(a + b) * 2 - 1 == train.x", True),
        ("train.x // 3 == 3 and train.x % 3 == 1 and train.x / 4 == b - 1", True),
        ("-a < +a", True),
        ("text == 'poly'", True),
        ("text != 'poly'", False),
        ("text < 'z'", True),
        ("(a < b) == true", True),
        ("a < 1e-3 or false", False),
        ("list == 'balanced'", False),
        ("none == null", True),
        ("a != null", True),
        ("none < 3", False),
        ("none >= 3", False),
        ("none + 1 < 3", False),
        ("a % 0 == 0", False),
        ("a / 0 < 1", False),
        ("huge + b > 0", False),
        ("huge > a", True),
        ("none == null or none < 3", True),
    ],
)
def test_a_condition_holds_or_not(text: str, expected: bool) -> None:
    assert holds(text) is expected
    assert holds(f" ( {text} ) ") is expected


def test_the_keys_of_a_condition_come_once_each_in_order() -> None:
    condition = parse("train.x < a.b_1.c and train.x > 0 and null == none")
    assert condition.keys == ("train.x", "a.b_1.c", "none")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "expected a condition such as"),
        ("a <", "expected a condition such as"),
        ("a = 3", "expected a condition such as"),
        ("a < b; a", "expected a condition such as"),
        ("3 < 4", "expected a condition on a key"),
        ("a()", r"got a\(\)"),
        ("a[0] == 1", r"got a\[0\]"),
        ("[a] == 1", r"got \[a\]"),
        ("a ** 2 < 3", r"got a \*\* 2"),
        ("a in text", "got a in text"),
        ("a is null", "got a is null"),
        ("a if b else 3", "expected keys, numbers"),
        ("(lambda: a)() == 3", "expected keys, numbers"),
        ("f'{a}' == text", "expected keys, numbers"),
        ("'x'.join == text", "expected keys, numbers"),
        ("a == 1j", "got 1j"),
        ("a == b'x'", "got b'x'"),
        ("a == ...", r"got \.\.\."),
        ("~a == 1", "got ~a"),
        ("(a := 3) < 4", "expected keys, numbers"),
        ("a < " + "(" * 300 + "1" + ")" * 300, "expected a condition such as"),
        ("-" * 600 + "a < 1", "at most 40 levels"),
        ("a < 1" + " or a < 1" * 200, "at most 1000 characters"),
    ],
)
def test_other_python_is_refused(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        parse(text)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a", "expected a comparison, such as a > 1: a is a number"),
        ("a and b < 3", "expected a comparison, such as a > 1"),
        ("not text", "expected a comparison, such as text > 1: text is text"),
        ("a < text", "a is a number and text is text: the two cannot be compared"),
        ("a == text", "a is a number and text is text"),
        ("a < 3 or a < text", "a is a number and text is text"),
        ("list < 3", "list is a list or section and 3 is a number"),
        ("list < list", "list is a list or section: it has no smaller and larger"),
        ("(a < b) < true", "it has no smaller and larger"),
        ("text + text == text", "text is text, and arithmetic needs numbers"),
        ("-text == text", "text is text, and arithmetic needs numbers"),
        ("true + 1 == a", "true is true or false, and arithmetic needs numbers"),
    ],
)
def test_what_cannot_be_compared_is_named(text: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        holds(text)


numbers = st.integers(-50, 50) | st.floats(-50, 50).map(lambda x: round(x, 3))
OPERATORS = {
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    **{"==": operator.eq, "!=": operator.ne},
}
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@given(numbers, numbers, numbers, st.sampled_from([*OPERATORS]), st.sampled_from([*ARITHMETIC]))
def test_arithmetic_and_comparison_are_pythons(
    x: float, y: float, z: float, order: str, sign: str
) -> None:
    found = parse(f"x {sign} y {order} z").holds({"x": x, "y": y, "z": z}.__getitem__)
    left = math.nan if sign == "/" and y == 0 else ARITHMETIC[sign](x, y)
    if not math.isnan(left):
        assert found is OPERATORS[order](left, z)


@given(st.text(max_size=30) | st.text("ab.<>=!+-*/%() 01'andortu\n", max_size=30))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        condition = parse(text)
    except ValueError:
        return
    assert condition.keys
    with contextlib.suppress(ValueError):
        assert condition.holds(lambda key: 3) in (True, False)

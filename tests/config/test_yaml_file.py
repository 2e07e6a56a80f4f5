"""YAML with line numbers: what is a number, what is refused, and where it stands."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config.errors import ConfigError, Problem
from segray.config.yaml_file import brief, dump, parse_value, read, show

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
tricky = st.sampled_from(["1e5", "1e-5", "007", "1:30", "2020-01-01", "yes", "~", "", ".nan", "<<"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | tricky
keys = (texts | tricky).filter(bool)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=10,
)


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "sweep.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def problems(folder: Path, text: str | bytes) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read(write(folder, text))
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("6.0e-5", 6e-5),
        (".inf", math.inf),
        ("12", 12),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        ("true", True),
        ("~", None),
        ("", None),
        ("007", "007"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("1e", "1e"),
        ("[1, {a: 2}]", [1, {"a": 2}]),
    ],
)
def test_a_plain_value_is_read_as_people_expect(text: str, value: Any) -> None:
    read_back = parse_value(text, "here", "key")
    assert read_back == value
    assert type(read_back) is type(value)


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    data, lines = read(write(tmp_path, "a: 1\nb:\n  c:\n    - x\n    - {d: 2}\n"))
    assert data == {"a": 1, "b": {"c": ["x", {"d": 2}]}}
    assert {show(path): line for path, line in lines.items()} == {
        "": 1,
        "a": 1,
        "b": 2,
        "b.c": 3,
        "b.c[0]": 4,
        "b.c[1]": 5,
        "b.c[1].d": 5,
    }


def test_aliases_and_merge_keys_are_read(tmp_path: Path) -> None:
    data, _ = read(write(tmp_path, "a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}\n"))
    assert data == {"a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [1], "y": 2}}
    assert data["a"] is not data["b"]


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: 1\nb: 2: 3\n", "2:5", "mapping values are not allowed"),
        ("a: 1\nb: [1\n", "3:1", "expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", "2:1", "indented with a tab; use spaces"),
        ("a:\n  b: 1\n   c: 2\n", "3:5", "a key indented deeper than the line above allows"),
        ("a:\n   b: 1\n  c: 2\n", "3:3", "this key is indented as none above it is"),
        ("a: 1\nb\nc: 2\n", "3:1", "expected `key: value`, with a space after the colon"),
        ("a: 'x\nb: 2\n", "3:1", "a quote is not closed"),
        ("a: {b: 1\n", "2:1", "a { or [ is not closed, or a comma is missing"),
        ("a: @x\n", "1:4", "this character can begin no value: put the text in quotes"),
        ("a: 1\n---\nb: 1\n", "2:1", "another document"),
        ("a: 1\nb: \x00\n", "2", "character 0x0 is not allowed"),
        ("a: 1\nb: !!int x\n", "2:4", "x cannot be read as int"),
        ("a: " + "9" * 5000, "1:4", "cannot be read as int"),
        ("a: 1\n<<: 5\n", "2:5", "for merging"),
        ("a: 1\nb: *c\n", "2:4", "undefined alias"),
        ("a: {root: ${X}}\n", "1:12", 'put "${...}" in quotes'),
        ("a: " + "[" * 3000, "1", "nested deeper"),
    ],
)
def test_text_that_is_no_yaml_says_where(tmp_path: Path, text: str, line: str, rule: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.where == f"{tmp_path / 'sweep.yaml'}:{line}"
    assert problem.rule.startswith("not valid YAML: ")
    assert rule in problem.rule


@pytest.mark.parametrize(
    ("text", "path", "rule"),
    [
        ("x: 0\na: {b: 1,\n  b: 2}\n", "a.b", "written twice, first on line 2: keep one"),
        ("x: 0\na:\n  1: x\n", "a", "expected a key of plain text"),
        ("x: 0\na:\n  null: x\n", "a", "expected a key of plain text"),
        ("x: 0\na:\n  true: x\n", "a", "expected a key of plain text"),
        ("x: 0\na:\n  '': x\n", "a", "expected a key of plain text"),
        ("x: 0\na:\n  [1]: x\n", "a", "expected a key of plain text"),
        ("x: 0\na:\n  {b: 1}: x\n", "a", "expected a key of plain text"),
        ('x: 0\na:\n  "\\ud800": x\n', "a", "expected a key of plain text"),
        (
            "x: 0\na:\n  b: !!python/object:os.system {}\n",
            "a.b",
            "!!python/object:os.system is not",
        ),
        ("x: 0\na:\n  b: !mine 3\n", "a.b", "the tag !mine is not allowed"),
        ("x: 0\na:\n  b: !!binary aGk=\n", "a.b", "the tag !!binary is not allowed"),
        ("x: 0\na:\n  b: !!timestamp x\n", "a.b", "the tag !!timestamp is not allowed"),
        ("x: 0\na: &a\n  b: *a\n", "a.b", "inside its own anchor"),
        ("x: 0\na: &a\n  - *a\n", "a[0]", "inside its own anchor"),
    ],
)
def test_what_no_config_can_hold_is_one_problem(
    tmp_path: Path, text: str, path: str, rule: str
) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.where.startswith(f"{tmp_path / 'sweep.yaml'}:")
    assert problem.where.rsplit(":", 1)[1] in "23"
    assert problem.path == path
    assert rule in problem.rule


def test_deep_nesting_and_exploding_aliases_end_early(tmp_path: Path) -> None:
    deep = "a: " + "{b: " * 100 + "1" + "}" * 100
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
    )
    for text in (deep, bomb):
        assert "at most 32 levels" in problems(tmp_path, text)[0].rule


def test_all_of_them_come_in_one_report(tmp_path: Path) -> None:
    found = problems(tmp_path, "a: 1\na: 2\n3: x\nb: !no x\n")
    assert [problem.where.rsplit(":", 1)[1] for problem in found] == ["2", "3", "4"]


def test_text_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, b"name: x\nb: \xff\n")
    assert problem.where.endswith("sweep.yaml:2")
    assert problem.rule == "expected UTF-8 text: byte 11 is 0xff"


@pytest.mark.parametrize(
    ("text", "came"),
    [("", "an empty file"), ("# note\n", "an empty file"), ("[1, 2]", "[1, 2]"), ("x", "x")],
)
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str, came: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.rule.startswith("expected a mapping of keys")
    assert problem.value == came


@given(plain)
def test_dump_is_read_back_equal(data: Any) -> None:
    assert parse_value(dump(data), "here", "key") == data


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("1e5", "'1e5'"),
        ([1.0, [2]], "[1.0, [2]]"),
        ({"a": {"b": 1}}, "{a: {b: 1}}"),
        ("x" * 200, "x" * 77 + "..."),
    ],
)
def test_brief_is_one_short_line(value: Any, text: str) -> None:
    assert brief(value) == text

"""Whatever is done to a shipped sweep file, it loads or says what is wrong and where."""

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segray.config import ConfigError, SweepConfig, dump, load_sweep
from segray.config.errors import Problem
from segray.config.yaml_file import parse_value

SWEEPS = Path(__file__).parents[2] / "sweeps"
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in sorted(SWEEPS.glob("*.yaml"))}
TEXTS["rare.yaml"] = """\
base: quickstart.yaml
method: grid
model: {width: 16}
start_points: []
parameters:
  train.optimizer.lr: null
  train.augment.scale: choice([[1.0, 1.0], [0.5, 2.0]])
  train.augment.brightness: {min: 0.0, max: 0.4, q: 0.2}
  train.schedule.name: [poly, plateau]
  train.schedule.patience: {values: [1, 2], when: {train.schedule.name: plateau}}
  train.schedule.factor: {value: 0.1, when: {train.schedule.patience: [1, 2]}}
  train.batch_size: {distribution: qrandint, lower: 4, upper: 8, q: 4}
require:
  - train.early_stop.patience < train.epochs
  - train.schedule.name == 'poly' or train.augment.flip + 1 > 0.5
run_cap: null
"""
ENV = {"CITYSCAPES_ROOT": "/data", "IMAGES_ROOT": "/images", "S": "7"}

scalars = st.one_of(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats(),
    st.sampled_from([0, -1, 10**9 + 1, 2**53 + 1, 10**400, 1e-320, 1e308, 5e-324]),
    st.sampled_from(["64px", "1e-3 lr", "20 epochs", "50%", "1,5", "8GB", "1e5", "007", "auto"]),
    st.sampled_from(
        ["${NOPE}", "${S}", "~", "~/x", "tpe", "grid", "random", "b0", "unet", "scenes"]
    ),
    st.sampled_from(
        ["loguniform(1e-5, 1)", "choice([1, 2])", "randint(0, 3)", "quniform(0, 1, .1)"]
    ),
    st.sampled_from(
        ["train.epochs > 1", "train.lr < 1", "model.width % 2 == 0", "1 <", "a" * 2000]
    ),
    st.text(max_size=6),
    st.text("\0\ud800\x85\u2028\ufeff:{}[]#&*!|>'\"%@`, \t\n-?", max_size=6),
)
keys = st.one_of(
    st.sampled_from(["name", "base", "model", "data", "train", "parameters", "require", "method"]),
    st.sampled_from(
        ["min", "max", "q", "when", "values", "value", "distribution", "lower", "upper"]
    ),
    st.sampled_from(["lr", "epochs", "train.epochs", "model.depth", "train.schedule.name", "crop"]),
    st.text(max_size=5),
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)


@functools.cache
def merged(name: str) -> str:
    """The data of a file with its base's, as JSON."""
    data = parse_value(TEXTS[name], name, "")
    base = json.loads(merged(data.pop("base"))) if "base" in data else {}
    return json.dumps(base | data | {"model": base.get("model", {}) | data["model"]})


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything below `value`."""
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path for key, item in items for path in [(*at, key), *places(item, (*at, key))]]


def change_data(config: Any, data: st.DataObject) -> None:
    """Delete, rename, copy, move or replace one value."""
    path = data.draw(st.sampled_from(places(config) or [()]))
    if not path:
        return
    section = functools.reduce(lambda part, key: part[key], path[:-1], config)
    key = path[-1]
    action = data.draw(st.sampled_from(["delete", "rename", "wrap", "swap", "add", "put", "put"]))
    if action == "delete":
        del section[key]
    elif action == "rename" and isinstance(section, dict):
        letter = data.draw(st.characters(codec="utf-8"))
        at = data.draw(st.integers(0, len(key)))
        section[data.draw(keys | st.just(key[:at] + letter + key[at:]))] = section.pop(key)
    elif action == "wrap":
        section[key] = data.draw(st.sampled_from([[section[key]], {"value": section[key]}, {}, []]))
    elif action == "swap":
        other = data.draw(st.sampled_from(places(config)))
        section[key] = copy.deepcopy(functools.reduce(lambda part, key: part[key], other, config))
    elif action == "add" and isinstance(section, dict):
        section[data.draw(keys)] = data.draw(junk)
    else:
        section[key] = data.draw(junk)


def change_text(text: str, data: st.DataObject) -> str:
    """Delete, double, indent or cut a line, or write something into one."""
    lines = text.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    line = lines[at]
    action = data.draw(st.sampled_from(["delete", "double", "indent", "cut", "insert", "insert"]))
    if action == "delete":
        del lines[at]
    elif action == "double":
        lines.insert(data.draw(st.integers(0, len(lines))), line)
    elif action == "indent":
        lines[at] = data.draw(st.sampled_from([" ", "\t", "   ", "- ", "#"])) + line.lstrip(" -")
    else:
        start = data.draw(st.integers(0, len(line)))
        end = data.draw(st.integers(start, len(line)))
        new = (
            "" if action == "cut" else data.draw(scalars.map(str) | st.sampled_from("{}[]:,&*?|\t"))
        )
        lines[at] = line[:start] + new + line[end if action == "cut" else start :]
    return "\n".join(lines) + "\n"


def check(file: Path, overrides: list[str]) -> None:
    """The file loads and round-trips, or every problem has a place, a rule, and a key."""
    config, problems = loaded(file, overrides)
    if config is not None:
        file.write_text(dump(config.model_dump(mode="json")), encoding="utf-8")
        assert load_sweep(file, (), {}) == config
        return
    assert problems
    for problem in problems:
        in_file = re.fullmatch(r"(.+\.yaml):(\d+)(:\d+)?", problem.where, re.DOTALL)
        assert in_file or problem.where.removeprefix("override ") in overrides, problem
        assert problem.rule
        no_key = r"not valid YAML|expected (UTF|key=|a map|a key of plain)"
        assert problem.path or re.match(no_key, problem.rule), problem


def loaded(file: Path, overrides: list[str]) -> tuple[SweepConfig | None, tuple[Problem, ...]]:
    try:
        return load_sweep(file, overrides, ENV), ()
    except ConfigError as error:
        return None, error.problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped files, so that bases are found, and the one that is changed."""
    path = tmp_path_factory.mktemp("sweeps")
    for name, text in TEXTS.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


thoroughly = settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@thoroughly
@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_changed_data_loads_or_says_what_is_wrong(
    folder: Path, name: str, data: st.DataObject
) -> None:
    config = json.loads(merged(name))
    overrides = []
    for _ in range(data.draw(st.integers(1, 3))):
        change_data(config, data)
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]))):
        known = [".".join(map(str, path)) for path in places(config)] or ["seed"]
        value = data.draw(junk.map(lambda value: dump(value).strip()) | scalars.map(str))
        overrides.append(f"{data.draw(st.sampled_from(known) | keys)}={value}")
    file = folder / "changed.yaml"
    file.write_bytes(dump(config).encode("utf-8", "surrogatepass"))
    check(file, overrides)


@thoroughly
@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_changed_text_loads_or_says_what_is_wrong(
    folder: Path, name: str, data: st.DataObject
) -> None:
    text = TEXTS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        text = change_text(text, data)
    file = folder / "changed.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(file, [])

"""The JSON Schema of sweep files: what an editor takes and marks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from segray.config import json_schema
from segray.config.yaml_file import read

SWEEPS = Path(__file__).parents[2] / "sweeps"
FILES = sorted(SWEEPS.rglob("*.yaml"))
HEAD = {"name": "a", "model": {"name": "unet"}, "data": {"format": "scenes"}}
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def accepts(**keys: Any) -> bool:
    return bool(VALIDATOR.is_valid(HEAD | keys))


def test_the_shipped_schema_is_what_the_command_prints() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    run = subprocess.run([sys.executable, "-m", "segray", "schema"], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout == (SWEEPS / "schema.json").read_text(encoding="utf-8")
    assert json.loads(run.stdout) == json_schema()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_sweep_validates_and_any_key_misspelled_does_not(file: Path) -> None:
    data, lines = read(file)
    VALIDATOR.validate(data)
    free = {"start_points"}  # points are assignments: their keys are tested below
    for path in lines:
        if not path or path[0] in free or not all(isinstance(key, str) for key in path):
            continue
        if path[:2] == ("data", "classes") and len(path) == 3:  # a class has any name
            continue
        broken = json.loads(json.dumps(data))
        section: Any = broken
        for key in path[:-1]:
            section = section[key]
        section[f"{path[-1]}x"] = section.pop(path[-1])
        assert not VALIDATOR.is_valid(broken), path


@pytest.mark.parametrize(
    "keys",
    [
        {"require": "train.epochs > 1"},
        {"require": ["train.epochs > 1"]},
        {"name": "${NAME}", "storage": "${X}", "method": "${HOW}"},
        {"parameters": {"train.epochs": [1, 2]}},
        {"parameters": {"train.epochs": None}},
        {"parameters": {"train.optimizer.lr": "tune.loguniform(1e-5, 1e-2)"}},
        {"parameters": {"train.optimizer.lr": {"distribution": "quniform", "lower": 1, "q": 1}}},
        {"parameters": {"train.epochs": {"values": [1], "when": {"train.batch_size": [1]}}}},
        {"parameters": {"model.pretrained": {"value": "x"}, "model.depth": {"value": 3}}},
        {"start_points": [{"train.epochs": 1}], "early_terminate": None, "run_cap": None},
        {"method": "cmaes", "early_terminate": {"type": "median", "min_trials": 3}},
        {"method": "gp", "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 4}},
        {"method": "qmc", "early_terminate": {"type": "none"}},
        {"train": {"loss": {"class_weights": "balanced"}, "early_stop": {"min_delta": 0.1}}},
    ],
    ids=str,
)
def test_what_a_sweep_file_may_say_is_not_marked(keys: dict[str, Any]) -> None:
    VALIDATOR.validate(HEAD | keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"base": 3},
        {"seed": -1},
        {"seed": 2**32},
        {"name": "a/b"},
        {"method": "bayes"},
        {"require": 3},
        {"early_terminate": {"type": "median", "eta": 3}},
        {"early_terminate": {"type": "asha", "min_trials": 3}},
        {"early_terminate": {"type": "none", "eta": 3}},
        {"train": {"epochs": 0}},
        {"train": {"optimizer": {"lr": 0}}},
        {"train": {"optimiser": {}}},
        {"model": {"name": "resnet"}},
        {"model": {"name": "unet", "variant": "b0"}},
        {"data": {"format": "scenes", "root": 3}},
        {"parameters": {"train.lr": {"value": 1}}},
        {"parameters": {"data.size": {"value": [64, 64]}}},
        {"parameters": {"train.epochs": "foo"}},
        {"parameters": {"train.epochs": {"distribution": "normal"}}},
        {"parameters": {"train.epochs": {"values": [1], "when": {"train.x": 1}}}},
        {"start_points": [{"train.x": 1}]},
    ],
    ids=str,
)
def test_a_mistake_is_marked(keys: dict[str, Any]) -> None:
    assert not accepts(**keys)


def test_the_required_keys_may_come_from_a_base() -> None:
    assert not VALIDATOR.is_valid({"name": "a"})
    assert VALIDATOR.is_valid({"base": "b.yaml", "model": {"pretrained": "x"}})

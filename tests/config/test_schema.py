"""The frozen models on their own: ranges of parameters, membership, immutability."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from segray.config import FoldersData, Optimizer, Parameter, ScenesData, SweepConfig
from segray.config.schema import Augment, Final, Segformer


@pytest.mark.parametrize(
    ("raw", "distribution"),
    [
        ({"values": [1, 2]}, "categorical"),
        ({"values": ["None", None, "[1]", [1]]}, "categorical"),
        ({"value": 3}, "constant"),
        ({"value": None}, "constant"),
        ({"min": 1, "max": 4}, "int_uniform"),
        ({"min": 1.0, "max": 4}, "uniform"),
        ({"min": 1, "max": 4, "distribution": None}, "int_uniform"),
        ({"min": 1, "max": 4, "distribution": "uniform"}, "uniform"),
    ],
)
def test_the_distribution_follows_from_the_keys(raw: dict[str, Any], distribution: str) -> None:
    assert Parameter.model_validate(raw).distribution == distribution


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        ({}, "needs min and max, got none of"),
        ({"min": 1}, "a uniform parameter needs min and max, got min"),
        ({"values": [1], "min": 1}, "a categorical parameter needs values, got values and min"),
        ({"values": [1], "value": 1}, "got values and value"),
        ({"distribution": "constant", "min": 1, "max": 2}, "needs value, got min and max"),
        ({"values": []}, "at least one value"),
        ({"min": 2, "max": 1}, "min must be below max, got min=2 and max=1"),
        ({"min": 1, "max": 1}, "min must be below max"),
        ({"min": 0, "max": 1, "distribution": "log_uniform_values"}, "start above 0, got min=0"),
        ({"min": 1.5, "max": 2.5, "distribution": "int_uniform"}, "needs whole numbers"),
        ({"min": 0, "max": 2**60}, r"within 2\^53"),
        ({"min": 10**400, "max": 10**401}, r"within 2\^53"),
        ({"min": True, "max": 3}, "valid number"),
        ({"min": float("nan"), "max": 3}, "finite"),
    ],
)
def test_a_parameter_without_sense_is_refused(raw: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        Parameter.model_validate(raw)


@pytest.mark.parametrize(
    ("raw", "inside", "outside"),
    [
        ({"values": [1, "a", [1.0, 2.0]]}, [1, "a", [1.0, 2.0]], [2, "b", [1.0], None]),
        ({"value": 3}, [3], [4, "3"]),
        ({"min": 1, "max": 4}, [1, 2, 4, 2.0], [0, 5, 2.5, "2", True, None, 10**400]),
        ({"min": 0.5, "max": 4.0}, [0.5, 1, 4.0], [0.4, 4.1, float("nan"), float("inf")]),
    ],
)
def test_contains_is_what_the_sampler_could_draw(
    raw: dict[str, Any], inside: list[Any], outside: list[Any]
) -> None:
    parameter = Parameter.model_validate(raw)
    assert all(parameter.contains(value) for value in inside)
    assert not any(parameter.contains(value) for value in outside)


@pytest.mark.parametrize(
    ("raw", "probes"),
    [
        ({"values": [1, 2]}, (1, 2)),
        ({"value": 3}, (3,)),
        ({"min": 2, "max": 6}, (2, 6, 3)),
    ],
)
def test_probes_are_values_the_sampler_could_draw(raw: dict[str, Any], probes: Any) -> None:
    assert Parameter.model_validate(raw).probes() == probes


def test_a_range_of_floats_is_probed_between_whole_numbers() -> None:
    assert any(value % 1 for value in Parameter(min=1.0, max=5.0).probes())


def test_a_parameter_dumps_only_what_was_given() -> None:
    parameter = Parameter.model_validate({"values": [None, 1]})
    assert parameter.model_dump(mode="json") == {"distribution": "categorical", "values": [None, 1]}


@pytest.mark.parametrize(
    ("model", "raw", "rule"),
    [
        (Segformer, {"name": "segformer"}, "either pretrained"),
        (Segformer, {"name": "segformer", "pretrained": "x", "variant": "b0"}, "either pretrained"),
        (Segformer, {"name": "segformer", "pretrained": "x", "width": 0.5}, "width scales"),
        (ScenesData, {"format": "scenes", "train_images": 9}, "every city needs an image"),
        (ScenesData, {"format": "scenes", "test_images": 2}, "every city needs an image"),
        (ScenesData, {"format": "scenes", "size": [16, 64]}, "greater than or equal to 32"),
        (Augment, {"scale": [2.0, 0.5]}, r"scale is \[smallest, largest\], got \[2.0, 0.5\]"),
        (Augment, {"flip": True}, "valid number"),
        (Augment, {"hue": 0.6}, "less than or equal to 0.5"),
        (Optimizer, {"lr": 0}, "greater than 0"),
        (Optimizer, {"lr": float("inf")}, "finite"),
        (Final, {"seeds": [0, 1, 0]}, "every seed can be trained once"),
        (Final, {"seeds": [-1]}, "greater than or equal to 0"),
        (Final, {"seeds": [2**32]}, "less than 4294967296"),
    ],
)
def test_a_section_refuses(model: type[BaseModel], raw: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        model.model_validate(raw)


FOLDERS: dict[str, Any] = {
    "format": "folders",
    "root": "x",
    "size": [32, 32],
    "images": "i",
    "masks": "m",
    "classes": {"sky": {"ids": 0}, "road": {"ids": [3, 17]}, "void": {"ids": 255}},
}
PARTS = {part: {"images": f"{part}/i", "masks": f"{part}/m"} for part in ("train", "val", "test")}
RED = {"color": [255, 0, 0]}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"classes": {"a b": {"ids": 0}, "c": {"ids": 1}}}, "letters, digits, - and _, got 'a b'"),
        ({"classes": {"a/b": {"ids": 0}, "c": {"ids": 1}}}, "got 'a/b'"),
        ({"classes": {"a": {"ids": 0}, "void": {"ids": 1}}}, "2 to 253 classes beside void, got 1"),
        ({"classes": {f"c{i}": {"ids": i} for i in range(255)}}, "beside void, got 255"),
        (
            {"classes": {"a": {"ids": 0}, "b": RED}},
            "either all classes have ids or none has; b has",
        ),
        ({"classes": {"a": RED, "b": {}}}, "b has neither ids nor color"),
        ({"classes": {"a": {"ids": [0, 1]}, "b": {"ids": 1}}}, "id 1 of b is in a too"),
        ({"classes": {"a": RED, "b": RED}}, r"color \[255, 0, 0\] of b is in a too"),
        ({"classes": {"a": {"ids": [1, 1]}, "b": {"ids": 2}}}, "id 1 of a is twice"),
        ({"classes": {"a": {"ids": 65536}, "b": {"ids": 2}}}, "0 to 65535, .*got 65536"),
        ({"classes": {"a": {"ids": True}, "b": {"ids": 2}}}, "expected a label id.*got True"),
        ({"classes": {"a": {"color": [0, 0]}, "b": RED}}, r"expected \[r, g, b\].*got \[0, 0\]"),
        ({"classes": {"a": {"color": [0, 0, 256]}, "b": RED}}, "each 0 to 255"),
        ({"classes": {"a": {"color": "red"}, "b": RED}}, "got 'red'"),
        ({"split": "official"}, "'pooled' or 'explicit'"),
        ({"images": None}, "split: pooled needs both images and masks"),
        ({"masks": "i"}, "images and masks are both in i: give mask_suffix"),
        (PARTS, "train and val and test stand beside split: pooled"),
        ({"split": "explicit"}, "explicit needs train, val and test; got no train"),
        (PARTS | {"split": "explicit"}, "remove images and masks"),
        (PARTS | {"split": "explicit", "val": "v.txt", "masks": None}, "a list needs both images"),
        (
            PARTS
            | {"split": "explicit", "val": {"images": "a", "masks": "a"}}
            | {"images": None, "masks": None},
            "both in a: give mask_suffix",
        ),
        (PARTS | {"split": "explicit", "val": {"images": "a"}}, "masks\n  Field required"),
        ({"limit": 0}, "greater than or equal to 1"),
    ],
)
def test_a_section_of_own_images_refuses(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        FoldersData.model_validate(FOLDERS | changes)


@pytest.mark.parametrize("changes", [{}, {"split": "explicit", **PARTS, "val": "val.txt"}])
def test_a_section_of_own_images_round_trips(changes: dict[str, Any]) -> None:
    data = FoldersData.model_validate(FOLDERS | changes)
    assert FoldersData.model_validate(data.model_dump(mode="json")) == data


def test_a_config_is_frozen() -> None:
    config = SweepConfig.model_validate(
        {"name": "a", "model": {"name": "unet"}, "data": {"format": "scenes"}}
    )
    for section, key in ((config, "name"), (config.train, "epochs"), (config.model, "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, "x")

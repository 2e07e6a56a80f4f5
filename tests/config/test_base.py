"""A sweep file that extends another, and where every value of the result came from."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from segray.config import ConfigError, load_sweep, read_sweep

BASE = """\
name: base
model: {name: segformer, variant: b0, width: 0.5}
data: {format: scenes, size: [96, 192], cities: 4}
train:
  epochs: 6
  optimizer: {lr: 1e-3, clip_norm: 1.0}
  early_stop: {patience: 3}
parameters:
  train.epochs: {values: [2, 6]}
  train.optimizer.lr: {min: 1e-5, max: 1e-2}
start_points: [{train.epochs: 2}]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes files into the working folder and returns the path of the first."""
    monkeypatch.chdir(tmp_path)

    def files(**texts: str) -> str:
        for name, text in texts.items():
            Path(f"{name}.yaml").write_text(text, encoding="utf-8")
        return f"{next(iter(texts))}.yaml"

    return files


def problems(file: str, *overrides: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(file, overrides, env or {})
    return [str(problem) for problem in caught.value.problems]


LR, CLIP = "train.optimizer.lr", "train.optimizer.clip_norm"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {optimizer: {lr: 1}}", {LR: 1.0, CLIP: 1.0, "train.epochs": 6}),
        ("train: {optimizer: {clip_norm: null}}", {LR: 1e-3, CLIP: None}),
        ("train: {early_stop: null}", {"train.early_stop": None, "train.epochs": 6}),
        ("data: {size: [64, 64]}", {"data.size": (64, 64), "data.cities": 4}),
        ("data: {format: scenes, seed: 1}", {"data.cities": 4, "data.seed": 1}),
        ("data: {format: cityscapes, root: /x, size: [64, 64]}", {"data.format": "cityscapes"}),
        ("model: {variant: b1}", {"model.variant": "b1", "model.width": 0.5}),
        ("model: {name: unet}", {"model.name": "unet", "model.width": 64}),
        ("start_points: []", {"start_points": ()}),
    ],
)
def test_a_file_changes_what_it_names_and_keeps_the_rest(
    write: Any, text: str, expected: dict[str, Any]
) -> None:
    config = load_sweep(write(a=f"base: b.yaml\n{text}\n", b=BASE))
    for path, value in expected.items():
        assert functools.reduce(getattr, path.split("."), config) == value


def test_a_parameter_is_replaced_whole_added_or_taken_out(write: Any) -> None:
    text = (
        "base: b.yaml\nstart_points: []\nparameters:\n  train.optimizer.lr: {values: [1e-3]}\n"
        "  train.epochs: null\n  model.drop_path: {value: 0.0}\n"
    )
    parameters = load_sweep(write(a=text, b=BASE)).parameters
    assert list(parameters) == ["train.optimizer.lr", "model.drop_path"]
    assert parameters["train.optimizer.lr"].values == (1e-3,)
    assert load_sweep("a.yaml", ["parameters=null"]).parameters == {}


def test_classes_are_replaced_whole(write: Any) -> None:
    data = "data: {format: folders, root: /x, images: i, masks: m, size: [64, 64], classes: "
    base = (
        f"{data}{{a: {{ids: 0}}, b: {{ids: 1}}, c: {{ids: 2}}}}}}\nname: b\nmodel: {{name: unet}}\n"
    )
    file = write(a="base: b.yaml\ndata: {classes: {c: {ids: 0}, a: {ids: 1}}}\n", b=base)
    config = load_sweep(file)
    assert config.data.class_names == ("c", "a")
    assert config.data.root == "/x"


def test_a_chain_of_bases_in_other_folders_is_followed(write: Any, tmp_path: Path) -> None:
    file = write(a="base: sub/b.yaml\nname: a\n", c=BASE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yaml").write_text("base: ${C}/c.yaml\ntrain: {epochs: 4}\n")
    config = load_sweep(file, env={"C": ".."})
    assert (config.name, config.train.epochs, config.train.optimizer.lr) == ("a", 4, 1e-3)
    assert "base" not in type(config).model_fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: a.yaml", "a file cannot be its own base: a.yaml -> a.yaml (got a.yaml)"),
        ("base: loop.yaml", "a file cannot be its own base: a.yaml -> loop.yaml -> a.yaml"),
        ("base: none.yaml", "no sweep file at none.yaml (No such file or directory)"),
        ('base: "\\0"', "no sweep file at"),
        ("base: .", "no sweep file at . (Is a directory)"),
        ("base: ${NOPE}/b.yaml", "the environment variable NOPE is not set (got ${NOPE}/b.yaml)"),
        ("base: [b.yaml]", "expected the path of another sweep file (got [b.yaml])"),
        ('base: ""', "expected the path of another sweep file (got '')"),
    ],
)
def test_a_base_that_cannot_be_read_is_named(write: Any, text: str, expected: str) -> None:
    (line,) = problems(write(a=f"name: a\n{text}\n", loop="base: a.yaml\n"))
    assert line.split(": ", 1)[1].startswith(f"base: {expected}")


def test_a_long_chain_is_refused_with_its_files(write: Any) -> None:
    chain = {f"f{number}": f"base: f{number + 1}.yaml\n" for number in range(9)}
    (line,) = problems(write(**chain, f9=BASE))
    assert line.startswith("f7.yaml:1: base: expected at most 8 files in a chain of bases: f0.yaml")
    del chain["f7"], chain["f8"]
    load_sweep(write(**chain, f7=BASE))


def test_a_problem_stands_in_the_file_that_says_the_key(write: Any) -> None:
    bad = BASE.replace("epochs: 6", "epochs: 0").replace("cities: 4", "citties: 4")
    assert problems(write(a="name: a\nbase: b.yaml\nseed: -1\n", b=bad), "run_cap=0") == [
        "override run_cap=0: run_cap: expected at least 1 (got 0)",
        "a.yaml:3: seed: expected at least 0 (got -1)",
        "b.yaml:3: data.citties: no such key; did you mean cities?",
        "b.yaml:5: train.epochs: expected at least 1 (got 0)",
    ]


def test_base_is_no_override(write: Any) -> None:
    (line,) = problems(write(b=BASE), "base=c.yaml")
    assert line == (
        "override base=c.yaml: base: base can only be set in a file: run that file instead"
    )


def test_every_leaf_names_its_source(write: Any) -> None:
    text = "base: b.yaml\nname: a\nstorage: ${ROOT}/runs\ntrain: {crop: [64, 64]}\n"
    read = read_sweep(write(a=text, b=BASE), ["train.optimizer.clip_norm=1e-4"], {"ROOT": "/r"})
    assert read.file == Path("a.yaml")
    assert read.config.storage == "/r/runs"
    expected = {
        "name": "a.yaml:2",
        "storage": "a.yaml:3, environment ROOT",
        "train.crop": "a.yaml:4",
        "train.epochs": "b.yaml:5",
        "train.optimizer.clip_norm": "override train.optimizer.clip_norm=1e-4",
        "train.optimizer.weight_decay": "default",
        "parameters.train.epochs": "b.yaml:9",
        "start_points": "b.yaml:11",
        "data.cities": "b.yaml:3",
        "data.val_share": "default",
        "final": "default",
    }
    assert expected.items() <= read.sources.items()
    assert "train" not in read.sources
    assert "train.crop[0]" not in read.sources

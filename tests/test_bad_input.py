"""Every mistake a person makes: one message that says what and where, exit code 2, no traceback."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segray import cli
from segray.config import load_sweep
from segray.data.scenes import write_scenes

LR = "train.optimizer.lr"
SWEEP = {
    "name": "bad",
    "model": {"name": "unet", "width": 4, "depth": 2},
    "data": {"format": "cityscapes", "size": [32, 64], "val_share": 0.3},
    "train": {"epochs": 2, "batch_size": 2},
    "parameters": {LR: {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}},
    "tracking": {"wandb": {"mode": "disabled"}},
}
COMMANDS = ("status", "patience", "clean", "sync")


@pytest.fixture(scope="session")
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "city"
    write_scenes(root, train=6, val=2, cities=3, val_cities=1, size=(32, 64), seed=0)
    return root


@pytest.fixture
def refused(tmp_path, city, monkeypatch, capsys):
    """Runs the command line; returns the message of a request that was refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")  # --address sets it: not for the tests that follow

    def run(*arguments, text=None, **changes) -> str:
        path = tmp_path / "bad.yaml"
        data = SWEEP["data"] | {"root": str(city)}
        if text is None:
            text = yaml.safe_dump(SWEEP | {"data": data} | changes, sort_keys=False)
        path.write_text(text)
        command = [] if arguments and arguments[0] in COMMANDS else ["sweep", str(path)]
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, *map(str, arguments)])
        said = capsys.readouterr()
        assert ended.value.code == 2, said
        assert "Traceback" not in said.err
        assert said.err.startswith("error: ")
        assert not list(tmp_path.glob("runs/*/trials"))
        return said.err

    return run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.root=/nowhere", ["data.root", "no folder at /nowhere", "How to get Cityscapes"]),
        ("train.epoch=3", ["override train.epoch=3", "no such key; did you mean epochs?"]),
        ("train.lr=0.1", ["did you mean train.optimizer.lr?"]),
        ("train.optimizer.lr=0.1", ["searched", "parameters.train.optimizer.lr={value: 0.1}"]),
        ("train.epochs=many", ["train.epochs: expected a whole number", "many"]),
        ("train.epochs", ["train.epochs", "value"]),
        ("parameters.train.optimizer.lr.min=1", ["min must be below max", "min=1", "max=0.1"]),
        ("parameters.train.optimizer.lr.min=0", ["logarithmic range must start above 0", "min=0"]),
        ("parameters.train.optimizer.rate={min: 1, max: 2}", ["rate", "no such config key"]),
        ("parameters.data.size={values: [[32, 64]]}", ["only keys of model and train"]),
        (
            "parameters.train.epochs={values: [1, 2], when: {train.schedule.nam: poly}}",
            ["parameters.train.epochs.when", "not one of the searched parameters"],
        ),
        ("require=train.epoch < 3", ["require", "did you mean train.epochs?"]),
        ("require=train.epochs > 3", ["require", "train.epochs > 3"]),
        ("resources.workers=3", ["workers", "batch of 2 images", "3 workers"]),
        ("train.batch_size=1000", ["train.batch_size", "1000", "train has"]),
        ("train.crop=[64, 64]", ["train.crop", "larger than the images", "[32, 64]"]),
        ("storage=bad.yaml/runs", ["storage: cannot write to", "bad.yaml is no folder"]),
        ("model={name: segformer, pretrained: nobody/nothing}", ["nobody/nothing", "hf download"]),
        ("metric.name=val/iou/cat", ["metric.name", "no such metric"]),
        ("method=bayes", ["method", "tpe"]),
        (
            "parameters.train.optimizer.lr={distribution: log_uniform, min: -9, max: -2}",
            ["log_uniform", "exponents", "log_uniform_values"],
        ),
        ("base=other.yaml", ["base", "file"]),
        ("name=../up", ["name", "letters, digits"]),
        ("train.schedule.warmup_steps=100", ["warmup_steps", "epochs x"]),
    ],
    ids=lambda value: value.split("=")[0] if isinstance(value, str) else "",
)
def test_an_override_that_cannot_be(refused, override, said):
    message = refused(override)
    for words in said:
        assert words in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\n\tmodel: {name: unet}\n", ["bad.yaml:2", "tab"]),
        ("name: a\n  model: {name: unet}\n", ["bad.yaml:2", "indent"]),
        ("name: a\nname: b\n", ["bad.yaml:2", "written twice, first on line 1"]),
        ("", ["bad.yaml:1", "an empty file"]),
        ("- a\n", ["bad.yaml:1", "expected a mapping"]),
        ("base: nowhere.yaml\nname: a\n", ["bad.yaml:1", "nowhere.yaml"]),
        ("base: bad.yaml\nname: a\n", ["bad.yaml:1", "its own base"]),
        ("name: a\ndata: {format: scenes}\n", ["bad.yaml", "model: this key is required"]),
        ("name: ${NOT_SET_ANYWHERE}\n", ["bad.yaml:1", "NOT_SET_ANYWHERE", "not set"]),
    ],
)
def test_a_file_that_is_none(refused, text, said):
    message = refused(text=text)
    for words in said:
        assert words in message


def break_mask(root: Path, array: np.ndarray) -> Path:
    mask = sorted(root.glob("gtFine/train/*/*_labelIds.png"))[0]
    Image.fromarray(array).save(mask)
    return mask


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((32, 64), 77, np.uint8), "77"),
        (np.zeros((30, 64), np.uint8), "64x30"),
        (np.zeros((32, 64, 3), np.uint8), "RGB"),
    ],
    ids=["unknown label id", "another size", "colours"],
)
def test_a_mask_that_does_not_fit(refused, tmp_path, array, said):
    root = tmp_path / "own"
    write_scenes(root, train=4, val=2, cities=2, val_cities=1, size=(32, 64), seed=1)
    mask = break_mask(root, array)
    message = refused(data=SWEEP["data"] | {"root": str(root)})
    assert str(mask) in message
    assert said in message
    assert "segray data check" in message


def test_a_file_that_is_cut_off(refused, tmp_path):
    root = tmp_path / "own"
    write_scenes(root, train=4, val=2, cities=2, val_cities=1, size=(32, 64), seed=2)
    image = sorted(root.glob("leftImg8bit/train/*/*.png"))[0]
    image.write_bytes(image.read_bytes()[:100])
    assert str(image) in refused(data=SWEEP["data"] | {"root": str(root)})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("resources={workers: 2, cpus_per_worker: 9999}", "2 workers of 9999 CPUs each"),
        ("resources={gpus_per_worker: 99}", "99 GPU each"),
    ],
)
def test_more_workers_or_gpus_than_there_are(refused, override, said):
    message = refused(override)
    assert said in message
    assert "there is room for 0 such" in message
    assert "the cluster has" in message


def test_a_split_without_images(refused, tmp_path):
    root = tmp_path / "own"
    write_scenes(root, train=4, val=2, cities=2, val_cities=1, size=(32, 64), seed=3)
    shutil.rmtree(sorted(root.glob("leftImg8bit/train/*"))[0])
    message = refused(data=SWEEP["data"] | {"root": str(root)})
    assert "no image for val" in message or "no image for train" in message
    assert "two cities" in message


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_folder_that_is_none(refused, tmp_path, command):
    message = refused(command, tmp_path)
    assert str(tmp_path) in message
    assert "sweep.yaml" in message


def test_a_resume_into_another_runs_folder(refused, tmp_path):
    (tmp_path / "runs/bad").mkdir(parents=True)
    (tmp_path / "runs/bad/notes.txt").write_text("mine")
    assert "is no run folder" in refused("name=bad", "--resume")


def test_a_run_folder_that_is_taken(refused, tmp_path):
    (tmp_path / "runs/bad").mkdir(parents=True)
    (tmp_path / "runs/bad/notes.txt").write_text("mine")
    message = refused("name=bad")
    assert "--resume" in message
    assert "name=bad-2" in message


def test_a_checkpoint_of_another_model(refused, tmp_path):
    from segray.models import build_model, save_model

    save_model(build_model("unet", num_classes=7, width=4, depth=2), tmp_path / "unet")
    message = refused(f"model={{name: segformer, pretrained: {tmp_path}/unet}}")
    assert str(tmp_path / "unet") in message


def test_a_cluster_that_does_not_answer(refused):
    assert "no Ray cluster answers" in refused("--address", "127.0.0.1:1")


def test_the_command_that_needs_no_images_fits_any_file(refused):
    """It is made from a file whose keys name classes, crops and GPUs of its own."""
    weights = "train.loss.class_weights"
    message = refused(
        data={
            **{"format": "folders", "root": "/nowhere", "images": "images", "masks": "masks"},
            **{"size": [256, 512], "classes": {name: {"ids": i} for i, name in enumerate("abc")}},
        },
        metric={"name": "val/iou/b"},
        train={"batch_size": 3, "crop": [256, 256], "loss": {"class_weights": [1, 2, 1]}},
        parameters={
            "train.epochs": {"values": [10, 20]},
            "train.crop": {"values": [[256, 256], [128, 256]]},
            weights: {"values": [[1, 1, 1], [1, 2, 3]], "when": {"train.epochs": 20}},
        },
        require="train.epochs > train.batch_size",
        start_points=[{"train.epochs": 10}],
        early_terminate={"type": "asha", "min_iter": 9},
        resources={"workers": 3, "gpus_per_worker": 1},
        final={"seeds": [0, 1], "workers": 3},
    )
    assert "data.root: no folder at /nowhere" in message
    python, _, module, file, *overrides = shlex.split(message.splitlines()[-1])
    assert (python, module) == (sys.executable, "segray.sweep")
    config = load_sweep(file, overrides)
    assert config.data.format == "scenes"
    assert config.model.name == "unet"
    assert set(config.parameters) == {LR}


@pytest.mark.parametrize("size", ["31,64", "64,8", "0,0", "64", "a,b"])
def test_scenes_of_a_size_that_no_sweep_takes(tmp_path, capsys, size):
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "scenes", str(tmp_path / "city"), "--size", size])
    assert ended.value.code == 2
    assert re.search(
        r"expected sides of at least 32 px|--size: expected H,W", capsys.readouterr().err
    )
    assert not (tmp_path / "city").exists()


def test_everything_that_is_wrong_comes_at_once(refused):
    message = refused(
        "train.epoch=1",
        model={"name": "unet", "width": 0},
        run_cap="ten",
        parameters={LR: {"min": 2, "max": 1}},
    )
    assert "4 problems" in message
    lines = [line for line in message.splitlines() if "bad.yaml:" in line]
    assert len(lines) == 3


def test_the_numbers_of_a_report_are_those_of_the_file(refused):
    """A newcomer jumps to the line that is named."""
    text = json.dumps(SWEEP | {"run_cap": 0}, indent=1)  # JSON is YAML
    message = refused(text=text.replace('"cityscapes"', '"cityscapes", "root": "x"'))
    number = next(i for i, line in enumerate(text.splitlines(), 1) if "run_cap" in line)
    assert f"bad.yaml:{number}: run_cap" in message

"""What is saved comes back to the bit, and what is no whole checkpoint of this model is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from segray.config import Optimizer, RequestError
from segray.models import build_model
from segray.train import checkpoint
from segray.train.optimizer import build_optimizer

MODELS = [
    pytest.param("unet", {"width": 4, "depth": 2}, id="unet"),
    pytest.param("segformer", {"variant": "b0", "width": 0.125, "drop_path": 0.0}, id="segformer"),
]
STATE = {"epoch": 3, "best": 0.1 + 0.2, "none": None, "nested": {"list": [1, 2.5e-300]}, "ä": "ß"}


def make(name: str = "unet", options=None, seed: int = 0, channels_last: bool = True):
    torch.manual_seed(seed)
    model = build_model(name, num_classes=7, **(options or {"width": 4, "depth": 2}))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model, build_optimizer(model, Optimizer(lr=0.01))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)  # for dropout too
    images = torch.randn(2, 3, 32, 32)
    optimizer.zero_grad(set_to_none=True)
    model(images).square().mean().backward()
    optimizer.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_loaded_training_goes_on_to_the_bit(
    tmp_path: Path, name, options, channels_last: bool
) -> None:
    model, optimizer = make(name, options, channels_last=channels_last)
    for seed in range(3):
        step(model, optimizer, seed)
    path = tmp_path / "new" / "last.safetensors"
    checkpoint.save(path, STATE, model, optimizer)
    other, other_optimizer = make(name, options, seed=1, channels_last=channels_last)
    assert not same(model, other)
    assert checkpoint.load(path, other, other_optimizer) == STATE
    assert same(model, other)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, other_optimizer, seed)
        assert same(model, other)


def test_the_state_is_read_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, STATE, make()[0])
    assert checkpoint.read_state(path) == STATE


def test_the_file_is_plain_safetensors_with_json(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model, _ = make()
    checkpoint.save(path, STATE, model)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["segray"]) == STATE
    assert set(header) == {f"model.{name}" for name in model.state_dict()}


def test_a_checkpoint_without_optimizer_fills_the_model_alone(tmp_path: Path) -> None:
    model, optimizer = make()
    step(model, optimizer, 0)
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, STATE, model, optimizer)
    other, _ = make(seed=1)
    checkpoint.load(path, other)
    assert same(model, other)


def test_a_newer_checkpoint_replaces_the_older(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    model, optimizer = make()
    checkpoint.save(path, {"epoch": 1}, model)
    step(model, optimizer, 0)
    checkpoint.save(path, {"epoch": 2}, model)
    other, _ = make(seed=1)
    assert checkpoint.load(path, other) == {"epoch": 2}
    assert same(model, other)
    assert [file.name for file in tmp_path.iterdir()] == ["best.safetensors"]


def test_half_a_file_left_by_a_kill_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    model, _ = make()
    checkpoint.save(path, {"epoch": 1}, model)
    (tmp_path / "last.tmp").write_bytes(path.read_bytes()[:100])
    assert checkpoint.read_state(path) == {"epoch": 1}
    checkpoint.save(path, {"epoch": 2}, model)
    assert checkpoint.read_state(path) == {"epoch": 2}


def test_a_save_that_fails_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "last.safetensors"
    model, _ = make()
    checkpoint.save(path, {"epoch": 1}, model)

    def torn(tensors, file, metadata) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(path, {"epoch": 2}, model)
    assert checkpoint.read_state(path) == {"epoch": 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unet", {"width": 8, "depth": 2}),
        ("unet", {"width": 4, "depth": 3}),
        ("segformer", {"variant": "b0", "width": 0.125}),
    ],
)
def test_another_model_is_refused_with_the_file(tmp_path: Path, name: str, options) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, STATE, make()[0])
    with pytest.raises(RequestError, match="checkpoint of another model") as caught:
        checkpoint.load(path, make(name, options)[0])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "other", "missing", "foreign"])
def test_what_is_no_whole_checkpoint_is_refused_with_the_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "best.safetensors"
    model, _ = make()
    checkpoint.save(path, STATE, model)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, path)
    else:
        new = {"cut": content[:-10], "header": content[:50], "empty": b"", "other": b"x" * 500}
        path.write_bytes(new[damage])
    with pytest.raises(RequestError, match="expected a checkpoint that segray wrote") as caught:
        checkpoint.load(path, model)
    assert str(path) in str(caught.value)

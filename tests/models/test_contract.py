"""What every model must keep. A new model is one more line in CASES."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segray.models import MODELS, ModelError, build_model, load_model, read_record, save_model

CASES = [
    pytest.param("unet", {"width": 4, "depth": 3}, id="unet"),
    pytest.param("segformer", {"variant": "b0", "width": 0.125}, id="segformer"),
]
K = 5


def make(name: str, options: dict[str, object], num_classes: int = K, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, num_classes=num_classes, **options)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def logits(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(batch)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def shared(request):
    """One model a parameter for the tests that leave it as it is."""
    return make(*request.param)


def test_every_model_is_in_this_suite():
    assert {case.values[0] for case in CASES} == set(MODELS)


@pytest.mark.parametrize("shared", [c.values for c in CASES], ids=MODELS, indirect=True)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 97), (100, 36)])
def test_logits_have_the_size_of_the_image(shared, size):
    out = logits(shared, images(2, 3, *size))
    assert out.shape == (2, K, *size)
    assert out.isfinite().all()


@pytest.mark.parametrize("shared", [c.values for c in CASES], ids=MODELS, indirect=True)
@settings(max_examples=12, deadline=None)
@given(height=st.integers(32, 90), width=st.integers(32, 90))
def test_any_size(shared, height, width):
    assert logits(shared, images(1, 3, height, width)).shape == (1, K, height, width)


@pytest.mark.parametrize("shared", [c.values for c in CASES], ids=MODELS, indirect=True)
@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 3, 64, 8), (1, 1, 64, 64), (3, 64, 64)])
def test_refuses_other_input(shared, shape):
    with pytest.raises(ModelError, match="at least 32 pixels") as caught:
        shared(images(*shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_reach_every_parameter(name, options):
    # eval: drop path would skip a block at random
    model = make(name, options).eval().double()
    model(images(2, 3, 64, 96).double()).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(("name", "options"), CASES)
def test_train_and_eval(name, options):
    model = make(name, options)
    assert model.training
    batch = images(2, 3, 64, 64)
    before = logits(model, batch)
    assert torch.equal(before, logits(model, batch))
    model.train()(batch)  # moves the batch norms' running statistics
    assert not torch.equal(before, logits(model, batch))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_image_scores_as_it_does_in_a_batch(name, options):
    model = make(name, options).double()
    batch = images(3, 3, 48, 64).double()
    torch.testing.assert_close(logits(model, batch[1:2]), logits(model, batch)[1:2])


@pytest.mark.parametrize(("name", "options"), CASES)
def test_weights_depend_on_the_seed_alone(name, options):
    first, again, other = (make(name, options, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_encoder_is_a_part_and_not_the_whole(name, options):
    model = make(name, options)
    assert isinstance(model.encoder, nn.Module)
    inside = {id(p) for p in model.encoder.parameters()}
    assert 0 < len(inside) < len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        assert key.startswith("encoder.") == (id(parameter) in inside)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 20])
def test_num_classes(name, options, num_classes):
    model = make(name, options, num_classes)
    assert logits(model, images(1, 3, 32, 32)).shape == (1, num_classes, 32, 32)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_channels_last_changes_nothing(name, options):
    model = make(name, options)
    batch = images(2, 3, 50, 64)
    expected = logits(model, batch)
    model.to(memory_format=torch.channels_last)
    out = logits(model, batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_bf16_autocast(name, options):
    model = make(name, options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images(2, 3, 50, 64))
        out.float().mean().backward()
    assert out.isfinite().all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_copy_is_another_model(name, options):
    model = make(name, options)
    twin = copy.deepcopy(model)
    batch = images(1, 3, 32, 32)
    assert torch.equal(logits(model, batch), logits(twin, batch))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(logits(model, batch), logits(twin, batch))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_save_and_load(name, options, memory_format, tmp_path: Path):
    model = make(name, options).to(memory_format=memory_format)
    model(images(2, 3, 64, 64))  # running statistics unlike their start
    folder = tmp_path / "runs" / "best"
    names = [f"class {index}" for index in range(K)]
    save_model(model, folder, class_names=names)
    record = json.loads((folder / "segray.json").read_text())
    assert record["name"] == name
    assert record["num_classes"] == K
    assert record["class_names"] == names
    assert [path.name for path in folder.parent.iterdir()] == ["best"]

    state = torch.get_rng_state()
    loaded = load_model(folder)
    assert torch.equal(state, torch.get_rng_state())
    assert type(loaded) is type(model)
    assert not loaded.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    model.to(memory_format=torch.contiguous_format)
    batch = images(2, 3, 50, 64)
    assert torch.equal(logits(model, batch), logits(loaded, batch))
    loaded.train()(batch).mean().backward()  # it can go on learning
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_saving_again_replaces(name, options, tmp_path: Path):
    save_model(make(name, options, seed=0), tmp_path / "m")
    second = make(name, options, num_classes=3, seed=1)
    save_model(second, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    batch = images(1, 3, 32, 32)
    assert torch.equal(logits(load_model(tmp_path / "m"), batch), logits(second, batch))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_failing_to_save_keeps_what_was_there(name, options, tmp_path: Path, monkeypatch):
    model = make(name, options)
    save_model(model, tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(type(model), "save_weights", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(model, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}


def test_saving_never_deletes_other_files(tmp_path: Path):
    (tmp_path / "holiday.jpg").write_text("keep me")
    model = make("unet", {"width": 4, "depth": 1})
    with pytest.raises(ModelError, match=r"holiday\.jpg"):
        save_model(model, tmp_path)
    assert (tmp_path / "holiday.jpg").read_text() == "keep me"
    with pytest.raises(ModelError, match=r"holiday\.jpg"):
        save_model(model, tmp_path / "holiday.jpg")


def test_saving_refuses_what_it_did_not_build(tmp_path: Path):
    with pytest.raises(ModelError, match="got Linear"):
        save_model(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(ModelError, match=r"must be 5 names.*got 2"):
        save_model(make("unet", {"width": 4}), tmp_path / "m", class_names=["road", "sky"])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_record_says_what_was_given(name, options, tmp_path: Path):
    model = make(name, options)
    save_model(model, tmp_path / "bare")
    record = read_record(tmp_path / "bare")
    assert (record.name, record.num_classes, record.options) == (name, K, model.options)
    assert (record.class_names, record.image_size, record.class_colours) == (None, None, None)
    colours = np.arange(3 * K, dtype=np.uint8).reshape(K, 3)
    save_model(model, tmp_path / "m", image_size=[48, 64], class_colours=colours)
    record = read_record(tmp_path / "m")
    assert record.image_size == (48, 64)
    assert record.class_colours == tuple(map(tuple, colours.tolist()))

    # as folders were written before there was a size
    file = tmp_path / "m" / "segray.json"
    raw = {key: value for key, value in json.loads(file.read_text()).items() if "_" not in key}
    file.write_text(json.dumps(raw | {"num_classes": K, "class_names": None}))
    assert read_record(tmp_path / "m") == read_record(tmp_path / "bare")
    load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"image_size": (31, 64)}, "height and width, each at least 32 pixels"),
        ({"image_size": (64,)}, "height and width"),
        ({"image_size": (64.0, 64.0)}, "height and width"),
        ({"class_colours": [(0, 0, 0)]}, "must be 5 colours"),
        ({"class_colours": [(0, 0, 256)] * K}, "from 0 to 255"),
        ({"class_colours": [(0, 0)] * K}, "three numbers"),
    ],
)
def test_the_record_refuses_what_does_not_fit(facts, message, tmp_path: Path):
    model = make("unet", {"width": 4, "depth": 1})
    with pytest.raises(ModelError, match=message):
        save_model(model, tmp_path / "m", **facts)
    assert not (tmp_path / "m").exists()
    save_model(model, tmp_path / "m")
    record = tmp_path / "m" / "segray.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | facts))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path / "m")
    assert str(record) in str(caught.value)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_loading_refuses_a_damaged_folder(name, options, tmp_path: Path):
    with pytest.raises(ModelError, match=r"segray\.json"):
        load_model(tmp_path)
    folder = tmp_path / "m"
    save_model(make(name, options), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(folder)):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=str(folder)):
        load_model(folder)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_loading_refuses_another_number_of_classes(name, options, tmp_path: Path):
    save_model(make(name, options), tmp_path / "m")
    record = tmp_path / "m" / "segray.json"
    record.write_text(record.read_text().replace('"num_classes": 5', '"num_classes": 6'))
    with pytest.raises(ModelError, match=str(tmp_path / "m")):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unett", {}, r"one of unet, segformer, got 'unett'\. Did you mean 'unet'\?"),
        (None, {}, "one of unet, segformer, got None"),
        ("unet", {"widht": 64}, r"options width, depth, got 'widht'\. Did you mean 'width'\?"),
        ("unet", {"self": 64}, "options width, depth, got 'self'"),
        ("unet", {"width": 0}, r"model\.width of a unet must be an integer >= 1, got 0"),
        ("unet", {"width": 64.0}, "integer"),
        ("unet", {"width": True}, "integer"),
        ("unet", {"depth": 6}, "from 1 to 5, got 6"),
        ("segformer", {"variante": "b0"}, "Did you mean 'variant'"),
        ("segformer", {}, "exactly one of pretrained and variant"),
        ("segformer", {"variant": "b0", "pretrained": "x/y"}, "exactly one of"),
        ("segformer", {"variant": "b6"}, "one of b0, b1, b2, b3, b4, b5, got 'b6'"),
        ("segformer", {"variant": ["b0"]}, "one of b0, b1"),
        ("segformer", {"variant": "b0", "width": 0}, r"model\.width of a segformer"),
        ("segformer", {"variant": "b0", "width": "wide"}, "a number > 0"),
        ("segformer", {"variant": "b0", "drop_path": 1.0}, "< 1, got 1.0"),
        ("segformer", {"pretrained": "x/y", "width": 0.5}, "Drop width"),
        ("segformer", {"pretrained": 3}, "hub name"),
    ],
)
def test_wrong_names_and_values(name, options, message):
    with pytest.raises(ModelError, match=message):
        build_model(name, num_classes=K, **options)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("num_classes", [0, -1, 2.0, True, None])
def test_wrong_num_classes(name, options, num_classes):
    with pytest.raises(ModelError, match="num_classes must be an integer >= 1"):
        build_model(name, num_classes=num_classes, **options)

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from segray.models import ModelError, build_model, load_model, save_model

transformers = pytest.importorskip("transformers")

TINY = {"hidden_sizes": [8, 16, 40, 64], "depths": [1, 2, 1, 1], "decoder_hidden_size": 16}


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def logits(model, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(batch)


def stock_logits(stock, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        small = stock.eval()(batch).logits
        return F.interpolate(small, size=batch.shape[-2:], mode="bilinear", align_corners=False)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """What nvidia/mit-b* are: an encoder with an ImageNet classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(11)
    config = transformers.SegformerConfig(num_labels=1000, **TINY)
    transformers.SegformerForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    torch.manual_seed(12)
    config = transformers.SegformerConfig(num_labels=19, **TINY)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    return folder


# Total at 150 classes as the paper's table 1 gives it (ADE20K), in millions.
@pytest.mark.parametrize(
    ("variant", "millions"),
    [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)],
)
def test_parameter_counts_of_the_paper(variant, millions):
    with torch.device("meta"):
        model = build_model("segformer", num_classes=150, variant=variant)
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.1)


def test_b0_of_8_classes():
    with torch.device("meta"):
        model = build_model("segformer", num_classes=8, variant="b0")
        stock = transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(num_labels=8)  # transformers' default is b0
        )
    assert 3_650_000 < count(model) < 3_750_000
    ours = {k.replace("encoder.", "segformer.", 1): v.shape for k, v in model.state_dict().items()}
    assert ours == {k: v.shape for k, v in stock.state_dict().items()}


def test_b3_has_the_shapes_of_its_config():
    with torch.device("meta"):
        model = build_model("segformer", num_classes=8, variant="b3")
        config = transformers.SegformerConfig(
            hidden_sizes=[64, 128, 320, 512],
            depths=[3, 4, 18, 3],
            decoder_hidden_size=768,
            num_labels=8,
        )
        stock = transformers.SegformerForSemanticSegmentation(config)
    assert model.config.to_diff_dict() == config.to_diff_dict()
    assert count(model) == count(stock)
    assert count(model.encoder) == count(stock.segformer)


@pytest.mark.parametrize("width", [0.01, 0.1, 0.33, 0.5, 1.5])
def test_width_keeps_stages_divisible_by_their_heads(width):
    with torch.device("meta"):
        config = build_model("segformer", num_classes=3, variant="b1", width=width).config
    heads = config.num_attention_heads
    assert all(h % n == 0 and h >= n for h, n in zip(config.hidden_sizes, heads, strict=True))
    assert config.decoder_hidden_size == max(1, round(256 * width))


def test_drop_path_rises_to_its_rate():
    model = build_model("segformer", num_classes=3, variant="b0", width=0.1, drop_path=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "SegformerDropPath"]
    assert rates == pytest.approx([0.3 * i / 7 for i in range(1, 8)])
    with torch.device("meta"):
        model = build_model("segformer", num_classes=3, variant="b0", drop_path=0)
    assert model.options == {"drop_path": 0.0}


def test_logits_and_gradients_are_those_of_transformers():
    torch.manual_seed(0)
    model = build_model("segformer", num_classes=5, variant="b0", width=0.25).double().eval()
    stock = transformers.SegformerForSemanticSegmentation(model.config).double().eval()
    stock.load_state_dict(
        {k.replace("encoder.", "segformer.", 1): v for k, v in model.state_dict().items()}
    )
    batch = images(2, 3, 65, 100).double()
    labels = torch.randint(0, 5, (2, 65, 100), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(model, batch), stock_logits(stock, batch))
    F.cross_entropy(model(batch), labels).backward()
    stock(batch, labels=labels).loss.backward()  # upsamples and scores on its own
    theirs = dict(stock.named_parameters())
    for key, parameter in model.named_parameters():
        expected = theirs[key.replace("encoder.", "segformer.", 1)].grad
        torch.testing.assert_close(parameter.grad, expected, msg=key)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("side", [(64, 96), (65, 131)])
@pytest.mark.parametrize("variant", ["b0", "b3"])
def test_the_merged_head_is_the_stock_head(variant, side, frozen, training):
    """With a frozen encoder its features want no gradient; the head's parameters always do."""
    torch.manual_seed(0)
    model = build_model("segformer", num_classes=7, variant=variant)
    head = model.decode_head.double().train(training)
    head.dropout.p = 0.0  # drawn in the order of memory, which is another here
    features = [
        images(2, channels, -(-side[0] // stride), -(-side[1] // stride)).double()
        for channels, stride in zip(model.config.hidden_sizes, (4, 8, 16, 32), strict=True)
    ]
    for feature in features:
        feature.requires_grad_(not frozen)

    def outcome(decode) -> tuple[torch.Tensor, list[torch.Tensor]]:
        found = decode(features)
        wanted = [*head.parameters(), *(features if not frozen else [])]
        return found, list(torch.autograd.grad(found.square().mean(), wanted))

    (ours, our_gradients), (theirs, their_gradients) = outcome(model._decode), outcome(head)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    for mine, stock in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, stock, rtol=0, atol=1e-10)


def test_the_merged_head_merges_in_full_precision_under_autocast():
    torch.manual_seed(0)
    model = build_model("segformer", num_classes=5, variant="b0", width=0.5).eval()
    weights, bias = model._merged()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = logits(model, images(1, 3, 64, 96))
        same_weights, same_bias = model._merged()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close((same_weights, same_bias), (weights, bias), rtol=0, atol=0)


def test_transformers_loads_what_we_save(tmp_path):
    torch.manual_seed(0)
    model = build_model("segformer", num_classes=3, variant="b0", width=0.25)
    model(images(2, 3, 64, 64))
    names = ["flat", "nature", "sky"]
    save_model(model, tmp_path / "m", class_names=names)
    stock, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report.values())
    assert stock.config.id2label == dict(enumerate(names))
    batch = images(1, 3, 64, 80)
    torch.testing.assert_close(logits(model, batch), stock_logits(stock, batch))
    # the layout that Hugging Face's own checkpoints have
    keys = load_file(tmp_path / "m" / "model.safetensors").keys()
    assert "segformer.encoder.patch_embeddings.0.proj.weight" in keys
    assert "decode_head.linear_c.0.proj.weight" in keys


def test_a_classifier_lends_its_encoder(classifier, tmp_path):
    torch.manual_seed(1)
    model = build_model("segformer", num_classes=8, pretrained=str(classifier), drop_path=0.0)
    assert model.training
    source = transformers.SegformerForImageClassification.from_pretrained(classifier)
    for key, tensor in source.segformer.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], tensor), key
    assert not any(type(m).__name__ == "SegformerDropPath" for m in model.modules())

    other = [build_model("segformer", num_classes=8, pretrained=str(classifier)) for _ in range(2)]
    torch.manual_seed(1)
    again = build_model("segformer", num_classes=8, pretrained=str(classifier))
    weight = "decode_head.classifier.weight"
    assert torch.equal(model.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(other[0].state_dict()[weight], other[1].state_dict()[weight])
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key

    # what is saved stands on its own: nothing in it names where it came from
    save_model(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "segray.json").read_text())["options"] == {"drop_path": 0.0}
    assert all(
        str(classifier).encode() not in path.read_bytes() for path in (tmp_path / "m").iterdir()
    )
    batch = images(1, 3, 40, 64)
    loaded = load_model(tmp_path / "m")
    assert torch.equal(logits(model, batch), logits(loaded, batch))
    assert loaded.options == model.options


def test_a_checkpoint_as_a_pickle_in_half_precision(classifier, tmp_path):
    (tmp_path / "config.json").write_bytes((classifier / "config.json").read_bytes())
    tensors = load_file(classifier / "model.safetensors")
    half = {key: t.half() if t.is_floating_point() else t for key, t in tensors.items()}
    torch.save(half, tmp_path / "pytorch_model.bin")
    model = build_model("segformer", num_classes=8, pretrained=str(tmp_path))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    source = half["segformer.encoder.layer_norm.3.weight"]
    assert any(torch.equal(p, source.float()) for p in model.encoder.parameters())


@pytest.mark.parametrize("num_classes", [8, 19])
def test_a_segmentation_checkpoint_lends_what_fits(segmenter, num_classes):
    model = build_model("segformer", num_classes=num_classes, pretrained=str(segmenter))
    source = transformers.SegformerForSemanticSegmentation.from_pretrained(segmenter)
    theirs = source.state_dict()
    for key, tensor in model.state_dict().items():
        if num_classes == 19 or not key.startswith("decode_head.classifier."):
            assert torch.equal(tensor, theirs[key.replace("encoder.", "segformer.", 1)]), key
    if num_classes == 19:
        batch = images(1, 3, 64, 48)
        torch.testing.assert_close(logits(model, batch), stock_logits(source, batch))


def test_loading_and_saving_are_silent_and_leave_the_loggers_alone(classifier, tmp_path, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        model = build_model("segformer", num_classes=8, pretrained=str(classifier))
        save_model(model, tmp_path / "m")
        load_model(tmp_path / "m")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


def test_other_models_are_refused_with_what_they_are(tmp_path, classifier):
    def refused(match: str) -> None:
        with pytest.raises(ModelError, match=match) as caught:
            build_model("segformer", num_classes=8, pretrained=str(tmp_path))
        assert str(tmp_path) in str(caught.value)

    refused("no files")
    save_model(build_model("unet", num_classes=8, width=2, depth=1), tmp_path)
    refused(r"no config\.json \(it has model\.safetensors, segray\.json\)")
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    refused(r"a model of type vit \(ViTForImageClassification\)")
    config.write_text('{"architecture": "resnet50"}')
    refused("names no model_type")
    config.write_text("[]")
    refused("names no model_type")
    config.write_text("{")
    refused("not JSON")
    config.write_bytes((classifier / "config.json").read_bytes())
    refused(r"encoder in .* missing or misshapen")  # a UNet's weights beside a SegFormer's config
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    refused("can read in")
    (tmp_path / "model.safetensors").unlink()
    refused(r"config\.json without model\.safetensors")


@pytest.mark.parametrize(
    "path", ["./nowhere", "../nowhere", "/nowhere/at/all", "~/x", "runs/mine/best", "two words"]
)
def test_a_folder_that_is_not_there(path):
    with pytest.raises(ModelError, match="which is no folder"):
        build_model("segformer", num_classes=8, pretrained=path)


def test_a_hub_out_of_reach_is_told_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # a port of this machine that nobody listens on: the real client, refused
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        build_model("segformer", num_classes=8, pretrained="nvidia/mit-b3")
    assert time.monotonic() - start < 10  # the library's own retries take 23 s
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "'nvidia/mit-b3'",
        "could not be reached (ConnectError",
        "`hf download nvidia/mit-b3 --local-dir DIR`",
        "model.pretrained=DIR",
        "model={name: segformer, variant: b0}",
    ):
        assert part in message
    assert caught.value.__cause__ is not None


def test_other_answers_of_the_hub(monkeypatch):
    def ask(error: Exception) -> str:
        def answer(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
        with pytest.raises(ModelError) as caught:
            build_model("segformer", num_classes=8, pretrained="nobody/nothing-of-segray")
        return str(caught.value)

    errors = huggingface_hub.errors
    missing = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    assert "no model of that name, or a private one" in ask(missing)
    gated = errors.GatedRepoError.__new__(errors.GatedRepoError)
    assert "must grant access" in ask(gated)
    assert "HF_HUB_OFFLINE is set" in ask(errors.OfflineModeIsEnabled("offline"))


@pytest.mark.parametrize(
    ("offered", "fetched"),
    [
        (["config.json", "pytorch_model.bin", "tf_model.h5"], "pytorch_model.bin"),
        (["config.json", "pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        (["config.json", "tf_model.h5"], None),
    ],
)
def test_one_weights_file_is_downloaded(classifier, monkeypatch, offered, fetched):
    siblings = [SimpleNamespace(rfilename=name) for name in offered]
    info = SimpleNamespace(siblings=siblings)
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(classifier)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if fetched:
        build_model("segformer", num_classes=8, pretrained="nobody/nothing-of-segray")
        assert asked == [("nobody/nothing-of-segray", ["config.json", fetched])]
    else:
        with pytest.raises(ModelError, match="holds no"):
            build_model("segformer", num_classes=8, pretrained="nobody/nothing-of-segray")


def test_the_hub_cache_is_used_without_asking(classifier, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--owner--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((classifier / name).read_bytes())
    refs = tmp_path / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def answer(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    model = build_model("segformer", num_classes=8, pretrained="owner/tiny")
    assert model.config.hidden_sizes == TINY["hidden_sizes"]


def test_a_segformer_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from segray.models import build_model\n"
        "assert 'transformers' not in sys.modules\n"
        "build_model('segformer', num_classes=2, variant='b0', width=0.1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""

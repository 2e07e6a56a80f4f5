"""An ONNX file gives the masks of the model, at any size, or is not written."""

import importlib.util
import json

import numpy as np
import pytest
import torch

import segray
from segray.config import RequestError, WorkError
from segray.data.augment import MEAN, STD
from segray.models import build_model, save_model, segformer
from segray.predict import export, export_onnx

without = [name for name in export.NEEDED if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(without), reason=f"not installed: {', '.join(without)}")


@pytest.fixture(scope="module", params=["unet", "segformer"])
def exported(request, tmp_path_factory):
    """A predictor, and its model as ONNX."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # a block a stage: the exporter takes seconds for each
        patch.setitem(segformer.VARIANTS, "b0", ((32, 64, 160, 256), (1, 1, 1, 1), 256))
        options = {"unet": {"width": 4, "depth": 2}, "segformer": {"variant": "b0", "width": 0.25}}
        model = build_model(request.param, num_classes=4, **options[request.param])
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))
    names, colours = ("road", "sky", "tree", "car"), [(k, k, k) for k in range(4)]
    facts = {"class_names": names, "image_size": (40, 64), "class_colours": colours}
    save_model(model, folder / "best", **facts)
    loaded = segray.load(folder, device="cpu")
    return loaded, export_onnx(loaded, folder / "files" / "model.onnx")


@needs_onnx
def test_it_gives_the_models_masks_at_any_size(exported, paint):
    import onnxruntime

    loaded, made = exported
    assert made.equal > 0.999
    assert 0 <= made.difference < 1e-4
    assert [path.name for path in made.file.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(made.file, providers=["CPUExecutionProvider"])
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.shape) == ("images", ["batch", 3, "height", "width"])
    assert (outputs.name, outputs.shape) == ("logits", ["batch", 4, "height", "width"])
    for n, height, width in ((1, 40, 64), (3, 32, 32), (2, 61, 107)):
        images = np.stack([paint(height, width, seed) for seed in range(n)])
        batch = ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
        (logits,) = session.run(["logits"], {"images": batch})
        masks = loaded.predict(images, window=(height, width))
        assert np.mean(logits.argmax(1) == np.stack(masks)) > 0.999


@needs_onnx
def test_the_file_says_what_it_takes(exported):
    import onnx

    loaded, made = exported
    onnx.checker.check_model(made.file)
    said = {p.key: json.loads(p.value) for p in onnx.load(made.file).metadata_props}
    assert said == {
        "mean": list(MEAN),
        "std": list(STD),
        "size": [40, 64],
        "class_names": list(loaded.classes),
        "class_colours": loaded.colours.tolist(),
    }


@needs_onnx
@pytest.mark.parametrize("wrong", ["masks", "shape"])
def test_other_masks_are_no_export(exported, tmp_path, monkeypatch, paint, wrong):
    loaded, made = exported

    def write(model, predictor, file):
        file.write_bytes(made.file.read_bytes())

    def other(batch):
        logits = -loaded.model(batch)
        return logits[:, :3] if wrong == "shape" else logits

    monkeypatch.setattr(export, "_write", write)
    # what was written there before stays
    (tmp_path / "m.onnx").write_text("earlier")
    export_onnx(loaded, tmp_path / "good.onnx", paint(50, 60))
    monkeypatch.setattr(export.copy, "deepcopy", lambda model: model)
    monkeypatch.setattr(loaded.model, "to", lambda *_, **__: other)
    message = "gives other masks than the model" if wrong == "masks" else r"logits of \(1, 4"
    with pytest.raises(WorkError, match=message):
        export_onnx(loaded, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx", "m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "earlier"


def test_missing_packages_are_named(unet, tmp_path, monkeypatch):
    loaded = segray.load(unet, device="cpu")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(RequestError, match=r"no onnxscript here: pip install 'segray\[onnx\]'"):
        export_onnx(loaded, tmp_path / "m.onnx")


@needs_onnx
def test_names_that_are_refused(unet, tmp_path):
    loaded = segray.load(unet, device="cpu")
    with pytest.raises(RequestError, match=r"ends in \.onnx, got model"):
        export_onnx(loaded, "model")
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(RequestError, match="which is a folder"):
        export_onnx(loaded, tmp_path / "m.onnx")


@needs_onnx
def test_a_failing_exporter_is_told_in_a_line(unet, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("unsupported operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    message = r"torch\.onnx\.export failed: RuntimeError: unsupported operator\. Try"
    with pytest.raises(WorkError, match=message):
        export_onnx(segray.load(unet, device="cpu"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []

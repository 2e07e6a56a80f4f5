"""What is predicted: the masks of evaluation, whatever the batch, the size and the source."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import segray
from segray.config import RequestError, WorkError
from segray.data import Dataset
from segray.data.augment import MEAN, STD
from segray.data.samples import Splits
from segray.models import ModelError, load_model
from segray.predict import BadImage, predictor
from segray.train import evaluate, predict_masks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(folder):
    return segray.load(folder, device="cpu")


def equal_share(one, other):
    return float(np.mean(np.asarray(one) == np.asarray(other)))


def test_attributes(loaded, folder):
    assert loaded.classes == ("flat", "construction", "object", "nature", "sky")
    assert loaded.size == (48, 80)
    assert loaded.colours.tolist()[0] == [128, 64, 128]
    assert not loaded.model.training
    other = load_model(folder / "best").state_dict()
    assert all(torch.equal(t, loaded.model.state_dict()[key]) for key, t in other.items())


def test_masks_are_those_that_training_evaluates(loaded, paint):
    images = np.stack([paint(48, 80, seed) for seed in range(4)])
    truth = np.zeros((4, 48, 80), dtype=np.uint8)
    large = truth.repeat(3, axis=1).repeat(3, axis=2)
    ids = ("0", "1", "2", "3")
    dataset = Dataset(
        ids, ids, Splits((), (), ids), loaded.classes, images, truth, large.__getitem__
    )
    masks = loaded.predict(list(images))
    assert len(np.unique(masks)) >= 4  # or the comparison would show little
    expected = predict_masks(loaded.model, dataset, range(4), CPU)
    assert equal_share(masks, expected) > 0.9999  # a batch of one rounds otherwise

    counts, _ = evaluate(loaded.model, dataset, range(4), device=CPU)
    assert counts[:, 0].tolist() == [np.bincount(m.ravel(), minlength=5).tolist() for m in masks]

    # an image of another size: resized as the cache does it, its logits upsampled to its own size
    image = paint(144, 240, 7)
    images[0] = Image.fromarray(image).resize((80, 48), Image.Resampling.BILINEAR)
    counts, _ = evaluate(loaded.model, dataset, [0], device=CPU, batch_size=1, native=True)
    mask = loaded.predict(image)
    assert counts[0, 0].tolist() == np.bincount(mask.ravel(), minlength=5).tolist()


def test_a_segformer_predicts_what_transformers_does(loaded, folder, paint):
    if folder.name != "segformer":
        pytest.skip("a UNet is no model of transformers")
    stock = transformers.SegformerForSemanticSegmentation.from_pretrained(folder / "best").eval()
    assert list(stock.config.id2label.values()) == list(loaded.classes)
    image = paint(48, 80)
    normalised = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    with torch.inference_mode():
        logits = stock(torch.tensor(normalised[None], dtype=torch.float32)).logits
    full = torch.nn.functional.interpolate(logits, (48, 80), mode="bilinear")
    assert equal_share(loaded.predict(image), full.argmax(1)[0]) > 0.9999


@pytest.mark.parametrize("window", [None, (40, 48)])
def test_batches_change_nothing(loaded, paint, window):
    images = [paint(60, 100, 1), paint(33, 64, 2), paint(60, 100, 3), paint(60, 100, 4)]
    alone = [loaded.predict(image, batch=1, window=window) for image in images]
    for batch in (2, 3, 16):
        together = loaded.predict(images, batch=batch, window=window)
        for one, other in zip(alone, together, strict=True):
            assert one.shape == other.shape
            assert equal_share(one, other) > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (7, 5), (31, 200), (97, 131), (300, 20)])
@pytest.mark.parametrize("window", [None, (32, 32), (50, 70)])
def test_any_size(loaded, paint, size, window):
    mask = loaded.predict(paint(*size), window=window)
    assert mask.shape == size
    assert mask.dtype == np.uint8
    assert mask.flags.c_contiguous
    assert mask.max() < 5


def test_a_window_of_the_images_size_is_the_whole_image(loaded, paint):
    image = paint(48, 80)
    whole = loaded.predict(image)
    assert np.array_equal(whole, loaded.predict(image, window=(48, 80)))
    assert np.array_equal(whole, loaded.predict(image, window=(1000, 1000)))


def test_windows_overlap_and_are_averaged(loaded, paint):
    image = paint(100, 170)
    window = (40, 60)
    total, seen = np.zeros((5, 100, 170)), np.zeros((100, 170), dtype=int)
    tops, lefts = [0, 20, 40, 60], [0, 37, 73, 110]
    for top in tops:
        for left in lefts:
            part = image[top : top + 40, left : left + 60]
            normalised = ((part / 255 - MEAN) / STD).transpose(2, 0, 1)
            with torch.inference_mode():
                logits = loaded.model(torch.tensor(normalised[None], dtype=torch.float32))[0]
            total[:, top : top + 40, left : left + 60] += logits.numpy()
            seen[top : top + 40, left : left + 60] += 1
    assert seen.min() == 1
    expected = (total / seen).argmax(0)
    assert equal_share(expected, loaded.predict(image, window=window)) > 0.999


@pytest.mark.parametrize("length", [32, 33, 64, 65, 100, 1000])
def test_windows_cover_everything(length):
    starts = predictor._starts(length, 32)
    assert starts[0] == 0
    assert starts[-1] == length - 32
    assert all(0 < b - a <= 32 * 2 / 3 + 1 for a, b in pairwise(starts))


def test_huge_images_are_upsampled_in_strips(loaded, paint, monkeypatch):
    image = paint(200, 333)
    at_once = loaded.predict(image)
    monkeypatch.setattr(predictor, "AT_ONCE", 5 * 333 * 7)
    assert equal_share(at_once, loaded.predict(image)) > 0.999


def test_sources_of_images(loaded, paint, tmp_path):
    image = paint(50, 90)
    Image.fromarray(image).save(tmp_path / "a.png")
    mask = loaded.predict(image)
    assert np.array_equal(mask, loaded.predict(tmp_path / "a.png"))
    assert np.array_equal(mask, loaded.predict(str(tmp_path / "a.png")))
    assert np.array_equal(mask, loaded.predict(Image.fromarray(image)))
    several = loaded.predict([tmp_path / "a.png", Image.fromarray(image[:40]), image])
    assert [m.shape for m in several] == [(50, 90), (40, 90), (50, 90)]
    assert np.array_equal(mask, several[2])
    assert isinstance(loaded.predict(image[None]), list)
    assert loaded.predict([]) == []


def test_a_folder_that_says_little(bare, paint):
    early = segray.load(bare, device="cpu")
    assert early.size is None
    assert early.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert len({tuple(colour) for colour in early.colours.tolist()}) == 5
    for size in ((10, 20), (61, 77)):
        assert early.predict(paint(*size)).shape == size
    image = paint(61, 77)
    assert np.array_equal(early.predict(image), early.predict(image, window=(61, 77)))


def test_overlay_and_palette(loaded, paint):
    image = paint(50, 90)
    mask = loaded.predict(image)
    overlay = np.asarray(loaded.overlay(image, mask)).astype(int)
    assert np.abs(overlay - (image.astype(int) + loaded.colours[mask]) / 2).max() <= 1
    assert np.array_equal(np.asarray(loaded.overlay(image, mask, opacity=0)), image)
    assert np.array_equal(np.asarray(loaded.palette(mask)), mask)
    with pytest.raises(RequestError, match=r"mask of the image's size \(50, 90\), got \(50, 80\)"):
        loaded.overlay(image, mask[:, :80])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5), dtype=np.uint8), r"array \(5, 5\) of uint8"),
        (np.zeros((5, 5, 3)), r"array \(5, 5, 3\) of float64"),
        (np.zeros((3, 5, 5), dtype=np.uint8), "last axis"),
        (np.zeros((0, 5, 3), dtype=np.uint8), r"array \(0, 5, 3\)"),
        (7, "got a int"),
        ("nowhere.png", r"cannot read nowhere\.png"),
        (Image.new("F", (5, 5)), "floating point"),
    ],
)
def test_what_is_no_image_is_refused(loaded, image, message):
    with pytest.raises(BadImage, match=message):
        loaded.predict(image)


def test_wrong_requests(loaded, unet, tmp_path, paint):
    with pytest.raises(RequestError, match=r"batch: expected 1 or more .* got 0"):
        loaded.predict(paint(40, 40), batch=0)
    with pytest.raises(RequestError, match=r"32 pixels or more each, got \(16, 64\)"):
        loaded.predict(paint(40, 40), window=(16, 64))
    with pytest.raises(RequestError, match=r"expected auto, cpu or a GPU .* got gpu"):
        segray.load(unet, device="gpu")
    with pytest.raises(ModelError, match=r"nowhere, which does not exist"):
        segray.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"as runs/<name>/best, got .*, which holds nothing"):
        segray.load(tmp_path)
    (tmp_path / "sweep.yaml").touch()
    with pytest.raises(ModelError, match="a run that has no best/ yet; `segray status"):
        segray.load(tmp_path)
    with pytest.raises(ModelError, match="which is a file"):
        segray.load(tmp_path / "sweep.yaml")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(unet):
    with pytest.raises(RequestError, match="expected auto, cpu or a GPU that is here, got cuda"):
        segray.load(unet, device="cuda")


def test_out_of_memory_is_told(unet, paint, monkeypatch):
    loaded = segray.load(unet, device="cpu")

    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loaded.model, "coarse", full)
    with pytest.raises(WorkError, match=r"out of memory on cpu with images of 40x50 .*window"):
        loaded.predict(paint(40, 50))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_predicts_the_same(folder, paint):
    images = [paint(60, 100, 1), paint(60, 100, 2)]
    on_cpu, on_gpu = (
        segray.load(folder, device=device).predict(images) for device in ("cpu", "cuda")
    )
    assert equal_share(on_cpu, on_gpu) > 0.999

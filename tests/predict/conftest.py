"""Saved models of a second's work, and images of every kind."""

import numpy as np
import pytest
import torch
from PIL import Image

from segray.models import build_model, save_model

SIZE = (48, 80)
NAMES = ("flat", "construction", "object", "nature", "sky")
COLOURS = ((128, 64, 128), (70, 70, 70), (153, 153, 153), (107, 142, 35), (70, 130, 180))


def picture(height, width, seed=0):
    """(H, W, 3): smooth patches with noise, so that classes come in areas."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    noisy = np.asarray(smooth) + rng.normal(0, 8, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def make(name):
    """A model whose random weights give all classes some pixels."""
    torch.manual_seed(3)
    options = {"unet": {"width": 4, "depth": 3}, "segformer": {"variant": "b0", "width": 0.25}}
    model = build_model(name, num_classes=len(NAMES), **options[name])
    with torch.no_grad():
        model(torch.randn(4, 3, 64, 64))  # running statistics unlike their start
        logits = model.eval()(torch.randn(4, 3, 64, 64))
        last = model.head if name == "unet" else model.decode_head.classifier
        mean, std = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
        last.weight /= std[:, None, None, None]
        last.bias.copy_((last.bias - mean) / std)
    return model


@pytest.fixture(scope="session")
def paint():
    return picture


@pytest.fixture(scope="session", params=["unet", "segformer"])
def folder(request, tmp_path_factory):
    """runs/<name> with its best/."""
    run = tmp_path_factory.mktemp("runs") / request.param
    facts = {"class_names": NAMES, "image_size": SIZE, "class_colours": COLOURS}
    save_model(make(request.param), run / "best", **facts)
    return run


@pytest.fixture(scope="session")
def unet(tmp_path_factory):
    """A saved UNet."""
    best = tmp_path_factory.mktemp("unet") / "best"
    facts = {"class_names": NAMES, "image_size": SIZE, "class_colours": COLOURS}
    save_model(make("unet"), best, **facts)
    return best


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A UNet as an earlier segray saved it: without size, names and colours."""
    best = tmp_path_factory.mktemp("bare") / "best"
    save_model(make("unet"), best)
    return best

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from segray.models import build_model


def test_default_is_the_classic_of_31_million():
    with torch.device("meta"):
        model = build_model("unet", num_classes=8)
    # 3x3 convolutions and the two vectors of their norms, 2x2 transposed ones, the 1x1 head
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * (a + b) * b + 4 * b for a, b in zip([3, *widths[:-1]], widths, strict=True))
    up = sum(
        (8 * a * a + a) + 9 * (2 * a + a) * a + 4 * a for a in widths[:-1]
    )  # from 2a channels to a
    count = sum(p.numel() for p in model.parameters())
    assert count == down + up + 64 * 8 + 8
    assert 31_000_000 <= count < 31_100_000


@pytest.mark.parametrize(("width", "depth"), [(4, 1), (6, 2), (3, 5)])
def test_width_and_depth(width, depth):
    model = build_model("unet", num_classes=3, width=width, depth=depth).eval()
    with torch.inference_mode():
        features = model.encoder(torch.randn(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [
        (1, width * 2**i, 64 // 2**i, 96 // 2**i) for i in range(depth + 1)
    ]


def test_padding_repeats_the_edge_and_is_cropped():
    torch.manual_seed(0)
    model = build_model("unet", num_classes=3, width=4, depth=3).eval()
    images = torch.randn(1, 3, 33, 45)
    padded = F.pad(images, (0, 3, 0, 7), mode="replicate")
    with torch.inference_mode():
        assert torch.equal(model(images), model(padded)[..., :33, :45])


def test_a_unet_needs_no_transformers():
    code = (
        "import sys; sys.modules['torchvision'] = None; sys.modules['transformers'] = None\n"
        "from segray.models import build_model, save_model, load_model\n"
        "build_model('unet', num_classes=2, width=2, depth=1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

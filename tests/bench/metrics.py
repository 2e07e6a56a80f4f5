"""Counting pixels: segray against torchmetrics, a Python loop, and the usual way from quarter-size
logits.

Masks are those of the streets, enlarged, and logits are noisy versions of them, smoothed until
they are wrong about as often as a trained model, since what is fast depends on where classes meet.
"""

import importlib.util

import numpy as np
import torch
from common import STREETS, arguments, conditions, in_turns, report
from PIL import Image
from torch.nn import functional as F

from segray.config import ScenesData
from segray.data import IGNORE
from segray.data.labels import label_table
from segray.train.metrics import count_pixels, count_preds, leading_class, upsampled_preds

CLASSES = 7


def count_upsampled(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What `evaluate` does with an image's logits (K, h, w) and its mask (H, W): (K + 1, K)."""
    return count_preds(upsampled_preds(logits, mask.shape)[None], mask[None], len(logits))[0]


def street_masks(count: int, height: int, width: int) -> torch.Tensor:
    """(count, height, width) uint8 class indices, IGNORE where void."""
    table = label_table(ScenesData(format="scenes"))
    paths = sorted((STREETS / "gtFine").rglob("*labelIds.png"))
    if not paths:
        raise SystemExit(f"no masks below {STREETS}")
    chosen = [paths[at * len(paths) // count] for at in range(count)]
    nearest = Image.Resampling.NEAREST
    masks = [np.asarray(Image.open(path).resize((width, height), nearest)) for path in chosen]
    return torch.from_numpy(table[np.stack(masks)])


def logits_like(masks: torch.Tensor, stride: int, noise: float = 6) -> torch.Tensor:
    """(N, K, H / stride, W / stride): the truth, blurred, with noise."""
    generator = torch.Generator().manual_seed(0)
    small = masks[:, ::stride, ::stride].long()
    one_hot = F.one_hot(small.clamp(max=CLASSES), CLASSES + 1)[..., :CLASSES]
    logits = 4 * one_hot.permute(0, 3, 1, 2).float()
    random = torch.randn(logits.shape, generator=generator)
    smooth = F.avg_pool2d(logits + noise * random, 5, stride=1, padding=2)
    return smooth.contiguous()


def python_loop(preds: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What a person writes first."""
    counts = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for t, p in zip(truth.ravel().tolist(), preds.ravel().tolist(), strict=True):
        if t != IGNORE:
            counts[t, p] += 1
    return counts


def usual(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Interpolate, argmax, int64 bincount over the pixels that count."""
    full = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
    preds, truth = full.argmax(1), masks.long()
    kept = truth != IGNORE
    cells = truth[kept] * CLASSES + preds[kept]
    return torch.bincount(cells, minlength=CLASSES**2).view(CLASSES, CLASSES)


def main() -> None:
    parser = arguments(__doc__)
    asked = parser.parse_args()
    print(conditions(asked.threads))

    masks = street_masks(8, 512, 1024)
    logits = logits_like(masks, 1)
    preds = leading_class(logits)
    assert torch.equal(preds, logits.argmax(1))
    wrong = (preds != masks)[masks != IGNORE].float().mean()
    contenders = {
        "segray": lambda: count_pixels(logits, masks),
        "argmax, int64 bincount": lambda: usual(logits, masks),
    }
    given = {"segray": lambda: count_preds(preds, masks, CLASSES)}
    expected = count_pixels(logits, masks).sum(0)[:CLASSES]
    if importlib.util.find_spec("torchmetrics"):
        from torchmetrics.classification import MulticlassConfusionMatrix

        long, long_preds = masks.long(), preds.long()

        def theirs(preds: torch.Tensor) -> torch.Tensor:
            metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=False)
            metric.update(preds, long)
            return metric.compute()

        assert torch.equal(theirs(logits), expected)
        contenders["torchmetrics"] = lambda: theirs(logits)
        given["torchmetrics"] = lambda: theirs(long_preds)
    else:
        print("torchmetrics is not installed: pip install torchmetrics into a scratch environment")
    title = f"confusion matrix of 8x512x1024 from logits ({wrong:.0%} of the pixels wrong)"
    report(title, in_turns(contenders, asked.rounds), "segray")
    report("the same with predictions given", in_turns(given, asked.rounds), "segray")

    small = {
        "segray": lambda: count_pixels(logits[:1], masks[:1]),
        "python loop, preds given": lambda: python_loop(preds[0].numpy(), masks[0].numpy()),
    }
    counted = count_pixels(logits, masks)[0, :CLASSES].numpy()
    assert (small["python loop, preds given"]() == counted).all()
    report("the same of 512x1024", in_turns(small, 3), "segray")

    truth = street_masks(4, 1024, 2048)
    for noise in (3, 6, 12):
        coarse = logits_like(truth, 4, noise)
        pairs = list(zip(coarse, truth, strict=True))
        found = torch.stack([count_upsampled(c, t) for c, t in pairs]).sum(0)[:CLASSES]
        off = (found - usual(coarse, truth)).abs().sum().item() // 2
        accuracy = found.diag().sum() / found.sum()
        contenders = {
            "segray": lambda: [count_upsampled(c, t) for c, t in pairs],  # noqa: B023
            "interpolate, argmax, bincount": lambda: [
                usual(c[None], t[None])
                for c, t in pairs  # noqa: B023
            ],
        }
        report(
            f"evaluation of 4 images of 2048x1024 from quarter-size logits, accuracy {accuracy:.0%}"
            f" ({off} pixels differ)",
            in_turns(contenders, asked.rounds),
            "segray",
            4,
        )


if __name__ == "__main__":
    main()

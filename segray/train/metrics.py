"""Confusion matrices and what is computed from them.

N images, K classes, H x W pixels. Counts are int64 and exact: matrices of any number of images,
steps and workers may be added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.data import IGNORE


def count_pixels(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits (N, K, H, W) and uint8 masks (N, H, W) -> counts (N, K + 1, K) int64.

    counts[n, true, predicted]; the last row holds the pixels whose truth is ignored, so that the
    sum is always N x H x W.
    """
    n, k = logits.shape[:2]
    # max is several times faster than argmax on CPU, with the same result.
    preds = logits.max(1).indices.view(n, -1)  # (N, H*W)
    truth = masks.view(n, -1)
    # One byte a pixel where (K + 1) x K indices fit: the memory traffic is the cost.
    dtype = torch.uint8 if (k + 1) * k <= IGNORE + 1 else torch.int32
    cells = truth.clamp(max=k).to(dtype).mul_(k).add_(preds.to(dtype))
    size = (k + 1) * k
    return torch.stack([torch.bincount(row, minlength=size).view(k + 1, k) for row in cells])


def scores(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Metrics of a (K, K) matrix [true, predicted]; an absent class is left out everywhere.

    IoU = TP / (TP + FP + FN), Dice = 2 TP / (2 TP + FP + FN), accuracy = sum TP / all pixels, as in
    cityscapesScripts. A class that is neither in the truth nor predicted has no IoU. Where void is
    a class, `miou_without_void` is the mean over the others.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    present = union > 0
    iou = {name: float(hits[k] / union[k]) for k, name in enumerate(classes) if present[k]}
    dice = 2 * hits[present] / (union + hits)[present]
    total = float(confusion.sum())
    result = {f"iou/{name}": value for name, value in iou.items()}
    if iou:
        result |= {"miou": float(np.mean(list(iou.values()))), "dice": float(dice.mean())}
        result |= {"accuracy": float(hits.sum()) / total}
    if "void" in classes:
        named = [value for name, value in iou.items() if name != "void"]
        result |= {"miou_without_void": float(np.mean(named))} if named else {}
    return result

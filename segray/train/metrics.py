"""Confusion matrices and what is computed from them.

N images, K classes, H x W pixels. Counts are int64 and exact: matrices of any number of images,
steps and workers may be added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segray.data import IGNORE

SPARSE = 0.2  # share of the pixels up to which those between classes are interpolated one by one


def leading_class(logits: Tensor) -> Tensor:
    """Logits (N, K, H, W) -> the class of the largest (N, H, W), uint8; of equal ones the first.

    argmax over dimension 1 strides through memory. Here each class is compared with the best so
    far, plane by plane and image by image, in operations that vectorise: 25 times as fast on a CPU.
    """
    return torch.stack([_leading(image) for image in logits])


def _leading(image: Tensor) -> Tensor:
    best = image[0].clone()  # (H, W)
    leads = torch.empty_like(best, dtype=torch.bool)
    found = torch.zeros_like(best, dtype=torch.uint8)
    for k in range(1, len(image)):
        torch.gt(image[k], best, out=leads)
        torch.maximum(image[k], best, out=best)
        # A later class has a larger number: a maximum takes the place of a slow masked fill.
        torch.maximum(leads.view(torch.uint8).mul_(k), found, out=found)
    return found


def count_pixels(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits (N, K, H, W) and uint8 masks (N, H, W) -> counts (N, K + 1, K) int64.

    counts[n, true, predicted]; the last row holds the pixels whose truth is ignored, so that the
    sum is always N x H x W.
    """
    return count_preds(leading_class(logits), masks, logits.shape[1])


def count_preds(preds: Tensor, masks: Tensor, k: int) -> Tensor:
    """Classes and masks (N, H, W), both uint8 -> counts (N, K + 1, K), see `count_pixels`."""
    # One byte a pixel where (K + 1) x K indices fit: the memory traffic is the cost.
    size = (k + 1) * k
    dtype = torch.uint8 if size <= IGNORE + 1 else torch.int32
    cells = masks.clamp(max=k).to(dtype).mul_(k).add_(preds.to(dtype)).flatten(1)
    return torch.stack([torch.bincount(row, minlength=size).view(k + 1, k) for row in cells])


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (N, K, h, w) -> (N, K, *size), bilinearly, as a model's forward has them."""
    if logits.shape[-2:] == torch.Size(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def upsampled_preds(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Of one image's logits (K, h, w), upsampled to `size`: the leading class (H, W), uint8.

    On a CPU they are not made: where a class leads at all four logits around a pixel it leads at
    the pixel too, whatever the weights, so that only pixels between classes are interpolated. Ties
    within rounding aside, the classes are the same.
    """
    height, width = size
    if logits.device.type == "cpu" and logits.shape[-2:] != torch.Size(size):
        preds = _sparse_preds(logits, (height, width))
        if preds is not None:
            return preds
    return _leading(upsample(logits[None], size)[0])


def _sparse_preds(logits: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Logits (K, h, w) -> the leading class (H, W), uint8, once upsampled to `size`.

    None where so many pixels lie between classes that to upsample all of them is faster.
    """
    k, h, w = logits.shape
    best = _leading(logits)  # (h, w)
    # A cell lies between a logit, its right neighbour and the two below; at the rim they coincide.
    low = torch.cat([best[1:], best[-1:]])
    cell = (best == low) & (best == torch.cat([best[:, 1:], best[:, -1:]], 1))
    cell &= best == torch.cat([low[:, 1:], low[:, -1:]], 1)
    y, wy = _taps(h, size[0])
    x, wx = _taps(w, size[1])
    preds = best[y][:, x]  # (H, W)
    between = (~cell[y][:, x]).view(-1).nonzero().squeeze(1)  # (M,) pixels
    if len(between) > SPARSE * preds.numel():
        return None
    rows, columns = between // size[1], between % size[1]
    y0, x0 = y[rows], x[columns]
    y1, x1 = (y0 + 1).clamp_(max=h - 1), (x0 + 1).clamp_(max=w - 1)
    down, right = wy[rows, None].to(logits), wx[columns, None].to(logits)
    points = logits.permute(1, 2, 0).reshape(h * w, k)  # a row of K logits a point
    upper = torch.lerp(points[y0 * w + x0], points[y0 * w + x1], right)  # (M, K)
    lower = torch.lerp(points[y1 * w + x0], points[y1 * w + x1], right)
    preds.view(-1)[between] = torch.lerp(upper, lower, down).max(1).indices.to(torch.uint8)
    return preds


def _taps(length: int, target: int) -> tuple[Tensor, Tensor]:
    """Along one axis: for each of `target` pixels the logit before it, and how far beyond it lies.

    Centres of pixels are aligned, as in F.interpolate with align_corners=False.
    """
    place = (torch.arange(target) + 0.5) * (length / target) - 0.5
    place.clamp_(0, length - 1)
    first = place.long()
    return first, place - first


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

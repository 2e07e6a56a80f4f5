"""What training minimizes. N images, K classes, H x W pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segray.data import IGNORE
from segray.train import distributed


def balanced_weights(pixels: NDArray[np.int64]) -> tuple[float, ...]:
    """(K,) pixel counts -> weights by 1 / sqrt(frequency), with mean 1; an absent class gets 0."""
    weights = np.where(pixels > 0, 1 / np.sqrt(np.maximum(pixels, 1)), 0)
    return tuple((weights * len(weights) / weights.sum()).tolist())


def pixel_weight(masks: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """What the pixels of uint8 masks (N, H, W) weigh together, on all workers: scalar float32."""
    if class_weights is None:
        weight = (masks != IGNORE).sum()
    else:  # what is ignored, 255, weighs 0
        index = masks.clamp(max=len(class_weights)).long()
        weight = F.pad(class_weights, (0, 1))[index].sum()
    return distributed.sum_over_workers(weight.float())


def segmentation_loss(
    logits: Tensor,
    masks: Tensor,
    *,
    class_weights: Tensor | None = None,
    dice: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Logits (N, K, H, W) float32 and uint8 masks (N, H, W) -> scalar.

    Cross-entropy over class indices, a mean over all pixels that count, of all workers: a worker
    whose images have much void does not weigh more. Plus `dice` times `soft_dice_loss`. Every
    worker gets the value that one worker would have for the whole batch, and, once DDP has averaged
    over workers, its gradients. `weight` is the `pixel_weight` of the batch that these images are a
    part of, where they are not all of it: the parts' cross-entropies then add up to the batch's.
    """
    total = F.cross_entropy(
        logits, masks.long(), weight=class_weights, ignore_index=IGNORE, reduction="sum"
    )
    if weight is None:
        weight = pixel_weight(masks, class_weights)
    loss = _over_workers(total) / weight.clamp(min=1e-6)
    return loss + dice * soft_dice_loss(logits, masks) if dice else loss


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - the mean Dice of the softmax over the batch's classes (Milletari et al. 2016, V-Net).

    With |p| rather than |p|^2 in the denominator. Ignored pixels count nowhere; a class that is
    not in the batch's truth is left out. The batch is that of all workers together.
    """
    k = logits.shape[1]
    probabilities = logits.softmax(1) * (masks != IGNORE)[:, None]  # (N, K, H, W)
    # One number a pixel rather than K: the probability of its true class, summed by class. Ignored
    # pixels have probability 0 in every class and fall into a class of their own, which is cut off.
    # (bincount would do, but on a GPU it waits for the largest value.)
    truth = masks.clamp(max=k).long()  # (N, H, W)
    of_truth = probabilities.gather(1, truth.clamp(max=k - 1)[:, None])  # (N, 1, H, W)
    of_class = truth.flatten()
    ones = torch.ones((), dtype=torch.int64, device=truth.device).expand_as(of_class)
    pixels = ones.new_zeros(k + 1).index_add_(0, of_class, ones)
    sums = [
        probabilities.new_zeros(k + 1).index_add(0, of_class, of_truth.flatten())[:k],
        probabilities.sum((0, 2, 3)),
        pixels[:k].to(probabilities.dtype),
    ]
    overlap, predicted, size = _over_workers(torch.stack(sums))  # (K,) each
    score = 2 * overlap / (predicted + size).clamp(min=1e-6)
    present = size > 0
    loss: Tensor = ((1 - score) * present).sum() / present.sum().clamp(min=1)
    return loss


def _over_workers(here: Tensor) -> Tensor:
    """The sum of every worker's tensor; DDP averages gradients, hence theirs times world_size."""
    if distributed.world_size() == 1:
        return here
    scaled = here * distributed.world_size()
    return scaled + (distributed.sum_over_workers(here.detach().clone()) - scaled.detach())

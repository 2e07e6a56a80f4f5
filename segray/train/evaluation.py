"""Scoring a model on whole images. N images, K classes, H x W pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from segray.data import IGNORE, Batch, Dataset, eval_batches, loader_threads, to_device
from segray.models import Segmenter
from segray.train import distributed
from segray.train.metrics import count_preds, leading_class, upsample, upsampled_preds
from segray.train.step import autocast

EVAL_BATCH = 4  # images a forward pass without gradients takes, whatever training's batch is


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    positions: Sequence[int],
    *,
    device: torch.device,
    batch_size: int = EVAL_BATCH,
    dtype: torch.dtype | None = None,
    native: bool = False,
    keep: Callable[[int, NDArray[np.uint8]], None] | None = None,
) -> tuple[NDArray[np.int64], float]:
    """One confusion matrix an image, (len(positions), K, K) in their order, and the mean loss.

    Pixels are counted at the cached size, or, where `native`, at that of each mask's file; the loss
    is of the cached size. `keep` is called with each position and the classes (H, W) that were
    counted, on the worker that counted them.

    With several workers each takes its share and all get the whole; no image is padded or counted
    twice, and the number of pixels is checked. An image's matrix depends on nothing but the model
    and the image: every forward pass has `batch_size` images, the last one filled up with a copy.
    Kernels are chosen by shape and round differently (on CPU a batch of one does), so without that
    other workers would count other pixels.
    """
    distributed.share_buffers(model)
    model.eval()
    assert isinstance(model, Segmenter)
    found: list[tuple[int, Tensor]] = []
    loss = torch.zeros((), dtype=torch.float64, device=device)
    weighed = torch.zeros((), dtype=torch.int64, device=device)
    pixels = 0
    for group, batch in eval_batches(
        dataset,
        positions,
        batch_size=batch_size,
        native=native,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin=device.type == "cuda",
        threads=loader_threads(device),
    ):
        scored = score_batch(model, batch, batch_size=batch_size, device=device, dtype=dtype)
        loss += scored.loss
        weighed += scored.weighed
        if keep is not None:
            for position, pred in zip(group, scored.preds, strict=True):
                keep(position, pred.cpu().numpy())
        pixels += sum(mask.numel() for mask in batch.native_masks or batch.masks)
        found += zip(group, scored.counts, strict=True)
    on_cpu = [(position, counts.cpu()) for position, counts in found]
    place = dict(distributed.all_workers(on_cpu))
    counted = np.stack([place[position].numpy() for position in positions])
    expected = int(distributed.sum_over_workers(torch.tensor(pixels, device=device)))
    if counted.sum() != expected:
        raise RuntimeError(f"{counted.sum()} pixels were counted, and there are {expected}")
    mean = distributed.sum_over_workers(loss) / distributed.sum_over_workers(weighed).clamp(min=1)
    return counted[:, :-1], float(mean)


@dataclass(frozen=True)
class Scored:
    """What `evaluate` takes from a batch of N images."""

    loss: Tensor  # summed over pixels
    weighed: Tensor  # pixels that are not ignored
    preds: Sequence[Tensor]  # N of (H, W), at the size at which they are counted
    counts: Sequence[Tensor]  # N of (K + 1, K), see `count_pixels`


@torch.inference_mode()
def score_batch(
    model: Segmenter,
    batch: Batch,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype | None,
    lap: Callable[[str], None] = lambda part: None,
) -> Scored:
    """The loss of a batch and the pixels of its native masks, or, without any, of its masks.

    `lap` is told where each part ends, which is for `segray bench`.
    """
    images, masks = batch.on(device)
    lap("data")
    rest = images[-1:].expand(batch_size - len(images), -1, -1, -1)
    filled = torch.cat([images, rest]).contiguous(memory_format=torch.channels_last)
    with autocast(device, dtype):
        coarse = model.coarse(filled)[: len(images)].float().contiguous()
    lap("forward")
    logits = upsample(coarse, masks.shape[-2:])
    loss = F.cross_entropy(logits, masks.long(), ignore_index=IGNORE, reduction="sum")
    weighed = (masks != IGNORE).sum()
    lap("loss")
    if batch.native_masks:
        own = list(zip(coarse, batch.native_masks, strict=True))
        preds = [upsampled_preds(one, mask.shape) for one, mask in own]
        counts = [
            count_preds(pred[None], to_device(mask, device)[None], len(one))[0]
            for pred, (one, mask) in zip(preds, own, strict=True)
        ]
    else:
        preds = list(leading_class(logits))
        counts = list(count_preds(torch.stack(preds), masks, logits.shape[1]))
    lap("metrics")
    return Scored(loss, weighed, preds, counts)


@torch.inference_mode()
def predict_masks(
    model: nn.Module,
    dataset: Dataset,
    positions: Sequence[int],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> NDArray[np.uint8]:
    """Predicted class indices (len(positions), H, W) of a few images, in this process alone."""
    model.eval()
    preds = []
    for _, batch in eval_batches(dataset, positions, batch_size=1):
        with autocast(device, dtype):
            logits = model(batch.on(device)[0])
        preds.append(leading_class(logits.float()).cpu().numpy())
    return np.concatenate(preds)

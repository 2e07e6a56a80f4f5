"""A training step's parts: the model as a trial has it, its precision, its gradients.

N images, K classes, H x W pixels.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from segray.config import TrialConfig
from segray.models import build_model
from segray.train import distributed
from segray.train.loss import pixel_weight, segmentation_loss


def build_trial_model(config: TrialConfig) -> nn.Module:
    """The model a trial trains, on the CPU; its weights depend on torch's seed alone.

    In channels_last, whoever asks for it: the layout decides kernels, and kernels how sums round.
    """
    options = config.model.model_dump(exclude={"name"})
    num_classes = len(config.data.class_names)
    model = build_model(config.model.name, num_classes=num_classes, **options)
    # 1.3 times faster steps on CPU for UNet, and what tensor cores want on a GPU.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def on_workers(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as each worker calls it in training: gradients are means over the workers."""
    if distributed.world_size() == 1:
        return model
    if device.type != "cuda":
        return nn.parallel.DistributedDataParallel(model)
    # Statistics over the whole batch, as one worker would have them; there is no CPU version.
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index])


def backward(
    net: nn.Module,
    images: Tensor,
    masks: Tensor,
    *,
    passes: int = 1,
    class_weights: Tensor | None = None,
    dice: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Gradients of a step on images (N, 3, H, W) and uint8 masks (N, H, W); returns its loss.

    The images go through `net` in so many passes, which divide N. Cross-entropy's gradients are
    those of a single pass; what batch normalisation and Dice see is a pass.
    """
    device = images.device
    weight = pixel_weight(masks, class_weights)
    total = torch.zeros((), device=device)
    parts = zip(images.chunk(passes), masks.chunk(passes), strict=True)
    for number, (x, truth) in enumerate(parts, start=1):
        apart: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if number < passes and isinstance(net, nn.parallel.DistributedDataParallel):
            apart = net.no_sync()  # workers exchange gradients once a step, in its last pass
        with apart:
            with autocast(device, dtype):
                logits = net(x)
            loss = segmentation_loss(
                logits.float(),
                truth,
                class_weights=class_weights,
                dice=dice / passes,
                weight=weight,
            )
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def gradient_norm(model: nn.Module) -> Tensor:
    """The norm of all gradients; they, and it, are the same on all workers."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_gradients(model: nn.Module, norm: Tensor, limit: float | None) -> None:
    """Scale all gradients, of that norm, to one of `limit` at most."""
    if limit is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)


# Of the models, those that were shown to end as well in bf16 as in fp32 (tests/bench/bf16.py).
_BF16 = frozenset({"segformer"})


def autocast_type(config: TrialConfig, device: torch.device) -> torch.dtype | None:
    """What a forward pass on `device` computes in beside float32; None is float32 alone."""
    precision = config.train.precision
    if precision == "auto":
        # Not on CPUs: there only large models at large sizes gain, and small ones lose.
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if on_gpu and config.model.name in _BF16 else None
    return torch.bfloat16 if precision == "bf16" else None


def autocast(
    device: torch.device, dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """torch's autocast to `dtype`, or nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)

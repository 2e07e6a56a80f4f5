"""What one training step costs: measured with made-up images, before a sweep depends on it."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from segray.config import TrialConfig
from segray.models import Segmenter
from segray.train.evaluation import EVAL_BATCH
from segray.train.metrics import upsample
from segray.train.optimizer import build_optimizer
from segray.train.step import autocast, autocast_type, backward, build_trial_model

LONG_S = 15.0  # a step that would take longer is judged by a smaller one
FEW = 4  # images of the smaller step; one may be too few for batch normalisation


@dataclass(frozen=True)
class StepCost:
    """One worker's training step."""

    peak_bytes: int  # CPU: of the whole process; GPU: of its allocations there
    seconds: float  # of a whole pass and the optimizer's step
    images: int  # the pass that was run; memory of the whole pass is extrapolated from it


def measure_step(config: TrialConfig, device: torch.device, room: int) -> StepCost:
    """One forward and backward of the images that a worker takes at a time, the optimizer's step,
    and a batch of validation.

    A smaller step comes first. Where it says that the whole would need more than `room` bytes, or
    take longer than LONG_S, that is not run, and its memory is extrapolated: weights, gradients and
    AdamW's two moments are there once, and all the rest grows in proportion to the images.
    """
    torch.set_num_threads(config.threads)
    batch = config.train.batch_size // config.workers // config.train.accumulate
    model = build_trial_model(config).to(device)
    model.train()
    optimizer = build_optimizer(model, config.train.optimizer)
    if config.train.compile:
        model.compile()

    def step(images: int) -> tuple[int, float]:
        started = time.perf_counter()
        _step(config, model, optimizer, images, device)
        return peak_bytes(device), time.perf_counter() - started

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed = peak_bytes(device) + 3 * weights
    few = min(batch, FEW)
    peak, seconds = step(few)
    if seconds < LONG_S:  # the first one is slower than all that follow
        peak, seconds = step(few)
    each = seconds / few
    whole, tried = fixed + (peak - fixed) * batch // few, few
    if batch > few and whole <= room and each * batch <= LONG_S:
        whole, seconds = step(batch)
        each, tried = seconds / batch, batch
    crop = math.prod(config.train.crop or config.data.size)
    if device.type == "cuda" or each * EVAL_BATCH * math.prod(config.data.size) / crop <= LONG_S:
        _evaluate(config, model, device)
    return StepCost(max(whole, peak_bytes(device)), each * batch, tried)


def _evaluate(config: TrialConfig, model: nn.Module, device: torch.device) -> None:
    """What validation takes at a time: whole images, whatever crop and batch are."""
    model.eval()
    assert isinstance(model, Segmenter)
    images = torch.rand(EVAL_BATCH, 3, *config.data.size, device=device)
    with torch.inference_mode():
        with autocast(device, autocast_type(config, device)):
            coarse = model.coarse(images)
        logits = upsample(coarse.float(), config.data.size)
        F.cross_entropy(logits, logits.new_zeros(logits[:, 0].shape, dtype=torch.long))


def _step(
    config: TrialConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: int,
    device: torch.device,
) -> None:
    height, width = config.train.crop or config.data.size
    classes = len(config.data.class_names)
    batch = torch.rand(images, 3, height, width, device=device)
    masks = torch.randint(classes, (images, height, width), dtype=torch.uint8, device=device)
    optimizer.zero_grad(set_to_none=True)
    precision = autocast_type(config, device)
    backward(model, batch, masks, dice=config.train.loss.dice, dtype=precision)
    optimizer.step()


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far: of the process on a CPU, of its allocations on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # whose getrusage counts what was there before exec as well
        lines = Path("/proc/self/status").read_text().splitlines()
        (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(kib) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

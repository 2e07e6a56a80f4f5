"""AdamW with its parameter groups, and how the learning rate moves."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from segray.config import Optimizer, Schedule


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW over four groups: encoder and head, each with and without weight decay.

    Norms and biases (one-dimensional parameters) do not decay. What is not in `model.encoder`
    trains at lr x head_lr_mult. Each group keeps its full learning rate as `base_lr`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("encoder."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "base_lr": settings.lr * (1 if in_encoder else settings.head_lr_mult),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (in_encoder, decays), parameters in groups.items()
        ],
        lr=settings.lr,
        fused=True,
    )


def step_factor(settings: Schedule, step: int, steps: int) -> float:
    """What step `step` (from 0) of `steps` multiplies the learning rate with, plateau aside.

    Linear warm-up from 1 / warmup_steps to 1; then, for poly, (1 - step / steps)^power.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.name == "poly":
        return float(max(0.0, 1 - step / steps) ** settings.power)
    return 1.0


class LearningRate:
    """Sets the learning rate before each step; `state_dict` is what a resumed run needs."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Schedule, steps: int) -> None:
        """`steps` is the number of optimizer steps of the whole training."""
        self._optimizer = optimizer
        self._settings = settings
        self._steps = steps
        self._step = 0
        self._plateau = 1.0
        self._best = -math.inf
        self._bad_epochs = 0

    def step(self) -> None:
        """Set the learning rate of the step that comes now."""
        factor = self._plateau * step_factor(self._settings, self._step, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self._step += 1

    def end_epoch(self, value: float) -> None:
        """Tell the metric of the epoch, larger meaning better: plateau may lower the rate."""
        if self._settings.name != "plateau":
            return
        self._bad_epochs = 0 if value > self._best else self._bad_epochs + 1
        self._best = max(self._best, value)
        if self._bad_epochs > self._settings.patience:
            self._plateau *= self._settings.factor
            self._bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        best = self._best if math.isfinite(self._best) else None
        return {
            "step": self._step,
            "plateau": self._plateau,
            "best": best,
            "bad_epochs": self._bad_epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._step, self._plateau = state["step"], state["plateau"]
        self._best = -math.inf if state["best"] is None else state["best"]
        self._bad_epochs = state["bad_epochs"]

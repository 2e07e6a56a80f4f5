"""How far a training is, its best value so far, and whether its patience has run out.

The loop books each epoch here and a checkpoint holds all of it; a replay books the epochs of a
record (segray/sweep/patience.py). So both stop by one rule.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Progress:
    """What a resumed training must know beside weights and optimizer.

    `sign` is 1 where larger values are better, -1 where smaller ones are.
    """

    epoch: int = 0
    best: float | None = None
    best_epoch: int | None = None
    # Patience counts from the last value that was better by min_delta; best ignores min_delta.
    reference: float | None = None
    reference_epoch: int = 0
    last: float | None = None
    seconds: float = 0.0

    def end_epoch(self, value: float, sign: float, min_delta: float) -> bool:
        """Book an epoch with its value of the metric; whether it is the best so far."""
        self.epoch += 1
        is_best = self.best is None or sign * (value - self.best) > 0
        if is_best:
            self.best, self.best_epoch = value, self.epoch
        if self.reference is None or sign * (value - self.reference) > min_delta:
            self.reference, self.reference_epoch = value, self.epoch
        self.last = value
        return is_best

    def out_of_patience(self, patience: int) -> bool:
        """Whether no further epoch should begin."""
        return self.epoch - self.reference_epoch >= patience

    def objective(self, sign: float, cost_per_epoch: float) -> float | None:
        """The best value less the price of the epochs; None before the first."""
        if self.best is None:
            return None
        return self.best - sign * (cost_per_epoch * self.epoch)

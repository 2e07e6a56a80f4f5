"""The PyTorch loop, its optimizer, schedule, loss, metrics and checkpoints."""

from segray.train import checkpoint, distributed
from segray.train.evaluation import evaluate, predict_masks
from segray.train.loop import (
    Metrics,
    Outcome,
    Reporter,
    State,
    Stop,
    kept_records,
    read_records,
    train,
)
from segray.train.metrics import count_pixels, scores
from segray.train.probe import StepCost, measure_step, peak_bytes
from segray.train.progress import Progress
from segray.train.step import autocast_type, build_trial_model

__all__ = [
    "Metrics",
    "Outcome",
    "Progress",
    "Reporter",
    "State",
    "StepCost",
    "Stop",
    "autocast_type",
    "build_trial_model",
    "checkpoint",
    "count_pixels",
    "distributed",
    "evaluate",
    "kept_records",
    "measure_step",
    "peak_bytes",
    "predict_masks",
    "read_records",
    "scores",
    "train",
]

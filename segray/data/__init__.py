"""Images and masks: where they come from, how they are split, cached, augmented and batched."""

from segray.data.dataset import Dataset, open_dataset
from segray.data.labels import IGNORE, class_colours
from segray.data.loader import Batch, TrainLoader, eval_batches

__all__ = [
    "IGNORE",
    "Batch",
    "Dataset",
    "TrainLoader",
    "class_colours",
    "eval_batches",
    "open_dataset",
]

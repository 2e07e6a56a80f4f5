"""Images and masks: where they come from, how they are split, cached, augmented and batched."""

from segray.data.augment import to_device
from segray.data.cache import cache_root, cores
from segray.data.check import check_dataset
from segray.data.dataset import (
    Dataset,
    count_images,
    data_version,
    few_samples,
    is_cached,
    open_dataset,
    read_splits,
)
from segray.data.labels import IGNORE, class_colours
from segray.data.loader import Batch, TrainLoader, eval_batches, loader_threads

__all__ = [
    "IGNORE",
    "Batch",
    "Dataset",
    "TrainLoader",
    "cache_root",
    "check_dataset",
    "class_colours",
    "cores",
    "count_images",
    "data_version",
    "eval_batches",
    "few_samples",
    "is_cached",
    "loader_threads",
    "open_dataset",
    "read_splits",
    "to_device",
]

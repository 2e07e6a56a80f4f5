"""Batches: uint8 from the cache, cut and zoomed by threads ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segray.config import Augment
from segray.data.augment import colour_and_normalise, crop_and_zoom, draw, to_device
from segray.data.dataset import Dataset

AHEAD = 3  # batches prepared in advance
GPU_THREADS = 4  # that cut and zoom for a GPU: it can take samples faster than one makes them


@dataclass(frozen=True)
class Batch:
    """N images of H x W pixels."""

    images: Tensor  # (N, 3, H, W) uint8
    masks: Tensor  # (N, H, W) uint8: class index, or 255 where nothing counts
    colour: Tensor | None = None  # (N, 4), see colour_and_normalise
    sigma: Tensor | None = None  # (N,)
    native_masks: tuple[Tensor, ...] = ()  # N of (h, w) uint8, of the files' own sizes

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised float images (N, 3, H, W) and uint8 masks (N, H, W) on `device`."""
        images, masks = to_device(self.images, device), to_device(self.masks, device)
        return colour_and_normalise(images, self.colour, self.sigma), masks


@dataclass(frozen=True)
class TrainLoader:
    """Shuffled, augmented batches of one worker; the last, smaller batch is left out."""

    dataset: Dataset
    positions: Sequence[int]
    crop: tuple[int, int]
    batch_size: int  # over all workers
    augment: Augment
    seed: int
    rank: int = 0
    world_size: int = 1
    pin: bool = False  # batches for a GPU
    threads: int = 1  # that make batches; which ones they make does not depend on it

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return len(self.positions) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This worker's share of every batch of an epoch, in the order all workers agree on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.positions)
        share = self.batch_size // self.world_size
        starts = [step * self.batch_size + self.rank * share for step in range(self.steps)]
        groups = [order[start : start + share].tolist() for start in starts]
        return _ahead(groups, self._load(epoch), self.threads)

    def _load(self, epoch: int) -> Callable[[list[int]], Batch]:
        settings = self.augment
        colours = any((settings.brightness, settings.contrast, settings.saturation, settings.hue))

        def load(positions: list[int]) -> Batch:
            changes = [draw(settings, self.seed, epoch, position) for position in positions]
            images, masks = _empty(len(positions), self.crop, self.pin)
            for at, (position, change) in enumerate(zip(positions, changes, strict=True)):
                crop_and_zoom(*self.dataset.pair(position), change, (images[at], masks[at]))
            return Batch(
                images,
                masks,
                colour=torch.tensor([c.colour for c in changes]) if colours else None,
                sigma=torch.tensor([c.sigma for c in changes]) if settings.blur else None,
            )

        return load


def eval_batches(
    dataset: Dataset,
    positions: Sequence[int],
    *,
    batch_size: int,
    native: bool = False,
    rank: int = 0,
    world_size: int = 1,
    pin: bool = False,
    threads: int = 1,
) -> Iterator[tuple[list[int], Batch]]:
    """Whole images in order, every world_size-th one: no image is padded, doubled or left out.

    `native` adds the masks as they are in their files, not resized.
    """
    mine = list(positions[rank::world_size])
    groups = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    def load(group: list[int]) -> Batch:
        images, masks = _empty(len(group), dataset.masks.shape[1:], pin)
        for at, position in enumerate(group):
            image, masks[at] = dataset.pair(position)
            images[at] = image.permute(2, 0, 1)
        own = [torch.from_numpy(dataset.native_mask(position)) for position in group * native]
        return Batch(images, masks, native_masks=tuple(own))

    return zip(groups, _ahead(groups, load, threads), strict=True)


def loader_threads(device: torch.device) -> int:
    """How many threads make batches for a model on `device`.

    A CPU's model takes far longer than the loader, and would share its cores with more of them.
    """
    return min(GPU_THREADS, torch.get_num_threads()) if device.type == "cuda" else 1


def _empty(count: int, size: tuple[int, ...], pin: bool) -> tuple[Tensor, Tensor]:
    """Room for images (N, 3, H, W) and masks (N, H, W), uint8, in pinned memory if asked for.

    Pinned here, in the loader's thread, for pinning copies; torch uses pinned memory again once
    the GPU has read it.
    """
    images = torch.empty((count, 3, *size), dtype=torch.uint8, pin_memory=pin)
    return images, torch.empty((count, *size), dtype=torch.uint8, pin_memory=pin)


def _ahead(
    groups: list[list[int]], load: Callable[[list[int]], Batch], threads: int
) -> Iterator[Batch]:
    """load(group) for each group in order, by so many threads, some of them ahead of their use."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="segray-loader") as pool:
        try:
            for group in groups:
                waiting.append(pool.submit(load, group))
                if len(waiting) > max(AHEAD, threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

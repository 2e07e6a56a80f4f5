"""Batches: which images, in what order, on which worker; and a thread that always ends."""

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segray.config import Augment
from segray.data import Dataset, TrainLoader, eval_batches
from segray.data.samples import Splits

FULL = Augment(
    scale=(0.5, 2.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, blur=0.5
)


def numbered(count: int, size: tuple[int, int] = (8, 12)) -> Dataset:
    """Images whose every pixel, and mask, is their position."""
    values = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (count, *size, 3)).copy()
    masks = np.broadcast_to(values[:, None, None], (count, *size)).copy()
    names = tuple(str(value) for value in values)
    splits = Splits(tuple(range(count)), (), ())
    return Dataset(names, names, splits, ("a",), images, masks, masks.__getitem__)


def loader(dataset: Dataset, **options) -> TrainLoader:
    defaults = {"crop": (8, 12), "batch_size": 4, "augment": Augment(), "seed": 0}
    return TrainLoader(dataset, dataset.splits.train, **(defaults | options))


def seen(batches) -> list[int]:
    return [int(mask[0, 0]) for batch in batches for mask in batch.masks]


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_no_image_comes_twice_in_an_epoch(count: int, batch: int, epoch: int, seed: int) -> None:
    made = loader(numbered(count), batch_size=batch, seed=seed)
    positions = seen(made.epoch(epoch))
    assert made.steps == count // batch
    assert len(positions) == made.steps * batch
    assert len(set(positions)) == len(positions)


def test_only_the_positions_asked_for_are_read() -> None:
    dataset = numbered(20)
    made = TrainLoader(dataset, (3, 5, 7, 11), (8, 12), 2, Augment(), 0)
    assert sorted(seen(made.epoch(1))) == [3, 5, 7, 11]


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    dataset = numbered(40)
    orders = [
        tuple(seen(loader(dataset, seed=seed).epoch(epoch)))
        for seed, epoch in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    assert orders[0] == tuple(seen(loader(dataset).epoch(1)))
    assert len(set(orders)) == 4
    assert all(order != tuple(sorted(order)) for order in orders)


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("augment", [Augment(), FULL], ids=["plain", "augmented"])
def test_the_workers_shares_make_up_one_workers_batch(world_size: int, augment: Augment) -> None:
    dataset = numbered(20)
    rng = np.random.default_rng(0)
    dataset.images[:] = rng.integers(0, 256, dataset.images.shape)
    options = {"batch_size": 6, "augment": augment, "crop": (6, 10)}
    whole = list(loader(dataset, **options).epoch(2))
    shares = [
        list(loader(dataset, rank=rank, world_size=world_size, **options).epoch(2))
        for rank in range(world_size)
    ]
    assert len(whole) == 3
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        for name in ("images", "masks", "colour", "sigma"):
            tensor = getattr(batch, name)
            together = [getattr(part, name) for part in parts]
            if tensor is None:
                assert together == [None] * world_size
            else:
                assert torch.equal(torch.cat(together), tensor)


def test_a_batch_carries_only_the_colour_steps_that_are_on() -> None:
    (batch,) = loader(numbered(4), augment=Augment(flip=0.5)).epoch(1)
    assert batch.colour is None
    assert batch.sigma is None
    (batch,) = loader(numbered(4), augment=Augment(hue=0.1, blur=1.0)).epoch(1)
    assert batch.colour.shape == (4, 4)
    assert (batch.sigma > 0).all()
    images, masks = batch.on(torch.device("cpu"))
    assert images.shape == (4, 3, 8, 12)
    assert images.dtype == torch.float32
    assert masks.dtype == torch.uint8


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 9))
def test_evaluation_sees_every_image_once(count: int, world_size: int, batch_size: int) -> None:
    dataset = numbered(count)
    positions = list(range(count))[::-1]
    found: list[int] = []
    for rank in range(world_size):
        for group, batch in eval_batches(
            dataset, positions, batch_size=batch_size, rank=rank, world_size=world_size
        ):
            assert 1 <= len(group) <= batch_size
            assert seen([batch]) == group
            assert batch.images[:, 0, 0, 0].tolist() == group
            assert batch.colour is None
            found += group
    assert sorted(found) == list(range(count))


@pytest.mark.parametrize("threads", [2, 7])
def test_batches_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    dataset = numbered(40)
    augment = Augment(scale=(0.5, 2.0), flip=0.5, brightness=0.2, blur=0.5)
    alone, together = (
        list(loader(dataset, augment=augment, threads=n).epoch(1)) for n in (1, threads)
    )
    for one, other in zip(alone, together, strict=True):
        for name in ("images", "masks", "colour", "sigma"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    groups = [group for group, _ in eval_batches(dataset, range(40), batch_size=3, threads=threads)]
    assert list(itertools.chain(*groups)) == list(range(40))


def threads_left() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("segray-loader")]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_iterator_that_is_abandoned_leaves_no_thread(taken: int) -> None:
    dataset = numbered(40)
    for batches in (loader(dataset).epoch(1), eval_batches(dataset, range(40), batch_size=2)):
        assert len(list(itertools.islice(batches, taken))) == taken
        del batches
    assert threads_left() == []


def test_an_iterator_that_is_used_up_leaves_no_thread() -> None:
    assert len(list(loader(numbered(40)).epoch(1))) == 10
    assert threads_left() == []


class Broken(Dataset):
    def pair(self, position: int):
        if position == 17:
            raise OSError("the disk is gone")
        return super().pair(position)


def test_an_error_while_loading_surfaces_at_its_batch() -> None:
    whole = numbered(40)
    broken = Broken(**vars(whole))
    good = seen(loader(whole).epoch(1)).index(17) // 4
    batches = loader(broken).epoch(1)
    assert len(list(itertools.islice(batches, good))) == good
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        list(eval_batches(broken, range(40), batch_size=4))
    assert threads_left() == []

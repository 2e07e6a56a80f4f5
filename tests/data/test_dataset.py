"""What every source of images keeps to; a new one is a line in SOURCES."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segray.config import CityscapesData, Data, RequestError, ScenesData
from segray.config.errors import MissingInput
from segray.data import IGNORE, class_colours, open_dataset, read_splits
from segray.data.check import check_dataset

SIZE = (32, 48)


def cityscapes(tree, own, split: str = "official") -> Data:
    root = tree({"train": {"aachen": 4, "bonn": 3}, "val": {"ulm": 3}})
    return CityscapesData(format="cityscapes", root=str(root), size=SIZE, split=split)


def scenes(tree, own) -> Data:
    cities = {"train_images": 6, "test_images": 4, "cities": 3, "test_cities": 2}
    return ScenesData(format="scenes", size=SIZE, **cities)


def explicit(tree, own) -> Data:
    counts = {"train": 5, "val": 3, "test": 2}
    parts = {part: {"images": f"{part}/images", "masks": f"{part}/masks"} for part in counts}
    made = [own(n, part, split="explicit", **parts) for part, n in counts.items()]
    return made[-1]


SOURCES: dict[str, Callable[..., Data]] = {
    "cityscapes": cityscapes,
    "cityscapes pooled": lambda tree, own: cityscapes(tree, own, split="pooled"),
    "scenes": scenes,
    "folders pooled": lambda tree, own: own(10),
    "folders explicit": explicit,
}


@pytest.fixture(params=SOURCES)
def data(request, tree, own) -> Data:
    return SOURCES[request.param](tree, own)


def changed(data: Data, **keys) -> Data:
    return data.model_copy(update=keys)


def test_every_pair_is_in_exactly_one_split(data: Data) -> None:
    samples, splits = read_splits(data)
    assert len(samples) == 10
    parts = list(splits.named().values())
    assert sorted(position for part in parts for position in part) == list(range(10))
    assert all(part == tuple(sorted(part)) != () for part in parts)
    assert len({sample.id for sample in samples}) == 10
    assert all(sample.image.is_file() and sample.mask.is_file() for sample in samples)


@pytest.mark.parametrize("ignore", ["void", "none"])
def test_masks_hold_classes_and_what_is_ignored(data: Data, ignore: str) -> None:
    data = changed(data, ignore=ignore)
    dataset = open_dataset(data)
    assert dataset.images.shape == (10, *SIZE, 3)
    assert dataset.classes == data.class_names
    assert ("void" in dataset.classes) == (dataset.classes[0] == "void") == (ignore == "none")
    assert set(np.unique(dataset.masks)) <= {*range(len(dataset.classes)), IGNORE}
    assert (IGNORE in dataset.masks) == (ignore == "void")
    assert len(np.unique(class_colours(data), axis=0)) == len(dataset.classes)


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_a_limit_keeps_the_first_of_each_split(data: Data, limit: int) -> None:
    samples, splits = read_splits(data)
    few, few_splits = read_splits(changed(data, limit=limit))
    for name, positions in splits.named().items():
        kept = few_splits.named()[name]
        assert [few[i].id for i in kept] == [samples[i].id for i in positions[:limit]]
    assert len(open_dataset(changed(data, limit=limit)).images) == len(few)


def test_a_check_finds_no_problem_and_counts_what_is_cached(data: Data) -> None:
    report = check_dataset(data)
    assert report.problems == ()
    dataset = open_dataset(data)
    assert report.pixels[0, :-1].tolist() == dataset.class_pixels().tolist()
    assert report.pixels.sum() == dataset.masks.size


def test_only_what_is_drawn_by_chance_moves_with_the_seed(data: Data) -> None:
    made = [read_splits(changed(data, split_seed=seed))[1] for seed in (0, 0, 1, 2, 3)]
    assert made[0] == made[1]
    assert (len(set(made)) == 1) == (data.split == "explicit")


def test_a_mask_that_vanished_is_refused_by_name(data: Data) -> None:
    mask = read_splits(data)[0][4].mask
    mask.unlink()
    with pytest.raises(RequestError, match="no mask; expected") as caught:
        read_splits(data)
    assert str(mask) in str(caught.value)
    assert "segray data check FILE" in str(caught.value)


@pytest.mark.parametrize("source", ["cityscapes", "folders pooled"])
def test_no_folder_at_root_is_a_missing_input(tree, own, tmp_path: Path, source: str) -> None:
    data = changed(SOURCES[source](tree, own), root=str(tmp_path / "nothing"))
    with pytest.raises(MissingInput, match=r"data\.root: no folder at .*nothing"):
        read_splits(data)

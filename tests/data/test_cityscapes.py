"""What is found below data.root, and how it is split."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.config import CityscapesData, RequestError
from segray.config.errors import MissingInput
from segray.data import read_splits
from segray.data.cityscapes import find_samples, split_samples
from segray.data.samples import Sample


def samples_of(train: dict[str, int], val: dict[str, int]) -> list[Sample]:
    return [
        Sample(f"{city}_{number}", city, part, Path("image"), Path("mask"))
        for part, cities in (("train", train), ("val", val))
        for city, count in cities.items()
        for number in range(count)
    ]


def test_images_are_found_with_their_masks_sorted_by_part_and_id(tree) -> None:
    root = tree({"val": {"bonn": 1}, "train": {"zurich": 1, "aachen": 2}})
    (root / "leftImg8bit" / "test" / "berlin").mkdir(parents=True)
    (root / "leftImg8bit" / "test" / "berlin" / "berlin_0_0_leftImg8bit.png").touch()
    (root / "leftImg8bit" / "val" / "bonn" / "._bonn_0_leftImg8bit.png").touch()
    samples, findings = find_samples(root)
    assert findings == []
    assert [(s.part, s.city, s.id) for s in samples] == [
        ("train", "aachen", "aachen_000000_000000"),
        ("train", "aachen", "aachen_000000_000001"),
        ("train", "zurich", "zurich_000000_000000"),
        ("val", "bonn", "bonn_000000_000000"),
    ]
    for sample in samples:
        assert sample.image.is_file()
        assert sample.mask.name == f"{sample.id}_gtFine_labelIds.png"
        assert sample.mask.is_file()


def test_what_tools_leave_beside_an_image_is_none(tree) -> None:
    root = tree({"train": {"aachen": 2}})
    images = sorted(root.rglob("*_leftImg8bit.png"))
    for ending in (".aux.xml", ".json", "~", ".bak.png"):
        images[0].with_name(f"{images[0].name}{ending}").touch()
    images[1].rename(images[1].with_suffix(".JPG"))
    samples, findings = find_samples(root)
    assert findings == []
    assert [sample.image for sample in samples] == [images[0], images[1].with_suffix(".JPG")]


def test_two_images_of_one_name_are_refused(tree) -> None:
    root = tree({"train": {"aachen": 2}})
    images = sorted(root.rglob("*_leftImg8bit.png"))
    twin = images[0].with_suffix(".jpg")
    twin.touch()
    samples, (finding,) = find_samples(root)
    assert [sample.image for sample in samples] == images[1:]
    assert finding.kind == "files with one stem"
    assert finding.fatal
    assert f"{twin} and {images[0]} differ only in their ending" in finding.message


def test_missing_masks_are_named_and_their_images_left_out(tree) -> None:
    root = tree({"train": {"aachen": 3}})
    masks = sorted(root.rglob("*_labelIds.png"))
    masks[1].unlink()
    masks[2].unlink()
    samples, findings = find_samples(root)
    assert [sample.mask for sample in samples] == masks[:1]
    assert [finding.kind for finding in findings] == ["images without a mask"] * 2
    assert f"expected {masks[1]}, from gtFine_trainvaltest.zip" in findings[0].message


@pytest.mark.parametrize("there", [False, True], ids=["no root", "empty root"])
def test_without_images_the_error_says_how_to_get_them(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "nothing"
    if there:
        root.mkdir()
    with pytest.raises(MissingInput, match="cityscapes-dataset") as caught:
        find_samples(root)
    assert str(root) in str(caught.value)
    assert "leftImg8bit" in str(caught.value)


cities = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(1, 20), min_size=2)


@given(cities, st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_official_holds_out_whole_cities(train: dict[str, int], share: float, seed: int) -> None:
    samples = samples_of(train, {"munster": 3})
    splits = split_samples(samples, split="official", val_share=share, seed=seed)
    assert [samples[i].part for i in splits.test] == ["val"] * 3
    assert sorted([*splits.train, *splits.val, *splits.test]) == list(range(len(samples)))
    for positions in (splits.train, splits.val, splits.test):
        assert list(positions) == sorted(positions)
    held_out = {samples[i].city for i in splits.val}
    assert held_out.isdisjoint(samples[i].city for i in splits.train)
    # Cities are added until the share is reached, and no longer; one always stays in train.
    total = sum(train.values())
    assert len(splits.val) >= share * total or len(held_out) == len(train) - 1
    assert len(splits.val) - max(train[city] for city in held_out) < share * total


@pytest.mark.parametrize("split", ["official", "pooled"])
def test_a_split_is_the_same_for_a_seed_and_moves_with_it(split: str) -> None:
    samples = samples_of({f"city{i}": 10 for i in range(12)}, {"bonn": 10})
    made = [split_samples(samples, split=split, val_share=0.2, seed=s) for s in (0, 0, 1, 2)]
    assert made[0] == made[1]
    assert made[0].val != made[2].val or made[0].val != made[3].val


def test_pooled_has_the_sizes_of_the_original_study() -> None:
    samples = samples_of({"a": 2975}, {"b": 500})
    splits = split_samples(samples, split="pooled", val_share=0.5, seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (2953, 261, 261)
    assert sorted([*splits.train, *splits.val, *splits.test]) == list(range(3475))
    for positions in (splits.train, splits.val, splits.test):
        assert {samples[i].part for i in positions} == {"train", "val"}


@pytest.mark.parametrize(
    ("train", "val", "split", "message"),
    [
        ({"a": 5}, {"b": 1}, "official", "no image for val, of 6 images in 2 cities"),
        ({}, {"b": 4}, "official", "no image for train and val, of 4 images in 1 cities"),
        ({"a": 5, "b": 2}, {}, "official", "no image for test, of 7 images in 2 cities"),
        ({"a": 6}, {}, "pooled", "no image for val and test, of 6 images; "),
    ],
)
def test_an_empty_split_is_refused_with_numbers(tree, train, val, split: str, message: str) -> None:
    root = tree({"train": train, "val": val})
    data = CityscapesData(format="cityscapes", root=str(root), size=(32, 32), split=split)
    with pytest.raises(RequestError, match=message) as caught:
        read_splits(data)
    needs = {"official": "two cities in train and one in val", "pooled": "7 images"}
    assert f"{split} needs {needs[split]}" in str(caught.value)


def test_seven_images_are_enough_to_pool() -> None:
    splits = split_samples(samples_of({"a": 7}, {}), split="pooled", val_share=0.2, seed=0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (5, 1, 1)

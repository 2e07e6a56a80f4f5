"""Which files of two folders, or of a list, are pairs; and what is said of those that are not."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segray.config import FoldersData, RequestError
from segray.config.errors import MissingInput
from segray.data import read_splits
from segray.data.dataset import find_pairs
from segray.data.folders import find_samples
from segray.data.samples import Splits

CLASSES = {"road": {"ids": 0}, "sky": {"ids": 1}}
PARTS = ("train", "val", "test")


def save(path: Path, mode: str = "L", value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (48, 32), value).save(path)
    return path


def kinds(data: FoldersData) -> list[str]:
    return [finding.kind for finding in find_pairs(data)[2]]


def messages(data: FoldersData) -> str:
    return "\n".join(finding.message for finding in find_pairs(data)[2])


def explicit(data: FoldersData, **parts) -> FoldersData:
    """The same files, split as `parts` says."""
    raw = data.model_dump() | {"split": "explicit"} | parts
    if not any(isinstance(part, str) for part in parts.values()):
        raw |= {"images": None, "masks": None}
    return FoldersData.model_validate(raw)


def listed(data: FoldersData, **lines: str) -> FoldersData:
    """Split by text lists; an absent one holds the last images."""
    lists = {"train": "00\n01\n", "val": "02\n", "test": "03\n"} | lines
    for name, text in lists.items():
        (Path(data.root) / f"{name}.txt").write_text(text)
    return explicit(data, **{name: f"{name}.txt" for name in PARTS})


@pytest.mark.parametrize("ending", ["png", "jpg", "JPEG", "bmp", "tif", "TIFF", "webp"])
def test_images_of_many_types_are_paired_by_stem(own, ending: str) -> None:
    data = own(8)
    save(Path(data.root) / "images" / f"extra.{ending}", "RGB")
    mask = save(Path(data.root) / "masks" / "extra.png")
    samples, _, findings = find_pairs(data)
    assert findings == []
    assert [sample.mask for sample in samples if sample.id == "extra"] == [mask]


def test_a_suffix_tells_masks_apart_within_one_folder(own) -> None:
    data = own(8)
    root = Path(data.root)
    for mask in (root / "masks").iterdir():
        mask.rename(root / "images" / f"{mask.stem}_L.png")
    data = FoldersData.model_validate(data.model_dump() | {"masks": "images", "mask_suffix": "_L"})
    samples, _ = read_splits(data)
    assert [sample.mask.name for sample in samples] == [f"{i:02}_L.png" for i in range(8)]


@pytest.mark.parametrize(("images", "masks"), [(".", "masks"), ("images", ".")])
def test_one_folder_may_lie_in_the_other(own, images: str, masks: str) -> None:
    data = own(8).model_copy(update={"images": images, "masks": masks})
    samples, _, findings = find_pairs(data)
    assert findings == []
    assert {(s.image.parent.name, s.mask.parent.name) for s in samples} == {("images", "masks")}


def test_a_city_is_the_subfolder_of_an_image(own) -> None:
    data = own(8)
    images = Path(data.root) / "images"
    for number, city in enumerate(["bern", "bern/west"]):
        (images / city).mkdir()
        (images / f"{number:02}.png").rename(images / city / f"{number:02}.png")
    cities = {sample.id: sample.city for sample in read_splits(data)[0]}
    assert [cities[id] for id in ("bern/00", "bern/west/01", "02")] == ["bern", "bern/west", ""]


def videos(data: FoldersData, *names: str, suffix: str = "") -> tuple[Path, Path]:
    """Adds an image and a mask 0001 to a subfolder each; returns the folders they are in."""
    images, masks = Path(data.root) / "images", Path(data.root) / "masks"
    for number, name in enumerate(names):
        save(images / name / "0001.png", "RGB", number)
        save(masks / name / f"0001{suffix}.png")
    return images, masks


@pytest.mark.parametrize("suffix", ["", "_L"])
def test_images_of_one_stem_are_paired_by_their_subfolder(own, suffix: str) -> None:
    data = own(0 if suffix else 8, mask_suffix=suffix)
    names = [f"seq{number}/left" for number in range(8)]
    images, masks = videos(data, *names, suffix=suffix)
    samples, _, findings = find_pairs(data)
    assert findings == []
    assert {(s.id, s.image, s.mask) for s in samples if s.city} == {
        (f"{name}/0001", images / name / "0001.png", masks / name / f"0001{suffix}.png")
        for name in names
    }


PLACES = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)


@settings(max_examples=30, deadline=None)
@given(st.sets(PLACES, min_size=1), st.sampled_from(["", "_L", "a"]))
def test_masks_in_the_same_subfolders_are_always_found(places: set[str], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for place in places:
            for path in (root / f"x/{place}.jpg", root / f"y/{place}{suffix}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        section = {"format": "folders", "root": folder, "size": [32, 48], "classes": CLASSES}
        section |= {"images": "x", "masks": "y", "mask_suffix": suffix}
        samples, findings = find_samples(FoldersData.model_validate(section))
        assert findings == []
        assert {s.id: s.mask for s in samples} == {p: root / f"y/{p}{suffix}.png" for p in places}
        assert all(s.image == root / f"x/{s.id}.jpg" for s in samples)


def test_a_mask_at_an_images_place_comes_before_others_of_its_stem(own) -> None:
    data = own(8)
    spare = save(Path(data.root) / "masks" / "old" / "03.png")
    samples, _, findings = find_pairs(data)
    assert [sample.mask for sample in samples if sample.id == "03"] == [spare.parents[1] / "03.png"]
    assert [finding.message for finding in findings] == [f"{spare}: left out, has no image"]


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        (["c", "d"], r"a/0001.png: no mask at .*masks/a/0001\.png, and its stem fits .*c/0.*d/0"),
        (["c", None], r"a/0001.png: no mask at .*, and .*c/0001\.png fits .*a/0.* and .*b/0.* by"),
        (["b", None], r"a/0001.png: no mask; expected .*masks/a/0001\.png"),
    ],
    ids=["two masks", "two images", "a mask of another image"],
)
def test_a_stem_that_fits_several_files_is_refused(own, moved, message: str) -> None:
    data = own(8)
    _, masks = videos(data, "a", "b")
    for name in ("a", "b"):
        shutil.rmtree(masks / name)
    for name in filter(None, moved):
        save(masks / name / "0001.png")
    with pytest.raises(RequestError, match=message):
        read_splits(data)
    assert "left out" not in messages(data)


def test_links_are_followed_and_no_image_comes_twice(own, tmp_path: Path) -> None:
    data = own(8)
    images, masks = videos(data, "seq1")
    for folder, mode in ((images, "RGB"), (masks, "L")):
        elsewhere = save(tmp_path / "disk" / folder.name / "0001.png", mode).parent
        (elsewhere / "circle").symlink_to(elsewhere)
        (folder / "seq2").symlink_to(elsewhere)
        (folder / "again").symlink_to(folder / "seq1")
        (folder / "seq1" / "circle").symlink_to(folder)
    samples, _, findings = find_pairs(data)
    assert findings == []
    assert [s.id for s in samples if s.city] == ["seq1/0001", "seq2/0001"]


def test_hidden_files_are_no_images(own) -> None:
    data = own(8)
    for place in ("images/._00.png", "images/.thumbs/99.png", "masks/._00.png", "images/notes.txt"):
        path = Path(data.root) / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0")
    assert kinds(data) == []
    assert len(read_splits(data)[0]) == 8


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_a_mask_that_lost_pixels_is_refused(own, ending: str) -> None:
    data = own(8)
    mask = Path(data.root) / "masks" / "03.png"
    mask.unlink()
    save(mask.with_suffix(f".{ending}"))
    with pytest.raises(RequestError, match=rf"03\.{ending}: expected a mask without loss"):
        read_splits(data)


@pytest.mark.parametrize("place", ["images", "masks"])
def test_two_files_with_one_stem_are_refused(own, place: str) -> None:
    data = own(8)
    path = Path(data.root) / place / "03.png"
    shutil.copy(path, path.with_suffix(".bmp"))
    with pytest.raises(RequestError, match=r"03\.bmp and .*03\.png differ only in their ending"):
        read_splits(data)


@pytest.mark.parametrize(
    ("suffix", "renamed", "advice"),
    [("_L", "{}.png", "mask_suffix to nothing"), ("", "{}_gt.png", "mask_suffix to _gt")],
)
def test_a_wrong_suffix_is_one_problem_with_the_right_one(
    own, suffix: str, renamed: str, advice: str
) -> None:
    data = own(8, mask_suffix=suffix)
    for mask in list((Path(data.root) / "masks").iterdir()):
        mask.rename(mask.with_name(renamed.format(mask.stem)))
    (finding, *others) = [f for f in find_pairs(data)[2] if f.fatal]
    assert others == []
    assert finding.message.startswith("none of the 8 images has a mask: 00.png expects")
    assert finding.message.endswith(advice)


def test_a_mask_without_an_image_is_only_a_warning(own) -> None:
    data = own(8)
    save(Path(data.root) / "masks" / "lonely.png")
    assert kinds(data) == ["masks without an image"]
    assert len(read_splits(data)[0]) == 8


@pytest.mark.parametrize("key", ["images", "masks"])
def test_a_folder_that_is_not_there_is_named_by_its_key(own, key: str) -> None:
    with pytest.raises(MissingInput, match=rf"data\.{key}: no folder at .*nowhere"):
        read_splits(own().model_copy(update={key: "nowhere"}))


def test_a_folder_without_images_is_refused(own) -> None:
    data = own()
    for image in (Path(data.root) / "images").iterdir():
        image.unlink()
    with pytest.raises(MissingInput, match=r"data\.images: no images in .*expected files of png"):
        read_splits(data)


def test_segnets_folders_are_an_explicit_split(own) -> None:
    for part, count in zip(PARTS, (4, 2, 1), strict=True):
        data = own(count, part)
        (Path(data.root) / part / "masks").rename(Path(data.root) / f"{part}annot")
    data = explicit(
        data, **{part: {"images": f"{part}/images", "masks": f"{part}annot"} for part in PARTS}
    )
    samples, splits = read_splits(data)
    assert [samples[i].id for i in splits.val] == ["val00", "val01"]
    assert [len(positions) for positions in splits.named().values()] == [4, 2, 1]


def test_a_list_names_stems_paths_or_pairs_of_elsewhere(own) -> None:
    lines = "00\n\n  01.png \n/SegNet/CamVid/images/04.png /SegNet/CamVid/masks/05.png\n"
    samples, splits = read_splits(listed(own(), train="\ufeff" + lines))
    train = [(samples[i].image.name, samples[i].mask.name) for i in splits.train]
    assert train == [("00.png", "00.png"), ("01.png", "01.png"), ("04.png", "05.png")]
    assert [samples[i].id for i in (*splits.val, *splits.test)] == ["02", "03"]


def test_pairs_in_a_list_need_nothing_that_tells_images_from_masks(own) -> None:
    data = own().model_copy(update={"images": ".", "masks": "."})
    pairs = {part: f"/x/images/0{i}.png masks/0{i}.png" for i, part in enumerate(PARTS)}
    samples, _ = read_splits(listed(data, **pairs))
    assert {(s.image.parent.name, s.mask.parent.name) for s in samples} == {("images", "masks")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0001", r"train\.txt:2: 0001 is the stem of .*a/0001\.png and .*b/0001\.png: give the pa"),
        ("77", r"train\.txt:2: expected the stem of an image, its path below .*got '77'"),
        ("../own/images/04.png", r"train\.txt:2: expected the stem"),
        ("images/04.png masks/77.png", r"train\.txt:2: expected the stem"),
        ("00", r"train\.txt:2: 00 is listed twice"),
        ("02", r"02\.png is in train and in val"),
    ],
)
def test_a_line_that_names_no_pair_is_refused_with_its_number(own, line, message: str) -> None:
    data = own()
    videos(data, "a", "b")
    with pytest.raises(RequestError, match=message):
        read_splits(listed(data, train=f"00\n{line}\n"))


def test_a_list_cannot_name_two_images_of_one_place(own) -> None:
    data = own()
    save(Path(data.root) / "images" / "00.bmp")
    with pytest.raises(RequestError, match=r"00\.png and .*00\.bmp differ only in their ending"):
        read_splits(listed(data, train="00.png\nimages/00.bmp masks/01.png\n"))


def test_a_list_names_images_of_one_stem_by_their_place(own) -> None:
    data = own()
    videos(data, "a", "b", "c")
    lines = {"train": "a/0001", "val": "b/0001.png", "test": "images/c/0001.png masks/c/0001.png"}
    samples, splits = read_splits(listed(data, **lines))
    assert splits == Splits((0,), (1,), (2,))
    assert [sample.id for sample in samples] == ["a/0001", "b/0001", "c/0001"]


def test_one_folder_without_a_suffix_takes_only_pairs(own) -> None:
    data = own().model_copy(update={"images": ".", "masks": "."})
    with pytest.raises(RequestError, match=r'txt:1: expected "image-path mask-path" .*0\.png'):
        read_splits(listed(data, train="images/00.png"))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_list_that_cannot_be_read_is_named_by_its_key(own, content: bytes | None) -> None:
    data = listed(own())
    path = Path(data.root) / "val.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(MissingInput, match=r"data\.val: cannot read the list .*val\.txt"):
        read_splits(data)


def test_an_empty_list_is_an_empty_split(own) -> None:
    with pytest.raises(RequestError, match="explicit leaves no image for val, of 3 images; expl"):
        read_splits(listed(own(), val=""))


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_in_two_splits_overlaps_and_another_image_of_that_name_does_not(
    own, same: bool
) -> None:
    for part in PARTS:
        data = own(2, part)
    root = Path(data.root)
    for kind in ("images", "masks"):
        shutil.copy(root / "train" / kind / "train00.png", root / "val" / kind)
    if not same:
        pixels = np.zeros((32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "val" / "images" / "train00.png")
    data = explicit(
        data, **{part: {"images": f"{part}/images", "masks": f"{part}/masks"} for part in PARTS}
    )
    assert kinds(data) == ["overlapping splits"] * same
    assert same == ("val/images/train00.png" in messages(data))


def test_pooling_needs_seven_images(own) -> None:
    with pytest.raises(RequestError, match="no image for val and test, of 6 images; pooled needs"):
        read_splits(own(6))

"""Generated scenes: the same bytes whenever and however they are drawn, and a safe writer."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segray.data import scenes
from segray.data.scenes import city_name, city_style, draw_scene, write_scenes

ALLOWED = {0, 1, 4, 5, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 33}
CATEGORIES = {
    "flat": {7, 8},
    "construction": {11, 12, 13},
    "object": {17, 19, 20},
    "nature": {21, 22},
    "sky": {23},
    "human": {24, 25},
    "vehicle": {26, 27, 28, 33},
}
SMALL = {"train": 5, "val": 3, "cities": 2, "val_cities": 2, "size": (32, 64), "seed": 3}


def draw(seed: int, city: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return draw_scene(np.random.default_rng([seed, city]), city_style(seed, city), size)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.png"))}


def test_a_scene_is_drawn_twice_the_same() -> None:
    for first, second in zip(draw(1, 2, (48, 96)), draw(1, 2, (48, 96)), strict=True):
        np.testing.assert_array_equal(first, second)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.integers(32, 80), st.integers(32, 120))
def test_any_size_gives_a_picture_and_allowed_labels(seed: int, height: int, width: int) -> None:
    image, labels = draw(seed, 0, (height, width))
    assert image.shape == (height, width, 3)
    assert labels.shape == (height, width)
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels).tolist()) <= ALLOWED
    assert image.std() > 5


def test_too_small_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 px"):
        draw(0, 0, (31, 64))


def test_every_category_is_common_and_void_is_moderate() -> None:
    labels = np.stack([draw(7, city, (64, 128))[1] for city in range(24)])
    for ids in CATEGORIES.values():
        hit = np.isin(labels, list(ids))
        assert hit.any(axis=(1, 2)).mean() > 0.8
        assert hit.mean() > 0.004
    void = np.isin(labels, [0, 1, 4, 5]).mean(axis=(1, 2))
    assert 0.03 < void.mean() < 0.12
    assert set(np.unique(labels).tolist()) == ALLOWED


def test_pictures_show_their_masks() -> None:
    """Where the labels change the picture changes more than elsewhere, pixel for pixel."""
    inside, border, shifted = [], [], []
    for city in range(6):
        image, labels = draw(5, city, (96, 192))
        step = np.abs(np.diff(image.astype(float), axis=1)).mean(axis=2)
        edge = np.diff(labels.astype(int), axis=1) != 0
        border.append(step[edge].mean())
        inside.append(step[~edge].mean())
        shifted.append(step[np.roll(edge, 2, axis=1)].mean())
    assert np.mean(border) > 2 * np.mean(inside)
    assert np.mean(border) > 1.3 * np.mean(shifted)


def test_cities_differ_in_style_and_name() -> None:
    styles = [city_style(0, city) for city in range(8)]
    assert len({style.asphalt for style in styles}) == 8
    assert city_style(0, 3) == styles[3]
    assert city_style(1, 3) != styles[3]
    names = [city_name(city) for city in range(2 * scenes.MOST_CITIES)]
    assert len(set(names)) == len(names)


def test_files_lie_as_cityscapes_has_them(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_scenes(tmp_path / "a" / "set", **SMALL, progress=lambda *at: seen.append(at))
    root = tmp_path / "a" / "set"
    assert seen == [(k, 8) for k in range(1, 9)]
    for split, count in (("train", 5), ("val", 3)):
        images = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
        assert len(images) == count
        for path in images:
            city, sequence, frame, _ = path.name.split("_")
            assert (path.parent.name, sequence, len(frame)) == (city, "000000", 6)
            name = f"{city}_000000_{frame}_gtFine_labelIds.png"
            with (
                Image.open(root / "gtFine" / split / city / name) as mask,
                Image.open(path) as image,
            ):
                assert (image.mode, mask.mode) == ("RGB", "L")
                assert image.size == mask.size == (64, 32)
    cities = [{p.name for p in (root / "gtFine" / split).iterdir()} for split in ("train", "val")]
    assert [len(names) for names in cities] == [2, 2]
    assert not cities[0] & cities[1]
    assert [p.name for p in root.parent.iterdir()] == ["set"]
    assert json.loads((root / "scenes.json").read_text())["seed"] == 3


def test_a_picture_does_not_depend_on_counts(tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", **SMALL)
    write_scenes(tmp_path / "many", **{**SMALL, "train": 12, "val": 7, "cities": 3})
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    shared = few.keys() & many.keys()
    assert len(shared) == len(few)
    assert all(few[name] == many[name] for name in shared)


def test_processes_write_the_same_bytes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(scenes, "_cores", lambda: 1)
    write_scenes(tmp_path / "one", **SMALL)
    monkeypatch.setattr(scenes, "_cores", lambda: 3)
    monkeypatch.setattr(scenes, "PICTURES_PER_PROCESS", 2)
    write_scenes(tmp_path / "three", **SMALL, progress=lambda *at: seen.append(at))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert seen == [(k, 8) for k in range(1, 9)]


def test_a_process_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(scenes, "__file__", str(broken))
    monkeypatch.setattr(scenes, "_cores", lambda: 2)
    monkeypatch.setattr(scenes, "PICTURES_PER_PROCESS", 2)
    with pytest.raises(RuntimeError, match="failed"):
        write_scenes(tmp_path / "set", **SMALL)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("cores", [1, 2])
def test_a_set_killed_halfway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "_cores", lambda: cores)
    monkeypatch.setattr(scenes, "PICTURES_PER_PROCESS", 2)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "set", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_does_nothing(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    write_scenes(tmp_path / "set", **SMALL, progress=lambda *_: pytest.fail("it drew again"))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_set_with_other_arguments_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", **SMALL)
    with pytest.raises(FileExistsError, match=r"expected .*'seed': 4.* found .*'seed': 3.*delete"):
        write_scenes(tmp_path / "set", **{**SMALL, "seed": 4})


def test_foreign_files_are_refused_and_an_empty_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_scenes(tmp_path / "mine", **SMALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    (tmp_path / "file").write_text("a file")
    for name in ("photos", "file"):
        with pytest.raises(FileExistsError, match="did not write"):
            write_scenes(tmp_path / name, **SMALL)


def test_all_wrong_numbers_are_told_at_once(tmp_path: Path) -> None:
    wrong = {**SMALL, "train": -1, "cities": 0, "val_cities": 99, "size": (8, 64)}
    with pytest.raises(ValueError, match=r"train >= 0.*cities >= 1.*val_cities <= .*32 px"):
        write_scenes(tmp_path / "set", **wrong)

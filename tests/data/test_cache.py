"""The decoded images: their bytes, what is refused, and what a kill leaves behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.config import CityscapesData, RequestError
from segray.data import open_dataset
from segray.data.cache import _doomed, is_whole, open_cache
from segray.data.cityscapes import find_samples
from segray.data.labels import IGNORE, label_table
from segray.data.samples import Sample

SIZE = (16, 32)


def open_(samples: list[Sample], size: tuple[int, int] = SIZE, ignore: str = "void", progress=None):
    return open_cache(samples, section(size, ignore), progress)


def section(size: tuple[int, int] = SIZE, ignore: str = "void") -> CityscapesData:
    made = CityscapesData(format="cityscapes", root="", size=(32, 32), ignore=ignore)
    return made.model_copy(update={"size": size})  # a copy may be smaller than a sweep's images


def caches(folder: Path) -> list[Path]:
    """What an open would take for a finished cache."""
    return [path for path in folder.glob("images-*") if path.suffix == ""]


@pytest.fixture
def samples(tree) -> list[Sample]:
    return find_samples(tree({"train": {"aachen": 2, "bonn": 1}, "val": {"ulm": 1}}))[0]


def rewrite(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("size", [(16, 32), (20, 40), (33, 50)], ids=["down", "same", "up"])
@pytest.mark.parametrize("ignore", ["void", "none"])
def test_bytes_are_those_of_a_resize_by_hand(samples, size: tuple[int, int], ignore: str) -> None:
    images, masks = open_(samples, size, ignore)
    table = label_table(section(size, ignore))
    assert images.dtype == masks.dtype == np.uint8
    for position, sample in enumerate(samples):
        target = (size[1], size[0])
        image = Image.open(sample.image).convert("RGB").resize(target, Image.Resampling.BILINEAR)
        labels = Image.open(sample.mask).resize(target, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(images[position], np.asarray(image))
        np.testing.assert_array_equal(masks[position], table[np.asarray(labels)])


def test_void_is_ignored_and_a_licence_plate_is_not(samples) -> None:
    pixels = np.full((20, 40), 4, dtype=np.uint8)
    pixels[:, 20:] = 255
    rewrite(samples[0].mask, pixels)
    _, masks = open_(samples[:1])
    assert (masks[0][:, :16] == IGNORE).all()
    assert (masks[0][:, 16:] == 6).all()


def test_grey_and_transparent_images_become_rgb(samples) -> None:
    grey = np.full((20, 40), 90, dtype=np.uint8)
    rewrite(samples[0].image, grey)
    rewrite(samples[1].image, np.dstack([grey, grey, grey, grey]))
    images, _ = open_(samples[:2])
    assert (images == 90).all()


def test_unknown_label_ids_are_refused_with_the_file(samples, own_cache: Path) -> None:
    pixels = np.full((20, 40), 7, dtype=np.uint8)
    pixels[10:, 10:] = 34
    pixels[15:, 30:] = 200
    rewrite(samples[2].mask, pixels)
    with pytest.raises(RequestError, match=r"id 34, 200 \(300 pixels\): expected") as caught:
        open_(samples)
    assert str(samples[2].mask) in str(caught.value)
    assert caches(own_cache) == []


def test_a_mask_of_another_size_is_refused_with_both_sizes(samples, own_cache: Path) -> None:
    rewrite(samples[1].mask, np.full((10, 40), 7, dtype=np.uint8))
    with pytest.raises(RequestError, match=r"40x10 pixels, but .* has 40x20") as caught:
        open_(samples)
    assert str(samples[1].mask) in str(caught.value)
    assert caches(own_cache) == []


def test_a_colour_mask_is_refused(samples) -> None:
    rewrite(samples[0].mask, np.zeros((20, 40, 3), dtype=np.uint8))
    with pytest.raises(RequestError, match="got Pillow mode RGB"):
        open_(samples)


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.2, 0.5, 0.9])
def test_a_file_cut_short_is_refused(samples, own_cache: Path, kind: str, keep: float) -> None:
    path: Path = getattr(samples[1], kind)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(RequestError, match="cannot read") as caught:
        open_(samples)
    assert str(path) in str(caught.value)
    assert "segray data check FILE" in str(caught.value)
    assert caches(own_cache) == []


@pytest.mark.parametrize("place", [2, 9, 13, 17, 22, 27, 31, 35, 40, 41, 60, 400, -20, -10])
def test_a_damaged_byte_is_refused_or_changes_nothing_but_pixels(samples, place: int) -> None:
    content = bytearray(samples[0].image.read_bytes())
    content[place] ^= 0xFF
    samples[0].image.write_bytes(content)
    try:
        images, _ = open_(samples)
    except RequestError as error:
        assert str(samples[0].image) in str(error)  # noqa: PT017 - both ways are right
    else:
        assert images.shape == (4, *SIZE, 3)


def test_opened_again_nothing_is_built(samples, own_cache: Path) -> None:
    open_(samples)
    (folder,) = caches(own_cache)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    told: list[tuple[int, int]] = []
    open_(samples, progress=lambda done, total: told.append((done, total)))
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == before


@pytest.mark.parametrize("change", ["image", "mask", "size", "ignore", "fewer"])
def test_whatever_decides_the_bytes_makes_another_cache(samples, own_cache: Path, change) -> None:
    first, _ = open_(samples)
    size, ignore = SIZE, "void"
    if change in ("image", "mask"):
        path: Path = getattr(samples[0], change)
        shape = (20, 40, 3) if change == "image" else (20, 40)
        rewrite(path, np.full(shape, 23, dtype=np.uint8))
    elif change == "size":
        size = (32, 32)
    elif change == "ignore":
        ignore = "none"
    else:
        samples = samples[:-1]
    images, masks = open_(samples, size, ignore)
    assert len(caches(own_cache)) == 2
    assert images.shape == (len(samples), *size, 3)
    if change == "image":
        assert (images[0] == 23).all()
        assert not (first[0] == 23).all()
    if change == "mask":
        assert (masks[0] == 4).all()  # sky


def test_a_process_opens_a_section_once(tree) -> None:
    root = tree({"train": {"aachen": 2, "bonn": 2}, "val": {"ulm": 1}})
    data = CityscapesData(format="cityscapes", root=str(root), size=(32, 32))
    dataset = open_dataset(data)
    assert open_dataset(data.model_copy()) is dataset
    assert open_dataset(data.model_copy(update={"ignore": "none"})) is not dataset
    assert dataset.cities == ("aachen", "aachen", "bonn", "bonn", "ulm")
    image, mask = dataset.pair(4)
    assert image.shape == (32, 32, 3)
    assert mask.shape == (32, 32)


def test_class_pixels_counts_the_train_split(tree) -> None:
    root = tree({"train": {"aachen": 2, "bonn": 3}, "val": {"ulm": 1}})
    data = CityscapesData(format="cityscapes", root=str(root), size=(32, 32))
    dataset = open_dataset(data)
    truth = dataset.masks[list(dataset.splits.train)]
    assert dataset.class_pixels().tolist() == [int((truth == k).sum()) for k in range(7)]


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_refused_with_the_arithmetic(samples, own_cache: Path, monkeypatch) -> None:
    need = 4 * 16 * 32 * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, need))
    with pytest.raises(RequestError, match="4 images x 16 x 32 x 4 bytes") as caught:
        open_(samples)
    assert str(own_cache) in str(caught.value)
    assert "SEGRAY_CACHE" in str(caught.value)
    assert caches(own_cache) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 2 * need))
    assert len(open_(samples)[0]) == 4


def test_what_a_killed_build_left_does_not_count_as_used_room(
    samples, own_cache: Path, monkeypatch
) -> None:
    open_(samples)
    (folder,) = caches(own_cache)
    left = _doomed(folder)
    folder.rename(left)
    free = {True: 0, False: 10**9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free[left.exists()]))
    assert len(open_(samples)[0]) == 4


def test_what_another_node_is_building_stays(samples, own_cache: Path) -> None:
    """Locks do not reach it everywhere: without one it must still have its folder for itself."""
    open_(samples)
    (folder,) = caches(own_cache)
    theirs = folder.with_suffix(".another-node.example.tmp")
    folder.rename(theirs)
    assert len(open_(samples)[0]) == 4
    assert (theirs / "images.npy").is_file()


@pytest.mark.parametrize("reason", ["a pair", "Ctrl-C", "the disk"])
def test_a_build_that_fails_gives_its_room_back(
    samples, own_cache: Path, monkeypatch, reason: str
) -> None:
    kinds = {"a pair": RequestError, "Ctrl-C": KeyboardInterrupt, "the disk": OSError}
    if reason == "a pair":
        samples[3].mask.write_bytes(b"")

    def interrupt(done: int, total: int) -> None:
        if reason == "Ctrl-C":
            raise KeyboardInterrupt

    def no_room(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if reason == "the disk":
        monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(kinds[reason]):
        open_(samples, progress=interrupt)
    assert [path for path in own_cache.iterdir() if path.is_dir()] == []


def test_progress_is_told_image_by_image(samples) -> None:
    told: list[tuple[int, int]] = []
    open_(samples, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


OPENER = """
import sys, time
from pathlib import Path
from segray.config import CityscapesData
from segray.data.cache import open_cache
from segray.data.cityscapes import find_samples

root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def tell(done, total):
    with log.open("a") as file:
        file.write(f"{done}\\n")
    time.sleep(pause)

log.with_suffix(".ready").touch()
while len(list(log.parent.glob("*.ready"))) < int(sys.argv[4]):
    time.sleep(0.01)
data = CityscapesData(format="cityscapes", root=str(root), size=(32, 32))
images, masks = open_cache(find_samples(root)[0], data, tell)
print(int(images.astype(int).sum()), int(masks.astype(int).sum()))
"""


def opener(root: Path, log: Path, *, pause: float, together: int = 1) -> subprocess.Popen[str]:
    """A process that opens the cache once `together` of them are ready, and takes its time."""
    command = [sys.executable, "-c", OPENER, str(root), str(log), str(pause), str(together)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < until, f"{path} was not written"
        time.sleep(0.01)


def test_a_build_killed_midway_leaves_no_cache_and_the_next_open_builds_it(
    tree, tmp_path: Path, own_cache: Path
) -> None:
    root = tree({"train": {"aachen": 6}})
    log = tmp_path / "log"
    process = opener(root, log, pause=60)
    wait_for(log)
    assert [path.suffix for path in own_cache.glob("images-*") if path.is_dir()] == [".tmp"]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert caches(own_cache) == []

    images, masks = open_(find_samples(root)[0], (32, 32))
    assert len(caches(own_cache)) == 1
    assert not list(own_cache.glob("*.tmp"))
    shutil.rmtree(own_cache)  # and it is what a build without a kill makes
    again = open_(find_samples(root)[0], (32, 32))
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(masks, again[1])


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def spoil(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr" + path.read_bytes()[20:])


def reshape(path: Path) -> None:
    np.save(path, np.zeros((4, 8, 16), dtype=np.uint8))


DAMAGES = [cut, spoil, reshape, Path.unlink, lambda path: os.truncate(path, 0)]


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "spoilt", "reshaped", "missing", "empty"])
@pytest.mark.parametrize("name", ["images.npy", "masks.npy"])
def test_a_damaged_cache_is_built_again_with_a_word(
    samples, own_cache: Path, caplog, damage, name: str
) -> None:
    images, masks = (array.copy() for array in open_(samples))
    (folder,) = caches(own_cache)
    assert is_whole(samples, section())
    damage(folder / name)
    assert not is_whole(samples, section())
    again = open_(samples)
    (record,) = caplog.records
    assert f"{folder} is damaged ({name}" in record.getMessage()
    np.testing.assert_array_equal(images, again[0])
    np.testing.assert_array_equal(masks, again[1])
    assert [path for path in own_cache.iterdir() if path.is_dir()] == [folder]
    caplog.clear()
    open_(samples)
    assert not caplog.records


def test_any_damaged_byte_of_a_header_is_noticed_or_harmless(samples, own_cache: Path) -> None:
    masks = open_(samples)[1].copy()
    (folder,) = caches(own_cache)
    whole = (folder / "masks.npy").read_bytes()
    for place in range(128):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            (folder / "masks.npy").write_bytes(damaged)
            if is_whole(samples, section()):
                np.testing.assert_array_equal(open_(samples)[1], masks)


def test_a_cache_that_lost_its_description_is_built_again(samples, own_cache: Path) -> None:
    open_(samples)
    (folder,) = caches(own_cache)
    (folder / "meta.json").unlink()
    open_(samples)
    assert json.loads((folder / "meta.json").read_text())["images"] == 4


def test_two_processes_that_open_at_once_build_once(tree, tmp_path: Path, own_cache: Path) -> None:
    root = tree({"train": {"aachen": 6}})
    logs = [tmp_path / "log0", tmp_path / "log1"]
    processes = [opener(root, log, pause=0.1, together=2) for log in logs]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1] != ""
    assert sorted(len(log.read_text().split()) if log.exists() else 0 for log in logs) == [0, 6]
    assert len(caches(own_cache)) == 1

"""data.root in an object store, against moto's S3: what is fetched, when, and what comes of it."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from segray.config import CityscapesData, Data, FoldersData, RequestError, WorkError, load_sweep
from segray.config.errors import MissingInput
from segray.data import (
    count_images,
    data_version,
    dataset,
    fetch,
    few_samples,
    open_dataset,
    read_splits,
)
from segray.data.check import check_dataset
from segray.data.housekeeping import clear_stored, stored
from segray.data.pairs import PairReader
from segray.data.remote import RemoteError, RemoteRefused

PARTS = {"train": {"aachen": 3, "bochum": 2}, "val": {"bonn": 2}}
FETCH = """\
import sys
from segray.config import CityscapesData
from segray.data import open_dataset
data = CityscapesData.model_validate_json(sys.argv[1])
open_dataset(data, lambda what, done, total: print(what, done, total, flush=True))
"""


@pytest.fixture
def streets(tree, bucket) -> CityscapesData:
    """A section over s3://.../city, with Cityscapes' other files beside those that are needed."""
    root = tree(PARTS)
    for mask in list(root.rglob("*_labelIds.png")):
        for ending in ("color.png", "instanceIds.png", "polygons.json"):
            mask.with_name(mask.name.replace("labelIds.png", ending)).write_bytes(b"not needed")
    (root / "leftImg8bit" / "test" / "berlin").mkdir(parents=True)
    (root / "leftImg8bit" / "test" / "berlin" / "b_000000_leftImg8bit.png").write_bytes(b"neither")
    image = next(root.rglob("*_leftImg8bit.png"))
    image.with_name(f"{image.name}.aux.xml").write_bytes(b"left by a tool")
    bucket.put_tree(root, "city")
    return CityscapesData(format="cityscapes", root=f"{bucket.url}/city", size=(32, 64))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process does not know."""
    monkeypatch.setattr(dataset, "_opened", {})
    monkeypatch.setattr(fetch, "_fetched", {})


def names_here(data: Data) -> list[str]:
    folder = fetch.fetched_folder(data.root)
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith("."))


def kinds(proxy) -> Counter[str]:
    """How often objects were listed, asked about and read since the last call."""
    return Counter(
        "list" if "list-type" in path else method.lower() for method, path in proxy.taken()
    )


def equal(one: Data, other: Data) -> None:
    first, second = open_dataset(one), open_dataset(other)
    assert first.splits == second.splits
    assert (first.ids, first.cities) == (second.ids, second.cities)
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.masks, second.masks)
    for position in range(len(first.ids)):
        np.testing.assert_array_equal(first.native_mask(position), second.native_mask(position))


@pytest.mark.parametrize("split", ["official", "pooled"])
def test_cityscapes_are_the_same_as_from_a_local_folder(streets, tmp_path, split) -> None:
    data = streets.model_copy(update={"split": split})
    equal(data, data.model_copy(update={"root": str(tmp_path / "cityscapes")}))


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"images": "./images/", "masks": "masks/../masks"},
        {
            "split": "explicit",
            "images": "images",
            "masks": "masks",
            "train": "train.txt",
            "val": "lists/val.txt",
            "test": "test.txt",
        },
    ],
    ids=["pooled", "spelled", "lists"],
)
def test_own_images_are_the_same_as_from_a_local_folder(own, bucket, tmp_path, section) -> None:
    local = own(8, **section)
    (tmp_path / "own" / "lists").mkdir()
    for file, numbers in (("train.txt", range(5)), ("lists/val.txt", [5]), ("test.txt", [6, 7])):
        (tmp_path / "own" / file).write_text("".join(f"{n:02}\n" for n in numbers))
    (tmp_path / "own" / "images" / "notes.txt").write_text("not needed")
    bucket.put_tree(tmp_path / "own", "deep/own")
    data = local.model_copy(update={"root": f"{bucket.url}/deep/own/"})
    equal(data, local)
    assert ("train.txt" in names_here(data)) is ("train" in section)
    assert "images/notes.txt" not in names_here(data)


def test_splits_in_folders_of_their_own(own, bucket, tmp_path) -> None:
    parts = {}
    for name in ("train", "val", "test"):
        own(2, name)
        parts[name] = {"images": f"{name}/images", "masks": f"{name}/masks"}
    local = own(0, split="explicit", **parts)
    bucket.put_tree(tmp_path / "own", "own")
    equal(local.model_copy(update={"root": f"{bucket.url}/own"}), local)


def test_only_what_is_needed_is_fetched_and_once(streets, s3_proxy, monkeypatch) -> None:
    told = []
    open_dataset(streets, lambda *progress: told.append(progress))
    assert len(names_here(streets)) == 14
    assert all(name.endswith(("leftImg8bit.png", "labelIds.png")) for name in names_here(streets))
    assert [one for one in told if one[0] == "files fetched"][-1] == ("files fetched", 14, 14)
    # Four folders are listed, before and after; each object is asked about and read.
    assert kinds(s3_proxy) == {"list": 8, "head": 14, "get": 14}
    open_dataset(streets)
    read_splits(streets.model_copy(update={"size": (64, 64)}))
    assert kinds(s3_proxy) == {}
    version = data_version(streets)
    forget(monkeypatch)
    open_dataset(streets)
    assert kinds(s3_proxy) == {"list": 4}
    forget(monkeypatch)
    open_dataset(streets, version=version)  # a trial, that knows what the driver fetched
    assert kinds(s3_proxy) == {}


def test_a_limit_and_another_size_need_no_other_files(streets, s3_proxy) -> None:
    open_dataset(streets.model_copy(update={"limit": 1}))
    s3_proxy.taken()
    open_dataset(streets.model_copy(update={"size": (64, 64)}))
    assert kinds(s3_proxy) == {}


def test_what_changed_in_the_store_is_seen(streets, bucket, s3_proxy, monkeypatch) -> None:
    before = open_dataset(streets).images.copy()
    key = "city/leftImg8bit/train/aachen/aachen_000000_000000_leftImg8bit.png"
    other = "city/leftImg8bit/train/aachen/aachen_000000_000001_leftImg8bit.png"
    content = bucket.server.client().get_object(Bucket=bucket.name, Key=other)["Body"].read()
    time.sleep(1.1)  # the store's time of change is in seconds
    bucket.put(key, content)
    forget(monkeypatch)
    s3_proxy.taken()
    after = open_dataset(streets).images
    assert kinds(s3_proxy)["get"] == 1
    np.testing.assert_array_equal(after[0], before[1])
    np.testing.assert_array_equal(after[1:], before[1:])


def test_what_the_store_has_no_longer_is_not_trained_on(streets, bucket, monkeypatch) -> None:
    assert len(open_dataset(streets).ids) == 7
    client = bucket.server.client()
    for key in bucket.keys("city"):
        if "aachen_000000_000002" in key:
            client.delete_object(Bucket=bucket.name, Key=key)
    forget(monkeypatch)
    assert len(open_dataset(streets).ids) == 6
    assert not [name for name in names_here(streets) if "aachen_000000_000002" in name]


def test_a_node_that_would_fetch_other_files_than_the_driver_refuses(
    streets, bucket, monkeypatch, tmp_path
) -> None:
    version = data_version(streets)
    bucket.put("city/leftImg8bit/train/aachen/new_leftImg8bit.png", b"")
    forget(monkeypatch)
    open_dataset(streets, version=version)  # the driver's own node has them still
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "other-node"))
    forget(monkeypatch)
    with pytest.raises(RequestError, match="since this sweep began") as caught:
        open_dataset(streets, version=version)
    assert streets.root in str(caught.value)
    assert names_here(streets) == []


def test_a_file_that_is_lost_here_is_fetched_again(streets, s3_proxy, monkeypatch) -> None:
    version = data_version(streets)
    folder = fetch.fetched_folder(streets.root)
    (folder / names_here(streets)[0]).unlink()
    forget(monkeypatch)
    s3_proxy.taken()
    assert len(open_dataset(streets, version=version).ids) == 7
    assert kinds(s3_proxy)["get"] == 1


def test_files_that_change_while_they_are_fetched_are_fetched_again(
    streets, bucket, monkeypatch
) -> None:
    key = "gtFine/train/aachen/aachen_000000_000000_gtFine_labelIds.png"
    client = bucket.server.client()
    body = client.get_object(Bucket=bucket.name, Key=f"city/{key}")["Body"].read()
    times = []

    def meddle(what: str, done: int, total: int) -> None:
        if what == "files fetched" and not times:
            times.append(done)
            time.sleep(1.1)
            bucket.put(f"city/{key}", body)

    open_dataset(streets, meddle)
    forget(monkeypatch)
    here = (fetch.fetched_folder(streets.root) / key).stat().st_mtime_ns
    assert here == fetch.survey(streets).listing[key].changed_ns
    assert fetch.survey(streets).missing == {}


def test_files_that_never_stand_still_are_an_error(streets, bucket) -> None:
    def meddle(what: str, done: int, total: int) -> None:
        if done == total:
            bucket.put(f"city/leftImg8bit/train/aachen/{time.time_ns()}_leftImg8bit.png", b"x")

    with pytest.raises(WorkError, match="changed 3 times while they were being fetched"):
        read_splits(streets, meddle)


def start(data: Data) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, data.model_dump_json()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_fetch_that_was_killed_goes_on(tree, bucket, s3_proxy) -> None:
    bucket.put_tree(tree({"train": {"aachen": 20, "bochum": 10}, "val": {"bonn": 10}}), "city")
    data = CityscapesData(format="cityscapes", root=f"{bucket.url}/city", size=(32, 64))
    s3_proxy.delay = 0.2
    process = start(data)
    for line in iter(process.stdout.readline, ""):
        if line.startswith("files fetched 20 "):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    s3_proxy.delay = 0
    here = [name for name in names_here(data) if not name.endswith(".part")]
    assert 20 <= len(here) < 80
    [one] = stored()
    assert one.holds == f"files fetched from {data.root}, not all yet"
    (fetch.fetched_folder(data.root) / "gtFine" / ".x.png.1.part").write_bytes(b"half")
    time.sleep(0.5)  # what the killed process had asked for comes to its end
    s3_proxy.taken()
    assert len(open_dataset(data).ids) == 40
    assert kinds(s3_proxy)["get"] == 80 - len(here)
    assert len(names_here(data)) == 80


def test_two_processes_at_once_fetch_once(streets, s3_proxy) -> None:
    both = [start(streets), start(streets)]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sorted("files fetched" in out for out, _ in told) == [False, True]
    assert kinds(s3_proxy)["get"] == 14


def test_the_plan_is_told_without_a_fetch(streets, own_cache) -> None:
    images, found = count_images(streets)
    assert sum(images.values()) == 7
    assert (len(found.listing), len(found.missing)) == (14, 14)
    assert found.bytes == sum(file.bytes for file in found.listing.values())
    assert not own_cache.exists()
    _, splits = read_splits(streets)
    assert images == {name: len(part) for name, part in splits.named().items()}
    assert count_images(streets)[1].missing == {}


def test_a_few_images_are_fetched_without_the_others(streets, s3_proxy, own_cache) -> None:
    wanted = "bonn_000000_000001"
    with few_samples(streets, {wanted, "no such image"}) as found:
        (sample,) = found.values()
        assert sample.id == wanted
        few = PairReader(streets).read(sample)
    assert kinds(s3_proxy)["get"] == 2
    assert not sample.image.exists()
    assert not list(own_cache.glob("files-*"))
    samples, splits = read_splits(streets)
    whole = PairReader(streets).read(samples[splits.test[1]])
    np.testing.assert_array_equal(few.image, whole.image)
    np.testing.assert_array_equal(few.mask, whole.mask)
    s3_proxy.taken()
    with few_samples(streets, {wanted}) as found:  # all is here by now
        assert found[wanted].image.is_relative_to(own_cache)
    assert kinds(s3_proxy)["get"] == 0


def test_what_is_wrong_is_said_of_the_store(streets, bucket) -> None:
    gone = "gtFine/train/aachen/aachen_000000_000000_gtFine_labelIds.png"
    bucket.server.client().delete_object(Bucket=bucket.name, Key=f"city/{gone}")
    for look in (read_splits, count_images):
        with pytest.raises(RequestError, match="no mask; expected") as caught:
            look(streets)
        assert f"{streets.root}/{gone}" in str(caught.value)
        assert "segray-" not in str(caught.value)
    [problem] = check_dataset(streets).problems
    assert problem.message.startswith(f"{streets.root}/leftImg8bit/train/aachen/")


@pytest.mark.parametrize("look", [read_splits, count_images])
def test_a_folder_without_images(bucket, look) -> None:
    bucket.put("elsewhere/a.png", b"")
    data = CityscapesData(format="cityscapes", root=f"{bucket.url}/city", size=(32, 64))
    with pytest.raises(MissingInput) as caught:
        look(data)
    assert f"{bucket.url}/city/leftImg8bit/train/<city>" in str(caught.value)
    classes = {"a": {"ids": 0}, "b": {"ids": 1}}
    raw = {"format": "folders", "root": bucket.url, "images": "i", "masks": "m", "size": [32, 32]}
    with pytest.raises(MissingInput, match=f"data.images: no folder at {bucket.url}/i"):
        look(FoldersData.model_validate(raw | {"classes": classes}))


def test_a_path_that_leaves_the_root(bucket) -> None:
    raw = {"format": "folders", "root": f"{bucket.url}/a", "images": "../b", "masks": "m"}
    classes = {"a": {"ids": 0}, "b": {"ids": 1}}
    data = FoldersData.model_validate(raw | {"classes": classes, "size": [32, 32]})
    with pytest.raises(
        RequestError, match=r"data.images: expected a path below data.root .*\.\./b"
    ):
        read_splits(data)


def test_keys_that_are_no_paths_are_passed_over(streets, bucket) -> None:
    for key in ("../../out", "a//b", ".hidden/a", "._a"):
        bucket.put(f"city/leftImg8bit/train/{key}_leftImg8bit.png", b"")
    assert len(open_dataset(streets).ids) == 7
    assert len(names_here(streets)) == 14


@pytest.mark.parametrize(
    ("behaviour", "kind", "code", "says"),
    [
        ("denied", RemoteRefused, 2, "this machine has no right to it"),
        ("error", RemoteError, 1, "look at the network"),
    ],
)
def test_a_store_that_refuses_or_fails(streets, s3_proxy, behaviour, kind, code, says) -> None:
    s3_proxy.behaviour = behaviour
    with pytest.raises(kind, match=says) as caught:
        open_dataset(streets)
    assert caught.value.exit_code == code
    assert streets.root in str(caught.value)


def test_no_bucket(bucket) -> None:
    data = CityscapesData(format="cityscapes", root="s3://nobody-has-this/city", size=(32, 64))
    with pytest.raises(RemoteRefused, match="there is no bucket nobody-has-this") as caught:
        open_dataset(data)
    assert caught.value.exit_code == 2


def test_a_store_that_goes_away_in_the_middle(streets, s3_proxy, monkeypatch) -> None:
    def cut(what: str, done: int, total: int) -> None:
        s3_proxy.behaviour = "denied"

    monkeypatch.setattr("segray.data.remote.AT_ONCE", 1)
    with pytest.raises(RemoteError, match="cannot read"):
        open_dataset(streets, cut)
    s3_proxy.behaviour = "ok"
    forget(monkeypatch)
    assert len(open_dataset(streets).ids) == 7


def test_a_disk_without_room(streets, monkeypatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("Disk", (), {"free": 60_000})())
    with pytest.raises(RequestError, match=r"14 files of s3://.*7 images x 32 x 64 x 4 bytes"):
        open_dataset(streets)


def test_the_cache_lists_and_frees_fetched_files(streets, monkeypatch) -> None:
    open_dataset(streets)
    files, images = sorted(stored(), key=lambda one: one.path.name)
    assert files.holds == f"files fetched from {streets.root}"
    assert images.holds == f"7 images at 32x64: cityscapes, {streets.root}"
    assert files.bytes > 14 * 100
    clear_stored([files.path.name], None, lambda _: True)
    assert files.path.exists()  # masks are read from it
    dataset._opened.clear()
    clear_stored([files.path.name], None, lambda _: True)
    assert not files.path.exists()
    forget(monkeypatch)
    assert len(open_dataset(streets).ids) == 7  # fetched again, and not decoded again
    assert len(stored()) == 2


def test_a_url_in_a_sweep_file_stays_one(tmp_path) -> None:
    base = {"name": "a", "model": "{name: unet}", "parameters": "{}", "method": "random"}
    file = tmp_path / "a.yaml"
    data = "{format: cityscapes, size: [32, 64], root: 's3://bucket/a folder/'}"
    file.write_text("".join(f"{key}: {value}\n" for key, value in (base | {"data": data}).items()))
    assert load_sweep(file, ["run_cap=1"]).data.root == "s3://bucket/a folder/"
    for wrong in ("s3:/bucket/a", "http://bucket/a", "s3://", "s3://bucket/a?region=x"):
        with pytest.raises(RequestError, match=r"data\.root: expected s3://bucket/f"):
            load_sweep(file, ["run_cap=1", f"data.root={wrong}"])
    with pytest.raises(RequestError, match="scenes are drawn on this machine"):
        load_sweep(file, ["run_cap=1", "data={format: scenes, root: s3://bucket/a}"])

"""What the cache folder holds, as listed and cleared from the command line."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from segray.cli import main
from segray.config import RequestError, ScenesData
from segray.data import dataset, open_dataset
from segray.data.cache import lock_path
from segray.data.housekeeping import DAY, Stored, clear_stored, stored

DRAWN = ScenesData(
    format="scenes", train_images=4, test_images=1, cities=2, test_cities=1, size=(32, 64)
)


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", "cache", *words])
    return left.value.code


@pytest.fixture
def own_and_drawn(own) -> tuple[Stored, Stored, Stored]:
    """Folders' decoded images; drawn scenes and, decoded, their images."""
    open_dataset(own(8))
    open_dataset(DRAWN)
    dataset._opened.clear()  # by a process that has ended
    found = {one.holds.split(" ")[1] + one.holds[0]: one for one in stored()}
    return found["images8"], found["generated5"], found["images5"]


def use(one: Stored, *, days_ago: float) -> None:
    at = time.time() - days_ago * DAY
    name = "meta.json" if one.path.name.startswith("images") else "scenes.json"
    os.utime(one.path / name, (at, at))


def names() -> set[str]:
    return {one.path.name for one in stored()}


def test_an_empty_cache_says_so(own_cache: Path, capsys) -> None:
    assert command("ls") == 0
    assert f"{own_cache}: nothing is cached" in capsys.readouterr().out
    assert command("clear", "--yes") == 0
    assert f"{own_cache}: nothing to clear" in capsys.readouterr().out


def test_ls_says_what_each_holds_how_large_and_when_used(own_and_drawn, tmp_path, capsys) -> None:
    own, drawn, decoded = own_and_drawn
    use(own, days_ago=3.5)
    use(drawn, days_ago=1.5)
    assert command("ls") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        one.path.name for one in (decoded, drawn, own)
    ]  # last used first
    assert "5 images at 32x64: scenes" in lines[0]
    assert "today" in lines[0]
    assert "5 generated scenes of 32x64" in lines[1]
    assert "1 day ago" in lines[1]
    assert f"8 images at 32x48: folders, {tmp_path}/own" in lines[2]
    assert "3 days ago" in lines[2]
    assert own.bytes == sum(file.stat().st_size for file in own.path.iterdir())
    assert own.bytes > 8 * 32 * 48 * 4


def test_opening_counts_as_use(own_and_drawn, monkeypatch) -> None:
    for one in own_and_drawn:
        use(one, days_ago=9)
    monkeypatch.setattr("segray.data.dataset._opened", {})
    open_dataset(DRAWN)
    assert [one.unused_days for one in stored()] == [0, 0, 9]


def test_clear_asks_before_it_deletes(own_and_drawn, capsys, monkeypatch) -> None:
    before = names()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert command("clear") == 0
    assert "Delete them? No: add --yes" in capsys.readouterr().out
    assert names() == before
    assert command("clear", "--yes") == 0
    assert "freed" in capsys.readouterr().out
    assert names() == set()


def test_clear_takes_what_is_named_or_unused(own_and_drawn) -> None:
    own, drawn, decoded = own_and_drawn
    use(drawn, days_ago=40)
    assert command("clear", "--unused-days", "30", "--yes") == 0
    assert names() == {own.path.name, decoded.path.name}
    assert command("clear", own.path.name, "--yes") == 0
    assert names() == {decoded.path.name}


def test_a_wrong_name_is_refused_and_nothing_deleted(own_and_drawn, capsys) -> None:
    before = names()
    assert command("clear", own_and_drawn[0].path.name, "images-nowhere", "--yes") == 2
    assert "got images-nowhere" in capsys.readouterr().err
    with pytest.raises(RequestError, match="got both"):
        clear_stored([own_and_drawn[0].path.name], 3, lambda question: True)
    assert names() == before


def test_what_is_being_built_stays(own_and_drawn, capsys) -> None:
    own = own_and_drawn[0]
    building = own.path.with_suffix(".tmp")
    own.path.rename(building)
    with FileLock(lock_path(own.path)):
        assert command("ls") == 0
        assert f"{building.name}" in (said := capsys.readouterr().out)
        assert "being built" in said
        assert command("clear", "--yes") == 0
        assert f"{building.name} is being built and stays" in capsys.readouterr().out
        assert names() == {building.name}


def test_files_that_masks_are_read_from_stay(own_and_drawn, capsys) -> None:
    own, drawn, decoded = own_and_drawn
    opened = open_dataset(DRAWN)
    truth = opened.native_mask(0)
    assert command("ls") == 0
    assert "5 generated scenes of 32x64" in capsys.readouterr().out
    assert command("clear", "--yes") == 0
    assert f"{drawn.name} is in use by a sweep and stays" in capsys.readouterr().out
    assert names() == {drawn.path.name}
    np.testing.assert_array_equal(opened.native_mask(0), truth)
    assert not own.path.exists()
    assert not decoded.path.exists()
    assert (opened.masks[0] == truth).all()  # still mapped
    del opened
    dataset._opened.clear()
    assert command("clear", "--yes") == 0
    assert names() == set()


def test_leftovers_and_old_caches_are_listed_and_cleared(own_and_drawn, capsys) -> None:
    own, drawn, decoded = own_and_drawn
    own.path.rename(own.path.with_suffix(".tmp"))
    drawn.path.rename(drawn.path.with_name(f".{drawn.path.name}.x1_y"))
    (decoded.path / "meta.json").unlink()
    (decoded.path.parent / "not-ours").mkdir()
    assert command("ls") == 0
    said = capsys.readouterr().out
    assert said.count("left by a process that was killed") == 2
    assert "of another version of segray, or damaged" in said
    assert command("clear", "--yes") == 0
    left = [path for path in decoded.path.parent.iterdir() if path.is_dir()]
    assert left == [decoded.path.with_name("not-ours")]


def test_copies_of_runs_are_listed_and_cleared_but_for_those_in_use(own_cache, capsys) -> None:
    copies = own_cache / "runs" / "0123456789ab"
    for name in ("unet", "segformer"):
        (copies / name).mkdir(parents=True)
        (copies / name / "sweep.yaml").write_text("name: " + name)
        (copies / name / ".lock").touch()
    (copies / ".url").write_text("s3://lab/runs")
    with (copies / "unet" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a trial's process has it
        assert command("ls") == 0
        said = capsys.readouterr().out
        assert "runs/0123456789ab/segformer" in said
        assert "a copy of s3://lab/runs/segformer" in said
        assert command("clear", "--yes") == 0
        assert "runs/0123456789ab/unet is in use by a sweep and stays" in capsys.readouterr().out
        assert [path.name for path in sorted(copies.glob("*/"))] == ["unet"]
    assert command("clear", "runs/0123456789ab/unet", "--yes") == 0
    assert not list(copies.glob("*/"))


def test_a_folder_that_stayed_empty_is_not_called_damaged(own_cache, capsys) -> None:
    (own_cache / "files-0123abcd").mkdir(parents=True)
    assert command("ls") == 0
    assert "nothing: what should have come there did not" in capsys.readouterr().out
    assert command("clear", "--yes") == 0
    assert names() == set()


@pytest.mark.parametrize("signals", [True, False], ids=["Ctrl-C", "Ctrl-D"])
def test_a_question_that_is_interrupted_deletes_nothing(own_and_drawn, signals) -> None:
    before = names()
    terminal, end = os.openpty()
    asked = subprocess.Popen(
        [sys.executable, "-m", "segray", "data", "cache", "clear"],
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    told = b""
    while b"[y/N]" not in told:
        piece = os.read(asked.stdout.fileno(), 4096)
        assert piece, told
        told += piece
    if signals:
        asked.send_signal(signal.SIGINT)
    else:
        os.write(terminal, b"\x04")
    _, complaint = asked.communicate(timeout=60)
    os.close(terminal)
    os.close(end)
    assert asked.returncode == 130
    assert complaint.decode().strip() == "error: interrupted"
    assert names() == before

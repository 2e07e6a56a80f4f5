"""`segray data check`: everything that is wrong, at once, and how it is told."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from segray.cli import main
from segray.config import CityscapesData, FoldersData, RequestError
from segray.data import open_dataset
from segray.data.check import Report, check_dataset


def printed(report: Report, width: int = 80) -> str:
    out = io.StringIO()
    report.print(Console(file=out, width=width))
    return out.getvalue()


def damage(data: FoldersData) -> None:
    """One problem of nearly every kind; 00 and 07 to 29 stay whole."""
    images, masks = (Path(data.root) / kind for kind in ("images", "masks"))
    (masks / "01.png").unlink()
    Image.new("L", (10, 10)).save(masks / "02.png")
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:-900])
    for name, label, rows in (("04", 9, 10), ("05", 9, 2), ("05", 8, 1)):
        pixels = np.asarray(Image.open(masks / f"{name}.png")).copy()
        pixels[rows] = label
        Image.fromarray(pixels).save(masks / f"{name}.png")
    shutil.copy(images / "06.png", images / "06.bmp")
    Image.new("L", (48, 32)).save(masks / "lonely.png")


def test_all_problems_come_in_one_report(own) -> None:
    data = own(30)
    damage(data)
    report = check_dataset(data)
    assert [finding.kind for finding in report.problems] == [
        "images without a mask",
        "files with one stem",
        "masks of another size",
        "files that cannot be read",
        "pixels of no class",
        "pixels of no class",
    ]
    assert [finding.kind for finding in report.warnings] == ["masks without an image"]
    nine, eight = [finding.message for finding in report.problems[-2:]]
    assert "04.png: id 9 (96 pixels of 2 masks): in no class" in nine
    assert "05.png: id 8 (48 pixels): in no class" in eight
    with pytest.raises(RequestError) as caught:
        open_dataset(data)
    assert str(caught.value).startswith(report.problems[0].message)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_what_is_printed_names_every_file_unbroken(own, width: int) -> None:
    data = own(30)
    damage(data)
    report = check_dataset(data)
    text = printed(report, width)
    for finding in report.findings:
        assert f"  {finding.message}\n" in text
    assert "files with one stem: 1\n" in text
    assert text.endswith("28 pairs read, a sweep would fail: 6 problems, 1 warning\n")


def test_many_findings_of_a_kind_are_cut_to_five(own) -> None:
    data = own(30)
    for number in range(9):
        (Path(data.root) / "masks" / f"{number:02}.png").unlink()
    text = printed(check_dataset(data))
    assert "images without a mask: 9\n" in text
    assert text.count("no mask; expected") == 5
    assert "\n  and 4 more\n" in text


def test_shares_are_of_the_pixels_that_a_model_sees(own) -> None:
    data = own(10)
    for mask in (Path(data.root) / "masks").iterdir():
        pixels = np.zeros((32, 48), dtype=np.uint8)
        pixels[8:] = 3
        pixels[24:] = 255
        Image.fromarray(pixels).save(mask)
    report = check_dataset(data)
    np.testing.assert_array_equal(
        report.pixels / report.pixels.sum(1, keepdims=True), [[0.25, 0.5, 0.25]] * 3
    )
    lines = [line.split() for line in printed(report).splitlines()]
    assert lines[1:5] == [
        ["sky", "25.00", "25.00", "25.00"],
        ["road", "50.00", "50.00", "50.00"],
        ["left", "out", "25.00", "25.00", "25.00"],
        ["images", "8", "1", "1"],
    ]
    assert printed(report).endswith("\n10 pairs read, ready for a sweep\n")


def test_what_a_sweep_would_pass_over_is_a_warning(own) -> None:
    data = own(10, size=[64, 64])
    for mask in (Path(data.root) / "masks").iterdir():
        Image.new("L", (48, 32), 3).save(mask)
    report = check_dataset(data)
    assert report.problems == ()
    assert [finding.message for finding in report.warnings] == [
        "10 images of 48x32 pixels (W x H): data.size [64, 64] (H, W) changes their proportions "
        "by 50%; [64, 96] would keep them",
        "10 images of 48x32 pixels (W x H): enlarged to data.size [64, 64] (H, W), without more "
        "detail",
        "sky has no pixel in train: nothing to learn it from",
        "sky has no pixel in val: tuning cannot see it",
        "sky has no pixel in test: the final score leaves it out",
    ]
    open_dataset(data)


def test_smoothed_colours_do_not_flood_the_report(own) -> None:
    data = own(8, classes={"a": {"color": [0, 0, 0]}, "b": {"color": [255, 0, 0]}})
    for number, mask in enumerate(sorted((Path(data.root) / "masks").iterdir())):
        pixels = np.zeros((32, 48, 3), dtype=np.uint8)
        pixels[:, :, 1] = np.arange(48) + number
        Image.fromarray(pixels).save(mask)
    report = check_dataset(data)
    assert len(report.problems) == 21
    assert "others (" in report.problems[-1].message


def test_a_few_pairs_are_spread_over_all(own) -> None:
    data = own(30)
    (Path(data.root) / "images" / "29.png").write_bytes(b"")
    (Path(data.root) / "images" / "14.png").write_bytes(b"")
    told = []
    report = check_dataset(data, limit=4, progress=lambda *news: told.append(news))
    assert told == [("pairs read", done, 4) for done in (1, 2, 3, 4)]
    assert len(report.problems) == 1  # 0, 10, 19 and 29 are read
    assert "29.png" in report.problems[0].message
    assert "4 of 30 pairs read, a sweep would fail: 1 problem\n" in printed(report)


@pytest.fixture
def sweep(tmp_path: Path):
    """sweep(data) -> a sweep file over it."""

    def write(data) -> str:
        raw = {"name": "a", "model": {"name": "unet"}, "data": data.model_dump(mode="json")}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return str(path)

    return write


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", *arguments])
    return int(ended.value.code or 0)


def test_the_command_ends_with_0_1_or_2(own, sweep, capsys) -> None:
    data = own(30)
    file = sweep(data)
    assert run("check", file) == 0
    assert "30 pairs read, ready for a sweep" in capsys.readouterr().out
    damage(data)
    assert run("check", file) == 1
    assert "a sweep would fail" in capsys.readouterr().out
    assert run("check", file, "data.limt=3") == 2
    assert "did you mean limit?" in capsys.readouterr().err
    assert run("check", file, "data.root=/nowhere") == 2
    assert "data.root: no folder at /nowhere" in capsys.readouterr().err
    assert run("check") == 2


def test_scenes_are_files_that_a_sweep_can_use(tmp_path: Path, sweep, capsys) -> None:
    folder = tmp_path / "scenes"
    command = ["scenes", str(folder), "--train", "4", "--val", "1", "--size", "32,64"]
    assert run(*command) == 0
    assert f"root: {folder}, size: [32, 64]" in capsys.readouterr().out
    data = CityscapesData(format="cityscapes", root=str(folder), size=(32, 64))
    assert run("check", sweep(data)) == 0
    assert run(*command) == 0  # the same set is there
    assert run(*command, "--seed", "1") == 2
    assert "Give another folder, or delete this one" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["32", "32x64", "a,b", "8,8"])
def test_a_size_that_is_none_is_refused(tmp_path: Path, capsys, size: str) -> None:
    assert run("scenes", str(tmp_path / "scenes"), "--size", size) == 2
    assert "error: " in capsys.readouterr().err

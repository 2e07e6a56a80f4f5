"""`segray predict`: what it prints, and what it ends with."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from segray.cli import main


def test_from_images_to_masks(unet, tmp_path, paint):
    (tmp_path / "photos").mkdir()
    Image.fromarray(paint(40, 70)).save(tmp_path / "photos/a.png")
    Image.fromarray(paint(33, 21)).save(tmp_path / "b.jpg")
    (tmp_path / "photos/bad.png").write_text("no image")
    command = [sys.executable, "-m", "segray.predict", unet.parent, "photos", "b.jpg"]
    options = ["--out", "out", "--window", "32,48", "--batch", "2", "--device", "cpu"]
    done = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "2 of 3 images" in done.stdout
    assert "error: 1 could not be read\ncannot read photos/bad.png: no image" in done.stderr
    assert "images predicted: 3 of 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "a.png", "--out", "out"], "got nowhere, which does not exist"),
        (["{unet}", "a.png"], "--out: name a folder"),
        (["{unet}", "a.png", "--out", "out"], "got a.png: not found"),
        (["{unet}", "a.png", "--out", "out", "--window", "64"], "--window: expected H,W"),
        (["{unet}", "a.png", "--out", "out", "--device", "gpu"], "expected auto, cpu or a GPU"),
        (["{unet}", "--export", "model"], "expected a file that ends in .onnx"),
        (["{unet}"], "expected images or folders of them, or --export FILE.onnx"),
    ],
)
def test_wrong_requests(unet, tmp_path, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["predict", *(argument.format(unet=unet) for argument in arguments)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said.strip().splitlines()[-1]
    assert said.count("error:") == 1
    assert list(tmp_path.iterdir()) == []

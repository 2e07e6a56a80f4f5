"""Files in, files out."""

import json

import numpy as np
import pytest
from PIL import Image

import segray
from segray.config import RequestError
from segray.predict import files, first_image, plain_progress, predict_files, read_image


@pytest.fixture(scope="module")
def loaded(unet):
    return segray.load(unet, device="cpu")


@pytest.fixture
def photos(tmp_path, paint):
    """A folder with images of every kind that training reads."""
    folder = tmp_path / "photos"
    (folder / "seq 1").mkdir(parents=True)
    image = Image.fromarray(paint(40, 70))
    for name in ("a.png", "b.bmp", "c.tif", "d.jpg", "e.webp", "seq 1/a.png", "seq 1/x.y.png"):
        image.save(folder / name)
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.quantize(16).save(folder / "palette.png")
    Image.fromarray(np.full((40, 70), 40000, dtype=np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def places(folder, ending):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*.{ending}"))


def test_every_image_gets_a_mask_and_an_overlay(loaded, photos, tmp_path):
    out = tmp_path / "new" / "out"
    told = []
    progress = lambda *said: told.append(said)  # noqa: E731
    done = predict_files(loaded, [photos], out, batch=5, progress=progress)
    assert (done.count, done.failed) == (12, ())
    assert [said[1:] for said in told] == [(5, 12), (10, 12), (12, 12)]
    stems = [*"abcde", "alpha", "deep", "grey", "palette", "seq 1/a", "seq 1/x.y", "turned"]
    assert places(out / "masks", "png") == sorted(f"{stem}.png" for stem in stems)
    assert places(out / "overlays", "jpg") == sorted(f"{stem}.jpg" for stem in stems)
    assert sorted(path.name for path in out.iterdir()) == [
        *("classes.json", "legend.png", "masks", "overlays"),
    ]
    with Image.open(out / "masks" / "d.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), loaded.predict(photos / "d.jpg"))
        assert mask.getpalette()[:6] == [128, 64, 128, 70, 70, 70]
    raw = (out / "masks" / "d.png").read_bytes()
    assert raw[24:26] == bytes([8, 3])  # PNG's IHDR: bits, and colour type palette
    turned = read_image(photos / "turned.jpg")
    assert turned.shape == (70, 40, 3)
    with Image.open(out / "masks" / "turned.png") as mask:
        assert mask.size == (40, 70)
        assert np.array_equal(np.asarray(mask), loaded.predict(turned))
    with Image.open(out / "overlays" / "turned.jpg") as overlay:
        expected = np.asarray(loaded.overlay(turned, loaded.predict(turned))).astype(int)
        assert np.abs(np.asarray(overlay) - expected).mean() < 8  # JPEG's loss
    legend = json.loads((out / "classes.json").read_text())["segray"]
    assert legend[4] == {"index": 4, "name": "sky", "color": [70, 130, 180]}
    with Image.open(out / "legend.png") as picture:
        colours = {colour for _, colour in picture.getcolors(100_000)}
    assert {tuple(colour) for colour in loaded.colours.tolist()} <= colours


def test_windows_reach_the_files(loaded, photos, tmp_path):
    predict_files(loaded, [photos / "a.png"], tmp_path / "out", window=(32, 32))
    with Image.open(tmp_path / "out/masks/a.png") as mask:
        assert np.array_equal(np.asarray(mask), loaded.predict(photos / "a.png", window=(32, 32)))


def test_unreadable_images_are_named_and_the_others_done(loaded, photos, tmp_path):
    (photos / "aa.png").write_bytes((photos / "a.png").read_bytes()[:300])
    (photos / "empty.jpg").touch()
    done = predict_files(loaded, [photos, photos / "notes.txt"], tmp_path / "out", batch=2)
    assert done.count == 12
    assert [message.split(":")[0] for message in done.failed] == [
        f"cannot read {photos / name}" for name in ("aa.png", "empty.jpg", "notes.txt")
    ]
    assert "segray data check" not in done.failed[0]
    assert len(places(tmp_path / "out/masks", "png")) == 12


def test_all_images_unreadable(loaded, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    done = predict_files(loaded, [tmp_path / "bad.png"], tmp_path / "out")
    assert (done.count, len(done.failed)) == (0, 1)


def test_two_images_for_one_place_are_refused(loaded, photos, tmp_path):
    Image.new("RGB", (40, 40)).save(photos / "a.jpg")
    out = tmp_path / "out"
    with pytest.raises(
        RequestError, match=r"a\.jpg and .*a\.png would both be written to .*a\.png"
    ):
        predict_files(loaded, [photos], out)
    with pytest.raises(RequestError, match="would both be written"):
        predict_files(loaded, [photos / "a.png", photos / "seq 1/a.png"], out)
    assert not out.exists()
    # the same image twice is one image
    assert predict_files(loaded, [photos / "b.bmp", photos / "b.bmp"], out).count == 1


def test_inputs_that_are_not_there(loaded, tmp_path):
    with pytest.raises(RequestError, match=r"expected an image or a folder .*nowhere: not found"):
        predict_files(loaded, [tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"no images in .*empty: expected files of png, bmp"):
        predict_files(loaded, [tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_of_somebody_elses_is_overwritten(loaded, unet, bare, photos, tmp_path):
    drawn = tmp_path / "masks" / "a.png"
    drawn.parent.mkdir()
    drawn.write_text("the truth")
    with pytest.raises(RequestError, match=r"--out: expected a new folder.* holds masks, photos"):
        predict_files(loaded, [photos], tmp_path)
    assert drawn.read_text() == "the truth"
    with pytest.raises(RequestError, match="which is a file"):
        predict_files(loaded, [photos], drawn)
    out = tmp_path / "out"
    predict_files(loaded, [photos / "a.png"], out)
    with pytest.raises(RequestError, match="holds masks of other classes"):
        predict_files(segray.load(bare, device="cpu"), [photos / "a.png"], out)


def test_again_into_the_same_folder(loaded, photos):
    """The results of the first time, below the images, are no input of the second."""
    for _ in range(2):
        assert predict_files(loaded, [photos], photos / "out").count == 12
    assert len(places(photos / "out" / "masks", "png")) == 12


def test_a_disk_that_is_full_leaves_nothing_in_part(loaded, photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        predict_files(loaded, [photos / "a.png"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_first_image(photos, tmp_path):
    (photos / "0.png").write_text("no image")
    assert np.array_equal(first_image([photos], tmp_path), read_image(photos / "a.png"))
    assert first_image([photos / "0.png"], tmp_path) is None


@pytest.mark.parametrize(("total", "lines"), [(3, 3), (10, 10), (1000, 10)])
def test_progress_in_lines(total, lines):
    said = []
    tell = plain_progress(said.append)
    for done in range(1, total + 1):
        tell("images predicted", done, total)
    assert len(said) == lines
    assert said[-1] == f"images predicted: {total} of {total}"

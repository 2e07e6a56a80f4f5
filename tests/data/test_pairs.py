"""One image and its mask: every kind of file that people have, and what is refused."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from segray.config import FoldersData, RequestError
from segray.data import IGNORE, open_dataset
from segray.data.pairs import PairReader, open_upright
from segray.data.samples import BadPair, Sample

SIZE = (32, 48)
BY_ID = {"a": {"ids": [0, 300]}, "b": {"ids": 1}, "void": {"ids": 255}}
RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
BY_COLOUR = {"a": {"color": RED}, "b": {"color": [GREEN, (0, 0, 9)]}, "void": {"color": BLACK}}


def reader(classes=BY_ID) -> PairReader:
    raw = {"format": "folders", "root": "", "size": SIZE, "images": "i", "masks": "m"}
    return PairReader(FoldersData.model_validate(raw | {"classes": classes}))


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Sample]:
    """pair(image, mask) -> both saved; ready-made paths are left as they are."""

    def make(image: Image.Image | Path | None = None, mask: Image.Image | Path | None = None):
        paths = []
        for name, content in (("image.png", image), ("mask.png", mask)):
            if not isinstance(content, Path):
                plain = Image.new("RGB" if name == "image.png" else "L", SIZE[::-1])
                (content or plain).save(tmp_path / name)
                content = tmp_path / name
            paths.append(content)
        return Sample("0", "", "", *paths)

    return make


def image_of(mode: str) -> Image.Image:
    """Grey 90 in every mode."""
    if mode == "I;16":
        return Image.fromarray(np.full(SIZE, 90 * 257, dtype=np.uint16))
    if mode == "P":
        image = Image.new("P", SIZE[::-1], 1)
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.info["transparency"] = b"\x00\x80"
        return image
    fill = {"RGB": (90,) * 3, "RGBA": (90, 90, 90, 7), "LA": (90, 7), "L": 90, "1": 1}
    if mode == "CMYK":
        return Image.new("RGB", SIZE[::-1], (90,) * 3).convert("CMYK")
    return Image.new(mode, SIZE[::-1], fill[mode])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "CMYK"])
def test_every_kind_of_image_becomes_rgb(pair, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image_of(mode).save(path)
    assert (reader().read(pair(path)).image == 90).all()


def test_floating_point_is_refused(pair, tmp_path: Path) -> None:
    Image.new("F", SIZE[::-1]).save(tmp_path / "image.tif")
    with pytest.raises(BadPair, match="got floating point"):
        reader().read(pair(tmp_path / "image.tif"))


IDS = np.zeros(SIZE, dtype=np.uint8)
IDS[:, :20], IDS[:5] = 1, 255


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "I"])
def test_ids_of_8_16_and_32_bits_are_read(pair, tmp_path: Path, kind: str) -> None:
    mask = Image.fromarray(IDS)
    if kind == "P":
        mask.putpalette([255 - i // 3 for i in range(768)])
    elif kind == "I;16":
        mask = Image.fromarray(np.where(IDS == 0, 300, IDS.astype(np.uint16)))
    elif kind == "I":
        mask = Image.fromarray(IDS.astype(np.int32))
    mask.save(tmp_path / "mask.tif")
    found = reader().read(pair(mask=tmp_path / "mask.tif"))
    np.testing.assert_array_equal(found.mask, np.where(IDS == 255, IGNORE, IDS))
    assert found.unknown == {}


def test_one_bit_is_ids_0_and_1(pair) -> None:
    bits = np.arange(32 * 48).reshape(SIZE) % 2 == 1
    assert (reader().read(pair(mask=Image.fromarray(bits))).mask == bits).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_read(pair, mode: str) -> None:
    rgb = np.zeros((*SIZE, 3), dtype=np.uint8)
    rgb[10:], rgb[20:], rgb[25:] = RED, GREEN, (0, 0, 9)
    mask = Image.fromarray(rgb).convert(mode, palette=Image.Palette.ADAPTIVE)
    expected = np.full(SIZE, IGNORE)
    expected[10:], expected[20:] = 0, 1
    np.testing.assert_array_equal(reader(BY_COLOUR).read(pair(mask=mask)).mask, expected)


@pytest.mark.parametrize(
    ("classes", "mode", "message"),
    [
        (
            BY_ID,
            "RGB",
            "one label id a pixel .* got Pillow mode RGB; where colours are the classes",
        ),
        (BY_ID, "LA", "got Pillow mode LA"),
        (BY_COLOUR, "I;16", "expected colours .* got Pillow mode I;16; for masks of label ids"),
    ],
)
def test_a_mask_of_another_kind_is_refused(pair, classes, mode: str, message: str) -> None:
    with pytest.raises(BadPair, match=message):
        reader(classes).read(pair(mask=image_of(mode)))


@pytest.mark.parametrize(
    ("classes", "pixel", "mode", "message"),
    [
        (BY_ID, 7, "L", r"id 7 \(1,536 pixels\): in no class; add it to the ids of a class, or of"),
        (BY_ID, 65535, "I;16", r"id 65535 \("),
        (BY_ID, -3, "I", r"id -3 \("),
        (BY_ID, 70000, "I", r"id 70000 \("),
        (BY_COLOUR, (1, 2, 3), "RGB", r"color \[1, 2, 3\] \(1,536 pixels\): .* to the color of a"),
    ],
)
def test_a_label_in_no_class_is_counted_and_named(
    pair, tmp_path: Path, classes, pixel, mode: str, message: str
) -> None:
    path = tmp_path / "mask.tif"
    Image.new(mode, SIZE[::-1], pixel).save(path)
    made = reader(classes)
    (label, count), *others = made.read(pair(mask=path)).unknown.items()
    assert others == []
    finding = made.unknown([label], count, path)
    assert finding.message.startswith(f"{path}: ")
    assert re.search(message, finding.message)


def turned(path: Path, orientation: int) -> Path:
    """A JPEG of 40x60 pixels as stored, red on top."""
    pixels = np.zeros((60, 40, 3), dtype=np.uint8)
    pixels[:30] = RED
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


def test_an_image_is_turned_as_its_exif_says(pair, tmp_path: Path) -> None:
    photo = turned(tmp_path / "photo.jpg", 6)  # the stored top is the right side
    image = reader().read(pair(photo, Image.new("L", (60, 40)))).image
    assert image[:, 30:, 0].min() > 200
    assert image[:, :18, 0].max() < 50


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_every_orientation_is_turned_as_pillow_does(tmp_path: Path, orientation, kind) -> None:
    path = tmp_path / f"photo.{kind}"
    image = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    upright, _ = open_upright(path)
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.asarray(upright), ImageOps.exif_transpose(file))


# Tags by the book hold a fraction and a short number; cameras and editors write other types too.
@pytest.mark.parametrize("tag", [0x011A, 0x0128], ids=["resolution", "its unit"])
def test_a_tag_of_another_type_beside_the_orientation_does_no_harm(
    pair, tmp_path: Path, tag: int
) -> None:
    turn = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    other = struct.pack("<HHL4s", tag, 2, 4, b"300")  # a text
    tags = b"II*\0" + struct.pack("<LH", 8, 2) + b"".join(sorted([turn, other])) + bytes(4)
    photo = turned(tmp_path / "photo.jpg", 1)
    with Image.open(photo) as image:
        image.save(photo, exif=b"Exif\0\0" + tags, quality=95)
    upright = reader().read(pair(photo, Image.new("L", (60, 40)))).image
    assert upright[:, 30:, 0].min() > 200
    assert upright[:, :18, 0].max() < 50


def test_a_mask_that_fits_before_the_turn_is_told_so(pair, tmp_path: Path) -> None:
    photo = turned(tmp_path / "photo.jpg", 6)
    with pytest.raises(
        BadPair, match="60x40 once turned as its EXIF says; the mask fits the 40x60"
    ):
        reader().read(pair(photo, Image.new("L", (40, 60))))


def test_a_jpeg_under_another_name_is_no_mask(pair, tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", SIZE[::-1]).save(path, format="JPEG")
    with pytest.raises(BadPair, match="expected a mask without loss"):
        reader().read(pair(mask=path))


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_by_name(pair, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    for sample in (pair(image=path), pair(mask=path)):
        with pytest.raises(BadPair, match=r"cannot read .*broken\.png: no image; is it whole"):
            reader().read(sample)


def test_the_cache_refuses_in_the_same_words(own) -> None:
    data = own()
    mask = Path(data.root) / "masks" / "05.png"
    Image.new("L", SIZE[::-1], 9).save(mask)
    with pytest.raises(RequestError) as caught:
        open_dataset(data)
    words = PairReader(data).unknown([9], 32 * 48, mask).message
    assert str(caught.value).splitlines()[0] == words
    assert "segray data check FILE" in str(caught.value)


def test_mixed_sizes_come_out_as_one(own) -> None:
    data = own()
    root = Path(data.root)
    for number, size in enumerate([(100, 40), (20, 90), (64, 64)]):
        Image.new("RGB", size).save(root / "images" / f"0{number}.png")
        Image.new("L", size).save(root / "masks" / f"0{number}.png")
    assert open_dataset(data).images.shape == (8, *SIZE, 3)

"""Small sets of images in each layout, and a cache folder that no other test sees."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.config import FoldersData
from segray.data import dataset, fetch

Tree = Callable[..., Path]
Own = Callable[..., FoldersData]
CLASSES = {"sky": {"ids": 0}, "road": {"ids": [3, 17]}, "void": {"ids": 255}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGRAY_CACHE", str(folder))
    monkeypatch.setattr(dataset, "_opened", {})
    monkeypatch.setattr(fetch, "_fetched", {})
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """tree({"train": {"aachen": 3}, "val": {"bonn": 1}}) -> root with random images and masks."""

    def make(parts: dict[str, dict[str, int]], size: tuple[int, int] = (20, 40)) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "cityscapes"
        for part, cities in parts.items():
            for city, count in cities.items():
                image_folder = root / "leftImg8bit" / part / city
                mask_folder = root / "gtFine" / part / city
                image_folder.mkdir(parents=True)
                mask_folder.mkdir(parents=True)
                for frame in range(count):
                    stem = f"{city}_000000_{frame:06d}"
                    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    mask = rng.integers(0, 34, size, dtype=np.uint8)
                    Image.fromarray(image).save(image_folder / f"{stem}_leftImg8bit.png")
                    Image.fromarray(mask).save(mask_folder / f"{stem}_gtFine_labelIds.png")
        return root

    return make


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """own(8, split=...) -> a section over images/00.png and masks/00.png to 07, of 48x32 pixels."""
    rng = np.random.default_rng(0)

    def make(count: int = 8, folder: str = "", **section) -> FoldersData:
        root = tmp_path / "own"
        for number in range(count):
            image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            mask = rng.choice(np.array([0, 3, 17, 255], dtype=np.uint8), (32, 48))
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / folder / kind / f"{folder}{number:02}.png")
        raw = {"format": "folders", "root": str(root), "size": [32, 48], "classes": CLASSES}
        if section.get("split") != "explicit":
            raw |= {"images": "images", "masks": "masks"}
        return FoldersData.model_validate(raw | section)

    return make

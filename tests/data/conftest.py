"""Small trees in Cityscapes' layout, and a cache folder that no other test sees."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.data import dataset

Tree = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEGRAY_CACHE", str(folder))
    monkeypatch.setattr(dataset, "_opened", {})
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

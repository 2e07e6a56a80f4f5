"""The whole training loader, until a batch is a normalised float tensor: segray's cache and threads
against PIL and PNG in two persistent DataLoader workers, from files of Cityscapes' size and from
files resized beforehand. Then the CPU seconds of a sweep's loading, with the cache's build.

All draw from the same changes, and zoom by resizing the crop alone. PNG of Cityscapes' size is
first resized whole to the training size. Upsized street photographs are kept in
--scratch between runs.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import STREETS, arguments, conditions, in_turns, report
from PIL import Image, ImageEnhance, ImageFilter
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segray.config import Augment, CityscapesData
from segray.data import TrainLoader, open_dataset
from segray.data.augment import MEAN, PADDING, STD, Draw, _window, draw
from segray.data.cache import open_cache
from segray.data.cityscapes import find_samples
from segray.data.labels import IGNORE, label_table
from segray.data.samples import Sample

CAMERA = (1024, 2048)
SIZE, CROP, BATCH = (512, 1024), (512, 512), 8
TRIALS, EPOCHS = 8, 4
REPEATS = 8  # epochs in a turn of segray's loader, which is over too soon otherwise


def upsize(root: Path, size: tuple[int, int], count: int) -> Path:
    """`count` of the street photographs at `size` (H, W) below `root`, as PNG."""
    if len(list(root.glob("gtFine/*/*/*.png"))) == count:
        return root
    shutil.rmtree(root, ignore_errors=True)
    samples = find_samples(STREETS)[0]
    for at in np.linspace(0, len(samples) - 1, count).round().astype(int):
        for path, how in (
            (samples[at].image, Image.Resampling.BILINEAR),
            (samples[at].mask, Image.Resampling.NEAREST),
        ):
            target = root / path.relative_to(STREETS)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).resize((size[1], size[0]), how).save(target)
    return root


class PngDataset(TorchDataset):
    """Pairs of PNG files, decoded, resized to SIZE and augmented with PIL."""

    def __init__(self, samples: list[Sample], table: np.ndarray, augment: Augment) -> None:
        self.samples, self.table, self.augment = samples, table, augment
        self.mean = torch.tensor(MEAN)[:, None, None]
        self.std = torch.tensor(STD)[:, None, None]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.samples[position]
        image, mask = Image.open(sample.image), Image.open(sample.mask)
        if image.size != (SIZE[1], SIZE[0]):
            image = image.resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
            mask = mask.resize((SIZE[1], SIZE[0]), Image.Resampling.NEAREST)
        change = draw(self.augment, int(torch.randint(2**31, ())), 0, position)
        image, mask = zoomed(image, mask, change)
        image = coloured(image, change)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        labels = torch.from_numpy(self.table[np.asarray(mask)])
        return pixels.sub_(self.mean).div_(self.std), labels


def zoomed(image: Image.Image, mask: Image.Image, change: Draw) -> tuple[Image.Image, Image.Image]:
    """Crop, zoom and flip, as segray.data.augment.crop_and_zoom."""
    top, height, y, h = _window(SIZE[0], CROP[0], change.zoom, change.window[0])
    left, width, x, w = _window(SIZE[1], CROP[1], change.zoom, change.window[1])
    box = (left, top, left + width, top + height)
    image = image.resize((w, h), Image.Resampling.BILINEAR, box=box)
    mask = mask.resize((w, h), Image.Resampling.NEAREST, box=box)
    if change.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if (h, w) == CROP:
        return image, mask
    canvas = Image.new("RGB", (CROP[1], CROP[0]), PADDING)
    canvas.paste(image, (x, y))
    ignored = Image.new("L", (CROP[1], CROP[0]), IGNORE)
    ignored.paste(mask, (x, y))
    return canvas, ignored


def coloured(image: Image.Image, change: Draw) -> Image.Image:
    """Brightness, contrast, saturation, hue and blur the way torchvision does them with PIL."""
    brightness, contrast, saturation, hue = change.colour
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    image = ImageEnhance.Color(image).enhance(saturation)
    h, s, v = image.convert("HSV").split()
    turned = Image.fromarray(np.asarray(h) + np.uint8(round(255 * hue) % 256))
    image = Image.merge("HSV", (turned, s, v)).convert("RGB")
    if change.sigma:
        image = image.filter(ImageFilter.GaussianBlur(change.sigma))
    return image


def workers(samples: list[Sample], data: CityscapesData, augment: Augment) -> DataLoader:
    return DataLoader(
        PngDataset(samples, label_table(data), augment),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )


def use(loader: DataLoader, epochs: int = 1) -> None:
    for _ in range(epochs):
        for images, masks in loader:
            assert images.shape == (BATCH, 3, *CROP)
            assert masks.dtype == torch.uint8


def use_cached(
    data: CityscapesData, augment: Augment, seed: int, epochs: int, threads: int = 1
) -> None:
    opened = open_dataset(data)
    loader = TrainLoader(
        opened, range(len(opened.ids)), CROP, BATCH, augment, seed, threads=threads
    )
    for epoch in range(1, epochs + 1):
        for batch in loader.epoch(epoch):
            images, masks = batch.on(torch.device("cpu"))
            assert images.shape == (BATCH, 3, *CROP)
            assert masks.dtype == torch.uint8


def cpu_seconds(work: Callable[[], None]) -> float:
    """Of a process that does `work`, its children and their end included."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, code, usage = os.wait4(child, 0)
    assert code == 0
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--blur", type=float, default=0.0, help="share of images that are blurred")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "segray-bench-loader"
    )
    asked = parser.parse_args()
    print(conditions(asked.threads))
    print(f"{asked.images} pairs of {CAMERA}, cached at {SIZE}, crop {CROP}, batches of {BATCH}")
    augment = Augment(
        scale=(0.5, 2.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02,
        blur=asked.blur,
    )  # fmt: skip
    camera = upsize(asked.scratch / "camera", CAMERA, asked.images)
    small = upsize(asked.scratch / "small", SIZE, asked.images)
    os.environ["SEGRAY_CACHE"] = str(asked.scratch / "cache")
    data = CityscapesData(format="cityscapes", root=str(camera), size=SIZE, split="pooled")

    shutil.rmtree(asked.scratch / "cache", ignore_errors=True)
    from_camera = find_samples(camera)[0]
    once = cpu_seconds(lambda: use(workers(from_camera, data, augment), 1))
    twice = cpu_seconds(lambda: use(workers(from_camera, data, augment), 2))
    theirs = (twice - once) * TRIALS * EPOCHS

    def sweep() -> None:
        for seed in range(TRIALS):
            use_cached(data, augment, seed, EPOCHS)

    ours = cpu_seconds(sweep)
    print(f"\nloading, CPU seconds of {TRIALS} trials x {EPOCHS} epochs, cache build included")
    print(f"  segray {ours:8.1f} s")
    print(f"  PNG    {theirs:8.1f} s (an epoch's, times {TRIALS * EPOCHS})   {theirs / ours:.1f} x")

    png = workers(from_camera, data, augment)
    resized = workers(find_samples(small)[0], data, augment)
    seconds = in_turns(
        {
            "segray": lambda: use_cached(data, augment, 0, REPEATS, threads=2),
            "segray, 1 thread": lambda: use_cached(data, augment, 0, REPEATS),
            "PNG resized beforehand, 2 workers": lambda: use(resized),
            "PNG, 2 workers": lambda: use(png),
        },
        asked.rounds,
    )
    for name in ("segray", "segray, 1 thread"):
        seconds[name] = [taken / REPEATS for taken in seconds[name]]
    images = asked.images // BATCH * BATCH
    report("an epoch of augmented training samples", seconds, "segray", images)

    shutil.rmtree(asked.scratch / "cache")
    started = time.perf_counter()
    open_cache(from_camera, data)
    build = time.perf_counter() - started
    epoch = sorted(seconds["PNG, 2 workers"])[asked.rounds // 2]
    print(f"\nbuilding the cache: {build:.2f} s, {build / epoch:.2f} of an epoch of PNG, 2 workers")


if __name__ == "__main__":
    main()

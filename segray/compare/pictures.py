"""Images of the test split beside what each model made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segray.compare.comparison import Picture
from segray.compare.runs import Run, scored_classes
from segray.config import RequestError
from segray.data import IGNORE, class_colours, few_samples
from segray.data.pairs import PairReader

WIDTH = 480  # pixels of a panel
DIFFERENT = 4  # images that show where two models differ most
WORST = 2  # of each model

_WRONG, _RIGHT, _IGNORED = (214, 39, 40), (226, 232, 238), (0, 0, 0)


def image_iou(run: Run) -> NDArray[np.float64]:
    """(N,) mean IoU of each image over the classes in its truth or prediction and over seeds.

    Void, where it is a class, is left out, as everywhere. NaN for an image without a pixel that
    counts.
    """
    keep = scored_classes(run.classes)
    hits = np.diagonal(run.confusion, axis1=2, axis2=3).astype(np.float64)  # (S, N, K)
    union = run.confusion.sum(2) + run.confusion.sum(3) - hits
    hits, union = hits[..., keep], union[..., keep]
    present = union > 0
    iou = np.where(present, hits / np.maximum(union, 1), 0)
    means = iou.sum(2) / np.maximum(present.sum(2), 1)  # (S, N)
    known = present.any(2).sum(0)  # (N,) seeds that have a mean
    found: NDArray[np.float64] = np.where(known, means.sum(0) / np.maximum(known, 1), np.nan)
    return found


def choose(runs: Sequence[Run]) -> list[tuple[int, str]]:
    """Which test images to show, by position, and why: no image twice.

    Where more than two models are compared, it is the first two that differ most in the former.
    """
    quality = [image_iou(run) for run in runs]
    found: dict[int, str] = {}
    if len(runs) > 1:
        gap = quality[0] - quality[1]
        for at in _smallest(-np.abs(gap))[:DIFFERENT]:
            better, worse = (0, 1) if gap[at] > 0 else (1, 0)
            found[at] = (
                f"differ most: mean IoU over the seeds {quality[better][at]:.2f} by "
                f"{runs[better].name}, {quality[worse][at]:.2f} by {runs[worse].name}"
            )
    for run, values in zip(runs, quality, strict=True):
        rest = [at for at in _smallest(values) if at not in found]
        for at in rest[:WORST]:
            found[at] = f"worst of {run.name}: mean IoU over the seeds {values[at]:.2f}"
    return list(found.items())


def _smallest(values: NDArray[np.float64]) -> list[int]:
    """Positions by value, the smallest first, without those that have none."""
    order: list[int] = np.argsort(values, kind="stable").tolist()
    return [at for at in order if np.isfinite(values[at])]


def draw(runs: Sequence[Run]) -> Iterator[Picture]:
    """The chosen images: the input, the truth, and of each model what it predicted and missed.

    The predictions are of the training whose weights are in best/. Raises RequestError where the
    dataset or a prediction is not there, RemoteError where an object store does not answer.
    """
    data = runs[0].config.data
    reader = PairReader(data)
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(runs[0].classes)] = class_colours(data)
    colours[IGNORE] = _IGNORED
    chosen = {runs[0].ids[at]: why for at, why in choose(runs)}
    with few_samples(data, chosen) as place:
        for image_id, why in chosen.items():
            if image_id not in place:
                raise RequestError(f"data.root: the test image {image_id} is not there any more")
            image = reader.read(place[image_id]).image
            truth = reader.read_mask(place[image_id])
            yield _draw(runs, image_id, image, truth, colours, why)


def _draw(
    runs: Sequence[Run],
    image_id: str,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    why: str,
) -> Picture:
    """`image` (h, w, 3) and `truth` (H, W) may have other sizes."""
    size = (WIDTH, max(1, round(WIDTH * truth.shape[0] / truth.shape[1])))

    def panel(classes: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(colours[classes]).resize(size, Image.Resampling.NEAREST)

    panels = [
        ("image", Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
        ("truth", panel(truth)),
    ]
    for run in runs:
        pred = _read_mask(run.chosen.folder / "preds" / f"{image_id}.png")
        if pred.shape != truth.shape:
            raise RequestError(
                f"{run.chosen.folder}/preds: {image_id} is {pred.shape}, and its mask "
                f"{truth.shape}: the dataset has changed since"
            )
        errors = np.where((pred == truth)[..., None], _RIGHT, _WRONG)
        errors[truth == IGNORE] = _IGNORED
        panels.append((f"{run.name}", panel(pred)))
        wrong = Image.fromarray(errors.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        panels.append((f"{run.name}, errors", wrong))
    return Picture(id=image_id, why=why, panels=panels)


def _read_mask(path: Path) -> NDArray[np.uint8]:
    """The classes (H, W) of a PNG that the final stage wrote."""
    try:
        with Image.open(path) as image:
            return np.asarray(image, dtype=np.uint8)
    except OSError as error:
        raise RequestError(f"{path}: no prediction can be read there ({error})") from None

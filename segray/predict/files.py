"""Files and folders of images -> a folder of masks and overlays."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from segray.config import RequestError
from segray.data.folders import IMAGE_TYPES, image_files
from segray.predict.images import BadImage, Pixels, read_image
from segray.predict.predictor import BATCH, Predictor

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images of it are, and of how many."""
THREADS = 4  # that decode and encode while the model computes
CLASSES, LEGEND = "classes.json", "legend.png"
JPEG_SIDE = 65500  # pixels that a JPEG may be long


@dataclass(frozen=True)
class Written:
    """What `predict_files` did."""

    folder: Path
    count: int  # images that have their mask and overlay
    failed: tuple[str, ...]  # a message for each image that could not be read


@dataclass(frozen=True)
class _Job:
    """An image, and its place below masks/ and overlays/, without an ending."""

    image: Path
    place: str


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    batch: int = BATCH,
    window: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes masks/<place>.png and overlays/<place>.jpg below `out`, classes.json and legend.png.

    `inputs` are image files and folders, which are searched with all their subfolders; the place
    of an image is its path below the folder, or its name, without the ending. A mask is a palette
    PNG of 8 bits whose pixels are class indices. Each file appears whole or not at all. Predicting
    into the folder of an earlier prediction replaces masks of the same place and keeps the others.

    Raises:
        RequestError: nothing to predict, two images for one place, a folder `out` that holds other
            files or masks of other classes, and what `Predictor.predict` refuses.
        WorkError: out of memory.
    """
    out = Path(out)
    jobs = _find(inputs, out)
    _prepare(out, predictor)
    count, failed = 0, []
    writing: list[Future[None]] = []
    chunks = [jobs[start : start + batch] for start in range(0, len(jobs), max(1, batch))]
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="segray-predict")
    try:
        reading = [pool.submit(read_image, job.image) for job in chunks[0]]
        for at, chunk in enumerate(chunks):
            read: list[tuple[_Job, Pixels]] = []
            for job, future in zip(chunk, reading, strict=True):
                try:
                    read.append((job, future.result()))
                except BadImage as error:
                    failed.append(str(error))
            following = chunks[at + 1] if at + 1 < len(chunks) else []
            reading = [pool.submit(read_image, job.image) for job in following]
            images = [pixels for _, pixels in read]
            masks = predictor.predict(images, batch=batch, window=window)
            for written in writing:  # of the chunk before: no more than two are in memory
                written.result()
            writing = [
                pool.submit(_write, predictor, out, job.place, pixels, mask)
                for (job, pixels), mask in zip(read, masks, strict=True)
            ]
            count += len(read)
            if progress is not None:
                progress("images predicted", count + len(failed), len(jobs))
        for written in writing:
            written.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return Written(out, count, tuple(failed))


def first_image(inputs: Sequence[str | Path], out: str | Path) -> Pixels | None:
    """(H, W, 3) of the first image that `predict_files` would read and can; RequestError as it."""
    for job in _find(inputs, Path(out)):
        with contextlib.suppress(BadImage):
            return read_image(job.image)
    return None


def plain_progress(say: Callable[[str], object]) -> Progress:
    """Progress in lines, ten at most, for a log."""
    tenth = 0

    def tell(title: str, done: int, total: int) -> None:
        nonlocal tenth
        if 10 * done // total > tenth:
            tenth = 10 * done // total
            say(f"{title}: {done} of {total}")

    return tell


def _find(inputs: Sequence[str | Path], out: Path) -> list[_Job]:
    """Every image once, in the order of the inputs; see `predict_files` for the errors."""
    at: dict[str, Path] = {}
    results = out.resolve()
    for given in map(Path, inputs):
        if given.is_dir():
            found = image_files(given, "images")
            if results != given.resolve() and results.is_relative_to(given.resolve()):
                # what an earlier prediction wrote is no input of the next
                found = [path for path in found if not path.resolve().is_relative_to(results)]
            if not found:
                types = ", ".join(kind[1:] for kind in IMAGE_TYPES)
                raise RequestError(f"no images in {given}: expected files of {types}")
            places = [path.relative_to(given) for path in found]
        elif given.is_file():
            found, places = [given], [Path(given.name)]
        else:
            raise RequestError(f"expected an image or a folder of images, got {given}: not found")
        for path, place in zip(found, places, strict=True):
            key = place.with_suffix("").as_posix()
            before = at.setdefault(key, path)
            if not before.samefile(path):
                raise RequestError(
                    f"{before} and {path} would both be written to {out / 'masks' / key}.png: "
                    "rename one, or predict them into two folders (--out)"
                )
    return [_Job(path, key) for key, path in at.items()]


def _prepare(out: Path, predictor: Predictor) -> None:
    """Makes `out` with classes.json and legend.png; raises RequestError, see `predict_files`.

    A folder of others is refused, for its masks/ may hold what somebody drew.
    """
    classes = [
        {"index": k, "name": name, "color": predictor.colours[k].tolist()}
        for k, name in enumerate(predictor.classes)
    ]
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out: expected a folder, got {out}, which is a file")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if names:
        try:
            before = json.loads((out / CLASSES).read_text(encoding="utf-8"))["segray"]
        except (OSError, ValueError, KeyError, TypeError):
            raise RequestError(
                "--out: expected a new folder, an empty one, or that of an earlier prediction, got "
                f"{out}, which holds {', '.join(names[:4])}{', ...' if names[4:] else ''}; "
                "name another"
            ) from None
        if before != classes:
            raise RequestError(
                f"--out: {out} holds masks of other classes (see its {CLASSES}); name another "
                "folder, or delete it"
            )
    out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(one)}" for one in classes)
    _put(out / CLASSES, f'{{"segray": [\n{lines}\n]}}\n'.encode())
    _put(out / LEGEND, _encoded(predictor.legend(), "PNG"))


def _write(predictor: Predictor, out: Path, place: str, pixels: Pixels, mask: Pixels) -> None:
    _put(out / "masks" / f"{place}.png", _encoded(predictor.palette(mask), "PNG"))
    kind, ending = ("JPEG", "jpg") if max(mask.shape) <= JPEG_SIDE else ("PNG", "png")
    overlay = predictor.overlay(pixels, mask)
    _put(out / "overlays" / f"{place}.{ending}", _encoded(overlay, kind))


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": 90} if kind == "JPEG" else {"compress_level": 3}
    image.save(file, kind, **options)
    return file.getvalue()


def _put(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that it is never seen in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

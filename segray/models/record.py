"""segray.json: what a saved model says of itself, beside its weights."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segray.models.contract import MIN_SIDE, ModelError, check_num_classes, is_int

RECORD = "segray.json"
ADVICE = "Name a folder that save_model wrote, or save the model again."


@dataclass(frozen=True)
class Record:
    """A saved model's segray.json. What a folder does not say, as early ones do not, is None."""

    name: str
    num_classes: int  # K
    options: dict[str, Any]
    class_names: tuple[str, ...] | None = None  # K
    image_size: tuple[int, int] | None = None  # H, W it was evaluated at
    class_colours: tuple[tuple[int, int, int], ...] | None = None  # K of RGB, 0 to 255


def new_record(
    name: str,
    num_classes: int,
    options: dict[str, Any],
    class_names: Sequence[str] | None,
    image_size: Sequence[int] | None,
    class_colours: Iterable[Iterable[int]] | None,
) -> Record:
    """The record of a model; raises ModelError where names, size or colours do not fit it."""
    k = num_classes
    if class_names is not None and len(class_names) != k:
        raise ModelError(
            f"class_names must be {k} names, one for each class, got "
            f"{len(class_names)}: {list(class_names)}. Pass the names the model was trained with."
        )
    size = None if image_size is None else tuple(image_size)
    if size is not None and not (len(size) == 2 and all(is_int(side, MIN_SIDE) for side in size)):
        raise ModelError(
            f"image_size must be height and width, each at least {MIN_SIDE} pixels, got "
            f"{image_size}. Pass the size the model was evaluated at."
        )
    # int(): colours may come as an array, whose numbers JSON does not know
    colours = None if class_colours is None else [tuple(map(int, one)) for one in class_colours]
    if colours is not None and not (
        len(colours) == k
        and all(len(one) == 3 and all(is_int(c, 0, 255) for c in one) for one in colours)
    ):
        raise ModelError(
            f"class_colours must be {k} colours, one for each class, each of three numbers from 0 "
            f"to 255, got {colours}. Pass those of segray.data.class_colours."
        )
    return Record(
        name,
        num_classes,
        options,
        None if class_names is None else tuple(class_names),
        None if size is None else (size[0], size[1]),
        None if colours is None else tuple((one[0], one[1], one[2]) for one in colours),
    )


def write_record(record: Record, folder: Path) -> None:
    """Writes segray.json to `folder`, a key a line; None stands there as null."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in vars(record).items()]
    (folder / RECORD).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_record(folder: str | Path) -> Record:
    """What the model saved in `folder` says of itself; loads no weights.

    Raises:
        ModelError: no such folder, or a segray.json that is missing, damaged or contradicts itself.
    """
    try:
        raw = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        needed = raw["name"], raw["num_classes"], raw["options"]
        check_num_classes(raw["num_classes"])
        extras = (raw.get(key) for key in ("class_names", "image_size", "class_colours"))
        return new_record(*needed, *extras)
    except ModelError as error:
        raise ModelError(f"{Path(folder) / RECORD}: {error} {ADVICE}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"expected a model with its {RECORD} in {folder}, got {type(error).__name__}: {error}. "
            f"{ADVICE}"
        ) from error

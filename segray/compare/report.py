"""report.html: one page that holds all of a comparison and opens without a network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import optuna
from PIL.Image import Image
from plotly.offline import get_plotlyjs

from segray.compare import charts
from segray.compare.comparison import Comparison, Picture
from segray.compare.figure import Figure
from segray.compare.optuna_charts import short_names, sweep_charts
from segray.compare.statistics import Estimate
from segray.sweep.estimate import duration
from segray.sweep.trial_files import write_text

TEMPLATE = "report.html.j2"
MASK_COLOURS = 64  # an image of more colours is a photograph


def write_report(
    path: Path,
    comparison: Comparison,
    pictures: Sequence[Picture],
    studies: Mapping[str, optuna.Study],
) -> None:
    """Write the page, whole or not at all.

    `studies` has the sweeps' studies by the models' names; one that is not there is not drawn.
    """
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    pages.filters |= {
        "number": charts.number,
        "interval": interval,
        "mean": _mean,
        "chance": chance,
        "duration": _seconds,
        "words": in_words,
        "finite": _finite,
        "data_uri": data_uri,
    }
    page = pages.get_template(TEMPLATE).render(
        comparison=comparison,
        models=comparison.models,
        pictures=pictures,
        charts=charts,
        sweeps=[
            list(sweep_charts(studies[model.name], model, k)) if model.name in studies else []
            for k, model in enumerate(comparison.models)
        ],
        looks=max((e.tests for p in comparison.pairs for e in p.iou.values() if e), default=0),
        without=_without_interval(comparison),
        columns=[_columns(model.trials) for model in comparison.models],
        is_mask=is_mask,
        short_names=short_names,
        plotly=get_plotlyjs(),
    )
    write_text(path, page)


def interval(estimate: Estimate | None, spec: str = ".3f") -> str:
    """As "0.581 to 0.612", or a dash where there is none."""
    _, low, high = charts.bounds(estimate)
    if math.isfinite(high - low):
        return f"{low:{spec}} to {high:{spec}}"
    return charts.NOT_KNOWN


def chance(value: float) -> str:
    """A probability: what three decimals would make 0 or 1 is neither."""
    if value < 0.0005:
        return "<0.001"
    return ">0.999" if value > 0.9995 else charts.number(value)


def in_words(value: Any) -> str:
    """A parameter's or a column's value as people read it."""
    if isinstance(value, float):
        return charts.number(value, ".4g")
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or charts.NOT_KNOWN
    return charts.NOT_KNOWN if value is None or value == "" else str(value)


def data_uri(image: Image) -> str:
    """The image as an address of its own: a mask as PNG, a photograph as JPEG."""
    file = io.BytesIO()
    if is_mask(image):
        image.save(file, "PNG", optimize=True)
    else:
        image.convert("RGB").save(file, "JPEG", quality=85, optimize=True)
    kind = "png" if is_mask(image) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def is_mask(image: Image) -> bool:
    """Whether an image is drawn in a few colours, which have to stay what they are."""
    return image.getcolors(MASK_COLOURS) is not None


def _without_interval(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """Why there is none -> of which model or pair -> of which categories."""
    owners = [(m.name, m.iou) for m in comparison.models]
    owners += [(f"{p.a} less {p.b}", p.iou) for p in comparison.pairs]
    found: dict[str, dict[str, list[str]]] = {}
    for owner, iou in owners:
        for name, one in iou.items():
            if one is not None and one.note and not math.isfinite(one.high - one.low):
                found.setdefault(one.note, {}).setdefault(owner, []).append(name)
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that have something in them, in their order."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if any(row.get(name) not in (None, "") for row in rows)]


def _finite(figure: Figure) -> Figure:
    """The figure as JSON can have it: what is no number is null."""
    finite: Figure = json.loads(json.dumps(figure), parse_constant=lambda _: None)
    return finite


def _mean(values: Iterable[float]) -> float:
    there = [value for value in values if math.isfinite(value)]
    return sum(there) / len(there) if there else math.nan


def _seconds(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else charts.NOT_KNOWN

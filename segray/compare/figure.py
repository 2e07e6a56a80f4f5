"""A chart: a plotly figure, as a plain dict without a colour of its own, and what is said of it.

A colour is a CSS variable's name ("var(--model-0)") and becomes one in the page, where it depends
on light, dark or paper. Texts come from users' files and are escaped: plotly reads tags in them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = 8  # of models, in the page's CSS

Figure = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A figure, and what is said around it."""

    title: str
    alt: str  # for those who do not see it
    height: int  # pixels
    figure: Figure | None  # None: there is nothing to draw, and `note` says why
    note: str = ""
    min_width: int = 0  # pixels; where there are fewer it scrolls in a box of its own


def colour(k: int) -> str:
    """The colour of model k wherever it is seen."""
    return f"var(--model-{k % COLOURS})"


def axis(title: str, **more: Any) -> Figure:
    """An axis with a title, as plotly's layout has it."""
    return {"title": {"text": escaped(title), "standoff": 8}, **more}


def log_ticks(low: float, high: float) -> Figure:
    """A logarithmic axis with its ends and, far enough from both, up to three powers of ten."""
    room = 0.3 * math.log10(high / low)
    first, last = math.ceil(math.log10(low) + room), math.floor(math.log10(high) - room)
    powers = [10.0**power for power in range(first, last + 1, max(1, (last - first) // 2))]
    ticks = [low, *powers, high] if high > low else [low]
    texts = [f"{tick:.3g}" for tick in ticks]
    return {"type": "log", "tickvals": ticks, "ticktext": texts, "tickangle": 0}


def whole_ticks(values: Sequence[float]) -> Figure:
    """Ticks at whole numbers, at most nine of them."""
    return {"tick0": 0, "dtick": max(1, math.ceil((max(values) - min(values)) / 8))}


def escaped(text: str) -> str:
    """A text without tags for plotly."""
    return html.escape(text, quote=False)

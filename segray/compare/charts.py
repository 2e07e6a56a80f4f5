"""The charts of a comparison, functions of it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from segray.compare.comparison import Comparison, Model, Training
from segray.compare.figure import (
    COLOURS,
    Chart,
    Figure,
    axis,
    colour,
    escaped,
    log_ticks,
    whole_ticks,
)
from segray.compare.statistics import Estimate

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
NOT_KNOWN = "\u2013"
SHORT = 20  # letters of a name at an axis: on a phone they take their room from the chart
FEW = 10  # classes whose confusion matrix fits a phone, and half of a wide page


def leaderboard(comparison: Comparison) -> Chart:
    """Each model's mIoU with its interval, and that of each seed."""
    models = comparison.models
    data = [
        {
            "x": [t.test_miou for t in model.trainings],
            "y": [k + 0.3] * len(model.trainings),
            "mode": "markers",
            "marker": {"size": 7, "color": colour(k), "symbol": _symbol(k), "opacity": 0.55},
            "cliponaxis": False,
            "hovertext": [f"seed {t.seed}: {t.test_miou:.3f}" for t in model.trainings],
            "hoverinfo": "text",
        }
        for k, model in enumerate(models)
    ]
    data += [_interval(model.miou, k, k, ".3f") for k, model in enumerate(models)]
    known = "; ".join(f"{model.name} {number(model.miou.value)}" for model in models)
    return Chart(
        "Test mIoU",
        f"Test mIoU of each model with its interval: {known}",
        75 + 64 * len(models),
        {"data": data, "layout": _rows([m.name for m in models], "mIoU on the test split")},
        "Large marks: the mean over seeds, with its 95 % interval. Small marks: single seeds.",
    )


def differences(comparison: Comparison) -> Chart:
    """Each pair's difference in mIoU with its interval, beside zero."""
    place = {model.name: k for k, model in enumerate(comparison.models)}
    pairs = comparison.pairs
    data = [_interval(pair.miou, y, place[pair.a], "+.3f") for y, pair in enumerate(pairs)]
    layout = _rows([f"{pair.a}\n\u2212 {pair.b}" for pair in pairs], "difference in test mIoU")
    layout["xaxis"] |= {"tickformat": "+.3f", "rangemode": "tozero"}
    layout["xaxis"] |= {"zerolinecolor": "var(--muted)", "zerolinewidth": 2}
    known = "; ".join(f"{p.a} less {p.b} {number(p.miou.value, '+.3f')}" for p in pairs)
    return Chart(
        "Differences in test mIoU",
        f"Difference of each pair in test mIoU with its interval: {known}",
        75 + 64 * len(pairs),
        {"data": data, "layout": layout},
        "Right of zero the first of the two is better. An interval that holds zero shows no "
        "difference.",
    )


def categories(comparison: Comparison) -> Chart:
    """Each category's IoU in bars, with intervals."""
    names, models = scored(comparison), comparison.models
    data = []
    for k, model in enumerate(models):
        found = [model.iou.get(name) for name in names]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "x": [bounds(one)[0] for one in found],
                "y": list(range(len(names))),
                "marker": {"color": colour(k)},
                "error_x": _error(found, "var(--ink)", 1.2),
                "hovertext": [
                    escaped(f"{model.name}, {name}: {number(bounds(one)[0])}")
                    for name, one in zip(names, found, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    layout = _rows(names, "IoU on the test split") | {"barmode": "group", "bargap": 0.3}
    layout["xaxis"] |= {"range": [0, 1], "tickformat": ".1f"}
    return Chart(
        "IoU by category",
        "Bars of each category's IoU for each model; the tables have these figures",
        75 + len(names) * (14 * len(models) + 14),
        {"data": data, "layout": layout},
        "Bars: the mean over seeds, with its 95 % interval.",
    )


def learning(comparison: Comparison) -> Iterator[Chart]:
    """The final trainings by epoch: each metric on val that a model was tuned for, then losses."""
    for metric in dict.fromkeys(model.metric for model in comparison.models):
        yield _curves(
            comparison,
            {metric: "solid"},
            metric,
            "Thick: the mean of the seeds while all of them train, and the band they span. Thin: "
            "single seeds, with a mark at the best epoch, whose weights were kept.",
        )
    note = "Mean of the seeds, and the band they span. Solid: on val. Dotted: in training."
    yield _curves(comparison, {"val/loss": "solid", "train/loss": "dot"}, "loss", note)


def confusion(model: Model, classes: Sequence[str]) -> Chart:
    """What the pixels of each category were taken for, in per cent of them."""
    names = [_name(name) for name in classes]
    shares, texts, told = [], [], []
    for true, row in zip(names, model.confusion, strict=True):
        share = [pixels / sum(row) if sum(row) else None for pixels in row]
        shares.append(share)
        texts.append(["" if s is None or s < 0.005 else f"{100 * s:.0f}" for s in share])
        told.append(
            [
                f"no pixel is {true}" if s is None else f"{true} taken for {name}: {100 * s:.2f} %"
                for name, s in zip(names, share, strict=True)
            ]
        )
    heat = {
        "type": "heatmap",
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "hovertext": told,
        "hoverinfo": "text",
        "xgap": 1,
        "ygap": 1,
        "showscale": False,
        "colorscale": [[0, "var(--heat-0)"], [0.5, "var(--heat-1)"], [1, "var(--heat-2)"]],
    }
    cells = [(x, y) for y in range(len(names)) for x in range(len(names)) if texts[y][x]]
    figures = {
        "x": [x for x, _ in cells],
        "y": [y for _, y in cells],
        "text": [texts[y][x] for x, y in cells],
        "mode": "text",
        "textfont": {
            "size": 12 if len(names) <= FEW else 10,
            "color": [
                f"var(--heat-{'high' if (shares[y][x] or 0) > 0.57 else 'low'})" for x, y in cells
            ],
        },
        "hoverinfo": "skip",
    }
    ticks: Figure = {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
    ticks["range"] = [-0.5, len(names) - 0.5]
    layout = {
        "xaxis": axis("predicted", tickangle=-45, zeroline=False, **ticks),
        "yaxis": axis("true", zeroline=False, **ticks | {"range": ticks["range"][::-1]}),
    }
    found = [
        f"{name} {row[k] or 0}" for k, (name, row) in enumerate(zip(classes, texts, strict=True))
    ]
    return Chart(
        model.name,
        f"Confusion matrix of {model.name}. Per cent found of each category: {', '.join(found)}",
        130 + 36 * len(classes) if len(classes) <= FEW else 140 + 28 * len(classes),
        {"data": [heat, figures], "layout": layout},
        min_width=0 if len(classes) <= FEW else 32 * len(classes) + 120,
    )


def costs(comparison: Comparison) -> Iterator[Chart]:
    """Test mIoU against each cost that is known of two models or more."""
    scores = {k: bounds(model.miou)[0] for k, model in enumerate(comparison.models)}
    for (title, unit), cost in COSTS.items():
        of_all = ((k, cost(model)) for k, model in enumerate(comparison.models))
        place = {k: x for k, x in of_all if x is not None and math.isfinite(x + scores[k])}
        if len(place) < 2:
            continue
        best = front(place, scores)
        line = {"color": "var(--muted)", "width": 1.5, "dash": "dot", "shape": "hv"}
        xs, ys = [place[k] for k in best], [scores[k] for k in best]
        data = [{"x": xs, "y": ys, "mode": "lines", "line": line, "hoverinfo": "skip"}]
        for k, x in place.items():
            mark = {"size": 13, "color": colour(k), "line": {"color": colour(k), "width": 2}}
            mark["symbol"] = _symbol(k) + ("" if k in best else "-open")
            told = escaped(f"{comparison.models[k].name}: {x:,.4g}, mIoU {scores[k]:.3f}")
            point = {"x": [x], "y": [scores[k]], "mode": "markers", "marker": mark}
            data.append(point | {"hovertext": [told], "hoverinfo": "text"})
        low, high = min(place.values()), max(place.values())
        across = axis(unit, nticks=4, tickangle=0)
        across |= log_ticks(low, high) if high > 10 * low > 0 else {"rangemode": "tozero"}
        layout = {"xaxis": across, "yaxis": axis("", nticks=5, tickformat=".3f")}
        names = ", ".join(comparison.models[k].name for k in best)
        alt = f"Test mIoU against {title.lower()}. Not dominated: {names}"
        yield Chart(title, alt, 220, {"data": data, "layout": layout})


def front(cost: Mapping[int, float], score: Mapping[int, float]) -> list[int]:
    """Those that no other beats in cost or score without being worse in the other: the Pareto
    front, the cheapest first.
    """
    at = {k: (cost[k], -score[k]) for k in cost}
    return [
        k
        for k in sorted(at, key=lambda k: at[k])
        if not any(a <= at[k][0] and b <= at[k][1] and (a, b) != at[k] for a, b in at.values())
    ]


def scored(comparison: Comparison) -> list[str]:
    """The classes that have an IoU: void, where it is one, has none."""
    return [name for name in comparison.classes if any(name in m.iou for m in comparison.models)]


def number(value: float | None, spec: str = ".3f") -> str:
    """A number as `spec` has it, or a dash where there is none."""
    return NOT_KNOWN if value is None or not math.isfinite(value) else format(value, spec)


def bounds(estimate: Estimate | None) -> tuple[float, float, float]:
    """Value, low and high; NaN for what is not known."""
    if estimate is None:
        return math.nan, math.nan, math.nan
    return estimate.value, estimate.low, estimate.high


def _curves(comparison: Comparison, names: Mapping[str, str], title: str, note: str) -> Chart:
    """By model and curve (its name, and its dash) a line, the mean over seeds, and their band."""
    data: list[Figure] = []
    for k, model in enumerate(comparison.models):
        for name, dash in names.items():
            style = {"color": colour(k), "dash": dash}
            told = escaped(f"{model.name}, {name}")
            lines = [(t, line) for t in model.trainings if (line := _line(t, name))]
            for t, line in lines if len(names) == 1 else ():
                data.append(_path(line, f"{told}, seed {t.seed}", style | {"width": 1}, 0.6))
                if t.best_epoch in line:
                    best = _path({t.best_epoch: line[t.best_epoch]}, f"{told}, seed {t.seed}, best")
                    mark = {"color": colour(k), "symbol": _symbol(k), "size": 8}
                    data.append(best | {"mode": "markers", "marker": mark})
            shared = [e for e in lines[0][1] if all(e in one for _, one in lines)] if lines else []
            spread = {e: [one[e] for _, one in lines] for e in shared}
            if len(lines) > 1:
                fill = {"fill": "toself", "fillcolor": f"var(--band-{k % COLOURS})", "mode": "none"}
                ys = [max(spread[e]) for e in shared] + [min(spread[e]) for e in shared[::-1]]
                data.append({"x": shared + shared[::-1], "y": ys, "hoverinfo": "skip"} | fill)
            mean = {e: sum(v) / len(v) for e, v in spread.items()}
            data.append(_path(mean, told, style | {"width": 2.5}))
    if not (data := [one for one in data if one["x"]]):
        why = "Not drawn: no epoch of these trainings is recorded."
        return Chart(f"{title} by epoch", "", 0, None, why)
    points = [x for one in data for x in one["x"]]
    layout = {"xaxis": axis("epoch", **whole_ticks(points)), "yaxis": axis(title)}
    alt = (
        f"{title} by epoch in the final trainings of {', '.join(m.name for m in comparison.models)}"
    )
    return Chart(f"{title} by epoch", alt, 320, {"data": data, "layout": layout}, note)


def _line(training: Training, name: str) -> dict[float, float]:
    """Epoch -> value, where there is one."""
    points = zip(training.curves.get("epoch", ()), training.curves.get(name, ()), strict=False)
    return {e: y for e, y in points if e is not None and y is not None and math.isfinite(y)}


def _path(
    points: Mapping[float, float], told: str, line: Figure | None = None, opacity: float = 1.0
) -> Figure:
    drawn = {"x": list(points), "y": list(points.values()), "mode": "lines", "opacity": opacity}
    return drawn | {
        "line": line or {},
        "hovertemplate": f"{told}<br>epoch %{{x}}: %{{y:.3f}}<extra></extra>",
    }


def _interval(estimate: Estimate, y: float, k: int, spec: str) -> Figure:
    """A mark with its interval, and its figure above it."""
    value, low, high = bounds(estimate)
    return {
        "x": [value],
        "y": [y],
        "mode": "markers+text",
        "text": [number(value, spec)],
        "textposition": "top center",
        "textfont": {"size": 13},
        "marker": {"size": 13, "color": colour(k), "symbol": _symbol(k)},
        "error_x": _error([estimate], colour(k), 2.5),
        "hovertext": [f"{number(low, spec)} to {number(high, spec)}"],
        "hoverinfo": "text",
    }


def _error(estimates: Sequence[Estimate | None], tint: str, thickness: float) -> Figure:
    all_bounds = [bounds(one) for one in estimates]
    up, down = [h - v for v, _, h in all_bounds], [v - low for v, low, _ in all_bounds]
    drawn = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return drawn | {"color": tint, "thickness": thickness, "width": 3 + thickness}


def _rows(names: Sequence[str], title: str) -> Figure:
    """Layout of a chart with a row a name, from top to bottom."""
    down = axis("", tickvals=list(range(len(names))), ticktext=[_name(name) for name in names])
    down |= {"range": [len(names) - 0.4, -0.6], "showgrid": False, "zeroline": False}
    return {"xaxis": axis(title, tickformat=".3f", nticks=7), "yaxis": down}


def _symbol(k: int) -> str:
    return SYMBOLS[k % len(SYMBOLS)]


def _name(name: str) -> str:
    """A name at an axis, each line of it short enough."""
    lines = (one if len(one) <= SHORT else f"{one[: SHORT - 1]}…" for one in name.splitlines())
    return "<br>".join(map(escaped, lines))


def _in_millions(model: Model) -> float | None:
    return model.cost.parameters / 1e6 if model.cost else None


def _minutes(model: Model) -> float | None:
    seconds = [t.seconds for t in model.trainings if math.isfinite(t.seconds)]
    return sum(seconds) / len(seconds) / 60 if seconds else None


COSTS: dict[tuple[str, str], Callable[[Model], float | None]] = {
    ("Parameters", "millions"): _in_millions,
    ("Arithmetic", "GFLOPs an image"): lambda model: model.cost.gflops if model.cost else None,
    ("Latency", "ms for one image"): lambda model: model.cost.latency_ms if model.cost else None,
    ("Peak memory", "MB"): lambda model: model.cost.peak_memory_mb if model.cost else None,
    ("Final training", "minutes"): _minutes,
}

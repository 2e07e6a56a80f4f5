"""The charts of a sweep: Optuna's own of its study, in the page's manner."""

from __future__ import annotations

import html
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState

from segray.compare.comparison import Model
from segray.compare.figure import Chart, Figure, axis, colour, escaped, log_ticks, whole_ticks


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Each dotted path's last key, or all of it where two have the same."""
    last = [path.rpartition(".")[2] for path in paths]
    return {p: n if last.count(n) == 1 else p for p, n in zip(paths, last, strict=True)}


def sweep_charts(study: optuna.Study, model: Model, k: int) -> Iterator[Chart]:
    """What Optuna draws of a study: history, importances, parallel coordinates, slices."""
    study = _renamed(study)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = sorted({name for trial in trials for name in trial.params})
    plot, metric = optuna.visualization, {"target_name": model.metric}
    none = "" if trials else "no trial was trained to its end"
    few = none or ("" if len(trials) > 1 else "a single trial was trained to its end")
    few = few or ("" if len(names) > 1 else "fewer than two parameters were searched")

    def draw(title: str, height: int, figure: Callable[[], Any], why: str, width: int = 0) -> Chart:
        drawn = None
        if not why:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="The number of trials is too small")
                    drawn = _in_our_manner(figure(), k, study.direction.name == "MINIMIZE")
            except Exception as error:  # each asks something else of a study
                why = str(error) or type(error).__name__
        alt = f"{title}: the sweep of {model.name}, drawn by Optuna"
        return Chart(title, alt, height, drawn, why and f"Not drawn: {why.rstrip('.')}.", width)

    history = draw("History", 250, lambda: plot.plot_optimization_history(study, **metric), none)
    if history.figure:
        history.figure["data"] += _cut_short(study, k)
        history.figure["layout"]["xaxis"] |= whole_ticks([trial.number for trial in study.trials])
    yield history
    yield draw("Importances", 250, partial(plot.plot_param_importances, study, **metric), few)
    together = partial(plot.plot_parallel_coordinate, study, **metric)
    yield draw("Parallel coordinates", 300, together, few, 105 * (len(names) + 1))
    for name in names:
        one = partial(plot.plot_slice, study, [name], **metric)
        yield draw(f"Slice: {html.unescape(name)}", 230, one, none)


def _renamed(study: optuna.Study) -> optuna.Study:
    """The study under its parameters' short names: there is no room for dotted paths."""
    trials = study.get_trials()
    short = short_names(sorted({name for trial in trials for name in trial.params}))
    renamed = optuna.create_study(direction=study.direction)
    for trial in trials:
        ranges = {escaped(short[name]): one for name, one in trial.distributions.items()}
        trial.params = {escaped(short[name]): value for name, value in trial.params.items()}
        trial.distributions = ranges
        renamed.add_trial(trial)
    return renamed


def _in_our_manner(figure: Any, k: int, minimized: bool) -> Figure:
    """Optuna's figure in the model's colour, stronger for better trials and for later ones."""
    drawn = json.loads(figure.to_json())  # numpy's arrays and NaN become plain
    across, up = drawn["layout"]["xaxis"], drawn["layout"]["yaxis"]
    data = [one for one in drawn["data"] if any(x is not None for x in one.get("x", ()))]
    if not data:
        raise ValueError("no trial has a finite value")
    for one in data:
        one["showlegend"] = False
        if one["type"] == "bar":
            one["marker"] = {"color": colour(k)}
            across, up = axis("importance", showgrid=False), axis("", showgrid=False)
            across["range"] = [0, 1.2 * max(one["x"])]
        elif one["mode"] == "markers":
            fades = "colorscale" in one.get("marker", {})  # a slice, by the trial's number
            count, one["x"] = len(one["x"]), [_unquoted(x) for x in one["x"]]
            fade = [0.3 + 0.7 * (i + 1) / count for i in range(count)] if fades else 0.9
            one["marker"] = {"color": colour(k), "size": 9, "opacity": fade}
        elif "customdata" in one:  # parallel coordinates; the first is the metric, from 0 to 1
            good = 1 - one["y"][0] if minimized else one["y"][0]
            one |= {"opacity": 0.45 + 0.55 * good, "line": {"color": colour(k), "width": 1 + good}}
        else:
            one["line"] = {"color": "var(--muted)", "width": 1.5, "shape": "hv"}
    for side in (across, up):
        side["title"] = {"text": side.get("title", {}).get("text", ""), "standoff": 8}
    if across.get("type") == "log":
        values = [x for one in data for x in one["x"]]
        across |= log_ticks(min(values), max(values))
    elif "categoryarray" not in across:
        across |= {"nticks": 5, "tickangle": 0}
    layout = {"xaxis": across, "yaxis": up}
    if "annotations" in drawn["layout"]:
        layout["annotations"] = list(_apart(drawn["layout"]["annotations"]))
        layout["shapes"] = drawn["layout"]["shapes"]
        across |= {"side": "top", "range": [-0.55, across["range"][1]]}
    if "categoryarray" in across:
        across["categoryarray"] = [_unquoted(x) for x in across["categoryarray"]]
    return {"data": data, "layout": layout}


def _apart(ticks: Sequence[Figure]) -> Iterator[Figure]:
    """Those labels of the axes that do not lie on another; the ends go first."""
    seen: list[tuple[float, float]] = []
    for tick in sorted(ticks, key=lambda tick: tick["y"] not in (0.0, 1.0)):
        if all(x != tick["x"] or abs(y - tick["y"]) > 0.06 for x, y in seen):
            seen.append((tick["x"], tick["y"]))
            yield tick | {"text": _unquoted(tick["text"]), "font": {"size": 11}}


def _cut_short(study: optuna.Study, k: int) -> list[Figure]:
    """The trials that were stopped early, which Optuna leaves out of the history."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    there = {t.number: t.value for t in trials if t.value is not None and math.isfinite(t.value)}
    marker = {"color": colour(k), "size": 8, "symbol": "circle-open"}
    points = {"x": list(there), "y": list(there.values())}
    return [{**points, "mode": "markers", "name": "stopped early", "marker": marker}] * bool(there)


def _unquoted(value: Any) -> Any:
    """A categorical value without the quotes that Optuna puts around it."""
    return escaped(value.strip("'")) if isinstance(value, str) else value

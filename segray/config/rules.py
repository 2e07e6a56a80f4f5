"""What one key of a sweep file asks of another."""

from __future__ import annotations

import graphlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from segray.config.assignment import (
    MANY,
    attempt,
    attempt_one,
    combinations,
    drawable,
    least_for,
    possible,
    random_draws,
    reachable_places,
    searched_in,
    trial_count,
    unmodelled,
    value_at,
)
from segray.config.places import is_remote, wrong_url
from segray.config.require import parse
from segray.config.schema import Data, Median, Parameter, SweepConfig, TrialConfig
from segray.config.validate import Flaw, get, nearest, searchable_keys
from segray.config.yaml_file import KeyPath, brief, show

MAX_GRID = 10_000  # trials
BATCH, ACCUMULATE = "train.batch_size", "train.accumulate"


def metric_names(data: Data) -> list[str]:
    """The metrics that a sweep over these images can optimize."""
    names = ["val/miou", "val/dice", "val/accuracy", "val/loss"]
    if "void" in data.class_names:
        names.append("val/miou_without_void")
    return names + [f"val/iou/{name}" for name in data.class_names]


def contradictions(config: SweepConfig) -> list[Flaw]:
    """Every rule between keys that `config`, or a trial that it can make, breaks."""
    found = [*_when(config)]
    if found:  # which trials there are, nobody can say
        return found
    rules = (
        *(_require, _values_fit, _start_points),
        *(_one_of_two, _shares, _passes, _crop, _metric, _places, _gpus, _class_weights),
        *(_early_terminate, _method, _grid),
    )
    found = [flaw for rule in rules for flaw in rule(config)]
    return found or [*_draws(config), *_trials_left(config)]


def _when(config: SweepConfig) -> Iterator[Flaw]:
    parameters = config.parameters
    for name, parameter in parameters.items():
        for other, allowed in parameter.when.items():
            path = ("parameters", name, "when", other)
            if other not in parameters:
                near = nearest(other, list(parameters))
                yield Flaw(path, f"not one of the searched parameters; {near}")
                continue
            if parameters[other].count is None:
                yield Flaw(path, f"{other} is a continuous range, which hits no value: give values")
                continue
            strange = [value for value in allowed if not parameters[other].contains(value)]
            if strange:
                hint = f"; a list means one of its items: write [{brief(list(allowed))}]"
                hint = hint if parameters[other].contains(list(allowed)) else ""
                yield Flaw(path, f"outside the values that {other} takes{hint}", strange[0])
    asked = {n: [other for other in p.when if other in parameters] for n, p in parameters.items()}
    try:
        graphlib.TopologicalSorter(asked).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # each name asks for the next
        rule = f"conditions go round in a circle: {' -> '.join(circle)}"
        yield Flaw(("parameters", circle[0], "when"), rule)


def _values_fit(config: SweepConfig) -> Iterator[Flaw]:
    """Every choice and end of a range, put where it will go."""
    for name in config.parameters:
        for path, value in possible(config, name):
            tried = attempt_one(config, name, value)
            if isinstance(tried, Flaw):
                at = show(tried.path)
                why = tried.rule if at == name or not at else f"{at}: {tried.rule}"
                yield Flaw(path, f"{name} does not take this value: {why}", value)
                break


def _start_points(config: SweepConfig) -> Iterator[Flaw]:
    if config.start_points and config.method == "grid":
        rule = "method grid runs every combination in its order: remove them, or set method: tpe"
        yield Flaw(("start_points",), rule)
    for index, point in enumerate(config.start_points):
        found = [*_start_point(config, point, ("start_points", index))]
        yield from found or _broken_by(config, point, ("start_points", index))


def _start_point(config: SweepConfig, point: Mapping[str, Any], at: KeyPath) -> Iterator[Flaw]:
    for name, value in point.items():
        if name not in config.parameters:
            near = nearest(name, list(config.parameters))
            yield Flaw((*at, name), f"not one of the searched parameters; {near}")
        elif not config.parameters[name].contains(value):
            yield Flaw((*at, name), "outside the values that parameters gives it", value)
        elif other := _ruled_out_by(config.parameters, name, point):
            rule = f"not searched in this point: its `when` asks for another {other}"
            yield Flaw((*at, name), rule, point[other])


def _ruled_out_by(
    parameters: Mapping[str, Parameter], name: str, point: Mapping[str, Any]
) -> str | None:
    """The key of a start point for which another is not searched, if there is one."""
    for asking in (name, *least_for(parameters, name)):
        for other, allowed in parameters[asking].when.items():
            if other in point and point[other] not in allowed:
                return other
    return None


def _broken_by(config: SweepConfig, point: Mapping[str, Any], at: KeyPath) -> Iterator[Flaw]:
    """The conditions of `require` that a start point breaks, whatever is drawn beside it."""
    trial = attempt(config, point)
    for text in config.require:
        condition = parse(text)
        open_ = searched_in(condition, config.parameters) - point.keys()
        if isinstance(trial, Flaw) or any(
            not _ruled_out_by(config.parameters, name, point) for name in open_
        ):
            continue
        try:
            if not condition.holds(partial(value_at, trial)):
                yield Flaw(at, f"breaks `require`: {text}", dict(point))
        except ValueError:
            pass  # said once, of the condition


def _early_terminate(config: SweepConfig) -> Iterator[Flaw]:
    rule = config.early_terminate
    if rule is None:
        return
    epochs = max((reached for _, reached in reachable_places(config, "train.epochs")), default=0)
    if rule.min_iter >= epochs > 0:
        first = "first epoch to stop at" if isinstance(rule, Median) else "first rung"
        why = (
            f"the {first} must come before the last epoch ({epochs}), or {rule.type} stops "
            "nothing; lower it, or early_terminate=null to stop no trial"
        )
        yield Flaw(("early_terminate", "min_iter"), why, rule.min_iter)


def _method(config: SweepConfig) -> Iterator[Flaw]:
    """A method that would draw every searched key at random."""
    blind = unmodelled(config)
    known = [n for n, p in config.parameters.items() if p.count != 1 and n not in blind]
    if blind and not known:
        keys = ", ".join(f"{name} ({why})" for name, why in blind.items())
        rule = f"{config.method} can learn of no searched key here: {keys}. method: tpe takes them"
        yield Flaw(("method",), rule, config.method)


def _grid(config: SweepConfig) -> Iterator[Flaw]:
    if config.method != "grid":
        return
    endless = [name for name, parameter in config.parameters.items() if parameter.count is None]
    for name in endless:
        rule = "method grid needs single values: give values, or q as a step, or set method: random"
        yield Flaw(("parameters", name), rule)
    if endless or ((config.run_cap or math.inf) <= MAX_GRID and not config.require):
        return
    if sum(1 for _ in itertools.islice(combinations(config.parameters), MAX_GRID + 1)) > MAX_GRID:
        most = math.prod(parameter.count or 1 for parameter in config.parameters.values())
        upto = "up to " if any(p.when for p in config.parameters.values()) else ""
        fix = "give fewer values" if config.require else f"set a run_cap of at most {MAX_GRID:,}"
        rule = f"the grid has {upto}{most:,} combinations: {fix}, or method: random"
        yield Flaw(("method",), rule)


def _require(config: SweepConfig) -> Iterator[Flaw]:
    raw = config.model_dump(mode="json")
    known = searchable_keys(raw)
    for index, text in enumerate(config.require):
        for key in parse(text).keys:
            if key not in known:
                rule = f"no such key of model or train: {key}; {nearest(key, known)}"
                yield Flaw(("require", index), rule, text)


def _draws(config: SweepConfig) -> Iterator[Flaw]:
    """What only shows when all searched keys have values: sections that fit, and `require`."""
    counts = [parameter.count for parameter in config.parameters.values()]
    number = MANY if config.require else MANY // 20
    if None not in counts and math.prod(map(int, filter(None, counts))) <= number:
        drawn, none = combinations(config.parameters), "no combination of the values meets"
    else:
        drawn, none = random_draws(config.parameters, number), f"none of {number} draws meets"
    made = []
    for assignment in drawn:
        tried = attempt(config, assignment)
        if isinstance(tried, Flaw):
            rule = f"values that do not fit together: {show(tried.path)}: {tried.rule}"
            yield Flaw(("parameters",), rule, assignment)
            return
        made.append(tried)
    yield from _unmet(config, made, none)


def _trials_left(config: SweepConfig) -> Iterator[Flaw]:
    """A median of so many trials that none is left to be compared with it."""
    rule = config.early_terminate
    if isinstance(rule, Median) and rule.min_trials >= (trials := trial_count(config)):
        why = (
            f"the sweep has {trials} trials, so that none is left to stop once so many have "
            "finished; lower it, raise run_cap, or early_terminate=null to stop no trial"
        )
        yield Flaw(("early_terminate", "min_trials"), why, rule.min_trials)


def _unmet(config: SweepConfig, made: Sequence[TrialConfig], none: str) -> Iterator[Flaw]:
    """The conditions of `require` that no trial of `made` meets; `none` says so in words."""
    left = list(made)
    for index, text in enumerate(config.require):
        condition, at = parse(text), ("require", index)
        try:
            meeting = [trial for trial in made if condition.holds(partial(value_at, trial))]
        except ValueError as error:
            yield Flaw(at, str(error), text)
            continue
        same = {id(trial) for trial in meeting}
        both = [trial for trial in left if id(trial) in same]
        if not meeting and not searched_in(condition, config.parameters):
            raw = config.model_dump(mode="json")
            values = [f"{key} is {brief(get(raw, key.split('.')))}" for key in condition.keys]
            rule = f"it does not hold, and nothing in it is searched: {', '.join(values)}"
            yield Flaw(at, rule, text)
        elif not both:
            yield Flaw(at, f"{none} this condition{' and those above it' if meeting else ''}", text)
        left = both or left


def _one_of_two(config: SweepConfig) -> Iterator[Flaw]:
    """A searched key that holds another."""
    names = list(config.parameters)
    for name in names:
        if outer := [other for other in names if name.startswith(f"{other}.")]:
            rule = f"{outer[0]} is searched too and holds this key: search one of them"
            yield Flaw(("parameters", name), rule)


def _workers(config: SweepConfig) -> dict[str, int]:
    """By section, how many workers share a batch."""
    workers = {"resources": config.resources.workers}
    if config.final is not None:
        workers["final"] = config.final.workers
    return workers


def _shares(config: SweepConfig) -> Iterator[Flaw]:
    """A batch that its workers cannot share, in a trial that can be drawn."""
    for section, count in _workers(config).items():
        for _, trial in drawable(config, (BATCH,)) if count > 1 else ():
            if (batch := value_at(trial, BATCH)) % count:
                rule = f"the batch of {batch} images cannot be shared by {count} workers evenly"
                yield Flaw((section, "workers"), rule, count)
                break


def _passes(config: SweepConfig) -> Iterator[Flaw]:
    """A worker's share that cannot be taken in even passes, in a trial that can be drawn."""
    places = [*reachable_places(config, ACCUMULATE)]
    if all(passes == 1 for _, passes in places):
        return
    uneven: dict[tuple[KeyPath, int], int] = {}  # -> the smallest such share
    for made, trial in drawable(config, (BATCH, ACCUMULATE)):
        batch, passes = value_at(trial, BATCH), value_at(trial, ACCUMULATE)
        for share in {batch // count for count in _workers(config).values()}:
            if share % passes:
                place = ("parameters", ACCUMULATE) if ACCUMULATE in made else _path(ACCUMULATE)
                near = (at for at, value in places if value == passes)
                at = next((at for at in near if at[: len(place)] == place), place)
                uneven[at, passes] = min(share, uneven.get((at, passes), share))
    # Of a range that has many such values, one says enough.
    said = set()
    for (at, passes), share in uneven.items():
        if at not in said:
            rule = f"a worker's share of {share} images cannot be taken in {passes} even passes"
            yield Flaw(at, rule, passes)
        said.add(at)


def _path(name: str) -> KeyPath:
    return tuple(name.split("."))


def _crop(config: SweepConfig) -> Iterator[Flaw]:
    size = config.data.size
    for path, crop in reachable_places(config, "train.crop"):
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            rule = (
                f"larger than the images: data.size is {list(size)}; lower it, or "
                "train.crop=null for whole images"
            )
            yield Flaw(path, rule, list(crop))


def _metric(config: SweepConfig) -> Iterator[Flaw]:
    metric, known = config.metric, metric_names(config.data)
    if metric.name not in known:
        near = nearest(metric.name, known)
        yield Flaw(("metric", "name"), f"no such metric; {near}", metric.name)
    if metric.name == "val/loss" and metric.goal == "maximize":
        rule = "a loss is better when it is smaller: set goal: minimize"
        yield Flaw(("metric", "goal"), rule, metric.goal)
    if metric.name != "val/loss" and metric.goal == "minimize":
        rule = f"{metric.name} is better when it is larger: set goal: maximize"
        yield Flaw(("metric", "goal"), rule, metric.goal)


def _places(config: SweepConfig) -> Iterator[Flaw]:
    """Addresses of object stores."""
    root = config.data.root or ""
    if rule := wrong_url(root):
        yield Flaw(("data", "root"), rule, root)
    elif is_remote(root) and config.data.format == "scenes":
        rule = "scenes are drawn on this machine: expected the path of a folder"
        yield Flaw(("data", "root"), rule, root)
    if rule := wrong_url(config.storage):
        yield Flaw(("storage",), rule, config.storage)


def _gpus(config: SweepConfig) -> Iterator[Flaw]:
    """A worker's share of a GPU."""
    share = config.resources.gpus_per_worker
    at_most = max(config.resources.workers, config.final.workers if config.final else 1)
    if share != "auto" and share > 1 and share != int(share):
        rule = "a worker gets a share of one GPU, or whole ones: 0.5, 1 or 2"
        yield Flaw(("resources", "gpus_per_worker"), rule, share)
    if share != "auto" and 0 < share < 1 and at_most > 1:
        rule = (
            f"NCCL takes no two workers of a training on one GPU, and here are {at_most}: give "
            "each a whole one, or lower resources.workers and final.workers to 1"
        )
        yield Flaw(("resources", "gpus_per_worker"), rule, share)


def _class_weights(config: SweepConfig) -> Iterator[Flaw]:
    classes = config.data.class_names
    for path, weights in reachable_places(config, "train.loss.class_weights"):
        if isinstance(weights, tuple) and len(weights) != len(classes):
            rule = (
                f"expected one weight for each of the {len(classes)} classes, in the order "
                f"{', '.join(classes)}"
            )
            yield Flaw(path, rule, list(weights))

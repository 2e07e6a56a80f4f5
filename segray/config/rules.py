"""What one key of a sweep file asks of another."""

from __future__ import annotations

from collections.abc import Iterator

from segray.config.assignment import attempt, possible, reachable_places
from segray.config.schema import SweepConfig
from segray.config.validate import Flaw, nearest
from segray.config.yaml_file import show

CATEGORIES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")


def metric_names(ignore: str) -> list[str]:
    """The metrics that a sweep can optimize; `ignore` is data.ignore."""
    names = ["val/miou", "val/dice", "val/accuracy", "val/loss"]
    if ignore == "none":
        names += ["val/miou_without_void", "val/iou/void"]
    return names + [f"val/iou/{category}" for category in CATEGORIES]


def contradictions(config: SweepConfig) -> list[Flaw]:
    """Every rule between keys that `config`, or a trial that it can make, breaks."""
    return [*_values_fit(config), *_start_points(config), *_between_keys(config)]


def _values_fit(config: SweepConfig) -> Iterator[Flaw]:
    """Every choice and end of a range, put where it will go."""
    for name in config.parameters:
        for path, value in possible(config, name):
            tried = attempt(config, {name: value})
            if isinstance(tried, Flaw):
                at = show(tried.path)
                why = tried.rule if at == name or not at else f"{at}: {tried.rule}"
                yield Flaw(path, f"{name} does not take this value: {why}", value)
                break


def _start_points(config: SweepConfig) -> Iterator[Flaw]:
    for index, point in enumerate(config.start_points):
        for name, value in point.items():
            path = ("start_points", index, name)
            if name not in config.parameters:
                near = nearest(name, list(config.parameters))
                yield Flaw(path, f"not one of the searched parameters; {near}")
            elif not config.parameters[name].contains(value):
                yield Flaw(path, "outside the values that parameters gives it", value)


def _between_keys(config: SweepConfig) -> Iterator[Flaw]:
    names = list(config.parameters)
    for name in names:
        if outer := [other for other in names if name.startswith(f"{other}.")]:
            rule = f"{outer[0]} is searched too and holds this key: search one of them"
            yield Flaw(("parameters", name), rule)
    workers = {"resources": config.resources.workers}
    if config.final is not None:
        workers["final"] = config.final.workers
    for section, count in workers.items():
        for _, batch in reachable_places(config, "train.batch_size"):
            if batch % count:
                rule = f"the batch of {batch} images cannot be shared by {count} workers evenly"
                yield Flaw((section, "workers"), rule, count)
                break
    asha = config.early_terminate
    epochs = max((reached for _, reached in reachable_places(config, "train.epochs")), default=0)
    if asha is not None and asha.min_iter >= epochs > 0:
        rule = (
            f"the first rung must come before the last epoch ({epochs}), or ASHA stops "
            "nothing; lower it, or early_terminate=null for no ASHA"
        )
        yield Flaw(("early_terminate", "min_iter"), rule, asha.min_iter)
    size = config.data.size
    for path, crop in reachable_places(config, "train.crop"):
        if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
            rule = (
                f"larger than the images: data.size is {list(size)}; lower it, or "
                "train.crop=null for whole images"
            )
            yield Flaw(path, rule, list(crop))
    metric, known = config.metric, metric_names(config.data.ignore)
    if metric.name not in known:
        near = nearest(metric.name, known)
        yield Flaw(("metric", "name"), f"no such metric; {near}", metric.name)
    if metric.name == "val/loss" and metric.goal == "maximize":
        rule = "a loss is better when it is smaller: set goal: minimize"
        yield Flaw(("metric", "goal"), rule, metric.goal)
    if metric.name != "val/loss" and metric.goal == "minimize":
        rule = f"{metric.name} is better when it is larger: set goal: maximize"
        yield Flaw(("metric", "goal"), rule, metric.goal)
    if "://" in config.storage:
        rule = "expected a folder of this machine or of a shared file system"
        yield Flaw(("storage",), rule, config.storage)
    classes = len(CATEGORIES) + (config.data.ignore == "none")
    for path, weights in reachable_places(config, "train.loss.class_weights"):
        if isinstance(weights, tuple) and len(weights) != classes:
            rule = f"expected one weight for each of the {classes} classes"
            yield Flaw(path, rule, list(weights))

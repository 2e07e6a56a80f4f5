"""Assignments (dotted path of a config key -> value): the trial one makes, and what can be had."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from segray.config.schema import SweepConfig, TrialConfig
from segray.config.validate import Flaw, flaws
from segray.config.yaml_file import KeyPath


def trial_config(
    sweep: SweepConfig,
    assignment: Mapping[str, Any],
    *,
    seed: int,
    workers: int,
    gpus_per_worker: float,
    threads: int,
) -> TrialConfig:
    """The sweep's model, data and train with `assignment` (dotted path -> value) put in.

    Raises pydantic's ValidationError for a value that the schema refuses; `load_sweep` has tried
    the ends of every range, so that a sampled assignment is valid.
    """
    return TrialConfig.model_validate(
        _assigned(sweep, assignment)
        | {"seed": seed, "workers": workers, "gpus_per_worker": gpus_per_worker, "threads": threads}
    )


def attempt(config: SweepConfig, assignment: Mapping[str, Any]) -> TrialConfig | Flaw:
    """The trial that `assignment` makes, or the first thing that is wrong with it."""
    try:
        return trial_config(config, assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    except ValidationError as errors:
        return flaws(errors, _assigned(config, assignment))[0]


def reachable(config: SweepConfig, path: str) -> tuple[Any, ...]:
    """What trials can have at a dotted path: the file's value, or choices or ends of a range."""
    return tuple(value for _, value in reachable_places(config, path))


def reachable_places(config: SweepConfig, name: str) -> Iterator[tuple[KeyPath, Any]]:
    """The values of `reachable`, each with the key of the sweep file that it stands at."""
    key = name.split(".")
    if name not in config.parameters:
        yield tuple(key), functools.reduce(getattr, key, config)
        return
    for path, value in possible(config, name):
        tried = attempt(config, {name: value})
        if isinstance(tried, TrialConfig):
            yield path, functools.reduce(getattr, key, tried)


def possible(config: SweepConfig, name: str) -> list[tuple[KeyPath, Any]]:
    """Values to try for a searched key: every choice or the ends of a range, and their places."""
    parameter = config.parameters[name]
    path: KeyPath = ("parameters", name)
    if parameter.values is None:
        return [(path, value) for value in parameter.probes()]
    return [((*path, "values", index), value) for index, value in enumerate(parameter.values)]


def put(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set the value at `path`, making the mappings on the way."""
    for key in path[:-1]:
        inner = data.get(key)
        data[key] = inner = {} if inner is None else inner
        data = inner
    data[path[-1]] = value


def _assigned(sweep: SweepConfig, assignment: Mapping[str, Any]) -> dict[str, Any]:
    raw = sweep.model_dump(mode="json", include={"model", "data", "train", "metric"})
    for path, value in assignment.items():
        put(raw, path.split("."), value)
    return raw

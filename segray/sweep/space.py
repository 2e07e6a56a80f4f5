"""From the sweep file's parameters to Optuna: distributions, start points, sampler, pruner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from segray.config import Parameter, SweepConfig

Assignment = dict[str, Any]  # dotted path of a config key -> value


def suggest(trial: optuna.Trial, parameters: Mapping[str, Parameter]) -> Assignment:
    """Draw every parameter of a trial."""
    return {name: _draw(trial, name, parameter) for name, parameter in parameters.items()}


def sampler(config: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of `method` for trial `number`, which takes the values of its start point.

    Every trial has a sampler and a random stream of its own, so that a sweep that is taken up
    again draws what it would have drawn. TPE draws a quarter of the trials at random before it
    models: Optuna's fixed ten would be most of a small sweep. `constant_liar` keeps trials that run
    side by side apart.
    """
    seed = int(np.random.SeedSequence((config.seed, number)).generate_state(1)[0])
    if config.method == "random":
        base: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        base = optuna.samplers.TPESampler(
            n_startup_trials=math.ceil(config.run_cap / 4), constant_liar=True, seed=seed
        )
    if number >= len(config.start_points):
        return base
    fixed = _stored(config.start_points[number], config.parameters)
    return optuna.samplers.PartialFixedSampler(fixed, base)


def pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    """The rule of `early_terminate`."""
    asha = config.early_terminate
    if asha is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=asha.min_iter, reduction_factor=asha.eta
    )


def _draw(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    low, high = parameter.min, parameter.max
    if parameter.values is not None:
        choices = {_label(value): value for value in parameter.values}
        return choices[trial.suggest_categorical(name, list(choices))]
    if low is None or high is None:
        return parameter.value
    if parameter.distribution == "int_uniform":
        return trial.suggest_int(name, int(low), int(high))
    return trial.suggest_float(name, low, high, log=parameter.distribution == "log_uniform_values")


def _label(value: Any) -> Any:
    """A choice as Optuna can store and show it: lists and mappings become JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _stored(point: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Assignment:
    """A start point as Optuna stores it."""
    stored = {}
    for name, value in point.items():
        choices = parameters[name].values
        if choices is not None:  # as the choice is spelled: 1 may stand for 1.0
            stored[name] = _label(next(choice for choice in choices if choice == value))
        elif parameters[name].distribution != "constant":
            stored[name] = value
    return stored

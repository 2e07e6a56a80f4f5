"""From the sweep file's parameters to Optuna: distributions, start points, sampler, pruner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import optuna

from segray.config import Assignment, Parameter, SweepConfig, draw_order, is_active, trial_count


def suggest(trial: optuna.Trial, parameters: Mapping[str, Parameter]) -> Assignment:
    """Draw the parameters of a trial: each after those its `when` asks, where they hold."""
    made: Assignment = {}
    for name in draw_order(parameters):
        if is_active(parameters[name], made):
            made[name] = _draw(trial, name, parameters[name])
    return made


def enqueued(point: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Assignment:
    """A start point, or a combination of the grid, as Optuna stores it."""
    stored = {}
    for name, value in point.items():
        choices = parameters[name].values
        if choices is not None:  # as the choice is spelled: 1 may stand for 1.0
            stored[name] = _label(next(choice for choice in choices if choice == value))
        elif parameters[name].distribution != "constant":
            stored[name] = value
    return stored


def sampler(config: SweepConfig) -> optuna.samplers.BaseSampler:
    """The sampler of `method`.

    TPE draws a quarter of the trials at random before it models: Optuna's fixed ten would be most
    of a small sweep. `constant_liar` keeps trials that run side by side apart.
    """
    if config.method != "tpe":  # every trial of a grid is enqueued
        return optuna.samplers.RandomSampler(seed=config.seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=math.ceil(trial_count(config) / 4), constant_liar=True, seed=config.seed
    )


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
        return trial.suggest_int(name, int(low), int(high), step=int(parameter.step or 1))
    if parameter.step is not None:
        drawn = trial.suggest_float(name, low, high, step=parameter.step)
        return parameter.nth(round((drawn - low) / parameter.step))  # 0.3, not 0.30000000000000004
    return trial.suggest_float(name, low, high, log=parameter.distribution == "log_uniform_values")


def _label(value: Any) -> Any:
    """A choice as Optuna can store and show it: lists and mappings become JSON text."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value

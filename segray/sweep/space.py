"""From the sweep file's parameters to Optuna: distributions, start points, sampler, pruner."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from segray.config import Assignment, Parameter, SweepConfig, draw_order, is_active, trial_count


def suggest(trial: optuna.Trial, parameters: Mapping[str, Parameter]) -> Assignment:
    """Draw the parameters of a trial: each after those its `when` asks, where they hold."""
    made: Assignment = {}
    for name in draw_order(parameters):
        if is_active(parameters[name], made):
            made[name] = _draw(trial, name, parameters[name])
    return made


def sampler(
    config: SweepConfig, number: int, fixed: Assignment, attempt: int = 0
) -> optuna.samplers.BaseSampler:
    """The sampler of `method` for trial `number`, which takes the values of `fixed` as they are.

    Every trial, and every new attempt at one that `require` refused, has a sampler and a random
    stream of its own, so that a sweep that is taken up again draws what it would have drawn. TPE
    draws a quarter of the trials at random before it models: Optuna's fixed ten would be most of a
    small sweep. `constant_liar` keeps trials that run side by side apart.
    """
    stream = np.random.SeedSequence((config.seed, number, attempt))
    seed = int(stream.generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.method != "tpe":  # every value of a grid is fixed
            base: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            startup = math.ceil(trial_count(config) / 4)
            base = optuna.samplers.TPESampler(
                n_startup_trials=startup, constant_liar=True, seed=seed
            )
        if not fixed:
            return base
        return optuna.samplers.PartialFixedSampler(_stored(fixed, config.parameters), base)


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


def _stored(point: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> Assignment:
    """A start point, or a combination of the grid, as Optuna stores it."""
    stored = {}
    for name, value in point.items():
        choices = parameters[name].values
        if choices is not None:  # as the choice is spelled: 1 may stand for 1.0
            stored[name] = _label(next(choice for choice in choices if choice == value))
        elif parameters[name].distribution != "constant":
            stored[name] = value
    return stored

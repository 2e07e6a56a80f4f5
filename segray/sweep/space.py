"""From the sweep file's parameters to Optuna: distributions, start points, sampler, pruner."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import cmaes
import numpy as np
import optuna
from optuna.search_space import IntersectionSearchSpace

from segray.config import (
    Assignment,
    Parameter,
    SweepConfig,
    draw_order,
    is_active,
    reachable,
    trial_count,
    unmodelled,
)
from segray.config.schema import Asha, Hyperband, Median
from segray.sweep.points import Choose, Sobol, Whole, gaussian_process

FEWEST = 4  # trials that a Gaussian process begins with
PROPOSALS = 20  # of one, for a trial that `require` refuses again and again; then chance


def suggest(trial: optuna.Trial, parameters: Mapping[str, Parameter]) -> Assignment:
    """Draw the parameters of a trial: each after those its `when` asks, where they hold."""
    made: Assignment = {}
    for name in draw_order(parameters):
        if is_active(parameters[name], made):
            made[name] = _draw(trial, name, parameters[name])
    return made


def sampler(
    config: SweepConfig,
    number: int,
    fixed: Assignment,
    attempt: int = 0,
    seen: IntersectionSearchSpace | None = None,
) -> optuna.samplers.BaseSampler:
    """The sampler of `method` for trial `number`, which takes the values of `fixed` as they are.

    Every trial, and every new attempt at one that `require` refused, has a sampler and a random
    stream of its own, so that a sweep that is taken up again draws what it would have drawn. What
    a method has learned is in the study: CMA-ES keeps its distribution there, TPE and the Gaussian
    process begin afresh each time. `seen` spares TPE a look at all earlier trials for the keys that
    they have in common: a caller that draws many trials passes the same one each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        base = _sampler(config, number, attempt)
        if seen is not None and isinstance(base, optuna.samplers.TPESampler):
            base._search_space = seen
        if not fixed:
            return base
        return optuna.samplers.PartialFixedSampler(_stored(fixed, config.parameters), base)


def _sampler(config: SweepConfig, number: int, attempt: int) -> optuna.samplers.BaseSampler:
    seed = _seed(config.seed, number, attempt)
    chance = optuna.samplers.RandomSampler(seed=seed)
    choose: Choose
    if config.method == "tpe":
        startup = _first_trials(config)
        # The liar keeps trials that run side by side apart.
        return optuna.samplers.TPESampler(n_startup_trials=startup, constant_liar=True, seed=seed)
    if config.method == "gp" and attempt < PROPOSALS:
        choose = gaussian_process(seed, _first_trials(config), (number, attempt))
    elif config.method == "cmaes":  # start-up trials would only teach Optuna the space
        choose = optuna.samplers.CmaEsSampler(
            n_startup_trials=0, consider_pruned_trials=True, seed=seed
        ).sample_relative
    elif config.method == "qmc":  # a sequence for the first attempts, one for the second, ...
        choose = Sobol(_seed(config.seed, attempt), number).sample_relative
    else:
        return chance  # every value of a grid is fixed
    return Whole(choose, chance, _distributions(config), number)


def left_to_chance(config: SweepConfig, sources: Mapping[str, str]) -> str:
    """Says what `method` draws at random for lack of a model; nothing if it models all.

    `sources` says where keys are written, as far as that is known.
    """
    told = []
    if blind := unmodelled(config):
        places = {name: sources.get(f"parameters.{name}") for name in blind}
        keys = [
            f"{name} ({f'{places[name]}, ' if places[name] else ''}{why})"
            for name, why in blind.items()
        ]
        told.append(f"{', '.join(keys)}: {config.method} cannot learn of these, method: tpe can")
    if config.method in ("gp", "cmaes") and _modelled(config):
        first, trials = _first_trials(config), trial_count(config)
        if first >= trials:
            told.append(f"all {trials} trials: {config.method} begins to learn after {first}")
    return "; ".join(told)


def pruner(config: SweepConfig) -> optuna.pruners.BasePruner:
    """The rule of `early_terminate`."""
    rule = config.early_terminate
    if rule is None:
        return optuna.pruners.NopPruner()
    if isinstance(rule, Median):
        return optuna.pruners.MedianPruner(
            n_startup_trials=rule.min_trials,
            n_warmup_steps=rule.min_iter,
            n_min_trials=rule.min_trials,
        )
    if isinstance(rule, Hyperband):
        return optuna.pruners.HyperbandPruner(
            min_resource=rule.min_iter,
            max_resource=max(reachable(config, "train.epochs")),
            reduction_factor=rule.eta,
        )
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=rule.min_iter, reduction_factor=rule.eta
    )


def brackets(rule: Asha | Hyperband, epochs: int) -> list[tuple[float, list[int]]]:
    """The share of trials in each of the pruner's brackets, and its rungs before the last epoch.

    ASHA is one bracket. Their number and their shares are as Optuna's HyperbandPruner has them.
    """
    count = 1
    if isinstance(rule, Hyperband):
        count += math.floor(math.log(epochs / rule.min_iter, rule.eta))
    weights = [math.ceil(count * rule.eta**after / (after + 1)) for after in reversed(range(count))]
    steps = (rule.min_iter * rule.eta**power for power in itertools.count())
    rungs = list(itertools.takewhile(lambda epoch: epoch < epochs, steps))
    return [(weight / sum(weights), rungs[first:]) for first, weight in enumerate(weights)]


def _seed(*stream: int) -> int:
    return int(np.random.SeedSequence(stream).generate_state(1)[0])


def _first_trials(config: SweepConfig) -> int:
    """How many trials have to end before `method` learns of them.

    Of CMA-ES a generation; else a quarter of the sweep: Optuna's fixed ten would be most of a small
    one.
    """
    if config.method == "cmaes":
        generation: int = cmaes.CMA(np.zeros(len(_modelled(config))), sigma=1.0).population_size
        return generation
    quarter = math.ceil(trial_count(config) / 4)
    return max(FEWEST, quarter) if config.method == "gp" else quarter


def _modelled(config: SweepConfig) -> list[str]:
    """The searched keys that `method` chooses together; CMA-ES knows them by their order."""
    blind = unmodelled(config)
    return sorted(n for n, p in config.parameters.items() if p.count != 1 and n not in blind)


def _distributions(config: SweepConfig) -> dict[str, optuna.distributions.BaseDistribution]:
    """What each of those keys is drawn from."""
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    for name in _modelled(config):
        _draw(probe, name, config.parameters[name])
    drawn: dict[str, optuna.distributions.BaseDistribution] = probe.distributions
    return drawn


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

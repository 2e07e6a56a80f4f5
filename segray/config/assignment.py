"""Assignments, dotted paths of searched keys with values: which there are, and what they make."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from segray.config.require import Condition, parse
from segray.config.schema import Parameter, SweepConfig, TrialConfig
from segray.config.validate import Flaw, flaws
from segray.config.yaml_file import KeyPath

Assignment = dict[str, Any]
MANY = 1000  # values of one key, or trials, stand for all that there can be
_MOST_STEPS = 1_000_000  # of a range, that a Gaussian process can go through


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


def satisfied(config: SweepConfig, assignment: Mapping[str, Any]) -> bool:
    """Whether the trial that `assignment` makes meets every condition of `require`."""
    if not config.require:
        return True
    trial = trial_config(config, assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    return all(parse(text).holds(functools.partial(value_at, trial)) for text in config.require)


def trial_count(config: SweepConfig) -> int:
    """How many trials the sweep has, if nothing ends it before."""
    if config.method == "grid":
        return sum(1 for _ in grid(config))
    return 20 if config.run_cap is None else config.run_cap


def unmodelled(config: SweepConfig) -> dict[str, str]:
    """The searched keys that `method` draws at random, as it can learn nothing of them, and why."""
    reasons = {}
    for name, parameter in config.parameters.items():
        if config.method not in ("gp", "cmaes") or parameter.count == 1:
            continue
        if parameter.when:
            reasons[name] = "not searched in every trial"
        elif config.method == "cmaes" and parameter.values is not None:
            reasons[name] = "values, no range"
        elif config.method == "gp" and (parameter.count or 0) > _MOST_STEPS:
            reasons[name] = "over a million steps"
    return reasons


def grid(config: SweepConfig) -> Iterator[Assignment]:
    """The trials of method grid: every combination that `require` lets pass, up to run_cap.

    They come in the order of the file, the last key fastest; a key comes after those its `when`
    asks, and is left out where they say so. Every parameter must have a `count`.
    """
    allowed = (made for made in combinations(config.parameters) if satisfied(config, made))
    return itertools.islice(allowed, config.run_cap)


def combinations(parameters: Mapping[str, Parameter]) -> Iterator[Assignment]:
    """Every combination of finite parameters, as `grid` orders them."""
    order = draw_order(parameters)

    def below(position: int, made: Assignment) -> Iterator[Assignment]:
        if position == len(order):
            yield made
        elif is_active(parameters[order[position]], made):
            for value in parameters[order[position]].choices():
                yield from below(position + 1, made | {order[position]: value})
        else:
            yield from below(position + 1, made)

    return below(0, {})


def random_draws(parameters: Mapping[str, Parameter], count: int) -> Iterator[Assignment]:
    """`count` assignments drawn independently, the same ones each time."""
    chance = random.Random(0)
    order = draw_order(parameters)
    for _ in range(count):
        made: Assignment = {}
        for name in order:
            if is_active(parameters[name], made):
                made[name] = _random_value(parameters[name], chance)
        yield made


def draw_order(parameters: Mapping[str, Parameter]) -> list[str]:
    """The names as written, but each after those its `when` asks, which go round in no circle."""
    order: dict[str, None] = {}

    def put_in(name: str) -> None:
        if name not in order:
            for other in parameters[name].when:
                put_in(other)
            order[name] = None

    for name in parameters:
        put_in(name)
    return list(order)


def is_active(parameter: Parameter, made: Mapping[str, Any]) -> bool:
    """Whether a parameter is searched, given the values drawn before it.

    A key that was itself not searched meets no condition, whatever the file's own value is.
    """
    return all(name in made and made[name] in allowed for name, allowed in parameter.when.items())


def least_for(parameters: Mapping[str, Parameter], name: str) -> Assignment:
    """The least that must be drawn for a parameter to be searched."""
    made: Assignment = {}

    def need(name: str) -> None:
        for other, allowed in parameters[name].when.items():
            if other not in made:
                made[other] = allowed[0]
                need(other)

    need(name)
    return made


def attempt(config: SweepConfig, assignment: Mapping[str, Any]) -> TrialConfig | Flaw:
    """The trial that `assignment` makes, or the first thing that is wrong with it."""
    try:
        return trial_config(config, assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    except ValidationError as errors:
        return flaws(errors, _assigned(config, assignment))[0]


def attempt_one(config: SweepConfig, name: str, value: Any) -> TrialConfig | Flaw:
    """The trial with one searched key put in, and what must be for it to be searched.

    If that alone is no trial, the other searched keys get values too: train.early_stop.min_delta
    needs a patience beside it.
    """
    alone = least_for(config.parameters, name) | {name: value}
    tried = attempt(config, alone)
    if isinstance(tried, TrialConfig):
        return tried
    others = {n: p.probes()[0] for n, p in config.parameters.items() if not p.when}
    together = attempt(config, others | alone)
    return together if isinstance(together, TrialConfig) else tried


def reachable(config: SweepConfig, path: str) -> tuple[Any, ...]:
    """What trials can have at a dotted path: the file's value, or choices or ends of a range."""
    return tuple(value for _, value in reachable_places(config, path))


def reachable_places(config: SweepConfig, name: str) -> Iterator[tuple[KeyPath, Any]]:
    """The values of `reachable`, each with the key of the sweep file that it stands at.

    Of a range that `require` cuts, the ends may be out of reach: many values are tried then.
    """
    parameter = config.parameters.get(name)
    if parameter is None or parameter.when:
        yield tuple(name.split(".")), value_at(config, name)
    if parameter is None:
        return
    tried = possible(config, name)
    own = [
        each
        for each in map(parse, config.require)
        if searched_in(each, config.parameters) == {name}
    ]
    if own and parameter.values is None:
        tried += [(("parameters", name), value) for value in _sample(parameter, MANY)]
    made = [(path, attempt_one(config, name, value)) for path, value in tried]
    trials = [(path, trial) for path, trial in made if isinstance(trial, TrialConfig)]
    met = [(path, trial) for path, trial in trials if all(_meets(trial, each) for each in own)]
    yield from ((path, value_at(trial, name)) for path, trial in met or trials)


def drawable(config: SweepConfig, names: Iterable[str]) -> Iterator[tuple[Assignment, TrialConfig]]:
    """Trials that can be drawn, in all that decides the values at dotted paths: the paths
    themselves, what their `when` asks and what `require` ties to them.

    Every combination, where there are so few; else many, among them every choice and the ends of
    every range.
    """
    conditions = [parse(text) for text in config.require]
    tied = _deciding(config, names, conditions)
    few = {name: config.parameters[name] for name in config.parameters if name in tied}
    counts = [parameter.count for parameter in few.values()]
    if None not in counts and math.prod(map(int, filter(None, counts))) <= MANY:
        drawn = combinations(few)
    else:
        ends = {n: p.model_copy(update={"values": p.probes()}) for n, p in few.items()}
        drawn = itertools.chain(itertools.islice(combinations(ends), MANY), random_draws(few, MANY))
    others = {n: p.probes()[0] for n, p in config.parameters.items() if n not in few and not p.when}
    asked = [each for each in conditions if searched_in(each, config.parameters) & tied]
    for made in drawn:
        trial = attempt(config, made)
        if not isinstance(trial, TrialConfig):  # as in `attempt_one`
            trial = attempt(config, others | made)
        if isinstance(trial, TrialConfig) and all(_meets(trial, each) for each in asked):
            yield made, trial


def _deciding(
    config: SweepConfig, names: Iterable[str], conditions: Sequence[Condition]
) -> set[str]:
    """The searched keys that decide the values at `names`, and whether they can be drawn."""
    tied = {name for name in names if name in config.parameters}
    ties = [searched_in(condition, config.parameters) for condition in conditions]
    while True:
        more = {other for name in tied for other in config.parameters[name].when}
        more = more.union(*(tie for tie in ties if tie & tied)) - tied
        if not more:
            return tied
        tied |= more


def possible(config: SweepConfig, name: str) -> list[tuple[KeyPath, Any]]:
    """Values to try for a searched key: every choice or the ends of a range, and their places."""
    parameter = config.parameters[name]
    path: KeyPath = ("parameters", name)
    if parameter.values is None:
        return [(path, value) for value in parameter.probes()]
    return [((*path, "values", index), value) for index, value in enumerate(parameter.values)]


def value_at(config: SweepConfig | TrialConfig, path: str) -> Any:
    """The value at a dotted path; None also below a section that is null."""
    value: Any = config
    for key in path.split("."):
        value = getattr(value, key, None)
    return value


def searched_in(condition: Condition, parameters: Iterable[str]) -> set[str]:
    """The searched keys that decide a condition: those in it, above or below one in it."""
    return {
        name
        for name in parameters
        if any(
            f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for key in condition.keys
        )
    }


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


def _meets(trial: TrialConfig, condition: Condition) -> bool:
    try:
        return condition.holds(functools.partial(value_at, trial))
    except ValueError:  # it compares what cannot be compared, which is a flaw of its own
        return True


def _sample(parameter: Parameter, number: int) -> list[Any]:
    """Every value of a parameter, or some where there are more than `number`."""
    if parameter.count is not None and parameter.count <= number:
        return [*parameter.choices()]
    chance = random.Random(0)
    return [_random_value(parameter, chance) for _ in range(number)]


def _random_value(parameter: Parameter, chance: random.Random) -> Any:
    if parameter.values is not None:
        return chance.choice(parameter.values)
    if parameter.min is None or parameter.max is None:
        return parameter.value
    if parameter.count is not None:
        return parameter.nth(chance.randrange(parameter.count))
    if parameter.distribution == "log_uniform_values":
        drawn = math.exp(chance.uniform(math.log(parameter.min), math.log(parameter.max)))
        return min(max(drawn, parameter.min), parameter.max)
    return chance.uniform(parameter.min, parameter.max)

"""Points that one of Optuna's samplers draws as a whole, in a space that is known beforehand.

GP, CMA-ES and Sobol's sequence place all keys of a trial together. Optuna has them find the space
in the trials that have ended, as the keys that all of those had: it changes under them with a
start point, a trial that is stopped or a key that is not searched in each, and CMA-ES for one gives
up for good. Here the sweep file says which keys there are.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

Space = Mapping[str, BaseDistribution]
Choose = Callable[[optuna.Study, FrozenTrial, Space], dict[str, Any]]
"""Draws a point of the space; an empty one leaves it to chance."""


class Whole(BaseSampler):
    """Draws the keys of `space` with `choose`, all others with `chance`."""

    def __init__(self, choose: Choose, chance: BaseSampler, space: Space, number: int) -> None:
        """`number` is the trial's own: the study counts draws, also those cut short by a kill."""
        self._choose, self._chance, self._space, self._number = choose, chance, space, number

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Space
    ) -> dict[str, Any]:
        """The drawn values of `search_space`, which lacks what a start point fixes."""
        own = copy.copy(trial)
        own.number = self._number  # CMA-ES adds it to its seed
        drawn = self._choose(study, own, dict(self._space))
        return {name: value for name, value in drawn.items() if name in search_space}

    def sample_independent(self, *asked: Any) -> Any:
        return self._chance.sample_independent(*asked)


class Sobol(optuna.samplers.QMCSampler):
    """Point `index` of the Sobol sequence of `seed`, whatever the study holds.

    Optuna counts points in the study as it draws them, and a kill in between would skip one.
    """

    def __init__(self, seed: int, index: int) -> None:
        super().__init__(scramble=True, seed=seed)
        self._index = index

    def _find_sample_id(self, study: optuna.Study, search_space: Space) -> int:
        return self._index


def gaussian_process(seed: int, startup: int, now: tuple[int, int]) -> Choose:
    """Optuna's GP once `startup` trials have values; `now` is this draw: trial number, attempt.

    Optuna's own looks at finished trials alone. A region where trials diverge, are stopped or
    refused would stay unknown to it, hence promising, and it would draw the same point there for
    ever. So it is shown a study in which those have values too. Trials that still run it keeps
    apart by itself.
    """

    def choose(study: optuna.Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        trials = [t for t in study.get_trials(deepcopy=False) if space.keys() <= t.params.keys()]
        worth = _worth(trials)
        if not space or len(worth) < startup:
            return {}
        worst = (max if study.direction.name == "MINIMIZE" else min)(value for _, value in worth)
        running = [one for one in trials if one.state == TrialState.RUNNING]
        shown = [
            *((one, {"value": value}) for one, value in worth),
            *((one, {"value": worst}) for one in _nothing(trials, now)),
            *((one, {"state": TrialState.RUNNING}) for one in running),
        ]
        model = optuna.create_study(
            direction=study.direction,
            sampler=optuna.samplers.GPSampler(seed=seed, n_startup_trials=1),
        )
        model.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: one.params[name] for name in space}, distributions=space, **came
                )
                for one, came in shown
            ]
        )
        with threadpool_limits(1):  # many small sums, beside trials that take all cores
            point: dict[str, Any] = model.ask(space).params
        return point

    return choose


def _worth(trials: list[FrozenTrial]) -> list[tuple[FrozenTrial, float]]:
    """Trials that came to something: finished ones with their objective, stopped ones with what
    they had come to and what finished ones gained from that epoch on, in the median.

    Without the gain, a trial would seem better the later it was stopped.
    """
    finished = [one for one in trials if one.state == TrialState.COMPLETE]
    worth = []
    for one in trials:
        epoch = one.last_step
        if one.state == TrialState.COMPLETE:
            worth.append((one, one.value))
        elif one.user_attrs.get("state") == "pruned" and epoch is not None:
            gains = [
                other.value - other.intermediate_values[epoch]
                for other in finished
                if epoch in other.intermediate_values
            ]
            gain = statistics.median(gains) if gains else 0.0
            worth.append((one, one.intermediate_values[epoch] + gain))
    return worth


def _nothing(trials: list[FrozenTrial], now: tuple[int, int]) -> list[FrozenTrial]:
    """Trials that failed or diverged, and draws before `now` that the sweep refused.

    After a kill some draws are made again: each counts once.
    """
    refused = {
        tuple(one.user_attrs["refused"]): one for one in trials if "refused" in one.user_attrs
    }
    failed = [one for one in trials if one.user_attrs.get("state") in ("failed", "diverged")]
    return [*(one for draw, one in refused.items() if draw < now), *failed]

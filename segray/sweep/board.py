"""The board: a small actor on which every trial posts each epoch, and reads whether to go on.

Tune could stop trials itself, by killing them. Here they are asked to stop instead, and end by
their own last lines: the tracker's run is closed, the record says why, workers of Ray Train leave
their places by returning (a killed TorchTrainer frees its placement group only through the
dashboard's State API, which fails where two Ray instances share a machine). The rule is Optuna's
own pruner, fed with what the records hold.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optuna
import ray
from ray.actor import ActorHandle

if TYPE_CHECKING:  # it brings torch, which this actor has no use for: 200 MB
    from segray.train import Stop

NAMESPACE = "segray"
Past = Mapping[str, Sequence[tuple[int, float]]]
"""Trial -> (epoch, objective) of the epochs that it reported before this board was opened."""


class Board:
    """Compares every trial's running best at the same epoch."""

    def __init__(
        self,
        pruner: optuna.pruners.BasePruner,
        direction: str,
        deadline: float | None,
        past: Past,
    ) -> None:
        """`deadline` is in seconds since 1970; past it every trial is asked to end."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", message="The reported value is ignored")
        self._study = optuna.create_study(direction=direction, pruner=pruner)
        self._trials: dict[str, optuna.Trial] = {}
        self._deadline: float | None = None
        self._closed = False
        for trial_id, curve in past.items():  # the pruner notes a rung when it is asked
            for epoch, objective in curve:
                self.report(trial_id, epoch, objective)
        self._deadline = deadline

    def report(self, trial_id: str, epoch: int, objective: float) -> Stop | None:
        """Post a trial's objective after an epoch; why it has to end, or None."""
        if self._closed or (self._deadline is not None and time.time() > self._deadline):
            return "budget"
        if trial_id not in self._trials:
            self._trials[trial_id] = self._study.ask()
        trial = self._trials[trial_id]
        trial.report(objective, epoch)
        return "pruned" if trial.should_prune() else None

    def close(self) -> None:
        """Ask every trial to end after its epoch."""
        self._closed = True


def open_board(
    name: str,
    pruner: optuna.pruners.BasePruner,
    direction: str,
    deadline: float | None,
    past: Past,
) -> ActorHandle:
    """Start the board under `name`, with what trials reported before; it ends with the handle."""
    actor = ray.remote(Board).options(name=name, namespace=NAMESPACE, num_cpus=0)
    handle: ActorHandle = actor.remote(pruner, direction, deadline, past)
    return handle


def find_board(name: str) -> ActorHandle:
    """The board of that name, from inside a trial."""
    handle: ActorHandle = ray.get_actor(name, namespace=NAMESPACE)
    return handle

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
Past = Mapping[str, tuple[Sequence[tuple[int, float]], bool]]
"""Trial -> (epoch, objective) of the epochs that it reported before this board was opened, and
whether it had finished by then."""


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
        # Hyperband finds a trial's bracket from the study's name and the trial's number.
        self._study = optuna.create_study(study_name="board", direction=direction, pruner=pruner)
        self._trials: list[optuna.Trial] = []
        self._deadline: float | None = None
        self._closed = False
        for trial_id, (curve, finished) in past.items():
            for epoch, objective in curve:  # the pruner notes a rung when it is asked
                self.report(trial_id, epoch, objective)
            if finished:
                self.finish(trial_id)
        self._deadline = deadline

    def report(self, trial_id: str, epoch: int, objective: float) -> Stop | None:
        """Post a trial's objective after an epoch; why it has to end, or None."""
        if self._closed or (self._deadline is not None and time.time() > self._deadline):
            return "budget"
        if isinstance(self._study.pruner, optuna.pruners.NopPruner):
            return None  # also of the final stage, whose trials have no numbers
        trial = self._trial(trial_id)
        trial.report(objective, epoch)
        return "pruned" if trial.should_prune() else None

    def finish(self, trial_id: str) -> None:
        """A trial has finished: the median is that of such trials."""
        if isinstance(self._study.pruner, optuna.pruners.NopPruner):
            return
        trial = self._trial(trial_id)
        values = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if values:
            self._study.tell(trial, values[max(values)])

    def _trial(self, trial_id: str) -> optuna.Trial:
        """The board's trial of the same number, whichever reports first."""
        while len(self._trials) <= int(trial_id):
            self._trials.append(self._study.ask())
        return self._trials[int(trial_id)]

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

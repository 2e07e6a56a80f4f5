"""The board: a small actor on which every trial posts each epoch, and reads whether to go on.

Tune could stop trials itself, by killing them. Here they are asked to stop instead, and end by
their own last lines: the tracker's run is closed, the record says why, workers of Ray Train leave
their places by returning (a killed TorchTrainer frees its placement group only through the
dashboard's State API, which fails where two Ray instances share a machine). The rule is Optuna's
own pruner, fed with what the records hold: a board that is killed, or opened anew by a sweep that
is taken up again, judges as one that was there all the time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:  # it brings torch, which this actor has no use for: 200 MB
    from segray.train import Stop

NAMESPACE = "segray"


class Board:
    """Compares every trial's running best at the same epoch."""

    def __init__(
        self,
        pruner: optuna.pruners.BasePruner,
        direction: str,
        deadline: float | None,
        trials: Path,
        store: str | None = None,
    ) -> None:
        """`deadline` is in seconds since 1970; past it every trial is asked to end.

        `trials` is the folder of the records of all that was reported before. Where it is a copy of
        what is at `store`, trials that run elsewhere bring theirs there alone, and a board that
        comes back reads them from it.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Hyperband finds a trial's bracket from the study's name and the trial's number.
        self._study = optuna.create_study(study_name="board", direction=direction, pruner=pruner)
        self._prunes = not isinstance(pruner, optuna.pruners.NopPruner)
        self._trials: list[optuna.Trial] = []
        self._last: dict[str, tuple[int, Stop | None]] = {}  # trial -> epoch, what it was told
        self._deadline: float | None = None
        self._closed = False
        self._notes: dict[str, tuple[str, int, int]] = {}
        self._nodes: dict[str, set[str]] = {}
        if self._prunes:
            with _latest(trials, store) as folder:
                for trial_id, epoch, objective in _reported(folder):
                    if objective is None:
                        self.finish(trial_id)
                    else:
                        self.report(trial_id, epoch, objective)
        self._deadline = deadline

    def report(self, trial_id: str, epoch: int, objective: float) -> Stop | None:
        """Post a trial's objective after an epoch; why it has to end, or None.

        An epoch that was posted before is told the same: one that a trial which goes on had posted,
        or whose answer was lost with this actor's process.
        """
        if self._closed or (self._deadline is not None and time.time() > self._deadline):
            return "budget"
        if not self._prunes:
            return None  # also of the final stage, whose trials have no numbers
        last, told = self._last.get(trial_id, (0, None))
        if epoch <= last:
            return told if epoch == last else None
        trial = self._trial(trial_id)
        trial.report(objective, epoch)
        verdict: Stop | None = "pruned" if trial.should_prune() else None
        self._last[trial_id] = epoch, verdict
        return verdict

    def finish(self, trial_id: str) -> None:
        """A trial has finished: the median is that of such trials."""
        if not self._prunes:
            return
        trial = self._trial(trial_id)
        frozen = self._study.get_trials(deepcopy=False)[trial.number]
        values = frozen.intermediate_values
        if values and not frozen.state.is_finished():
            self._study.tell(trial, values[max(values)])

    def enter(self, trial_id: str, node_id: str) -> None:
        """A worker of a trial has started on a node of Ray's."""
        self._nodes.setdefault(trial_id, set()).add(node_id)

    def leave(self, trial_id: str) -> set[str]:
        """A trial's workers are gone: the nodes that they were on."""
        return self._nodes.pop(trial_id, set())

    def note(self, node: str, what: str, done: int, total: int) -> None:
        """A machine says how many of what it has made ready."""
        self._notes[node] = what, done, total
        if done == total:
            del self._notes[node]

    def notes(self) -> dict[str, tuple[str, int, int]]:
        """What machines are getting ready: node -> of what, how many, of how many."""
        return self._notes

    def close(self) -> None:
        """Ask every trial to end after its epoch."""
        self._closed = True

    def _trial(self, trial_id: str) -> optuna.Trial:
        """The board's trial of the same number, whichever reports first."""
        while len(self._trials) <= int(trial_id):
            self._trials.append(self._study.ask())
        return self._trials[int(trial_id)]


@contextlib.contextmanager
def _latest(trials: Path, store: str | None) -> Iterator[Path]:
    """The folder of the records as they are now."""
    if store is None or not ray.get_runtime_context().was_current_actor_reconstructed:
        yield trials  # which the driver has just fetched, if it is a copy
        return
    from segray.data.remote import RemoteFolder
    from segray.sweep.store import Copy, insist

    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder), RemoteFolder(store))
        insist(lambda: copy.fetch(lambda name: name.endswith(("metrics.jsonl", "outcome.json"))))
        yield copy.path


def _reported(trials: Path) -> Iterator[tuple[str, int, float | None]]:
    """(trial, epoch, objective) of all records in the order in which they came about; an objective
    of None: the trial had finished.
    """
    files = list(trials.glob("*/metrics.jsonl"))
    if not files:
        return
    from segray.sweep.trial_files import FINISHED, read_outcome
    from segray.train import read_records

    events: list[tuple[float, str, int, float | None]] = []
    for file in sorted(files):
        trial_id = file.parent.name
        records = read_records(file)
        events += [(r["time/ended"], trial_id, r["epoch"], r["objective"]) for r in records]
        outcome = read_outcome(file.parent)
        if records and outcome is not None and outcome.state in FINISHED:
            last = records[-1]
            events.append((last["time/ended"], trial_id, last["epoch"], None))
    events.sort(key=lambda event: event[0])
    yield from (event[1:] for event in events)


def open_board(
    name: str,
    pruner: optuna.pruners.BasePruner,
    direction: str,
    deadline: float | None,
    trials: Path,
    store: str | None = None,
) -> ActorHandle:
    """Start the board under `name`; it ends with the handle, and nothing else ends it."""
    actor = ray.remote(Board).options(
        name=name,
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=on_node(ray.get_runtime_context().get_node_id()),  # not on a spot node
    )
    handle: ActorHandle = actor.remote(pruner, direction, deadline, trials, store)
    return handle


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """For an actor or task that has its place on one node."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def find_board(name: str) -> ActorHandle:
    """The board of that name, from inside a trial."""
    handle: ActorHandle = ray.get_actor(name, namespace=NAMESPACE)
    return handle

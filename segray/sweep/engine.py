"""Trials on Ray Tune: it finds each a place on the cluster and runs it there.

Which trial comes next and what its result means is the queue's business. Tune's own experiment
snapshot is not used (see records), so its folder is scratch and goes when the trials have ended.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from optuna.pruners import BasePruner
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from segray.sweep.board import Past, open_board
from segray.sweep.cluster import Plan
from segray.sweep.progress import Screen
from segray.sweep.records import (
    FINISHED,
    RunFolder,
    TrialResult,
    TrialSpec,
    failed_outcome,
    read_outcome,
    write_outcome,
)
from segray.sweep.search import Queue
from segray.sweep.trial import tune_trainable, tune_trainable_on_workers


def run_trials(
    queue: Queue,
    stage: Plan,
    screen: Screen,
    *,
    folder: RunFolder,
    total: int,
    goal: str,
    pruner: BasePruner,
    deadline: float | None = None,
    past: Past | None = None,
) -> None:
    """Run up to `total` trials of `queue`, stage.concurrent at a time, until all have ended.

    `past` is what earlier processes of this sweep reported, and `pruner` judges by.
    """
    board = f"segray-{folder.sweep_id}-{secrets.token_hex(4)}"
    scratch = folder.path / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed sweep
    handle = open_board(board, pruner, goal, deadline, past or {})
    booking = _Booking(queue, screen, handle)
    if stage.workers == 1:
        resources = {"CPU": stage.threads} | (
            {"GPU": stage.gpus_per_worker} if stage.gpus_per_worker else {}
        )
        trainable = tune.with_resources(tune_trainable, resources)
    else:
        # The trial itself only waits for its workers: no CPU, but Tune wants some resource.
        trainable = tune.with_resources(
            tune_trainable_on_workers, {"node:__internal_head__": 0.001}
        )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=_Source(queue, board),
            num_samples=total,
            max_concurrent_trials=stage.concurrent,
            reuse_actors=stage.workers == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch), verbose=0, callbacks=[booking]
        ),
    )
    try:
        with booking.watch_for_interrupts():
            tuner.fit()
    finally:
        ray.kill(handle)
        shutil.rmtree(scratch, ignore_errors=True)


def _reason(text: str) -> str:
    """The line of Ray's account of a failure that says what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    dead = [line for line in lines if "died" in line]
    return (dead or lines)[0 if dead else -1][:300]


def _trial_name(trial: Trial) -> str:
    spec: TrialSpec = trial.config["spec"]
    return spec.id


class _Source(Searcher):
    """Hands the queue's trials to Tune."""

    def __init__(self, queue: Queue, board: str) -> None:
        super().__init__()
        self._queue, self._board = queue, board

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        spec = self._queue.next()
        return Searcher.FINISHED if spec is None else {"spec": spec, "board": self._board}

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        """`_Booking` does that: it sees the trial, not only its last result."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its arguments for a restore that segray does not use."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("segray resumes from its own records")


class _Booking(tune.Callback):
    """Books what Tune says of a trial: on the screen, on the board, and with the queue."""

    def __init__(self, queue: Queue, screen: Screen, board: ActorHandle) -> None:
        self._queue, self._screen, self._board = queue, screen, board
        self._interrupted = False

    @contextlib.contextmanager
    def watch_for_interrupts(self) -> Iterator[None]:
        """Make sure that Ctrl-C and SIGTERM end the trials.

        Either raises KeyboardInterrupt wherever Python happens to be, and in a destructor or in a
        callback from C that is swallowed. So it is raised again at Tune's next step.
        """
        if threading.current_thread() is not threading.main_thread():
            yield  # signals do not come here
            return

        def notice(number: int, frame: object) -> None:
            self._interrupted = True
            raise KeyboardInterrupt

        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, notice) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its arguments for a restore that segray does not use."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        spec: TrialSpec = trial.config["spec"]
        self._screen.start(spec.id, spec.assignment)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        spec: TrialSpec = trial.config["spec"]
        if "epoch" in result:  # else the trial's last word, which has no metrics
            self._screen.epoch(spec.id, result["epoch"], result["value"], result["best"])

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._end(trial.config["spec"], "the trial ended without saying how")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        # An exception in worker 0 has been written by the trial itself. This is for a process that
        # died without a word, and for other workers.
        spec: TrialSpec = trial.config["spec"]
        path = Path(trial.error_file or "")
        text = path.read_text() if path.is_file() else "its process died"
        spec.folder.mkdir(parents=True, exist_ok=True)
        with (spec.folder / "log.txt").open("a") as log:
            log.write(f"\n{text}\n")
        self._end(spec, _reason(text))

    def _end(self, spec: TrialSpec, reason: str) -> None:
        outcome = read_outcome(spec.folder)
        if outcome is None:
            outcome = failed_outcome(spec.folder, reason)
            write_outcome(spec.folder, outcome)
        result = TrialResult(spec.id, spec.folder, spec.assignment, outcome)
        self._screen.end(result)
        self._queue.end(result)
        if outcome.state in FINISHED:
            ray.get(self._board.finish.remote(spec.id))
        if self._queue.closed:
            ray.get(self._board.close.remote())

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
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from optuna.pruners import BasePruner
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from segray.config import WorkError
from segray.config.schema import Failure
from segray.data.remote import DiskFull, RemoteError
from segray.sweep import autoscaler
from segray.sweep.board import open_board
from segray.sweep.cluster import RayLost, dead_process
from segray.sweep.faults import Fault, halved, oom_kills, put_down, understand
from segray.sweep.nodes import alive, lost_among
from segray.sweep.placement import Plan
from segray.sweep.progress import Screen, count
from segray.sweep.records import RunFolder
from segray.sweep.search import Queue
from segray.sweep.trial import tune_trainable, tune_trainable_on_workers
from segray.sweep.trial_files import (
    FINISHED,
    TrialResult,
    TrialSpec,
    failed_outcome,
    read_outcome,
    write_outcome,
)
from segray.train import Outcome

LOOK_S = 2.0  # between looks at nodes that are getting ready, and at the autoscaler
PATIENCE_S = 15.0  # for a trial to find its place, before the person is told
SETTLE_S = 1.0  # from a trial's death to the look at whether Ray lives


def run_trials(
    queue: Queue,
    stage: Plan,
    screen: Screen,
    *,
    folder: RunFolder,
    failure: Failure,
    goal: str,
    pruner: BasePruner,
    deadline: float | None = None,
) -> None:
    """Run the trials of `queue`, stage.concurrent at a time, until it has none left.

    `pruner` judges by all that the folder has on record. Raises WorkError where it has to stop with
    trials left that `--resume` goes on with: the disk is full, or Ray is gone.
    """
    board = f"segray-{folder.sweep_id}-{secrets.token_hex(4)}"
    scratch = folder.path / ".ray"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed sweep
    there = (folder.remote / "trials").url if folder.remote else None
    handle = open_board(board, pruner, goal, deadline, folder.path / "trials", there)
    desk = _Desk(queue, stage, screen, failure, handle, folder)
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
            search_alg=_Source(desk, board),
            num_samples=-1,  # the queue knows when it has no more
            max_concurrent_trials=stage.concurrent,
            reuse_actors=stage.workers == 1,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_attempt_name,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch), verbose=0, callbacks=[_Booking(desk)]
        ),
    )
    try:
        with desk.watch_for_interrupts():
            tuner.fit()
    except _Stopped as stopped:
        if stopped.error is not None:
            raise stopped.error from None
    finally:
        if dead_process() is None:
            ray.kill(handle)
        shutil.rmtree(scratch, ignore_errors=True)


class _Stopped(BaseException):
    """The sweep cannot go on. No Exception: Tune would take it for the failure of a trial."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error  # None: the queue knows why


@contextlib.contextmanager
def _or_stop() -> Iterator[None]:
    """A record that cannot be written ends the sweep; so does what nobody foresaw.

    Tune would take an exception while a trial is booked for a failure of the trial.
    """
    try:
        yield
    except OSError as error:
        raise _Stopped(_paused(f"{error.strerror or error}: {error.filename}")) from None
    except (DiskFull, RemoteError) as error:
        raise _Stopped(_paused(str(error))) from None
    except Exception as error:  # as when another driver has the run
        raise _Stopped(error) from None


def _paused(why: str) -> WorkError:
    return WorkError(
        f"{why}. The sweep stops here, with nothing lost: every trial stands at its last epoch. "
        "Once the cause is gone (on a full disk: once there is room), the same command with "
        "--resume goes on"
    )


def _trial_name(trial: Trial) -> str:
    spec: TrialSpec = trial.config["spec"]
    return spec.id


def _attempt_name(trial: Trial) -> str:
    return f"{_trial_name(trial)}-{trial.trial_id}"  # a trial that is tried again has two


class _Desk:
    """Hands out the queue's trials, and books what became of each; those that failed it may hand
    out again.
    """

    def __init__(
        self,
        queue: Queue,
        stage: Plan,
        screen: Screen,
        failure: Failure,
        board: ActorHandle,
        folder: RunFolder,
    ) -> None:
        self._queue, self._screen, self._failure, self._board = queue, screen, failure, board
        self._stage, self._folder = stage, folder
        self._looked = self._freed = time.monotonic()
        self._notes = board.notes.remote()
        self._noted: set[str] = set()  # machines that are getting ready
        self._interrupted = False
        self._again: list[TrialSpec] = []
        self._stranded: list[tuple[TrialSpec, set[str]]] = []  # until Ray knows of the lost nodes
        self._running: dict[str, int] = {}  # trial -> oom_kills() when it started
        self._failures: Counter[str] = Counter()

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

    def look_round(self) -> None:
        """Raises where somebody wants the sweep to end, or Ray is gone."""
        if self._interrupted:
            raise KeyboardInterrupt
        if dead := dead_process():
            raise _Stopped(RayLost(dead))
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            self._tell_of_nodes()
            self._tell_of_waiting()

    def _tell_of_nodes(self) -> None:
        """Show what machines are getting ready, as far as the board has answered."""
        if not ray.wait([self._notes], timeout=0)[0]:
            return
        with contextlib.suppress(ray.exceptions.RayError):  # it starts again by itself
            notes = ray.get(self._notes)
            for node, (what, done, total) in notes.items():
                self._screen.note(node, f"{node}: {what} {done}/{total}")
            for node in self._noted - set(notes):
                self._screen.note(node, "")
            self._noted = set(notes)
        self._notes = self._board.notes.remote()

    def _tell_of_waiting(self) -> None:
        """Show how many trials wait for a place, for what, and what is done about it.

        A trial of several workers has its own place at once, and waits for theirs while it starts.
        """
        waiting, starting = self._screen.waiting(PATIENCE_S)
        late = waiting + (starting if self._stage.workers > 1 else 0)
        told, doing = "", autoscaler.progress() if late else ""
        if late and doing:
            told = f"{count(late, 'trial')} waiting for {self._stage}: {doing}"
        elif waiting:
            told = f"{count(waiting, 'trial')} waiting for {self._stage}: all places are taken"
        self._screen.note("waiting", told)

    def next(self) -> TrialSpec | None:
        """The trial to start now; None: none now, and none at all once no trial is `busy`."""
        self._free_stranded()
        spec = self._again.pop(0) if self._again else self._queue.next()
        if spec is not None:
            self._running[spec.id] = oom_kills()
            self._screen.wait(spec.id, spec.assignment)
        return spec

    def _free_stranded(self) -> None:
        """Hand out trials again whose lost nodes Ray knows to be gone, or that answer again.

        Before that Ray would give them a place on such a node.
        """
        if not self._stranded or time.monotonic() < self._freed + LOOK_S:
            return
        self._freed = time.monotonic()
        up = alive()
        held = [(spec, set(lost_among(lost & up))) for spec, lost in self._stranded]
        self._again += [spec for spec, lost in held if not lost]
        self._stranded = [(spec, lost) for spec, lost in held if lost]

    @property
    def busy(self) -> bool:
        """Whether trials are at work, or will go on."""
        return bool(self._running or self._again or self._stranded)

    def started(self, spec: TrialSpec) -> None:
        self._screen.start(spec.id, spec.assignment)

    def epoch(self, spec: TrialSpec, result: Mapping[str, Any]) -> None:
        self._screen.epoch(spec.id, result["epoch"], result["value"], result["best"])
        self._queue.epoch(spec.id, result["epoch"])
        self._close_if_asked()

    def ended(self, spec: TrialSpec) -> None:
        self._collect(spec)
        outcome = read_outcome(spec.folder)
        if outcome is None:
            self.failed(spec, "it ended without saying how")
        else:
            self._book(spec, outcome)

    def failed(self, spec: TrialSpec, account: str) -> None:
        """A trial's process raised or died; `account` is what Ray has to say of it."""
        fault = understand(account, spec.config, oom_kills() - self._running[spec.id])
        if fault.kind == "died":
            time.sleep(SETTLE_S)  # all of Ray may be dying, and no trial have failed
        self.look_round()
        lost = self._lost(spec) if fault.kind in ("died", "raised") else {}
        if lost:
            fault = Fault("node_lost", f"lost with its node {', '.join(sorted(lost.values()))}")
        self._collect(spec)
        outcome = read_outcome(spec.folder)
        if outcome is not None and outcome.state != "failed":
            self._book(spec, outcome)  # it was over, and only its tracker was still at work
            return
        if fault.kind == "disk_full":
            raise _Stopped(_paused(f"the disk of {spec.run_folder} is full ({fault.reason})"))
        if fault.kind in ("cache_full", "store_lost"):
            raise _Stopped(_paused(fault.reason))
        put_down(spec.folder, fault.reason, account)
        again = self._second_try(spec, fault)
        if again is None:
            write_outcome(spec.folder, failed_outcome(spec.folder, fault.reason))
        self._folder.save_training(spec.folder, "error.txt", "outcome.json", "log.txt")
        if again is None:
            self._book(spec, failed_outcome(spec.folder, fault.reason))
            return
        del self._running[spec.id]
        self._stranded.append((again, set(lost)))
        self._screen.again(spec.id, again.note)

    def _collect(self, spec: TrialSpec) -> None:
        """See to it that a trial's records are on this machine."""
        self._folder.collect(spec.folder, weights=spec.stage != "trial")

    def _lost(self, spec: TrialSpec) -> dict[str, str]:
        """Which of the nodes that a trial had workers on are gone: id -> name."""
        with contextlib.suppress(ray.exceptions.RayError):
            return lost_among(ray.get(self._board.leave.remote(spec.id)))
        return {}

    def _second_try(self, spec: TrialSpec, fault: Fault) -> TrialSpec | None:
        """The trial as it is tried again, or None where it has failed for good."""
        if fault.kind == "node_lost":  # no fault of the trial's
            return replace(spec, note=f"{fault.reason}; it went on elsewhere from its last epoch")
        if fault.kind != "out_of_memory":
            self._failures[spec.id] += 1
            if self._failures[spec.id] > self._failure.retries:
                return None
            tried = f"try {self._failures[spec.id] + 1} of {self._failure.retries + 1}"
            return replace(spec, note=f"{fault.reason}; {tried} went on from there")
        smaller = halved(spec.config)
        if self._failure.on_out_of_memory == "stop" or smaller is None or spec.halved:
            return None
        passes = smaller.train.accumulate
        note = f"{fault.reason}; it went on with train.accumulate={passes}"
        return replace(spec, config=smaller, note=note, halved=True)

    def _book(self, spec: TrialSpec, outcome: Outcome) -> None:
        del self._running[spec.id]
        result = TrialResult(spec.id, spec.folder, spec.assignment, outcome)
        self._queue.end(result)
        self._screen.end(result)
        if self._queue.hopeless:
            raise _Stopped(None)  # the others stand at their last epoch, for --resume
        if outcome.state in FINISHED:
            self._board.finish.remote(spec.id)
        self._close_if_asked()

    def _close_if_asked(self) -> None:
        if self._queue.closed:  # said again and again: a board that was killed would not know
            self._board.close.remote()


class _Source(Searcher):
    """The desk's trials, as Tune asks for them."""

    def __init__(self, desk: _Desk, board: str) -> None:
        super().__init__()
        self._desk, self._board = desk, board

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with _or_stop():
            spec = self._desk.next()
        if spec is not None:
            return {"spec": spec, "board": self._board}
        return None if self._desk.busy else Searcher.FINISHED

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def on_trial_complete(self, *args: Any, **kwargs: Any) -> None:
        """`_Booking` tells the desk: it sees the trial, not only its last result."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its arguments for a restore that segray does not use."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("segray resumes from its own records")


class _Booking(TrialProgressCallback):
    """Tells the desk what Tune says of trials.

    It stands in the place of Tune's own callback that prints, which would otherwise be added.
    """

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its arguments for a restore that segray does not use."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        with _or_stop():
            self._desk.look_round()

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        with _or_stop():
            self._desk.started(trial.config["spec"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:  # else the trial's last word, which has no metrics
            with _or_stop():
                self._desk.epoch(trial.config["spec"], result)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        with _or_stop():
            self._desk.ended(trial.config["spec"])

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        path = Path(trial.error_file or "")
        account = path.read_text() if path.is_file() else "worker process has died"
        with _or_stop():
            self._desk.failed(trial.config["spec"], account)

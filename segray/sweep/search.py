"""What is to be run next, and what became of it: the search with its study, or a fixed list."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from segray.config import (
    Assignment,
    RequestError,
    SweepConfig,
    WorkError,
    grid,
    satisfied,
    trial_config,
    trial_count,
)
from segray.data import data_version
from segray.sweep import space
from segray.sweep.budget import Ledger, longest
from segray.sweep.placement import Plan
from segray.sweep.progress import count
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import (
    Stage,
    TrialResult,
    TrialSpec,
    outcome_of,
    ranked,
    read_config,
    read_outcome,
    read_second_try,
    write_outcome,
)
from segray.train import kept_records, read_records

NOTE_S = 60.0  # between two notes of how long the search has been at work
DRAWS = 1000  # of values for one trial, until `require` allows them


class Queue(Protocol):
    """Where the engine gets its trials, and whom it tells of them."""

    @property
    def closed(self) -> bool:
        """Whether running trials should end after their epoch."""

    @property
    def hopeless(self) -> bool:
        """Whether to stop at once, and leave running trials where they stand."""

    def next(self) -> TrialSpec | None:
        """The trial to start now; None: there is none, unless one that is running makes room."""

    def epoch(self, trial_id: str, epoch: int) -> None:
        """A running trial has finished an epoch."""

    def end(self, result: TrialResult) -> None:
        """A trial has ended."""


class Search:
    """A sweep's study: asked for each trial, told of what it did.

    Whoever opens it again, after a kill or a Ctrl-C, finds it as the records have it: trials that
    ended are told to the study and ranked, the others come first, under their own ids. What a
    trial draws depends on the seed, its number and what the study knew, so a sweep that was taken
    up again draws as one that was never stopped.
    """

    def __init__(self, config: SweepConfig, folder: RunFolder, stage: Plan) -> None:
        self.config, self.folder, self.stage = config, folder, stage
        self.results: list[TrialResult] = []
        self.failed = 0
        self._with_weights: set[str] = set()  # of the trials that ended
        _mend_journal(folder.study)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder.study))),
            study_name=folder.config().name,  # the folder may have been renamed since
            direction=config.metric.goal,
            load_if_exists=True,
        )
        if self.study.metric_names is None:
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                self.study.set_metric_names([config.metric.name])  # optuna-dashboard's axes
        gpus = stage.workers * stage.gpus_per_worker
        self.ledger = Ledger(config.budget, longest(config), gpus, folder.seconds_at_work())
        self._noted_s = self.ledger.seconds
        self.refusal: str | None = None  # why the budget let no further trial start, if it did not
        # What the first trials take as it stands.
        self.fixed = list(grid(config)) if config.method == "grid" else list(config.start_points)
        self.total = trial_count(config)
        self._seen = IntersectionSearchSpace(include_pruned=True)  # as TPE has it
        self.asked: dict[str, optuna.Trial] = {}
        self.unfinished: list[TrialSpec] = []
        for frozen in self.study.get_trials(deepcopy=False):
            self._take_up(frozen)
        if self.results:
            self._write()

    @property
    def too_many_failed(self) -> bool:
        """Whether budget.max_failed_trials is exceeded."""
        return self.failed > self.config.budget.max_failed_trials

    @property
    def closed(self) -> bool:
        return self.ledger.exhausted is not None

    @property
    def hopeless(self) -> bool:
        return self.too_many_failed

    @property
    def missing(self) -> int:
        """How many of the asked trials have not ended."""
        return self.total - len(self.results)

    def next(self) -> TrialSpec | None:
        if self.too_many_failed:
            return None
        if self.unfinished and not self.closed:
            spec = self.unfinished.pop(0)
            self.ledger.begin(spec.id)
            return spec
        if len(self.asked) == self.total and not self.unfinished:
            return None
        self.refusal = self.ledger.refusal()
        if self.refusal:
            return None
        trial_id = f"{len(self.asked):03d}"
        trial, assignment = self._draw(len(self.asked))
        trial.set_user_attr("assignment", assignment)
        trial.set_user_attr("trial", trial_id)  # from here on the trial counts
        self.asked[trial_id] = trial
        self.folder.save()
        self.ledger.begin(trial_id)
        return self._spec(trial_id, assignment)

    def epoch(self, trial_id: str, epoch: int) -> None:
        self.ledger.epoch(trial_id, epoch)
        if self.ledger.seconds > self._noted_s + NOTE_S:
            self._note_seconds()

    def end_unfinished(self) -> None:
        """Book trials that began before, and that the budget lets not go on, as they stand."""
        for spec in self.unfinished:
            self.folder.collect(spec.folder, weights=True)
            # An epoch without its checkpoint, as a kill may leave one, has no weights to offer.
            records = kept_records(spec.folder)
            if records:
                outcome = outcome_of(records, "budget", "the sweep's budget was used up")
                write_outcome(spec.folder, outcome)
                self.folder.save_training(spec.folder, "outcome.json")
                self._book(TrialResult(spec.id, spec.folder, spec.assignment, outcome))
        self.unfinished.clear()
        self._write()

    def end(self, result: TrialResult) -> None:
        self._book(result)
        self._write()

    def _take_up(self, frozen: optuna.trial.FrozenTrial) -> None:
        """Put a trial of the study where its records say it stands."""
        trial_id = frozen.user_attrs.get("trial")
        if trial_id is None:  # killed between two draws: it is drawn again
            if not frozen.state.is_finished():
                self.study.tell(frozen.number, state=TrialState.FAIL)
            return
        self.asked[trial_id] = optuna.Trial(self.study, frozen._trial_id)
        assignment = frozen.user_attrs["assignment"]
        folder = self.folder.trial(trial_id)
        outcome = read_outcome(folder)
        if outcome is None:
            records = read_records(folder / "metrics.jsonl")
            seconds = sum(record["time/epoch_s"] for record in records)
            self.ledger.wait(trial_id, seconds, len(records))
            self.unfinished.append(self._spec(trial_id, assignment))
        else:
            self._book(TrialResult(trial_id, folder, assignment, outcome))

    def _draw(self, number: int) -> tuple[optuna.Trial, Assignment]:
        """Values that `require` allows; those that it does not stand in the study as failed."""
        fixed = self.fixed[number] if number < len(self.fixed) else {}
        for attempt in range(DRAWS):
            self.study.sampler = space.sampler(self.config, number, fixed, attempt, self._seen)
            trial = self.study.ask()
            assignment = space.suggest(trial, self.config.parameters)
            if satisfied(self.config, assignment):
                return trial, assignment
            trial.set_user_attr("refused", [number, attempt])
            self.study.tell(trial, state=TrialState.FAIL)
        raise WorkError(
            f"require: none of {DRAWS} draws for trial {number:03d} met it; widen parameters or "
            "require"
        )

    def _spec(self, trial_id: str, assignment: Mapping[str, Any]) -> TrialSpec:
        path = self.folder.trial(trial_id)
        return make_spec(
            self.config, self.folder, self.stage, trial_id, path, assignment, self.config.seed
        )

    def _book(self, result: TrialResult) -> None:
        self.results.append(result)
        self.ledger.end(result.id, result.outcome)
        self._with_weights.add(result.id)
        state, objective = result.outcome.state, result.outcome.objective
        failed = state == "failed" or (objective is None and state != "diverged")
        self.failed += failed
        trial = self.asked[result.id]
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        if frozen.state.is_finished():
            return
        for record in read_records(result.folder / "metrics.jsonl"):
            if record["epoch"] not in frozen.intermediate_values:  # a booking that was killed
                trial.report(record["objective"], record["epoch"])
        trial.set_user_attr("state", "failed" if failed else state)  # Optuna has fewer
        for name in ("reason", "best_epoch", "epochs", "seconds"):  # for optuna-dashboard
            trial.set_user_attr(name, getattr(result.outcome, name))
        if failed:
            self.study.tell(trial, state=TrialState.FAIL)
        elif state == "pruned" or result.outcome.broken:
            # TPE ranks a pruned trial by how far it came, below all that were not; one without any
            # epoch last of all. That is what a diverged trial deserves, without a made-up value.
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, objective)

    def _note_seconds(self) -> None:
        self._noted_s = self.ledger.seconds
        self.folder.write_seconds_at_work(self._noted_s)

    def _write(self) -> None:
        """The leaderboard; and drop the checkpoints that nothing will ask for: all but the best
        trials' best.
        """
        results = ranked(self.results, self.config.metric.goal)
        self.folder.write_leaderboard(results, self.config.metric.goal)
        self._note_seconds()
        kept = results[: self.config.keep_trials]
        best = {r.id for r in kept if r.outcome.state != "failed"}
        for trial_id in self._with_weights - best:
            self.folder.drop_checkpoint(trial_id)
        self._with_weights &= best
        self.folder.save()


class FixedList:
    """Given trials, one after the other, without a study.

    Those that had ended stay as they are; those that had failed get another chance.
    """

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        self._waiting: list[TrialSpec] = []
        self.results: list[TrialResult] = []
        for spec in specs:
            outcome = read_outcome(spec.folder)
            if outcome is None or outcome.state == "failed":
                self._waiting.append(spec)
            else:
                self.results.append(TrialResult(spec.id, spec.folder, spec.assignment, outcome))

    @property
    def missing(self) -> int:
        """How many trials have not ended."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return False

    @property
    def hopeless(self) -> bool:
        return False

    def next(self) -> TrialSpec | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch(self, trial_id: str, epoch: int) -> None:
        """No budget is kept."""

    def end(self, result: TrialResult) -> None:
        self.results.append(result)


def _mend_journal(path: Path) -> None:
    """Take away what a killed sweep can leave in the study's journal: half a line, and its lock.

    Whoever calls this holds the run folder, so that nobody else writes.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


def make_spec(
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    trial_id: str,
    path: Path,
    assignment: Mapping[str, Any],
    seed: int,
    what: Stage = "trial",
) -> TrialSpec:
    """A trial of `config` as one process can be given it.

    One that was begun before keeps the config that it began with: it decides the numbers.
    """
    begun = read_config(path)
    if begun is not None and (begun.workers, begun.gpus_per_worker) != (
        stage.workers,
        stage.gpus_per_worker,
    ):
        raise RequestError(
            f"trial {trial_id} was begun on {count(begun.workers, 'worker')} with "
            f"{begun.gpus_per_worker:g} GPUs each, and here it would have "
            f"{count(stage.workers, 'worker')} with {stage.gpus_per_worker:g}: other numbers. "
            "Go on with it on a machine like the first, or begin anew under another name="
        )
    return TrialSpec(
        id=trial_id,
        folder=path,
        config=begun
        or trial_config(
            config,
            assignment,
            seed=seed,
            workers=stage.workers,
            gpus_per_worker=stage.gpus_per_worker,
            threads=stage.threads,
        ),
        assignment=assignment,
        sweep=config.name,
        run_id=f"{folder.sweep_id}-{trial_id}",
        run_folder=folder.path,
        wandb=config.tracking.wandb.model_dump(),
        cpus=stage.threads,
        stage=what,
        **read_second_try(path),
        remote=folder.remote.url if folder.remote else None,
        lease=folder.lease_id,
        keeps_diverged=config.failure.on_divergence == "keep",
        data_version=data_version(config.data),
    )

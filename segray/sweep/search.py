"""What is to be run next, and what became of it: the search with its study, or a fixed list."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from segray.config import SweepConfig, trial_config, trial_count
from segray.sweep import space
from segray.sweep.cluster import Plan
from segray.sweep.records import RunFolder, TrialResult, TrialSpec, ranked

KEEP_CHECKPOINTS = 3  # the best trials' weights stay on disk


class Queue(Protocol):
    """Where the engine gets its trials, and whom it tells of them."""

    @property
    def closed(self) -> bool:
        """Whether running trials should end now."""

    def next(self) -> TrialSpec | None:
        """The trial to start now; None: there will be no further one."""

    def epoch(self, trial_id: str, epoch: int, objective: float) -> None:
        """A trial has finished an epoch."""

    def end(self, result: TrialResult) -> None:
        """A trial has ended."""


class Search:
    """A sweep's study: asked for each trial, told of what it did."""

    def __init__(self, config: SweepConfig, folder: RunFolder, stage: Plan) -> None:
        self.config, self.folder, self.stage = config, folder, stage
        self.deadline = time.time() + 3600 * config.budget.hours if config.budget.hours else None
        self.results: list[TrialResult] = []
        self.failed = 0
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder.study))),
            study_name=config.name,
            direction=config.metric.goal,
            sampler=space.sampler(config),
        )
        for point in config.start_points:
            self.study.enqueue_trial(space.enqueued(point, config.parameters))
        self.asked: dict[str, optuna.Trial] = {}

    @property
    def too_many_failed(self) -> bool:
        """Whether budget.max_failed_trials is exceeded."""
        return self.failed > self.config.budget.max_failed_trials

    @property
    def closed(self) -> bool:
        return self.too_many_failed

    def next(self) -> TrialSpec | None:
        late = self.deadline is not None and time.time() > self.deadline
        if late or self.closed or len(self.asked) == trial_count(self.config):
            return None
        trial = self.study.ask()
        trial_id = f"{trial.number:03d}"
        self.asked[trial_id] = trial
        assignment = space.suggest(trial, self.config.parameters)
        path = self.folder.trial(trial_id)
        return make_spec(
            self.config, self.folder, self.stage, trial_id, path, assignment, self.config.seed
        )

    def epoch(self, trial_id: str, epoch: int, objective: float) -> None:
        self.asked[trial_id].report(objective, epoch)

    def end(self, result: TrialResult) -> None:
        self.results.append(result)
        state, objective = result.outcome.state, result.outcome.objective
        trial = self.asked[result.id]
        if state == "failed" or (objective is None and state != "diverged"):
            self.failed += 1
            self.study.tell(trial, state=TrialState.FAIL)
        elif state in ("pruned", "diverged"):
            # TPE ranks a pruned trial by how far it came, below all that were not; one without any
            # epoch last of all. That is what a diverged trial deserves, without a made-up value.
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            assert objective is not None
            self.study.tell(trial, objective)
        self.folder.write_leaderboard(self.results, self.config.metric.goal)
        self._tidy()

    def _tidy(self) -> None:
        """Drop the checkpoints that nothing will ask for: all but the best trials' best."""
        for place, result in enumerate(ranked(self.results, self.config.metric.goal)):
            if place >= KEEP_CHECKPOINTS or result.outcome.state == "failed":
                shutil.rmtree(result.folder / "checkpoint", ignore_errors=True)


class FixedList:
    """Given trials, one after the other, without a study."""

    def __init__(self, specs: Sequence[TrialSpec]) -> None:
        self._waiting = list(specs)
        self.results: list[TrialResult] = []

    @property
    def closed(self) -> bool:
        return False

    def next(self) -> TrialSpec | None:
        return self._waiting.pop(0) if self._waiting else None

    def epoch(self, trial_id: str, epoch: int, objective: float) -> None:
        pass

    def end(self, result: TrialResult) -> None:
        self.results.append(result)


def make_spec(
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    trial_id: str,
    path: Path,
    assignment: Mapping[str, Any],
    seed: int,
    scores_test: bool = False,
) -> TrialSpec:
    """A trial of `config` as one process can be given it."""
    return TrialSpec(
        id=trial_id,
        folder=path,
        config=trial_config(
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
        scores_test=scores_test,
    )

"""The final stage: the winner again with other seeds, scored on test as nothing else is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna

from segray.config import SweepConfig
from segray.sweep.placement import Plan
from segray.sweep.progress import Screen, count
from segray.sweep.records import RunFolder
from segray.sweep.search import FixedList, make_spec
from segray.sweep.trial_files import Stage, TrialResult, TrialSpec, ranked, read_assignment


def run_final(
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    trials: Sequence[TrialResult],
    screen: Screen,
) -> list[TrialResult]:
    """Train the winner again once a seed and score it on test; best on val first."""
    assert config.final is not None
    seeds = config.final.seeds
    winner = trials[0]
    if config.final.top_k > 1:
        winner = _choose(config, folder, stage, trials[: config.final.top_k], screen)
    before = [read_assignment(path) for path in folder.path.glob("final/seed_*")]
    if any(begun and begun != winner.assignment for begun in before):
        aside = folder.set_final_aside()
        screen.say(
            f"trials that were added found a new winner, {winner.id}: the final stage of the "
            f"earlier one is kept in {aside.name}/, and test is scored once more"
        )
    if config.final.top_k > 1:
        screen.say(f"final: trial {winner.id}, trained with every seed, scored on test: {stage}")
        for seed in seeds:
            folder.promote(winner.id, seed)
    else:
        screen.say(
            f"final: trial {winner.id} trained again with {count(len(seeds), 'seed')} and scored "
            f"on test: {stage}"
        )
    paths = [(folder.final(seed), seed) for seed in seeds]
    for path, _ in paths:
        folder.collect(path, weights=True)  # of one that had ended, for the report
    queue = FixedList(_specs(config, folder, stage, winner, paths, "final"))
    run_list(queue, config, folder, stage, screen)
    results = ranked(queue.results, config.metric.goal)
    for result in results:
        if not (result.folder / "metrics.json").is_file():
            screen.say(f"{result.id} has no score on test: {result.outcome.reason}")
    return results


def _choose(
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    trials: Sequence[TrialResult],
    screen: Screen,
) -> TrialResult:
    """Train the best trials again once a seed; the one whose mean on val is best.

    One that has no result with some seed comes after all that have.
    """
    assert config.final is not None
    seeds = config.final.seeds
    able = [trials[0], *(trial for trial in trials[1:] if not trial.outcome.broken)]
    # Once made, the choice stands: test may have been scored since.
    if (before := folder.choice([trial.id for trial in able])) is not None:
        return next(trial for trial in able if trial.id == before)
    screen.say(
        f"candidates: the best {count(len(able), 'trial')} trained again with "
        f"{count(len(seeds), 'seed')}: {stage}"
    )
    specs = []
    for trial in able:
        paths = [(folder.candidate(trial.id, seed), seed) for seed in seeds]
        specs += _specs(config, folder, stage, trial, paths, "candidate")
    queue = FixedList(specs)
    run_list(queue, config, folder, stage, screen)
    values: dict[str, list[float]] = {trial.id: [] for trial in able}
    for result in queue.results:
        if result.outcome.best_value is not None and not result.outcome.broken:
            values[result.folder.parent.name].append(result.outcome.best_value)
    sign = 1 if config.metric.goal == "maximize" else -1

    def quality(trial: TrialResult) -> tuple[int, float]:
        found = values[trial.id]
        return len(found), sign * statistics.mean(found) if found else 0.0

    for trial in able:
        told = " ".join(f"{value:.4f}" for value in values[trial.id]) or "no result"
        screen.say(f"  trial {trial.id}: {config.metric.name} {told}")
    winner = max(able, key=quality)
    folder.write_choice(winner.id, [trial.id for trial in able])
    return winner


def _specs(
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    trial: TrialResult,
    paths: Sequence[tuple[Path, int]],
    what: Stage,
) -> list[TrialSpec]:
    """Trainings of a trial's parameters, each with a folder and a seed of its own."""
    return [
        make_spec(config, folder, stage, folder.final_id(path), path, trial.assignment, seed, what)
        for path, seed in paths
    ]


def run_list(
    queue: FixedList, config: SweepConfig, folder: RunFolder, stage: Plan, screen: Screen
) -> None:
    """Run given trials to their own ends: nothing prunes them."""
    from segray.sweep.engine import run_trials

    if not queue.missing:
        return
    with screen.trials(queue.missing + len(queue.results), queue.results):
        run_trials(
            queue,
            stage,
            screen,
            folder=folder,
            failure=config.failure,
            goal=config.metric.goal,
            pruner=optuna.pruners.NopPruner(),
        )

"""A sweep from its config to its winner: Ray Tune runs the trials, Optuna chooses them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from segray.config import SweepConfig, WorkError, trial_config
from segray.data import Dataset, open_dataset
from segray.models import save_model
from segray.sweep import space
from segray.sweep.cluster import Plan, plan, ray_cluster
from segray.sweep.progress import Screen
from segray.sweep.records import RunFolder, TrialResult, ranked
from segray.sweep.search import FixedList, Search, make_spec
from segray.sweep.trial import run_trial
from segray.train import Metrics, Stop, build_trial_model, checkpoint


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    folder: Path
    trials: tuple[TrialResult, ...]  # best first
    final: tuple[TrialResult, ...]

    @property
    def best(self) -> TrialResult:
        """The winner of the search."""
        return self.trials[0]


def run_sweep(config: SweepConfig, screen: Screen | None = None) -> SweepResult:
    """Run a sweep to its end and return what it found.

    Raises RequestError for a request that cannot be met, WorkError where no trial could be scored.
    """
    screen = screen or _screen(config)
    folder, dataset = _prepare(config, screen)
    with ray_cluster() as cluster:
        search = plan(config.resources, cluster, config.run_cap)
        final = _final_plan(config, cluster)
        screen.say(
            f"{config.run_cap} trials of up to {config.train.epochs} epochs by {config.method}, "
            f"{search.concurrent} at a time: {_describe(search)}"
        )
        trials = _search(config, folder, search, screen)
        if not trials or trials[0].outcome.best_value is None:
            raise WorkError(_nothing_scored(trials, folder))
        finals = _final(config, folder, final, trials[0], screen) if final else ()
    _export(config, folder, dataset, (finals or trials)[0])
    result = SweepResult(folder.path, tuple(trials), tuple(finals))
    _summarise(config, result, screen)
    return result


def run_training(config: SweepConfig, screen: Screen | None = None) -> SweepResult:
    """One training with the file's own values, without search; leaves what a trial leaves."""
    screen = screen or _screen(config)
    folder, dataset = _prepare(config, screen)
    alone = config.resources.model_copy(update={"max_concurrent": 1})
    if config.resources.workers > 1:
        with ray_cluster() as cluster:
            chosen = plan(alone, cluster, 1)
            spec = make_spec(config, folder, chosen, "000", folder.trial("000"), {}, config.seed)
            queue = FixedList([spec])
            _run_list(queue, 1, config, folder, chosen, screen)
            results = queue.results
    else:
        chosen = plan(alone, _this_machine(), 1)
        spec = make_spec(config, folder, chosen, "000", folder.trial("000"), {}, config.seed)
        with screen.trials(1):
            screen.start(spec.id, {})

            def tell(metrics: Metrics) -> Stop | None:
                screen.epoch(spec.id, metrics["epoch"], metrics["value"], metrics["best"])
                return None

            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            results = [TrialResult(spec.id, spec.folder, {}, run_trial(spec, device, tell))]
            screen.end(results[0])
    folder.write_leaderboard(results, config.metric.goal)
    if results[0].outcome.best_value is None:
        raise WorkError(_nothing_scored(results, folder))
    _export(config, folder, dataset, results[0])
    result = SweepResult(folder.path, tuple(results), ())
    _summarise(config, result, screen)
    return result


def _screen(config: SweepConfig) -> Screen:
    return Screen(config.metric.name, config.metric.goal, config.train.epochs)


def _prepare(config: SweepConfig, screen: Screen) -> tuple[RunFolder, Dataset]:
    """Everything that can be wrong before Ray starts, the cheapest first; then the run folder."""
    RunFolder.check_free(config)
    screen.say(f"{config.name}: {config.model.name} on {config.data.format}")
    with screen.bars() as progress:
        dataset = open_dataset(config.data, progress)
    splits = dataset.splits
    screen.say(
        f"images {len(splits.train)} train, {len(splits.val)} val, {len(splits.test)} test at "
        f"{config.data.size[0]}x{config.data.size[1]}, {len(dataset.classes)} classes"
    )
    fixed = trial_config(config, {}, seed=config.seed, workers=1, gpus_per_worker=0, threads=1)
    # Fetches pretrained weights once, before trials ask for them side by side.
    parameters = sum(p.numel() for p in build_trial_model(fixed, dataset).parameters())
    screen.say(f"model {config.model.name}, {parameters / 1e6:.2f}M parameters")
    return RunFolder.create(config), dataset


def _final_plan(config: SweepConfig, cluster: Mapping[str, float]) -> Plan | None:
    """Seeds side by side where they fit, and every core used."""
    if config.final is None:
        return None
    workers, seeds = config.final.workers, len(config.final.seeds)
    side_by_side = max(1, min(seeds, int(cluster.get("CPU", 1)) // workers))
    resources = config.resources.model_copy(
        update={"workers": workers, "max_concurrent": side_by_side}
    )
    return plan(resources, cluster, seeds)


def _this_machine() -> dict[str, float]:
    return {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}


def _search(
    config: SweepConfig, folder: RunFolder, stage: Plan, screen: Screen
) -> list[TrialResult]:
    """Run the sweep's trials; their results, best first."""
    from segray.sweep.engine import run_trials

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with screen.trials(config.run_cap), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        search = Search(config, folder, stage)
        run_trials(
            search,
            stage,
            screen,
            board=f"segray-{folder.sweep_id}-search",
            scratch=folder.path / ".ray",
            total=config.run_cap,
            goal=config.metric.goal,
            pruner=space.pruner(config),
            deadline=search.deadline,
        )
    results = ranked(search.results, config.metric.goal)
    if search.too_many_failed:
        screen.leaderboard(results, "Trials")
        reasons = sorted({r.outcome.reason for r in results if r.outcome.state == "failed"})
        raise WorkError(
            f"{search.failed} trials failed, more than budget.max_failed_trials="
            f"{config.budget.max_failed_trials}: {'; '.join(reasons)}\n"
            f"Each one's log is in {folder.path}/trials/<id>/log.txt"
        )
    if len(results) < config.run_cap:
        screen.say(f"budget.hours={config.budget.hours} is used up after {len(results)} trials")
    return results


def _final(
    config: SweepConfig, folder: RunFolder, stage: Plan, winner: TrialResult, screen: Screen
) -> list[TrialResult]:
    """Train the winner again once a seed and score it on test; best on val first."""
    assert config.final is not None
    seeds = config.final.seeds
    screen.say(
        f"final: trial {winner.id} trained again with {len(seeds)} "
        f"seed{'s' if len(seeds) > 1 else ''} and scored on test: {_describe(stage)}"
    )
    specs = [
        make_spec(
            config,
            folder,
            stage,
            f"final-seed{seed}",
            folder.final(seed),
            winner.assignment,
            seed,
            scores_test=True,
        )
        for seed in seeds
    ]
    queue = FixedList(specs)
    _run_list(queue, len(specs), config, folder, stage, screen)
    broken = [result for result in queue.results if result.outcome.state == "failed"]
    if broken:
        raise WorkError(
            f"{broken[0].id} failed: {broken[0].outcome.reason}\n"
            f"Its log is {broken[0].folder}/log.txt; the search itself is in leaderboard.csv"
        )
    return ranked(queue.results, config.metric.goal)


def _run_list(
    queue: FixedList,
    total: int,
    config: SweepConfig,
    folder: RunFolder,
    stage: Plan,
    screen: Screen,
) -> None:
    """Run given trials to their own ends: nothing prunes them."""
    from segray.sweep.engine import run_trials

    with screen.trials(total):
        run_trials(
            queue,
            stage,
            screen,
            board=f"segray-{folder.sweep_id}-list",
            scratch=folder.path / ".ray",
            total=total,
            goal=config.metric.goal,
            pruner=optuna.pruners.NopPruner(),
        )


def _export(config: SweepConfig, folder: RunFolder, dataset: Dataset, best: TrialResult) -> None:
    """best/: the weights of the best training, as predict and transformers load them."""
    fixed = trial_config(config, best.assignment, seed=0, workers=1, gpus_per_worker=0, threads=1)
    model = build_trial_model(fixed, dataset)
    checkpoint.load(best.folder / "checkpoint" / "best.safetensors", model)
    save_model(model, folder.path / "best", class_names=dataset.classes)


def _summarise(config: SweepConfig, result: SweepResult, screen: Screen) -> None:
    """The leaderboard, the winner, and where everything is."""
    best, outcome = result.best, result.best.outcome
    screen.leaderboard(
        result.trials, "\nTrials, best first" if len(result.trials) > 1 else "\nTrial"
    )
    screen.leaderboard(result.final, "\nFinal") if result.final else None
    out = screen.console.print
    out(
        f"\nBest: trial {best.id}, {config.metric.name} {outcome.best_value:.4f} "
        f"at epoch {outcome.best_epoch} of {outcome.epochs}"
    )
    for name, value in best.assignment.items():
        out(f"  {name}: {value}")
    for final in result.final:
        scored = json.loads((final.folder / "metrics.json").read_text())
        out(f"Test, {final.id}: mIoU {scored['test/miou']:.4f}")
    folder = result.folder
    out(f"\nEverything is in {folder}")
    out("  leaderboard.csv   a row a trial")
    out("  trials/<id>/      config.yaml, metrics.jsonl, log.txt of each")
    if result.final:
        out("  final/seed_<k>/   test metrics, one confusion matrix an image")
    out("  best/             the winner's weights")
    if (folder / "wandb").is_dir():
        out(f"  wandb/            W&B runs; see them with: wandb leet {folder}/wandb")


def _describe(stage: Plan) -> str:
    gpus = f", {stage.gpus_per_worker:g} GPU" if stage.gpus_per_worker else ""
    workers = f"{stage.workers} worker{'s' if stage.workers > 1 else ''}"
    return f"{workers} of {stage.threads} CPU{'s' if stage.threads > 1 else ''}{gpus} each"


def _nothing_scored(trials: Sequence[TrialResult], folder: RunFolder) -> str:
    reasons = sorted({trial.outcome.reason for trial in trials})
    return (
        f"no trial finished an epoch: {'; '.join(reasons)}\n"
        f"Each one's log is in {folder.path}/trials/<id>/log.txt"
    )

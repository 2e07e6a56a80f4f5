"""A sweep from its config to its winner: Ray Tune runs the trials, Optuna chooses them."""

from __future__ import annotations

import contextlib
import json
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch

from segray.config import (
    Interrupted,
    RequestError,
    SegrayError,
    SweepConfig,
    WorkError,
    reachable,
    trial_config,
    trial_count,
)
from segray.data import Dataset, cores, open_dataset, read_splits
from segray.models import save_model
from segray.sweep import space
from segray.sweep.cluster import Plan, plan, ray_cluster
from segray.sweep.progress import Screen
from segray.sweep.records import RunFolder, TrialResult, TrialSpec, ranked
from segray.sweep.search import FixedList, Search, make_spec
from segray.sweep.trial import run_trial, trial_device
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
    dataset = _prepare(config, screen)
    with _interruptible(config), ray_cluster() as cluster:
        search = plan(config.resources, cluster, trial_count(config))
        final = _final_plan(config, cluster)
        folder = RunFolder.create(config)
        screen.say(
            f"{_count(trial_count(config), 'trial')} of up to "
            f"{_count(config.train.epochs, 'epoch')} by {config.method}, "
            f"{search.concurrent} at a time: {_describe(search)}"
        )
        if config.final is not None:
            screen.say(f"then the winner again with {_count(len(config.final.seeds), 'seed')}")
        trials = _search(config, folder, search, screen)
        _require_score(trials, folder)
        finals = _final(config, folder, final, trials[0], screen) if final else []
    scored = [result for result in finals if (result.folder / "metrics.json").is_file()]
    kept = (scored or trials)[0]
    _export(config, folder, dataset, kept)
    result = SweepResult(folder.path, tuple(trials), tuple(finals))
    _summarise(config, result, kept, screen)
    if finals and not scored:
        raise WorkError(f"the final stage failed: {finals[0].outcome.reason}")
    return result


def run_training(config: SweepConfig, screen: Screen | None = None) -> SweepResult:
    """One training with the file's own values, without search; leaves what a trial leaves."""
    screen = screen or _screen(config)
    dataset = _prepare(config, screen)
    alone = config.resources.model_copy(update={"max_concurrent": 1})
    on_workers = config.resources.workers > 1
    machines = ray_cluster() if on_workers else contextlib.nullcontext(_this_machine())
    with _interruptible(config), machines as machine:
        stage = plan(alone, machine, 1)
        folder = RunFolder.create(config)
        spec = make_spec(config, folder, stage, "000", folder.trial("000"), {}, config.seed)
        queue = FixedList([spec])
        if on_workers:
            _run_list(queue, 1, config, folder, stage, screen)
        else:
            _run_here(spec, queue, screen)
    folder.write_leaderboard(queue.results, config.metric.goal)
    _require_score(queue.results, folder)
    _export(config, folder, dataset, queue.results[0])
    result = SweepResult(folder.path, tuple(queue.results), ())
    _summarise(config, result, result.best, screen)
    return result


@contextlib.contextmanager
def _interruptible(config: SweepConfig) -> Iterator[None]:
    """Ctrl-C ends with a message that says where everything is, not with a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        folder = Path(config.storage) / config.name
        raise Interrupted(f"interrupted; trials that had ended are in {folder}") from None


def _run_here(spec: TrialSpec, queue: FixedList, screen: Screen) -> None:
    """A trial of one worker in this process, without Ray: easy to debug and to profile."""

    def tell(metrics: Metrics) -> Stop | None:
        screen.epoch(spec.id, metrics["epoch"], metrics["value"], metrics["best"])
        return None

    with screen.trials(1):
        screen.start(spec.id, {})
        try:
            outcome = run_trial(spec, trial_device(spec), tell)
        except SegrayError:
            raise
        except Exception as error:
            log = spec.folder / "log.txt"
            raise WorkError(
                f"{type(error).__name__}: {error}\nThe whole story is in {log}"
            ) from error
        result = TrialResult(spec.id, spec.folder, {}, outcome)
        screen.end(result)
        queue.end(result)


def _screen(config: SweepConfig) -> Screen:
    return Screen(config.metric.name, config.metric.goal, config.train.epochs)


def _prepare(config: SweepConfig, screen: Screen) -> Dataset:
    """Everything that can be found wrong before Ray starts, the cheapest first."""
    RunFolder.check_free(config)
    screen.say(f"{config.name}: {config.model.name} on {config.data.format}")
    with screen.bars() as progress:
        _, splits = read_splits(config.data, progress)
        _check_steps(config, len(splits.train))
        fixed = trial_config(config, {}, seed=config.seed, workers=1, gpus_per_worker=0, threads=1)
        # Fetches pretrained weights once, before trials ask for them side by side.
        parameters = sum(p.numel() for p in build_trial_model(fixed).parameters())
        dataset = open_dataset(config.data, progress)
    screen.say(
        f"images {len(splits.train)} train, {len(splits.val)} val, {len(splits.test)} test at "
        f"{config.data.size[0]}x{config.data.size[1]}, {len(dataset.classes)} classes"
    )
    screen.say(f"model {config.model.name}, {parameters / 1e6:.2f}M parameters")
    return dataset


def _check_steps(config: SweepConfig, images: int) -> None:
    """Raises RequestError for a batch or a warm-up that train's number of images cannot fill."""
    batch = max(reachable(config, "train.batch_size"))
    if batch > images:
        raise RequestError(
            f"train.batch_size: a batch of {batch} needs that many images; train has {images}"
        )
    epochs = min(reachable(config, "train.epochs"))
    warmup = max(reachable(config, "train.schedule.warmup_steps"))
    steps = epochs * (images // batch)
    if warmup >= steps:
        raise RequestError(
            f"train.schedule.warmup_steps: {warmup} steps of warm-up, and training has {steps}: "
            f"{epochs} epochs x ({images} images // a batch of {batch}). The learning rate would "
            f"never be reached: lower it, as in train.schedule.warmup_steps={steps // 10}"
        )


def _final_plan(config: SweepConfig, cluster: Mapping[str, float]) -> Plan | None:
    """Seeds side by side where they fit, and every core used."""
    if config.final is None:
        return None
    workers, seeds = config.final.workers, len(config.final.seeds)
    side_by_side = max(1, min(seeds, int(cluster.get("CPU", 1)) // workers))
    limit = config.resources.max_concurrent
    if limit != "auto":
        side_by_side = min(side_by_side, limit)
    resources = config.resources.model_copy(
        update={"workers": workers, "max_concurrent": side_by_side}
    )
    return plan(resources, cluster, seeds)


def _this_machine() -> dict[str, float]:
    return {"CPU": cores(), "GPU": torch.cuda.device_count()}


def _search(
    config: SweepConfig, folder: RunFolder, stage: Plan, screen: Screen
) -> list[TrialResult]:
    """Run the sweep's trials; their results, best first."""
    from segray.sweep.engine import run_trials

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with screen.trials(trial_count(config)), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        search = Search(config, folder, stage)
        run_trials(
            search,
            stage,
            screen,
            board=f"segray-{folder.sweep_id}-search",
            scratch=folder.path / ".ray",
            total=trial_count(config),
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
    if len(results) < trial_count(config):
        screen.say(f"budget.hours={config.budget.hours} is used up after {len(results)} trials")
    return results


def _final(
    config: SweepConfig, folder: RunFolder, stage: Plan, winner: TrialResult, screen: Screen
) -> list[TrialResult]:
    """Train the winner again once a seed and score it on test; best on val first."""
    assert config.final is not None
    seeds = config.final.seeds
    screen.say(
        f"final: trial {winner.id} trained again with {_count(len(seeds), 'seed')} and scored on "
        f"test: {_describe(stage)}"
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
    results = ranked(queue.results, config.metric.goal)
    for result in results:
        if not (result.folder / "metrics.json").is_file():
            screen.say(f"{result.id} has no score on test: {result.outcome.reason}")
    return results


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
    model = build_trial_model(fixed)
    checkpoint.load(best.folder / "checkpoint" / "best.safetensors", model)
    save_model(model, folder.path / "best", class_names=dataset.classes)


def _summarise(config: SweepConfig, result: SweepResult, kept: TrialResult, screen: Screen) -> None:
    """The leaderboard, the winner, and where everything is; `kept` is what best/ holds."""
    best, outcome = result.best, result.best.outcome
    screen.leaderboard(result.trials, "Trials, best first" if len(result.trials) > 1 else "Trial")
    if result.final:
        screen.leaderboard(result.final, "Final")
    screen.line(
        f"\nBest: trial {best.id}, {config.metric.name} {outcome.best_value:.4f} "
        f"at epoch {outcome.best_epoch} of {outcome.epochs}"
    )
    for name, value in best.assignment.items():
        screen.line(f"  {name}: {value}")
    scored = [
        json.loads(path.read_text())["test/miou"]
        for final in result.final
        if (path := final.folder / "metrics.json").is_file()
    ]
    if len(scored) == 1:
        screen.line(f"Test: mIoU {scored[0]:.4f}, of {kept.id}")
    elif scored:
        spread = f"{statistics.mean(scored):.4f} +- {statistics.stdev(scored):.4f}"
        screen.line(f"Test: mIoU {spread} (mean and standard deviation of {len(scored)} seeds)")
    failed = [trial.id for trial in result.trials if trial.outcome.state == "failed"]
    if failed:
        count = _count(len(failed), "trial")
        screen.line(f"Failed: {count} ({', '.join(failed)}): see trials/<id>/log.txt")
    folder = result.folder
    screen.line(f"\nEverything is in {folder}")
    screen.line("  leaderboard.csv   a row a trial")
    screen.line("  trials/<id>/      config.yaml, metrics.jsonl, log.txt of each")
    if scored:
        screen.line("  final/seed_<k>/   test metrics, one confusion matrix an image")
    screen.line(f"  best/             the weights of {kept.id}")
    if (folder / "wandb").is_dir():
        screen.line(f"  wandb/            W&B runs; see them with: wandb leet {folder}/wandb")


def _describe(stage: Plan) -> str:
    gpus = f", {stage.gpus_per_worker:g} GPU" if stage.gpus_per_worker else ""
    return f"{_count(stage.workers, 'worker')} of {_count(stage.threads, 'CPU')}{gpus} each"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _require_score(ranked_trials: Sequence[TrialResult], folder: RunFolder) -> None:
    """Raises WorkError where not even the best trial has a score and its weights."""
    if ranked_trials:
        best = ranked_trials[0].outcome
        if best.best_value is not None and best.state != "failed":
            return
    reasons = sorted({trial.outcome.reason for trial in ranked_trials})
    raise WorkError(
        f"no trial has a result: {'; '.join(reasons) or 'none was started'}\n"
        f"Each one's log is in {folder.path}/trials/<id>/log.txt"
    )

"""How long and how large a sweep will be: what `segray bench` measured, and the arithmetic on it.

Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import platform
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from segray.config import SweepConfig, TrialConfig, reachable, trial_config, trial_count
from segray.config.schema import Asha, Hyperband, Median, StopRule
from segray.data import cache_root, cores
from segray.sweep.budget import longest
from segray.sweep.placement import Plan, plan, plan_final, this_machine
from segray.sweep.progress import count
from segray.sweep.space import brackets
from segray.sweep.trial_files import write_text
from segray.train import autocast_type

FORMAT = 1
_DRAWN = 200  # at most so many trials stand for all that there are in `epochs_of` ...
_DRAWS = 20_000  # ... over and over, until so many were drawn
_SPEED = {"batch_size", "crop", "accumulate", "compile", "precision", "loss", "augment"}  # of train


@dataclass(frozen=True)
class Bounds:
    """What a GPU could do at most with a training step, and what was counted for it."""

    flops_per_image: float  # of matrix products and convolutions, forward and backward
    bytes_per_image: float  # that operations read and write, see segray.bench.bounds
    flops_per_s: float  # of a large matrix product, measured
    bytes_per_s: float  # of a large copy, measured

    @property
    def by_compute(self) -> float:
        """Images/s if nothing but arithmetic took time."""
        return self.flops_per_s / self.flops_per_image

    @property
    def by_bandwidth(self) -> float:
        """Images/s if nothing but moving data took time."""
        return self.bytes_per_s / self.bytes_per_image


@dataclass(frozen=True)
class Bench:
    """One worker of a trial with the file's own values, measured on one machine."""

    facts: dict[str, Any]  # what decides the speed, see `facts`
    parameters: int
    steps: int  # of training that the rates are from
    train_images_per_s: float  # loader and step together
    eval_images_per_s: float
    loader_images_per_s: float  # batches on the device, with nothing else to do
    model_images_per_s: float  # steps on one batch that is there
    data_wait: float  # share of training
    train_parts: dict[str, float]  # of a step, medians
    train_step_s: float  # median of the same steps
    eval_parts: dict[str, float]  # of a batch of evaluation, medians
    peak_bytes: int  # CPU: of the process; GPU: of its allocations there
    checkpoint_bytes: int  # last: weights and AdamW's moments
    weights_bytes: int  # best: weights alone
    checkpoint_s: float  # writing both
    record_bytes: int  # an epoch's line in metrics.jsonl
    bounds: Bounds | None  # of a GPU

    def epoch_s(self, images: tuple[int, int, int], workers: int) -> float:
        """An epoch of a trial with so many workers; `images` of train, val and test."""
        batch: int = self.facts["train"]["batch_size"]
        trained = images[0] // batch * batch
        training = trained / (self.train_images_per_s * workers)
        return training + images[1] / (self.eval_images_per_s * workers) + self.checkpoint_s


@dataclass(frozen=True)
class Estimate:
    """What a sweep will take."""

    epoch_s: float  # of a trial of the search
    search_s: float  # expected, see `epochs_of`
    search_most_s: float  # every trial runs to its last epoch
    final_s: float
    cache_bytes: int
    checkpoint_bytes: int  # at most
    record_bytes: int  # at most
    assumptions: tuple[str, ...]


def plan_here(config: SweepConfig) -> tuple[Plan, Plan | None]:
    """How the trials of the search and of the final stage share this machine, but for memory."""
    machine = this_machine()
    search = plan(config.resources, machine, trial_count(config))
    return search, plan_final(config.resources, config.final, machine) if config.final else None


def facts(config: SweepConfig, stage: Plan) -> dict[str, Any]:
    """Everything that decides how fast a trial with the file's own values is on this machine."""
    trial = own_trial(config, stage)
    train = trial.train.model_dump(mode="json", include=_SPEED)
    train["crop"] = list(trial.train.crop or trial.data.size)
    device = torch.device("cuda" if trial.gpus_per_worker else "cpu")
    bf16 = autocast_type(trial, device) is not None
    train["precision"] = "bf16" if bf16 else "fp32"
    here = cores()
    share = here // (stage.concurrent * stage.workers)
    native = trial.metric.evaluate_at == "native"  # then the masks' own size and format matter
    return {
        "format": FORMAT,
        "machine": {
            "cpu": _cpu(),
            "cores": here,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "torch": torch.__version__,
        },
        "workers": trial.workers,
        "threads": trial.threads,
        "cores": max(trial.threads, share),  # of a worker, when all places are taken
        "gpus_per_worker": trial.gpus_per_worker,
        "model": trial.model.model_dump(mode="json"),
        "size": list(trial.data.size),
        "classes": len(trial.data.class_names),
        "evaluate_at": trial.metric.evaluate_at,
        "masks": [trial.data.format, trial.data.root] if native else None,
        "train": train,
    }


def own_trial(config: SweepConfig, stage: Plan) -> TrialConfig:
    """The file's own values as a trial of a stage."""
    return trial_config(
        config,
        {},
        seed=config.seed,
        workers=stage.workers,
        gpus_per_worker=stage.gpus_per_worker,
        threads=stage.threads,
    )


def bench_path(known: dict[str, Any]) -> Path:
    """Where the bench of these facts is kept, below the cache root."""
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:20]
    return cache_root() / "bench" / f"{digest}.json"


def write_bench(bench: Bench) -> Path:
    """Keep a bench where `read_bench` finds it; returns the file."""
    path = bench_path(bench.facts)
    write_text(path, json.dumps(asdict(bench), indent=2) + "\n")
    return path


def read_bench(config: SweepConfig, stage: Plan) -> Bench | None:
    """The bench of this sweep on this machine, or None where there is none."""
    path = bench_path(facts(config, stage))
    if not path.is_file():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    bounds = raw.pop("bounds")
    return Bench(**raw, bounds=None if bounds is None else Bounds(**bounds))


def estimate(
    config: SweepConfig,
    bench: Bench,
    images: tuple[int, int, int],
    search: Plan,
    final: Plan | None,
) -> Estimate:
    """Time and size of the whole sweep; `images` of train, val and test."""
    trials, epochs = trial_count(config), longest(config)
    epoch_s = bench.epoch_s(images, search.workers)
    most = math.ceil(trials / search.concurrent) * epochs * epoch_s
    passed = epochs_of(trials, epochs, config.early_terminate)
    if config.budget.epochs is not None:
        passed, most = min(passed, config.budget.epochs), min(most, config.budget.epochs * epoch_s)
    # However many places there are, one trial runs to its end.
    expected = min(most, max(epochs, passed / search.concurrent) * epoch_s)
    if config.budget.hours is not None:  # running trials end after their epoch
        limit = 3600 * config.budget.hours + epoch_s
        expected, most = min(expected, limit), min(most, limit)
    if config.budget.gpu_hours is not None and search.gpus_per_worker:
        at_once = search.workers * search.gpus_per_worker * search.concurrent
        limit = 3600 * config.budget.gpu_hours / at_once + epoch_s
        expected, most = min(expected, limit), min(most, limit)
    final_s, trainings = 0.0, 0
    if final is not None and config.final is not None:
        trainings, seeds = config.final.trainings, len(config.final.seeds)
        scoring = images[2] / (bench.eval_images_per_s * final.workers)
        training = epochs * bench.epoch_s(images, final.workers)
        final_s = math.ceil(trainings / final.concurrent) * training
        final_s += math.ceil(seeds / final.concurrent) * scoring
    return Estimate(
        epoch_s=epoch_s,
        search_s=expected,
        search_most_s=most,
        final_s=final_s,
        cache_bytes=cache_bytes(config, sum(images)),
        checkpoint_bytes=checkpoint_bytes(config, bench.parameters, search.concurrent),
        record_bytes=(trials + trainings) * epochs * bench.record_bytes,
        assumptions=tuple(_assumptions(config, search, final)),
    )


def epochs_of(trials: int, epochs: int, rule: StopRule | None) -> float:
    """Epochs that are to be expected of all trials together, of up to `epochs` each.

    They come one after the other, as good as chance has it, and a better one is better at every
    epoch.
    """
    if rule is None:
        return float(trials * epochs)
    drawn = min(trials, _DRAWN)
    rounds = _DRAWS // drawn
    chance = random.Random(0)
    total = 0
    for _ in range(rounds):
        values = [chance.random() for _ in range(drawn)]
        if isinstance(rule, Median):
            total += sum(_ends_by_median(rule, epochs, values))
        else:
            total += sum(_ends_by_rungs(rule, epochs, values, chance))
    return total / rounds * trials / drawn


def _ends_by_median(rule: Median, epochs: int, values: Sequence[float]) -> Iterator[int]:
    """The epoch at which each trial ends: the first that counts, for one below the median."""
    finished: list[float] = []  # ascending
    for value in values:
        if len(finished) >= rule.min_trials and value < statistics.median(finished):
            yield rule.min_iter
        else:
            bisect.insort(finished, value)
            yield epochs


def _ends_by_rungs(
    rule: Asha | Hyperband, epochs: int, values: Sequence[float], chance: random.Random
) -> Iterator[int]:
    """The same with rungs: a trial goes on if it is among the best 1 / eta of those of its bracket
    that came there so far, or the best of fewer than eta: of few trials, more than 1 / eta go on.
    """
    parts = brackets(rule, epochs)
    shares = [share for share, _ in parts]
    seen: list[list[list[float]]] = [[[] for _ in rungs] for _, rungs in parts]  # ascending
    for value in values:
        part = chance.choices(range(len(parts)), shares)[0]
        ended = epochs
        for rung, others in zip(parts[part][1], seen[part], strict=True):
            bisect.insort(others, value)
            if value < others[-max(1, len(others) // rule.eta)]:
                ended = rung
                break
        yield ended


def cache_bytes(config: SweepConfig, images: int) -> int:
    """What the decoded images and masks take: three bytes a pixel and one."""
    return images * math.prod(config.data.size) * 4


def checkpoint_bytes(config: SweepConfig, parameters: int, at_once: int) -> int:
    """What a run folder's checkpoints take at most: float32 weights, and AdamW's two moments."""
    weights = 4 * parameters
    finals = config.final.trainings if config.final else 0
    running = 4 * weights  # best, and last with its moments
    return config.keep_trials * weights + max(at_once, finals) * running + (finals + 1) * weights


def time_in_words(found: Estimate) -> str:
    """The whole time of a sweep on one line."""
    whole = f"about {duration(found.search_s + found.final_s)}"
    if found.search_most_s > found.search_s:
        whole += f", at most {duration(found.search_most_s + found.final_s)}"
    final = f", {duration(found.final_s)} of it the final stage" if found.final_s else ""
    return f"{whole}{final}; {duration(found.epoch_s)} an epoch"


def duration(seconds: float) -> str:
    """0.4 s, 40 s, 12 min, 3 h 20 min, 4.2 days."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes < 48 * 60
        else f"{minutes / 1440:.1f} days"
    )


def _assumptions(config: SweepConfig, search: Plan, final: Plan | None) -> Iterator[str]:
    rule = config.early_terminate
    if isinstance(rule, Median):
        yield (
            f"a trial below the median is so at epoch {rule.min_iter} already, and trials come in "
            "random order; at most: all go on"
        )
    elif rule is not None:
        where = "rung of ASHA" if isinstance(rule, Asha) else "rung of a bracket of Hyperband"
        yield (
            f"at each {where} the best 1/{rule.eta} of the trials so far go on, and they come in "
            "random order; at most: all go on"
        )
    if len(reachable(config, "train.epochs")) > 1:
        yield "every trial has the largest of the searched train.epochs"
    if config.train.early_stop is not None:
        yield "no trial is stopped by its patience"
    if search.concurrent > 1:
        yield (
            f"{count(search.concurrent, 'trial')} at once slow each other down no further than by "
            "sharing the cores; memory may let fewer run"
        )
    most = max(search.workers, final.workers if final else 1)
    if most > 1:
        yield f"{most} workers are {most} times as fast as one"
    searched = [
        name
        for name in config.parameters
        if name.startswith("model.") or name.split(".")[1] in _SPEED
    ]
    if searched:
        yield f"the file's own values for what decides speed and is searched: {', '.join(searched)}"
    yield "not counted: start-up of Ray and of each trial, building the image cache, W&B"


def _cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()

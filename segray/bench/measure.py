"""Measures a trial with a sweep file's own values: the loop itself first, then its parts alone."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from segray.bench.bounds import bounds, wait_for
from segray.config import SweepConfig, TrialConfig, WorkError
from segray.data import (
    Batch,
    Dataset,
    TrainLoader,
    cache_root,
    eval_batches,
    loader_threads,
)
from segray.data.samples import Splits
from segray.models import Segmenter
from segray.sweep.estimate import Bench, Bounds, duration, facts, own_trial
from segray.sweep.placement import Plan
from segray.sweep.progress import Screen
from segray.train import (
    Metrics,
    Stop,
    autocast_type,
    build_trial_model,
    checkpoint,
    peak_bytes,
    train,
)
from segray.train.evaluation import EVAL_BATCH, score_batch
from segray.train.optimizer import build_optimizer
from segray.train.step import backward, clip_gradients, gradient_norm

SECONDS = 60.0  # for everything; what follows are shares of it
FIRST = 0.1  # the loop for one step, which says how many fit into the rest
LOOP = 0.5  # the loop, of which an epoch takes about EPOCH in training and EPOCH_EVAL in evaluation
EPOCH = 0.08
EPOCH_EVAL = 0.04
LOADER = 0.08
PARTS = 0.12
ALONE = 0.08
EVAL_PARTS = 0.05
LONG = 0.15  # a step that takes longer is measured once in the loop and once by its parts

_T = TypeVar("_T")
Lap = Callable[[str], None]
"""Says that the part of that name ends now."""


def measure(
    config: SweepConfig,
    stage: Plan,
    dataset: Dataset,
    screen: Screen,
    *,
    seconds: float = SECONDS,
) -> Bench:
    """Measure one worker of a trial as `stage` places it, on the cores that it would have.

    Takes about `seconds`, or as long as two steps and two batches of evaluation take, and what
    torch.compile takes beside. Raises WorkError where the training diverges in its first epoch or
    memory does not suffice.
    """
    known = facts(config, stage)
    trial = own_trial(config, stage)
    share = trial.train.batch_size // trial.workers
    changes = {"batch_size": share, "early_stop": None}
    alone = trial.model_copy(update={"workers": 1, "train": trial.train.model_copy(update=changes)})
    cache_root().mkdir(parents=True, exist_ok=True)
    with (
        _held_to(known["cores"]),
        tempfile.TemporaryDirectory(dir=cache_root(), prefix="bench-") as scratch,
    ):
        try:
            return _Measurement(alone, dataset, Path(scratch), screen, seconds).run(known)
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
            # torch has a class of its own for a GPU's memory alone
            if not isinstance(error, torch.OutOfMemoryError) and "CPUAllocator" not in said:
                raise
            raise WorkError(
                f"there is too little memory for a step of {share} images: {said}. Lower "
                "train.batch_size, train.crop or the model's width, or raise train.accumulate"
            ) from None


@dataclass(frozen=True)
class _Loop:
    """What the loop itself said of its epochs: medians."""

    steps: int
    images_per_s: float
    eval_images_per_s: float
    data_wait: float
    record_bytes: int


class _Measurement:
    """One worker's trial on its device; `seconds` for all of it."""

    def __init__(
        self, trial: TrialConfig, dataset: Dataset, scratch: Path, screen: Screen, seconds: float
    ) -> None:
        self.trial, self.dataset, self.scratch = trial, dataset, scratch
        self.screen, self.seconds = screen, seconds
        self.device = torch.device("cuda" if trial.gpus_per_worker else "cpu")
        self.batch = trial.train.batch_size

    def run(self, known: dict[str, object]) -> Bench:
        self.screen.say("training a step, to see how many fit into the time")
        # Of a compiled model the first step says nothing; later models find it compiled.
        share = math.inf if self.trial.train.compile else FIRST
        loop = self._train("first", 1, EVAL_BATCH, 2, share)
        step_s = self.batch / loop.images_per_s
        long = step_s > LONG * self.seconds
        if long:
            self.screen.say(f"a step takes {duration(step_s)}: measured with one")
        else:
            splits = self.dataset.splits
            steps = max(1, int(EPOCH * self.seconds / step_s))
            steps = min(steps, len(splits.train) // self.batch)
            val = max(EVAL_BATCH, int(EPOCH_EVAL * self.seconds * loop.eval_images_per_s))
            val = min(val, len(splits.val))
            self.screen.say(f"training epochs of {steps} steps and {val} images of val")
            loop = self._train("loop", steps, val, 10**6, LOOP)
        # What follows holds a second model. On a CPU this is the peak of the process so far, and
        # whoever called may have needed more; on a GPU it is that of the loop.
        peak = peak_bytes(self.device)
        loader = TrainLoader(
            self.dataset,
            self.dataset.splits.train,
            crop=self.trial.train.crop or self.trial.data.size,
            batch_size=self.batch,
            augment=self.trial.train.augment,
            seed=self.trial.seed,
            pin=self.device.type == "cuda",
            threads=loader_threads(self.device),
        )
        self.screen.say("the loader alone, the model alone, the parts of a step")
        loaded = self._loader_alone(loader)
        step = _Step(self.trial, self.device, compiled=self.trial.train.compile)
        parts = self._parts(step, loader, 0 if long else PARTS)
        whole = statistics.median(sum(sample.values()) for sample in parts)
        images, masks = next(loader.epoch(1)).on(self.device)
        if long:
            model_s = whole - parts[0]["data"]
        else:
            model_s = statistics.median(
                self._timed(partial(step.train, images, masks)) for _ in self._turns(ALONE)
            )
        weights, both, written = self._write_checkpoints(step)
        eval_parts = _medians(self._eval_parts(step, 0 if long else EVAL_PARTS))
        parameters = sum(p.numel() for p in step.model.parameters())
        dtype = step.precision or torch.float32
        del step  # the next one needs the room
        limits = self._bounds(images, masks, dtype) if self.device.type == "cuda" else None
        return Bench(
            facts=known,
            parameters=parameters,
            steps=loop.steps,
            train_images_per_s=loop.images_per_s,
            eval_images_per_s=loop.eval_images_per_s,
            loader_images_per_s=loaded,
            model_images_per_s=self.batch / model_s,
            data_wait=loop.data_wait,
            train_parts=_medians(parts),
            train_step_s=whole,
            eval_parts=eval_parts,
            peak_bytes=peak,
            checkpoint_bytes=both,
            weights_bytes=weights,
            checkpoint_s=written,
            record_bytes=loop.record_bytes,
            bounds=limits,
        )

    def _train(self, name: str, steps: int, val: int, epochs: int, share: float) -> _Loop:
        """The loop itself, on so many steps and images of val an epoch, until time is up."""
        splits = self.dataset.splits
        few = Splits(train=splits.train[: steps * self.batch], val=splits.val[:val], test=())
        settings = self.trial.train.model_copy(update={"epochs": epochs})
        trial = self.trial.model_copy(update={"train": settings})
        folder = self.scratch / name
        told = _Until(time.perf_counter() + share * self.seconds)
        outcome = train(trial, replace(self.dataset, splits=few), folder, told, self.device)
        if not told.epochs:
            raise WorkError(f"the training could not be measured: {outcome.reason}")
        kept = _warm(told.epochs)
        trained = steps * self.batch
        scoring = [m["time/epoch_s"] - trained / m["time/images_per_s"] for m in kept]
        lines = (folder / "metrics.jsonl").stat().st_size
        return _Loop(
            steps=steps * len(kept),
            images_per_s=statistics.median(m["time/images_per_s"] for m in kept),
            eval_images_per_s=len(few.val) / statistics.median(scoring),
            data_wait=statistics.median(m["time/data_wait"] for m in kept),
            record_bytes=lines // len(told.epochs),
        )

    def _loader_alone(self, loader: TrainLoader) -> float:
        """Images/s of batches that are brought to the device and normalised there."""
        loaded, started = 0, time.perf_counter()
        with contextlib.closing(_batches(loader)) as batches:
            for _ in self._turns(LOADER):
                loaded += len(next(batches).on(self.device)[0])
        wait_for(self.device)
        return loaded / (time.perf_counter() - started)

    def _parts(self, step: _Step, loader: TrainLoader, share: float) -> list[dict[str, float]]:
        """Seconds of each part of training steps, whose batches come from the loader."""
        clock, found = _Clock(self.device), []
        with contextlib.closing(_batches(loader)) as batches:
            for _ in self._turns(share):
                clock.start()
                images, masks = next(batches).on(self.device)
                clock.lap("data")
                step.train(images, masks, clock.lap)
                found.append(clock.parts)
        return _warm(found)

    def _eval_parts(self, step: _Step, share: float) -> list[dict[str, float]]:
        """The same of batches of evaluation."""
        val = self.dataset.splits.val
        whole = val[: max(EVAL_BATCH, len(val) // EVAL_BATCH * EVAL_BATCH)]
        clock, found = _Clock(self.device), []
        native = self.trial.metric.evaluate_at == "native"
        batches = itertools.chain.from_iterable(
            eval_batches(
                self.dataset,
                whole,
                batch_size=EVAL_BATCH,
                native=native,
                pin=self.device.type == "cuda",
                threads=loader_threads(self.device),
            )
            for _ in itertools.count()
        )
        for _ in self._turns(share):
            clock.start()
            step.score(next(batches)[1], clock.lap)
            found.append(clock.parts)
        return _warm(found)

    def _bounds(self, images: Tensor, masks: Tensor, dtype: torch.dtype) -> Bounds | None:
        """What the GPU could do at most with a step; None where that finds too little memory."""
        self.screen.say("what the GPU could do at most")
        try:
            # Operations are counted one by one.
            eager = _Step(self.trial, self.device, compiled=False)
            return bounds(lambda: eager.train(images, masks), self.batch, self.device, dtype)
        except torch.OutOfMemoryError:  # all that the loop needs is measured by now
            self.screen.say("there is too little memory to measure that: left out")
            return None

    def _write_checkpoints(self, step: _Step) -> tuple[int, int, float]:
        """Bytes of `best` and of `last`, and the seconds that writing both takes."""
        best, last = (self.scratch / f"{name}.safetensors" for name in ("best", "last"))

        def write() -> None:
            checkpoint.save(last, {}, step.model, step.optimizer)
            checkpoint.save(best, {}, step.model)

        seconds = self._timed(write)
        return best.stat().st_size, last.stat().st_size, seconds

    def _turns(self, share: float) -> Iterator[int]:
        """Counts until a share of the time has passed, to one at least."""
        end = time.perf_counter() + share * self.seconds
        yield 0
        for turn in itertools.count(1):
            if time.perf_counter() >= end:
                return
            yield turn

    def _timed(self, run: Callable[[], object]) -> float:
        wait_for(self.device)
        started = time.perf_counter()
        run()
        wait_for(self.device)
        return time.perf_counter() - started


class _Until:
    """A Reporter that ends a training where another epoch would not fit before a time."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self._since = deadline, time.perf_counter()
        self.epochs: list[Metrics] = []

    def report(self, metrics: Metrics) -> Stop | None:
        self.epochs.append(metrics)
        before, self._since = self._since, time.perf_counter()
        return "budget" if self._since + (self._since - before) > self.deadline else None


class _Step:
    """The loop's step and its evaluation of a batch, told apart into parts."""

    def __init__(self, trial: TrialConfig, device: torch.device, *, compiled: bool) -> None:
        self.trial, self.settings, self.device = trial, trial.train, device
        self.precision = autocast_type(trial, device)
        self.model = build_trial_model(trial).to(device)
        if compiled:
            self.model.compile()
        self.optimizer = build_optimizer(self.model, trial.train.optimizer)
        classes = len(trial.data.class_names)
        weighted = trial.train.loss.class_weights is not None
        # Which weights makes no difference to the time.
        self.class_weights = torch.ones(classes, device=device) if weighted else None

    def train(self, images: Tensor, masks: Tensor, lap: Lap = lambda part: None) -> None:
        """A step, in as many passes as train.accumulate says."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        backward(
            _Told(self.model, lap),
            images,
            masks,
            passes=self.settings.accumulate,
            class_weights=self.class_weights,
            dice=self.settings.loss.dice,
            dtype=self.precision,
        )
        lap("backward")
        norm = gradient_norm(self.model)
        lap("metrics")
        clip_gradients(self.model, norm, self.settings.optimizer.clip_norm)
        self.optimizer.step()
        lap("optimizer")

    def score(self, batch: Batch, lap: Lap) -> None:
        """A batch of val."""
        self.model.eval()
        assert isinstance(self.model, Segmenter)
        score_batch(
            self.model,
            batch,
            batch_size=EVAL_BATCH,
            device=self.device,
            dtype=self.precision,
            lap=lap,
        )


class _Told(nn.Module):
    """The model, saying where forward ends and where the gradients arrive at its logits."""

    def __init__(self, model: nn.Module, lap: Lap) -> None:
        super().__init__()
        self.model, self.lap = model, lap
        self.before = "loss"  # before the first pass: what the batch's pixels weigh

    def forward(self, images: Tensor) -> Tensor:
        self.lap(self.before)
        self.before = "backward"  # of the pass before
        logits: Tensor = self.model(images)
        self.lap("forward")
        logits.register_hook(lambda gradient: self.lap("loss"))  # type: ignore[no-untyped-call]
        return logits


class _Clock:
    """The seconds of a step by its parts; each waits for the device to be done with it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        wait_for(self.device)
        self.parts: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, part: str) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._since
        self._since = now


def _batches(loader: TrainLoader) -> Generator[Batch]:
    """Epoch after epoch."""
    for epoch in itertools.count(1):
        yield from loader.epoch(epoch)


def _warm(samples: Sequence[_T]) -> list[_T]:
    """Without the first, which warms up, where there are more."""
    return list(samples[1:] or samples)


def _medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in samples) for name in samples[0]}


@contextlib.contextmanager
def _held_to(number: int) -> Iterator[None]:
    """This thread, and those it starts, on so many cores, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)

"""The training loop: one TrialConfig, one dataset, one folder -> metrics, checkpoints, an ending.

It runs the same in a plain process and in each of several workers; it knows torch.distributed but
neither Ray nor W&B, and talks to whoever started it through a Reporter.

N images, K classes, H x W pixels. Epochs count from 1.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segray.config import RequestError, TrialConfig
from segray.data import Dataset, TrainLoader, loader_threads
from segray.train import checkpoint, distributed
from segray.train.evaluation import evaluate
from segray.train.loss import balanced_weights
from segray.train.metrics import scores
from segray.train.optimizer import LearningRate, build_optimizer
from segray.train.progress import Progress
from segray.train.step import (
    autocast_type,
    backward,
    build_trial_model,
    clip_gradients,
    gradient_norm,
    on_workers,
)

State = Literal["finished", "early_stopped", "pruned", "diverged", "failed", "budget"]
Stop = Literal["pruned", "budget"]
Metrics = dict[str, Any]

COLLAPSE = 0.3  # share of its best that val/miou must lose, and not regain, to have collapsed
CHECK_EVERY = 50  # steps between looks at the gradient norm: each look waits for the device
_STOPS: tuple[Stop | None, ...] = (None, "pruned", "budget")
_WHY = {"pruned": "not among the best trials", "budget": "the sweep's budget was used up"}


class Reporter(Protocol):
    """Whom the loop tells about each epoch, on every worker."""

    def report(self, metrics: Metrics) -> Stop | None:
        """Take an epoch's metrics, already on disk.

        What worker 0 returns holds for all: why training has to end, or None.
        """


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    state: State
    reason: str
    objective: float | None  # best_value less the price of the epochs; None: no epoch was scored
    best_value: float | None
    best_epoch: int | None
    last_value: float | None
    epochs: int
    seconds: float
    note: str = ""  # what went wrong beside the training, such as tracking
    kept: bool = False  # it diverged, and its best epoch counts all the same

    @property
    def broken(self) -> bool:
        """Whether it ranks below every training that did not break."""
        return self.state == "failed" or (self.state == "diverged" and not self.kept)


def train(
    config: TrialConfig,
    dataset: Dataset,
    folder: Path,
    reporter: Reporter,
    device: torch.device,
) -> Outcome:
    """Train to the end, from `folder`'s last checkpoint where there is one.

    Writes folder/metrics.jsonl (a line an epoch) and folder/checkpoint/{last,best}.safetensors from
    worker 0. Raises RequestError where a setting does not fit the dataset.
    """
    return _Training(config, dataset, folder, reporter, device).run()


class _Training:
    def __init__(
        self,
        config: TrialConfig,
        dataset: Dataset,
        folder: Path,
        reporter: Reporter,
        device: torch.device,
    ) -> None:
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        settings = config.train
        self.config, self.dataset, self.folder = config, dataset, folder
        self.reporter, self.device = reporter, device
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.sign = 1.0 if config.metric.goal == "maximize" else -1.0
        self.precision = autocast_type(config, device)
        self.model = build_trial_model(config).to(device)
        self.net = on_workers(self.model, device)
        if settings.compile:
            self.net.compile()
        self.loader = TrainLoader(
            dataset,
            dataset.splits.train,
            crop=settings.crop or config.data.size,
            batch_size=settings.batch_size,
            augment=settings.augment,
            seed=config.seed,
            rank=self.rank,
            world_size=self.world_size,
            pin=device.type == "cuda",
            threads=loader_threads(device),
        )
        if self.loader.steps == 0:
            raise RequestError(
                f"train.batch_size: a batch of {settings.batch_size} needs that many images, and "
                f"train has {len(dataset.splits.train)}"
            )
        self.optimizer = build_optimizer(self.model, settings.optimizer)
        self.lr = LearningRate(
            self.optimizer, settings.schedule, settings.epochs * self.loader.steps
        )
        self.class_weights = _class_weights(settings.loss.class_weights, dataset, device)
        self.last_path = folder / "checkpoint" / "last.safetensors"
        self.best_path = folder / "checkpoint" / "best.safetensors"
        self.progress = Progress()

    def run(self) -> Outcome:
        stop = self._resume()
        epochs = self.config.train.epochs
        early_stop = self.config.train.early_stop
        at = self.progress
        while at.epoch < epochs:
            if stop is not None:
                return self._outcome(stop, f"{_WHY[stop]} at epoch {at.epoch}")
            if early_stop is not None and at.out_of_patience(early_stop.patience):
                reason = f"no better than {at.reference:.4f} for {early_stop.patience} epochs"
                return self._outcome("early_stopped", reason)
            started = time.perf_counter()
            fault, trained = self._train_epoch(at.epoch + 1)
            if fault is not None:
                return self._outcome("diverged", fault)
            scored, confusion = self._score()
            if not math.isfinite(scored["val/loss"]):
                # The last step broke the weights: nothing was left in the epoch to show it.
                reason = f"the loss on val became {scored['val/loss']} after epoch {at.epoch + 1}"
                return self._outcome("diverged", f"{reason} (lr {trained['train/lr']:.2e})")
            stop = self._end_epoch(trained | scored, confusion, started)
        return self._outcome("finished", "")

    def _train_epoch(self, epoch: int) -> tuple[str | None, Metrics]:
        """One pass over train: what went wrong, if anything, and the epoch's training metrics."""
        settings = self.config.train
        # Dropout and the like start from here, so that no random state has to be saved.
        sequence = np.random.SeedSequence((self.config.seed, epoch, self.rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
        self.net.train()
        total = torch.zeros((), device=self.device)
        norms = torch.zeros(self.loader.steps, device=self.device)
        rates: list[float] = []
        started = waiting_since = time.perf_counter()
        waited = 0.0
        for step, batch in enumerate(self.loader.epoch(epoch)):
            waited += time.perf_counter() - waiting_since
            images, masks = batch.on(self.device)
            self.lr.step()
            rates.append(self.optimizer.param_groups[0]["lr"])
            self.optimizer.zero_grad(set_to_none=True)
            total += backward(
                self.net,
                images,
                masks,
                passes=settings.accumulate,
                class_weights=self.class_weights,
                dice=settings.loss.dice,
                dtype=self.precision,
            )
            norms[step] = gradient_norm(self.model)
            clip_gradients(self.model, norms[step], settings.optimizer.clip_norm)
            self.optimizer.step()
            last_step = step + 1 == self.loader.steps
            look = last_step or (step + 1) % CHECK_EVERY == 0
            # Norms first: a non-finite loss makes the gradients non-finite in the same step.
            if look and not bool(norms.isfinite().all()):
                return self._describe_divergence(epoch, norms, rates), {}
            waiting_since = time.perf_counter()
        seconds = time.perf_counter() - started
        mean_loss = distributed.sum_over_workers(total) / (self.world_size * self.loader.steps)
        if not bool(mean_loss.isfinite()):
            return f"the loss became {float(mean_loss)} in epoch {epoch}", {}
        return None, {
            "train/loss": float(mean_loss),
            "train/grad_norm": float(norms.mean()),
            "train/grad_norm_max": float(norms.max()),
            "train/lr": rates[-1],
            "time/images_per_s": self.loader.steps * settings.batch_size / seconds,
            "time/data_wait": waited / seconds,
        }

    def _describe_divergence(self, epoch: int, norms: Tensor, rates: list[float]) -> str:
        values = norms.cpu()
        step = int((~values.isfinite()).nonzero()[0])
        before = f"{float(values[step - 1]):.3g} one step before" if step else "no step before it"
        return (
            f"loss or gradient not finite at epoch {epoch}, step {step + 1} of {self.loader.steps} "
            f"(lr {rates[step]:.2e}, gradient norm {before})"
        )

    def _score(self) -> tuple[Metrics, NDArray[np.int64]]:
        """Metrics and the (K, K) matrix of val, the same on every worker."""
        matrices, loss = evaluate(
            self.model,
            self.dataset,
            self.dataset.splits.val,
            device=self.device,
            dtype=self.precision,
            native=self.config.metric.evaluate_at == "native",
        )
        confusion = matrices.sum(0)
        metrics: Metrics = {"val/loss": loss}
        metrics |= {f"val/{k}": v for k, v in scores(confusion, self.dataset.classes).items()}
        return metrics, confusion

    def _end_epoch(
        self, metrics: Metrics, confusion: NDArray[np.int64], started: float
    ) -> Stop | None:
        """Book the epoch: best, patience, record, checkpoints, report; on every worker alike."""
        at = self.progress
        # An absent category has no IoU: the worst value, rather than no value.
        value = float(metrics.get(self.config.metric.name, 0.0))
        stop_rule = self.config.train.early_stop
        is_best = at.end_epoch(value, self.sign, stop_rule.min_delta if stop_rule else 0.0)
        self.lr.end_epoch(self.sign * value)
        seconds = time.perf_counter() - started
        at.seconds += seconds
        record = {
            "epoch": at.epoch,
            **metrics,
            "value": value,  # of the metric that is optimized
            "best": at.best,
            "best_epoch": at.best_epoch,
            "objective": self._objective(),
            "time/epoch_s": seconds,
            "time/ended": time.time(),  # in seconds since 1970: in which order trials came so far
            "confusion": confusion.tolist(),
        }
        if self.rank == 0:
            # The record first: a checkpoint whose epoch has no record could not be told of again.
            # `last` before `best`: from it `best` can be made again, not the other way round.
            append_record(self.folder / "metrics.jsonl", record)
            state = {"progress": asdict(at), "schedule": self.lr.state_dict()}
            checkpoint.save(self.last_path, state, self.model, self.optimizer)
            if is_best:
                self._save_best()
        return self._report(record)

    def _save_best(self) -> None:
        state = {"epoch": self.progress.best_epoch, "value": self.progress.best}
        checkpoint.save(self.best_path, state, self.model)

    def _report(self, record: Metrics) -> Stop | None:
        verdict = _STOPS.index(self.reporter.report(record))
        return _STOPS[distributed.from_first(verdict, self.device)]

    def _resume(self) -> Stop | None:
        """Go on from the last checkpoint; forget records of epochs that it does not hold.

        Its epoch is reported again: whoever was told of it may not have lived to act on it.
        """
        if self.last_path.is_file():
            state = checkpoint.load(self.last_path, self.model, self.optimizer)
            self.progress = Progress(**state["progress"])
            self.lr.load_state_dict(state["schedule"])
        kept = kept_records(self.folder)
        if self.rank == 0:
            at = self.progress
            if at.epoch and at.best_epoch == at.epoch and _epoch_of(self.best_path) != at.epoch:
                self._save_best()  # the process was killed before it could
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "metrics.jsonl"
            if path.is_file():
                temporary = path.with_suffix(".tmp")
                with temporary.open("w") as file:
                    file.writelines(json.dumps(line) + "\n" for line in kept)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            else:  # a new training: nothing that would have to be on the disk by now
                path.touch()
        return self._report(kept[-1]) if kept else None

    def _objective(self) -> float | None:
        return self.progress.objective(self.sign, self.config.metric.cost_per_epoch)

    def _outcome(self, state: State, reason: str) -> Outcome:
        at = self.progress
        collapse = find_collapse(read_records(self.folder / "metrics.jsonl"))
        reason = "; ".join(filter(None, [reason, collapse]))
        return Outcome(
            state=state,
            reason=reason,
            objective=self._objective(),
            best_value=at.best,
            best_epoch=at.best_epoch,
            last_value=at.last,
            epochs=at.epoch,
            seconds=round(at.seconds, 3),
        )


def find_collapse(records: Sequence[Metrics]) -> str | None:
    """Words for a val/miou that fell from its best by COLLAPSE of it and stayed down to the end.

    That score whatever is optimized: it lies in [0, 1], while a loss that rises to twice its best
    may be no more than overfitting. One bad last epoch is no collapse: it takes two.
    """
    values = [float(record.get("val/miou", 0.0)) for record in records]
    best = max(values, default=0.0)
    first = len(values)
    while first > 0 and values[first - 1] < (1 - COLLAPSE) * best:
        first -= 1
    if len(values) - first < 2:
        return None
    at = records[first]  # not the first of all: the best stands before it
    return (
        f"collapsed at epoch {at['epoch']}: val/miou {values[first - 1]:.4f} -> "
        f"{values[first]:.4f} "
        f"(lr {at['train/lr']:.2e}, train loss {at['train/loss']:.3g}, "
        f"largest gradient norm {at['train/grad_norm_max']:.3g})"
    )


def append_record(path: Path, record: Metrics) -> None:
    """Add a line to a .jsonl file, and see it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[Metrics]:
    """The whole lines of a .jsonl file; a last line cut off by a kill is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def kept_records(folder: Path) -> list[Metrics]:
    """The records of the epochs that a training in `folder` goes on from: its last checkpoint's."""
    last = folder / "checkpoint" / "last.safetensors"
    epoch = checkpoint.read_state(last)["progress"]["epoch"] if last.is_file() else 0
    return [line for line in read_records(folder / "metrics.jsonl") if line["epoch"] <= epoch]


def _epoch_of(best: Path) -> int | None:
    return checkpoint.read_state(best)["epoch"] if best.is_file() else None


def _class_weights(
    setting: Literal["balanced"] | tuple[float, ...] | None, dataset: Dataset, device: torch.device
) -> Tensor | None:
    if setting is None:
        return None
    weights = balanced_weights(dataset.class_pixels()) if setting == "balanced" else setting
    return torch.tensor(weights, dtype=torch.float32, device=device)

"""One trial: the loop, its records and its tracker, with two thin adapters to Ray.

One worker runs the loop inside a reused Tune actor: nesting Ray Train in it costs 8 to 17 s a
trial. Several workers run the same loop inside Ray Train's TorchTrainer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from segray.data import Dataset, class_colours, open_dataset
from segray.data.labels import palette_image
from segray.data.remote import RemoteError, RemoteFolder
from segray.sweep import view
from segray.sweep.locks import alone_with, at_work_in
from segray.sweep.store import Copy, Keeper, insist
from segray.sweep.trial_files import (
    TrialSpec,
    failed_outcome,
    write_config,
    write_outcome,
    write_text,
)
from segray.tracking import TrackedImage, Tracker
from segray.train import (
    Metrics,
    Outcome,
    Stop,
    autocast_type,
    build_trial_model,
    checkpoint,
    distributed,
    evaluate,
    kept_records,
    predict_masks,
    scores,
    train,
)

if TYPE_CHECKING:  # Ray is imported where a trial runs in it: `segray train` has no need of it
    from ray.actor import ActorHandle

NOTE_S = 1.0  # between two notes of what a machine is getting ready
Note = Callable[[str, int, int], None]
"""Says what this machine is getting ready: images of what, how many, of how many."""
Tell = Callable[[Metrics], Stop | None]
"""Passes an epoch's metrics on, on every worker; worker 0's answer says why to end, or None."""


def run_trial(
    spec: TrialSpec, device: torch.device, tell: Tell, note: Note | None = None
) -> Outcome:
    """Train a trial to its end, in each of its workers; worker 0 keeps the records and tracks.

    A trial that was begun before goes on. What is raised has been written to the trial's log.txt;
    whether the trial has failed with it is for whoever runs it to say, as it may be tried again.
    """
    first = distributed.rank() == 0
    printed = _printed_to(spec.folder / "log.txt") if first else contextlib.nullcontext()
    with at_work_in(spec.run_folder), printed:
        try:
            return _run(spec, device, tell, note, first)
        except Exception:
            if first:
                traceback.print_exc()
            raise


class _Orphaned(SystemExit):
    """The sweep that this trial belongs to is gone: it ends where it stands, to be taken up again.

    No Exception, so that nothing books it as a failure.
    """


def _post(board: ActorHandle, spec: TrialSpec, metrics: Metrics) -> Callable[[], Stop | None]:
    """Post an epoch on the board; what is returned waits for the verdict."""
    import ray

    posted = board.report.remote(spec.id, metrics["epoch"], metrics["objective"])

    def verdict() -> Stop | None:
        try:
            answer: Stop | None = ray.get(posted)
        except ray.exceptions.RayError as error:
            raise _Orphaned(f"the board does not answer: {error}") from None
        return answer

    return verdict


def _enter(name: str, spec: TrialSpec) -> ActorHandle:
    """The board of that name, told on which node this process is."""
    import ray

    from segray.sweep.board import find_board

    board = find_board(name)
    board.enter.remote(spec.id, ray.get_runtime_context().get_node_id())
    return board


def on_board(board: ActorHandle) -> Note:
    """Posts what this machine is getting ready, now and then."""
    node = platform.node()
    last = 0.0

    def note(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() > last + NOTE_S:
            last = time.monotonic()
            board.note.remote(node, what, done, total)

    return note


def trial_device(spec: TrialSpec) -> torch.device:
    """Where a trial of one worker computes: a GPU only where it was given one."""
    return torch.device("cuda" if spec.config.gpus_per_worker else "cpu")


def tune_trainable(config: Mapping[str, Any]) -> None:
    """What Tune runs for a trial of one worker: its TrialSpec and the name of the board."""
    from ray import tune

    spec: TrialSpec = config["spec"]
    board = _enter(config["board"], spec)

    def tell(metrics: Metrics) -> Stop | None:
        verdict = _post(board, spec, metrics)
        tune.report(_headline(metrics))  # the board answers meanwhile
        return verdict()

    with at_home(spec, tell) as tell_all, _everything_to(spec.folder / "log.txt"):
        run_trial(spec, trial_device(spec), tell_all, on_board(board))


def tune_trainable_on_workers(config: Mapping[str, Any]) -> None:
    """What Tune runs for a trial of several workers: Ray Train's TorchTrainer."""
    from ray import train as ray_train
    from ray import tune
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from segray.sweep.gloo import GlooConfig

    spec: TrialSpec = config["spec"]
    gpus = spec.config.gpus_per_worker
    storage = tune.get_context().get_storage()
    TorchTrainer(
        _train_worker,
        train_loop_config=dict(config),
        torch_config=TorchConfig(backend="nccl") if gpus else GlooConfig(),
        scaling_config=ray_train.ScalingConfig(
            num_workers=spec.config.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": spec.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray_train.RunConfig(
            name="train",
            storage_path=storage.trial_fs_path,
            storage_filesystem=storage.storage_filesystem,
            callbacks=[TuneReportCallback()],
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _train_worker(config: Mapping[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray.train
    import ray.train.torch

    spec: TrialSpec = config["spec"]
    board = _enter(config["board"], spec)

    def tell(metrics: Metrics) -> Stop | None:
        verdict = _post(board, spec, metrics) if distributed.rank() == 0 else None
        ray.train.report(_headline(metrics))  # a barrier: every worker has to call it
        return verdict() if verdict else None

    with at_home(spec, tell) as tell_all, _everything_to(spec.folder / "log.txt"):
        run_trial(spec, ray.train.torch.get_device(), tell_all, on_board(board))


@contextlib.contextmanager
def at_home(spec: TrialSpec, tell: Tell) -> Iterator[Tell]:
    """For each process of a trial: its folder on this machine, as the store has it.

    Yields the `tell` that also brings each epoch to the store; at the end all that there is goes
    there. Where the run folder is no copy, there is nothing to do.
    """
    spec.run_folder.mkdir(parents=True, exist_ok=True)
    if spec.remote is None:
        yield tell
        return
    name = _name(spec)
    run = RemoteFolder(spec.remote)
    keeper = Keeper(run, name, spec.folder, spec.lease)
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_work_in(spec.run_folder))
        if distributed.local_rank() == 0:
            # Not the folder's own files: they go. An earlier try's process may still be at work.
            lock = spec.run_folder / f".{name.replace('/', '-')}.lock"
            alone_with(stack.enter_context(lock.open("a+")))
            if distributed.rank() == 0:
                insist(keeper.claim)
            insist(keeper.fetch)
        distributed.wait_for_all()
        if distributed.rank() != 0:
            yield tell
            return

        def keep(metrics: Metrics) -> Stop | None:
            keeper.epoch(is_best=metrics["best_epoch"] == metrics["epoch"])
            return tell(metrics)

        def end() -> None:
            keeper.finish()
            tracked = spec.run_folder / "wandb"
            names = [
                file.relative_to(tracked).as_posix()
                for file in tracked.glob(f"*-{spec.run_id}/**/*")
                if file.is_file()
            ]
            insist(lambda: Copy(tracked, run / "wandb").push(names))

        keeper.start()
        try:
            yield keep
        except BaseException:
            with contextlib.suppress(RemoteError):  # the first error is the one to tell of
                end()
            raise
        end()
        if not (spec.run_folder / "sweep.yaml").is_file():  # nobody reads it on this machine
            shutil.rmtree(spec.folder, ignore_errors=True)


def _name(spec: TrialSpec) -> str:
    """The trial's folder below the run's."""
    return spec.folder.relative_to(spec.run_folder).as_posix()


def _bring_predictions(spec: TrialSpec, shown: Sequence[str]) -> None:
    """Those that workers on other machines than the first one's have written.

    Of them worker 0 fetches the ids that the tracker shows.
    """
    if spec.remote is None:
        distributed.wait_for_all()
        return
    preds = Copy(spec.folder / "preds", RemoteFolder(spec.remote) / f"{_name(spec)}/preds")
    if distributed.rank() != 0 and distributed.local_rank() == 0:
        names = [f.relative_to(preds.path).as_posix() for f in preds.path.rglob("*.png")]
        insist(lambda: preds.push(names))
    distributed.wait_for_all()
    if distributed.rank() == 0:
        names = [name for at in shown if not (preds.path / (name := f"{at}.png")).is_file()]
        insist(lambda: preds.fetch_named(names))


def _run(
    spec: TrialSpec, device: torch.device, tell: Tell, note: Note | None, first: bool
) -> Outcome:
    dataset = open_dataset(spec.config.data, note, version=spec.data_version)
    spec = _resolved(spec, device)
    config = spec.config
    if first:
        write_config(spec)
    tracker = view.start(spec, spec.wandb["mode"] if first else "disabled")
    for record in kept_records(spec.folder) if first else ():
        view.tell(tracker, record)  # of a trial that goes on
    try:
        reporter = _Reporter(tracker, tell, config.metric.name, config.train.epochs)
        outcome = train(config, dataset, spec.folder, reporter, device)
        if outcome.state == "diverged" and outcome.best_epoch is not None:
            outcome = replace(outcome, kept=spec.keeps_diverged)
        outcome = replace(outcome, note=spec.note)
        if spec.stage == "final" and outcome.best_epoch is not None:
            _score_test(spec, dataset, device)
    except _Orphaned:
        raise  # its tracked run goes on with it
    except Exception as error:
        view.finish(tracker, spec, failed_outcome(spec.folder, _reason(error)))
        raise
    except BaseException:
        view.finish(tracker, spec, None)
        raise
    if first:
        # On record first: whatever happens to the tracker, the trial is over.
        write_outcome(spec.folder, outcome)
        if spec.stage != "candidate":  # which may have its final training go on from it
            (spec.folder / "checkpoint" / "last.safetensors").unlink(missing_ok=True)
        print(f"{outcome.state}: {outcome.reason}" if outcome.reason else outcome.state)
        try:
            images = _predictions(spec, dataset, outcome, device)
            view.finish(tracker, spec, outcome, images)
        except Exception:  # a picture that cannot be made is no failure of the trial
            traceback.print_exc()
            view.finish(tracker, spec, outcome)
        if tracker.warning is not None:
            told = "; ".join(filter(None, [spec.note, tracker.warning]))
            outcome = replace(outcome, note=told)
            write_outcome(spec.folder, outcome)
    return outcome


def _resolved(spec: TrialSpec, device: torch.device) -> TrialSpec:
    """With the values that `auto` and null stand for on this machine: they decide numbers."""
    settings = spec.config.train
    precision = "fp32" if autocast_type(spec.config, device) is None else "bf16"
    crop = settings.crop or spec.config.data.size
    chosen = settings.model_copy(update={"precision": precision, "crop": crop})
    return replace(spec, config=spec.config.model_copy(update={"train": chosen}))


class _Reporter:
    """Passes an epoch on to the tracker, the log and whoever runs the trial."""

    def __init__(self, tracker: Tracker, tell: Tell, metric: str, epochs: int) -> None:
        self._tracker, self._tell, self._metric, self._epochs = tracker, tell, metric, epochs

    def report(self, metrics: Metrics) -> Stop | None:
        view.tell(self._tracker, metrics)
        if distributed.rank() == 0:
            print(
                f"epoch {metrics['epoch']}/{self._epochs}  {self._metric} "
                f"{metrics['value']:.4f}  best {metrics['best']:.4f}  "
                f"train/loss {metrics['train/loss']:.4f}  {metrics['time/epoch_s']:.1f} s",
                flush=True,
            )
        return self._tell(metrics)


def _headline(metrics: Metrics) -> Metrics:
    """What Tune is told: enough for the live table; the record has the rest."""
    return {name: metrics[name] for name in ("epoch", "value", "best", "objective")}


def _score_test(spec: TrialSpec, dataset: Dataset, device: torch.device) -> None:
    """Score the best checkpoint on test, at the size of the masks' files.

    metrics.json, confusion.npz with a matrix an image, and preds/ with what was counted.
    """
    model = build_trial_model(spec.config).to(device)
    # Worker 0's machine alone may hold the checkpoint.
    state = _load_best(spec, model) if distributed.rank() == 0 else {}
    distributed.share_weights(model)
    positions = dataset.splits.test
    colours = class_colours(spec.config.data)

    def keep(position: int, classes: NDArray[np.uint8]) -> None:
        _write_mask(spec.folder / "preds" / f"{dataset.ids[position]}.png", classes, colours)

    confusion, loss = evaluate(
        model,
        dataset,
        positions,
        device=device,
        dtype=autocast_type(spec.config, device),
        native=True,
        keep=keep,
    )
    shown = positions[: spec.wandb["images"]] if spec.wandb["mode"] != "disabled" else []
    _bring_predictions(spec, [dataset.ids[position] for position in shown])
    metrics = {"test/loss": loss}
    metrics |= {f"test/{k}": v for k, v in scores(confusion.sum(0), dataset.classes).items()}
    if distributed.rank() == 0:
        path = spec.folder / "confusion.npz"
        temporary = path.with_name(".confusion.npz")
        np.savez_compressed(
            temporary,
            confusion=confusion,  # (images, K, K) int64 [true, predicted]
            ids=np.array([dataset.ids[position] for position in positions]),
            cities=np.array([dataset.cities[position] for position in positions]),
            classes=np.array(dataset.classes),
            tuned_on=np.array(_digest_of_tuning(dataset)),
        )
        temporary.replace(path)
        record = {"seed": spec.config.seed, "epoch": state["epoch"], "val": state["value"]}
        write_text(spec.folder / "metrics.json", json.dumps(record | metrics, indent=2) + "\n")


def _digest_of_tuning(dataset: Dataset) -> str:
    """Of the ids of the images in train and val: runs that differ in them are not compared."""
    splits = dataset.splits.train, dataset.splits.val
    ids = [[dataset.ids[position] for position in split] for split in splits]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def _write_mask(path: Path, classes: NDArray[np.uint8], colours: NDArray[np.uint8]) -> None:
    """A PNG whose bytes are the classes (H, W), shown in the classes' colours (K, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    palette_image(classes, colours).save(temporary, format="PNG", compress_level=1)
    temporary.replace(path)


def _predictions(
    spec: TrialSpec, dataset: Dataset, outcome: Outcome, device: torch.device
) -> list[TrackedImage]:
    """A few images of val with the best epoch's masks, for the tracker."""
    positions = dataset.splits.val[: spec.wandb["images"]]
    if not positions or outcome.best_epoch is None or spec.wandb["mode"] == "disabled":
        return []
    model = build_trial_model(spec.config).to(device)
    _load_best(spec, model)
    dtype = autocast_type(spec.config, device)
    preds = predict_masks(model, dataset, positions, device, dtype)
    return [
        TrackedImage(dataset.ids[at], dataset.images[at], dataset.masks[at], pred)
        for at, pred in zip(positions, preds, strict=True)
    ]


def _load_best(spec: TrialSpec, model: torch.nn.Module) -> Metrics:
    """Fill a model with the weights of the best epoch; what the checkpoint says of it."""
    return checkpoint.load(spec.folder / "checkpoint" / "best.safetensors", model)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextlib.contextmanager
def _printed_to(path: Path) -> Iterator[None]:
    """What Python prints meanwhile goes to the end of `path`, which no other process has then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", buffering=1) as file:
        alone_with(file)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield


@contextlib.contextmanager
def _everything_to(path: Path) -> Iterator[None]:
    """What this process writes meanwhile goes to the end of `path`: libraries' output too, and a
    crash's last words. For a process that does nothing but run trials.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with path.open("ab", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)

"""What can be found wrong before the first trial, the cheapest first: it is cheap now, and dear at
three in the morning.
"""

from __future__ import annotations

import itertools
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segray.config import (
    RequestError,
    SweepConfig,
    TrialConfig,
    reachable,
    satisfied,
    trial_config,
    trial_count,
)
from segray.config.schema import Resources, Tracking
from segray.data import cache_root, check_dataset, cores, is_cached, read_splits
from segray.data.remote import RemoteError, RemoteFolder, is_remote
from segray.sweep import autoscaler
from segray.sweep.budget import check_gpus
from segray.sweep.cluster import dead_process
from segray.sweep.estimate import cache_bytes, checkpoint_bytes
from segray.sweep.placement import Cluster, Plan, plan, plan_final
from segray.sweep.progress import Screen, count, size
from segray.sweep.records import RunFolder
from segray.sweep.space import left_to_chance
from segray.sweep.store import run_path
from segray.tracking import check as check_tracking
from segray.train import StepCost, build_trial_model, measure_step

CORNERS = 4096  # combinations of sizes that are tried against `require`
SAMPLE = 32  # pairs of image and mask that are read before the cache is built
CALM_S = 10.0  # how long a worker may take to start before the person is told


def check_inputs(config: SweepConfig, screen: Screen, *, new: bool) -> SweepConfig:
    """Run folder, images, masks, weights, disk and W&B; raises RequestError for what is missing.

    `new`: the run folder must be free. No image cache is built; a sample of pairs is read. Returns
    the config with the mode of W&B that it found: on another machine a trial would find its own.
    """
    if new:
        RunFolder.check_free(config)
    check_writable(config.storage)
    screen.say(f"{config.name}: {config.model.name} on {config.data.format}")
    with screen.bars() as progress:
        _, splits = read_splits(config.data, progress)
        images = (len(splits.train), len(splits.val), len(splits.test))
        check_steps(config, images[0])
        report = check_dataset(config.data, limit=SAMPLE)
    if report.problems:
        lines = "\n".join(f"  {problem.message}" for problem in report.problems)
        raise RequestError(
            f"a sample of the images shows what a sweep would fail at:\n{lines}\n"
            "segray data check FILE reads every pair"
        )
    # Fetches pretrained weights once, before trials ask for them side by side.
    parameters = [
        sum(p.numel() for p in build_trial_model(one).parameters()) for one in origins(config)
    ]
    if not hasattr(config.model, "pretrained") or config.model.pretrained is None:
        with torch.device("meta"):  # shapes without numbers
            largest = build_trial_model(first_trial(config, **largest_corner(config)))
        parameters.append(sum(p.numel() for p in largest.parameters()))
    _check_disk(config, images, max(parameters), new)
    screen.say(
        f"images {images[0]} train, {images[1]} val, {images[2]} test at "
        f"{config.data.size[0]}x{config.data.size[1]}, {len(config.data.class_names)} classes"
    )
    shares = report.shares()
    told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    screen.say(f"pixels in a sample of {report.read} pairs, of all splits: {told}")
    for warning in report.warnings:
        screen.say(f"in a sample of {report.read} pairs: {warning.message}")
    screen.say(f"model {config.model.name}, {parameters[0] / 1e6:.2f}M parameters")
    if told := left_to_chance(config, {}):
        screen.say(f"drawn at random: {told}")
    tracking = check_tracking(config.tracking.wandb.mode)
    screen.say(f"W&B {tracking.says}")
    wandb = config.tracking.wandb.model_copy(update={"mode": tracking.mode})
    return config.model_copy(update={"tracking": Tracking(wandb=wandb)})


def check_steps(config: SweepConfig, images: int) -> None:
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


def place(config: SweepConfig, cluster: Cluster, screen: Screen) -> tuple[Plan, Plan | None]:
    """How the trials of the search, and those of the final stage, share the cluster.

    As they fit by cores, GPUs and memory: one worker somewhere on the cluster takes the step of the
    largest trial that the search can come to. Where max_concurrent is auto, fewer trials run at
    once if memory asks for it; raises RequestError, with the arithmetic, where even that does not
    help.
    """
    trials = trial_count(config)
    search = plan(config.resources, cluster, trials)
    check_gpus(config.budget, search.gpus_per_worker)
    cost = _measure(config, cluster, search, screen)
    search = _by_memory(config.resources, cluster, trials, search, cost, screen)
    if config.final is None:
        return search, None
    final = plan_final(config.resources, config.final, cluster)
    resources = config.resources.model_copy(update={"workers": final.workers})
    if final.workers < search.workers:  # each has more of the batch
        cost = _measure(config, cluster, final, screen)
    # The number of trainings side by side was ours: memory may lower it.
    at_once = config.final.trainings
    return search, _by_memory(resources, cluster, at_once, final, cost, screen)


@dataclass(frozen=True)
class _Cost:
    """What the largest trial asks of memory, and what there is."""

    peak_bytes: int  # of one worker
    rooms: list[int]  # bytes on each node, or on the GPU that was tried
    on_gpu: bool
    says: str  # both in words


def _by_memory(
    resources: Resources,
    cluster: Cluster,
    trials: int,
    stage: Plan,
    cost: _Cost,
    screen: Screen,
) -> Plan:
    """The stage with no more trials at once than memory holds."""
    fit = sum(room // cost.peak_bytes for room in cost.rooms) // stage.workers
    if cost.on_gpu and cost.peak_bytes <= cost.rooms[0]:
        fit = stage.concurrent  # by their share of a GPU they were counted already
    if fit < 1:
        raise RequestError(
            f"{cost.says}; a trial has {count(stage.workers, 'worker')}. Lower train.batch_size, "
            "train.crop or the model's width, or choose a larger machine"
        )
    if fit >= stage.concurrent:
        return stage
    need = size(cost.peak_bytes * stage.workers * stage.concurrent)
    if resources.max_concurrent != "auto":
        raise RequestError(
            f"{cost.says}; {stage.concurrent} trials at once need {need}. Lower "
            f"resources.max_concurrent to {fit}, or train.batch_size"
        )
    screen.say(
        f"{count(fit, 'trial')} at once rather than {stage.concurrent}, which would need {need}"
    )
    return plan(resources.model_copy(update={"max_concurrent": fit}), cluster, trials)


def largest_corner(config: SweepConfig) -> dict[str, Any]:
    """Of the searched keys that a step's memory depends on, the values that make it largest.

    Together they meet `require`, as far as it is about them.
    """
    sized = {
        f"train.{key}" for key in ("batch_size", "accumulate", "crop", "precision", "loss.dice")
    }
    names = [name for name in config.parameters if name.startswith("model.") or name in sized]
    # Of each key the largest first, so that the first that `require` lets pass is a large one.
    choices = [
        sorted(
            set(reachable(config, name)),
            key=partial(_weight, config),
            reverse=name != "train.accumulate",
        )
        for name in names
    ]
    corners = (dict(zip(names, values, strict=True)) for values in itertools.product(*choices))
    first = next(corners)
    for corner in itertools.chain([first], itertools.islice(corners, CORNERS)):
        if satisfied(config, corner):
            return corner
    return first


def _weight(config: SweepConfig, value: Any) -> tuple[float, str]:
    """Orders values of one key by what they ask of memory."""
    if isinstance(value, int | float):
        return float(value), ""
    if isinstance(value, tuple):
        return float(math.prod(value)), ""
    # No crop is the whole image; b0 to b5, mit-b0 to mit-b5, and bf16 before fp32 as text.
    return (math.prod(config.data.size), "") if value is None else (0.0, str(value))


def first_trial(config: SweepConfig, **assignment: Any) -> TrialConfig:
    """The file's own values as a trial, on one CPU."""
    return trial_config(
        config, assignment, seed=config.seed, workers=1, gpus_per_worker=0, threads=1
    )


def origins(config: SweepConfig) -> Iterator[TrialConfig]:
    """A trial for each place that weights may come from."""
    key = "model.pretrained"
    if key not in config.parameters:
        yield first_trial(config)
        return
    for origin in reachable(config, key):
        yield first_trial(config, **{key: origin})


def check_writable(storage: str) -> None:
    """Raises RequestError where this machine cannot write to `storage`."""
    if is_remote(storage):
        probe = f".segray-{secrets.token_hex(8)}"
        store = RemoteFolder(storage)
        try:
            store.write(probe, b"")
            store.delete([probe])
        except RemoteError as error:
            raise RequestError(f"storage: {error}") from None
        return
    folder = Path(storage)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RequestError(
            f"storage: cannot write to {storage}: {nearest} is "
            f"{'not writable' if nearest.is_dir() else 'no folder'}; name a folder you can write "
            "to with storage=/some/folder"
        )


def _check_disk(config: SweepConfig, images: Sequence[int], parameters: int, new: bool) -> None:
    """Raises RequestError where cache or checkpoints will not fit; both may share a disk."""
    at_once = config.resources.max_concurrent
    need = checkpoint_bytes(config, parameters, cores() if at_once == "auto" else at_once)
    if not new:  # most stand already
        there = run_path(config).glob("*/*/checkpoint/*.safetensors")
        need = max(0, need - sum(file.stat().st_size for file in there))
    needs = {"checkpoints": (run_path(config).parent, need)}
    if not is_cached(config.data):
        needs["the image cache"] = (cache_root(), cache_bytes(config, sum(images)))
    disks: dict[int, list[tuple[str, Path, int]]] = {}
    for what, (path, need) in needs.items():
        nearest = next(folder for folder in (path, *path.parents) if folder.exists())
        disks.setdefault(nearest.stat().st_dev, []).append((what, nearest, need))
    for uses in disks.values():
        free = shutil.disk_usage(uses[0][1]).free
        if sum(need for _, _, need in uses) > 0.95 * free:
            parts = " and ".join(f"{size(need)} for {what} in {at}" for what, at, need in uses)
            raise RequestError(
                f"disk: this sweep needs {parts}, and {size(free)} are free there. Make room, name "
                "other folders (storage=/some/folder, SEGRAY_CACHE), or lower data.size"
            )


def _size_of(config: TrialConfig) -> dict[str, Any]:
    """What makes a step large, for a message."""
    model = {
        f"model.{key}": value
        for key, value in config.model.model_dump(exclude={"name", "drop_path"}).items()
        if value is not None
    }
    crop = list(config.train.crop or config.data.size)
    return model | {"train.batch_size": config.train.batch_size, "train.crop": crop}


def _try_step(config: TrialConfig) -> tuple[StepCost, int]:
    """On a worker: what a step costs there, and the memory that there is for it."""
    if not config.gpus_per_worker:
        import ray

        here = ray.get_runtime_context().get_node_id()
        room = next(int(n["Resources"]["memory"]) for n in ray.nodes() if n["NodeID"] == here)
        return measure_step(config, torch.device("cpu"), room), room
    memory = torch.cuda.get_device_properties(0).total_memory
    room = int(memory * min(1.0, config.gpus_per_worker))
    return measure_step(config, torch.device("cuda"), room), room


def _measure(config: SweepConfig, cluster: Cluster, stage: Plan, screen: Screen) -> _Cost:
    """The cost of the largest trial's step on a worker like the trials' own."""
    import ray  # not before ray_cluster, which sets what Ray reads on import

    largest = trial_config(
        config,
        largest_corner(config),
        seed=config.seed,
        workers=stage.workers,
        gpus_per_worker=stage.gpus_per_worker,
        threads=stage.threads,
    )
    task = ray.remote(
        num_cpus=stage.threads, num_gpus=stage.gpus_per_worker, max_calls=1, max_retries=0
    )(_try_step)
    promise = task.remote(largest)
    worker = f"{count(stage.threads, 'CPU')} and {stage.gpus_per_worker:g} GPUs"
    sizes = ", ".join(f"{name}={value}" for name, value in _size_of(largest).items())
    try:
        with screen.notes() as note:
            while not ray.wait([promise], timeout=CALM_S)[0]:
                doing = autoscaler.progress()
                note(
                    "preflight",
                    f"waiting for a worker of {worker} to try a step of the largest trial"
                    + (f": {doing}" if doing else ""),
                )
        cost, room = ray.get(promise)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, RequestError):
            raise cause from None
        if dead_process():  # then it says nothing of the step
            raise
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise RequestError(
            f"one training step of the largest trial ({sizes}) failed on a worker of {worker}: "
            f"{said}. If memory is short, lower train.batch_size, train.crop or the model's width"
        ) from None
    memory = [node.memory for node in cluster.largest if node.cpus and node.memory]
    rooms = [room] if stage.gpus_per_worker else memory or [room]
    share = largest.train.batch_size // largest.workers // largest.train.accumulate
    how = "measured" if cost.images == share else f"extrapolated from {cost.images} images"
    there = f"{size(sum(rooms))} of {'GPU memory for it' if stage.gpus_per_worker else 'memory'}"
    if len(rooms) > 1:
        there += f" on {len(rooms)} nodes"
    says = (
        f"a worker of the largest trial ({sizes}) takes {size(cost.peak_bytes)} at its peak, "
        f"{how}; there are {there}"
    )
    screen.say(says)
    return _Cost(cost.peak_bytes, rooms, stage.gpus_per_worker > 0, says)

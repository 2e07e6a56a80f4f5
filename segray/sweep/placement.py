"""How trials share a cluster: what each worker gets, and how many trials there is room for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from segray.config import RequestError
from segray.config.schema import Final, Resources
from segray.data import cores
from segray.sweep.progress import count

_EPSILON = 1e-9  # a third of a GPU, three times, is one


@dataclass(frozen=True)
class Plan:
    """What every trial of a stage gets."""

    workers: int
    threads: int  # CPUs of a worker, and torch's threads in it
    gpus_per_worker: float
    concurrent: int

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        return f"{workers} of {self.of_a_worker} each"

    @property
    def of_a_worker(self) -> str:
        """What a worker asks of a node, in words."""
        cpus = "1 CPU" if self.threads == 1 else f"{self.threads} CPUs"
        return cpus + (f", {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else "")


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, or a kind of machine that an autoscaler may add `most` of."""

    name: str
    cpus: int
    gpus: float = 0.0
    memory: int = 0  # bytes for trials; 0: not known
    most: int = 1

    def room(self, threads: int, gpus: float) -> int:
        """How many workers it holds. A share of a GPU is never put together from two."""
        fit = self.cpus // threads
        if gpus >= 1:
            fit = min(fit, int(self.gpus / gpus + _EPSILON))
        elif gpus > 0:
            fit = min(fit, int(self.gpus) * int(1 / gpus + _EPSILON))
        return fit

    @property
    def shape(self) -> str:
        """What it has, in words."""
        return count(self.cpus, "CPU") + (f" and {self.gpus:g} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class Cluster:
    """The machines that are there, and those that an autoscaler may add.

    `most_added`: of all kinds together.
    """

    nodes: tuple[Node, ...]
    kinds: tuple[Node, ...] = ()
    most_added: int = 0

    @property
    def largest(self) -> tuple[Node, ...]:
        """The nodes at its largest: of each kind as many as there may be, the largest first."""
        left = self.most_added
        added: list[Node] = []
        for kind in sorted(self.kinds, key=lambda node: (node.gpus, node.cpus), reverse=True):
            added += [kind] * min(left, kind.most)
            left -= min(left, kind.most)
        return (*self.nodes, *added)

    def __str__(self) -> str:
        shapes = Counter(node.shape for node in self.nodes if node.cpus or node.gpus)
        nodes = ", ".join(f"{count(n, 'node')} of {shape}" for shape, n in shapes.items())
        text = f"the cluster has {nodes or 'no node that trains'}"
        if self.kinds:
            kinds = ", ".join(f"{kind.most} x {kind.name} of {kind.shape}" for kind in self.kinds)
            text += f" and may add {kinds}, at most {count(self.most_added, 'node')} in all"
        return text


def this_machine() -> Cluster:
    """What Ray would find here."""
    return Cluster((Node("this machine", cores(), torch.cuda.device_count()),))


def nodes_of(alive: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Ray's nodes, as `ray.nodes()` has them, that are alive."""
    return tuple(
        Node(
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            float(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("memory", 0)),
        )
        for node in alive
        if node["Alive"]
    )


def plan(resources: Resources, cluster: Cluster, trials: int) -> Plan:
    """What each of `trials` trials gets of the cluster at its largest.

    auto: a worker takes a GPU where there are any, and its share of the cores. Without GPUs as many
    trials run at once as there are cores, but at most a quarter of them all: of trials that all
    start together, sampler and ASHA learn nothing. Cores that are left over become threads. No
    worker gets more than a node has. Raises RequestError, with the arithmetic, for a trial that the
    cluster can never hold.
    """
    nodes = cluster.largest
    with_gpus = [node for node in nodes if node.gpus]
    per_gpu = resources.gpus_per_worker
    gpus = (1.0 if with_gpus else 0.0) if per_gpu == "auto" else per_gpu
    usable = [node for node in nodes if node.cpus and (not gpus or node.gpus)]
    limit = trials if gpus else max(2, math.ceil(trials / 4))
    wanted = limit if resources.max_concurrent == "auto" else resources.max_concurrent
    wanted = min(wanted, trials)

    def fitting(threads: int) -> int:
        return sum(node.room(threads, gpus) for node in usable) // resources.workers

    if resources.cpus_per_worker != "auto":
        threads = resources.cpus_per_worker
    elif gpus:
        share = min((node.cpus / node.gpus for node in usable), default=1.0)
        threads = max(1, min((int(share * gpus), *(node.cpus for node in usable))))
    else:
        widest = max((node.cpus for node in usable), default=1)
        cpus = sum(node.cpus for node in usable)
        threads = max(1, min(widest, cpus // (wanted * resources.workers)))
        while threads > 1 and fitting(threads) < wanted:  # a worker's threads are on one node
            threads -= 1
    fits = fitting(threads)
    if fits == 0:
        one = Plan(resources.workers, threads, gpus, 1)
        places = sum(node.room(threads, gpus) for node in usable)
        raise RequestError(
            f"resources: a trial needs {one}; there is room for {places} such at most, as "
            f"{cluster}. Lower resources.workers, cpus_per_worker or gpus_per_worker"
        )
    return Plan(resources.workers, threads, gpus, min(fits, wanted))


def plan_final(resources: Resources, final: Final, cluster: Cluster) -> Plan:
    """What each training of the final stage gets: side by side as far as there are cores.

    Raises RequestError as `plan` does.
    """
    trainings = final.trainings
    cpus = sum(node.cpus for node in cluster.largest)
    side_by_side = max(1, min(trainings, cpus // final.workers))
    if resources.max_concurrent != "auto":
        side_by_side = min(side_by_side, resources.max_concurrent)
    changes = {"workers": final.workers, "max_concurrent": side_by_side}
    return plan(resources.model_copy(update=changes), cluster, trainings)

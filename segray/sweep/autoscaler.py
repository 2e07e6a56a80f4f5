"""What an autoscaler may add to the cluster, and what it is doing about it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segray.sweep.placement import Node

BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # `ray up` puts the cluster's file there, on the head

_REPORT = b"__autoscaling_status"


def node_kinds() -> tuple[tuple[Node, ...], int]:
    """The kinds of node that the cluster of this head may add, and how many of all kinds together.

    Ray's autoscaler tells nobody what it may add; but where `ray up` made the cluster, its file is
    on the head, with each kind's CPUs and GPUs filled in. Elsewhere nothing is known.
    """
    file = Path(BOOTSTRAP).expanduser()
    if not file.is_file():
        return (), 0
    with file.open(encoding="utf-8") as stream:
        cluster = yaml.safe_load(stream)
    head = cluster.get("head_node_type")
    kinds = [
        _kind(name, kind, cluster)
        for name, kind in cluster.get("available_node_types", {}).items()
        if name != head
    ]
    trains = tuple(kind for kind in kinds if kind.most and (kind.cpus or kind.gpus))
    return trains, int(cluster.get("max_workers", 0))


def _kind(name: str, kind: Mapping[str, Any], cluster: Mapping[str, Any]) -> Node:
    has = kind.get("resources", {})
    most = int(kind.get("max_workers", cluster.get("max_workers", 0)))
    cpus, gpus, memory = (has.get(what, 0) for what in ("CPU", "GPU", "memory"))
    return Node(name, int(cpus), float(gpus), int(memory), most)


def progress() -> str:
    """What the autoscaler does at the moment: nodes that it starts, and why some did not start.

    Empty where there is none, or it has nothing to do.
    """
    import ray

    with contextlib.suppress(Exception):  # it is for a person to read: no sweep fails for it
        starting, failed = (_first if _version(ray) == 1 else _second)(ray)
        known = {kind.name for kind in node_kinds()[0]}
        nodes = ", ".join(
            f"{n} x {kind}" for kind, n in sorted(starting.items()) if not known or kind in known
        )
        parts = []
        if nodes:
            parts.append(f"the autoscaler is starting {nodes}")
        if failed:
            parts.append(f"no node of {', '.join(failed)}")
        return "; ".join(parts)
    return ""


def _version(ray: Any) -> int:
    """Which of Ray's autoscalers is at work: v1 leaves its report in Ray's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_get

    return 1 if _internal_kv_get(_REPORT) else 2


def _second(ray: Any) -> tuple[Counter[str], list[str]]:
    """What Ray's autoscaler v2 starts, and what did not start."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    starting = Counter[str](node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    failed = [f"{one.ray_node_type_name} ({one.details})" for one in status.failed_launches]
    return starting, failed


def _first(ray: Any) -> tuple[Counter[str], list[str]]:
    """What Ray's autoscaler v1 starts, and what did not start."""
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get(_REPORT))["autoscaler_report"]
    starting = Counter[str](kind for _, kind, _ in report["pending_nodes"])
    starting.update(report["pending_launches"])
    availability = (report.get("node_availability_summary") or {}).get("node_availabilities", {})
    failed = [
        f"{kind} ({said['unavailable_node_information']['description']})"
        for kind, said in availability.items()
        if said.get("unavailable_node_information")
    ]
    return starting, failed

"""Which type of machine Ray's autoscaler asks for where several would do: one that can be had."""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private import resource_demand_scheduler


def prefer_available(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[bool | float, ...] | None:
    """Autoscaler v1's score of a node type, below that of its equals for 30 minutes after a launch
    of it failed; None where it holds none of `resources`. Of equals Ray takes the last by name,
    which is why `gpu-spot` comes before `gpu-on-demand`.

    Loaded by the head's autoscaler, where RAY_AUTOSCALER_UTILIZATION_SCORER names it. Ray's
    default score has what it takes, node_availability_summary, and does not look at it (Ray 2.60,
    resource_demand_scheduler.py).
    """
    score = resource_demand_scheduler._default_utilization_scorer(
        node_resources,
        resources,
        node_type,
        node_availability_summary=node_availability_summary,
    )
    if score is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    gpus_spared, *rest = score  # first of all, no GPU machine for what needs none
    return (gpus_spared, record is None or record.is_available, *rest)

"""Ray's own bin packing with our score: spot machines first, others while none can be had."""

import time
from functools import partial

import pytest
import ray.autoscaler._private.resource_demand_scheduler as scheduler
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeProviderAvailabilityTracker,
)
from ray.autoscaler.node_launch_exception import NodeLaunchException

from segray.submit.cluster_file import read_cluster
from segray.sweep.spot import prefer_available


@pytest.fixture
def node_types(root):
    return read_cluster(root / "cluster.yaml")["available_node_types"]


def launched(node_types, demands, tracker, scorer=prefer_available):
    """Which machines Ray's autoscaler would ask for."""
    found, _ = scheduler.get_nodes_for(
        node_types,
        {"head": 1},
        "head",
        4,
        demands,
        partial(scorer, node_availability_summary=tracker.summary()),
    )
    return dict(found)


def refuse(tracker, node_type, at=None):
    error = NodeLaunchException("InsufficientInstanceCapacity", "no spot capacity", None)
    tracker.update_node_availability(node_type, int(at or time.time()), error)


def test_spot_machines_come_first(node_types):
    tracker = NodeProviderAvailabilityTracker()
    assert launched(node_types, [{"GPU": 1, "CPU": 8}] * 2, tracker) == {"gpu-spot": 2}


def test_a_refused_spot_machine_gives_way_to_one_on_demand_for_half_an_hour(node_types):
    tracker = NodeProviderAvailabilityTracker()
    refuse(tracker, "gpu-spot")
    assert launched(node_types, [{"GPU": 1}] * 2, tracker) == {"gpu-on-demand": 2}
    refuse(tracker, "gpu-on-demand")  # neither: the better one is tried again
    assert launched(node_types, [{"GPU": 1}], tracker) == {"gpu-spot": 1}
    long_ago = NodeProviderAvailabilityTracker()
    refuse(long_ago, "gpu-spot", at=time.time() - 31 * 60)
    assert launched(node_types, [{"GPU": 1}], long_ago) == {"gpu-spot": 1}


def test_rays_own_score_would_ask_for_spot_machines_for_ever(node_types):
    """If this fails, Ray has learnt it: our score is no longer needed."""
    tracker = NodeProviderAvailabilityTracker()
    refuse(tracker, "gpu-spot")
    own = scheduler._default_utilization_scorer
    assert launched(node_types, [{"GPU": 1}], tracker, own) == {"gpu-spot": 1}


def test_what_no_type_holds_gets_none(node_types):
    tracker = NodeProviderAvailabilityTracker()
    assert launched(node_types, [{"GPU": 2}], tracker) == {}

import pytest

from segray.config import RequestError
from segray.config.schema import Resources
from segray.sweep.placement import Cluster, Node, Plan, plan


def machines(*shapes):
    """A cluster of nodes with so many CPUs and GPUs."""
    return Cluster(tuple(Node(f"n{i}", *shape) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize(
    ("resources", "cluster", "trials", "expected"),
    [
        ({}, machines((2,)), 10, Plan(1, 1, 0.0, 2)),
        ({}, machines((2,)), 1, Plan(1, 2, 0.0, 1)),
        ({}, machines((64,)), 24, Plan(1, 10, 0.0, 6)),
        ({"max_concurrent": 24}, machines((64,)), 24, Plan(1, 2, 0.0, 24)),
        ({"max_concurrent": 1}, machines((4,)), 10, Plan(1, 4, 0.0, 1)),
        ({"workers": 2}, machines((2,)), 10, Plan(2, 1, 0.0, 1)),
        ({"workers": 2, "max_concurrent": 1}, machines((8,)), 10, Plan(2, 4, 0.0, 1)),
        ({}, machines((16, 4)), 10, Plan(1, 4, 1.0, 4)),
        ({"workers": 4}, machines((16, 4)), 10, Plan(4, 4, 1.0, 1)),
        ({"gpus_per_worker": 0.5}, machines((16, 1)), 10, Plan(1, 8, 0.5, 2)),
        ({"gpus_per_worker": 0}, machines((4, 1)), 16, Plan(1, 1, 0.0, 4)),
        ({"max_concurrent": 3}, machines((2,)), 10, Plan(1, 1, 0.0, 2)),
        # No worker gets more than one node has, nor its threads from two.
        ({"max_concurrent": 1}, machines((8,), (8,)), 10, Plan(1, 8, 0.0, 1)),
        ({"max_concurrent": 2}, machines((4,), (2,)), 10, Plan(1, 2, 0.0, 2)),
        ({"workers": 2}, machines((0,), (1,), (1,)), 10, Plan(2, 1, 0.0, 1)),
        # CPUs without a GPU are of no use where trials take one; the fullest node says how many.
        ({}, machines((64,), (8, 8)), 10, Plan(1, 1, 1.0, 8)),
        ({}, machines((32, 4), (8, 4)), 10, Plan(1, 2, 1.0, 8)),
        # Of two GPUs four trials can have 0.4 each, not five.
        ({"gpus_per_worker": 0.4}, machines((16, 2)), 10, Plan(1, 3, 0.4, 4)),
        ({"gpus_per_worker": 2}, machines((24, 3), (24, 3)), 10, Plan(1, 16, 2, 2)),
    ],
)
def test_what_a_trial_gets(resources, cluster, trials, expected):
    assert plan(Resources(**resources), cluster, trials) == expected


SPOT, ON_DEMAND = Node("spot", 8, 1, most=6), Node("on-demand", 8, 1, most=4)
HEAD = Node("head", 0)


def test_nodes_that_an_autoscaler_may_add_count():
    assert plan(Resources(), Cluster((HEAD,), (SPOT,), 6), 24) == Plan(1, 8, 1.0, 6)
    # Both kinds together are no more than the cluster's own limit.
    assert plan(Resources(), Cluster((HEAD,), (SPOT, ON_DEMAND), 8), 24) == Plan(1, 8, 1.0, 8)
    assert plan(Resources(workers=4), Cluster((HEAD,), (SPOT, ON_DEMAND), 8), 24).concurrent == 2


@pytest.mark.parametrize(
    ("resources", "cluster", "words"),
    [
        ({"workers": 3}, machines((2,)), "3 workers of 1 CPU each; there is room for 2"),
        ({"gpus_per_worker": 1}, machines((2,)), "1 GPU each; there is room for 0"),
        ({"workers": 2}, machines((8, 1)), "2 workers of 8 CPUs, 1 GPU each; there is room for 1"),
        ({"cpus_per_worker": 4}, machines((2,)), "the cluster has 1 node of 2 CPUs"),
        ({"cpus_per_worker": 4}, machines((3,), (3,)), "the cluster has 2 nodes of 3 CPUs"),
        (
            {"gpus_per_worker": 2},
            Cluster((HEAD,), (SPOT, ON_DEMAND), 8),
            "the cluster has no node that trains and may add 6 x spot of 8 CPUs and 1 GPUs, "
            "4 x on-demand of 8 CPUs and 1 GPUs, at most 8 nodes in all",
        ),
        ({"workers": 9}, Cluster((HEAD,), (SPOT, ON_DEMAND), 8), "there is room for 8 such"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic(resources, cluster, words):
    with pytest.raises(RequestError) as refusal:
        plan(Resources(**resources), cluster, 10)
    assert words in str(refusal.value)

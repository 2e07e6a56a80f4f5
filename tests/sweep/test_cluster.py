import pytest

from segray.config import RequestError
from segray.config.schema import Resources
from segray.sweep.cluster import Plan, plan


@pytest.mark.parametrize(
    ("resources", "cluster", "trials", "expected"),
    [
        ({}, {"CPU": 2}, 10, Plan(1, 1, 0.0, 2)),
        ({}, {"CPU": 2}, 1, Plan(1, 2, 0.0, 1)),
        ({}, {"CPU": 64}, 24, Plan(1, 10, 0.0, 6)),
        ({"max_concurrent": 24}, {"CPU": 64}, 24, Plan(1, 2, 0.0, 24)),
        ({"max_concurrent": 1}, {"CPU": 4}, 10, Plan(1, 4, 0.0, 1)),
        ({"workers": 2}, {"CPU": 2}, 10, Plan(2, 1, 0.0, 1)),
        ({"workers": 2, "max_concurrent": 1}, {"CPU": 8}, 10, Plan(2, 4, 0.0, 1)),
        ({}, {"CPU": 16, "GPU": 4}, 10, Plan(1, 4, 1.0, 4)),
        ({"workers": 4}, {"CPU": 16, "GPU": 4}, 10, Plan(4, 4, 1.0, 1)),
        ({"gpus_per_worker": 0.5}, {"CPU": 16, "GPU": 1}, 10, Plan(1, 8, 0.5, 2)),
        ({"gpus_per_worker": 0}, {"CPU": 4, "GPU": 1}, 16, Plan(1, 1, 0.0, 4)),
        ({"max_concurrent": 3}, {"CPU": 2}, 10, Plan(1, 1, 0.0, 2)),
        # Two nodes: no worker gets more than one of them has.
        ({"max_concurrent": 1}, {"CPU": 16, "node_CPU": 8}, 10, Plan(1, 8, 0.0, 1)),
        ({}, {"CPU": 72, "GPU": 8, "node_CPU": 64, "CPU_per_GPU": 1}, 10, Plan(1, 1, 1.0, 8)),
    ],
)
def test_what_a_trial_gets(resources, cluster, trials, expected):
    assert plan(Resources(**resources), cluster, trials) == expected


@pytest.mark.parametrize(
    ("resources", "cluster", "needs"),
    [
        ({"workers": 3}, {"CPU": 2}, "(workers: 3) needs 3 CPUs"),
        ({"gpus_per_worker": 1}, {"CPU": 2}, "1 GPUs"),
        ({"workers": 2}, {"CPU": 8, "GPU": 1}, "2 GPUs"),
        ({"cpus_per_worker": 4}, {"CPU": 2}, "4 CPUs"),
        ({"cpus_per_worker": 4}, {"CPU": 6, "node_CPU": 3}, "4 CPUs"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic(resources, cluster, needs):
    with pytest.raises(RequestError) as refusal:
        plan(Resources(**resources), cluster, 10)
    assert needs in str(refusal.value)
    assert f"this cluster has {cluster['CPU']} CPUs" in str(refusal.value)

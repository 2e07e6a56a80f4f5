"""Ray's own autoscaler, over Ray's simulated nodes: what it may add, and what it does."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from segray.sweep import autoscaler
from segray.sweep.placement import Node

CLUSTER = {
    "cluster_name": "simulated",
    "max_workers": 3,
    "provider": {"type": "fake_multinode"},
    "auth": {"ssh_user": "nobody"},
    "idle_timeout_minutes": 1,
    "upscaling_speed": 1.0,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "spot": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{name: {} for name in ("docker", "file_mounts", "head_node", "worker_nodes")},
    **{
        name: []
        for name in (
            "cluster_synced_files",
            "head_setup_commands",
            "head_start_ray_commands",
            "initialization_commands",
            "rsync_exclude",
            "rsync_filter",
            "setup_commands",
            "worker_setup_commands",
            "worker_start_ray_commands",
        )
    },
    "file_mounts_sync_continuously": False,
}
# A task waits for a node; what is said of it first.
SCRIPT = """
import os, subprocess, sys, time
ray_, home = sys.argv[1], os.environ["HOME"]
subprocess.run([ray_, "start", "--head", "--num-cpus=0", "--port=6379", "--disable-usage-stats",
    "--dashboard-host=127.0.0.1", "--object-store-memory=100000000",
    f"--autoscaling-config={home}/ray_bootstrap_config.yaml"], check=True, stdout=sys.stderr)
import ray
ray.init(address="127.0.0.1:6379", log_to_driver=False)
from segray.sweep import autoscaler
task = ray.remote(num_cpus=1)(lambda: "ran")
waits = task.remote()
until = time.monotonic() + 90
while not (said := autoscaler.progress()) and time.monotonic() < until:
    time.sleep(0.2)
print(said)
"""


@pytest.mark.cluster
def test_nodes_that_are_being_started_are_named(tmp_path):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: a namespace in which Ray ends with the test")
    # A simulated node is there at once; one with `memory` is started again and again in vain.
    kinds = CLUSTER["available_node_types"]
    slow = kinds | {"spot": kinds["spot"] | {"resources": {"CPU": 1, "memory": 10**9}}}
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(CLUSTER | {"available_node_types": slow}))
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "HOME": str(tmp_path),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",  # as in cluster.yaml
    }
    # Without the token of a sweep that this process has run.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = Path(sys.executable).with_name("ray")
    namespace = ["unshare", "-p", "-m", "-f", "--mount-proc", "--kill-child"]
    # A folder of its own: in /tmp/ray it would leave word of itself, which others then look for.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        run = subprocess.run(
            [*namespace, sys.executable, "-c", SCRIPT, str(ray)],
            env=kept | variables | {"RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "the autoscaler is starting 1 x spot"


def test_what_may_be_added_is_read_from_the_heads_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert autoscaler.node_kinds() == ((), 0)
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CLUSTER))
    assert autoscaler.node_kinds() == ((Node("spot", 1, most=2),), 3)

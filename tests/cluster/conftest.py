"""A head and two workers, hosts of their own on this machine, and somebody's laptop beside them."""

import importlib.util
import secrets
import sys
from pathlib import Path

import pytest

from segray.data.scenes import write_scenes
from segray.submit.cluster_file import (
    NETRC,
    TOKEN,
    fill,
    for_own_machines,
    read_cluster,
    write_cluster,
    write_private,
)

SCENES = {"train": 16, "val": 3, "cities": 4, "val_cities": 1}
ROOT = Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location("hosts", Path(__file__).with_name("hosts.py"))
_hosts = importlib.util.module_from_spec(_spec)
sys.modules["hosts"] = _hosts  # where its dataclasses look for their module
_spec.loader.exec_module(_hosts)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The hosts; nothing runs on them but sshd. Each has its own copy of the data."""
    if reason := _hosts.why_not():
        pytest.skip(reason)
    base = tmp_path_factory.mktemp("hosts")
    read = sorted({ROOT, Path(sys.prefix), Path(sys.base_prefix)})
    with _hosts.make_hosts(base, ["laptop", "head", "worker1", "worker2"], read) as made:
        for host in made.by_name.values():
            for file in (".bashrc", ".profile"):
                with (host.own / "home" / file).open("a") as stream:
                    stream.write("export RAY_AUTH_MODE=token PYTHONPATH=~/segray\n")
            write_scenes(host.data / "scenes", size=(32, 64), seed=0, **SCENES)
        yield made


@pytest.fixture(scope="module")
def cluster_file(hosts):
    """cluster.yaml for these machines, each of which counts as one CPU and has Python already."""
    cluster = read_cluster(ROOT / "cluster.yaml")
    own = for_own_machines(
        cluster,
        hosts["head"].address,
        [hosts["worker1"].address, hosts["worker2"].address],
        "root",
        hosts.key,
        setup_commands=[line for line in cluster["setup_commands"] if "venv" not in line],
    )
    own["worker_start_ray_commands"] = [
        line.replace("ray start ", "ray start --num-cpus=1 ")
        for line in own["worker_start_ray_commands"]
    ]
    own["head_start_ray_commands"] = [
        # A node that is gone is noticed after half a minute rather than more than one.
        line.replace("ray start ", "export RAY_health_check_timeout_ms=3000; ray start ")
        for line in own["head_start_ray_commands"]
    ]
    token, netrc = hosts.base / "token", hosts.base / "netrc"
    write_private(token, secrets.token_hex(32))
    write_private(netrc, "")
    file = hosts.base / "cluster.yaml"
    write_cluster(fill(own, {TOKEN: str(token), NETRC: str(netrc)}), file)
    return file

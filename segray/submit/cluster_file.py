"""The file that `ray up` takes: read, filled in for this user, derived for one's own machines."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from segray.config import RequestError

TOKEN, NETRC, GROUP = "TOKEN_FILE", "NETRC_FILE", "SECURITY_GROUP"  # what `fill` is asked for
LEFT = "segray:left:"

Cluster = dict[str, Any]


def read_cluster(file: str | Path) -> Cluster:
    """What a cluster file says, its local paths absolute: those are relative to its own folder.

    Raises RequestError for a file that cannot be read, or that is no cluster's.
    """
    path = Path(file)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"no cluster file at {path} ({error.strerror}): name one, such as cluster.yaml at the "
            "root of segray's repository"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is no YAML: {error}") from None
    if not isinstance(data, dict):
        raise RequestError(
            f"{path}: expected a mapping with cluster_name and provider, got "
            f"{type(data).__name__}; cluster.yaml at the root of segray's repository is an example"
        )
    name = data.get("cluster_name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise RequestError(
            f"{path}: cluster_name: expected a name of letters, digits, - and _, got {name!r}; Ray "
            "finds the cluster's machines by it"
        )
    provider = data.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        raise RequestError(
            f"{path}: provider.type: expected aws, gcp, local or another of Ray's, got {provider!r}"
        )
    mounts = data.get("file_mounts") or {}
    if not isinstance(mounts, dict):
        raise RequestError(
            f"{path}: file_mounts: expected a path there: a path here, got {mounts!r}"
        )
    if provider["type"] == "aws":
        _check_node_types(path, data)
    folder = path.absolute().parent
    data["file_mounts"] = {
        there: here
        if here in (TOKEN, NETRC)
        else os.path.normpath(folder / Path(str(here)).expanduser())
        for there, here in mounts.items()
    }
    return data


def _check_node_types(path: Path, data: Cluster) -> None:
    """Ray would put types of its own in the place of none, in a group that is open to everybody."""
    types = data.get("available_node_types")
    if not isinstance(types, dict) or not types:
        raise RequestError(
            f"{path}: available_node_types: expected a mapping with a node type for the head and "
            f"those for workers, as in cluster.yaml at the root of segray's repository, got {types}"
        )
    for name, node in types.items():
        if not isinstance(node, dict):
            raise RequestError(
                f"{path}: available_node_types.{name}: expected a mapping with node_config, got "
                f"{node!r}"
            )
        if not isinstance(node.get("node_config") or {}, dict):
            raise RequestError(
                f"{path}: available_node_types.{name}.node_config: expected a mapping of what EC2 "
                f"is asked for, as in InstanceType: m6i.large, got {node['node_config']!r}"
            )
    head = data.get("head_node_type")
    if not isinstance(head, str) or head not in types:
        raise RequestError(
            f"{path}: head_node_type: expected one of available_node_types "
            f"({', '.join(map(str, types))}), got {head!r}"
        )


def fill(cluster: Cluster, values: Mapping[str, str]) -> Cluster:
    """The cluster with every text that is a key of `values` replaced by what stands there."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return values.get(value, value) if isinstance(value, str) else value

    filled: Cluster = walk(cluster)
    return filled


def write_cluster(cluster: Cluster, file: Path) -> None:
    """Write a cluster file that its owner alone can read; the old one stays until it is whole."""
    write_private(file, yaml.safe_dump(cluster, sort_keys=False, width=1000))


def write_private(file: Path, text: str) -> None:
    """Write a file of mode 0600, in a folder of 0700; another process sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(temporary, file)


def for_own_machines(
    cluster: Cluster,
    head_ip: str,
    worker_ips: Sequence[str],
    ssh_user: str,
    ssh_key: str | Path,
    *,
    setup_commands: Sequence[str] | None = None,
) -> Cluster:
    """The same cluster on machines that are there already, reached by ssh.

    Derives from the shipped cluster.yaml the file that its block "Machines of your own" tells a
    person to write. No command calls it: tests run sweeps on hosts with what it returns, and see
    to it that block and function agree.

    A cloud's node types, image, docker and the commands that serve them go; the rest stays: what
    is shipped, how Ray is started (with autoscaler v1, the only one that starts Ray on such
    machines). A head without workers trains, too. `setup_commands` replace the cluster's own, where
    the machines have segray installed: an empty list runs none.
    """
    own = deepcopy(cluster)
    for key in (
        *("available_node_types", "head_node_type", "max_workers", "docker"),
        *("initialization_commands", "head_setup_commands", "worker_setup_commands"),
    ):
        own.pop(key, None)
    own["provider"] = {"type": "local", "head_ip": head_ip, "worker_ips": list(worker_ips)}
    own["auth"] = {"ssh_user": ssh_user, "ssh_private_key": str(ssh_key)}
    if setup_commands is not None:
        own["setup_commands"] = list(setup_commands)
    own["head_start_ray_commands"] = [
        _on_own_head(command, trains=not worker_ips)
        for command in own.get("head_start_ray_commands", [])
    ]
    return own


def _on_own_head(command: str, *, trains: bool) -> str:
    if "ray start" not in command:
        return command
    if trains:
        command = re.sub(r" --num-[cg]pus=0\b", "", command)
    choice = "RAY_enable_autoscaler_v2=0"
    return command if choice in command else f"export {choice}; {command}"


def own_workers(cluster: Cluster) -> list[str]:
    """The addresses of the workers on which `ray down` leaves Ray running: it ends a cloud's
    machines and stops containers, but of one's own machines it looks after the head alone.
    """
    provider = cluster["provider"]
    if provider["type"] != "local" or cluster.get("docker"):
        return []
    return list(provider.get("worker_ips") or [])


def stop_workers(cluster: Cluster) -> str:
    """The shell command that ends Ray on the head and on own_workers; of those on which it could
    not, it prints the address after LEFT.

    It is for the head, which reaches every worker by the key that `ray up` leaves there. The head's
    Ray ends first: its autoscaler would start the workers' anew.
    """
    user = shlex.quote(cluster["auth"]["ssh_user"])
    options = "-n -i ~/ray_bootstrap_key.pem -o BatchMode=yes -o StrictHostKeyChecking=no"
    options += " -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 -o ServerAliveInterval=5"
    stop = shlex.quote("bash -lic '. ~/.bashrc; ray stop'")  # as Ray itself runs its commands
    each = f"ssh {options} {user}@$ip {stop} || echo {LEFT}$ip"
    return f"ray stop; for ip in {shlex.join(own_workers(cluster))}; do ({each}) & done; wait"

"""The nodes of a cluster: getting each ready before the first trial, and noticing which are gone.

What a node lacks is found here, with its name. A node that comes later gets ready with its first
trial, which says so in the driver's table.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import secrets
import socket
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import optuna
import ray

from segray.config import RequestError, SegrayError, SweepConfig
from segray.data import data_version, open_dataset, read_splits
from segray.data.remote import is_remote
from segray.sweep.board import find_board, on_node, open_board
from segray.sweep.preflight import check_writable, origins
from segray.sweep.progress import Screen, count
from segray.sweep.trial import on_board
from segray.train import build_trial_model

POLL_S = 0.5  # between looks at how far the nodes are
ANSWER_S = 3.0  # for a node to accept a connection
_PACKAGES = ("segray", "torch", "transformers")  # that decide numbers


def prepare_nodes(config: SweepConfig, screen: Screen, *, gpus: bool) -> None:
    """On every other node that trains: check and cache the data, fetch weights, check the storage.

    With `gpus` those nodes train that have any.

    Raises RequestError where a node lacks something, with what it is and the names of all such
    nodes. On the driver's own node preflight has seen to it.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["NodeID"] != here and _trains(node, gpus)
    }
    if not others:
        return
    sight = None if is_remote(config.storage) else _Sight(Path(config.storage))
    name = f"segray-nodes-{secrets.token_hex(4)}"
    board = open_board(name, optuna.pruners.NopPruner(), config.metric.goal, None, Path(os.devnull))
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(_prepare)
    try:
        version = data_version(config.data)
        expected = version, _digest(config, version), _versions()
        jobs = {
            task.options(scheduling_strategy=on_node(node)).remote(
                config, name, sight and sight.file, *expected
            ): title
            for node, title in others.items()
        }
        _follow(jobs, board, screen)
    finally:
        ray.kill(board)
        if sight is not None:
            sight.end()


def trains_here(*, gpus: bool) -> bool:
    """Whether trials may run on the driver's own node."""
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and _trains(node, gpus) for node in ray.nodes())


def _trains(node: Mapping[str, Any], gpus: bool) -> bool:
    has = node["Resources"]
    return bool(node["Alive"] and has.get("CPU") and (has.get("GPU") or not gpus))


def lost_among(node_ids: Collection[str]) -> dict[str, str]:
    """Which of these nodes are gone: id -> name.

    Ray notices it only after some failed health checks, up to a minute later, and says of a trial
    that had a worker there that a connection broke: so the node itself is asked. Where Ray was
    started there anew, it is another node, on another port (see cluster.yaml), and does not answer.
    """
    return {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["NodeID"] in node_ids and not (node["Alive"] and _answers(node))
    }


def _answers(node: Mapping[str, Any]) -> bool:
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(address, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def alive() -> set[str]:
    """The ids of the nodes that Ray takes for alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _follow(jobs: Mapping[Any, str], board: Any, screen: Screen) -> None:
    """Wait for the nodes, and show how far they are; raises RequestError with what they lack."""
    waiting, lacking, told = list(jobs), [], set[str]()
    with screen.notes() as note:
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=POLL_S)
            notes = ray.get(board.notes.remote())
            for node in told - set(notes):
                note(node, "")
            for node, (what, done, total) in notes.items():
                note(node, f"{node}: {what} {done}/{total}")
            told = set(notes)
            for job in ready:
                try:
                    lack = ray.get(job)
                except ray.exceptions.RayError as error:
                    said = str(getattr(error, "cause", None) or error).strip().splitlines()
                    lack = said[-1] if said else type(error).__name__
                if lack:
                    lacking.append((jobs[job], lack))
    if lacking:
        nodes = "\n".join(f"  {node}: {lack}" for node, lack in lacking)
        some = f"{len(lacking)} of {count(len(jobs), 'other node')}"
        be = "is" if len(lacking) == 1 else "are"
        raise RequestError(f"{some} {be} not ready to train:\n{nodes}")


class _Sight:
    """A file in the storage, for other nodes to see that it is theirs as well."""

    def __init__(self, storage: Path) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        self.file = storage / f".segray-{secrets.token_hex(8)}"
        self.file.touch()

    def end(self) -> None:
        self.file.unlink(missing_ok=True)


def _prepare(
    config: SweepConfig,
    board: str,
    sight: Path | None,
    version: str | None,
    digest: str,
    versions: dict[str, str],
) -> str:
    """On a node: get it ready. What it lacks, or nothing."""
    note = on_board(find_board(board))
    try:
        if (mine := _versions()) != versions:
            other = [name for name in versions if mine[name] != versions[name]]
            told = ", ".join(f"{name} {mine[name]}, not {versions[name]}" for name in other)
            return f"has {told} as the driver: install the same packages"
        _check_storage(config, sight)
        if _digest(config, version, note) != digest:
            return (
                f"data.root: {config.data.root} holds other images or masks here than on the "
                "driver's node: copy them anew, or name a shared place (s3://bucket/folder)"
            )
        open_dataset(config.data, note, version)
        for one in origins(config):
            build_trial_model(one)
    except SegrayError as error:
        return str(error)
    return ""


def _check_storage(config: SweepConfig, sight: Path | None) -> None:
    if sight is None:
        check_writable(config.storage)
    elif not sight.is_file():
        raise RequestError(
            f"storage: {config.storage} is not the driver's folder of that name here: trials on "
            "several nodes need one that all share (NFS, say) under one path, or "
            "storage=s3://bucket/folder"
        )
    elif not os.access(config.storage, os.W_OK):
        raise RequestError(f"storage: cannot write to {config.storage} here: give this user rights")


def _digest(
    config: SweepConfig,
    version: str | None,
    note: Callable[[str, int, int], None] | None = None,
) -> str:
    """Of what images and masks there are, and how long: the same on nodes with the same data."""
    samples, _ = read_splits(config.data, note, version)
    facts = [(s.id, s.image.stat().st_size, s.mask.stat().st_size) for s in samples]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}

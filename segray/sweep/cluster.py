"""Ray for a sweep: started quietly on this machine, or joined where RAY_ADDRESS names a cluster."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from segray.config import RequestError, SegrayError, WorkError
from segray.data import cache_root
from segray.sweep.autoscaler import node_kinds
from segray.sweep.placement import Cluster, nodes_of

# Read by Ray as it is imported. Tune's own tables, files and snapshots: segray's records replace
# them.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A dead process is told in the trial's row and log.txt; Ray would print nine lines of its own.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
    # Ctrl-C ends the sweep; Tune would take it for the end of the trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Ray Train inside a trial: a dead worker is noticed after this many seconds rather than 2 ...
_WORKERS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # ... and nothing here reacts to a cloud's notice of preemption.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it would say each line of a trial's log twice
    # Tune runs each trial of a reused worker in a thread of its own, and glibc would give each of
    # the first 8 threads a core a heap that keeps what the trial freed: twice the memory.
    "MALLOC_ARENA_MAX": "2",
}

TMPDIR_LIMIT = 35  # characters: a socket's whole path has 107, and Ray's part of it about 70
WATCH_S = 0.5  # between looks at whether Ray still lives
PATIENCE_S = 10.0  # for this program to end by itself once it does not
_PASSED_ON = (  # no secret among them
    *("SEGRAY_CACHE", "WANDB_BASE_URL", "HF_HOME", "HF_HUB_OFFLINE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """Ray, for as long as the context lasts; yields what the cluster has.

    Ray's own processes listen on every interface, which cannot be changed, but answer only those
    who know a token: one made for this process, since Ray would write its own to a file that all
    users of the machine can read. (A program that imported Ray before has Ray's own way of it.)
    The dashboard, on loopback, runs because Ray Train, on its way
    out, asks its State API to free the workers' places; it must be this Ray's dashboard and no
    other's, hence a port of our own.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    given = [name for name in _PASSED_ON if name in os.environ]
    if "SEGRAY_CACHE" in os.environ:
        os.environ["SEGRAY_CACHE"] = str(cache_root())  # absolute: trials run in other folders
    token: dict[str, str] = {}
    if address:
        known = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
        if "RAY_AUTH_TOKEN" in os.environ or known.is_file():
            token["RAY_AUTH_MODE"] = "token"  # Ray asks for one where it starts a cluster
    elif "ray" not in sys.modules:  # Ray reads these as it is imported
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in (_QUIET | token).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        raise RequestError(
            "this program has called ray.init() already, and a sweep starts or joins Ray itself: "
            "call ray.shutdown() first; to run on a cluster, put its address into RAY_ADDRESS"
        )
    port = _free_port()
    where: dict[str, Any] = {"address": address}
    # A joined cluster's processes have the environment of whoever started it.
    variables = _WORKERS | {name: os.environ[name] for name in given}
    if not address:
        where = {
            "address": "local",  # never a Ray that somebody else left on this machine
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "object_store_memory": 200 * 2**20,  # nothing large passes through it
        }
        variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    # Of a W&B run that this program has open: a trial's client has a service of its own.
    foreign = ["WANDB_SERVICE"]
    if not address and len(temporary := os.environ.get("TMPDIR", "")) > TMPDIR_LIMIT:
        foreign.append("TMPDIR")  # Ray's sockets go to /tmp, trials' files where they are wanted
        variables["TMPDIR"] = temporary
    try:
        with _without(foreign):
            ray.init(
                **where,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": variables},
            )
    except Exception as error:
        if not address:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkError(
                f"Ray did not start on this machine: {said}. Nothing is lost; the same command, "
                "with --resume where a sweep had begun, starts it anew"
            ) from error
        expected = (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError)
        if not isinstance(error, expected):
            raise
        raise RequestError(
            f"no Ray cluster at RAY_ADDRESS={address} lets us in: {error}. If it asks for a token, "
            "put the cluster's into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None
    # A trial's failure is told by its record; Tune and Train would print its traceback as well.
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True, name="segray-ray").start()
    try:
        nodes = nodes_of(ray.nodes())
        kinds, most = node_kinds() if address else ((), 0)
        yield Cluster(nodes, kinds, max(0, most - (len(nodes) - 1)))  # beside the head
    except Exception as error:  # whatever Ray's calls make of its end
        if not isinstance(error, SegrayError) and (dead := dead_process()):
            raise RayLost(dead) from error
        raise
    finally:
        if dead_process():  # to leave it in order would take minutes, and end this process at once
            ray._private.worker._global_node.kill_all_processes(check_alive=False)
            atexit.register(_exit_now)  # before what Ray registered
        else:
            ray.shutdown()
        ended.set()


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """The environment lacks these variables within."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def dead_process() -> str | None:
    """Which of the Ray processes that this program started is gone, if one is: with it Ray is."""
    from ray._private import worker

    node = worker._global_node  # None: no Ray, or somebody else's
    processes = node.all_processes if node is not None else {}
    for kind in ("gcs_server", "raylet"):
        if any(info.process.poll() is not None for info in processes.get(kind, [])):
            return kind
    return None


class RayLost(WorkError):
    """Ray is gone, and this process can start no other."""

    def __init__(self, dead: str) -> None:
        super().__init__(
            f"Ray's process {dead} died, and Ray with it; every trial stands at its last epoch. "
            "The same command with --resume goes on"
        )


def _watch(ended: threading.Event) -> None:
    """End this program's wait for a Ray that is gone: some of Ray's calls would wait for ever.

    Whoever drives trials looks for `dead_process` himself, and is given time to do so.
    """
    while not ended.wait(WATCH_S):
        if dead := dead_process():
            if ended.wait(PATIENCE_S):
                return
            _thread.interrupt_main()
            if not ended.wait(PATIENCE_S):
                sys.stderr.write(f"error: {RayLost(dead)}\n")
                _exit_now()
            return


def _exit_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(RayLost.exit_code)


def _check_reachable(address: str) -> None:
    """Raises RequestError where nobody listens: Ray would try for many minutes."""
    if address == "auto":  # the Ray of this machine, which Ray finds or not at once
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise RequestError(
            f"RAY_ADDRESS={address}: expected host:port of a cluster's head, as in 10.0.0.5:6379, "
            "or auto on one of its nodes"
        )
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise RequestError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error.strerror or error}); start "
            "one with `ray start --head`, or unset it for Ray on this machine"
        ) from None


def _free_port() -> int:
    """A port for the dashboard, below those that the kernel hands out: Ray's own processes take
    such ports between our look and the dashboard's start.
    """
    while True:
        port = secrets.choice(range(20_000, 30_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port

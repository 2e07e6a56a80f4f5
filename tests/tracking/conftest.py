"""W&B without the account of the person who runs the tests, and with short limits."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segray.tracking import Tracker, start_tracker
from segray.tracking.wandb_tracker import _Server

KEY = "0123456789abcdef" * 2 + "01234567"
IDENTITY = {
    "project": "streets",
    "entity": None,
    "group": "unet-sweep",
    "job_type": "trial",
    "classes": ["flat", "sky", "human"],
}


@pytest.fixture(autouse=True)
def wandb_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own for every test: the user's W&B settings and key are never seen."""
    for name in [*os.environ]:
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segray.tracking.wandb_tracker._server", _Server())
    yield
    import wandb  # the client reads environment and settings once, until it is torn down

    wandb.teardown()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Tracker]:
    """Starts tracking a run in tmp_path/run."""

    def start(mode: Any, run_id: str = "trial-7", **changes: Any) -> Tracker:
        config = {
            "train": {"optimizer": {"lr": 6.0e-5}, "epochs": 3},
            "name": "unet",
            "root": Path("/data"),
        }
        of_run = {"run_id": run_id, "run_name": f"name of {run_id}", "config": config}
        return start_tracker(mode, **{**IDENTITY, **of_run, "folder": tmp_path / "run", **changes})

    return start


@pytest.fixture
def online(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with its address and a key in the environment."""
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits, for tests in which something hangs; a busy machine still starts a run."""
    for name, seconds in {
        "client.INIT_SECONDS": 6.0,
        "client.FINISH_SECONDS": 4.0,
        "client.ASK_SECONDS": 2,
        "sync.POLL_SECONDS": 2.0,
    }.items():
        monkeypatch.setattr(f"segray.tracking.{name}", seconds)


@pytest.fixture
def killed(tmp_path: Path) -> Callable[..., None]:
    """Tracks epochs in a process of its own, which is then killed: at once, or after the client
    has sent (every second here) or written (every 15) what it was told.
    """

    def run(mode: str, epochs: int, *, at_once: bool, run_id: str = "trial-7") -> None:
        wait = 0 if at_once else {"online": 4, "offline": 17}[mode]
        code = f"""
import os, signal, time
from pathlib import Path
from segray.tracking import start_tracker
tracker = start_tracker({mode!r}, **{IDENTITY!r}, run_id={run_id!r}, run_name="n",
    config={{}}, folder=Path({str(tmp_path / "run")!r}))
for epoch in range(1, {epochs} + 1):
    tracker.log({{"val/miou": epoch / 100}}, epoch=epoch)
time.sleep({wait})
os.kill(os.getpid(), signal.SIGKILL)
"""
        environment = os.environ | {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment)
        assert done.returncode == -9
        time.sleep(1.0)  # the client names its folders by the second

    return run

"""W&B without the account of the person who runs the tests, and with short limits."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


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
    monkeypatch.setattr("segray.tracking.wandb_tracker._said", set())
    monkeypatch.setattr("segray.tracking.client.INIT_SECONDS", 3.0)
    monkeypatch.setattr("segray.tracking.client.FINISH_SECONDS", 3.0)
    yield
    import wandb  # the client reads environment and settings once, until it is torn down

    wandb.teardown()

"""What every test shares: a cache of its own, and no W&B account of the person who runs it."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("wandb_server", ROOT / "tests" / "wandb_server.py")
_wandb_server = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_wandb_server)


@pytest.fixture(scope="session", autouse=True)
def private_surroundings(tmp_path_factory):
    """Nothing in the home folder is read or written; nothing goes to a W&B server."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "RAY_", "SEGRAY_"))]:
        del os.environ[name]
    os.environ["SEGRAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["NETRC"] = str(tmp_path_factory.mktemp("home") / "netrc")
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def same_environment():
    """What a sweep in the test's own process puts there does not reach the next test."""
    before = dict(os.environ)
    yield
    # Ray, once imported, goes on with the token that was there then.
    kept = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH_")}
    os.environ.clear()
    os.environ.update(before | kept)


@pytest.fixture
def root():
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def one_thread():
    """Two cores are all there is, and a result may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def server():
    """A W&B server on loopback: see wandb_server.py."""
    standin = _wandb_server.StandIn()
    yield standin
    standin.close()

"""What every test shares: a cache of its own, and no W&B account of the person who runs it."""

import importlib.util
import itertools
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).parent.parent
hypothesis.settings.register_profile("segray", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("segray")


def _module(name):
    """tests/<name>.py: the tests are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / f"{name}.py")
    found = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


_wandb_server = _module("wandb_server")
_s3_server = _module("s3_server")


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


_bucket_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_server():
    """moto's S3 in a process of its own: see s3_server.py. Nothing points at it yet."""
    started = _s3_server.S3Server()
    yield started
    started.close()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """An empty bucket of this test's own, which clients in this process and those it starts reach.

    s3://{bucket.name} is bucket.url.
    """
    found = _s3_server.Bucket(f"test-{os.getpid()}-{next(_bucket_numbers)}", s3_server)
    s3_server.client().create_bucket(Bucket=found.name)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def s3_proxy(bucket, s3_server, monkeypatch):
    """As `bucket`, but through a proxy that counts, delays or refuses: see s3_server.Proxy."""
    proxy = _s3_server.Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()

"""AWS as moto plays it, in a process of its own, with the image that cluster.yaml names."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import boto3
import pytest

from segray.submit.cluster_file import read_cluster

ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture
def cluster_file(root):
    return root / "cluster.yaml"


@pytest.fixture
def play_aws(tmp_path, cluster_file):
    """A function: an address to listen on -> what makes a program speak to moto there."""
    types = read_cluster(cluster_file)["available_node_types"]
    image = {
        "ami_id": "ami-0123456789abcdef0",
        "name": types["head"]["node_config"]["ImageId"],
        "owner_id": "898082745236",
        "owner_alias": "amazon",
        "public": True,
        "architecture": "x86_64",
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "root_device_type": "ebs",
        "root_device_name": "/dev/sda1",
        "image_location": "amazon/image",
        "description": "",
        "platform": None,
        "sriov": "simple",
    }
    (tmp_path / "amis.json").write_text(json.dumps([image]))
    with contextlib.ExitStack() as stack:

        def start(address):
            with socket.socket() as probe:
                probe.bind((address, 0))
                port = probe.getsockname()[1]
            environment = os.environ | {
                "MOTO_AMIS_PATH": str(tmp_path / "amis.json"),
                "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
            }
            log = stack.enter_context((tmp_path / "moto.log").open("w"))
            server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)],
                env=environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
            url = f"http://{address}:{port}"
            until = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                    return ACCOUNT | {"AWS_ENDPOINT_URL": url}
                assert server.poll() is None, (tmp_path / "moto.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)

        yield start


@pytest.fixture
def client(play_aws, monkeypatch):
    """A client of one of AWS's services, which moto plays on loopback for this process."""
    for name, value in play_aws("127.0.0.1").items():
        monkeypatch.setenv(name, value)
    return lambda service: boto3.client(service, region_name="us-west-2")

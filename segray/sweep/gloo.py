"""Workers on several machines find each other over the network that the cluster's nodes use."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Any

import ray
from ray.train.torch import TorchConfig

VARIABLE = "GLOO_SOCKET_IFNAME"
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux: the IPv4 address of an interface


_Base: Any = TorchConfig().backend_cls


class GlooConfig(TorchConfig):
    """Ray Train's setup of torch's workers, by gloo.

    gloo binds to what a machine's own name resolves to. On Debian and Ubuntu that is 127.0.1.1,
    where no other machine reaches it: training would fail, or wait for half an hour.
    """

    def __init__(self) -> None:
        super().__init__(backend="gloo")

    @property
    def backend_cls(self) -> type[Any]:
        return _Backend


class _Backend(_Base):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    """On a worker: gloo uses the interface that Ray knows the node by, unless one was chosen."""
    if found := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(VARIABLE, found)


def interface_of(address: str) -> str | None:
    """The network interface with that IPv4 address, where Linux knows one."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe, _GET_ADDRESS, request)
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:  # struct ifreq: name, family, port
                return name
    return None

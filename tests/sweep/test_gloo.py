"""Which interface gloo is told to use; that it works between machines, tests/cluster shows."""

import sys

import pytest

from segray.sweep.gloo import GlooConfig, interface_of


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.1") is None  # reserved for documentation: nobody has it


def test_it_is_rays_own_setup_of_torch_otherwise():
    assert GlooConfig().backend == "gloo"
    assert GlooConfig().backend_cls.__mro__[1].__name__ == "_TorchBackend"

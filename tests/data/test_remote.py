"""A folder in an object store, against moto's S3."""

import pytest

from segray.data.remote import RemoteFolder


def test_what_is_written_is_listed_read_and_deleted(bucket) -> None:
    folder = RemoteFolder(f"{bucket.url}/a")
    assert folder.files() == {}
    folder.write("b/c.txt", b"one")
    folder.write("d.txt", b"")
    found = folder.files()
    assert {name: one.bytes for name, one in found.items()} == {"b/c.txt": 3, "d.txt": 0}
    assert folder.read("b/c.txt") == b"one"
    assert folder.read("no/such.txt") is None
    folder.delete(["b/c.txt", "no/such.txt"])
    assert list(folder.files()) == ["d.txt"]
    folder.delete_all()
    assert bucket.keys() == []


def test_requests_go_through_the_proxy(bucket, s3_proxy) -> None:
    RemoteFolder(bucket.url).write("a.txt", b"a")
    assert "PUT" in [method for method, _ in s3_proxy.taken()]
    assert RemoteFolder(bucket.url).read("a.txt") == b"a"
    assert s3_proxy.requests

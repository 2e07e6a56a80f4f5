"""A folder in an object store, against moto's S3."""

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segray.config import RequestError, WorkError
from segray.data import remote
from segray.data.cache import cache_root
from segray.data.remote import DiskFull, RemoteError, RemoteFolder, RemoteRefused, is_remote
from segray.sweep.store import insist


def test_what_is_written_is_listed_read_and_deleted(bucket) -> None:
    folder = RemoteFolder(f"{bucket.url}/a")
    assert folder.files() == {}
    folder.write("b/c.txt", b"one")
    folder.write("d.txt", b"")
    found = folder.files()
    assert {name: one.bytes for name, one in found.items()} == {"b/c.txt": 3, "d.txt": 0}
    assert abs(found["d.txt"].changed_ns / 1e9 - time.time()) < 120
    assert folder.file("b/c.txt") == found["b/c.txt"]
    assert (folder / "b").files() == {"c.txt": found["b/c.txt"]}
    assert folder.file("b") is None
    assert folder.read("b/c.txt") == b"one"
    assert folder.read("no/such.txt") is None
    folder.write("b/c.txt", b"another")
    assert folder.read("b/c.txt") == b"another"
    folder.delete(["b/c.txt", "no/such.txt"])
    assert list(folder.files()) == ["d.txt"]
    folder.delete_all()
    assert folder.files() == {}
    folder.delete_all()


@pytest.mark.parametrize("size", [0, 5, remote.PIECE + 1, 2 * 2**23 + 3])
def test_files_go_up_and_come_down_as_they_are(bucket, tmp_path: Path, size: int) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(size))
    folder = RemoteFolder(bucket.url)
    with sent.open("rb") as source:
        folder.upload(source, "deep/er.bin")
    folder.download("deep/er.bin", tmp_path / "new" / "got", changed_ns=1_500_000_000_123_000_000)
    got = tmp_path / "new" / "got"
    assert got.read_bytes() == sent.read_bytes()
    assert got.stat().st_mtime_ns == 1_500_000_000_123_000_000
    assert [path.name for path in got.parent.iterdir()] == ["got"]


def test_names_with_spaces_percents_and_letters_of_elsewhere(bucket) -> None:
    folder = RemoteFolder(f"{bucket.url}/my folder")
    names = ["a b.txt", "50%25.txt", "straße/ü+.txt"]
    for name in names:
        folder.write(name, name.encode())
    assert sorted(folder.files()) == sorted(names)
    assert [folder.read(name) for name in names] == [name.encode() for name in names]


def test_a_small_object_is_one_request(bucket, s3_proxy) -> None:
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"a")
    assert [method for method, _ in s3_proxy.taken()] == ["PUT"]
    folder.files()
    assert [method for method, _ in s3_proxy.taken()] == ["GET"]


@pytest.mark.slow
def test_a_folder_of_many_objects_is_listed_a_thousand_at_a_time(bucket, s3_proxy) -> None:
    client = bucket.server.client()
    for number in range(1001):
        client.put_object(Bucket=bucket.name, Key=f"many/{number:05}.txt", Body=b"")
    assert len(RemoteFolder(f"{bucket.url}/many").files()) == 1001
    assert len(s3_proxy.taken()) == 2


def test_many_come_down_at_once(bucket, s3_proxy, tmp_path: Path) -> None:
    folder = RemoteFolder(bucket.url)
    names = [f"a/{number}.txt" for number in range(32)]
    for name in names:
        folder.write(name, name.encode())
    s3_proxy.delay = 0.1
    started = time.monotonic()
    assert list(folder.download_all(names, tmp_path)) == list(range(1, 33))
    assert time.monotonic() - started < 32 * 2 * 0.1  # one after the other take that at least
    assert all((tmp_path / name).read_text() == name for name in names)


def test_a_download_that_fails_leaves_what_was_there(bucket, s3_proxy, tmp_path: Path) -> None:
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"new")
    (tmp_path / "a.txt").write_bytes(b"old")
    s3_proxy.behaviour = "denied"
    with pytest.raises(RemoteRefused, match=f"cannot read {bucket.url}/a.txt"):
        folder.download("a.txt", tmp_path / "a.txt")
    with pytest.raises(RemoteRefused):
        list(folder.download_all(["a.txt", "b.txt"], tmp_path))
    s3_proxy.behaviour = "ok"
    with pytest.raises(RemoteRefused, match=r"/b\.txt"):
        folder.download("b.txt", tmp_path / "b.txt")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_what_is_wrong_here_is_no_error_of_the_store(bucket, tmp_path: Path) -> None:
    RemoteFolder(bucket.url).write("a.txt", b"new")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        RemoteFolder(bucket.url).download("a.txt", tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["open", "write"])
def test_a_full_disk_here_is_no_error_of_the_store(
    bucket, tmp_path: Path, monkeypatch, reason: int, where: str
) -> None:
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"new")
    opened = Path.open

    class Full(io.FileIO):
        def write(self, content) -> int:
            raise OSError(reason, os.strerror(reason))

    def no_room(path: Path, *arguments):
        if not path.name.endswith(".part"):
            return opened(path, *arguments)
        if where == "open":
            raise OSError(reason, os.strerror(reason), str(path))
        return Full(path, *arguments)

    monkeypatch.setattr(Path, "open", no_room)
    tries = []

    def fetch(to: Path) -> None:
        tries.append(to)
        folder.download("a.txt", to / "a.txt")

    with pytest.raises(DiskFull, match="cannot fetch s3://") as caught:
        insist(lambda: fetch(cache_root() / "files-1"))
    assert len(tries) == 1
    assert f"the disk of {tries[0]} is full ({os.strerror(reason)})" in str(caught.value)
    assert "SEGRAY_CACHE" in str(caught.value)
    assert "network" not in str(caught.value)
    assert list(tries[0].iterdir()) == []
    with pytest.raises(DiskFull, match=r"make room there$"):
        fetch(tmp_path / "elsewhere")


INTERRUPTED = """\
import signal, sys, threading, os
from pathlib import Path
from segray.data.remote import RemoteFolder
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for _ in range(200):
        with open(sys.argv[2], "rb") as source:
            RemoteFolder(sys.argv[1]).upload(source, "a.bin")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_upload_that_is_interrupted_leaves_no_half(bucket, s3_proxy, tmp_path: Path) -> None:
    s3_proxy.delay = 0.05
    file = tmp_path / "a.bin"
    file.write_bytes(os.urandom(3 * remote.PIECE))
    command = [sys.executable, "-c", INTERRUPTED, bucket.url, str(file), "1.5"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert told == "interrupted\n"
    assert RemoteFolder(bucket.url).file("a.bin").bytes == 3 * remote.PIECE


def test_a_folder_travels_by_its_name(bucket) -> None:
    folder = RemoteFolder(f"{bucket.url}/a")
    folder.write("a.txt", b"a")
    sent = pickle.dumps(folder)
    assert b"testing" not in sent
    assert pickle.loads(sent).read("a.txt") == b"a"


@pytest.mark.parametrize("url", ["s3://", "s3:/a/b", "/tmp/a", "http://a/b", "s3://bucket?x=1/a"])
def test_what_is_no_url_of_a_folder(url: str) -> None:
    with pytest.raises(RequestError, match="expected s3://bucket/folder"):
        RemoteFolder(url)


def test_which_places_are_remote() -> None:
    assert is_remote("s3://a")
    assert is_remote("gs://a/b")
    assert not is_remote("s3")
    assert not is_remote("/data/s3://a")


def test_no_bucket_is_the_requests_fault() -> None:
    assert issubclass(RemoteRefused, RequestError)
    assert RemoteRefused("").exit_code == 2
    assert issubclass(RemoteError, WorkError)
    assert RemoteError("").exit_code == 1


@pytest.mark.parametrize("do", ["files", "write"])
def test_no_bucket(bucket, do: str) -> None:
    folder = RemoteFolder("s3://nobody-has-this/a")
    with pytest.raises(RemoteRefused, match=r"s3://nobody-has-this/a.*look at the URL"):
        folder.files() if do == "files" else folder.write("a.txt", b"")


def test_nobody_listens(bucket, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(RemoteError, match="look at the network, and at AWS_ENDPOINT_URL"):
        RemoteFolder(bucket.url).files()
    assert time.monotonic() - started < 60


def test_a_store_that_stops_in_the_middle_is_given_up(bucket, s3_proxy, monkeypatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_S", 1.0)
    monkeypatch.setattr(remote, "TRIES", 2)
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"a")
    s3_proxy.behaviour = "stall"
    with pytest.raises(RemoteError, match=f"cannot read {bucket.url}/a.txt") as caught:
        folder.read("a.txt")
    assert not isinstance(caught.value, RequestError)
    assert len(s3_proxy.taken()) == 3  # it was written, and asked for twice


def test_a_store_that_comes_back_is_no_error(bucket, s3_proxy) -> None:
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"a")
    s3_proxy.behaviour = "error"
    threading.Timer(1.0, setattr, (s3_proxy, "behaviour", "ok")).start()
    assert folder.read("a.txt") == b"a"


@pytest.mark.slow
def test_a_server_that_is_stopped_is_given_up_within_a_minute(bucket, s3_server) -> None:
    folder = RemoteFolder(bucket.url)
    folder.write("a.txt", b"a")
    s3_server.process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="look at the network"):
            folder.read("a.txt")
        taken = time.monotonic() - started
    finally:
        s3_server.process.send_signal(signal.SIGCONT)
    print(f"given up after {taken:.0f} s")
    assert taken < 90
    assert folder.read("a.txt") == b"a"

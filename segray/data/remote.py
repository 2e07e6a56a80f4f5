"""A folder in an object store, s3:// or gs://, through pyarrow's file systems.

Objects are written whole: a reader finds the one before or the one after, never a part. There are
no appends, no renames and no locks, so whoever writes one name has to be alone with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from segray.config import RequestError, WorkError
from segray.config.places import is_remote, wrong_url
from segray.data.cache import cache_root

if TYPE_CHECKING:  # half a second to import, and most sweeps need none of it
    from pyarrow.fs import FileSystem

__all__ = ["DiskFull", "RemoteError", "RemoteFile", "RemoteFolder", "RemoteRefused", "is_remote"]

AT_ONCE = 16  # transfers side by side: one alone waits for the network, not for a core
PIECE = 2**23  # bytes in memory for each
CONNECT_S = 5.0  # until a store is there
ANSWER_S = 10.0  # without a byte, until a request is taken for lost
TRIES = 4  # of a request: a store that hangs is given up after 40 s and some
GOOGLE_S = 15.0  # its client tries again for so long, and first looks for credentials as long
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class RemoteFile:
    """What is known of an object without reading it."""

    bytes: int
    changed_ns: int  # since 1970


class RemoteFolder:
    """s3://bucket/path or gs://bucket/path. Names are paths below it, with slashes.

    Credentials are found as the cloud's own tools find them: environment, files, machine's role;
    so is another endpoint (AWS_ENDPOINT_URL). What the store refuses is a RemoteRefused, a store
    that does not answer a RemoteError, after a minute at most.
    """

    def __init__(self, url: str) -> None:
        """Raises RequestError for a URL that names no bucket."""
        if not is_remote(url) or wrong_url(url):
            raise RequestError(f"{url}: expected s3://bucket/folder or gs://bucket/folder")
        self.url = url.rstrip("/")

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def __getstate__(self) -> str:
        """Its name alone: no credential travels with it."""
        return self.url

    def __setstate__(self, url: str) -> None:
        self.url = url

    def files(self) -> dict[str, RemoteFile]:
        """Every object below the folder; none where there is no folder.

        A request for each 1000 objects, one after the other. Raises RemoteRefused where there is
        no bucket.
        """
        from pyarrow.fs import FileSelector, FileType

        with self._talking("list") as (store, path):
            found = store.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            if not found:  # which is what a bucket that is not there looks like too
                bucket = path.split("/")[0]
                if store.get_file_info(bucket).type == FileType.NotFound:
                    raise FileNotFoundError(f"there is no bucket {bucket}")
            return {
                info.path[len(path) + 1 :]: RemoteFile(info.size, info.mtime_ns or 0)
                for info in found
                if info.type == FileType.File
            }

    def file(self, name: str) -> RemoteFile | None:
        """What is known of one object, or None where there is no such object."""
        from pyarrow.fs import FileType

        with self._talking("read", name) as (store, path):
            info = store.get_file_info(f"{path}/{name}")
            if info.type != FileType.File:
                return None
            return RemoteFile(info.size, info.mtime_ns or 0)

    def read(self, name: str) -> bytes | None:
        """An object's bytes, or None where there is no such object."""
        with self._talking("read", name) as (store, path):
            try:
                with store.open_input_stream(f"{path}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Put an object, in place of the one that was there."""

        def put() -> None:
            with (
                self._talking("write", name) as (store, path),
                store.open_output_stream(f"{path}/{name}") as stream,
            ):
                stream.write(content)

        _to_its_end(put)

    def upload(self, source: BinaryIO, name: str) -> None:
        """Put the bytes of an open file, as many as it has now."""

        def put() -> None:
            left = os.fstat(source.fileno()).st_size
            with (
                self._talking("write", name) as (store, path),
                store.open_output_stream(f"{path}/{name}") as stream,
            ):
                while left > 0 and (piece := source.read(min(PIECE, left))):
                    stream.write(piece)
                    left -= len(piece)

        _to_its_end(put)

    def download(self, name: str, file: Path, changed_ns: int | None = None) -> None:
        """Fetch an object into `file`, whole or not at all; `changed_ns` becomes its mtime.

        Raises DiskFull where this machine's disk is full.
        """
        temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with (
                self._talking("read", name) as (store, path),
                store.open_input_stream(f"{path}/{name}") as stream,
                temporary.open("wb") as target,
            ):
                while piece := stream.read(PIECE):
                    target.write(piece)
            if changed_ns is not None:
                os.utime(temporary, ns=(changed_ns, changed_ns))
            os.replace(temporary, file)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _no_room(file.parent, f"{self.url}/{name}", error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def download_all(self, names: Sequence[str], folder: Path) -> Iterator[int]:
        """Fetch objects to the same paths below `folder`, many at once; yields how many are."""
        yield from self._download_all(dict.fromkeys(names), folder)

    def download_listed(self, files: Mapping[str, RemoteFile], folder: Path) -> Iterator[int]:
        """As `download_all`; each has the object's time of change, as `files` listed it."""
        times = {name: file.changed_ns for name, file in files.items()}
        yield from self._download_all(times, folder)

    def _download_all(self, times: Mapping[str, int | None], folder: Path) -> Iterator[int]:
        def download(name: str) -> None:
            self.download(name, folder / name, times[name])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                jobs = pool.map(download, times)
                for done, _ in enumerate(jobs, start=1):
                    yield done
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        with self._talking("delete in") as (store, path):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    store.delete_file(f"{path}/{name}")

    def delete_all(self) -> None:
        """Delete every object below the folder."""
        with self._talking("delete in") as (store, path), contextlib.suppress(FileNotFoundError):
            store.delete_dir(path)

    @contextlib.contextmanager
    def _talking(self, what: str, name: str = "") -> Iterator[tuple[FileSystem, str]]:
        from pyarrow.lib import ArrowException

        scheme, path = self.url.split("://", 1)
        try:
            yield _store(scheme, path.split("/")[0], _surroundings()), path
        except (OSError, ValueError, ArrowException) as error:
            if isinstance(error, OSError) and (error.filename or error.errno in _FULL):
                raise  # a local file's; what writes to one leaves its name out
            place = f"{self.url}/{name}".rstrip("/")
            kind, why = _reason(error)
            raise kind(f"cannot {what} {place}: {why}") from None


class DiskFull(WorkError):
    """What was fetched finds no room on this machine; the store is well, and no retry helps."""


class RemoteError(WorkError):
    """The store did not answer, or broke off."""


class RemoteRefused(RemoteError, RequestError):
    """The store answered that it will not: no such bucket, no right to it."""

    exit_code = RequestError.exit_code


def _no_room(folder: Path, url: str, error: OSError) -> DiskFull:
    advice = "make room there"
    if folder.is_relative_to(cache_root()):
        advice += ", or name another folder in SEGRAY_CACHE"
    return DiskFull(
        f"cannot fetch {url}: the disk of {folder} is full ({error.strerror}): {advice}"
    )


def _to_its_end(work: Callable[[], None]) -> None:
    """Do it in a thread, which Ctrl-C does not reach.

    A stream that is left halfway is closed, and with that the store takes the half for the whole.
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


@cache
def _store(scheme: str, bucket: str, surroundings: tuple[tuple[str, str], ...]) -> FileSystem:
    """One client for each bucket in a process: opening one takes a request.

    `surroundings` is what a client reads when it is made; another makes another client.
    """
    if scheme == "gs":
        from pyarrow.fs import GcsFileSystem

        return GcsFileSystem(retry_time_limit=timedelta(seconds=GOOGLE_S))
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

    known = dict(surroundings)
    endpoint = known.get("AWS_ENDPOINT_URL_S3") or known.get("AWS_ENDPOINT_URL")
    place: dict[str, Any] = {"region": known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION")}
    if endpoint:  # the constructor, unlike from_uri, does not look for one
        place["scheme"], _, place["endpoint_override"] = endpoint.rpartition("://")
        place["scheme"] = place["scheme"] or "https"
    else:  # a request that is sent to another region is refused
        place["region"] = resolve_s3_region(bucket)
    return S3FileSystem(
        **place,
        connect_timeout=CONNECT_S,
        request_timeout=ANSWER_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=TRIES),
        allow_delayed_open=True,  # a small object in one request rather than three
    )


def _surroundings() -> tuple[tuple[str, str], ...]:
    names = ("AWS_", "GOOGLE_", "CLOUD_STORAGE_")
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(names)))


_REFUSED = re.compile(
    r"ACCESS_DENIED|credential|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|HTTP status 40[13]"
    r"|PERMISSION_DENIED|UNAUTHENTICATED",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(r"HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed")


def _reason(error: Exception) -> tuple[type[RemoteError], str]:
    """What kind of error the store's own is, and what it says with what to do about it."""
    said = str(error).splitlines()[0].rstrip(". ")
    said = re.sub(r" \(Request ID: \S+\)", "", said)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_BUCKET" in said:
        return RemoteRefused, f"{said}; look at the URL, and at AWS_ENDPOINT_URL if it is set"
    _, _, answer = said.rpartition("Error ")  # not the names of bucket and object
    if _ELSEWHERE.search(answer):
        return RemoteRefused, f"{said}; the bucket is in another region: set AWS_REGION to it"
    if _REFUSED.search(answer):
        advice = "this machine has no right to it: see `aws sts get-caller-identity`"
        if "google" in said:
            advice = "this machine has no right to it: see `gcloud auth application-default login`"
        return RemoteRefused, f"{said}; {advice}"
    return RemoteError, f"{said}; look at the network, and at AWS_ENDPOINT_URL if it is set"

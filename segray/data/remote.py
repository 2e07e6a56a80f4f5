"""A folder in an object store, s3:// or gs://, through pyarrow's file systems.

Objects are written whole: a reader finds the one before or the one after, never a part. There are
no appends, no renames and no locks, so whoever writes one name has to be alone with it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from segray.config import RequestError, WorkError

if TYPE_CHECKING:  # half a second to import, and most sweeps need none of it
    from pyarrow.fs import FileSystem

SCHEMES = ("s3://", "gs://")
AT_ONCE = 16  # transfers side by side: one alone waits for the network, not for a core
PIECE = 2**23  # bytes in memory for each


def is_remote(place: str) -> bool:
    """Whether `place` names an object store rather than a path."""
    return place.startswith(SCHEMES)


@dataclass(frozen=True)
class RemoteFile:
    """What is known of an object without reading it."""

    bytes: int
    changed_ns: int  # since 1970


class RemoteFolder:
    """s3://bucket/path or gs://bucket/path. Names are paths below it, with slashes.

    Credentials are found as the cloud's own tools find them: environment, files, machine's role.
    What the store refuses, and a store that does not answer, is a RemoteError.
    """

    def __init__(self, url: str) -> None:
        """Raises RequestError for a URL that names no bucket."""
        if not re.match(r"(s3|gs)://[^/?#]+(/|$)", url):
            raise RequestError(f"{url}: expected s3://bucket/folder or gs://bucket/folder")
        self.url = url.rstrip("/")
        self._opened: tuple[FileSystem, str] | None = None

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}")

    def __getstate__(self) -> str:
        """Its name alone: no credential travels with it."""
        return self.url

    def __setstate__(self, url: str) -> None:
        self.url, self._opened = url, None

    def files(self) -> dict[str, RemoteFile]:
        """Every object below the folder; none where there is no folder."""
        from pyarrow.fs import FileSelector, FileType

        with self._talking("list") as (store, path):
            found = store.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
            return {
                info.path[len(path) + 1 :]: RemoteFile(info.size, info.mtime_ns or 0)
                for info in found
                if info.type == FileType.File
            }

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
        with (
            self._talking("write", name) as (store, path),
            store.open_output_stream(f"{path}/{name}") as stream,
        ):
            stream.write(content)

    def upload(self, source: BinaryIO, name: str) -> None:
        """Put the bytes of an open file, as many as it has now."""
        left = os.fstat(source.fileno()).st_size
        with (
            self._talking("write", name) as (store, path),
            store.open_output_stream(f"{path}/{name}") as stream,
        ):
            while left > 0 and (piece := source.read(min(PIECE, left))):
                stream.write(piece)
                left -= len(piece)

    def download(self, name: str, file: Path) -> None:
        """Fetch an object into `file`, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with (
                self._talking("read", name) as (store, path),
                store.open_input_stream(f"{path}/{name}") as stream,
                temporary.open("wb") as target,
            ):
                while piece := stream.read(PIECE):
                    target.write(piece)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def download_all(self, names: Sequence[str], folder: Path) -> Iterator[int]:
        """Fetch objects to the same paths below `folder`, many at once; yields how many are."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                jobs = pool.map(lambda name: self.download(name, folder / name), names)
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
        try:
            if self._opened is None:
                from pyarrow.fs import FileSystem

                self._opened = FileSystem.from_uri(self.url)
            yield self._opened
        except FileNotFoundError as error:
            raise RemoteError(f"cannot {what} {self.url}/{name}: {error}") from None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a local file's
            place = f"{self.url}/{name}".rstrip("/")
            raise RemoteError(f"cannot {what} {place}: {_brief(error)}") from None


class RemoteError(WorkError):
    """The store refused, or did not answer."""


def _brief(error: Exception) -> str:
    said = str(error).splitlines()[0]
    said = re.sub(r" \(Request ID: \S+\)", "", said)
    if "ACCESS_DENIED" in said or "credential" in said.lower():
        said += "; this machine has no right to it: see `aws sts get-caller-identity`"
    return said

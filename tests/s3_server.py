"""An S3 on a loopback port: moto's, in a process of its own that trials in other processes reach
too, and a proxy before it that counts requests, delays them, refuses them or lets them hang.
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

KEYS = {  # that moto takes anything for, and nothing of the person who runs the tests
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
START_S = 60.0
Behaviour = Literal["ok", "stall", "error", "denied"]


class S3Server:
    """moto's server; `url` is its address. `close` ends it."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(tempfile.mkstemp(suffix=".moto")[1])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [_command(), "-H", "127.0.0.1", "-p", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | KEYS,
            )
        started = time.monotonic()
        while not self._answers(port):
            if self.process.poll() is not None or time.monotonic() - started > START_S:
                self.close()
                raise RuntimeError(f"moto_server did not start:\n{self.log.read_text()}")
            time.sleep(0.05)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """What AWS's clients read to come here, or to a proxy at `url`."""
        return {**KEYS, "AWS_ENDPOINT_URL": url or self.url}

    def client(self) -> Any:
        """boto3's, past any proxy."""
        import boto3

        return boto3.session.Session(
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
            region_name=KEYS["AWS_DEFAULT_REGION"],
        ).client("s3", endpoint_url=self.url)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.unlink(missing_ok=True)

    def _answers(self, port: int) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/moto-api/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class Bucket:
    """A bucket of one test; the environment points every client of it at the server."""

    name: str
    server: S3Server

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> None:
        self.server.client().put_object(Bucket=self.name, Key=key, Body=content)

    def put_tree(self, folder: Path, prefix: str) -> None:
        """Every file below `folder`, below `prefix` in the bucket."""
        client = self.server.client()
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                key = f"{prefix}/{file.relative_to(folder).as_posix()}"
                client.put_object(Bucket=self.name, Key=key, Body=file.read_bytes())

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.server.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=prefix)
        return [one["Key"] for page in found for one in page.get("Contents", [])]


class Proxy:
    """Between a client and an S3 server. `behaviour` may change while it runs: ok, stall (no answer
    at all), error (503) or denied (403); an answer is `delay` seconds late.
    """

    def __init__(self, server: S3Server) -> None:
        self.behaviour: Behaviour = "ok"
        self.delay = 0.0
        self.requests: list[tuple[str, str]] = []  # method and path with its query, as they came
        self.released = threading.Event()
        proxy, target = self, urlsplit(server.url)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self._body()
                proxy.requests.append((self.command, self.path))
                if proxy.behaviour == "stall":
                    proxy.released.wait()
                    self.close_connection = True
                    return
                if proxy.delay:
                    time.sleep(proxy.delay)
                if proxy.behaviour != "ok":
                    self._refuse()
                    return
                connection = http.client.HTTPConnection(target.hostname, target.port)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    self._send(answer.status, answer.getheaders(), answer.read())
                except OSError:
                    self.close_connection = True
                finally:
                    connection.close()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                del self.headers["transfer-encoding"]
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)

            def _refuse(self) -> None:
                status, code = (503, "SlowDown") if proxy.behaviour == "error" else (403, "")
                code = code or "AccessDenied"
                text = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>"
                self._send(status, [("Content-Type", "application/xml")], text.encode())

            def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response(status)
                length = len(content)
                for name, value in headers:
                    if name.lower() == "content-length" and self.command == "HEAD":
                        length = int(value)
                    elif name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def taken(self) -> list[tuple[str, str]]:
        """The requests since the last call of this."""
        found, self.requests = self.requests, []
        return found

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


def _command() -> str:
    """moto's server beside this Python, or wherever it is found."""
    beside = Path(sys.executable).parent / "moto_server"
    found = str(beside) if beside.is_file() else shutil.which("moto_server")
    if found is None:
        raise RuntimeError("moto_server is not installed: pip install -e '.[dev]'")
    return found

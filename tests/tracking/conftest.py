"""A W&B server on a loopback port: enough for the real client to run online against it.

GraphQL calls are answered, the file stream and the uploads are accepted, and everything that came
in is kept, so that a test can ask what left the machine.
"""

import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

ENTITY = {"id": "1", "name": "me"}


class StandIn:
    """`behaviour` may change while it runs: ok, error (status 500), denied (401) or stall."""

    def __init__(self) -> None:
        self.behaviour: Literal["ok", "error", "denied", "stall"] = "ok"
        self.requests: list[tuple[str, str, bytes]] = []  # method, path, body
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._runs: dict[str, dict[str, Any]] = {}
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if standin.behaviour == "stall":
                    standin.released.wait()
                    self.close_connection = True
                    return
                status, reply = standin.receive(self.command, self.path, body)
                self.send_response(status)
                self.send_header("content-length", str(len(reply)))
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def receive(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with self._lock:
            self.requests.append((method, path, body))
            if self.behaviour == "error":
                return 500, b"{}"
            if self.behaviour == "denied":
                return 401, b'{"errors": [{"message": "permission denied"}]}'
            if path.endswith("/graphql"):
                call = json.loads(body)
                name = call.get("operationName") or call["query"].split("(")[0].split()[-1]
                data = self._answer(name, call.get("variables") or {})
                return 200, json.dumps({"data": data}).encode()
            return 200, b"{}"

    def _answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or ""
        if operation == "Viewer":
            viewer = {"username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": {"id": "1", **viewer}, "serverInfo": {"cliVersionInfo": {}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "1", "name": "p", "bucket": self._runs.get(name)}}
        if operation == "UpsertBucket":
            fresh = name not in self._runs
            empty = {
                "config": "{}",
                "summaryMetrics": "{}",
                "historyTail": "[]",
                "eventsTail": "[]",
            }
            counts = {"historyLineCount": 0, "eventsLineCount": 0, "logLineCount": 0}
            bucket = {"id": "UnVuOjE=", "name": name, "displayName": name, "sweepName": None}
            bucket |= {"description": "", "tags": [], "wandbConfig": '{"t": 1}', **empty, **counts}
            bucket["project"] = {"id": "1", "name": "p", "entity": ENTITY}
            self._runs.setdefault(name, bucket)
            return {"upsertBucket": {"bucket": bucket, "inserted": fresh}}
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/put/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":  # as if the server had this content: nothing to upload
            sequence = {"id": "1", "latestArtifact": {"id": "1", "versionIndex": 0}}
            artifact = {"id": "1", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": artifact}}
        return {}

    def calls(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every GraphQL call of that name."""
        sent = [json.loads(body) for _, path, body in self.requests if path.endswith("/graphql")]
        return [call["variables"] for call in sent if call.get("operationName") == operation]

    def history(self) -> list[dict[str, Any]]:
        """The rows of the file stream's history."""
        rows: list[dict[str, Any]] = []
        for _, path, body in self.requests:
            if path.endswith("/file_stream"):
                files = json.loads(body).get("files") or {}
                rows += map(json.loads, files.get("wandb-history.jsonl", {}).get("content", []))
        return rows

    def uploads(self) -> list[str]:
        """Names of the files that were uploaded."""
        return [path.removeprefix("/put/") for method, path, _ in self.requests if method == "PUT"]


@pytest.fixture
def server() -> Iterator[StandIn]:
    standin = StandIn()
    yield standin
    standin.close()


@pytest.fixture(autouse=True)
def wandb_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home of its own for every test: the user's W&B settings and key are never seen."""
    for name in [*os.environ]:
        if name.startswith("WANDB_") or name == "NETRC":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segray.tracking.wandb_tracker._said", set())
    monkeypatch.setattr("segray.tracking.wandb_tracker.INIT_SECONDS", 3.0)
    monkeypatch.setattr("segray.tracking.wandb_tracker.FINISH_SECONDS", 3.0)
    yield
    import wandb  # the client reads environment and settings once, until it is torn down

    wandb.teardown()

"""A W&B server on a loopback port: enough for the real client to run online and sync against it.

GraphQL calls are answered, the file stream and the uploads are accepted, and everything that came
in is kept, so that a test can ask what left the machine. A run that is resumed is told how far the
server got, as W&B's does.
"""

import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal["ok", "error", "denied", "forbidden", "quota", "busy", "stall", "slow"]
REFUSALS = {  # status and what W&B says with it
    "error": (500, {}),
    "denied": (401, {"errors": [{"message": "permission denied"}]}),
    "forbidden": (403, {"errors": [{"message": "permission denied"}]}),
    "quota": (402, {"errors": [{"message": "storage quota exceeded"}]}),
    "busy": (429, {"errors": [{"message": "rate limit exceeded"}]}),
}
ENTITY = {"id": "1", "name": "me"}


@dataclass
class Artifact:
    """What the server was given of an artifact."""

    name: str
    type: str
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


@dataclass
class Run:
    """What the server has of a run."""

    opened: dict[str, Any]  # the call that made it: name, groupName, jobType, config, project ...
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the history, as they came
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {k: v["value"] for k, v in json.loads(self.opened["config"]).items()}

    def curve(self, metric: str) -> dict[int, float]:
        """A metric by step. Rows that came twice have to be the same."""
        found: dict[int, float] = {}
        for row in self.rows:
            if metric in row:
                assert found.setdefault(row["_step"], row[metric]) == row[metric]
        return found


class StandIn:
    """`behaviour` may change while it runs: ok, one of REFUSALS, stall (no answer at all), or slow
    (`delay` seconds before each answer); of all paths, or those with `where` in them.

    It becomes `behaviour_later` once a run was opened.
    """

    def __init__(self) -> None:
        self.behaviour: Behaviour = "ok"
        self.behaviour_later: Behaviour | None = None
        self.delay = 3.0
        self.where = ""  # the behaviour is that of paths with this in them; the others are ok
        self.requests: list[tuple[str, str, bytes]] = []  # method, path, body
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.reports: list[dict[str, Any]] = []  # as they were saved: displayName, spec, ...
        self.released = threading.Event()
        self._lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                troubled = standin.where in self.path
                if troubled and standin.behaviour == "stall":
                    standin.released.wait()  # looked up now: recover() makes a new one
                    self.close_connection = True
                    return
                if troubled and standin.behaviour == "slow":
                    standin.released.wait(standin.delay)
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

    def recover(self) -> None:
        """Answer again; requests that were stalled get no answer."""
        self.behaviour, self.behaviour_later, self.where = "ok", None, ""
        self.released.set()
        self.released = threading.Event()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def receive(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        with self._lock:
            self.requests.append((method, path, body))
            if self.where in path and self.behaviour in REFUSALS:
                status, said = REFUSALS[self.behaviour]
                return status, json.dumps(said).encode()
            if path.endswith("/graphql"):
                call = json.loads(body)
                name = (
                    call.get("operationName")
                    or call["query"].split("{")[0].split("(")[0].split()[-1]
                )
                data = self._answer(name, call.get("variables") or {})
                return 200, json.dumps({"data": data}).encode()
            if path.startswith("/artifact/"):
                _, _, number, name = path.split("/", 3)
                self.artifacts[int(number)].files[name] = body
            if path.endswith("/file_stream"):
                self._stream(path.split("/")[-2], json.loads(body))
            return 200, b"{}"

    def _answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or ""
        empty = {"edges": []}
        user = {
            "id": "1",
            "name": "Me",
            "username": "me",
            "email": "me@example.org",
            "entity": "me",
        }
        viewer = {**user, "admin": False, "flags": "{}", "teams": empty}
        if operation == "Viewer":
            return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}}}
        if operation == "GetViewer":
            return {"viewer": {**viewer, "deletedAt": None, "apiKeys": empty}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "Run":  # what the public API asks
            return {"project": {"run": self._shown(name) if name in self.runs else None}}
        if operation == "RunResumeStatus":
            bucket = self._bucket(name) if name in self.runs else None
            return {"model": {"id": "1", "name": "p", "bucket": bucket}}
        if operation == "UpsertBucket":
            fresh = name not in self.runs
            self.runs.setdefault(name, Run(variables))
            self.behaviour = self.behaviour_later or self.behaviour
            return {"upsertBucket": {"bucket": self._bucket(name), "inserted": fresh}}
        if operation == "CreateRunFiles":
            folder = f"{self.url}/put/{variables['run']}"
            files = [{"name": f, "uploadUrl": f"{folder}/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            asked = variables["input"]
            made = Artifact(asked["artifactCollectionName"], asked["artifactTypeName"])
            self.artifacts.append(made)
            number = str(len(self.artifacts) - 1)
            sequence = {"id": number, "latestArtifact": None}
            artifact = {"id": number, "state": "PENDING", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateArtifactManifest":
            file = self._place(variables["artifactID"], variables["name"])
            manifest = {"id": variables["artifactID"], "file": file}
            return {"createArtifactManifest": {"artifactManifest": manifest}}
        if operation == "CreateArtifactFiles":
            asked = variables["input"]["artifactFiles"]
            files = [{"node": self._place(one["artifactID"], one["name"])} for one in asked]
            return {"createArtifactFiles": {"files": {"edges": files}}}
        if operation == "CommitArtifact":
            number = variables["artifactID"]
            self.artifacts[int(number)].committed = True
            return {"commitArtifact": {"artifact": {"id": number, "digest": ""}}}
        if operation == "GetProjects":
            names = sorted({run.opened["project"] for run in self.runs.values()})
            nodes = [
                {
                    "id": "1",
                    "name": name,
                    "entityName": "me",
                    "createdAt": "2026-01-01T00:00:00",
                    "isBenchmark": False,
                    "user": None,
                }
                for name in names
            ]
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"edges": [{"node": one} for one in nodes], "pageInfo": page}}
        if operation == "ProjectInternalId":
            return {"project": {"id": "1", "internalId": "2"} if self.runs else None}
        if operation == "upsertView":
            self.reports.append(variables)
            shown = ("name", "type", "displayName", "description", "spec")
            view = {"id": "VmlldzoxMjM=", **{key: variables[key] for key in shown}}
            view["project"] = {
                "id": "1",
                "name": variables["projectName"],
                "entityName": variables["entityName"],
            }
            return {"upsertView": {"view": view, "inserted": True}}
        return {}

    def _place(self, artifact: str, name: str) -> dict[str, Any]:
        """Where the content of an artifact's file goes."""
        return {
            "id": "1",
            "name": name,
            "displayName": name,
            "uploadUrl": f"{self.url}/artifact/{artifact}/{name}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "storagePath": "",
            "artifact": {"id": artifact},
        }

    def _bucket(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        return {
            "id": "UnVuOjE=",
            "name": name,
            "displayName": name,
            "description": "",
            "sweepName": None,
            "tags": [],
            "config": run.opened.get("config") or "{}",
            "wandbConfig": '{"t": 1}',
            "summaryMetrics": json.dumps(run.summary),
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "historyLineCount": len(run.rows),
            "eventsTail": "[]",
            "eventsLineCount": 0,
            "logLineCount": 0,
            "project": {"id": "1", "name": "p", "entity": ENTITY},
        }

    def _shown(self, name: str) -> dict[str, Any]:
        run = self.runs[name]
        state = {None: "running", 0: "finished"}.get(run.exit_code, "failed")
        parts = {
            key: run.opened.get(key) for key in ("displayName", "groupName", "jobType", "config")
        }
        summary = json.dumps(run.summary)
        return {"id": name, "name": name, "state": state, "summaryMetrics": summary, **parts}

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        run, files = self.runs[name], sent.get("files") or {}
        history = files.get("wandb-history.jsonl") or {"offset": 0, "content": []}
        for place, line in enumerate(history["content"], history["offset"]):
            run.rows[place : place + 1] = [json.loads(line)]
        for line in (files.get("wandb-summary.json") or {}).get("content", []):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]

    def calls(self, operation: str) -> list[dict[str, Any]]:
        """The variables of every GraphQL call of that name."""
        sent = [json.loads(body) for _, path, body in self.requests if path.endswith("/graphql")]
        return [call["variables"] for call in sent if call.get("operationName") == operation]

    def history(self) -> list[dict[str, Any]]:
        """The rows of every run's history."""
        return [row for run in self.runs.values() for row in run.rows]

    def uploads(self, run: str) -> list[str]:
        """Names of the files of a run that were uploaded."""
        paths = [path for method, path, _ in self.requests if method == "PUT"]
        start = f"/put/{run}/"
        return [path.removeprefix(start) for path in paths if path.startswith(start)]

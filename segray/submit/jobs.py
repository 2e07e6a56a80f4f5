"""Run on a cluster's head, as `python -m segray.submit.jobs`: the sweeps that were started there.

Prints one line of JSON, a list, oldest first: id, runs (their folders), settings (a digest of their
configs), status (Ray's word), exit_code (null as long as it has none). Ray's own command prints
such lists for people alone. With the argument `workers`: the addresses of nodes beside the head.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DASHBOARD = "http://127.0.0.1:8265"
RUNS, SETTINGS = "segray-runs", "segray-settings"  # in a job's metadata
ANSWER_S = 20.0
MOST = 10_000  # nodes that Ray tells of in one answer


def metadata(runs: Sequence[str], settings: str) -> str:
    """What a job is submitted with, as JSON, so that it is found again by its run folders."""
    return json.dumps({RUNS: json.dumps(runs), SETTINGS: settings})  # Ray takes texts alone


def main() -> None:
    """Print what is asked for."""
    found = _workers() if sys.argv[1:] == ["workers"] else _jobs()
    print(json.dumps(found))  # noqa: T201 - for the program that asked


def _jobs() -> list[dict[str, Any]]:
    return [
        {
            "id": job["submission_id"],
            "runs": json.loads(job["metadata"][RUNS]),
            "settings": job["metadata"].get(SETTINGS, ""),
            "status": job["status"],
            "exit_code": job.get("driver_exit_code"),
        }
        for job in sorted(_ask("/api/jobs/"), key=lambda job: job.get("start_time") or 0)
        if RUNS in (job.get("metadata") or {})
    ]


def _workers() -> list[str]:
    nodes = _ask(f"/api/v0/nodes?limit={MOST}")["data"]["result"]["result"]
    return [
        node["node_ip"] for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]
    ]


def _ask(path: str) -> Any:
    """Ask Ray's dashboard, which listens on the head's loopback alone; it wants the token."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    token = file.read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        f"{DASHBOARD}{path}", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()

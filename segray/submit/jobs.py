"""Run on a cluster's head, as `python -m segray.submit.jobs`: the sweeps that were started there.

Prints one line of JSON, a list, oldest first: id, runs (their folders), status (Ray's word),
exit_code (null as long as it has none). Ray's own command prints such lists for people alone.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

DASHBOARD = "http://127.0.0.1:8265"
RUNS = "segray-runs"  # in a job's metadata
ANSWER_S = 20.0


def metadata(runs: Sequence[str]) -> str:
    """What a job is submitted with, as JSON, so that it is found again by its run folders."""
    return json.dumps({RUNS: json.dumps(runs)})  # Ray takes texts alone


def main() -> None:
    """Ask Ray's dashboard, which listens on the head's loopback alone; it wants the token."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    token = file.read_text(encoding="utf-8").strip()
    request = urllib.request.Request(
        f"{DASHBOARD}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        jobs = json.load(answer)
    found = [
        {
            "id": job["submission_id"],
            "runs": json.loads(job["metadata"][RUNS]),
            "status": job["status"],
            "exit_code": job.get("driver_exit_code"),
        }
        for job in sorted(jobs, key=lambda job: job.get("start_time") or 0)
        if RUNS in (job.get("metadata") or {})
    ]
    print(json.dumps(found))  # noqa: T201 - for the program that asked


if __name__ == "__main__":
    main()

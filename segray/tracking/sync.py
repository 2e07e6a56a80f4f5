"""Uploads the W&B runs that wait in a run folder, with W&B's own `wandb sync`.

A run may have several folders: one for each time that its trial was started, or fell back to
offline. The newest holds all epochs (see WandbTracker), so the others are left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import Timeout

from segray.config import Interrupted, RequestError, WorkError
from segray.config.yaml_file import read as read_yaml
from segray.tracking import client
from segray.tracking.wandb_tracker import writing

RUN_SECONDS = 600.0  # for one run; the next `segray sync` starts it again
POLL_SECONDS = 15.0  # between looks at whether the server is still there
_FOLDER = re.compile(r"(?P<offline>offline-)?run-(?P<started>\d{8}_\d{6})-(?P<id>.+)")
_HEADER_BYTES = 7  # of W&B's log: with no more than that, nothing was ever logged
_CUT_OFF = "ends with an incomplete record"


def sync_runs(folders: Sequence[Path], say: Callable[[str], None]) -> int:
    """Upload what W&B's server does not have of each run folder; returns how many runs that were.

    `say` is given lines for a person. Runs still being written are left alone, and so is what was
    uploaded before. Raises RequestError for a folder that is no run folder and where no key is
    known or the server refuses it; WorkError, saying what is missing, where not all could be
    uploaded: within a minute where the server is out of reach.
    """
    projects = {folder: _project(folder) for folder in folders}
    runs = [(folder, run) for folder in projects for run in _waiting(folder, say)]
    if not runs:
        return 0
    entity = _entity()
    places = {f"{owner or entity}/{project}" for owner, project in projects.values()}
    say(
        f"{_count(len(runs))} to upload to {client.base_url()}, project {', '.join(sorted(places))}"
    )
    uploaded = 0
    missing: list[Path] = []
    for number, (folder, run) in enumerate(runs, 1):
        try:
            with writing(run).acquire(blocking=False):
                note = _upload(run)
            uploaded += 1
        except Timeout:
            note = "left to another `segray sync`, or to its trial, which goes on"
        except WorkError as error:
            note = f"not uploaded: {error}"
            missing.append(folder)
        except ConnectionError as error:
            say(f"  {number}/{len(runs)} {_run_id(run)}: not uploaded: {error}")
            missing += [folder for folder, _ in runs[number - 1 :]]
            break
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was not uploaded is still on disk") from None
        say(f"  {number}/{len(runs)} {_run_id(run)}: {note}")
    if missing:
        names = " ".join(dict.fromkeys(map(str, missing)))
        raise WorkError(
            f"{uploaded} of {_count(len(runs))} uploaded, {len(missing)} not. Nothing is lost, all "
            f"is still on disk: `segray sync {names}` goes on from here"
        )
    return uploaded


def uploaded(folder: Path) -> list[Path]:
    """The run directories that a run folder no longer needs.

    They are those of every run whose newest is on the server: without that one, an older one
    would be taken for the newest and uploaded over it.
    """
    return [run for runs in _by_id(folder).values() if _marker(runs[-1]).exists() for run in runs]


def _project(folder: Path) -> tuple[str | None, str]:
    """The entity, where one is set, and the project that a run folder's runs belong to."""
    try:
        wandb = read_yaml(folder / "sweep.yaml")[0]["tracking"]["wandb"]
        return wandb["entity"], wandb["project"]
    except OSError:
        raise RequestError(
            f"{folder} is no run folder: expected the folder that a sweep leaves behind, with its "
            "sweep.yaml, as in runs/<name>"
        ) from None
    except (KeyError, TypeError):
        raise RequestError(
            f"{folder / 'sweep.yaml'} has no tracking.wandb: no sweep wrote it"
        ) from None


def _waiting(folder: Path, say: Callable[[str], None]) -> list[Path]:
    """The run directories to upload; says what else there is."""
    states = {runs[-1]: _state(runs[-1]) for runs in _by_id(folder).values()}
    waiting = [run for run, state in states.items() if state is None]
    counts = Counter(state for state in states.values() if state is not None)
    notes = [f"{_count(count)} {state}" for state, count in counts.items()]
    if not waiting:
        notes = ["nothing to upload", *notes]
    if notes:
        say(f"{folder}: {'; '.join(notes)}")
    return waiting


def _by_id(folder: Path) -> dict[str, list[Path]]:
    """The run directories of each W&B run, by its id; the newest directory last."""
    found = [
        (m, path) for path in (folder / "wandb").glob("*") if (m := _FOLDER.fullmatch(path.name))
    ]
    # Of one second: offline is what a run falls back to.
    found.sort(key=lambda f: (f[0]["id"], f[0]["started"], bool(f[0]["offline"])))
    runs: dict[str, list[Path]] = {}
    for match, path in found:
        runs.setdefault(match["id"], []).append(path)
    return runs


def _state(run: Path) -> str | None:
    """Why a run directory is not to be uploaded; None where it is."""
    if _marker(run).exists():
        return "uploaded already"
    try:
        with writing(run).acquire(blocking=False):
            log = _log(run)
            if log.is_file() and log.stat().st_size > _HEADER_BYTES:
                return None
            return "killed before W&B had written anything to disk (metrics.jsonl is whole)"
    except Timeout:
        return "still being written, left for the next time"


def _entity() -> str:
    """The entity that runs go to by default; raises where there is no way to upload."""
    possible, why = client.ways("online")
    if "online" not in possible:
        raise RequestError(f"no run was uploaded: {why}")
    try:
        return client.ask_server()[1]
    except PermissionError as error:
        raise RequestError(f"no run was uploaded: {error}") from None
    except ConnectionError as error:
        raise WorkError(f"no run was uploaded: {error}. Nothing is lost: try again later") from None


def _upload(run: Path) -> str:
    """Upload one run; returns what to say of it.

    Raises WorkError where this run cannot be uploaded, ConnectionError where the server is gone.
    """
    if run.name.startswith("offline-"):
        # Written from its first epoch on: without this the client would, where the server knows the
        # run's beginning, move its steps behind the last of them.
        state = Path(f"{_log(run)}.syncstate")
        if not state.exists():
            state.write_text('{"starting_step":0,"starting_runtime":0}')
    with _wandb_sync(run) as process:
        output = _wait(process)
    faults = re.findall(r"ERROR (.*)", output)
    if any(_CUT_OFF in fault for fault in faults):
        _marker(run).touch()
        return "uploaded, as far as it was written before its process was killed"
    if faults or not _marker(run).exists():
        # The client marks a run as uploaded even where the server refused it.
        _marker(run).unlink(missing_ok=True)
        raise WorkError(faults[-1] if faults else f"wandb sync said: {output.strip()}")
    return "uploaded"


@contextlib.contextmanager
def _wandb_sync(run: Path) -> Iterator[subprocess.Popen[str]]:
    """`wandb sync` on a run directory; ended on the way out, with its service process."""
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(run)]
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SILENT")}
    with subprocess.Popen(
        command,
        env=environment | {"WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[str]) -> str:
    """What it printed; ConnectionError where the server no longer answers, or it takes too long."""
    end = time.monotonic() + RUN_SECONDS
    unanswered = 0
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                raise ConnectionError(f"not done within {RUN_SECONDS:g} s") from None
        try:
            client.ask_server()
            unanswered = 0
        except PermissionError as error:
            raise ConnectionError(str(error)) from None
        except ConnectionError:
            unanswered += 1
            if unanswered == 2:  # once may be a busy machine
                raise


def _run_id(run: Path) -> str:
    match = _FOLDER.fullmatch(run.name)
    assert match is not None
    return match["id"]


def _log(run: Path) -> Path:
    """W&B's log of a run directory."""
    return run / f"run-{_run_id(run)}.wandb"


def _marker(run: Path) -> Path:
    """What `wandb sync` leaves beside a log that it uploaded."""
    return _log(run).with_suffix(".wandb.synced")


def _count(runs: int) -> str:
    return f"{runs} run" if runs == 1 else f"{runs} runs"

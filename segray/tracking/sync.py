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
    waiting = {folder: _waiting(folder, say) for folder in folders}
    if not any(waiting.values()):
        return 0
    entity = _entity()
    uploaded = 0
    try:
        for folder, runs in waiting.items():
            if runs:
                owner, project = projects[folder]
                where = f"{client.base_url()}, project {owner or entity}/{project}"
                say(f"{folder}: {_count(len(runs))} to upload to {where}")
                uploaded += _upload_all(folder, runs, say)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what was not uploaded is still on disk") from None
    return uploaded


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
    newest: dict[str, Path] = {}
    found = [
        (m, path) for path in (folder / "wandb").glob("*") if (m := _FOLDER.fullmatch(path.name))
    ]
    # Of one second: offline is what a run falls back to.
    for match, path in sorted(found, key=lambda f: (f[0]["started"], bool(f[0]["offline"]))):
        newest[match["id"]] = path
    there = [path for path in newest.values() if _marker(path).exists()]
    rest = [path for path in newest.values() if path not in there]
    busy = [path for path in rest if _is_busy(path)]
    rest = [path for path in rest if path not in busy]
    empty = [path for path in rest if not _has_content(path)]
    waiting = [path for path in rest if path not in empty]
    notes = [
        (there, "uploaded already"),
        (busy, "still being written, left for the next time"),
        (empty, "killed before W&B had written anything (metrics.jsonl has what it did)"),
    ]
    told = [f"{_count(len(paths))} {note}" for paths, note in notes if paths]
    if not waiting:
        told = ["nothing to upload", *told]
    if told:
        say(f"{folder}: {'; '.join(told)}")
    return waiting


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


def _upload_all(folder: Path, runs: Sequence[Path], say: Callable[[str], None]) -> int:
    missing: list[str] = []
    for number, run in enumerate(runs, 1):
        run_id = _log(run).stem.removeprefix("run-")
        try:
            with writing(run).acquire(blocking=False):
                note = _upload(run)
            say(f"  {number}/{len(runs)} {run_id}: {note}")
        except Timeout:
            say(f"  {number}/{len(runs)} {run_id}: being uploaded by another `segray sync`")
        except WorkError as error:
            say(f"  {number}/{len(runs)} {run_id}: not uploaded: {error}")
            missing.append(run_id)
        except ConnectionError as error:
            missing += [_log(path).stem.removeprefix("run-") for path in runs[number - 1 :]]
            say(f"  {number}/{len(runs)} {run_id}: not uploaded: {error}")
            break
    if missing:
        raise WorkError(
            f"{len(runs) - len(missing)} of {_count(len(runs))} uploaded; missing: "
            f"{', '.join(missing)}. Nothing is lost, all of it is still in {folder / 'wandb'}: "
            f"`segray sync {folder}` goes on from here"
        )
    return len(runs)


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
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)[0]
        except subprocess.TimeoutExpired:
            try:
                client.ask_server()
            except PermissionError as error:
                raise ConnectionError(str(error)) from None
            if time.monotonic() > end:
                raise ConnectionError(f"not done within {RUN_SECONDS:g} s") from None


def _is_busy(run: Path) -> bool:
    try:
        with writing(run).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _has_content(run: Path) -> bool:
    log = _log(run)
    return log.is_file() and log.stat().st_size > _HEADER_BYTES


def _log(run: Path) -> Path:
    """W&B's log of a run directory."""
    match = _FOLDER.fullmatch(run.name)
    assert match is not None
    return run / f"run-{match['id']}.wandb"


def _marker(run: Path) -> Path:
    """What `wandb sync` leaves beside a log that it uploaded."""
    return _log(run).with_suffix(".wandb.synced")


def _count(runs: int) -> str:
    return f"{runs} run" if runs == 1 else f"{runs} runs"

"""Brings the runs of run folders, and of comparisons, to W&B's server, with W&B's own `wandb sync`.

A run may have several folders: one for each time that its trial was started, or fell back to
offline. Each was told all epochs (see WandbTracker), so the newest that covers what segray has on
record is uploaded and the others are left alone. Where none does, the run is told once more from
the records.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from segray.config import Interrupted, RequestError, WorkError
from segray.config.yaml_file import read as read_yaml
from segray.tracking import client
from segray.tracking.run_log import HEADER_BYTES, Told, read_log, read_place, read_summary
from segray.tracking.wandb_tracker import writing

RUN_SECONDS = 600.0  # for one run; the next `segray sync` starts it again
POLL_SECONDS = 15.0  # between looks at whether the server is still there
COMPARISON = "compare.json"  # what `segray compare` leaves
UPLOADED = "uploaded.json"  # what the server has of runs whose folder is gone
_FOLDER = re.compile(r"(?P<offline>offline-)?run-(?P<started>\d{8}_\d{6})-(?P<id>.+)")
_CUT_OFF = "ends with an incomplete record"


@dataclass(frozen=True)
class Recorded:
    """A run as segray's own records have it."""

    folder: Path  # the run folder, whose wandb/ has W&B's
    id: str
    entity: str | None
    project: str
    known: Told
    tracked: bool  # whether it was to be shown in W&B at all
    at_work: bool  # whether its trial may still be going on
    retell: Callable[[], str | None]
    """Tell it to a new folder in wandb/; returns what went wrong. Raises RequestError where a sweep
    has begun in the run folder."""


@dataclass(frozen=True)
class _Job:
    """A run to bring to the server: what W&B has on disk, or else what is on record."""

    folder: Path
    id: str
    what: Path | Recorded


def sync_runs(
    folders: Sequence[Path],
    say: Callable[[str], None],
    recorded: Sequence[Recorded] = (),
    *,
    untracked: bool = False,
) -> int:
    """Bring what W&B's server does not have of each run folder there; returns how many runs.

    `recorded` are the folders' runs that segray has on record: those that no W&B folder covers are
    told again from there, without images, `untracked` ones only if asked. `say` is given lines for
    a person. Runs still being written are left alone, and so is what was uploaded before. Raises
    RequestError for a folder that is no run folder and where no key is known or the server refuses
    it; WorkError, saying what is missing, where not all could be uploaded: within a minute where
    the server is out of reach.
    """
    of_folder = {folder: _project(folder) for folder in folders}
    jobs = [
        job
        for folder in folders
        for job in _jobs(folder, [r for r in recorded if r.folder == folder], untracked, say)
    ]
    if not jobs:
        return 0
    entity = _entity()
    places = {
        (job.what.entity, job.what.project)
        if isinstance(job.what, Recorded)
        else of_folder[job.folder]
        for job in jobs
    }
    projects = ", ".join(sorted(f"{owner or entity}/{project}" for owner, project in places))
    say(f"{_count(len(jobs))} to upload to {client.base_url()}, project {projects}")
    uploaded = 0
    missing: list[Path] = []
    for number, job in enumerate(jobs, 1):
        try:
            if isinstance(job.what, Recorded):
                note = _bring(job.what, entity)
            else:
                with writing(job.what).acquire(blocking=False):
                    note = _upload(job.what)
            uploaded += 1
        except Timeout:
            note = "left to another `segray sync`, or to its trial, which goes on"
        except (WorkError, RequestError) as error:
            note = f"not uploaded: {error}"
            missing.append(job.folder)
        except ConnectionError as error:
            say(f"  {number}/{len(jobs)} {job.id}: not uploaded: {error}")
            missing += [later.folder for later in jobs[number - 1 :]]
            break
        except KeyboardInterrupt:
            raise Interrupted("interrupted; what was not uploaded is still on disk") from None
        say(f"  {number}/{len(jobs)} {job.id}: {note}")
    if missing:
        names = " ".join(dict.fromkeys(map(str, missing)))
        raise WorkError(
            f"{uploaded} of {_count(len(jobs))} uploaded, {len(missing)} not. Nothing is lost, all "
            f"is still on disk: `segray sync {names}` goes on from here"
        )
    return uploaded


def uploaded(folder: Path) -> list[Path]:
    """The run directories that a run folder no longer needs.

    They are those of every run whose newest is on the server: without that one, an older one
    would be taken for the newest and uploaded over it.
    """
    return [run for runs in _by_id(folder).values() if _marker(runs[-1]).exists() for run in runs]


def remember_uploaded(folder: Path) -> None:
    """Note what the server has of the runs whose directories `uploaded` lists; they may go then."""
    for run in uploaded(folder):
        _remember(folder, _run_id(run), _told(run))


def is_comparison(folder: Path) -> bool:
    """Whether a folder is a comparison of several runs, whose W&B run no sweep has on record."""
    return (folder / COMPARISON).is_file() and not (folder / "sweep.yaml").exists()


def _project(folder: Path) -> tuple[str | None, str]:
    """The entity, where one is set, and the project that a run folder's runs belong to."""
    if is_comparison(folder):
        logs = [_log(runs[-1]) for runs in _by_id(folder).values()]
        told = [place for log in logs if log.is_file() and (place := read_place(log))]
        return told[-1] if told else (None, "(unknown)")
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


def _jobs(
    folder: Path, recorded: Sequence[Recorded], untracked: bool, say: Callable[[str], None]
) -> list[_Job]:
    """The runs of a run folder to upload; says what else there is."""
    on_record = {run.id: run for run in recorded}
    on_disk = _by_id(folder)
    gone = _remembered(folder)
    jobs: list[_Job] = []
    states: Counter[str] = Counter()
    for run_id in sorted({*on_record, *on_disk}):
        runs = on_disk.get(run_id, [])
        found = _find(runs, on_record.get(run_id), gone.get(run_id, Told()), untracked)
        if isinstance(found, str):
            states[found] += 1
        else:
            jobs.append(_Job(folder, run_id, found))
    notes = [f"{_count(count)} {state}" for state, count in states.items()]
    if not jobs:
        notes = ["nothing to upload", *notes]
    if notes:
        say(f"{folder}: {'; '.join(notes)}")
    return jobs


def _find(
    runs: Sequence[Path], recorded: Recorded | None, gone: Told, untracked: bool
) -> Path | Recorded | str:
    """What to upload of a run; or, in words, why nothing.

    `runs` are its directories, the newest last; `gone` is what the server has from others that are
    gone.
    """
    if any(map(_is_written, runs)):
        return "still being written, left for the next time"
    if recorded is not None:
        if gone.covers(recorded.known):
            return "uploaded already"
        for run in reversed(runs):
            if _told(run).covers(recorded.known):
                return "uploaded already" if _marker(run).exists() else run
        if recorded.tracked or untracked:
            at_work = "not whole in wandb/, left until its sweep has ended"
            return at_work if recorded.at_work else recorded
    if not runs:
        return "not tracked; --rebuild would upload them from segray's records"
    if _marker(runs[-1]).exists():
        return "uploaded already"
    log = _log(runs[-1])
    if log.is_file() and log.stat().st_size > HEADER_BYTES:
        return runs[-1]
    return "with nothing in them: killed before W&B had written anything to disk"


def _is_written(run: Path) -> bool:
    """Whether somebody writes or uploads a run directory now."""
    try:
        with writing(run).acquire(blocking=False):
            return False
    except Timeout:
        return True


def _told(run: Path) -> Told:
    """How much of its run a run directory tells."""
    log = _log(run)
    return read_log(log) if log.is_file() else Told()


def _remembered(folder: Path) -> dict[str, Told]:
    path = folder / "wandb" / UPLOADED
    if not path.is_file():
        return {}
    return {run_id: Told(**told) for run_id, told in json.loads(path.read_text()).items()}


def _remember(folder: Path, run_id: str, told: Told) -> None:
    """Note what the server has of a run."""
    known = _remembered(folder)
    if known.get(run_id, Told()).covers(told):
        return
    content = {name: asdict(one) for name, one in (known | {run_id: told}).items()}
    path = folder / "wandb" / UPLOADED
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


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


def _bring(recorded: Recorded, entity: str) -> str:
    """Upload a run from segray's records; returns what to say of it.

    Nothing is sent where the server has all of it, from a folder that was lost since: it would miss
    the images. Raises as `_upload` does, Timeout where another process has it, and RequestError
    where its sweep goes on.
    """
    summary = client.ask_run(recorded.entity or entity, recorded.project, recorded.id)
    if summary is not None and (there := read_summary(summary)).covers(recorded.known):
        _remember(recorded.folder, recorded.id, there)
        return "on the server already, all of it"
    fault = recorded.retell()
    runs = _by_id(recorded.folder).get(recorded.id, [])
    whole = [run for run in runs if _told(run).covers(recorded.known)]
    if not whole:
        raise WorkError(f"told again from segray's records, it is not whole: {fault}")
    with writing(whole[-1]).acquire(blocking=False):
        return f"made again from segray's records, without images; {_upload(whole[-1])}"


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
    try:
        with _wandb_sync(run) as process:
            output = _wait(process)
    except BaseException:
        # It may have marked the run as uploaded before it was ended.
        _marker(run).unlink(missing_ok=True)
        raise
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
    environment |= {
        "WANDB_DIR": str(run.parent.parent),  # else its log goes to wherever the person is
        "WANDB_ERROR_REPORTING": "false",
        "NO_COLOR": "1",
    }
    with subprocess.Popen(
        command,
        env=environment,
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

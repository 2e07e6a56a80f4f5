"""A trial: what a process needs to run it, what it leaves in its folder, where it ranks.

What is read back is written under a temporary name and renamed, save metrics.jsonl, which grows by
lines and of which a reader takes whole lines only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from segray.config import RequestError, TrialConfig, dump
from segray.config.yaml_file import read as read_yaml
from segray.train import Metrics, Outcome, State, read_records

Stage = Literal["trial", "candidate", "final"]
"""trial: of the search. candidate: one of final.top_k, with another seed. final: the winner with
another seed, scored on test as no other is."""
FINISHED = ("finished", "early_stopped", "budget")  # states of trials that nothing found wanting


@dataclass(frozen=True)
class TrialSpec:
    """All that a process needs to run one trial."""

    id: str
    folder: Path
    config: TrialConfig
    assignment: Mapping[str, Any]
    sweep: str  # the sweep's name: W&B's group
    run_id: str  # unlike `id` unique among all sweeps: the W&B run
    run_folder: Path  # W&B's files go to its wandb/
    wandb: Mapping[str, Any]
    cpus: int  # that each worker is given; config.threads, which decides numbers, may be another
    stage: Stage = "trial"
    keeps_diverged: bool = False  # failure.on_divergence: keep
    note: str = ""  # what the record should say beside how it ended
    halved: bool = False  # it ran out of memory once, and now takes a batch in more passes
    remote: str | None = None  # where the run folder really is, if in an object store
    lease: str = ""  # then: of the driver that started the trial
    data_version: str | None = None  # of files in an object store, as the driver fetched them


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended."""

    id: str
    folder: Path
    assignment: Mapping[str, Any]
    outcome: Outcome


def ranked(results: Iterable[TrialResult], goal: str) -> list[TrialResult]:
    """Best objective first; a trial that diverged or failed comes after all that did not."""
    return sorted(results, key=lambda r: rank(r.id, r.outcome.broken, r.outcome.objective, goal))


def rank(
    trial_id: str, broken: bool, objective: float | None, goal: str
) -> tuple[bool, bool, float, str]:
    """What trials are sorted by, as `ranked` has them."""
    sign = -1 if goal == "maximize" else 1
    return broken, objective is None, sign * (objective or 0.0), trial_id


def row(result: TrialResult) -> dict[str, Any]:
    """A trial's line of leaderboard.csv."""
    outcome = result.outcome
    return {
        "trial": result.id,
        "state": outcome.state,
        "reason": outcome.reason,
        "best_value": outcome.best_value,
        "best_epoch": outcome.best_epoch,
        "last_value": outcome.last_value,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        **result.assignment,
    }


def write_config(spec: TrialSpec) -> None:
    """config.yaml of a trial: what decides its numbers, what the sweep chose for it, and where it
    is shown.
    """
    plain = spec.config.model_dump(mode="json") | {
        "assignment": dict(spec.assignment),
        "tracking": {"wandb": dict(spec.wandb)},
    }
    if spec.note:
        plain["second_try"] = {"note": spec.note, "halved": spec.halved}
    write_text(spec.folder / "config.yaml", dump(plain))


def read_config(folder: Path) -> TrialConfig | None:
    """What `write_config` wrote, or None where the trial has not begun."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    with reading(path):
        plain, _ = read_yaml(path)
        del plain["assignment"]
        plain.pop("tracking", None)  # earlier versions did not write it
        plain.pop("second_try", None)
        return TrialConfig.model_validate(plain)


def read_assignment(folder: Path) -> dict[str, Any]:
    """What the sweep chose for a trial; nothing where the trial has not begun."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    with reading(path):
        return dict(read_yaml(path)[0]["assignment"])


def read_second_try(folder: Path) -> dict[str, Any]:
    """Of a trial that had failed and went on: why, and whether with fewer images a pass."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    with reading(path):
        return dict(read_yaml(path)[0].get("second_try", {}))


def read_tracking(folder: Path) -> dict[str, Any] | None:
    """How a trial was shown in W&B when it was last started, where its record says that."""
    path = folder / "config.yaml"
    with reading(path):
        tracking = read_yaml(path)[0].get("tracking")
        return dict(tracking["wandb"]) if tracking else None


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """outcome.json: the trial has ended, and how."""
    write_text(folder / "outcome.json", json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")


def read_outcome(folder: Path) -> Outcome | None:
    """How the trial ended, or None if it has not."""
    path = folder / "outcome.json"
    if not path.is_file():
        return None
    with reading(path):
        return Outcome(**json.loads(path.read_text()))


def read_result(trial_id: str, folder: Path) -> TrialResult | None:
    """A trial with what became of it, or None if it has not ended."""
    outcome = read_outcome(folder)
    if outcome is None:
        return None
    return TrialResult(trial_id, folder, read_assignment(folder), outcome)


def failed_outcome(folder: Path, reason: str) -> Outcome:
    """The ending of a trial whose process could not write one: what its metrics.jsonl holds."""
    return outcome_of(read_records(folder / "metrics.jsonl"), "failed", reason)


def outcome_of(records: Sequence[Metrics], state: State, reason: str) -> Outcome:
    """An ending that is told from outside, of a trial that left these records."""
    last = records[-1] if records else {}
    return Outcome(
        state=state,
        reason=reason,
        objective=last.get("objective"),
        best_value=last.get("best"),
        best_epoch=last.get("best_epoch"),
        last_value=last.get("value"),
        epochs=len(records),
        seconds=round(sum(record["time/epoch_s"] for record in records), 3),
    )


def test_miou(path: Path) -> float:
    """The headline of a final training's metrics.json; void, where it is a class, is left out."""
    with reading(path):
        found = json.loads(path.read_text())
        return float(found.get("test/miou_without_void", found["test/miou"]))


def read_confusion(path: Path) -> dict[str, NDArray[Any]]:
    """confusion.npz: N test images' `confusion` (N, K, K) [true, predicted], `ids`, `cities` (N),
    `classes` (K) and, since there is one, `tuned_on`, a digest of the ids of train and val.

    Raises RequestError where it is not what a final stage writes.
    """
    try:
        # Opened here, as np.load leaves a torn file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            table = {name: saved[name] for name in saved.files}
        counts, n, k = table["confusion"], len(table["ids"]), len(table["classes"])
        if counts.shape != (n, k, k) or counts.dtype != np.int64 or len(table["cities"]) != n:
            raise ValueError(f"{counts.dtype} of {counts.shape}, for {n} images, {k} classes")
    except (OSError, EOFError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
    except (zipfile.BadZipFile, zlib.error) as error:
        said = str(error)
    else:
        return table
    raise RequestError(
        f"{path}: expected a matrix for each test image, as the final stage writes them ({said}). "
        f"Remove the folder {path.parent} and resume the sweep, which trains and scores it again"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises RequestError for what this version does not understand in a trial's record."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RequestError(
            f"{path}: expected what segray {version('segray')} writes there ({what}). Another "
            "version may have written it: the run's sweep.yaml says, on its line # versions, which"
        ) from None

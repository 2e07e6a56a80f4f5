"""The run folder: what a sweep leaves behind. It alone says what happened; Ray's files do not.

What is read back is written under a temporary name and renamed, save metrics.jsonl and the study's
journal, which grow by lines and of which a reader takes whole lines only.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import platform
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segray.config import RequestError, SweepConfig, TrialConfig, dump
from segray.train import Outcome, read_records

PACKAGES = ("segray", "torch", "transformers", "ray", "optuna", "wandb", "numpy", "pillow")


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
    scores_test: bool = False  # the final stage alone


@dataclass(frozen=True)
class TrialResult:
    """A trial that ended."""

    id: str
    folder: Path
    assignment: Mapping[str, Any]
    outcome: Outcome


class RunFolder:
    """runs/<name>: paths in it, and how its files are written."""

    def __init__(self, path: Path, sweep_id: str) -> None:
        """For an existing folder; `create` makes one."""
        self.path = path
        self.sweep_id = sweep_id

    @staticmethod
    def check_free(config: SweepConfig) -> None:
        """Raises RequestError where the sweep's folder holds something already."""
        path = Path(config.storage) / config.name
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RequestError(
                f"{path} holds an earlier run, and nothing finished is overwritten: give this one "
                f"another name (name={config.name}-2) or remove the folder"
            )

    @classmethod
    def create(cls, config: SweepConfig) -> RunFolder:
        """A new folder with its sweep.yaml; raises RequestError where none can be made."""
        path = Path(config.storage) / config.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.mkdir()  # of two sweeps that start at once under one name, one fails here
            cls.check_free(config)
            folder = cls(path, secrets.token_hex(4))
            write_text(path / "sweep.yaml", folder._sweep_yaml(config))
        except OSError as error:
            raise RequestError(
                f"cannot write to {path}: {error.strerror}; name a folder you can write to with "
                "storage=/some/folder"
            ) from None
        return folder

    @property
    def study(self) -> Path:
        """The Optuna study's journal."""
        return self.path / "study.journal"

    def trial(self, trial_id: str) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / trial_id

    def final(self, seed: int) -> Path:
        """The folder of a final training."""
        return self.path / "final" / f"seed_{seed}"

    def write_leaderboard(self, results: Iterable[TrialResult], goal: str) -> None:
        """leaderboard.csv: a row a trial, the best first, failures last."""
        rows = [_row(result) for result in ranked(results, goal)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / "leaderboard.csv", text.getvalue())

    def _sweep_yaml(self, config: SweepConfig) -> str:
        plain = config.model_dump(mode="json")
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        versions = {name: version(name) for name in PACKAGES} | {
            "python": platform.python_version()
        }
        header = [
            "# The resolved config of this run; `segray sweep` runs it again under another name=.",
            f"# id: {self.sweep_id}",
            f"# config sha256: {digest}",
            f"# started: {time.strftime('%Y-%m-%dT%H:%M:%S%z')}",
            f"# command: {shlex.join(['segray', *sys.argv[1:]])}",
            f"# versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
        ]
        return "\n".join(header) + "\n" + dump(plain)


def ranked(results: Iterable[TrialResult], goal: str) -> list[TrialResult]:
    """Best objective first; a trial that diverged or failed comes after all that did not."""
    sign = -1 if goal == "maximize" else 1

    def key(result: TrialResult) -> tuple[bool, bool, float, str]:
        outcome = result.outcome
        broken = outcome.state in ("diverged", "failed")
        unscored = outcome.objective is None
        return broken, unscored, sign * (outcome.objective or 0.0), result.id

    return sorted(results, key=key)


def write_config(spec: TrialSpec) -> None:
    """config.yaml of a trial: what decides its numbers, and what the sweep chose for it."""
    plain = spec.config.model_dump(mode="json") | {"assignment": dict(spec.assignment)}
    write_text(spec.folder / "config.yaml", dump(plain))


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """outcome.json: the trial has ended, and how."""
    write_text(folder / "outcome.json", json.dumps(dataclasses.asdict(outcome), indent=2) + "\n")


def read_outcome(folder: Path) -> Outcome | None:
    """How the trial ended, or None if it has not."""
    path = folder / "outcome.json"
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None


def failed_outcome(folder: Path, reason: str) -> Outcome:
    """The ending of a trial whose process could not write one: what its metrics.jsonl holds."""
    records = read_records(folder / "metrics.jsonl")
    last = records[-1] if records else {}
    return Outcome(
        state="failed",
        reason=reason,
        objective=last.get("objective"),
        best_value=last.get("best"),
        best_epoch=last.get("best_epoch"),
        last_value=last.get("value"),
        epochs=len(records),
        seconds=round(sum(record["time/epoch_s"] for record in records), 3),
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


def _row(result: TrialResult) -> dict[str, Any]:
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

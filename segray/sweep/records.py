"""The run folder: what a sweep leaves behind. It alone says what happened; Ray's files do not.

What is read back is written under a temporary name and renamed, save the study's journal, which
grows by lines, and of which a reader takes whole lines only.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from segray.config import (
    RequestError,
    SweepConfig,
    dump,
    load_sweep,
    one_line,
    trial_count,
)
from segray.data import data_version
from segray.data.cache import RUN_LOCK
from segray.data.remote import RemoteFolder, is_remote
from segray.sweep.locks import (
    DRIVER,
    ORPHANS_S,
    lock_alone,
    lock_shared,
    lock_unless_at_work,
)
from segray.sweep.store import (
    Copy,
    Lease,
    at_work,
    heavy,
    insist,
    remote_of,
    run_path,
    run_place,
)
from segray.sweep.trial_files import TrialResult, ranked, read_result, reading, row, write_text

PACKAGES = ("segray", "torch", "transformers", "ray", "optuna", "wandb", "numpy", "pillow")
Kind = Literal["sweep", "train"]  # the command that made a run folder
CHOICE = "candidates/choice.json"
DONE = ".done"  # empty: the sweep came to its end
SECONDS = ".seconds"  # how long the search has been at work
OF_TRIALS = ("trials", "candidates", "final", "wandb")  # folders that they write
MAY_CHANGE = (
    "budget.",
    "failure.retries",
    "failure.on_out_of_memory",
    "keep_trials",
    "name",  # of a folder that was renamed
    "resources.max_concurrent",
    "storage",
    "tracking.",
)  # between a run and its resume


class RunFolder:
    """runs/<name>: paths in it, and how its files are written."""

    def __init__(self, path: Path, sweep_id: str, kind: Kind = "sweep") -> None:
        """For an existing folder; `create` makes one."""
        self.path = path
        self.sweep_id = sweep_id
        self.kind = kind
        self.remote = remote_of(path)
        self._copy = Copy(path, self.remote) if self.remote else None
        self._lease = Lease(self.remote, path) if self.remote else None

    @staticmethod
    def is_free(config: SweepConfig) -> bool:
        """Whether the sweep's folder holds nothing yet."""
        if is_remote(config.storage):
            return all(name.startswith(".") for name in RemoteFolder(run_place(config)).files())
        return _is_free(run_path(config))

    @classmethod
    def check_free(cls, config: SweepConfig) -> None:
        """Raises RequestError where the sweep's folder holds something already."""
        if cls.is_free(config):
            return
        folder = cls(run_path(config), "")
        if folder.running():
            raise RequestError(
                f"{folder.place}: a sweep is at work there: wait for it, or give this one another "
                f"name (name={config.name}-2)"
            )
        raise _holds_earlier(config)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an earlier run; raises RequestError for one that is none."""
        file = path / "sweep.yaml"
        # Bytes that are no UTF-8 are named, with their line, by whoever reads the config.
        header = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        sweep_id = re.search(r"^# id: ([0-9a-f]+)$", header, re.MULTILINE)
        if sweep_id is None:
            remote = remote_of(path)
            raise RequestError(
                f"{remote.url if remote else path} is no run folder: expected a sweep.yaml that "
                "segray wrote in it. A run's folder is <storage>/<name> of its sweep file, as in "
                "runs/unet"
            )
        kind = re.search(r"^# kind: (train)$", header, re.MULTILINE)
        return cls(path, sweep_id[1], "train" if kind else "sweep")

    @classmethod
    def resume(cls, config: SweepConfig, kind: Kind = "sweep") -> RunFolder | None:
        """The folder of the run that `config` began, or None where it had not come so far.

        Raises RequestError where the config says otherwise now, or `kind` another command's.
        """
        path = current(config)
        if _is_free(path):
            return None
        folder = cls.open(path)
        if folder.kind != kind:
            raise RequestError(
                f"{folder.place} was made by `segray {folder.kind}`: go on with "
                f"{folder.resume_command()}"
            )
        recorded = folder.config()
        if folder.extended:  # then the number of trials is the folder's own
            config = config.model_copy(update={"run_cap": recorded.run_cap})
        before, now = (_flat(c) for c in (recorded, config))
        changed = [
            f"  {key}: {before.get(key, '(absent)')} -> {now.get(key, '(absent)')}"
            for key in dict.fromkeys([*before, *now])
            if before.get(key, ...) != now.get(key, ...)
            and not key.startswith(MAY_CHANGE)
            and not (key.startswith("final") and folder.chooses_final)
        ]
        if changed:
            lines = "\n".join(changed)
            more = "; --extend N adds trials" if "\n  run_cap:" in f"\n{lines}" else ""
            raise RequestError(
                f"{folder.place} was begun with other settings, and its trials could not be "
                f"compared with new ones:\n{lines}\nGive the new settings another name "
                f"(name={config.name}-2), or go on with the old ones: {folder.resume_command()}"
                f"{more}"
            )
        return folder

    def check_data(self, version: str | None) -> None:
        """Raises RequestError where the object store of the data has other files than it had."""
        header = (self.path / "sweep.yaml").read_text(encoding="utf-8")
        before = re.search(rf"^{_DATA}(\w+)$", header, re.MULTILINE)
        if before is not None and before[1] != version:
            raise RequestError(
                f"{self.config().data.root} has other files than when {self.place} was begun, and "
                "its trials could not be compared with new ones: bring those back, or begin anew "
                "under another name="
            )

    @property
    def chooses_final(self) -> bool:
        """Whether no final stage has begun, so that there may still be another."""
        return not (self.path / "final").exists() and not (self.path / "candidates").exists()

    @property
    def extended(self) -> bool:
        """Whether trials were added to the sweep since it began."""
        return "\n# extended: " in (self.path / "sweep.yaml").read_text(encoding="utf-8")

    def extended_by(self, trials: int) -> int:
        """How many trials the sweep has with so many more; RequestError where there are no more."""
        recorded = self.config()
        total = trial_count(recorded) + trials
        if recorded.method == "grid":
            total = min(total, trial_count(recorded.model_copy(update={"run_cap": None})))
            if total == trial_count(recorded):
                raise RequestError(
                    f"{self.place} has run every combination of its grid, {total} trials: there is "
                    "nothing to add; give it more values under another name="
                )
        return total

    def has(self, config: SweepConfig) -> bool:
        """Whether the record says what `config` does, but for where the folder lies."""
        recorded = self.config()
        return _at_home_of(recorded, config) == recorded

    def adopt(self, config: SweepConfig) -> None:
        """Record what `config`, with which the run is taken up, has changed; it must be held."""
        (self.path / DONE).unlink(missing_ok=True)
        if self.has(config):
            return
        recorded = self.config()
        config = _at_home_of(recorded, config)
        file = self.path / "sweep.yaml"
        lines = file.read_text(encoding="utf-8").splitlines()
        header = [line for line in lines if line.startswith("#")]
        header = [_digest(config) if line.startswith(_DIGEST) else line for line in header]
        if trial_count(config) != trial_count(recorded):
            header.append(f"# extended: {_now()}, to {trial_count(config)} trials")
        text = "\n".join(header) + "\n" + dump(config.model_dump(mode="json"))
        write_text(file, text)
        self.save()

    @classmethod
    def remove_smoke_test(cls, config: SweepConfig) -> None:
        """Delete what an earlier smoke test left in the folder of `config`, and nothing else.

        Raises RequestError where that one is still at work.
        """
        path = current(config)
        try:
            folder = cls.open(path)
            if folder.config().data.limit is None:
                return
        except RequestError:  # not what a smoke test of this version leaves
            return
        if folder.remote and folder.running():
            raise RequestError(f"{folder.place}: a sweep is at work there: wait until it has ended")
        with folder.alone():
            if folder.remote:
                folder.remote.delete_all()
            shutil.rmtree(path)

    def config(self) -> SweepConfig:
        """What the run was begun with; raises ConfigError where this version does not take it."""
        return load_sweep(self.path / "sweep.yaml", env={})

    def resume_command(self) -> str:
        """What takes the run up, also where its folder was moved since it began."""
        config, here = self.config(), self.path.resolve()
        command = ["segray", self.kind, str(self.path / "sweep.yaml"), "--resume"]
        if self.remote:
            return shlex.join(command)
        if here.parent != Path(config.storage).resolve():
            command.append(f"storage={one_line(str(here.parent))}")
        if here.name != config.name:
            command.append(f"name={here.name}")
        return shlex.join(command)

    @contextlib.contextmanager
    def hold(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep every other sweep out of the folder while the context lasts.

        The driver and every process that trains hold a shared lock on it, which the kernel drops
        when they die. Who takes the folder up asks for it alone first, and so waits, after calling
        `waiting`, until the last process of a killed sweep is gone. Raises RequestError where that
        does not happen within ORPHANS_S, or where the other driver lives.
        """
        in_use = (
            f"{self.place} is in use by a sweep that is still running: wait for it, or stop it "
            "(Ctrl-C, or SIGTERM to its process)"
        )
        with (self.path / DRIVER).open("a+") as driver, (self.path / RUN_LOCK).open("a+") as file:
            if not lock_unless_at_work(driver):
                raise RequestError(in_use)
            until = time.monotonic() + ORPHANS_S
            told = False
            while not lock_alone(file):
                if not told:
                    waiting()
                    told = True
                if time.monotonic() > until:
                    raise RequestError(in_use)
                time.sleep(0.2)
            lock_shared(file)
            if self._lease is None:
                yield
                return
            with self._lease.held(waiting):
                self._fetch()  # the last processes of an earlier driver may have gone on
                yield

    def _fetch(self) -> None:
        """Make a copy what the store has, but for weights and the like."""
        assert self._copy is not None
        for entry in self.path.iterdir():
            if (
                entry.name.startswith(".") and entry.name.endswith(".lock")
            ) or entry.name == DRIVER:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        self._copy.fetch(lambda name: not heavy(name))

    @property
    def lease_id(self) -> str:
        """Of this driver, where the run is in an object store."""
        return self._lease.id if self._lease else ""

    def save(self) -> None:
        """Bring what the driver itself has written to the store, if the run is in one.

        What follows from a record may happen only once it is there: a trial's start, say. Raises
        WorkError where the store does not answer, or another driver has the run.
        """
        if self._lease is not None:
            insist(self._lease.check)
            insist(self._push)

    def _push(self) -> None:
        assert self._copy is not None
        study = self.study.name  # last: what it says of trials is on record by then
        tops = [entry for entry in self.path.iterdir() if _is_the_drivers(entry.name)]
        names = [
            file.relative_to(self.path).as_posix()
            for top in sorted(tops)
            for file in ([top] if top.is_file() else sorted(top.rglob("*")))
            if file.is_file() and not file.name.endswith(".tmp")
        ]
        self._copy.push([*(name for name in names if name != study), CHOICE, study])
        self._copy.push_gone(_is_the_drivers)

    def save_training(self, folder: Path, *names: str) -> None:
        """Bring files to the store that the driver wrote into a trial's folder."""
        if (copy := self._copy) is not None:
            below = folder.relative_to(self.path).as_posix()
            insist(lambda: copy.push([f"{below}/{name}" for name in names]))

    def results(self) -> list[TrialResult]:
        """The trials of the search that have ended, by id."""
        trials = (read_result(path.name, path) for path in sorted(self.path.glob("trials/[!.]*")))
        return [trial for trial in trials if trial is not None]

    def final_results(self, seeds: Iterable[int]) -> dict[int, TrialResult]:
        """The trainings of the final stage that have ended, by seed."""
        paths = {seed: self.final(seed) for seed in seeds}
        trials = {seed: read_result(self.final_id(path), path) for seed, path in paths.items()}
        return {seed: trial for seed, trial in trials.items() if trial is not None}

    def collect(self, folder: Path, *, weights: bool) -> None:
        """Fetch from the store what a trial has left there; `weights` and the like as well.

        A longer log of this machine stays: it has the last words of a process that died.
        """
        if self.remote is None:
            return
        copy = Copy(folder, self.remote / folder.relative_to(self.path).as_posix())
        log = folder / "log.txt"

        def wanted(name: str) -> bool:
            if name == log.name and log.is_file():
                there = copy.remote.file(name)
                return there is not None and there.bytes > log.stat().st_size
            return weights or not heavy(name)

        insist(lambda: copy.fetch(wanted))

    @property
    def exported(self) -> bool:
        """Whether best/ is there."""
        if self.remote:
            return bool((self.remote / "best").files())
        return (self.path / "best").is_dir()

    def drop_checkpoint(self, trial_id: str) -> None:
        """Delete a trial's weights."""
        shutil.rmtree(self.trial(trial_id) / "checkpoint", ignore_errors=True)
        if self.remote:
            insist((self.remote / f"trials/{trial_id}/checkpoint").delete_all)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every sweep out of the folder while the context lasts; one that starts waits.

        Raises RequestError where one is at work.
        """
        with (self.path / RUN_LOCK).open("a+") as file:
            if not lock_unless_at_work(file):
                raise RequestError(
                    f"{self.place}: a sweep is at work in this folder; wait until it has ended"
                )
            yield

    def running(self) -> bool:
        """Whether a sweep is at work in the folder, as far as the reader may know."""
        if self.remote:
            return at_work(self.remote)
        path = self.path / RUN_LOCK
        try:
            with path.open("r+" if os.access(path, os.W_OK) else "r") as file:
                return not lock_unless_at_work(file)
        except OSError:  # no sweep ever was, or NFS, which locks for those alone who may write
            return False

    @classmethod
    def create(
        cls, config: SweepConfig, kind: Kind = "sweep", command: Sequence[str] = ()
    ) -> RunFolder:
        """A new folder with its sweep.yaml, which notes the `command` that asked for it, if any.

        Raises RequestError where none can be made.
        """
        path = run_path(config)
        folder = cls(path, secrets.token_hex(4), kind)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with (path / RUN_LOCK).open("a+") as file:  # of two that start at once, one has it
                if not lock_alone(file):
                    raise RequestError(f"{path}: another sweep begins there at this moment")
                if folder.remote:
                    folder._fetch()  # what an earlier run left here may be gone there
                if not _is_free(path):
                    raise _holds_earlier(config)
                write_text(path / "sweep.yaml", folder._sweep_yaml(config, command))
            if folder.remote:
                insist(folder._push)
        except OSError as error:
            raise RequestError(
                f"cannot write to {path}: {error.strerror}; name a folder you can write to with "
                "storage=/some/folder"
            ) from None
        return folder

    @property
    def place(self) -> str:
        """Where the run is, for a person."""
        return self.remote.url if self.remote else str(self.path)

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

    def candidate(self, trial_id: str, seed: int) -> Path:
        """The folder of a training of one of final.top_k trials."""
        return self.path / "candidates" / trial_id / f"seed_{seed}"

    def promote(self, trial_id: str, seed: int) -> None:
        """Begin a final training with what the candidate's has come to, unless it has begun."""
        target = self.final(seed)
        if target.exists():
            return
        temporary = target.with_name(f".{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        # Not the outcome, which is that of a training without its score on test.
        source, left_out = self.candidate(trial_id, seed), shutil.ignore_patterns("outcome.json")
        self.collect(source, weights=True)
        shutil.copytree(source, temporary, ignore=left_out)
        temporary.rename(target)
        files = [f.relative_to(target).as_posix() for f in target.rglob("*") if f.is_file()]
        # config.yaml last: with it a training has begun.
        self.save_training(target, *sorted(files, key=lambda name: name == "config.yaml"))

    def choice(self, among: Sequence[str]) -> str | None:
        """Which of these candidates was chosen, if the choice was made among them."""
        path = self.path / CHOICE
        if not path.is_file():
            return None
        with reading(path):
            made = json.loads(path.read_text())
            return str(made["winner"]) if made["among"] == list(among) else None

    def write_choice(self, winner: str, among: Sequence[str]) -> None:
        """Record which candidate was chosen, so that it stays so."""
        made = {"winner": winner, "among": list(among)}
        write_text(self.path / CHOICE, json.dumps(made) + "\n")
        self.save()

    @property
    def past_finals(self) -> int:
        """How many final stages were set aside, as trials that were added found a new winner."""
        return len(list(self.path.glob("final-before-*")))

    def final_id(self, path: Path) -> str:
        """The id of the candidate's or final training in `path`: each stage's are its own."""
        seed = path.name.replace("_", "")
        if path.parent.parent.name == "candidates":
            return f"candidate-{path.parent.name}-{seed}"
        _, _, aside = path.parent.name.partition("final-before-")
        stage = int(aside) - 1 if aside else self.past_finals
        return f"final-{seed}" + (f"-again{stage}" if stage else "")

    def set_final_aside(self) -> Path:
        """Keep the final stage of an earlier winner under another name."""
        aside = self.path / f"final-before-{self.past_finals + 1}"
        final = self.path / "final"
        self.collect(final, weights=True)
        final.rename(aside)
        self.save()
        if self.remote:
            there = self.remote / "final"
            # An outcome without its config would pass for that of the new winner.
            order = {"outcome.json": 0, "config.yaml": 2}
            names = sorted(there.files(), key=lambda name: order.get(name.split("/")[-1], 1))
            insist(lambda: there.delete(names))
        return aside

    def mark_done(self) -> None:
        """The sweep has come to its end, whether its trials or its budget ended it."""
        write_text(self.path / DONE, "")
        self.save()

    @property
    def done(self) -> bool:
        """Whether the sweep came to its end, and was not taken up again since."""
        return (self.path / DONE).is_file()

    def seconds_at_work(self) -> float:
        """How long the search has been at work until its last trial ended, as far as it counts."""
        file = self.path / SECONDS
        return float(file.read_text()) if file.is_file() else 0.0

    def write_seconds_at_work(self, seconds: float) -> None:
        """Keep it for a process that takes the search up."""
        write_text(self.path / SECONDS, f"{seconds:.1f}\n")

    def write_leaderboard(self, results: Iterable[TrialResult], goal: str) -> None:
        """leaderboard.csv: a row a trial, the best first, failures last."""
        rows = [row(result) for result in ranked(results, goal)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / "leaderboard.csv", text.getvalue())

    def _sweep_yaml(self, config: SweepConfig, command: Sequence[str]) -> str:
        versions = {name: version(name) for name in PACKAGES} | {
            "python": platform.python_version()
        }
        header = [
            "# The resolved config of this run; `segray sweep` runs it again under another name=.",
            f"# id: {self.sweep_id}",
            f"# kind: {self.kind}",
            _digest(config),
            f"# started: {_now()}",
            *([f"{_DATA}{files}"] if (files := data_version(config.data)) else []),
            *([f"# command: {' '.join(map(_quoted, command))}"] if command else []),
            f"# versions: {', '.join(f'{name} {number}' for name, number in versions.items())}",
        ]
        return "\n".join(header) + "\n" + dump(config.model_dump(mode="json"))


_DIGEST = "# config sha256: "
_DATA = "# data fetched: "


def _digest(config: SweepConfig) -> str:
    plain = json.dumps(config.model_dump(mode="json"))
    return _DIGEST + hashlib.sha256(plain.encode()).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _quoted(argument: str) -> str:
    """An argument as bash takes it, on one line whatever is in it."""
    if argument.isprintable():
        return shlex.quote(argument)
    escaped = argument.encode("unicode_escape").decode()
    return "$'" + escaped.replace("'", "\\'") + "'"


def _at_home_of(recorded: SweepConfig, config: SweepConfig) -> SweepConfig:
    """`config` for a folder that may have been moved since."""
    return config.model_copy(update={"name": recorded.name, "storage": recorded.storage})


def _holds_earlier(config: SweepConfig) -> RequestError:
    return RequestError(
        f"{run_place(config)} holds an earlier run, and nothing finished is overwritten: go on "
        f"with that one (--resume), give this one another name (name={config.name}-2), or remove it"
    )


def current(config: SweepConfig) -> Path:
    """The sweep's folder on this machine; a copy is what the store has at this moment.

    Unless processes of this machine are at work in it: then it is theirs.
    """
    path = run_path(config)
    if remote_of(path) is not None:
        path.mkdir(parents=True, exist_ok=True)
        with (path / DRIVER).open("a+") as driver, (path / RUN_LOCK).open("a+") as lock:
            if lock_unless_at_work(driver) and lock_unless_at_work(lock):
                RunFolder(path, "")._fetch()
    return path


def _is_the_drivers(name: str) -> bool:
    """Whether a file of a run folder is written by the driver, and is of no machine alone."""
    top = name.split("/")[0]
    return top not in (*OF_TRIALS, ".ray", DRIVER) and not re.fullmatch(r"\..*lock", top)


def _is_free(path: Path) -> bool:
    """Whether a run can begin at `path`; one that was killed at once leaves hidden files."""
    if not path.is_dir():
        return not path.exists()
    return all(entry.name.startswith(".") for entry in path.iterdir())


def _flat(config: SweepConfig) -> dict[str, Any]:
    """Dotted path -> value, for every value of a config."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else key)
        else:
            found[path] = value

    walk(config.model_dump(mode="json"), "")
    return found

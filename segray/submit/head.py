"""A cluster's head as it is seen from here: through the `ray` command, and so through ssh."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segray.config import WorkError

LAST_LINES = 12  # of Ray's output, in the message about a failure
_STEP = re.compile(r"\[([\d-]+)/(\d+)\] (.+)")  # as in "[1/7] Waiting for SSH to become available"
_NO_HEAD = r"Head node of cluster \(.*\) not found"
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The two are put together on the head, so that a command that is shown is not taken for its output.
_BEGIN, _END = "segray:begins", "segray:ends:"


class NoAnswer(WorkError):
    """The head cannot be reached, or does not say what is asked of it."""


class NoHead(NoAnswer):
    """There is no such head."""


@dataclass(frozen=True)
class Head:
    """The cluster of a filled-in `file`; all that Ray says about it goes to `log`."""

    file: Path
    log: Path
    say: Callable[[str], None]

    def up(self, *, restart: bool = True) -> None:
        """Make the head and set it up, or bring the one that is there up to date.

        Ray is started where it is new, and with `restart` also where it runs, which ends every
        sweep on it. Raises WorkError where it fails.
        """
        shown: set[str] = set()

        def step(line: str) -> None:
            if (found := _STEP.search(line)) and found[0] not in shown:
                shown.add(found[0])
                self.say(f"  {found[1]} of {found[2]}: {found[3].rstrip('.')}")

        options = ["-y", "--disable-usage-stats", *([] if restart else ["--no-restart"])]
        self._check("the cluster did not come up", ["up", *options, str(self.file)], step)

    def down(self) -> None:
        """End all machines of the cluster; raises WorkError where it fails."""
        self._check("the cluster did not go down", ["down", "-y", str(self.file)])

    def push(self, here: Path, there: str) -> None:
        """Copy a file to the head; raises WorkError where it fails."""
        what = f"{here} could not be copied to the head"
        self._check(what, ["rsync-up", str(self.file), str(here), there])

    def fetch(self, there: str, here: Path) -> None:
        """Copy what is in a folder on the head into one here; raises WorkError where it fails."""
        here.mkdir(parents=True, exist_ok=True)
        what = f"{there} could not be fetched from the head"
        self._check(what, ["rsync-down", str(self.file), f"{there}/", f"{here}/"])

    def run(self, command: str, each: Callable[[str], None] | None = None) -> tuple[int, list[str]]:
        """Run a shell command on the head; its exit code, and the lines that it printed.

        `each`, if given, gets every line as it comes instead. Raises NoHead where there is none,
        NoAnswer where it cannot be reached, or goes away before the command has ended.
        """
        logged = self.log.stat().st_size if self.log.is_file() else 0
        lines: list[str] = []
        begun, answered, code = False, False, None
        tell = each or lines.append
        output = self._output(["exec", str(self.file), _marked(command)], logged=each is None)
        with contextlib.suppress(_Failed), contextlib.closing(output):
            for line in output:
                if line.endswith(_BEGIN):
                    begun = answered = True
                elif begun and (found := re.search(rf"(.*){_END}(\d+)$", line)):
                    begun, code = False, int(found[2])
                    if found[1]:  # what ended without a line's end
                        tell(found[1])
                elif begun:
                    tell(line)
        if code is None:
            if not answered and self._has_said(_NO_HEAD, logged):
                raise NoHead(f"the cluster of {self.file} has no head")
            raise NoAnswer(
                f"the head of {self.file} does not answer; Ray's output is in {self.log}"
            )
        return code, lines

    def _has_said(self, text: str, since: int) -> bool:
        with open(self.log, "rb") as log:
            log.seek(since)
            return re.search(text.encode(), log.read()) is not None

    def _check(
        self, what: str, arguments: Sequence[str], each: Callable[[str], None] | None = None
    ) -> None:
        last: list[str] = []
        try:
            for line in self._output(arguments):
                last = [*last, line][-LAST_LINES:]
                if each is not None:
                    each(line)
        except _Failed as failed:
            said = "\n".join(f"  {line}" for line in last if line.strip())
            raise WorkError(
                f"{what}: `{shlex.join(['ray', *arguments])}` ended with {failed.code}, after\n"
                f"{said}\nAll of its output is in {self.log}"
            ) from None

    def _output(
        self, arguments: Sequence[str], *, logged: bool = True
    ) -> Generator[str, None, None]:
        """Lines of a `ray` command as they come; raises _Failed at its end if it failed."""
        environment = {
            **os.environ,
            "RAY_UP_enable_autoscaler_v2": "0",  # see cluster.yaml
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
        }
        with open(self.log, "a", encoding="utf-8", opener=_private) as log:
            log.write(f"$ {shlex.join(['ray', *arguments])}\n")
            log.flush()
            # A group of its own: Ctrl-C is for this program, which then ends it. Errors go to the
            # log at once, as ssh's connection, kept open for the next command, holds that stream.
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            assert process.stdout is not None
            try:
                for raw in process.stdout:
                    line = _COLOURS.sub("", raw).rstrip("\r\n")
                    if logged:
                        log.write(f"{line}\n")
                        log.flush()
                    yield line
                if code := process.wait():
                    raise _Failed(code)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
                process.stdout.close()


class _Failed(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _marked(command: str) -> str:
    def echo(mark: str, rest: str = "") -> str:
        return f'printf "%s%s\\n" {mark[:6]} "{mark[6:]}{rest}"'

    return f"{echo(_BEGIN)}; ({command}); {echo(_END, '$?')}"

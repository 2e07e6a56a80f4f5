"""Runs a sweep to its end, and kills parts of it on the way: python chaos.py FILE KILLS SEED

For a PID namespace of its own, where every process of Ray is this sweep's. Prints a line of JSON:
what was killed, in order, and with what the driver ended each time.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

# What each victim's command line begins with, or has in it.
VICTIMS = {
    "trial": ("ray::ImplicitFunc",),
    "worker": ("ray::RayTrainWorker",),
    "board": ("ray::Board",),
    "raylet": ("/raylet/raylet",),
    "gcs_server": ("/gcs/gcs_server",),
    "all of Ray": ("ray::", "/ray/"),
}
ENDS_RAY = ("raylet", "gcs_server", "all of Ray")
WEIGHTS = {"driver": 3, "trial": 3, "worker": 3, "board": 2, "all of Ray": 2}
PAUSE_S = (0.2, 6.0)  # between two kills
END_S = 60.0  # for a driver to notice that Ray is gone


def alive(kind: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "segray sweep" not in command and any(part in command for part in VICTIMS[kind]):
                found.append(int(path.parent.name))
    return found


def kill(kind: str, driver: subprocess.Popen) -> bool:
    """Whether there was one to kill."""
    victims = [driver.pid] if kind == "driver" else alive(kind)
    if kind != "all of Ray":
        victims = victims[:1]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(victims)


def main() -> None:
    file, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    run = file.parent / "runs"
    killed, endings = [], []
    log = (file.parent / "output.txt").open("a")
    while not endings or endings[-1] != 0:
        command = [sys.executable, "-m", "segray", "sweep", str(file), "--resume"]
        driver = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while driver.poll() is None and not list(run.glob("*/*/*/metrics.jsonl")):
            time.sleep(0.1)
        while driver.poll() is None:
            time.sleep(chance.uniform(*PAUSE_S))
            if len(killed) < kills and driver.poll() is None:
                kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
                if kill(kind, driver):
                    killed.append(kind)
                    if kind in ENDS_RAY:
                        driver.wait(END_S)
        endings.append(driver.returncode)
        assert driver.returncode in (0, 1, -signal.SIGKILL), driver.returncode
        assert len(endings) < 2 * kills + 3, endings
    print(json.dumps({"killed": killed, "endings": endings}))


if __name__ == "__main__":
    main()

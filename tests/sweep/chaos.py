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
WEIGHTS = {
    "driver": 2,
    "trial": 3,
    "worker": 2,
    "board": 2,
    "all of Ray": 2,
    "raylet": 1,
    "gcs_server": 1,
}
ANY_MOMENT = ("driver", "all of Ray")  # of a sweep, its start included
START_S = 25.0
END_S = 600.0  # for a driver that nobody kills any more


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
    killed, endings = [], []
    log = (file.parent / "output.txt").open("a")
    while not endings or endings[-1] != 0:
        command = [sys.executable, "-m", "segray", "sweep", str(file), "--resume"]
        driver = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        )
        while driver.poll() is None:
            if len(killed) == kills:
                wait_for(driver, END_S)
                continue
            kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            if kind in ANY_MOMENT:
                time.sleep(chance.uniform(0, START_S))
            else:  # those are not always there
                since = time.monotonic()
                while driver.poll() is None and not alive(kind) and time.monotonic() - since < 30:
                    time.sleep(0.05)
                time.sleep(chance.uniform(0, 3))
            if driver.poll() is None and kill(kind, driver):
                killed.append(kind)
                log.write(f"--- killed {kind}\n")
                log.flush()
                if kind == "driver":
                    driver.wait()
        endings.append(driver.returncode)
        assert driver.returncode in (0, 1, -signal.SIGKILL), driver.returncode
    print(json.dumps({"killed": killed, "endings": endings}))


def wait_for(driver: subprocess.Popen, seconds: float) -> None:
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGABRT)  # where it hangs is then in its output
        driver.wait()


if __name__ == "__main__":
    main()

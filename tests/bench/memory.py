"""Memory of a long sweep of trivial trainings: of the driver, of Ray's services and of the workers,
from the 10th trial to the last.
"""

import re
import tempfile
from pathlib import Path

from common import arguments, conditions
from trials import sweep_config

from segray.sweep.runner import run_sweep
from segray.sweep.search import Search

KINDS = ("driver", "workers", "Ray's services")


def resident(root: Path = Path("/proc")) -> dict[str, float]:
    """MB of resident memory of this process and of its descendants, by kind.

    Pages that several processes share count in each of them.
    """
    status = {}
    for path in root.glob("[0-9]*/status"):
        try:
            status[int(path.parent.name)] = path.read_text()
        except OSError:  # it has ended
            continue
    parent = {pid: int(re.search(r"PPid:\s+(\d+)", text)[1]) for pid, text in status.items()}
    me = int((root / "self").readlink().name)
    megabytes = dict.fromkeys(KINDS, 0.0)
    for pid, text in status.items():
        above = pid
        while above != me and above in parent:
            above = parent[above]
        size = re.search(r"VmRSS:\s+(\d+) kB", text)  # a zombie has none
        if above == me and size:
            worker = text.startswith("Name:\tray::")
            kind = "driver" if pid == me else "workers" if worker else "Ray's services"
            megabytes[kind] += int(size[1]) / 1024
    return megabytes


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=300)
    asked = parser.parse_args()
    print(conditions(asked.threads))
    seen: list[dict[str, float]] = []
    end = Search.end

    def end_and_look(search, result):
        end(search, result)
        seen.append(resident())

    Search.end = end_and_look
    try:
        with tempfile.TemporaryDirectory() as folder:
            run_sweep(sweep_config(Path(folder), trials=asked.trials, epochs=1, images=12))
    finally:
        Search.end = end
    print("\nMB resident after trial " + "".join(f"{kind:>18}" for kind in KINDS) + "  all")
    rows = [n for n in (10, 20, 50, 100, 150, 200, 250) if n < len(seen)]
    for number in [*rows, len(seen)]:
        row = seen[number - 1]
        figures = "".join(f"{row[kind]:18.0f}" for kind in KINDS)
        print(f"{number:24}{figures} {sum(row.values()):6.0f}")
    first, last = seen[9], seen[-1]
    for kind in KINDS:
        print(f"  {kind}: {last[kind] / first[kind] - 1:+.1%}")
    print(f"  all: {sum(last.values()) / sum(first.values()) - 1:+.1%}")


if __name__ == "__main__":
    main()

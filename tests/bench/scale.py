"""Where a large sweep's time goes that is no training: 500 trials, 40 at once, on simulated nodes.

Trials are trivial: they leave the records that trials leave, post their epochs on the board, and
sleep in between; they import no torch, as 40 processes with it would need 9 GB. All else is the
sweep's own: Optuna's study with its journal, Tune, board, leaderboard. The nodes are Ray's own
simulated ones (ray.cluster_utils), all on this machine.

Shown by tenths of the sweep, as what grows with the number of trials is what ends a larger one:
the driver's time to choose a trial and to book one, and how long a place stayed empty between two
trials. W&B's requests are counted apart, from a real client against the stand-in server.
"""

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from types import SimpleNamespace

from common import conditions

from segray.config import SweepConfig
from segray.sweep.placement import Plan
from segray.sweep.records import RunFolder
from segray.sweep.trial_files import TrialSpec

NODES, TRAINS_S, EPOCHS = 5, 18.0, 3


class LightSpec(TrialSpec):
    """A spec that a process without torch can unpickle."""

    def __reduce__(self):
        names = ("id", "folder", "assignment", "stage")
        return SimpleNamespace, (), {name: getattr(self, name) for name in names}


def trivial(config):
    """What Tune runs: EPOCHS epochs of sleep, with the records of a trial."""
    import ray
    from ray import tune

    spec, board = config["spec"], ray.get_actor(config["board"], namespace="segray")
    folder = spec.folder
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    began = time.time()
    (folder / "config.yaml").write_text(json.dumps({"assignment": spec.assignment}))
    lr = spec.assignment["train.optimizer.lr"]
    for epoch in range(1, EPOCHS + 1):
        time.sleep(TRAINS_S / EPOCHS)
        value = epoch / EPOCHS * (1 - abs(lr - 1e-3))
        record = {"epoch": epoch, "value": value, "best": value, "objective": value}
        record |= {
            "time/epoch_s": TRAINS_S / EPOCHS,
            "time/ended": time.time(),
            "best_epoch": epoch,
        }
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        (folder / "checkpoint/last.safetensors").write_bytes(b"")
        posted = board.report.remote(spec.id, epoch, value)
        tune.report({name: record[name] for name in ("epoch", "value", "best", "objective")})
        if stop := ray.get(posted):
            break
    (folder / "log.txt").write_text(f"{os.getpid()} {began} {time.time()}\n")
    outcome = {"state": stop or "finished", "reason": "", "objective": value, "best_value": value}
    outcome |= {"best_epoch": epoch, "last_value": value, "epochs": epoch, "seconds": TRAINS_S}
    (folder / "outcome.json").write_text(json.dumps(outcome))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--method", default="tpe")
    options = parser.parse_args()
    print(conditions(threads=1))
    from segray.sweep import cluster

    for name, value in (cluster._QUIET | cluster._WORKERS).items():
        os.environ.setdefault(name, value)
    import ray
    from ray.cluster_utils import Cluster

    from segray.sweep import engine, search, space
    from segray.sweep.progress import Screen

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(NODES):
        nodes.add_node(num_cpus=options.at_once // NODES)
    ray.init(address=nodes.address, log_to_driver=False)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it misses files nobody asked for
    spent = defaultdict(list)  # what -> (trial's number, seconds)

    def timed(owner, name):
        plain = getattr(owner, name)

        def call(*given):
            started = time.perf_counter()
            found = plain(*given)
            spent[name].append(time.perf_counter() - started)
            return found

        setattr(owner, name, call)

    timed(search.Search, "next")
    timed(search.Search, "end")
    engine.tune_trainable = trivial
    search.TrialSpec = LightSpec
    with tempfile.TemporaryDirectory() as scratch:
        config = SweepConfig.model_validate(
            {
                "name": "scale",
                "storage": scratch,
                "model": {"name": "unet"},
                "data": {"format": "scenes", "size": [32, 64]},
                "train": {"epochs": EPOCHS, "batch_size": 4},
                "parameters": {
                    "train.optimizer.lr": {
                        "distribution": "log_uniform_values",
                        "min": 1e-5,
                        "max": 1e-2,
                    },
                    "train.early_stop.patience": {"values": [2, 3, 5, 8]},
                    "train.augment.scale": {"values": [[1.0, 1.0], [0.75, 1.5], [0.5, 2.0]]},
                    "train.augment.blur": {"values": [0.0, 0.5]},
                    "train.augment.brightness": {"min": 0.0, "max": 0.5},
                },
                "early_terminate": {"type": "asha", "min_iter": 1, "eta": 3},
                "method": options.method,
                "run_cap": options.trials,
                "tracking": {"wandb": {"mode": "disabled"}},
            }
        )
        folder = RunFolder.create(config)
        stage = Plan(1, 1, 0.0, options.at_once)
        queue = search.Search(config, folder, stage)
        screen = Screen("val/miou", "maximize", EPOCHS)
        screen.say = lambda text: None
        started = time.time()
        engine.run_trials(
            queue,
            stage,
            screen,
            folder=folder,
            failure=config.failure,
            goal="maximize",
            pruner=space.pruner(config),
        )
        report(folder, spent, time.time() - started, options.at_once)
    ray.shutdown()
    nodes.shutdown()


def report(folder: RunFolder, spent: dict[str, list[float]], wall: float, at_once: int) -> None:
    trials = sorted(folder.path.glob("trials/*"))
    begun, gaps, busy = {}, [], 0.0
    for trial in trials:
        process, start, end = (trial / "log.txt").read_text().split()
        begun.setdefault(process, []).append((float(start), float(end)))
        busy += float(end) - float(start)
    for spans in begun.values():
        spans.sort()
        gaps += [(late[0], late[0] - early[1]) for early, late in itertools.pairwise(spans)]
    gaps.sort()
    print(f"{len(trials)} trials of {TRAINS_S:g} s, {at_once} at once: {wall:.0f} s")
    ideal = busy / at_once
    print(f"their own seconds, {at_once} at once: {ideal:.0f} s; ratio {wall / ideal:.2f}")
    print("medians in ms          first tenth   last tenth")
    for name, values in (*spent.items(), ("place empty", [gap for _, gap in gaps])):
        tenth = max(1, len(values) // 10)
        first, last = (statistics.median(part) * 1e3 for part in (values[:tenth], values[-tenth:]))
        print(f"  {name:20} {first:11.1f} {last:12.1f}   sum {sum(values):.1f} s")
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"files: {len(files) / len(trials):.1f} a trial, {size / len(trials):.0f} bytes a trial")
    print(f"study.journal: {folder.study.stat().st_size / len(trials):.0f} bytes a trial")
    print(f"driver: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at its peak")


if __name__ == "__main__":
    sys.exit(main())

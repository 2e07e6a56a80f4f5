"""What a sweep adds to its trainings: the time until a trial's first step, and how near a sweep of
one-second trials, two at once, comes to its trainings alone.

Ideal is the trainings' own seconds (their epochs, as outcome.json has them), shared by the two that
run at once. The clock runs from the first trial's start in its worker to the last one's end; the
workers' own start, which a sweep has once, is shown apart.
"""

import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import arguments, conditions
from torch.optim.optimizer import register_optimizer_step_post_hook

from segray.config import SweepConfig, load_sweep
from segray.sweep import engine
from segray.sweep.runner import run_sweep
from segray.sweep.search import Search

AT_ONCE = 2


def sweep_config(folder: Path, *, trials: int, epochs: int, images: int, wandb: str = "disabled"):
    """A sweep of small UNets on scenes of 64x128, AT_ONCE at a time, storing into `folder`."""
    file = folder / "sweep.yaml"
    plain = {
        "name": "short",
        "storage": str(folder),
        "model": {"name": "unet", "width": 8, "depth": 3},
        "data": {
            "format": "scenes",
            "size": [64, 128],
            "train_images": images,
            "test_images": 4,
            "val_share": 0.1,
        },
        "train": {"epochs": epochs, "batch_size": 8},
        "parameters": {
            "train.optimizer.lr": {
                "distribution": "log_uniform_values",
                "min": 1.0e-4,
                "max": 1.0e-2,
            },
            "train.augment.flip": {"min": 0.0, "max": 0.5},
        },
        "run_cap": trials,
        "resources": {"max_concurrent": AT_ONCE},
        "tracking": {"wandb": {"mode": wandb}},
    }
    file.write_text(json.dumps(plain))  # which is YAML, too
    return load_sweep(file)


@dataclass(frozen=True)
class Clock:
    """A trial's times, in seconds since 1970."""

    pid: int  # of its worker
    asked: float  # when the sampler had drawn it
    began: float  # in its worker
    first_step: float  # of the optimizer, done
    ended: float
    seconds: float  # its epochs take


class Clocked:
    """segray's trainable, which leaves its times in the trial's folder."""

    def __init__(self, run):
        self.run = run

    def __call__(self, config):
        began = time.time()
        steps = []
        hook = register_optimizer_step_post_hook(lambda *_: steps.append(time.time()))
        try:
            self.run(config)
        finally:
            hook.remove()
        times = {"pid": os.getpid(), "began": began, "first_step": steps[0], "ended": time.time()}
        (config["spec"].folder / "clock.json").write_text(json.dumps(times))


def run_clocked(config: SweepConfig) -> list[Clock]:
    """Run a sweep; the clocks of its trials."""
    asked = {}
    draw, trainable = Search.next, engine.tune_trainable

    def next_and_note(search):
        spec = draw(search)
        if spec is not None:
            asked[spec.id] = time.time()
        return spec

    Search.next, engine.tune_trainable = next_and_note, Clocked(trainable)
    try:
        trials = run_sweep(config).trials
    finally:
        Search.next, engine.tune_trainable = draw, trainable
    return [
        Clock(
            **json.loads((trial.folder / "clock.json").read_text()),
            asked=asked[trial.id],
            seconds=trial.outcome.seconds,
        )
        for trial in trials
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=40, help="so that a trial takes a second")
    parser.add_argument("--wandb", nargs="*", default=["disabled", "offline"])
    asked = parser.parse_args()
    print(conditions(asked.threads))
    for mode in asked.wandb:
        with tempfile.TemporaryDirectory() as folder:
            config = sweep_config(
                Path(folder),
                trials=asked.trials,
                epochs=asked.epochs,
                images=asked.images,
                wandb=mode,
            )
            clocks = sorted(run_clocked(config), key=lambda clock: clock.began)
        show(f"{asked.trials} trials, {AT_ONCE} at once, W&B {mode}", clocks)


def show(title: str, clocks: list[Clock]) -> None:
    """Print the figures of a sweep; `clocks` in the order in which trials began."""
    of_worker: dict[int, list[Clock]] = {}
    for clock in clocks:
        of_worker.setdefault(clock.pid, []).append(clock)
    pairs = [pair for mine in of_worker.values() for pair in itertools.pairwise(mine)]
    firsts = [mine[0] for mine in of_worker.values()]
    figures = {
        "its epochs": [clock.seconds for clock in clocks],
        "in its worker, epochs included": [clock.ended - clock.began for clock in clocks],
        "end of a trial to start of the next": [b.began - a.ended for a, b in pairs],
    }
    first_inside = statistics.median(clock.first_step - clock.began for clock in firsts)
    later_inside = statistics.median(b.first_step - b.began for _, b in pairs)
    first = statistics.median(clock.first_step - clock.asked for clock in firsts)
    later = statistics.median(b.first_step - a.ended for a, b in pairs)
    print(f"\n{title}; medians")
    for what, seconds in figures.items():
        print(f"  {what:36} {statistics.median(seconds):7.3f} s")
    for what, one, other in (
        ("from a draw, then from the end before", first, later),
        ("from the trial's start in its worker", first_inside, later_inside),
    ):
        print(
            f"  until the first step, {what}: a worker's first trial {one:.2f} s, "
            f"later ones {other:.3f} s, {one / other:.1f} times"
        )
    ideal = sum(clock.seconds for clock in clocks) / AT_ONCE
    end = max(clock.ended for clock in clocks)
    for what, start in (
        ("first start to last end", min(clock.began for clock in clocks)),
        ("first draw to last end, with the workers' start", min(clock.asked for clock in clocks)),
    ):
        print(f"  {what}: {end - start:.1f} s, ideal {ideal:.1f} s, {ideal / (end - start):.1%}")


if __name__ == "__main__":
    main()

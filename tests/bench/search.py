"""The price of Ray, records and resumability: a segray sweep against plain Optuna, `study.optimize`
with two threads in this process, over the same trainings.

Both run the same loop, which writes metrics and checkpoints. Plain Optuna stores its study in
memory and keeps no config, outcome, leaderboard or log of a trial; its threads share one
interpreter and torch's random state, so its numbers cannot be repeated.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import optuna
import torch
from common import Silent, arguments, conditions
from trials import AT_ONCE, run_clocked, sweep_config

from segray.config import trial_config
from segray.data import open_dataset
from segray.sweep import space
from segray.train import train


def optimize(config, folder: Path) -> tuple[float, float]:
    """Plain Optuna over the trials of `config`: seconds in all, and the epochs' own seconds."""
    dataset = open_dataset(config.data)
    numbers = itertools.count()
    own = []

    def objective(trial: optuna.Trial) -> float:
        assignment = space.suggest(trial, config.parameters)
        one = trial_config(
            config, assignment, seed=config.seed, workers=1, gpus_per_worker=0, threads=1
        )
        place = folder / str(next(numbers))
        outcome = train(one, dataset, place, Silent(), torch.device("cpu"))
        own.append(outcome.seconds)
        return outcome.best_value

    study = optuna.create_study(direction="maximize", sampler=space.sampler(config, 0, {}))
    started = time.perf_counter()
    study.optimize(objective, n_trials=config.run_cap, n_jobs=AT_ONCE)
    return time.perf_counter() - started, sum(own)


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=2)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    print(conditions(asked.threads))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plain, ours, before = [], [], []
    for turn in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = sweep_config(Path(folder), trials=asked.trials, epochs=asked.epochs, images=40)
            if turn == 0:  # torch's first step in a process takes a second
                optimize(config.model_copy(update={"run_cap": 1}), Path(folder) / "warm-up")
            plain.append(optimize(config, Path(folder) / "plain"))
            started = time.time()
            clocks = run_clocked(config)
            began = min(clock.began for clock in clocks)
            before.append(began - started)
            span = max(clock.ended for clock in clocks) - began
            ours.append((span, sum(clock.seconds for clock in clocks)))
    print(f"\n{asked.trials} trials, {AT_ONCE} at once, medians of {asked.rounds} turns")
    for name, turns in (
        ("optuna.study.optimize", plain),
        ("segray, first start to last end", ours),
    ):
        span, own = (statistics.median(values) for values in zip(*turns, strict=True))
        print(f"  {name:34} {span:6.1f} s, of which its epochs {own / AT_ONCE:.1f} s")
    spans = [statistics.median(span for span, _ in turns) for turns in (ours, plain)]
    print(f"  segray takes {spans[0] / spans[1]:.2f} times as long, and before its first trial")
    print(f"  {statistics.median(before):.1f} s for its checks, Ray, the memory probe and workers")


if __name__ == "__main__":
    main()

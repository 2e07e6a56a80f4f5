"""How many epochs TPE with ASHA needs for what random search without ASHA reaches with its whole
budget of epochs: segray's own search, pruner and loop, one trial after the other, in this process.

On the street photographs, with a SegFormer small enough for two cores.
"""

import statistics
import tempfile
from pathlib import Path

import optuna
import torch
from common import STREETS, arguments, conditions

from segray.config import SweepConfig
from segray.sweep import space
from segray.sweep.board import Board
from segray.sweep.placement import Plan
from segray.sweep.records import RunFolder
from segray.sweep.search import Search
from segray.sweep.trial import run_trial
from segray.sweep.trial_files import TrialResult

CPU = torch.device("cpu")


def sweep(folder: Path, seed: int, trials: int, epochs: int, **search) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": search["method"],
            "storage": str(folder),
            "model": {"name": "segformer", "variant": "b0", "width": 0.5},
            "data": {
                "format": "cityscapes",
                "root": str(STREETS),
                "size": [96, 128],
                "split": "official",
                "split_seed": 1,
            },
            "train": {"epochs": epochs, "batch_size": 8},
            "parameters": {
                "train.optimizer.lr": {
                    "distribution": "log_uniform_values",
                    "min": 1e-5,
                    "max": 1e-2,
                },
                "train.optimizer.weight_decay": {
                    "distribution": "log_uniform_values",
                    "min": 1e-4,
                    "max": 1e-1,
                },
                "train.augment.scale": {"values": [[1.0, 1.0], [0.75, 1.5], [0.5, 2.0]]},
                "train.augment.brightness": {"min": 0.0, "max": 0.5},
            },
            "seed": seed,
            "budget": {"epochs": trials * epochs},
            "tracking": {"wandb": {"mode": "disabled"}},
            **search,
        }
    )


def run(config: SweepConfig) -> list[float]:
    """The best value so far after each epoch that the sweep spends."""
    folder = RunFolder.create(config)
    search = Search(config, folder, Plan(1, torch.get_num_threads(), 0, 1))
    board = Board(space.pruner(config), config.metric.goal, None, folder.path / "trials")
    course: list[float] = []

    def tell(trial_id: str):
        def report(metrics):
            course.append(max([*course[-1:], metrics["value"]]))
            return board.report(trial_id, metrics["epoch"], metrics["objective"])

        return report

    while (spec := search.next()) is not None:
        outcome = run_trial(spec, CPU, tell(spec.id))
        search.end(TrialResult(spec.id, spec.folder, spec.assignment, outcome))
    return course


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12, help="of random search")
    parser.add_argument("--epochs", type=int, default=9, help="of a whole trial")
    asked = parser.parse_args()
    print(conditions(asked.threads))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budget = asked.trials * asked.epochs
    print(f"{budget} epochs for each: {asked.trials} random trials, or TPE with ASHA(2, 3)")
    needed = []
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            random = run(
                sweep(
                    folder, seed, asked.trials, asked.epochs, method="random", run_cap=asked.trials
                )
            )
            asha = {"type": "asha", "min_iter": 2, "eta": 3}
            cap = 3 * asked.trials
            tpe = run(
                sweep(
                    folder, seed, asked.trials, asked.epochs, method="tpe", run_cap=cap,
                    early_terminate=asha,
                )
            )  # fmt: skip
        after = next((spent for spent, best in enumerate(tpe, 1) if best >= random[-1]), None)
        needed.append(after or budget)
        told = f"after {after}" if after else f"not within {len(tpe)}"
        print(
            f"seed {seed}: random {random[-1]:.4f} (first at {random.index(random[-1]) + 1} of "
            f"{len(random)}), TPE + ASHA {tpe[-1]:.4f} in {len(tpe)}; random's best {told} epochs",
            flush=True,
        )
    print(f"median {statistics.median(needed):.0f} of {budget} epochs (not reached counts as all)")


if __name__ == "__main__":
    main()

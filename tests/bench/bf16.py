"""Does bf16 cost accuracy? Short trainings on the streets in pairs of fp32 and bf16, each pair with
its own seed; the 90 % interval of the mean difference in best val/miou says.

Each training runs in a process of its own with one thread; --jobs of them at a time.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import STREETS, Silent

MODELS = {
    "unet": {"name": "unet", "width": 16, "depth": 4},
    "segformer": {"name": "segformer", "variant": "b0", "width": 0.5},
}
SEEDS = 10
T_90 = 1.833  # Student's t of SEEDS - 1 degrees of freedom, 95 % quantile


def training(model: str, precision: str, seed: int, epochs: int, root: str) -> float:
    """Best val/miou of one training, in this process."""
    import torch

    from segray.config import TrialConfig
    from segray.data import open_dataset
    from segray.train import train

    config = TrialConfig.model_validate(
        {
            "model": MODELS[model],
            "data": {"format": "cityscapes", "root": root, "size": [180, 240], "split_seed": 1},
            "train": {
                "epochs": epochs,
                "batch_size": 4,
                "precision": precision,
                "optimizer": {"lr": 1.0e-3},
                "schedule": {"name": "poly"},
                "augment": {"scale": [0.75, 1.5], "brightness": 0.2},
            },
            "metric": {"name": "val/miou"},
            "seed": seed,
            "workers": 1,
            "gpus_per_worker": 0,
            "threads": 1,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            config, open_dataset(config.data), Path(folder), Silent(), torch.device("cpu")
        )
    return outcome.best_value or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", default=str(STREETS), help="images in Cityscapes' layout")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(training(*json.loads(asked.one)))
        return

    def run(model: str, precision: str, seed: int) -> float:
        one = json.dumps([model, precision, seed, asked.epochs, asked.data])
        command = [sys.executable, __file__, "--one", one]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise SystemExit(done.stderr)
        value = float(done.stdout.split()[-1])
        print(f"  {model:10} seed {seed}  {precision}  {value:.4f}", flush=True)
        return value

    for model in asked.models:
        pairs = [(model, kind, seed) for seed in range(SEEDS) for kind in ("fp32", "bf16")]
        with ThreadPoolExecutor(asked.jobs) as pool:
            values = list(pool.map(lambda of: run(*of), pairs))
        differences = [b - a for a, b in zip(values[::2], values[1::2], strict=True)]
        mean, spread = statistics.mean(differences), statistics.stdev(differences)
        half = T_90 * spread / math.sqrt(len(differences))
        shown = "inside" if abs(mean) + half <= 0.01 else "NOT inside"
        print(
            f"{model}: fp32 {statistics.mean(values[::2]):.4f}, bf16 "
            f"{statistics.mean(values[1::2]):.4f} mean best val/miou of {SEEDS} seeds, "
            f"{asked.epochs} epochs; bf16 - fp32 = {mean:+.4f}, 90 % interval "
            f"[{mean - half:+.4f}, {mean + half:+.4f}]: {shown} +-0.01",
            flush=True,
        )


if __name__ == "__main__":
    main()

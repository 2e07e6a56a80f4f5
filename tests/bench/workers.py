"""Two workers against one on the same global batch: the same mIoU, and in which time.

On the street photographs, three seeds of each, a thread a worker. On CPU each worker's batch norm
sees its own half of a batch, which is what may differ; on GPUs the whole.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import STREETS, conditions

from segray.config import load_sweep
from segray.sweep.progress import Screen
from segray.sweep.runner import run_training

MODELS = {
    "unet": {"name": "unet", "width": 16},
    "segformer": {"name": "segformer", "variant": "b0", "width": 0.5},
}


def train(folder: Path, model: str, workers: int, seed: int, epochs: int) -> tuple[float, float]:
    """The best mIoU on val, and the shortest epoch's seconds: others may have had company."""
    plain = {
        "name": f"{model}-{workers}-{seed}",
        "storage": str(folder),
        "model": MODELS[model],
        "data": {
            "format": "cityscapes",
            "root": str(STREETS),
            "size": [96, 128],
            "split_seed": 1,
        },
        "train": {
            "epochs": epochs,
            "batch_size": 8,
            "optimizer": {"lr": 1e-3},
            "augment": {"flip": 0.5, "scale": [0.75, 1.5]},
        },
        "seed": seed,
        "resources": {"workers": workers, "cpus_per_worker": 1},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    file = folder / "sweep.yaml"
    file.write_text(json.dumps(plain))  # which is YAML, too
    screen = Screen("val/miou", "maximize", epochs)
    screen.say = screen.line = lambda text: None
    screen.leaderboard = lambda *given: None
    best = run_training(load_sweep(file), screen).best
    lines = (best.folder / "metrics.jsonl").read_text().splitlines()
    return best.outcome.best_value, min(json.loads(line)["time/epoch_s"] for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(conditions(threads=1), f"epochs={options.epochs}")
    with tempfile.TemporaryDirectory() as scratch:
        for model in MODELS:
            found = {
                workers: [
                    train(Path(scratch), model, workers, seed, options.epochs)
                    for seed in range(options.seeds)
                ]
                for workers in (1, 2)
            }
            for workers, each in found.items():
                scores = [score for score, _ in each]
                told = " ".join(f"{score:.3f}" for score in scores)
                spread = statistics.stdev(scores)
                seconds = min(seconds for _, seconds in each)
                print(
                    f"{model}, {workers} workers: mIoU {told}, mean {statistics.mean(scores):.3f}, "
                    f"standard deviation {spread:.3f}; an epoch {seconds:.2f} s",
                    flush=True,
                )
            one, two = (min(seconds for _, seconds in found[workers]) for workers in (1, 2))
            print(f"{model}: {one / two:.2f} times as fast, efficiency {one / two / 2:.0%}")


if __name__ == "__main__":
    main()

"""One of two workers over gloo: `workers.py RANK FOLDER` does every job and saves the results."""

import sys
from pathlib import Path
from typing import Any

import tiny  # beside this file
import torch
import torch.distributed as dist
from torch import Tensor, nn

from segray.data import IGNORE
from segray.models import build_model
from segray.train import evaluate
from segray.train.step import backward, build_trial_model, on_workers

VAL = 7  # two does not divide it
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"class_weights": torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0])},
    "dice": {"dice": 1.0},
}
MODELS = ("no norm", "frozen norm", "segformer")


def scored_model(settings: dict[str, Any]) -> nn.Module:
    """A model with weights and statistics of its own."""
    torch.manual_seed(0)
    model = build_trial_model(tiny.config({"model": settings}))
    for _ in range(3):
        model.train()(torch.randn(4, 3, *tiny.SIZE))
    return model


def score(settings: dict[str, Any]) -> tuple[Tensor, float]:
    """Matrices of VAL images, and the loss."""
    data = tiny.dataset(val=VAL)
    counts, loss = evaluate(scored_model(settings), data, data.splits.val, device=tiny.CPU)
    return torch.from_numpy(counts), loss


def gradients(kind: str, loss: str, void: bool, rank: int, world_size: int, passes: int = 1):
    """The loss of one step of four images and its gradients, for this worker's share."""
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    masks = torch.randint(0, 7, (4, 32, 32), dtype=torch.uint8)
    masks[:, :3] = IGNORE
    if void:
        masks[2:, 1:] = IGNORE  # the second worker's
        masks[2:, 0] = 3
    if kind == "no norm":
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 7, 1))
        model: nn.Module = nn.Sequential(*layers)
    elif kind == "frozen norm":
        model = build_model("unet", num_classes=7, width=4, depth=2).eval()
    else:
        model = build_model("segformer", num_classes=7, variant="b0", width=0.125).eval()
    net = on_workers(model, tiny.CPU)
    share = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    value = backward(net, images[share], masks[share], passes=passes, **LOSSES[loss])
    return value.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def fits(folder: Path, rank: int) -> dict[str, Any]:
    """Trainings that end in every way, as both workers see them."""
    early = {"train.early_stop": {"patience": 1, "min_delta": 1.0}}
    ends = {
        "finished": tiny.fit(folder / "finished"),
        "diverged": tiny.fit(folder / "diverged", {"train.optimizer.lr": 1e30}),
        "early_stopped": tiny.fit(folder / "early_stopped", early),
        # Only worker 0 is answered.
        "pruned": tiny.fit(
            folder / "pruned", reporter=tiny.Told(2, "pruned" if rank == 0 else None)
        ),
    }
    try:
        tiny.fit(folder / "resumed", reporter=tiny.Told(2, error=RuntimeError("killed")))
    except RuntimeError:
        dist.barrier()
        ends["resumed"] = tiny.fit(folder / "resumed")
    return {name: vars(outcome) for name, outcome in ends.items()}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    done = {
        "scores": {name: score(getattr(tiny, name)) for name in ("UNET", "SEGFORMER")},
        "gradients": {
            (kind, loss, void, passes): gradients(kind, loss, void, rank, 2, passes)
            for kind in MODELS
            for loss in LOSSES
            for void in (False, True)
            for passes in (1, 2)
        },
        "fits": fits(folder, rank),
    }
    torch.save(done, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

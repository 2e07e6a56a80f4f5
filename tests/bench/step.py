"""A whole training step, loading and metrics included: segray against what people write today
(transformers' stock SegFormer or the same UNet, PIL and PNG in two DataLoader workers, an optimizer
with its defaults, loss.item() and torchmetrics each step), and against transformers' Trainer.

Then what segray's loop adds to a step, over bare PyTorch with its batches in memory.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from common import Silent, arguments, conditions, in_turns, report
from loader import BATCH, CAMERA, CROP, SIZE, upsize, workers
from torch import nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segray.config import Augment, CityscapesData, Optimizer, TrialConfig
from segray.data import IGNORE, Dataset, TrainLoader, open_dataset
from segray.data.cityscapes import find_samples
from segray.data.samples import Splits
from segray.models import build_model
from segray.train import read_records, train
from segray.train.optimizer import build_optimizer
from segray.train.step import backward, build_trial_model

CLASSES = 7
CPU = torch.device("cpu")
AUGMENT = Augment(
    scale=(0.5, 2.0), flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02
)


class Stock(nn.Module):
    """transformers' b0 with logits of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        config = SegformerConfig(num_labels=CLASSES)  # transformers' default is b0
        self.model = SegformerForSemanticSegmentation(config)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        small = self.model(images).logits
        return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def endless(epoch: Callable[[int], Iterator]) -> Iterator:
    number = 0
    while True:
        number += 1
        yield from epoch(number)


def segray_step(
    model: nn.Module, data: CityscapesData, dtype: torch.dtype | None = None
) -> Callable[[], None]:
    opened = open_dataset(data)
    loader = TrainLoader(opened, range(len(opened.ids)), CROP, BATCH, AUGMENT, seed=0)
    batches = endless(loader.epoch)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, Optimizer())

    def step() -> None:
        images, masks = next(batches).on(CPU)
        optimizer.zero_grad(set_to_none=True)
        backward(model, images, masks, dtype=dtype)
        nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step()

    return step


def usual_step(model: nn.Module, loader: torch.utils.data.DataLoader) -> Callable[[], None]:
    from torchmetrics.classification import MulticlassConfusionMatrix

    batches = endless(lambda number: iter(loader))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=6e-5)
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORE, validate_args=False)

    def step() -> None:
        images, masks = next(batches)
        masks = masks.long()
        logits = model(images)
        loss = F.cross_entropy(logits, masks, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metric.update(logits.detach(), masks)
        loss.item()

    return step


def trainer_step_seconds(loader: torch.utils.data.DataLoader, steps: int) -> list[float]:
    """Seconds between the ends of a Trainer's steps, stock b0."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=SegformerForSemanticSegmentation(
                SegformerConfig(num_labels=CLASSES, semantic_loss_ignore_index=IGNORE)
            ),
            args=TrainingArguments(
                folder,
                max_steps=steps + 2,
                per_device_train_batch_size=BATCH,
                dataloader_num_workers=2,
                dataloader_persistent_workers=True,
                dataloader_drop_last=True,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=1,
            ),
            train_dataset=loader.dataset,
            data_collator=lambda pairs: {
                "pixel_values": torch.stack([image for image, _ in pairs]),
                "labels": torch.stack([mask for _, mask in pairs]).long(),
            },
            callbacks=[Clock()],
        ).train()
    return np.diff(ends)[1:].tolist()


def overhead(rounds: int) -> None:
    """A step of segray.train on a tiny model, against the same in bare PyTorch."""
    steps, batch, size = 200, 4, (64, 64)
    rng = np.random.default_rng(0)
    count = steps * batch
    images = rng.integers(0, 256, (count + 1, *size, 3), dtype=np.uint8)
    masks = rng.integers(0, CLASSES, (count + 1, *size), dtype=np.uint8)
    names = tuple(map(str, range(count + 1)))
    splits = Splits(tuple(range(count)), (count,), ())
    classes = tuple("abcdefg")
    data = Dataset(names, names, splits, classes, images, masks, masks.__getitem__)
    config = TrialConfig.model_validate(
        {
            "model": {"name": "unet", "width": 8, "depth": 3},
            "data": {"format": "scenes", "size": size},
            "train": {"epochs": 1, "batch_size": batch},
            "metric": {},
            "seed": 0,
            "workers": 1,
            "gpus_per_worker": 0,
            "threads": torch.get_num_threads(),
        }
    )

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            train(config, data, Path(folder), Silent(), CPU)
            (record,) = read_records(Path(folder) / "metrics.jsonl")
        return batch / record["time/images_per_s"]

    model = build_trial_model(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    loader = TrainLoader(data, splits.train, size, batch, config.train.augment, seed=0)
    ready = [loaded.on(CPU) for loaded in loader.epoch(1)]

    def bare() -> float:
        started = time.perf_counter()
        for x, truth in ready:
            loss = F.cross_entropy(model(x), truth.long(), ignore_index=IGNORE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / steps

    pairs = [(ours(), bare()) for _ in range(rounds)]
    mine, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"\nloop overhead: {1000 * mine:.2f} ms a step against {1000 * theirs:.2f} ms bare, "
        f"{1000 * (mine - theirs):+.2f} ms: {(mine - theirs) / 0.1:+.1%} of a step of 100 ms",
        flush=True,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(rounds=5, threads=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--models", nargs="*", default=["b0", "unet"])
    parser.add_argument("--width", type=int, default=16, help="of the UNet")
    parser.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()) / "segray-bench-loader"
    )
    asked = parser.parse_args()
    print(conditions(asked.threads))
    overhead(asked.rounds)
    camera = upsize(asked.scratch / "camera", CAMERA, asked.images)
    os.environ["SEGRAY_CACHE"] = str(asked.scratch / "cache")
    data = CityscapesData(format="cityscapes", root=str(camera), size=SIZE, split="pooled")
    samples = find_samples(camera)[0]
    for name in asked.models:
        options = {"variant": "b0"} if name == "b0" else {"width": asked.width, "depth": 4}
        kind = "segformer" if name == "b0" else "unet"
        loader = workers(samples, data, AUGMENT)
        theirs = Stock() if name == "b0" else build_model(kind, num_classes=CLASSES, **options)
        ours = [build_model(kind, num_classes=CLASSES, **options) for _ in range(2)]
        contenders = {
            "segray": segray_step(ours[0], data),
            "segray, train.precision=bf16": segray_step(ours[1], data, torch.bfloat16),
            "PIL, stock, torchmetrics": usual_step(theirs, loader),
        }
        seconds = in_turns(contenders, asked.rounds)
        if name == "b0" and importlib.util.find_spec("accelerate"):
            seconds["transformers' Trainer (after)"] = trainer_step_seconds(loader, asked.rounds)
        title = f"{name}: a step of {BATCH} at {CROP} from {CAMERA}, cached at {SIZE}, fp32"
        report(title, seconds, "segray", BATCH)


if __name__ == "__main__":
    main()

"""A comparison made by hand, as large and as odd as a test wants it, and a browser to see it in."""

import importlib.util
import math
import random
from pathlib import Path

import optuna
import pytest
from PIL import Image, ImageDraw

from segray.compare.comparison import (
    Comparison,
    Cost,
    Ending,
    Model,
    Pair,
    Picture,
    Spent,
    Training,
)
from segray.compare.statistics import Estimate

_spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parent / "chromium.py")
_chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_chromium)

CLASSES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
COLOURS = (
    (128, 64, 128),
    (70, 70, 70),
    (153, 153, 153),
    (107, 142, 35),
    (70, 130, 180),
    (220, 20, 60),
    (0, 0, 142),
)
DESCRIBED = (
    ("segformer-b3", "SegFormer mit-b3, 47.2M parameters, encoder from ImageNet", 0.732, 10),
    ("unet", "UNet of width 64, 31.0M parameters, from scratch", 0.598, 13),
    ("segformer-b0", "SegFormer mit-b0, 3.7M parameters, from scratch", 0.561, 17),
    ("unet-small", "UNet of width 16, 1.9M parameters, from scratch", 0.483, 19),
)
LR, PATIENCE = "train.optimizer.lr", "train.early_stop.patience"


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A Chromium, which all tests share."""
    if _chromium.BINARY is None:
        pytest.skip("there is no Chromium here: the page was not looked at")
    chromium = _chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def make_comparison():
    """`comparison`."""
    return comparison


@pytest.fixture(scope="session")
def make_study():
    """`study`."""
    return study


@pytest.fixture(scope="session")
def make_pictures():
    """`pictures`."""
    return pictures


def comparison(count=2, classes=CLASSES, seeds=3, **changes):
    """A plausible comparison of `count` models."""
    rng = random.Random(0)
    models = [_model(*DESCRIBED[k], classes, seeds, rng, k) for k in range(count)]
    pairs = [
        _pair(one, other, classes, rng) for k, one in enumerate(models) for other in models[k + 1 :]
    ]
    names = " and ".join(model.name for model in models[1:])
    verdict = (
        f"segformer-b3, whose encoder comes from ImageNet, is better than {names}, trained from "
        "scratch: mIoU higher by 0.134 (95 % interval 0.112 to 0.156)."
        if pairs
        else "segformer-b3 reaches 0.732 mIoU on the test split (95 % interval 0.711 to 0.753)."
    )
    values = {
        "verdict": verdict,
        "models": models,
        "pairs": pairs,
        "unfair": [
            "segformer-b3's encoder was pretrained on ImageNet, unet started from scratch: part of "
            "the difference is that of the data they have seen.",
            "segformer-b3 had 148 epochs of search, unet 96: 54 % more on the declared axis.",
        ]
        if pairs
        else [],
        "notes": [
            "Test images were scored at their mask's native size.",
            "Intervals: Student's t over cities and seeds together, CR2 with Satterthwaite's "
            "degrees of freedom.",
        ],
        "not_covered": [
            "The luck of the tuning: another search could have found another winner.",
            "Other cities and other cameras than those of the test split.",
        ],
        "classes": list(classes),
        "colours": [COLOURS[k % len(COLOURS)] for k in range(len(classes))],
        "images": 500,
        "cities": {"frankfurt": 267, "lindau": 59, "munster": 174},
        "evaluated_at": "the size of the masks' files",
        "created": "2026-11-28 09:12 UTC",
        "version": "0.1.0",
    }
    return Comparison(**values | changes)


def estimate(value, half, **more):
    """With an interval of `half` to both sides."""
    given = {"low": value - half, "high": value + half, "se": half / 2.4, "df": 5.2}
    return Estimate(**{"value": value, "over": "cities and seeds"} | given | more)


def difference(value, half, tests=1):
    """Of two models."""
    z = abs(value) / (half / 2.4)
    p = math.erfc(z / math.sqrt(2))
    return estimate(value, half, p=p, p_better=1 - p / 2 if value > 0 else p / 2, tests=tests)


def _model(name, described, miou, last, classes, seeds, rng, k):
    quality = [min(0.97, max(0.12, miou + 0.3 * math.sin(2.1 * c + 1) - 0.02 * k * (c % 3)))
               for c in range(len(classes))]  # fmt: skip
    trainings = [_training(seed, miou, last + seed, rng) for seed in range(seeds)]
    return Model(
        name=name,
        described=described,
        pretrained="nvidia/mit-b3" if k == 0 else None,
        folder=f"runs/{name}",
        metric="val/miou",
        trial="004",
        parameters={LR: 0.000612, PATIENCE: 3, "train.augment.scale": (0.5, 2.0)},
        miou=estimate(miou, 0.021 - 0.002 * k),
        iou={
            name: estimate(quality[c], rng.uniform(0.01, 0.05)) for c, name in enumerate(classes)
        },
        confusion=_confusion(quality, rng),
        trainings=trainings,
        spent=Spent(12, 148 - 26 * k, 5.3 - 1.1 * k, 3.1 - 0.4 * k),
        budget={"unit": "epochs", "run_cap": 12, "hours": 12.0},
        states={"finished": 3, "early_stopped": 1, "pruned": 6, "diverged": 1, "failed": 1},
        endings=[
            Ending("007", "diverged", "the loss on val became infinite after epoch 2 (lr 8.10e-02)",
                   {LR: 0.081, PATIENCE: 5}),
            Ending("009", "failed", "out of memory: 8 images of 512x512 did not fit 16 GB",
                   {LR: 0.00021, PATIENCE: 2}),
            Ending("002", "collapsed", "val/miou fell from 0.571 at epoch 9 to 0.212 at epoch 11 "
                   "(lr 9.40e-04, train loss 0.61, largest gradient norm 48)", {LR: 0.00094}),
        ][k:],
        cost=Cost(
            (47_200_000, 31_040_000, 3_720_000, 1_940_000)[k],
            (79.6, 218.4, 8.5, 13.8)[k],
            (512, 1024),
            "NVIDIA H100",
            (21.4, 16.2, 9.8, 5.1)[k],
            (61.0, 88.5, 204.0, 391.0)[k],
            8,
            (3210.0, 4420.0, 1280.0, 990.0)[k],
        ),
        trials=[_row(number, miou, rng) for number in range(12)],
        sweep_yaml="# id: 3f2a91\n# versions: segray 0.1.0, torch 2.13.0, ray 2.60.0\n"
        f"name: {name}\nmodel: {{name: {name.split('-')[0]}}}\ntrain:\n  epochs: 20\n",
        commands=[f"python -m segray.sweep sweeps/{name}.yaml",
                  "python -m segray.compare runs/segformer-b3 runs/unet"],
    )  # fmt: skip


def _training(seed, miou, last, rng):
    epochs = list(range(1, last + 1))
    shift = rng.uniform(-0.02, 0.02)
    curve = [(miou + 0.03 + shift) * (1 - math.exp(-e / 3)) + rng.gauss(0, 0.006) for e in epochs]
    best = max(range(last), key=curve.__getitem__)
    return Training(
        seed=seed,
        state="early_stopped",
        reason=f"val/miou has not improved for 3 epochs since epoch {best + 1}",
        val=curve[best],
        test_miou=miou + shift,
        best_epoch=best + 1,
        epochs=last,
        seconds=131.0 * last + 600 * shift,
        curves={
            "epoch": epochs,
            "val/miou": curve,
            "train/loss": [1.6 * math.exp(-e / 5) + 0.15 + rng.gauss(0, 0.01) for e in epochs],
            "val/loss": [1.4 * math.exp(-e / 4) + 0.31 + 0.008 * e for e in epochs],
        },
    )


def _confusion(quality, rng):
    rows = []
    for true, share in enumerate(quality):
        weights = [rng.random() ** 3 for _ in quality]
        weights[true] = 0
        rest = (1 - share**0.6) * 1e7 / sum(weights)
        rows.append([round(w * rest) for w in weights])
        rows[-1][true] = round(share**0.6 * 1e7)
    return rows


def _row(number, miou, rng):
    state = ("finished", "pruned", "pruned", "early_stopped")[number % 4]
    return {
        "trial": f"{number:03}",
        "state": state,
        "reason": "not among the best trials" if state == "pruned" else "",
        "best_value": miou + 0.02 - 0.017 * number,
        "best_epoch": 17 - number,
        "last_value": miou - 0.018 * number,
        "epochs": 20 - number,
        "seconds": 1310.2 - 60 * number,
        LR: 10 ** rng.uniform(-5, -1),
        PATIENCE: rng.choice([2, 3, 5]),
        "train.augment.scale": "[0.5, 2.0]",
    }


def _pair(one, other, classes, rng):
    gap = one.miou.value - other.miou.value
    iou = {
        c: difference(one.iou[c].value - other.iou[c].value, rng.uniform(0.02, 0.06), len(classes))
        for c in classes
    }
    verdict = (
        f"{one.name} is better than {other.name}: mIoU higher by {gap:.3f} "
        f"(95 % interval {gap - 0.022:.3f} to {gap + 0.022:.3f})."
    )
    return Pair(one.name, other.name, difference(gap, 0.022), iou, verdict)


def study(trials=12, best=0.6, seed=0, parameters=4):
    """A study in memory; some of its trials are pruned."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
    )

    def objective(trial):
        lr = trial.suggest_float(LR, 1e-5, 1e-1, log=True)
        patience = trial.suggest_categorical(PATIENCE, [2, 3, 5]) if parameters > 1 else 3
        light = 0.0
        if parameters > 2:
            trial.suggest_categorical("train.augment.scale", ["[1.0, 1.0]", "[0.5, 2.0]"])
            light = trial.suggest_float("train.augment.brightness", 0, 0.4)
        reached = best - 0.06 * abs(math.log10(lr) + 3) - 0.1 * light + 0.01 * patience
        for epoch in range(1, 10):
            trial.report(reached * (1 - math.exp(-epoch / 3)), epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return reached

    made.optimize(objective, n_trials=trials)
    return made


def pictures(models, count=3):
    """Small streets that nobody drove through."""
    rng = random.Random(1)
    found = []
    for number in range(count):
        photo = Image.effect_noise((480, 240), 40 + 10 * number).convert("RGB")
        ImageDraw.Draw(photo).rectangle((0, 150, 480, 240), (90, 85, 95))
        truth = _street(rng, 0)
        panels = [("image", photo), ("truth", truth)]
        for model in models:
            wrong = Image.new("RGB", (480, 240), (226, 232, 238))
            box = (rng.randrange(300), 60, rng.randrange(310, 480), 200)
            ImageDraw.Draw(wrong).ellipse(box, (214, 39, 40))
            panels += [(model.name, _street(rng, 30)), (f"{model.name}, errors", wrong)]
        why = (
            f"differ most: mean IoU 0.71 by {models[0].name}, 0.{30 + number} by {models[-1].name}"
        )
        found.append(Picture(f"frankfurt_000000_{number:06}_leftImg8bit", why, panels))
    return found


def _street(rng, jitter):
    image = Image.new("RGB", (480, 240), COLOURS[4])
    draw = ImageDraw.Draw(image)
    for k in range(8):
        x, top = 60 * k, 60 + rng.randrange(1, 40) + rng.randrange(jitter + 1)
        draw.rectangle((x, top, x + 60, 200), COLOURS[rng.choice([1, 1, 3])])
    draw.rectangle((0, 160 + rng.randrange(jitter + 1), 480, 240), COLOURS[0])
    for _ in range(4):
        x, y = rng.randrange(440), 150 + rng.randrange(40)
        draw.rectangle((x, y, x + 50, y + 24), COLOURS[6])
    draw.rectangle((200, 130, 208, 165), COLOURS[5])
    return image

"""What W&B is shown of a comparison: one run with its figures and its page, and a report."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segray.compare.comparison import Comparison, Model, Pair
from segray.compare.statistics import Estimate
from segray.config.schema import Wandb
from segray.tracking import Table, start_tracker
from segray.tracking.wandb_report import ReportedSweep, write_wandb_report

_RESTRAINT = ("disabled", "offline", "auto", "online")  # modes, the most restrained first
_INTERVAL = ("low", "high")
_DIFFERENCE = (*_INTERVAL, "p", "p corrected", "P(a better)", "differs")


def tracking_of(comparison: Comparison) -> Wandb:
    """How the sweeps of a comparison were tracked, which is how the comparison is.

    The project and entity of the best model's sweep; the most restrained mode and the fewest images
    that any of the sweeps was given.
    """
    found = [_tracking(model) for model in comparison.models]
    mode = min((one.mode for one in found), key=_RESTRAINT.index)
    images = min(one.images for one in found)
    return found[0].model_copy(update={"mode": mode, "images": images})


def log_comparison(comparison: Comparison, page: Path, wandb: Wandb | None = None) -> str | None:
    """Show a comparison in W&B as a run of its own; returns what went wrong, in a line.

    Without `wandb` it is tracked as `tracking_of` says. The run has the summary, tables, confusion
    matrices on test, and as an artifact of type report compare.json and the page, which stands
    beside it. With `wandb.images` at 0 the page stays here: it shows photographs. Its files are in
    wandb/ beside the page, for `segray sync FOLDER`. The same sweeps have the same run: comparing
    them again replaces what it shows.
    """
    wandb = wandb or tracking_of(comparison)
    tracker = start_tracker(
        wandb.mode,
        project=wandb.project,
        entity=wandb.entity,
        run_id=_run_id(comparison),
        run_name=run_name(comparison),
        group="comparisons",
        job_type="comparison",
        config=_config(comparison),
        folder=page.parent,
        classes=comparison.classes,
    )
    tracker.finish(
        dict(_summary(comparison)),
        confusion={m.name: np.array(m.confusion, dtype=np.int64) for m in comparison.models},
        tables=_tables(comparison),
        files=[*([page] if wandb.images else []), page.parent / "compare.json"],
    )
    return tracker.warning


def report_in_wandb(comparison: Comparison) -> str:
    """Make a W&B report of a comparison's sweeps, as `write_wandb_report` does; its address."""
    sweeps = []
    for model in comparison.models:
        plain = _config_of(model)
        its = _tracking(model)
        sweeps.append(
            ReportedSweep(
                group=plain.get("name", model.name),
                project=its.project,
                entity=its.entity,
                metric=model.metric,
                parameters=list(plain.get("parameters") or model.parameters),
            )
        )
    paragraphs = [
        comparison.verdict,
        *(pair.verdict for pair in comparison.pairs if len(comparison.pairs) > 1),
        *(f"Not quite fair: {reason}" for reason in comparison.unfair),
        f"Not covered: {'; '.join(comparison.not_covered)}",
    ]
    name = run_name(comparison)
    return write_wandb_report(name, paragraphs, sweeps, comparison.classes, name)


def run_name(comparison: Comparison) -> str:
    """The name of a comparison's run."""
    return " vs ".join(model.name for model in comparison.models)


def _run_id(comparison: Comparison) -> str:
    """The same for the same sweeps, in whatever order they come."""
    ids = []
    for model in comparison.models:
        found = re.search(r"^# id: (\S+)", model.sweep_yaml, re.MULTILINE)
        ids.append(f"{model.name} {found[1] if found else ''}")
    return f"compare-{hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:12]}"


def _config_of(model: Model) -> dict[str, Any]:
    """The sweep's resolved config, as sweep.yaml has it."""
    plain: dict[str, Any] = yaml.safe_load(model.sweep_yaml) or {}
    return plain


def _tracking(model: Model) -> Wandb:
    return Wandb.model_validate((_config_of(model).get("tracking") or {}).get("wandb") or {})


def _config(comparison: Comparison) -> dict[str, Any]:
    return {
        "models": {
            model.name: {
                "described": model.described,
                "pretrained": model.pretrained,
                "folder": model.folder,
                "metric": model.metric,
                "trial": model.trial,
                "parameters": dict(model.parameters),
                "seeds": [training.seed for training in model.trainings],
                "budget": dict(model.budget),
            }
            for model in comparison.models
        },
        "classes": list(comparison.classes),
        "images": comparison.images,
        "cities": dict(comparison.cities),
        "evaluated_at": comparison.evaluated_at,
        "created": comparison.created,
        "segray": comparison.version,
    }


def _summary(comparison: Comparison) -> Iterator[tuple[str, object]]:
    yield "state", "finished"
    yield "verdict", comparison.verdict
    yield "unfair", " ".join(comparison.unfair)
    yield "best model", comparison.models[0].name
    for model in comparison.models:
        yield f"miou/{model.name}", model.miou.value
        for name, value in zip(_INTERVAL, _interval(model.miou), strict=True):
            yield f"miou/{model.name}/{name}", value
    for pair in comparison.pairs:
        between = f"difference/{pair.a} less {pair.b}"
        yield between, pair.miou.value
        for name, value in zip(_DIFFERENCE, _difference(pair.miou), strict=True):
            yield f"{between}/{name}", value


def _tables(comparison: Comparison) -> dict[str, Table]:
    models, pairs = comparison.models, comparison.pairs
    tables = {
        "models": Table(list(_model_row(models[0])), [[*_model_row(m).values()] for m in models]),
        "categories": Table(
            ["model", "category", "IoU", *_INTERVAL],
            [
                [model.name, category, iou and iou.value, *_interval(iou)]
                for model in models
                for category, iou in model.iou.items()
            ],
        ),
        "trainings": Table(
            ["model", "seed", "state", "val, best", "test/miou", "best epoch", "epochs", "seconds"],
            [
                [m.name, t.seed, t.state, t.val, t.test_miou, t.best_epoch, t.epochs, t.seconds]
                for m in models
                for t in m.trainings
            ],
        ),
        "curves": _curves(models),
    }
    if pairs:
        tables["pairs"] = _pairs(pairs)
        tables["differences"] = Table(
            ["a", "b", "category", "IoU a less b", *_DIFFERENCE],
            [
                [pair.a, pair.b, category, iou and iou.value, *_difference(iou)]
                for pair in pairs
                for category, iou in pair.iou.items()
            ],
        )
    return tables


def _model_row(model: Model) -> dict[str, object]:
    """The leaderboard's line of a model; what was not measured is None."""
    cost, spent = model.cost, model.spent
    low, high = _interval(model.miou)
    return {
        "model": model.name,
        "described": model.described,
        "pretrained": model.pretrained or "from scratch",
        "mIoU": model.miou.value,
        "low": low,
        "high": high,
        "seeds": len(model.trainings),
        "weights": cost and cost.parameters,
        "GFLOPs": cost and cost.gflops,
        "latency ms": cost and cost.latency_ms,
        "images/s": cost and cost.images_per_s,
        "best batch": cost and cost.best_batch,
        "peak memory MB": cost and cost.peak_memory_mb,
        "measured on": cost and cost.device,
        "trials": spent.trials,
        "epochs": spent.epochs,
        "GPU-hours": spent.gpu_hours,
        "GPU-hours to best": spent.to_best_gpu_hours,
        "winner": model.trial,
        "parameters": ", ".join(f"{name}={value}" for name, value in model.parameters.items()),
    }


def _pairs(pairs: Sequence[Pair]) -> Table:
    return Table(
        ["a", "b", "mIoU a less b", *_DIFFERENCE, "verdict"],
        [[p.a, p.b, p.miou.value, *_difference(p.miou), p.verdict] for p in pairs],
    )


def _curves(models: Sequence[Model]) -> Table:
    """A row an epoch of each final training, and a chart of the metric."""
    trainings = [(model, training) for model in models for training in model.trainings]
    names = [*dict.fromkeys(name for _, t in trainings for name in t.curves if name != "epoch")]
    rows: list[list[object]] = []
    for model, training in trainings:
        for at, epoch in enumerate(training.curves["epoch"]):
            values = [
                training.curves[name][at] if name in training.curves else None for name in names
            ]
            rows.append([f"{model.name}, seed {training.seed}", epoch, *values])
    lines = ("epoch", models[0].metric, "training")
    return Table(["training", "epoch", *names], rows, lines if lines[1] in names else None)


def _interval(estimate: Estimate | None) -> list[object]:
    return [estimate.low, estimate.high] if estimate else [None, None]


def _difference(estimate: Estimate | None) -> list[object]:
    if estimate is None:
        return [None] * len(_DIFFERENCE)
    better, corrected = estimate.p_better, estimate.p_corrected
    return [*_interval(estimate), estimate.p, corrected, better, estimate.differs]

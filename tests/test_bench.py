"""`segray bench`: the real loop and model, small and for a second or two."""

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from segray import cli
from segray.bench import measure, report
from segray.bench.bounds import bounds, count_work
from segray.config import WorkError, load_sweep
from segray.data import open_dataset
from segray.sweep import estimate
from segray.sweep.placement import Plan
from segray.sweep.progress import Screen

SWEEP = {
    "name": "small",
    "model": {"name": "unet", "width": 4, "depth": 2},
    "data": {
        "format": "scenes",
        "size": [32, 64],
        "train_images": 20,
        "test_images": 3,
        "cities": 4,
        "test_cities": 1,
        "val_share": 0.25,
    },
    "train": {"epochs": 3, "batch_size": 4},
    "early_terminate": {"type": "asha", "min_iter": 1, "eta": 3},
    "run_cap": 9,
    "final": {"seeds": [0]},
    "tracking": {"wandb": {"mode": "disabled"}},
}
RATES = ("train", "eval", "loader", "model")
TRAIN_PARTS = ["data", "forward", "loss", "backward", "optimizer", "metrics"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SWEEP | {"storage": str(tmp_path / "runs")}))
    return path


@pytest.fixture
def segray(monkeypatch, capsys):
    """Runs the command line with a second for a bench; returns exit code, stdout and stderr."""
    quick = functools.partial(report.bench_sweep, seconds=1.0)
    monkeypatch.setattr(report, "bench_sweep", quick)

    def run(*arguments):
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code or 0, said.out, said.err

    return run


def measured(file, *overrides, seconds=0.5, stage=Plan(1, 1, 0.0, 2)):  # noqa: B008
    config = load_sweep(file, overrides)
    screen = Screen("val/miou", "maximize", 3)
    return measure.measure(config, stage, open_dataset(config.data), screen, seconds=seconds)


def assert_whole(bench):
    for kind in RATES:
        assert getattr(bench, f"{kind}_images_per_s") > 0
    assert sorted(bench.train_parts) == sorted(TRAIN_PARTS)
    assert sorted(bench.eval_parts) == ["data", "forward", "loss", "metrics"]
    assert all(part > 0 for part in [*bench.train_parts.values(), *bench.eval_parts.values()])
    assert sum(bench.train_parts.values()) == pytest.approx(bench.train_step_s, rel=0.5)
    assert 0 < bench.data_wait < 1
    assert bench.peak_bytes > 10**7
    assert bench.checkpoint_bytes > 2.5 * bench.weights_bytes > 4 * bench.parameters
    assert bench.checkpoint_s > 0
    assert bench.record_bytes > 100
    assert bench.bounds is None


def test_a_bench_has_every_figure_and_a_dry_run_shows_its_estimate(file, segray, monkeypatch):
    assert "segray bench FILE" in segray("sweep", file, "--dry-run")[1]
    code, out, err = segray("bench", file, "--json")
    assert code == 0, err
    told = json.loads(out)
    config = load_sweep(file)
    stage = estimate.plan_here(config)[0]
    bench = estimate.read_bench(config, stage)
    assert_whole(bench)
    assert json.loads(estimate.bench_path(bench.facts).read_text()) == told["bench"]
    assert told["file"] == str(estimate.bench_path(bench.facts))
    assert 0 < told["estimate"]["search_s"] < told["estimate"]["search_most_s"]
    assert told["estimate"]["final_s"] > 0
    assert "training epochs of" in err
    shown = " ".join(segray("sweep", file, "--dry-run")[1].split())
    assert "of it the final stage" in shown
    assert "(segray bench)" in shown
    monkeypatch.setattr(estimate, "_cpu", lambda: "another processor")
    assert "segray bench FILE" in segray("sweep", file, "--dry-run")[1]


def test_a_person_gets_lines_that_fit(file, segray):
    code, out, err = segray("bench", file, "data.train_images=200")  # more than it decodes
    assert code == 0, err
    lines = out.splitlines()
    assert any("measured with 32 images of each split" in line for line in lines)
    for start in (
        "  the loop",
        "  loader alone",
        "  backward",
        "  whole",
        "peak memory",
        "On disk",
    ):
        assert [line for line in lines if line.startswith(start)]
    said = list(itertools.dropwhile(lambda line: not line.startswith("small:"), lines))
    assert said[-1].startswith("Written to ")
    assert max(map(len, said[:-1])) <= 80


def test_a_long_step_is_measured_once(file, capsys):
    bench = measured(file, seconds=1e-6)
    assert "measured with one" in capsys.readouterr().out
    assert bench.steps == 1
    assert_whole(bench)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.accumulate=2", "train.loss={class_weights: balanced, dice: 0.5}"],
        ["train.crop=[32, 32]", "train.augment={scale: [0.5, 2.0], brightness: 0.3, blur: 0.5}"],
        ["train.optimizer.clip_norm=1.0", "train.precision=bf16", "metric.evaluate_at=native"],
        ["model={name: segformer, variant: b0, width: 0.125}", "data.limit=4"],
    ],
    ids=lambda overrides: overrides[0].split("=")[0],
)
def test_what_a_step_may_be(file, overrides):
    assert_whole(measured(file, *overrides))


def test_one_of_several_workers_takes_its_share(file, monkeypatch):
    taken = []
    whole = measure._Step.train

    def train(self, images, masks, *lap):
        taken.append(len(images))
        whole(self, images, masks, *lap)

    monkeypatch.setattr(measure._Step, "train", train)
    bench = measured(file, "resources.workers=2", stage=Plan(2, 1, 0.0, 1))
    assert set(taken) == {2}
    assert bench.facts["workers"] == 2


def test_a_training_that_diverges_is_told(file):
    with pytest.raises(WorkError, match="could not be measured: the loss on val became"):
        measured(file, "train.optimizer.lr=1.0e+30", "train.epochs=2", seconds=30)


def test_a_batch_that_train_cannot_fill_is_refused(file, segray):
    code, _, err = segray("bench", file, "train.batch_size=100")
    assert code == 2
    assert "train.batch_size: a batch of 100 needs that many images" in err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 2 GiB\nmore"),
    ],
    ids=["GPU", "CPU"],
)
def test_too_little_memory_is_told_with_what_to_lower(file, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(measure._Step, "train", fail)
    with pytest.raises(WorkError, match=r"a step of 4 images: .* 2 GiB\. Lower train\.batch_size"):
        measured(file)


def test_bounds_that_find_too_little_memory_are_left_out(file, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(measure, "bounds", fail)
    config, screen = load_sweep(file), Screen("val/miou", "maximize", 3)
    trial = estimate.own_trial(config, Plan(1, 1, 0.0, 2))
    data = open_dataset(config.data)
    measuring = measure._Measurement(trial, data, tmp_path, screen, seconds=1.0)
    images, masks = torch.rand(4, 3, 32, 64), torch.zeros(4, 32, 64, dtype=torch.uint8)
    assert measuring._bounds(images, masks, torch.float32) is None
    assert "too little memory to measure that" in capsys.readouterr().out


def test_a_gpu_has_its_bounds_beside_what_was_reached(file):
    config = load_sweep(file)
    bench = measured(file, seconds=1e-6)
    machine = bench.facts["machine"] | {"gpu": "NVIDIA H100 80GB HBM3"}
    bench = dataclasses.replace(
        bench,
        facts=bench.facts | {"machine": machine, "gpus_per_worker": 1.0},
        train_images_per_s=150.0,
        bounds=estimate.Bounds(2.6e12, 1.2e10, 6.5e14, 2.5e12),
    )
    found = estimate.estimate(config, bench, (15, 5, 3), Plan(1, 1, 1.0, 1), None)
    lines = list(report._lines(config, bench, found, Path("bench.json")))
    told = {line.split("  ")[1]: line.split()[3:] for line in lines if "bound by" in line}
    assert told == {
        "bound by compute": ["250", "60%", "reached"],
        "bound by bandwidth": ["208", "72%", "reached"],
    }
    assert "H100" in lines[0]
    assert max(map(len, lines)) <= 80


def test_flops_and_bytes_of_a_step_are_counted():
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        flops, moved = count_work(lambda: layer(images))
    assert flops == 2 * (3 * 3 * 3) * 8 * (2 * 16 * 16)
    assert moved == 4 * (images.numel() + layer.weight.numel() + 2 * 8 * 16 * 16)
    trained, _ = count_work(lambda: layer(images).sum().backward())
    assert trained == 2 * flops  # forward, and the weights' gradients; images need none


def test_views_move_no_bytes():
    x = torch.rand(4, 6)
    assert count_work(lambda: x.view(6, 4).t())[1] == 0
    assert count_work(lambda: x.add_(1))[1] == 4 * 24 * 2


def test_bounds_are_measured_where_they_hold():
    layer = nn.Linear(16, 16, bias=False)
    images = torch.rand(5, 16)
    found = bounds(
        lambda: layer(images), 5, torch.device("cpu"), torch.float32, side=64, copied=2**16
    )
    assert found.flops_per_image == 2 * 16 * 16
    assert found.flops_per_s > 0
    assert found.bytes_per_s > 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_module_is_the_command():
    run = subprocess.run(
        [sys.executable, "-m", "segray.bench", "nowhere.yaml"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "no sweep file at nowhere.yaml" in run.stderr

"""The training loop: the same numbers every time, killed or not, and every way it can end."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segray.config import RequestError
from segray.data import eval_batches, open_dataset
from segray.train import (
    build_trial_model,
    checkpoint,
    evaluate,
    loop,
    predict_masks,
    read_records,
    scores,
)
from segray.train.step import backward, clip_gradients, gradient_norm

AUGMENTED = {
    "train.augment": {"scale": [0.5, 2.0], "flip": 0.5, "brightness": 0.2, "hue": 0.1, "blur": 0.5},
    "train.crop": (32, 32),
}
KINDS = {
    "plain": {},
    "augmented": AUGMENTED,
    "plateau": {"train.schedule": {"name": "plateau", "patience": 0}, "train.optimizer.lr": 0.1},
    "early stopping": {"train.early_stop": {"patience": 1, "min_delta": 0.05}, "train.epochs": 9},
    "loss": {
        "train.loss": {"class_weights": "balanced", "dice": 0.5},
        "train.optimizer": {"lr": 0.01, "clip_norm": 0.5, "head_lr_mult": 3},
    },
    "void": {"data.ignore": "none"},
    "bf16": {"train.precision": "bf16"},
}


class Killed(Exception):
    """Stands for a process that ends here."""


def the_same(one: Path, other: Path, tiny) -> bool:
    """Records and checkpoints, to the bit."""
    files = ("checkpoint/best.safetensors", "checkpoint/last.safetensors")
    assert tiny.records(one) == tiny.records(other)
    for file in files:
        tensors = []
        for folder in (one, other):
            with loop.checkpoint.safe_open(folder / file, framework="pt") as opened:
                tensors.append({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    return True


@pytest.fixture(scope="module")
def never_killed(tiny, tmp_path_factory: pytest.TempPathFactory):
    """never_killed(kind) -> folder and outcome of such a training, made once."""

    @functools.cache
    def make(kind: str):
        folder = tmp_path_factory.mktemp("whole")
        return folder, tiny.fit(folder, KINDS[kind])

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_trained_twice_gives_the_same_numbers(
    tiny, tmp_path: Path, never_killed, kind: str
) -> None:
    folder, first = never_killed(kind)
    second = tiny.fit(tmp_path, KINDS[kind])
    assert the_same(folder, tmp_path, tiny)
    assert (first.best_value, first.state) == (second.best_value, second.state)


def test_another_seed_gives_other_numbers(tiny, tmp_path: Path) -> None:
    tiny.fit(tmp_path / "one", {"train.epochs": 1})
    tiny.fit(tmp_path / "other", {"train.epochs": 1, "seed": 4})
    assert tiny.records(tmp_path / "one") != tiny.records(tmp_path / "other")


def test_random_numbers_drawn_before_change_nothing(tiny, tmp_path: Path) -> None:
    tiny.fit(tmp_path / "one", AUGMENTED | {"train.epochs": 2})
    torch.rand(100)
    np.random.default_rng().random(100)
    tiny.fit(tmp_path / "other", AUGMENTED | {"train.epochs": 2})
    assert the_same(tmp_path / "one", tmp_path / "other", tiny)


def test_it_learns(tiny, tmp_path: Path) -> None:
    changes = {"train.epochs": 12, "train.optimizer.lr": 0.03, "model.width": 8}
    outcome = tiny.fit(tmp_path, changes)
    records = tiny.records(tmp_path)
    assert outcome.state == "finished"
    assert records[-1]["train/loss"] < 0.5 * records[0]["train/loss"]
    assert outcome.best_value > 0.4


@pytest.mark.parametrize(
    ("kind", "epoch"), [*((kind, 2) for kind in KINDS), ("plain", 1), ("plain", 3), ("plain", 4)]
)
def test_killed_and_resumed_equals_never_killed(
    tiny, tmp_path: Path, never_killed, kind: str, epoch: int
) -> None:
    whole, expected = never_killed(kind)
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        tiny.fit(cut, KINDS[kind], tiny.Told(epoch, error=Killed()))
    assert len(tiny.records(cut)) == epoch
    told = tiny.Told()
    outcome = tiny.fit(cut, KINDS[kind], told)
    assert the_same(whole, cut, tiny)
    # The last epoch is told again: who was told of it may not have lived to act on it.
    again = [metrics["epoch"] for metrics in told.metrics]
    assert again == list(range(epoch, expected.epochs + 1))
    for name in ("state", "reason", "objective", "best_value", "best_epoch", "epochs"):
        assert getattr(outcome, name) == getattr(expected, name)


def test_a_segformer_with_drop_path_resumes_to_the_bit(tiny, tmp_path: Path) -> None:
    changes = AUGMENTED | {"model": tiny.SEGFORMER, "train.epochs": 3}
    tiny.fit(tmp_path / "whole", changes)
    with pytest.raises(Killed):
        tiny.fit(tmp_path / "cut", changes, tiny.Told(2, error=Killed()))
    tiny.fit(tmp_path / "cut", changes)
    assert the_same(tmp_path / "whole", tmp_path / "cut", tiny)


@pytest.mark.parametrize("save", range(1, 5))
@pytest.mark.parametrize("torn", [False, True], ids=["before", "within"])
def test_a_kill_while_saving_is_mended(
    tiny, tmp_path: Path, monkeypatch, never_killed, save: int, torn: bool
) -> None:
    whole, _ = never_killed("plain")
    cut = tmp_path / "cut"
    real, calls = checkpoint.save, []

    def killed(path: Path, *rest) -> None:
        calls.append(path.name)
        if len(calls) == save:
            if torn:
                path.parent.mkdir(exist_ok=True)
                path.with_suffix(".tmp").write_bytes(b"half")
            raise Killed
        real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(loop.checkpoint, "save", killed)
        with pytest.raises(Killed):
            tiny.fit(cut)
    tiny.fit(cut)
    assert the_same(whole, cut, tiny)


def test_a_process_killed_by_the_system_resumes_to_the_bit(tiny, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = AUGMENTED | {"train.epochs": 12, "train.batch_size": 3}
    command = [sys.executable, tiny.__file__, str(cut), tiny.config(changes).model_dump_json()]
    process = subprocess.Popen(command, env=dict(os.environ))
    until = time.monotonic() + 120
    while not read_records(cut / "metrics.jsonl"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(read_records(cut / "metrics.jsonl"))
    assert 1 <= done < 12
    tiny.fit(whole, changes)
    tiny.fit(cut, changes)
    assert the_same(whole, cut, tiny)


@pytest.mark.parametrize("cut_at", [1, 40, -1], ids=["one byte", "some bytes", "all but the end"])
def test_a_torn_last_line_is_left_out_and_written_again(
    tiny, tmp_path: Path, never_killed, cut_at: int
) -> None:
    whole, _ = never_killed("plain")
    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        tiny.fit(cut, reporter=tiny.Told(2, error=Killed()))
    path = cut / "metrics.jsonl"
    line = json.dumps(read_records(whole / "metrics.jsonl")[2]) + "\n"
    path.write_text(path.read_text() + line[:cut_at])
    assert [record["epoch"] for record in read_records(path)] == [1, 2]
    tiny.fit(cut)
    assert the_same(whole, cut, tiny)


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_verdict_that_was_lost_with_the_process_is_asked_for_again(tiny, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tiny.fit(tmp_path, reporter=tiny.Told(2, error=Killed()))
    outcome = tiny.fit(tmp_path, reporter=tiny.Told(2, "pruned"))
    assert (outcome.state, outcome.epochs) == ("pruned", 2)


def test_a_finished_training_resumed_does_nothing(tiny, tmp_path: Path) -> None:
    first = tiny.fit(tmp_path)
    before = tiny.records(tmp_path)
    told = tiny.Told()
    assert tiny.fit(tmp_path, reporter=told) == first
    assert [metrics["epoch"] for metrics in told.metrics] == [first.epochs]
    assert tiny.records(tmp_path) == before


def fit_scripted(tiny, tmp_path, monkeypatch, values, changes, name: str = "val/miou"):
    monkeypatch.setattr(loop._Training, "_score", tiny.scripted(values, name))
    return tiny.fit(tmp_path, {"train.epochs": len(values)} | changes)


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "epochs", "best_epoch", "state"),
    [
        ([0.5, 0.4, 0.6, 0.7], 1, 0.0, 2, 1, "early_stopped"),
        ([0.5, 0.5, 0.6, 0.7], 1, 0.0, 2, 1, "early_stopped"),  # equal is no better
        ([0.5, 0.4, 0.6, 0.7], 2, 0.0, 4, 4, "finished"),
        ([0.5, 0.4, 0.3, 0.7], 2, 0.0, 3, 1, "early_stopped"),
        ([0.1, 0.5, 0.4, 0.3, 0.2, 0.9], 3, 0.0, 5, 2, "early_stopped"),
        ([0.1, 0.5, 0.4, 0.3, 0.6, 0.2], 3, 0.0, 6, 5, "finished"),
        ([0.5, 0.4, 0.3], 2, 0.0, 3, 1, "finished"),  # patience ends with the last epoch
        # Better, but never by min_delta: the best epoch moves on, patience does not.
        ([0.50, 0.53, 0.56, 0.59], 2, 0.1, 3, 3, "early_stopped"),
        ([0.50, 0.55, 0.61, 0.62, 0.63, 0.9], 2, 0.1, 5, 5, "early_stopped"),
        ([0.50, 0.75, 0.75, 0.9, 1.0], 2, 0.25, 3, 2, "early_stopped"),  # not more than min_delta
        ([0.0, 0.0, 0.0], 1, 0.0, 2, 1, "early_stopped"),
    ],
)
def test_early_stopping_counts_epochs_without_improvement(
    tiny, tmp_path, monkeypatch, values, patience, min_delta, epochs, best_epoch, state
) -> None:
    stop = {"patience": patience, "min_delta": min_delta}
    outcome = fit_scripted(tiny, tmp_path, monkeypatch, values, {"train.early_stop": stop})
    expected_state = "finished" if epochs == len(values) else "early_stopped"
    assert outcome.state == state == expected_state
    assert (outcome.epochs, outcome.best_epoch) == (epochs, best_epoch)
    assert outcome.best_value == max(values[:epochs])
    assert outcome.last_value == values[epochs - 1]
    assert (f"for {patience} epochs" in outcome.reason) == (state == "early_stopped")


def test_minimizing_the_loss_takes_the_lowest(tiny, tmp_path, monkeypatch) -> None:
    values = [0.5, 0.3, 0.4, 0.35, 0.2]
    changes = {
        "metric": {"name": "val/loss", "goal": "minimize", "cost_per_epoch": 0.01},
        "train.early_stop": {"patience": 2},
    }
    outcome = fit_scripted(tiny, tmp_path, monkeypatch, values, changes, "val/loss")
    assert (outcome.state, outcome.epochs) == ("early_stopped", 4)
    assert (outcome.best_value, outcome.best_epoch, outcome.last_value) == (0.3, 2, 0.35)
    assert outcome.objective == pytest.approx(0.3 + 4 * 0.01)


def test_minimizing_works_unscripted(tiny, tmp_path) -> None:
    outcome = tiny.fit(tmp_path, {"metric": {"name": "val/loss", "goal": "minimize"}})
    losses = [record["val/loss"] for record in tiny.records(tmp_path)]
    assert outcome.best_value == min(losses)
    assert outcome.best_epoch == 1 + losses.index(min(losses))


def test_epochs_have_their_price(tiny, tmp_path, monkeypatch) -> None:
    values = [0.5, 0.4, 0.6, 0.3]
    metric = {"name": "val/miou", "cost_per_epoch": 0.01}
    outcome = fit_scripted(tiny, tmp_path, monkeypatch, values, {"metric": metric})
    told = [record["objective"] for record in tiny.records(tmp_path)]
    assert told == pytest.approx([0.49, 0.48, 0.57, 0.56])
    assert outcome.objective == pytest.approx(0.56)
    assert [record["best"] for record in tiny.records(tmp_path)] == [0.5, 0.5, 0.6, 0.6]


def test_an_absent_category_has_the_worst_value(tiny, tmp_path, monkeypatch) -> None:
    changes = {"metric": {"name": "val/iou/human"}}
    outcome = fit_scripted(tiny, tmp_path, monkeypatch, [0.5, 0.5], changes, "val/miou")
    assert outcome.best_value == 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_ends_as_diverged(tiny, tmp_path, precision: str) -> None:
    changes = {"train.optimizer.lr": 1e30, "train.precision": precision}
    outcome = tiny.fit(tmp_path, changes)
    assert outcome.state == "diverged"
    assert "epoch 1, step 2 of 3" in outcome.reason
    assert "lr 9.17e+29" in outcome.reason  # poly, 11/12: of the step that it names
    assert (outcome.objective, outcome.best_value, outcome.epochs) == (None, None, 0)
    assert tiny.records(tmp_path) == []


def test_weights_broken_by_an_epochs_last_step_are_diverged_too(tiny, tmp_path) -> None:
    changes = {"train.optimizer.lr": 1e30, "train.batch_size": 6}  # one step an epoch
    outcome = tiny.fit(tmp_path, changes | {"metric": {"name": "val/loss", "goal": "minimize"}})
    assert outcome.state == "diverged"
    assert "after epoch 1 (lr 1.00e+30)" in outcome.reason
    assert outcome.best_value is None
    assert tiny.records(tmp_path) == []


def test_gradients_whose_norms_only_add_up_to_infinity_are_finite(
    tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", lambda gradients: torch.tensor(3e38))
    assert tiny.fit(tmp_path, {"train.epochs": 1}).state == "finished"


def test_diverging_keeps_the_best_checkpoint(tiny, tmp_path, monkeypatch) -> None:
    good = tmp_path / "good"
    tiny.fit(good, {"train.epochs": 2, "train.schedule.name": "constant"})
    real = loop.LearningRate.step

    def explode(rate) -> None:
        real(rate)
        if rate._step > 2 * 3:
            for group in rate._optimizer.param_groups:
                group["lr"] = 1e30

    monkeypatch.setattr(loop.LearningRate, "step", explode)
    folder = tmp_path / "folder"
    outcome = tiny.fit(folder, {"train.schedule.name": "constant"})
    assert outcome.state == "diverged"
    assert "epoch 3, step 2 of 3 (lr 1.00e+30" in outcome.reason
    assert outcome.epochs == 2
    assert the_same(good, folder, tiny)
    state = checkpoint.read_state(folder / "checkpoint" / "best.safetensors")
    assert state == {"epoch": outcome.best_epoch, "value": outcome.best_value}


@pytest.mark.parametrize("answer", ["pruned", "budget"])
def test_the_reporter_can_end_it(tiny, tmp_path: Path, answer: str) -> None:
    outcome = tiny.fit(tmp_path, reporter=tiny.Told(2, answer))
    assert (outcome.state, outcome.epochs) == (answer, 2)
    assert outcome.reason.endswith(" at epoch 2")
    assert len(tiny.records(tmp_path)) == 2


def test_the_reporter_is_told_what_is_recorded(tiny, tmp_path: Path) -> None:
    told = tiny.Told()
    tiny.fit(tmp_path, reporter=told)
    assert told.metrics == read_records(tmp_path / "metrics.jsonl")
    categories = [name for name in told.metrics[0] if name.startswith("val/iou/")]
    assert len(categories) == 7
    for metrics in told.metrics:
        made = scores(np.array(metrics["confusion"]), tiny.dataset().classes)
        assert {f"val/{name}": value for name, value in made.items()} == {
            name: value
            for name, value in metrics.items()
            if name.startswith("val/") and name != "val/loss"
        }
        assert metrics["train/grad_norm_max"] >= metrics["train/grad_norm"] > 0
        assert 0 <= metrics["time/data_wait"] <= 1


def test_a_batch_larger_than_train_is_refused_with_both_numbers(tiny, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a batch of 7 needs that many images, and train has 6"):
        tiny.fit(tmp_path, {"train.batch_size": 7})


@pytest.mark.parametrize("model", ["UNET", "SEGFORMER"])
def test_the_best_checkpoint_scores_what_was_recorded(tiny, tmp_path: Path, model: str) -> None:
    changes = {"model": getattr(tiny, model), "train.epochs": 3}
    outcome = tiny.fit(tmp_path, changes)
    data = tiny.dataset()
    net = build_trial_model(tiny.config(changes))
    state = checkpoint.load(tmp_path / "checkpoint" / "best.safetensors", net)
    confusion, loss = evaluate(net, data, data.splits.val, device=tiny.CPU)
    record = tiny.records(tmp_path)[outcome.best_epoch - 1]
    assert confusion.sum(0).tolist() == record["confusion"]
    assert loss == record["val/loss"]
    assert scores(confusion.sum(0), data.classes)["miou"] == outcome.best_value == state["value"]


def test_void_can_be_a_class(tiny, tmp_path: Path) -> None:
    outcome = tiny.fit(tmp_path, {"data.ignore": "none", "train.epochs": 2})
    record = tiny.records(tmp_path)[-1]
    assert np.shape(record["confusion"]) == (8, 8)
    assert "val/iou/void" in record
    assert record["val/miou_without_void"] != record["val/miou"]
    assert outcome.best_value == max(line["val/miou"] for line in tiny.records(tmp_path))


@pytest.mark.parametrize("ignore", ["void", "none"])
def test_own_classes_are_trained_and_scored_by_their_names(tiny, tmp_path: Path, ignore) -> None:
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (32, 48, 3)), ("masks", (32, 48))):
        (tmp_path / kind).mkdir()
        for number in range(10):
            pixels = rng.integers(0, 256 if kind == "images" else 4, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    section = {
        "format": "folders",
        "root": str(tmp_path),
        "images": "images",
        "masks": "masks",
        "size": [32, 48],
        "ignore": ignore,
        "classes": {"sky": {"ids": 3}, "void": {"ids": 0}, "road": {"ids": [1, 2]}},
    }
    changes = {"data": section, "train.epochs": 1}
    data = open_dataset(tiny.config(changes).data)
    tiny.fit(tmp_path / "trial", changes, data=data)
    (record,) = tiny.records(tmp_path / "trial")
    named = ["sky", "road"] if ignore == "void" else ["void", "sky", "road"]
    assert [key for key in record if key.startswith("val/iou/")] == [f"val/iou/{k}" for k in named]
    assert ("val/miou_without_void" in record) == (ignore == "none")


@pytest.fixture
def trained(tiny):
    """A model whose batch norm knows the images, and 7 of them to score."""
    data = tiny.dataset(train=2, val=7, test=0)
    torch.manual_seed(0)

    def make(settings):
        model = build_trial_model(tiny.config({"model": settings}))
        ((_, batch),) = eval_batches(data, range(9), batch_size=9)
        images, _ = batch.on(tiny.CPU)
        for _ in range(3):
            model.train()(images)
        return model, data

    return make


@pytest.mark.parametrize("model", ["UNET", "SEGFORMER"])
def test_an_images_matrix_does_not_depend_on_the_images_beside_it(tiny, trained, model) -> None:
    """To the bit: a batch of one goes through other kernels on CPU, and they round otherwise."""
    net, data = trained(getattr(tiny, model))
    positions = data.splits.val
    logits: list[torch.Tensor] = []
    coarse = net.coarse

    def listening(images: torch.Tensor) -> torch.Tensor:
        logits.append(coarse(images))
        return logits[-1]

    net.coarse = listening

    def scored(chosen: Sequence[int]) -> tuple[np.ndarray, torch.Tensor]:
        logits.clear()
        matrices, _ = evaluate(net, data, chosen, device=tiny.CPU)
        # 7 images are two batches of four: the last image is in there twice.
        return matrices, torch.cat(logits)[: len(chosen)]

    whole = scored(positions)
    for chosen in [[position] for position in positions] + [[5, 2, 8], [8, 7, 6, 5, 4]]:
        places = [positions.index(position) for position in chosen]
        for made, expected in zip(scored(chosen), whole, strict=True):
            np.testing.assert_array_equal(made, expected[places])


def test_evaluation_counts_every_pixel_and_means_over_those_that_count(tiny, trained) -> None:
    net, data = trained(tiny.UNET)
    confusion, loss = evaluate(net, data, data.splits.val, device=tiny.CPU)
    truth = data.masks[list(data.splits.val)]
    for matrix, mask in zip(confusion, truth, strict=True):
        np.testing.assert_array_equal(matrix.sum(1), np.bincount(mask.ravel(), minlength=256)[:7])
    ((_, batch),) = eval_batches(data, data.splits.val, batch_size=7)
    images, masks = batch.on(tiny.CPU)
    with torch.inference_mode():
        expected = torch.nn.functional.cross_entropy(net(images), masks.long(), ignore_index=255)
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("model", ["UNET", "SEGFORMER"])
def test_native_evaluation_counts_at_the_masks_own_size(tiny, trained, model) -> None:
    """Here twice the images' size; the loss stays what it was."""
    net, data = trained(getattr(tiny, model))
    at_images, loss = evaluate(net, data, data.splits.val, device=tiny.CPU)
    native, same_loss = evaluate(net, data, data.splits.val, device=tiny.CPU, native=True)
    assert same_loss == loss
    assert native.sum() == 4 * at_images.sum()
    ((_, batch),) = eval_batches(data, data.splits.val, batch_size=8, native=True)
    with torch.inference_mode():
        coarse = net.coarse(batch.on(tiny.CPU)[0])
        size = [2 * side for side in tiny.SIZE]
        full = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
    for matrix, logits, mask in zip(native, full, batch.native_masks, strict=True):
        pred, truth = logits.argmax(0), mask.long()
        expected = torch.bincount((truth * 7 + pred)[truth != 255], minlength=49).view(7, 7)
        np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.accumulate": 2},
        {"train.optimizer.clip_norm": 0.01},
        {"train.optimizer.clip_norm": None},
        {"metric.evaluate_at": "native"},
    ],
)
def test_a_training_learns_with_these_settings_too(tiny, tmp_path: Path, changes) -> None:
    tiny.fit(tmp_path, changes)
    lines = tiny.records(tmp_path)
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    pixels = 4 if "metric.evaluate_at" in changes else 1
    data = tiny.dataset()
    counted = (data.masks[list(data.splits.val)] != 255).sum()
    assert np.sum(lines[-1]["confusion"]) == pixels * counted


@pytest.mark.parametrize("limit", [0.01, 1e6])
def test_gradients_are_clipped_to_their_global_norm(tiny, tmp_path: Path, limit: float) -> None:
    config = tiny.config({"train.optimizer.clip_norm": limit})
    training = loop._Training(config, tiny.dataset(), tmp_path, tiny.Told(), tiny.CPU)
    batch = next(training.loader.epoch(1))
    backward(training.net, *batch.on(tiny.CPU))
    before = gradient_norm(training.model)
    clip_gradients(training.model, before, limit)
    after = nn.utils.get_total_norm([p.grad for p in training.model.parameters()])
    assert float(after) == pytest.approx(min(limit, float(before)), rel=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_training_gives_what_an_eager_one_does(tiny, tmp_path: Path) -> None:
    """Rounding aside; the first epoch, before differences grow."""
    for name, compiled in (("eager", False), ("compiled", True)):
        tiny.fit(tmp_path / name, {"train.compile": compiled, "train.epochs": 1})
    (eager,), (compiled,) = (tiny.records(tmp_path / name) for name in ("eager", "compiled"))
    assert compiled["train/loss"] == pytest.approx(eager["train/loss"], rel=1e-3)


def test_predicted_masks_are_those_that_were_counted(tiny, trained) -> None:
    net, data = trained(tiny.UNET)
    positions = data.splits.val[:2]
    confusion, _ = evaluate(net, data, positions, device=tiny.CPU)
    preds = predict_masks(net, data, positions, tiny.CPU)
    assert preds.shape == (2, *tiny.SIZE)
    assert preds.dtype == np.uint8
    for matrix, pred, position in zip(confusion, preds, positions, strict=True):
        counts = data.masks[position] != 255
        # One pixel may round the other way: here an image is alone in its batch.
        predicted = np.bincount(pred[counts], minlength=7)
        assert np.abs(matrix.sum(0) - predicted).sum() <= 2


def told(*values: float) -> list[dict]:
    """Records of epochs with these values of val/miou."""
    rest = {"train/lr": 0.001, "train/loss": 2.0, "train/grad_norm_max": 40.0}
    return [{"epoch": epoch, "val/miou": value, **rest} for epoch, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("lr", "state"), [(0.01, "finished"), (30.0, "collapsed"), (1e30, "diverged")]
)
def test_a_learning_rate_makes_a_collapse_or_a_divergence(tiny, tmp_path, lr, state) -> None:
    """What was learned at 0.01 goes on at another learning rate."""
    shared = {"train.schedule.name": "constant"}
    learned = tiny.fit(tmp_path, {**shared, "train.epochs": 8})
    outcome = tiny.fit(tmp_path, {**shared, "train.epochs": 12, "train.optimizer.lr": lr})
    assert outcome.best_value >= learned.best_value
    if state == "collapsed":
        assert outcome.state == "finished"
        assert outcome.reason.startswith("collapsed at epoch 9: ")
        assert "lr 3.00e+01, train loss " in outcome.reason
        assert "largest gradient norm " in outcome.reason
    else:
        assert outcome.state == state
        assert "collapsed" not in outcome.reason
    if state == "diverged":
        assert outcome.epochs == 8
        assert "lr 1.00e+30" in outcome.reason


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ((0.5, 0.6, 0.2, 0.1), 3),
        ((0.5, 0.6, 0.55, 0.3, 0.3), 4),
        ((0.5, 0.6, 0.1), None),  # one bad epoch
        ((0.5, 0.6, 0.1, 0.1, 0.5), None),  # it came back
        ((0.5, 0.6, 0.5, 0.45), None),  # it fell, but not by so much
        ((0.1, 0.1, 0.6), None),  # it rose
        ((0.6,), None),
        ((0.0, 0.0, 0.0), None),  # it never learned
        ((), None),
    ],
)
def test_a_metric_that_fell_and_stayed_down_has_collapsed(values, epoch) -> None:
    words = loop.find_collapse(told(*values))
    if epoch is None:
        assert words is None
    else:
        assert words.startswith(f"collapsed at epoch {epoch}: ")
        assert "lr 1.00e-03" in words
        assert "gradient norm 40" in words


def test_a_loss_that_rises_is_no_collapse_while_the_masks_stay_right() -> None:
    """Where the loss is what is optimized, that is overfitting."""
    lines = told(0.5, 0.6, 0.61, 0.6)
    for line, loss in zip(lines, (0.3, 0.2, 0.5, 0.9), strict=True):
        line |= {"value": loss, "val/loss": loss, "best": 0.2, "best_epoch": 2}
    assert loop.find_collapse(lines) is None
    for line in lines[2:]:
        line["val/miou"] = 0.1
    assert loop.find_collapse(lines).startswith("collapsed at epoch 3: val/miou 0.6000 -> 0.1000 (")

"""Which parameters decay and at what rate they learn, step by step."""

import itertools

import pytest
import torch
from torch import nn

from segray.config import Optimizer, Schedule
from segray.models import build_model
from segray.train.optimizer import LearningRate, build_optimizer, step_factor

MODELS = [
    pytest.param("unet", {"width": 4, "depth": 2}, id="unet"),
    pytest.param("segformer", {"variant": "b0", "width": 0.125}, id="segformer"),
]


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_norms_and_biases_do_not_decay_and_the_head_learns_at_its_own_rate(name, options) -> None:
    model = build_model(name, num_classes=7, **options)
    settings = Optimizer(lr=0.01, weight_decay=0.1, head_lr_mult=5)
    optimizer = build_optimizer(model, settings)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    kinds = set()
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    for module_name, module in model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            group = group_of.pop(id(parameter))
            in_encoder = module_name.startswith("encoder")
            decays = not isinstance(module, norms) and parameter_name != "bias"
            assert group["base_lr"] == pytest.approx(0.01 if in_encoder else 0.05)
            assert group["weight_decay"] == (0.1 if decays else 0.0)
            kinds.add((in_encoder, decays))
    assert group_of == {}
    assert kinds == set(itertools.product((True, False), repeat=2))


def test_frozen_parameters_are_left_alone() -> None:
    model = build_model("unet", num_classes=7, width=4, depth=2)
    for parameter in model.encoder.parameters():
        parameter.requires_grad = False
    optimizer = build_optimizer(model, Optimizer())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(name="constant"), [1] * 8),
        (Schedule(name="plateau"), [1] * 8),
        (Schedule(name="poly"), [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (Schedule(name="poly", power=2), [(1 - s / 8) ** 2 for s in range(8)]),
        (Schedule(name="constant", warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule(name="poly", warmup_steps=2), [0.5, 1, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (Schedule(name="poly", warmup_steps=16), [(s + 1) / 16 for s in range(8)]),
    ],
    ids=lambda case: f"{case.name}-{case.warmup_steps}" if isinstance(case, Schedule) else "",
)
def test_the_learning_rate_of_every_step(schedule: Schedule, expected: list[float]) -> None:
    assert [step_factor(schedule, step, 8) for step in range(8)] == pytest.approx(expected)
    optimizer = two_groups()
    rate = LearningRate(optimizer, schedule, 8)
    for factor in expected:
        rate.step()
        assert lrs(optimizer) == pytest.approx([0.1 * factor, 1.0 * factor])


def two_groups() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "base_lr": lr} for lr in (0.1, 1.0)]
    return torch.optim.AdamW(groups)


def lrs(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


#         first  equal  better  worse  worse  worse  worse  worse  worse
VALUES = [0.5, 0.5, 0.6, 0.5, 0.4, 0.3, 0.59, 0.6, 0.1]


@pytest.mark.parametrize(
    ("patience", "after"),
    [
        (0, [1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125]),
        (1, [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]),
        (2, [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    ],
)
def test_plateau_lowers_the_rate_after_more_than_patience_epochs(patience: int, after) -> None:
    optimizer = two_groups()
    schedule = Schedule(name="plateau", factor=0.5, patience=patience)
    rate = LearningRate(optimizer, schedule, 100)
    for value, factor in zip(VALUES, after, strict=True):
        rate.end_epoch(value)
        rate.step()
        assert lrs(optimizer) == pytest.approx([0.1 * factor, factor])


@pytest.mark.parametrize("name", ["poly", "constant", "plateau"])
@pytest.mark.parametrize("cut", range(len(VALUES)))
def test_resumed_it_goes_on_where_it_was(name: str, cut: int) -> None:
    schedule = Schedule(name=name, factor=0.5, patience=1, warmup_steps=3)
    steps = len(VALUES)
    whole, first, second = two_groups(), two_groups(), two_groups()
    rates = [LearningRate(optimizer, schedule, steps) for optimizer in (whole, first, second)]
    for epoch, value in enumerate(VALUES):
        if epoch == cut:
            rates[2].load_state_dict(rates[1].state_dict())
        at, optimizer = (rates[1], first) if epoch < cut else (rates[2], second)
        for rate in (rates[0], at):
            rate.step()
            rate.end_epoch(value)
        assert lrs(optimizer) == lrs(whole)

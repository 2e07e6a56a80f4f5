"""Cross-entropy is PyTorch's, Dice is the formula's, and void moves neither."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segray.data import IGNORE
from segray.train.loss import balanced_weights, segmentation_loss, soft_dice_loss


def random_batch(seed: int, void: float, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 6, 7, generator=generator) * 3
    masks = torch.randint(0, classes, (2, 6, 7), generator=generator, dtype=torch.uint8)
    masks[torch.rand(2, 6, 7, generator=generator) < void] = IGNORE
    masks[0, 0, 0] = 1
    return logits.requires_grad_(), masks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0, 0.95), st.booleans())
def test_cross_entropy_and_its_gradient_are_pytorchs(seed: int, void: float, weigh: bool) -> None:
    logits, masks = random_batch(seed, void)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]) if weigh else None
    loss = segmentation_loss(logits, masks, class_weights=weights)
    expected = F.cross_entropy(logits, masks.long(), weight=weights, ignore_index=IGNORE)
    torch.testing.assert_close(loss, expected)
    made, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(made, theirs)


def plain_dice(logits: np.ndarray, masks: np.ndarray) -> float:
    """1 - mean over the classes in the truth of 2 sum(p t) / (sum p + sum t)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    counts = masks != IGNORE
    found = []
    for k in range(logits.shape[1]):
        p, t = probabilities[:, k][counts], (masks == k)[counts]
        if t.any():
            found.append(2 * (p * t).sum() / (p.sum() + t.sum()))
    return 1 - float(np.mean(found))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0, 0.95))
def test_dice_is_the_formula(seed: int, void: float) -> None:
    logits, masks = random_batch(seed, void)
    expected = plain_dice(logits.detach().numpy().astype(np.float64), masks.numpy())
    assert soft_dice_loss(logits, masks).item() == pytest.approx(expected, abs=1e-5)


def test_dice_of_a_perfect_prediction_is_zero_and_of_a_wrong_one_is_one() -> None:
    masks = torch.randint(0, 3, (2, 6, 7), dtype=torch.uint8)
    right = F.one_hot(masks.long(), 3).permute(0, 3, 1, 2) * 100.0
    assert float(soft_dice_loss(right, masks)) == pytest.approx(0, abs=1e-5)
    wrong = F.one_hot((masks.long() + 1) % 3, 3).permute(0, 3, 1, 2) * 100.0
    assert float(soft_dice_loss(wrong, masks)) == pytest.approx(1, abs=1e-5)


def test_dice_is_added_with_its_weight() -> None:
    logits, masks = random_batch(0, 0.2)
    plain = segmentation_loss(logits, masks)
    dice = soft_dice_loss(logits, masks)
    torch.testing.assert_close(segmentation_loss(logits, masks, dice=0.7), plain + 0.7 * dice)


@pytest.mark.parametrize("dice", [0.0, 1.0])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0])])
def test_a_batch_of_void_alone_costs_nothing_and_teaches_nothing(weights, dice: float) -> None:
    logits, masks = random_batch(0, 0)
    masks[:] = IGNORE
    loss = segmentation_loss(logits, masks, class_weights=weights, dice=dice)
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_logits_of_ignored_pixels_have_no_gradient(dice: float) -> None:
    logits, masks = random_batch(1, 0.5)
    loss = segmentation_loss(logits, masks, dice=dice)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.abs().sum(1)[masks == IGNORE] == 0).all()
    assert (gradient.abs().sum(1)[masks != IGNORE] > 0).all()


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8).filter(any))
def test_balanced_weights_fall_with_the_root_of_the_frequency(pixels: list[int]) -> None:
    weights = balanced_weights(np.array(pixels))
    assert np.mean(weights) == pytest.approx(1)
    for weight, count in zip(weights, pixels, strict=True):
        assert (weight == 0) == (count == 0)
        if count:
            first = next(i for i, p in enumerate(pixels) if p)
            ratio = np.sqrt(pixels[first] / count)
            assert weight / weights[first] == pytest.approx(ratio)

"""Geometry moves image and mask together; colour is what a plain reference says it is."""

import colorsys
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from segray.config import Augment
from segray.data.augment import (
    BLUR_RADIUS,
    GREY,
    MEAN,
    PADDING,
    STD,
    Draw,
    _nearest,
    colour_and_normalise,
    colour_maps,
    crop_and_zoom,
    draw,
)
from segray.data.labels import IGNORE

OFF = (1.0, 1.0, 1.0, 0.0)
few = settings(max_examples=60, deadline=None)
shares = st.floats(0, 1, exclude_max=True)
sides = st.integers(8, 70)


def change(zoom: float = 1.0, flip: bool = False, window: tuple[float, float] = (0.0, 0.0)) -> Draw:
    return Draw(zoom, flip, window, OFF, 0.0)


def random_pair(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.integers(0, 7, (height, width), dtype=np.uint8)
    return torch.from_numpy(image), torch.from_numpy(mask)


def told_by_colour(mask: Tensor) -> Tensor:
    """An image (H, W, 3) whose red is 30 x label."""
    return (mask * 30)[..., None].repeat(1, 1, 3)


def halves(height: int, width: int, row: float, column: float) -> Tensor:
    """A mask of four rectangles, labels 0 to 3."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[int(row * height) :] += 1
    mask[:, int(column * width) :] += 2
    return mask


def cropped(
    image: Tensor, mask: Tensor, change: Draw, crop: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    made = torch.full((3, *crop), 7, dtype=torch.uint8), torch.full(crop, 7, dtype=torch.uint8)
    crop_and_zoom(image, mask, change, made)
    return made


@few
@given(sides, sides, sides, sides, st.floats(0.3, 3), st.booleans(), shares, shares, shares, shares)
def test_image_and_mask_move_together(
    height: int, width: int, h: int, w: int, zoom: float, flip: bool, x: float, y: float,
    row: float, column: float,
) -> None:  # fmt: skip
    mask = halves(height, width, row, column)
    told = told_by_colour(mask)
    padded = F.pad(mask[None, None].float(), [1] * 4, mode="replicate")
    edge = F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1)
    told[..., 1] = edge[0, 0] * 255
    image, labels = cropped(told, mask, change(zoom, flip, (y, x)), (h, w))
    inside = labels != IGNORE
    # Where nothing of an edge between two labels came in, the colour is the label's.
    plain = inside & (image[1] == 0)
    difference = (image[0].int() - labels.int() * 30).abs()[plain]
    assert not plain.any() or int(difference.max()) <= 1
    # And the rim is void in both.
    rim = torch.tensor(PADDING, dtype=torch.uint8)[:, None]
    assert (image[:, ~inside] == rim).all()


@few
@given(sides, sides, st.integers(0, 1000))
def test_with_all_off_nothing_changes(height: int, width: int, position: int) -> None:
    image, mask = random_pair(height, width)
    made, labels = cropped(image, mask, draw(Augment(), 0, 1, position), (height, width))
    assert torch.equal(made, image.permute(2, 0, 1))
    assert torch.equal(labels, mask)


@few
@given(sides, sides, shares, shares)
def test_a_flip_mirrors_and_two_flips_are_none(height: int, width: int, y: float, x: float) -> None:
    image, mask = random_pair(height, width)
    crop = (height // 2, width // 2)
    plain = cropped(image, mask, change(window=(y, x)), crop)
    flipped = cropped(image, mask, change(flip=True, window=(y, x)), crop)
    for one, other in zip(plain, flipped, strict=True):
        assert torch.equal(one, other.flip(-1))


@few
@given(sides, sides, sides, sides, st.floats(0.05, 20), shares, shares)
def test_any_crop_and_zoom_give_the_size_asked_for(
    height: int, width: int, h: int, w: int, zoom: float, y: float, x: float
) -> None:
    image, mask = random_pair(height, width)
    made, labels = cropped(image, mask, change(zoom, window=(y, x)), (h, w))
    assert made.shape == (3, h, w)
    assert labels.shape == (h, w)
    assert made.dtype == labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) <= set(mask.unique().tolist()) | {IGNORE}
    assert (labels != IGNORE).any()


@few
@given(sides, sides, st.floats(0.2, 1), shares, shares)
def test_zooming_out_pads_with_what_is_ignored(
    height: int, width: int, zoom: float, y: float, x: float
) -> None:
    image, mask = random_pair(height, width)
    made, labels = cropped(image, mask, change(zoom, window=(y, x)), (height, width))
    landed = max(1, round(height * zoom)), max(1, round(width * zoom))
    assert int((labels != IGNORE).sum()) == landed[0] * landed[1]
    ignored = (labels == IGNORE).expand(3, -1, -1)
    rim = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].expand(3, height, width)
    assert torch.equal(made[ignored], rim[ignored])


def test_zooming_in_shows_the_window_enlarged() -> None:
    mask = halves(40, 40, 0.5, 0.5)
    _, labels = cropped(told_by_colour(mask), mask, change(2.0, window=(0.5, 0.5)), (40, 40))
    assert torch.equal(labels, halves(40, 40, 0.5, 0.5))
    _, corner = cropped(told_by_colour(mask), mask, change(2.0, window=(0, 0)), (40, 40))
    assert (corner == 0).all()


@few
@given(sides, sides, sides, sides)
def test_a_mask_keeps_the_pixels_that_nearest_exact_keeps(
    height: int, width: int, h: int, w: int
) -> None:
    mask = torch.arange(height * width, dtype=torch.int32).view(height, width)
    rows = torch.from_numpy(_nearest(height, h))
    columns = torch.from_numpy(_nearest(width, w))
    expected = F.interpolate(mask[None, None].double(), (h, w), mode="nearest-exact")[0, 0]
    assert torch.equal(mask[rows][:, columns].double(), expected)


def test_every_window_can_be_drawn() -> None:
    mask = torch.arange(10, dtype=torch.uint8).repeat(10, 1)
    image = told_by_colour(mask)
    starts = {
        int(cropped(image, mask, change(window=(0, x / 100)), (10, 4))[1][0, 0]) for x in range(100)
    }
    assert starts == set(range(7))


settings_of_augment = st.builds(
    Augment,
    scale=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
    flip=st.floats(0, 1),
    brightness=st.floats(0, 1),
    contrast=st.floats(0, 1),
    saturation=st.floats(0, 1),
    hue=st.floats(0, 0.5),
    blur=st.floats(0, 1),
)
seeds = st.integers(0, 2**63)


@few
@given(settings_of_augment, seeds, st.integers(1, 999), st.integers(0, 9999))
def test_a_draw_stays_in_its_ranges_and_repeats(
    augment: Augment, seed: int, epoch: int, position: int
) -> None:
    drawn = draw(augment, seed, epoch, position)
    assert drawn == draw(augment, seed, epoch, position)
    low, high = augment.scale
    assert low * 0.999 <= drawn.zoom <= high * 1.001
    amounts = (augment.brightness, augment.contrast, augment.saturation)
    for factor, amount in zip(drawn.colour, amounts, strict=False):
        assert abs(factor - 1) <= amount + 1e-9
    assert abs(drawn.colour[3]) <= augment.hue
    assert drawn.sigma == 0 or 0.1 <= drawn.sigma <= 1.5
    assert all(0 <= share < 1 for share in drawn.window)


@few
@given(settings_of_augment, settings_of_augment, seeds, st.integers(0, 9999))
def test_one_setting_does_not_move_what_another_draws(
    one: Augment, other: Augment, seed: int, position: int
) -> None:
    mixed = one.model_copy(update={"scale": other.scale, "flip": other.flip, "hue": other.hue})
    first, second, both = (draw(a, seed, 3, position) for a in (one, other, mixed))
    assert first.window == second.window
    assert (both.zoom, both.flip) == (second.zoom, second.flip)
    assert both.colour == (*first.colour[:3], second.colour[3])
    assert both.sigma == first.sigma


@pytest.mark.parametrize(
    ("flip", "blur"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.7)], ids=["never", "always", "some"]
)
def test_flip_and_blur_happen_as_often_as_asked(flip: float, blur: float) -> None:
    drawn = [draw(Augment(flip=flip, blur=blur), 5, 1, position) for position in range(2000)]
    assert np.mean([d.flip for d in drawn]) == pytest.approx(flip, abs=0.04)
    assert np.mean([d.sigma > 0 for d in drawn]) == pytest.approx(blur, abs=0.04)


def test_epochs_positions_and_seeds_draw_apart() -> None:
    augment = Augment(scale=(0.5, 2.0))
    places = [(s, e, p) for s in range(4) for e in range(1, 5) for p in range(4)]
    assert len({draw(augment, *place).zoom for place in places}) == len(places)


def plain_colour(image: np.ndarray, colour: tuple[float, float, float, float]) -> np.ndarray:
    """(H, W, 3) in [0, 1], one change after the other, pixel by pixel."""
    brightness, contrast, saturation, hue = colour
    x = image * brightness
    mean_grey = float(np.mean([np.dot(pixel, GREY) for pixel in x.reshape(-1, 3)]))
    x = mean_grey + contrast * (x - mean_grey)
    angle = 2 * math.pi * hue
    out = np.empty_like(x)
    for place in np.ndindex(*x.shape[:2]):
        grey = float(np.dot(x[place], GREY))
        r, g, b = grey + saturation * (x[place] - grey)
        y = 0.299 * r + 0.587 * g + 0.114 * b
        i = 0.5959 * r - 0.2746 * g - 0.3213 * b
        q = 0.2115 * r - 0.5227 * g + 0.3112 * b
        i, q = (
            i * math.cos(angle) - q * math.sin(angle),
            i * math.sin(angle) + q * math.cos(angle),
        )
        out[place] = y + 0.956 * i + 0.619 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q
    return out.clip(0, 1)


def back(normalised: Tensor) -> Tensor:
    """(N, 3, H, W) normalised -> in [0, 1]."""
    return normalised * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


factors = st.tuples(st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.floats(-0.5, 0.5))


@settings(max_examples=30, deadline=None)
@given(st.lists(factors, min_size=1, max_size=3), st.integers(0, 99))
def test_colour_is_the_changes_one_after_the_other(colours: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(colours), 3, 4, 5), dtype=np.uint8)
    made = back(colour_and_normalise(torch.from_numpy(images), torch.tensor(colours), None))
    for image, colour, result in zip(images, colours, made.numpy(), strict=True):
        expected = plain_colour(image.transpose(1, 2, 0) / 255, colour)
        # The reference's way back from YIQ is the standard's, rounded to three digits.
        np.testing.assert_allclose(result.transpose(1, 2, 0), expected, atol=6e-3)


def test_neutral_factors_and_a_full_turn_of_hue_only_normalise() -> None:
    colours = torch.tensor([OFF, (1, 1, 1, 1), (1, 1, 1, -1)], dtype=torch.float32)
    scale = torch.diag(1 / (255 * torch.tensor(STD)))
    offset = -torch.tensor(MEAN) / torch.tensor(STD)
    plain = torch.cat([scale, torch.zeros(3, 3), offset[:, None]], 1)
    torch.testing.assert_close(colour_maps(colours), plain.expand(3, 3, 7), atol=1e-7, rtol=1e-6)


@given(st.floats(0, 2), st.floats(-0.5, 0.5), st.integers(0, 255))
def test_grey_stays_grey_under_saturation_and_hue(saturation: float, hue: float, grey: int) -> None:
    image = torch.full((1, 3, 4, 4), grey, dtype=torch.uint8)
    colour = torch.tensor([(1.0, 1.0, saturation, hue)])
    made = back(colour_and_normalise(image, colour, None))
    torch.testing.assert_close(made, torch.full_like(made, grey / 255), atol=1e-5, rtol=0)


def test_no_saturation_leaves_the_grey_of_each_pixel() -> None:
    image = random_pair(6, 6)[0].permute(2, 0, 1)[None]
    made = back(colour_and_normalise(image, torch.tensor([(1.0, 1.0, 0.0, 0.3)]), None))
    grey = (image[0].float() / 255 * torch.tensor(GREY)[:, None, None]).sum(0)
    for channel in made[0]:
        torch.testing.assert_close(channel, grey, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hue", [1 / 3, -1 / 3, 0.25])
def test_hue_turns_red_through_the_colours(hue: float) -> None:
    red = torch.tensor([160, 60, 60], dtype=torch.uint8)[None, :, None, None]
    made = back(colour_and_normalise(red, torch.tensor([(1.0, 1.0, 1.0, hue)]), None))
    turned = colorsys.rgb_to_hsv(*made[0, :, 0, 0].tolist())[0]
    # YIQ's circle runs the other way round, and not quite evenly.
    assert min((turned + hue) % 1, (-turned - hue) % 1) < 0.09


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0, 1.5])
def test_brightness_multiplies_and_clips(brightness: float) -> None:
    image = random_pair(6, 6)[0].permute(2, 0, 1)[None]
    made = back(colour_and_normalise(image, torch.tensor([(brightness, 1.0, 1.0, 0.0)]), None))
    expected = (image.float() / 255 * brightness).clamp(0, 1)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_no_contrast_leaves_the_mean_grey() -> None:
    image = random_pair(6, 6)[0].permute(2, 0, 1)[None]
    made = back(colour_and_normalise(image, torch.tensor([(1.0, 0.0, 1.0, 0.0)]), None))
    grey = (image[0].float() / 255 * torch.tensor(GREY)[:, None, None]).sum(0).mean()
    torch.testing.assert_close(made, grey.expand_as(made), atol=1e-5, rtol=0)


def test_without_changes_the_encoder_gets_the_normalised_image() -> None:
    image = random_pair(6, 6)[0].permute(2, 0, 1)[None]
    made = colour_and_normalise(image, None, None)
    expected = (image.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 1.5])
def test_blur_is_a_gaussian_filter(sigma: float) -> None:
    images = torch.stack([random_pair(12, 15, seed)[0].permute(2, 0, 1) for seed in (0, 1)])
    made = back(colour_and_normalise(images, None, torch.tensor([sigma, 0.0])))
    for plane, channel in zip(made[0].numpy(), images[0].numpy(), strict=True):
        expected = gaussian_filter(channel / 255, sigma, mode="nearest", radius=BLUR_RADIUS)
        np.testing.assert_allclose(plane, expected, atol=1e-5)
    # A sigma of 0 leaves the other image of the batch as it is, to the bit.
    untouched = colour_and_normalise(images, None, None)[1]
    assert torch.equal(colour_and_normalise(images, None, torch.tensor([sigma, 0.0]))[1], untouched)


@given(st.floats(0, 1.5), st.integers(0, 255))
def test_blur_leaves_a_constant_image(sigma: float, value: int) -> None:
    image = torch.full((1, 3, 10, 10), value, dtype=torch.uint8)
    made = back(colour_and_normalise(image, None, torch.tensor([sigma])))
    torch.testing.assert_close(made, torch.full_like(made, value / 255), atol=1e-5, rtol=0)


@few
@given(st.floats(0, 1.5), st.integers(0, 99))
def test_blur_keeps_the_mean_of_what_lies_inside(sigma: float, seed: int) -> None:
    image = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    image[:, :, 6:14, 6:14] = random_pair(8, 8, seed)[0].permute(2, 0, 1)
    assume(image.any())
    made = back(colour_and_normalise(image, None, torch.tensor([sigma])))
    torch.testing.assert_close(
        made.mean((2, 3)), (image.float() / 255).mean((2, 3)), atol=1e-5, rtol=0
    )

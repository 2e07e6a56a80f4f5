"""Joint changes of image and mask: geometry on uint8 samples, colour on a float batch.

N images, C = 3 channels, H x W pixels. A sample's changes are drawn from (seed, epoch, position)
alone, and always with the same number of draws: neither the number of workers or threads nor
another augmentation setting moves them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segray.config import Augment
from segray.data.labels import IGNORE

# What pretrained encoders expect: RGB in [0, 1], minus mean, over deviation (ImageNet).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PADDING = tuple(round(255 * channel) for channel in MEAN)  # black would be an edge to learn
BLUR_RADIUS = 4  # pixels either side: 2.7 deviations of the widest blur
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


@dataclass(frozen=True)
class Draw:
    """The changes of one sample."""

    zoom: float
    flip: bool
    window: tuple[float, float]  # where the crop lies, each in [0, 1)
    colour: tuple[float, float, float, float]  # brightness, contrast, saturation, hue in turns
    sigma: float  # of the blur, pixels; 0 is none


def draw(augment: Augment, seed: int, epoch: int, position: int) -> Draw:
    """The changes of the sample at `position` in epoch `epoch`."""
    u = np.random.default_rng((seed, epoch, 1 + position)).random(10).tolist()
    low, high = augment.scale

    def around_one(amount: float, share: float) -> float:
        return 1 + amount * (2 * share - 1)

    return Draw(
        zoom=low * (high / low) ** u[0],
        flip=u[1] < augment.flip,
        window=(u[2], u[3]),
        colour=(
            around_one(augment.brightness, u[4]),
            around_one(augment.contrast, u[5]),
            around_one(augment.saturation, u[6]),
            augment.hue * (2 * u[7] - 1),
        ),
        sigma=0.1 + 1.4 * u[9] if u[8] < augment.blur else 0.0,
    )


def crop_and_zoom(
    image: Tensor, mask: Tensor, change: Draw, crop: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Image (H, W, 3) and mask (H, W), uint8 -> (3, h, w) and (h, w) of size `crop`.

    The crop is cut before it is resized, so that only what a step sees is ever resized. Where the
    zoomed image is smaller than the crop, the rim is PADDING in the image, IGNORE in the mask.
    """
    (top, height, y, h) = _window(image.shape[0], crop[0], change.zoom, change.window[0])
    (left, width, x, w) = _window(image.shape[1], crop[1], change.zoom, change.window[1])
    pixels = image[top : top + height, left : left + width].permute(2, 0, 1)  # (3, height, width)
    labels = mask[top : top + height, left : left + width]
    if (height, width) != (h, w):
        pixels = F.interpolate(pixels[None], (h, w), mode="bilinear", antialias=True)[0]
        labels = F.interpolate(labels[None, None], (h, w), mode="nearest-exact")[0, 0]
    if change.flip:
        pixels, labels = pixels.flip(-1), labels.flip(-1)
    if (h, w) == crop:
        return pixels, labels
    canvas = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].repeat(1, *crop)
    canvas[:, y : y + h, x : x + w] = pixels
    ignored = torch.full(crop, IGNORE, dtype=torch.uint8)
    ignored[y : y + h, x : x + w] = labels
    return canvas, ignored


def _window(length: int, crop: int, zoom: float, share: float) -> tuple[int, int, int, int]:
    """Along one axis: where the source starts, its length, where it lands, its length there."""
    wanted = max(1, round(crop / zoom))
    if wanted <= length:
        return int(share * (length - wanted + 1)), wanted, 0, crop
    landed = max(1, min(crop, round(length * zoom)))
    return 0, length, int(share * (crop - landed + 1)), landed


def colour_and_normalise(images: Tensor, colour: Tensor | None, sigma: Tensor | None) -> Tensor:
    """Batch (N, 3, H, W) uint8 -> float32, coloured, blurred, and normalised for the encoder.

    `colour` (N, 4) holds brightness, contrast, saturation and hue of each image, `sigma` (N,) its
    blur; None leaves out the step. The colour changes are one affine map a pixel, so they cost
    one 3x4 matrix product however many are switched on.
    """
    x = images.float().div_(255)
    mean = x.new_tensor(MEAN)[:, None, None]
    std = x.new_tensor(STD)[:, None, None]
    if colour is not None:
        matrix, offset = colour_matrices(colour, x.mean((2, 3)))
        n, c, h, w = x.shape
        # (N, 3, 3) @ (N, 3, H*W) + (N, 3, 1)
        x = torch.baddbmm(offset[:, :, None], matrix, x.reshape(n, c, h * w)).view(n, c, h, w)
        x = x.clamp_(0, 1)
    if sigma is not None:
        x = _blur(x, sigma)
    return x.sub_(mean).div_(std)


def colour_matrices(colour: Tensor, mean_rgb: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 4) factors and (N, 3) mean colours -> the maps x -> M x + t: (N, 3, 3) and (N, 3).

    In this order: brightness, contrast about the image's mean grey, saturation about the pixel's
    own grey, hue as a turn of the chroma plane of YIQ.
    """
    brightness, contrast, saturation, hue = colour.unbind(1)
    eye = torch.eye(3, device=colour.device)
    grey = torch.tensor(GREY, device=colour.device)
    scale = brightness * contrast
    # Contrast keeps the mean grey of the brightened image where it is.
    shift = (1 - contrast) * brightness * (mean_rgb @ grey)
    to_grey = grey.expand(3, 3)  # each row gives a pixel's grey
    saturate = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * to_grey
    # fmt: off
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213],
                        [0.2115, -0.5227, 0.3112]], device=colour.device)
    # fmt: on
    angle = 2 * math.pi * hue
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack(
        [torch.ones_like(angle), zero, zero, zero, cos, -sin, zero, sin, cos], dim=1
    ).view(-1, 3, 3)
    chroma = torch.linalg.inv(yiq) @ turn @ yiq @ saturate
    # Grey passes both unchanged, and the offset is grey.
    return chroma * scale[:, None, None], shift[:, None].expand(-1, 3)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image by its own sigma (N,), in pixels; 0 leaves it as it is."""
    n, c, h, w = x.shape
    steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=x.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, taps)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = kernel.repeat_interleave(c, 0)  # (N*3, taps): each plane has its own kernel
    planes = F.pad(x.reshape(1, n * c, h, w), [BLUR_RADIUS] * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * c)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * c)
    return planes.view(n, c, h, w)

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
from numpy.typing import NDArray
from torch import Tensor

from segray.config import Augment
from segray.data.labels import IGNORE

# What pretrained encoders expect: RGB in [0, 1], minus mean, over deviation (ImageNet).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PADDING = tuple(round(255 * channel) for channel in MEAN)  # black would be an edge to learn
BLUR_RADIUS = 4  # pixels either side: 2.7 deviations of the widest blur
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601
# fmt: off
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TURNS = (  # in YIQ, a turn of the chroma plane by a is the first + cos(a) second + sin(a) third
    np.diag([1, 0, 0]), np.diag([0, 1, 1]), np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]),
)
# fmt: on
# The same in RGB, after the map of each pixel to its own grey: (4, 3, 3).
_CHROMA = torch.from_numpy(
    np.stack([np.tile(GREY, (3, 1)), *(np.linalg.inv(_YIQ) @ turn @ _YIQ for turn in _TURNS)])
)


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


def crop_and_zoom(image: Tensor, mask: Tensor, change: Draw, into: tuple[Tensor, Tensor]) -> None:
    """Image (H, W, 3) and mask (H, W), uint8 -> `into`: a batch's places (3, h, w) and (h, w).

    The crop is cut before it is resized, so that only what a step sees is ever resized. Where the
    zoomed image is smaller than the crop, the rim is PADDING in the image, IGNORE in the mask.
    """
    canvas, ignored = into
    crop = ignored.shape
    (top, height, y, h) = _window(image.shape[0], crop[0], change.zoom, change.window[0])
    (left, width, x, w) = _window(image.shape[1], crop[1], change.zoom, change.window[1])
    # (1, 3, height, width) in channels_last: torch resizes that twice as fast as planes.
    pixels = image[None, top : top + height, left : left + width].permute(0, 3, 1, 2)
    labels = mask[top : top + height, left : left + width]
    if (height, width) != (h, w):
        pixels = F.interpolate(pixels, (h, w), mode="bilinear", antialias=True)
        rows, columns = _nearest(height, h), _nearest(width, w)
        labels = torch.from_numpy(labels.numpy().take(rows, 0).take(columns, 1))
    if change.flip:
        pixels, labels = pixels.flip(-1), labels.flip(-1)
    if (h, w) != crop:
        for channel, padding in zip(canvas, PADDING, strict=True):
            channel.fill_(padding)
        ignored.fill_(IGNORE)
    canvas[:, y : y + h, x : x + w] = pixels[0]
    ignored[y : y + h, x : x + w] = labels


def _nearest(length: int, target: int) -> NDArray[np.int64]:
    """(target,) which of `length` pixels is nearest to each of the `target` that replace them.

    The pixels of F.interpolate's nearest-exact, which takes twice as long.
    """
    middles = (np.arange(target, dtype=np.float32) + 0.5) * (np.float32(length) / target)
    return middles.astype(np.int64).clip(max=length - 1)


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
    blur, both on the CPU; None leaves out the step. Colour changes and normalisation are one affine
    map a pixel, so they cost one 3x4 matrix product however many are switched on.
    """
    n, c, h, w = images.shape
    device = images.device
    out = torch.empty((n, c, h, w), device=device)
    maps = None if colour is None else to_device(colour_maps(colour), device)
    weights = None if sigma is None else to_device(_blur_weights(sigma), device)
    # A CPU takes an image at a time: it stays in the processor's cache from pass to pass.
    at_once = 1 if device.type == "cpu" else n
    x = torch.ones((at_once, 4, h * w), device=device)  # the last row takes the offset
    for start in range(0, n, at_once):
        part = slice(start, start + at_once)
        x[:, :3] = images[part].flatten(2)
        y = out[part].flatten(2)
        if maps is None:
            for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
                torch.mul(x[:, channel], 1 / (255 * std), out=y[:, channel]).sub_(mean / std)
        else:
            matrix, of_mean, offset = maps[part, :, :3], maps[part, :, 3:6], maps[part, :, 6:]
            offset = torch.baddbmm(offset, of_mean, x[:, :3].mean(2, keepdim=True))
            torch.bmm(torch.cat([matrix, offset], dim=2), x, out=y)
            for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
                y[:, channel].clamp_(-mean / std, (1 - mean) / std)  # black and white
        if weights is not None and (device.type != "cpu" or weights[start, 0] < 1):
            # Weights that sum to 1 blur a normalised image as they blur the image.
            out[part] = _blur(out[part], weights[part])
    return out


def colour_maps(colour: Tensor) -> Tensor:
    """(N, 4) factors -> (N, 3, 7): the maps of pixels in [0, 255] to normalised ones.

    A pixel x of an image with the mean m becomes A x + B m + t, with A, B and t side by side. In
    this order: brightness, contrast about the image's mean grey, saturation about the pixel's own
    grey, hue as a turn of the chroma plane of YIQ.
    """
    brightness, contrast, saturation, hue = colour.double().unbind(1)
    angle = 2 * math.pi * hue
    amounts = [1 - saturation, saturation, saturation * angle.cos(), saturation * angle.sin()]
    chroma = torch.einsum("an,aij->nij", torch.stack(amounts), _CHROMA)
    scale = (brightness * contrast)[:, None, None]
    # Contrast keeps the mean grey of the brightened image; grey passes chroma unchanged.
    lift = ((1 - contrast) * brightness)[:, None, None]
    std = torch.tensor(STD, dtype=torch.double)[:, None]
    offset = (-torch.tensor(MEAN, dtype=torch.double)[:, None] / std).expand(len(colour), 3, 1)
    both = torch.cat([scale * chroma, lift * _CHROMA[0]], dim=2) / (255 * std)
    return torch.cat([both, offset], dim=2).float()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; nothing waits for a GPU to have it."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _blur_weights(sigma: Tensor) -> Tensor:
    """(N,) deviations in pixels -> (N, BLUR_RADIUS + 1) weights by the distance from the centre."""
    distance = torch.arange(BLUR_RADIUS + 1)
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return weights / (2 * weights.sum(1, keepdim=True) - 1)


def _blur(x: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, H, W) blurred along both axes, each image with its own weights.

    Shifted sums: on CPU several times as fast as grouped convolutions.
    """
    shape = x.shape
    x = F.pad(x, [BLUR_RADIUS] * 4, mode="replicate")
    for axis in (2, 3):
        taps = [x.narrow(axis, at, shape[axis]) for at in range(2 * BLUR_RADIUS + 1)]
        x = taps[BLUR_RADIUS] * weights[:, 0, None, None, None]
        for distance in range(1, BLUR_RADIUS + 1):
            weight = weights[:, distance, None, None, None]
            x.addcmul_(taps[BLUR_RADIUS - distance], weight)
            x.addcmul_(taps[BLUR_RADIUS + distance], weight)
    return x

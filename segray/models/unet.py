"""UNet (Ronneberger, Fischer, Brox 2015, arXiv:1505.04597) with padded convolutions and batch norm.

Letters: N images, C channels, H and W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from segray.models.contract import check_images, check_num_classes, is_int, require

WEIGHTS = "model.safetensors"


class UNet(nn.Module):
    """(N, 3, H, W) float -> logits (N, K, H, W) for any H, W >= 32.

    The paper's figure 1 with three changes that have become the custom: convolutions are padded,
    so that logits have the size of the image; batch norm follows every 3x3 convolution; and sizes
    that 2**depth does not divide are padded at the right and bottom by repeating the edge, the
    logits cropped back. `encoder` is the contracting path, `decoder` and `head` are the rest.

    Args:
        num_classes: K.
        width: channels of the first stage; each of the `depth` stages below has twice as many.
        depth: how often the resolution is halved. At 5 an image of 32x32 ends as one pixel, from
            which batch norm cannot learn in a batch of 1.

    Raises:
        ModelError: a value outside its range; in `forward`, images that are too small.
    """

    name = "unet"

    def __init__(self, num_classes: int, *, width: int = 64, depth: int = 4) -> None:
        super().__init__()
        check_num_classes(num_classes)
        require(is_int(width, 1), "model.width of a unet", "an integer >= 1", width)
        require(is_int(depth, 1, 5), "model.depth of a unet", "an integer from 1 to 5", depth)
        self.num_classes = num_classes
        self.options: dict[str, Any] = {"width": width, "depth": depth}
        channels = [width * 2**stage for stage in range(depth + 1)]
        self.encoder = Encoder(channels)
        self.decoder = Decoder(channels)
        self.head = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K, H, W)."""
        return self.coarse(images)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, K, H, W): a UNet's logits are of the image's size as they are."""
        check_images(images)
        height, width = images.shape[-2:]
        multiple = 2 ** self.options["depth"]
        right, bottom = -width % multiple, -height % multiple
        if right or bottom:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        logits: torch.Tensor = self.head(self.decoder(self.encoder(images)))
        return logits[..., :height, :width]

    def save_weights(self, folder: Path, class_names: Sequence[str] | None) -> None:
        """Writes the state_dict; class names have no place in it."""
        # safetensors refuses the strides of channels_last
        tensors = {key: tensor.contiguous() for key, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


class Encoder(nn.Module):
    """(N, 3, H, W) -> one feature map a stage, finest first: (N, channels[i], H / 2^i, W / 2^i)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        inputs = [3, *channels[:-1]]
        self.stages = nn.ModuleList(
            _double_conv(before, after) for before, after in zip(inputs, channels, strict=True)
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """depth + 1 feature maps, each half the size of the one before it."""
        features = [self.stages[0](images)]
        for stage in self.stages[1:]:
            features.append(stage(F.max_pool2d(features[-1], kernel_size=2)))
        return features


class Decoder(nn.Module):
    """The encoder's feature maps, finest first -> (N, channels[0], H, W)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        steps = [(channels[i + 1], channels[i]) for i in reversed(range(len(channels) - 1))]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(before, after, kernel_size=2, stride=2) for before, after in steps
        )
        # the skip connection brings as many channels again
        self.stages = nn.ModuleList(_double_conv(2 * after, after) for _, after in steps)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """depth + 1 feature maps -> one of the first one's shape."""
        x = features[-1]
        for up, stage, skip in zip(self.ups, self.stages, reversed(features[:-1]), strict=True):
            x = stage(torch.cat([skip, up(x)], dim=1))
        return x


def load(folder: Path, num_classes: int, options: dict[str, Any]) -> UNet:
    """The UNet that `save_weights` wrote to `folder`; draws no random numbers."""
    with torch.device("meta"):  # the weights come from the file: skip initialising them
        model = UNet(num_classes, **options)
    # safetensors maps the file to unaligned addresses, where sums may round otherwise than in the
    # model that was saved: clone
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
    model.load_state_dict(tensors, assign=True)
    return model


build = UNet


def _double_conv(before: int, after: int) -> nn.Sequential:
    # no bias: the batch norm behind it would subtract it again
    return nn.Sequential(
        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )

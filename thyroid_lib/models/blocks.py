"""Shared parts of the networks: base class, 3x3 convolution blocks, 2x2 up-convolution."""

import math
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

PAPER_WIDTH = 64  # base channels in every paper


def conv_bn_relu(*channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, from channels[0] to channels[1] to …; keeps H and W."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def up_conv(before: int, after: int) -> nn.ConvTranspose2d:
    """2x2 transposed convolution of stride 2: doubles H and W."""
    return nn.ConvTranspose2d(before, after, 2, stride=2)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, in the precision of x: CUDA's autocast uses float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 2H, 2W)."""
        with torch.autocast("cuda", enabled=False) if x.is_cuda else nullcontext():
            return interpolate(x, scale_factor=2, mode="nearest")


class Unpool(nn.MaxUnpool2d):
    """Max-unpooling that keeps the memory layout: CUDA's returns the contiguous one."""

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """(N, C, H, W) and the indices of its max-pool → (N, C, 2H, 2W)."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        return super().forward(x, indices).contiguous(memory_format=layout)


class Network(nn.Module):
    """Base class of all networks: their arguments, and a check of the images they get.

    `width` is the number of channels of the first stage; all other counts scale with it.
    """

    divisor: int  # H and W must be multiples of it: 2 to the number of halvings

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__()
        self.in_channels = at_least_one("in_channels", in_channels)
        self.out_channels = at_least_one("out_channels", out_channels)
        self.width = at_least_one("width", width)

    def check(self, images: Tensor) -> None:
        """Raise ValueError, with what to do, unless images are (N, in_channels, H, W) that fit."""
        shape, name, step = tuple(images.shape), type(self).__name__, self.divisor
        if len(shape) != 4 or shape[1] != self.in_channels:
            need = f"images of shape (N, {self.in_channels}, H, W)"
            raise ValueError(f"{name} needs {need}, got {shape}: add an axis, or set in_channels")
        height, width = (max(1, math.ceil(side / step)) * step for side in shape[2:])
        if (height, width) != shape[2:]:
            got = f"got {shape[2]}x{shape[3]}; the nearest padded size is {height}x{width}"
            raise ValueError(f"{name} needs multiples of {step}, {got}: change `size`")


def at_least_one(name: str, value: int) -> int:
    """Return value; raise ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value

"""Deep Residual U-Net: Zhang, Liu, Wang 2018 (arXiv 1711.10684)."""

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network, Upsample


class ResidualUnit(nn.Module):
    """Pre-activation residual unit: BN-ReLU-conv-BN-ReLU-conv, plus a 1x1 shortcut without BN.

    A stride of 2 replaces pooling. The network's first unit has no leading BN and ReLU.
    """

    def __init__(self, before: int, after: int, stride: int = 1, first: bool = False):
        super().__init__()
        self.residual = nn.Sequential(
            *([] if first else [nn.BatchNorm2d(before), nn.ReLU()]),
            nn.Conv2d(before, after, 3, stride=stride, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
        )
        self.stride = stride
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) → (N, after, H/stride, W/stride)."""
        # Equal to a 1x1 convolution of that stride, whose gradient in channels_last corrupts the
        # heap at up to 8 channels on AVX-512 processors (torch 2.13, CPU).
        strided = x[:, :, :: self.stride, :: self.stride]
        # The first operand decides on the memory layout. A 1x1 convolution of one channel returns
        # the contiguous one, and then the whole network would leave channels_last.
        return self.residual(x) + self.shortcut(strided)


class ResUNet(Network):
    """Seven pre-activation residual units in a U; 8,219,713 parameters.

    Upsampling by 2 has no parameters and keeps the channels. It is nearest-neighbour: the paper
    names no kind, and the gradient of the bilinear one is not deterministic on CUDA.
    """

    divisor = 8

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.down1 = ResidualUnit(in_channels, w, first=True)
        self.down2 = ResidualUnit(w, 2 * w, stride=2)
        self.down3 = ResidualUnit(2 * w, 4 * w, stride=2)
        self.bridge = ResidualUnit(4 * w, 8 * w, stride=2)
        self.upsample = Upsample()
        self.up3 = ResidualUnit(8 * w + 4 * w, 4 * w)
        self.up2 = ResidualUnit(4 * w + 2 * w, 2 * w)
        self.up1 = ResidualUnit(2 * w + w, w)
        self.head = nn.Conv2d(w, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        x1 = self.down1(images)  # (N, 64, H, W)
        x2 = self.down2(x1)  # (N, 128, H/2, W/2)
        x3 = self.down3(x2)  # (N, 256, H/4, W/4)
        u = self.bridge(x3)  # (N, 512, H/8, W/8)
        u = self.up3(torch.cat([self.upsample(u), x3], 1))  # 768 → (N, 256, H/4, W/4)
        u = self.up2(torch.cat([self.upsample(u), x2], 1))  # 384 → (N, 128, H/2, W/2)
        u = self.up1(torch.cat([self.upsample(u), x1], 1))  # 192 → (N, 64, H, W)
        return self.head(u)


class EncodedResUNet(Network):
    """The Residual U-Net's decoder on an encoder, which may be pretrained.

    The encoder returns features with these numbers of channels, at sides of 1/reduction of the
    image's, the largest first, the last at 1/32. Images are normalised here, by mean and standard
    deviation of those that the encoder was trained on. The decoder doubles the deepest feature to
    full size and concatenates a feature wherever there is one of that size.
    """

    def __init__(
        self, encoder: nn.Module, channels: tuple[int, ...], reductions: tuple[int, ...],
        mean: float, std: float, in_channels: int, out_channels: int, width: int,
    ):  # fmt: skip
        super().__init__(in_channels, out_channels, width)
        self.encoder, self.upsample, self.units = encoder, Upsample(), nn.ModuleList()
        self.reductions, self.mean, self.std = reductions, mean, std
        self.divisor, before, w = reductions[-1], channels[-1], width
        features = dict(zip(reductions, channels, strict=True))
        for reduction, after in (16, 6 * w), (8, 4 * w), (4, 5 * w // 2), (2, 3 * w // 2), (1, w):
            self.units.append(ResidualUnit(before + features.get(reduction, 0), after))
            before = after
        self.head = nn.Conv2d(w, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        encoded = self.encoder((images - self.mean) / self.std)
        features, reduction = dict(zip(self.reductions, encoded, strict=True)), self.divisor
        u = features[reduction]  # (N, C, H/32, W/32)
        for unit in self.units:
            reduction //= 2
            u = self.upsample(u)
            u = unit(torch.cat([u, features[reduction]], 1) if reduction in features else u)
        return self.head(u)  # from (N, width, H, W)

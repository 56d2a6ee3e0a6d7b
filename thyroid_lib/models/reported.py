"""The networks that the reported study trained as SegNet and Residual U-Net: replication only."""

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network, Unpool, conv_bn_relu, up_conv


class SegNetReported(Network):
    """The reported study's "SegNet": 3 + 3 convolutions, 740,355 parameters.

    Its last block ends in a ReLU, so no probability is below 0.5. A prediction is therefore
    `prob > 0.5`, strictly, and BCE cannot fall below (1 - f)·ln 2, f the share of foreground.
    """

    divisor = 8
    last_relu = True

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.encode1 = conv_bn_relu(in_channels, w)
        self.encode2 = conv_bn_relu(w, 2 * w)
        self.encode3 = conv_bn_relu(2 * w, 4 * w)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = Unpool(2)
        self.decode3 = conv_bn_relu(4 * w, 2 * w)
        self.decode2 = conv_bn_relu(2 * w, w)
        self.decode1 = conv_bn_relu(w, out_channels)
        if not self.last_relu:
            self.decode1[-1] = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        x, indices1 = self.pool(self.encode1(images))  # (N, 64, H/2, W/2)
        x, indices2 = self.pool(self.encode2(x))  # (N, 128, H/4, W/4)
        x, indices3 = self.pool(self.encode3(x))  # (N, 256, H/8, W/8)
        x = self.decode3(self.unpool(x, indices3))  # (N, 128, H/4, W/4)
        x = self.decode2(self.unpool(x, indices2))  # (N, 64, H/2, W/2)
        return self.decode1(self.unpool(x, indices1))  # (N, out_channels, H, W)


class SegNetReportedNoReLU(SegNetReported):
    """The same without the last ReLU: its loss has no floor."""

    last_relu = False


class ReportedResidualUnit(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input, then ReLU; 1x1 shortcut only where channels change."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.residual = conv_bn_relu(before, after, after)[:-1]
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) → (N, after, H, W)."""
        # in this order: the first operand decides on the memory layout, see `ResidualUnit`
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResUNetReported(Network):
    """A U-Net of three levels with post-activation residual units; 8,047,361 parameters."""

    divisor = 8

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.down1 = ReportedResidualUnit(in_channels, w)
        self.down2 = ReportedResidualUnit(w, 2 * w)
        self.down3 = ReportedResidualUnit(2 * w, 4 * w)
        self.bottom = ReportedResidualUnit(4 * w, 8 * w)
        self.pool = nn.MaxPool2d(2)
        self.upconv3, self.up3 = up_conv(8 * w, 4 * w), ReportedResidualUnit(8 * w, 4 * w)
        self.upconv2, self.up2 = up_conv(4 * w, 2 * w), ReportedResidualUnit(4 * w, 2 * w)
        self.upconv1, self.up1 = up_conv(2 * w, w), ReportedResidualUnit(2 * w, w)
        self.head = nn.Conv2d(w, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        x1 = self.down1(images)  # (N, 64, H, W)
        x2 = self.down2(self.pool(x1))  # (N, 128, H/2, W/2)
        x3 = self.down3(self.pool(x2))  # (N, 256, H/4, W/4)
        u = self.bottom(self.pool(x3))  # (N, 512, H/8, W/8)
        u = self.up3(torch.cat([self.upconv3(u), x3], 1))  # (N, 256, H/4, W/4)
        u = self.up2(torch.cat([self.upconv2(u), x2], 1))  # (N, 128, H/2, W/2)
        u = self.up1(torch.cat([self.upconv1(u), x1], 1))  # (N, 64, H, W)
        return self.head(u)

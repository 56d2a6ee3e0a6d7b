"""U-Net: Ronneberger, Fischer, Brox 2015 (arXiv 1505.04597)."""

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network, conv_bn_relu, up_conv


class UNet(Network):
    """U-Net, padded and with batch norm as in the reported study; 31,042,369 parameters.

    Two 3x3 convolutions per stage, max-pool down, 2x2 up-convolution, concatenation with the
    encoder stage of the same size, 1x1 head.
    """

    divisor = 16

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.down1 = conv_bn_relu(in_channels, w, w)
        self.down2 = conv_bn_relu(w, 2 * w, 2 * w)
        self.down3 = conv_bn_relu(2 * w, 4 * w, 4 * w)
        self.down4 = conv_bn_relu(4 * w, 8 * w, 8 * w)
        self.bottom = conv_bn_relu(8 * w, 16 * w, 16 * w)
        self.pool = nn.MaxPool2d(2)
        self.upconv4, self.up4 = up_conv(16 * w, 8 * w), conv_bn_relu(16 * w, 8 * w, 8 * w)
        self.upconv3, self.up3 = up_conv(8 * w, 4 * w), conv_bn_relu(8 * w, 4 * w, 4 * w)
        self.upconv2, self.up2 = up_conv(4 * w, 2 * w), conv_bn_relu(4 * w, 2 * w, 2 * w)
        self.upconv1, self.up1 = up_conv(2 * w, w), conv_bn_relu(2 * w, w, w)
        self.head = nn.Conv2d(w, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        x1 = self.down1(images)  # (N, 64, H, W)
        x2 = self.down2(self.pool(x1))  # (N, 128, H/2, W/2)
        x3 = self.down3(self.pool(x2))  # (N, 256, H/4, W/4)
        x4 = self.down4(self.pool(x3))  # (N, 512, H/8, W/8)
        u = self.bottom(self.pool(x4))  # (N, 1024, H/16, W/16)
        u = self.up4(torch.cat([x4, self.upconv4(u)], 1))  # (N, 512, H/8, W/8)
        u = self.up3(torch.cat([x3, self.upconv3(u)], 1))  # (N, 256, H/4, W/4)
        u = self.up2(torch.cat([x2, self.upconv2(u)], 1))  # (N, 128, H/2, W/2)
        u = self.up1(torch.cat([x1, self.upconv1(u)], 1))  # (N, 64, H, W)
        return self.head(u)

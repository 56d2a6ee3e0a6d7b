"""SegNet: Badrinarayanan, Kendall, Cipolla 2017 (arXiv 1511.00561)."""

from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network, Unpool, conv_bn_relu


class SegNet(Network):
    """VGG16's 13 convolutions and 13 in mirror image; 29,442,433 parameters.

    The decoder gets the INDICES of each max-pool, which put values back where they came from, and
    no feature maps. The last convolution is linear.

    `torch.use_deterministic_algorithms(True)` refuses max-unpooling in general. Here the windows do
    not overlap, so no index repeats and the result is deterministic: use `warn_only=True`.
    """

    divisor = 32

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.encode1 = conv_bn_relu(in_channels, w, w)
        self.encode2 = conv_bn_relu(w, 2 * w, 2 * w)
        self.encode3 = conv_bn_relu(2 * w, 4 * w, 4 * w, 4 * w)
        self.encode4 = conv_bn_relu(4 * w, 8 * w, 8 * w, 8 * w)
        self.encode5 = conv_bn_relu(8 * w, 8 * w, 8 * w, 8 * w)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = Unpool(2)
        self.decode5 = conv_bn_relu(8 * w, 8 * w, 8 * w, 8 * w)
        self.decode4 = conv_bn_relu(8 * w, 8 * w, 8 * w, 4 * w)
        self.decode3 = conv_bn_relu(4 * w, 4 * w, 4 * w, 2 * w)
        self.decode2 = conv_bn_relu(2 * w, 2 * w, w)
        self.decode1 = conv_bn_relu(w, w)
        self.head = nn.Conv2d(w, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        x, indices1 = self.pool(self.encode1(images))  # (N, 64, H/2, W/2)
        x, indices2 = self.pool(self.encode2(x))  # (N, 128, H/4, W/4)
        x, indices3 = self.pool(self.encode3(x))  # (N, 256, H/8, W/8)
        x, indices4 = self.pool(self.encode4(x))  # (N, 512, H/16, W/16)
        x, indices5 = self.pool(self.encode5(x))  # (N, 512, H/32, W/32)
        x = self.decode5(self.unpool(x, indices5))  # (N, 512, H/16, W/16)
        x = self.decode4(self.unpool(x, indices4))  # (N, 256, H/8, W/8)
        x = self.decode3(self.unpool(x, indices3))  # (N, 128, H/4, W/4)
        x = self.decode2(self.unpool(x, indices2))  # (N, 64, H/2, W/2)
        x = self.decode1(self.unpool(x, indices1))  # (N, 64, H, W)
        return self.head(x)

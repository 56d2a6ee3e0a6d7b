"""The networks under comparison, each as its paper draws it, and what a fair comparison shares.

Shapes are written for the papers' width w = 64, images (N, 1, H, W). Every network takes
(in_channels, out_channels, width), returns logits (N, out_channels, H, W), never probabilities, and
has a bias in every convolution. Weights start from one scheme, `initialise`; nothing but the
architecture differs between two models built here.

    model = build_model("unet", width=16)
    initialise(model, seed=0)
    logits = model(image)

Sources: Ronneberger, Fischer, Brox 2015 (arXiv 1505.04597); Badrinarayanan, Kendall, Cipolla 2017
(arXiv 1511.00561); Zhang, Liu, Wang 2018 (arXiv 1711.10684). The two `*_reported` networks are
what the reported study trained under those names; they serve its replication alone, as does
`segnet_reported_no_relu`, the second of them without its last ReLU.
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

PAPER_WIDTH = 64


def conv_bn_relu(*channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, from channels[0] to channels[1] to …; keeps H and W."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def up_conv(before: int, after: int) -> nn.ConvTranspose2d:
    """2x2 transposed convolution of stride 2: doubles H and W."""
    return nn.ConvTranspose2d(before, after, 2, stride=2)


class Network(nn.Module):
    """What all share: their arguments, and the check of what they are given.

    Args:
        in_channels, out_channels: at least 1.
        width: channels of the first stage, at least 1; all other counts scale with it. 64 in
            every paper.

    Raises:
        ValueError: an argument is not a whole number of at least 1.
    """

    divisor: int  # H and W must be multiples of it: 2 to the number of halvings

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__()
        self.in_channels = at_least_one("in_channels", in_channels)
        self.out_channels = at_least_one("out_channels", out_channels)
        self.width = at_least_one("width", width)

    def check(self, images: Tensor) -> None:
        """Raise ValueError, with what to do, unless images are (N, in_channels, H, W) that fit."""
        shape, name = tuple(images.shape), type(self).__name__
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(
                f"{name} needs images of shape (N, {self.in_channels}, H, W), got {shape}; "
                "add the missing axis or build the model with another in_channels"
            )
        height, width = shape[2:]
        if min(height, width) < 1 or height % self.divisor or width % self.divisor:
            padded = [max(1, math.ceil(side / self.divisor)) * self.divisor for side in shape[2:]]
            raise ValueError(
                f"{name} needs height and width that are multiples of {self.divisor}, got "
                f"{height}x{width}; the nearest padded size is {padded[0]}x{padded[1]}: change "
                "`size` in the parameters"
            )


def at_least_one(name: str, value: int) -> int:
    """Return value; raise ValueError unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


class UNet(Network):
    """U-Net (Ronneberger 2015), padded and with batch norm: the reported U-Net exactly.

    Two 3x3 convolutions a stage, max-pool down, 2x2 up-convolution, concatenation with the stage
    across; 1x1 head. 31,042,369 parameters.
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


class SegNet(Network):
    """SegNet (Badrinarayanan 2017): VGG16's 13 convolutions, and 13 in mirror image.

    What crosses over is the INDICES of each max-pool, which put the values back where they came
    from; no feature map does. The last convolution is linear. 29,442,433 parameters.

    `torch.use_deterministic_algorithms(True)` refuses max-unpooling on principle; here the windows
    do not overlap, so no index repeats and the result is deterministic: use `warn_only=True`.
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
        self.unpool = nn.MaxUnpool2d(2)
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


class ResidualUnit(nn.Module):
    """Pre-activation residual unit: BN-ReLU-conv-BN-ReLU-conv, plus a 1x1 shortcut without BN.

    A stride of 2 (first convolution and shortcut) takes the place of pooling. The first unit of
    the network starts with its convolution: an image is nothing to normalise and rectify.
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
        # The same as a 1x1 convolution of that stride, whose gradient in channels_last corrupts
        # the heap at up to 8 channels on AVX-512 processors (torch 2.13, CPU).
        kept = x[:, :, :: self.stride, :: self.stride]
        return self.shortcut(kept) + self.residual(x)


class ResUNet(Network):
    """Deep Residual U-Net (Zhang 2018): seven pre-activation residual units in a U.

    The upsampling by 2 has no parameters and keeps the channels; nearest, since the paper names no
    kind and the gradient of the bilinear one is not deterministic on CUDA. 8,219,713 parameters.
    """

    divisor = 8

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = PAPER_WIDTH):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.down1 = ResidualUnit(in_channels, w, first=True)
        self.down2 = ResidualUnit(w, 2 * w, stride=2)
        self.down3 = ResidualUnit(2 * w, 4 * w, stride=2)
        self.bridge = ResidualUnit(4 * w, 8 * w, stride=2)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
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


class SegNetReported(Network):
    """What the reported study called SegNet: 3 + 3 convolutions. Replication only.

    Its last block is conv-BN-ReLU like the others, so its logits are never below 0 and its
    probabilities never below 0.5, exactly 0.5 wherever the ReLU cuts: a prediction is
    `prob > 0.5`, strictly, and BCE cannot fall below (1 - f)·ln 2, f the masks' share of
    foreground. `last_relu=False` is the same network, and the same 740,355 parameters, without
    that floor.
    """

    divisor = 8

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        width: int = PAPER_WIDTH,
        *,
        last_relu: bool = True,
    ):
        super().__init__(in_channels, out_channels, width)
        w = width
        self.encode1 = conv_bn_relu(in_channels, w)
        self.encode2 = conv_bn_relu(w, 2 * w)
        self.encode3 = conv_bn_relu(2 * w, 4 * w)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.decode3 = conv_bn_relu(4 * w, 2 * w)
        self.decode2 = conv_bn_relu(2 * w, w)
        self.decode1 = conv_bn_relu(w, out_channels)
        if not last_relu:
            self.decode1[-1] = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W), ≥ 0 with `last_relu`."""
        self.check(images)
        x, indices1 = self.pool(self.encode1(images))  # (N, 64, H/2, W/2)
        x, indices2 = self.pool(self.encode2(x))  # (N, 128, H/4, W/4)
        x, indices3 = self.pool(self.encode3(x))  # (N, 256, H/8, W/8)
        x = self.decode3(self.unpool(x, indices3))  # (N, 128, H/4, W/4)
        x = self.decode2(self.unpool(x, indices2))  # (N, 64, H/2, W/2)
        return self.decode1(self.unpool(x, indices1))  # (N, out_channels, H, W)


class ReportedResidualUnit(nn.Module):
    """conv-BN-ReLU-conv-BN plus the input, then ReLU; 1x1 shortcut only where channels change."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) → (N, after, H, W)."""
        return torch.relu(self.shortcut(x) + self.residual(x))


class ResUNetReported(Network):
    """What the reported study called Residual U-Net; 8,047,361 parameters. Replication only.

    A U-Net of three levels whose stages are post-activation residual units, with max-pooling and
    transposed convolutions.
    """

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


MODELS = {
    "unet": UNet,
    "segnet": SegNet,
    "resunet": ResUNet,
    "segnet_reported": SegNetReported,
    "resunet_reported": ResUNetReported,
    "segnet_reported_no_relu": partial(SegNetReported, last_relu=False),
}


def build_model(
    name: str, in_channels: int = 1, out_channels: int = 1, width: int | None = None
) -> Network:
    """Build a network by name; `initialise` then sets its weights.

    width is the number of base channels; None or 0 means the paper's 64.

    Raises:
        ValueError: unknown name (the message lists the choices), or a width or channel count
            below 1.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    if width is None or (width == 0 and not isinstance(width, bool)):
        width = PAPER_WIDTH
    return MODELS[name](in_channels, out_channels, width)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a network computes in this precision.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}, need one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, PRECISIONS[precision])


def to_input(images: Tensor) -> Tensor:
    """Turn uint8 (N,H,W) into what every model takes: float32 (N,1,H,W) in [0,1]."""
    image = images.unsqueeze(1).float().div_(255)  # (N,1,H,W)
    return image.contiguous(memory_format=torch.channels_last)


def initialise(model: nn.Module, seed: int) -> None:
    """Set all weights, in place, by the one scheme that every model shares.

    It is PyTorch's own default, which the reported study used: convolutions and their biases
    uniform within ±1/sqrt(fan_in), batch norm 1 and 0 with fresh running statistics; what else a
    network of one's own has is set by its layers' `reset_parameters`. Drawn in
    module order on the CPU: the same seed gives the same weights on any device, and the global
    random state is left as it was.
    """
    device = next(model.parameters()).device
    model.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    model.to(device)


def count_parameters(model: nn.Module) -> int:
    """Number of weights and biases, those of batch norm included."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: Network, size: int) -> int:
    """Multiply-adds for one image (1, in_channels, size, size), without biases.

    Those of convolutions and linear layers; no other layer of the papers' networks has any.

    Counted from shapes alone (torch's "meta" device): nothing is computed, the model is untouched.

    Raises:
        ValueError: size is not a multiple of the model's divisor.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # each weight is used once per output pixel; in a transposed convolution, per input pixel
        nonlocal total
        if isinstance(layer, nn.Linear):  # (…, features), tokens or windows of the one image
            total += layer.weight.numel() * math.prod(output.shape[:-1])
            return
        pixels = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        total += layer.weight.numel() * pixels.shape[0] * math.prod(pixels.shape[2:])

    shapes = copy.deepcopy(model).to("meta").eval()
    for layer in shapes.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        shapes(torch.empty(1, model.in_channels, size, size, device="meta"))
    return total

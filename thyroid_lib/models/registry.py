"""Networks by name; their initial weights, input, precision and cost."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from thyroid_lib.models import encoder_names, encoders, user_networks
from thyroid_lib.models.blocks import PAPER_WIDTH, Network
from thyroid_lib.models.reported import ResUNetReported, SegNetReported, SegNetReportedNoReLU
from thyroid_lib.models.resunet import ResUNet
from thyroid_lib.models.segnet import SegNet
from thyroid_lib.models.unet import UNet

MODELS = {
    "unet": UNet,
    "segnet": SegNet,
    "resunet": ResUNet,
    "segnet_reported": SegNetReported,
    "resunet_reported": ResUNetReported,
    "segnet_reported_no_relu": SegNetReportedNoReLU,
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_model(
    name: str, in_channels: int = 1, out_channels: int = 1, width: int | None = None
) -> Network:
    """Build a network of the library or of a user by name; `initialise` then sets its weights.

    A width of None or 0 is the papers' 64. ValueError: unknown name, or a file that does not fit.
    Names with a colon: `encoder_names`.
    """
    if ":" in name:
        return encoders.build(name, in_channels, out_channels, width or 0)
    own, counts = user_networks.files(), (in_channels, out_channels, width or PAPER_WIDTH)
    file = f"{user_networks.FOLDER}/{name}.py"
    if name in own and name in MODELS:
        raise ValueError(f"{file} has the name of a network of the library: rename the file")
    if name in own:
        return user_networks.build(name, *counts)
    if name not in MODELS:
        known = ", ".join([*MODELS, encoder_names.FORMS, *own])
        advice = f"choose one of {known}, or write {file} ({user_networks.HELP})"
        raise ValueError(f"unknown model {name!r}; {advice}")
    return MODELS[name](*counts)


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a network computes in this precision, a key of `PRECISIONS`."""
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
    """Set all weights, in place, by PyTorch's default scheme, which the reported study used.

    The same seed gives the same weights on any device; the global random state is left alone.
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
    """Multiply-adds for one image (1, in_channels, size, size), biases not counted."""
    shapes = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes(torch.empty(1, model.in_channels, size, size, device="meta"))
    return counter.get_total_flops() // 2  # it counts two operations for each

"""Networks by name, their common initial weights, precision and size.

model = build_model("unet", width=16)
initialise(model, seed=0)
logits = model(image)  # (N,1,H,W) in [0,1] → (N,1,H,W), never probabilities
"""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from thyroid_lib.models.blocks import PAPER_WIDTH, Network
from thyroid_lib.models.reported import ResUNetReported, SegNetReported
from thyroid_lib.models.resunet import ResUNet
from thyroid_lib.models.segnet import SegNet
from thyroid_lib.models.unet import UNet

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

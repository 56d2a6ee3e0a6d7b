"""Memory layout and precision of the networks on a GPU, checked without one, on fake tensors.

Fake tensors (torch's FakeTensorMode) have CUDA's dispatch, shapes, types and strides, no values.
"""

import ctypes
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from thyroid_lib.models import MODELS, build_model, to_input

pytestmark = pytest.mark.study  # fake tensors take seconds to import


@pytest.fixture
def fake_cuda(monkeypatch):
    """Let torch without CUDA dispatch fake tensors as CUDA's, with cuDNN's choice of layout."""
    if not torch.cuda.is_available():
        try:  # a torch without CUDA has no guard that enters its devices: the CPU's does nothing
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
            name = "_ZN3c104impl26device_guard_impl_registryE"
            guards = (ctypes.c_void_p * 2).in_dll(library, name)  # of CPU and CUDA
        except (OSError, ValueError) as error:
            pytest.skip(f"this torch cannot imitate CUDA: {error}")
        guards[1] = guards[0]

    def cudnn_layout(image, weight, backend):
        either = is_last(image) or is_last(weight)
        return torch.channels_last if either else torch.contiguous_format

    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", cudnn_layout)
    yield
    if not torch.cuda.is_available():
        guards[1] = None


def is_last(x: torch.Tensor) -> bool:
    """Whether a tensor's strides say channels_last; those of one channel, 1x1, say neither."""
    least, strides = 0, x.stride()
    for axis in (1, 3, 2, 0):
        if strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * x.shape[axis]
    return True


class Watch(TorchDispatchMode):
    """Collects convolutions whose input is not channels_last, and activations in float32."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.contiguous, self.wide = 0, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function is torch.ops.aten.convolution.default:
            self.convolutions += 1
            if not is_last(args[0]):
                self.contiguous.append(args[0].shape[1])  # channels
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.dim() == 4 and each.dtype == torch.float32:
                self.wide.append((str(function), each.shape[1]))
        return result


def on_fake_cuda(net: torch.nn.Module) -> torch.nn.Module:
    """Replace all tensors of a network on the meta device by fake ones on CUDA."""
    for module in net.modules():
        for kind in (module._parameters, module._buffers):
            for name, x in kind.items():
                if x is not None:
                    how = {"dtype": x.dtype, "device": "cuda"}
                    fake = torch.empty_strided(x.shape, x.stride(), **how)
                    kind[name] = torch.nn.Parameter(fake) if kind is module._parameters else fake
    return net.train()


@pytest.mark.parametrize("name", [*MODELS, "resunet:tf_efficientnet_lite0"])
def test_under_autocast_all_is_bf16_and_channels_last_but_the_single_channel(fake_cuda, name):
    with torch.device("meta"):
        net = build_model(name, width=8).to(memory_format=torch.channels_last)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = on_fake_cuda(net)
        image = to_input(torch.empty(2, 64, 64, dtype=torch.uint8, device="cuda"))
        try:  # torch.autocast refuses where there is no CUDA
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            with Watch() as seen:
                logits = net(image)
        finally:
            torch.set_autocast_enabled("cuda", False)
    assert (logits.dtype, logits.device.type) == (torch.bfloat16, "cuda")
    kinds = torch.nn.Conv2d, torch.nn.ConvTranspose2d
    assert seen.convolutions == sum(isinstance(module, kinds) for module in net.modules())
    # the stem's 3x3 convolution and, in residual networks, its 1x1 shortcut read the image itself
    assert seen.contiguous in ([1], [1, 1])  # numbers of channels
    assert {channels for _, channels in seen.wide} <= {1}, seen.wide

"""The limit: how fast this machine multiplies matrices, convolves and copies, by itself.

A training step of a network cannot be faster than its arithmetic at the rate at which the machine
multiplies large matrices in the same precision. That share is what `training` and `cost` state.
"""

import time
from collections.abc import Callable

import torch

from thyroid_lib.models import PRECISIONS, Network, multiply_adds
from timing import figure

SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
COPY_MIB = {"cpu": 512, "cuda": 4096}
BATCH = 16
# channels in, channels out, side: the stages of a U-Net of width 16 (CPU) and 64 (GPU) at 256 px
SHAPES = {
    "cpu": ((16, 16, 256), (32, 32, 128), (64, 64, 64), (128, 128, 32), (256, 256, 16)),
    "cuda": ((64, 64, 256), (128, 128, 128), (256, 256, 64), (512, 512, 32), (1024, 1024, 16)),
}


def precisions(device: torch.device) -> list[str]:
    """fp16 is for GPUs: most CPUs compute it as fp32, and convert."""
    return ["fp32", "bf16"] + (["fp16"] if device.type == "cuda" else [])


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def fastest(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of one call: the fastest of all that fit into so many seconds, after a warm-up."""
    calls, best = 1, float("inf")
    for _ in range(3):
        work()
    wait(device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        took = time.perf_counter() - began
        best = min(best, took / calls)
        calls = calls if took > 0.02 else 2 * calls  # short kernels queue up on a GPU
    return best


def gemm_rate(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """Operations a second (a multiplication and an addition are two) of a large matrix product.

    On a GPU fp32 is what convolutions of fp32 tensors use by PyTorch's default: TF32.
    """
    side = SIDE["cuda" if device.type == "cuda" else "cpu"]
    a, b = (torch.randn(side, side, device=device).to(PRECISIONS[precision]) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * side**3 / fastest(lambda: torch.mm(a, b), device, seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def conv_rate(device, shape, precision: str, layout: torch.memory_format, seconds: float) -> float:
    """Operations a second of a 3x3 convolution, forward alone."""
    before, after, side = shape
    x = torch.randn(BATCH, before, side, side, device=device).to(PRECISIONS[precision])
    convolve = torch.nn.Conv2d(before, after, 3, padding=1).to(device, PRECISIONS[precision])
    x, convolve = x.contiguous(memory_format=layout), convolve.to(memory_format=layout)
    with torch.inference_mode():
        took = fastest(lambda: convolve(x), device, seconds)
    return 2 * 9 * before * after * side**2 * BATCH / took


def copy_rate(device: torch.device, mib: int, seconds: float) -> float:
    """Bytes a second, read and written, of copying a tensor too large for any cache."""
    source = torch.zeros(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device, seconds)


def step_operations(net: Network, size: int) -> int:
    """Operations of one training step per frame: forward, and twice that backward."""
    return 3 * 2 * multiply_adds(net, size)


def measure(asked) -> dict:
    """Measure all of it; `asked` is the command's arguments, see bench.py."""
    device, kind = asked.device, "cuda" if asked.device.type == "cuda" else "cpu"
    seconds = 0.05 if asked.quick else 1.0
    gemm = {p: gemm_rate(device, p, seconds) for p in precisions(device)}
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    convolutions = [
        {"shape": shape, "precision": precision, "layout": name,
         "rate": conv_rate(device, shape, precision, layout, seconds / 2)}
        for shape in (SHAPES[kind][1::3] if asked.quick else SHAPES[kind])
        for precision in precisions(device)
        for name, layout in layouts.items()
    ]  # fmt: skip
    copied = copy_rate(device, 64 if asked.quick else COPY_MIB[kind], seconds)
    return {"gemm": gemm, "convolutions": convolutions, "copy": copied, "side": SIDE[kind]}


def show(found: dict) -> str:
    """The tables, in Markdown."""
    rates = ", ".join(f"{figure(rate / 1e9)} ({p})" for p, rate in found["gemm"].items())
    side = found["side"]
    lines = [
        f"Product of two {side}×{side} matrices, in billion operations a second: {rates}. "
        f"Copying memory: {figure(found['copy'] / 1e9)} GB/s, read and written.",
        "",
        f"3×3 convolution, {BATCH} frames, forward, in billion operations a second:",
        "",
    ]
    kinds = list(dict.fromkeys((c["precision"], c["layout"]) for c in found["convolutions"]))
    rows = {}
    for each in found["convolutions"]:
        before, after, size = each["shape"]
        at = rows.setdefault(f"{before} → {after} channels, {size}×{size} px", {})
        at[each["precision"], each["layout"]] = figure(each["rate"] / 1e9)
    lines += [f"| stage | {' | '.join(' '.join(kind) for kind in kinds)} |"]
    lines += [f"|:--|{'--:|' * len(kinds)}"]
    lines += [f"| {stage} | {' | '.join(at[k] for k in kinds)} |" for stage, at in rows.items()]
    return "\n".join(lines)


def reached(found: dict) -> dict:
    """No goal of its own."""
    return {}


def peaks(device: torch.device, quick: bool) -> dict[str, float]:
    """What shares are taken of, measured anew beside what is measured: the best of three."""
    seconds = 0.05 if quick else 0.5
    return {
        precision: max(gemm_rate(device, precision, seconds) for _ in range(3))
        for precision in precisions(device)
    }

"""Where the networks run and in which precision: what this machine has, or what was asked for."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from thyroid_lib.files.locks import visible_gpus
from thyroid_lib.files.writing import print_note
from thyroid_lib.models import PRECISIONS


def choose_device(device: str = "auto") -> torch.device:
    """Turn "auto" into CUDA, Apple's mps or the CPU, the first that is there and works.

    Raises:
        ValueError: a device was asked for by name and is not there, or torch cannot use it.
        RuntimeError: a GPU that torch could use fails now, see `gpu_problem`.
    """
    problem = gpu_problem() if device in ("auto", "cuda") else ""
    there = {
        "cuda": torch.cuda.is_available() and not problem,
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        chosen = next(name for name, present in there.items() if present)
        if problem:
            print_note(f"{problem}; {chosen} is used instead")
        return torch.device(chosen)
    if not there.get(device, False):
        usable = ", ".join(name for name, present in there.items() if present)
        why = f": {problem}" if problem else ""
        raise ValueError(f"device: got {device!r}, this machine has {usable}; or say auto{why}")
    return torch.device(device)


@cache
def gpu_problem() -> str:
    """Say why torch cannot use the GPU that is here; "" if it can, or if there is none.

    A GPU can be listed and yet be of no use: torch has code for some generations alone, and says so
    only when something is computed. So something is.

    Raises:
        RuntimeError: it fails otherwise, for want of memory say, which may pass.
    """
    if not torch.cuda.is_available():
        if not visible_gpus():
            return ""
        how = "has no CUDA in it" if torch.version.cuda is None else "cannot reach its driver"
        return f"a GPU is here, but torch {torch.__version__} {how}"
    name, version = torch.cuda.get_device_name(), torch.__version__
    try:
        ones = torch.ones(1, 4, 8, 8, device="cuda")
        total = torch.nn.functional.conv2d(ones, ones[:, :, :3, :3]).sum().item()
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        if "no kernel image" not in why:  # in use by others, out of memory, broken: it may pass
            raise RuntimeError(
                f"{name} is here, but torch {version} cannot compute on it ({why}): end what else "
                "uses it, or set device to cpu"
            ) from error
        major, minor = torch.cuda.get_device_capability()
        codes = ", ".join(torch.cuda.get_arch_list())
        return (
            f"{name} (sm_{major}{minor}) is here, but torch {version} cannot use it (it has code "
            f"for {codes} alone): take another GPU, on Kaggle the T4 under Settings, Accelerator"
        )
    return "" if total == 36 * 36 else f"{name} is here, but computes {total:g} for {36 * 36}"


def choose_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision that this device is fast at.

    "bf16" on CUDA of compute capability 8 (A100, L4) and up, and on a CPU with instructions of its
    own for it that are not switched off; "fp16" on CUDA from 7 (V100, T4), where the loss is
    scaled; "fp32" anywhere else. It is the network's alone: weights, loss and optimiser are float32
    always. In "fp32" too, cuDNN may round what it multiplies to TF32, as torch lets it.

    Raises:
        ValueError: an unknown precision.
    """
    if precision in PRECISIONS:
        return precision
    if precision != "auto":
        raise ValueError(f"precision: got {precision!r}, need auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Say whether the CPU multiplies in bf16 by itself; one that does not is slower in it."""
    # the capability in use, which environment variables may hold down, as a pinned study's do
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        return bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    except AttributeError:  # an older torch
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def fits(device: torch.device, needed: int) -> bool:
    """Say whether so many bytes should be kept on the device: in half of what is free there."""
    return device.type == "cuda" and needed <= torch.cuda.mem_get_info(device)[0] // 2


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's own count on CUDA, the process's resident peak elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


@contextmanager
def out_of_memory(device: torch.device, **settings) -> Iterator[None]:
    """Turn a device's lack of memory into a sentence that says what to lower.

    Args:
        settings: what was asked for, by the names of the parameters.

    Raises:
        RuntimeError: the memory did not suffice; any other error goes on as it is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        texts = "CUDA error: out of memory", "backend out of memory", "ALLOC_FAILED"
        texts += "can't allocate memory", "not enough memory"
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(
            text in str(error) for text in texts
        ):
            raise
        what = ", ".join(f"{name} {value}" for name, value in settings.items())
        there = ""
        if device.type == "cuda" and torch.cuda.is_available():
            free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info(device))
            there = f" ({free:.1f} of {total:.1f} GiB are free now)"
        lower = [name for name in ("batch_size", "width", "size") if name in settings]
        raise RuntimeError(
            f"device {device.type} has too little memory{there} for {what}: lower "
            f"{', or else '.join(lower)}; precision bf16 or fp16 takes less than fp32; or end what "
            "else uses the device, or set device to cpu"
        ) from error

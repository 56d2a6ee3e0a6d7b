"""Device, precision and memory of a training."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from thyroid_lib.files.locks import visible_gpus
from thyroid_lib.files.machine import processor_name
from thyroid_lib.files.writing import print_note


def choose_device(device: str = "auto") -> torch.device:
    """Turn "auto" into CUDA, Apple's mps or the CPU; ValueError: the named one cannot be used."""
    problem = gpu_problem() if device in ("auto", "cuda") else ""
    names = ["cuda"] if torch.cuda.is_available() and not problem else []
    names += ["mps", "cpu"] if torch.backends.mps.is_available() else ["cpu"]
    if device == "auto" and problem:
        print_note(f"{problem}; {names[0]} is used instead")
    if device not in ("auto", *names):
        needed = f"this machine has {', '.join(names)}; or say auto{problem and f': {problem}'}"
        raise ValueError(f"device: got {device!r}, {needed}")
    return torch.device(names[0] if device == "auto" else device)


@cache
def gpu_problem() -> str:
    """Say why torch cannot use this machine's GPU; "" if it can, or if there is none.

    torch lists GPUs that it has no code for, and fails at the first operation: one is tried here.
    """
    version = torch.__version__
    if not torch.cuda.is_available():
        lacks = "has no CUDA in it" if torch.version.cuda is None else "cannot reach its driver"
        return f"a GPU is here, but torch {version} {lacks}" if visible_gpus() else ""
    here = f"{torch.cuda.get_device_name()} is here, but torch {version} cannot"
    try:
        ones = torch.ones(1, 4, 8, 8, device="cuda")
        torch.nn.functional.conv2d(ones, ones[:, :, :3, :3]).sum().item()  # waits for the result
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "no kernel image" in reason:
            has = f"it has code for {', '.join(torch.cuda.get_arch_list())} alone"
            return f"{here} use it ({has}): take another GPU, on Kaggle the T4"
        advice = "end what else uses it, or set device to cpu"
        raise RuntimeError(f"{here} compute on it ({reason}): {advice}") from error
    return ""


def choose_precision(precision: str, device: torch.device) -> str:
    """Turn "auto" into the precision that this device is fast at; another one stays.

    "bf16" on CUDA of compute capability 8 (A100, L4) and up and on a CPU with instructions for it;
    "fp16", with a scaled loss, on CUDA of capability 7 (V100, T4); else "fp32". Weights, loss and
    optimiser are float32 always.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether torch may use this CPU's bf16 instructions; without them bf16 is slower than fp32."""
    # The capability in use: environment variables, such as those of a pinned study, may lower it.
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return allowed and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def can_do(setting: str, device: torch.device) -> bool:
    """Return whether "compile" or "cuda_graph" works on this device; if not, a note says why."""
    problem = ""
    if setting == "cuda_graph" and device.type != "cuda":
        problem = f"it needs an NVIDIA GPU, and device is {device.type}"
    if setting == "compile" and device.type == "cpu" and "ATEN_CPU_CAPABILITY" in os.environ:
        problem = "it ignores pin_instructions, and its kernels beside pinned ones give NaN"
    elif setting == "compile":
        try:
            torch.compile(lambda x: x.relu() + 1)(torch.ones(8, device=device))
        except Exception as error:  # of many kinds: no compiler, no Triton, a GPU that is too old
            reason = next(filter(None, str(error).splitlines()), "")
            problem = f"{type(error).__name__}: {reason}"
    if problem:
        print_note(f"{setting} cannot be used here ({problem}); the training goes on without it")
    return not problem


def describe_machine(device: torch.device) -> dict:
    """Return what a run's bits and speed depend on: system, processor, its instructions, GPU.

    processor: its model name, "AMD EPYC"; capability: the instructions that torch uses, "AVX2".
    """
    machine = {"system": platform.system(), "architecture": platform.machine()}
    machine |= {"processor": processor_name()}
    machine |= {"capability": torch.backends.cpu.get_cpu_capability(), "bf16": cpu_has_bf16()}
    return machine | ({"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {})


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` begin anew on CUDA, after other runs in this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's own count on CUDA, the process's resident peak elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


@contextmanager
def out_of_memory(device: torch.device, **settings) -> Iterator[None]:
    """Turn a lack of memory into a RuntimeError that says which of the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = "out of memory", "ALLOC_FAILED", "can't allocate memory", "not enough memory"
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in known):
            raise
        given = ", ".join(f"{name} {value}" for name, value in settings.items())
        lower = ", or else ".join(n for n in ("batch_size", "width", "size") if n in settings)
        what = f"device {device.type} has too little memory for {given}: lower {lower}"
        raise RuntimeError(f"{what}, or set device to cpu") from error

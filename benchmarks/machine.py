"""What a result was measured on: processor, memory, GPU and versions; no path, host or user."""

import importlib.metadata
import os
import platform
import re
from datetime import date
from pathlib import Path

import torch

from thyroid_lib.files.parallel import cores

PACKAGES = (
    "torch", "torchvision", "monai", "segmentation-models-pytorch", "torchmetrics", "pillow",
    "numpy", "scipy", "snakemake",
)  # fmt: skip


def describe() -> dict:
    """The machine, and a `slug` of it that names its file of results."""
    about = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": (count := cores()),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30)}
        about |= {"cuda": torch.version.cuda}
    words = f"{about['processor']} {count} cores {about.get('gpu', '')}"
    return about | {"slug": re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")}


def circumstances(command: str) -> dict:
    """When and with what one section was measured."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return {"date": date.today().isoformat(), "command": command, "versions": versions}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*:\s*(.+)", text).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0

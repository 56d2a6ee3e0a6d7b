"""Name of this machine's processor."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return its model name, "AMD EPYC", of Linux's /proc/cpuinfo; elsewhere as Python has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()

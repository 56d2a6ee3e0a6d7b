"""Measurement for all sections: time in turns with its spread, memory of a process, peak rate.

Things that are compared take turns in one process, and every repeat begins with another of them. A
ratio is taken within a repeat; reported is the median with the lowest and the highest.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from thyroid_lib.models import PRECISIONS, Network, multiply_adds

HERE = Path(__file__).parent
median = statistics.median


def take_turns(turns: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each of `turns` once a repeat, beginning with another each time; return all answers."""
    answers = {name: [] for name in turns}
    for name in order_of_turns(list(turns), repeats):
        answers[name].append(turns[name]())
    return answers


def order_of_turns(names: list[str], repeats: int) -> list[str]:
    """All names once a repeat, beginning with another each time."""
    shifts = [repeat % len(names) for repeat in range(repeats)] if names else []
    return [name for shift in shifts for name in names[shift:] + names[:shift]]


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    began = clock()
    work()
    return clock() - began


def ratios(above: list[float], below: list[float]) -> list[float]:
    """The ratio of each repeat."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: list[float], digits: int = 3) -> str:
    """Median (lowest–highest), with this many significant digits: "1.93 (1.88–1.97)"."""
    low, middle, high = (figure(v, digits) for v in (min(values), median(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def figure(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and no exponent: 0.0123, 1.93, 152."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # after rounding: 99.96 is 100
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], texts: int = 1) -> str:
    """A Markdown table; the first columns, `texts` of them, are aligned to the left."""
    columns = list(columns)
    aligned = [":--" if number < texts else "--:" for number in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(aligned)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def peaks(device: torch.device, quick: bool) -> dict[str, float]:
    """Operations a second of a large matrix product, by precision; on a GPU fp32 means TF32."""
    side, repeats = (8192, 200) if device.type == "cuda" else (2048, 3 if quick else 30)
    found, matmul = {}, torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision in ("fp32", "bf16", *(["fp16"] if device.type == "cuda" else [])):
        a, b = (torch.randn(side, side, device=device).to(PRECISIONS[precision]) for _ in range(2))

        def multiply(a=a, b=b) -> None:
            torch.mm(a, b)
            wait(device)

        found[precision] = 2 * side**3 / min(seconds_of(multiply) for _ in range(repeats))
    matmul.allow_tf32 = allowed
    return found


def step_operations(net: Network, size: int) -> int:
    """Operations of one training step per frame: forward, and twice that backward."""
    return 3 * 2 * multiply_adds(net, size)


def run_child(module: str, function: str, **arguments) -> dict:
    """Call a function of benchmarks/<module>.py in a process of its own and watch its memory.

    Returns:
        The function's dict and `peak_mib`: the highest sum of anonymous memory over the process and
        its children (shared pages count once, pages of files do not); None where it is not known.
    """
    code = f"import json, sys, {module}\nanswer = {module}.{function}(**json.loads(sys.argv[1]))\n"
    command = [sys.executable, "-c", f"{code}print(json.dumps(answer))", json.dumps(arguments)]
    peak, known = 0, Path("/proc/self/smaps_rollup").exists()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, cwd=HERE)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid)) if known else 0
            time.sleep(0.2)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise RuntimeError(f"{module}.{function} failed:\n{output}")
    answer = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
    return answer | {"peak_mib": round(peak / 2**20) if known else None}


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children."""
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            text = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="ascii")
            lines = [line for line in text.splitlines() if line.startswith("Pss_Anon:")]
            total += sum(int(line.split()[1]) * 1024 for line in lines)
    except (psutil.NoSuchProcess, OSError):  # a process has just ended
        pass
    return total

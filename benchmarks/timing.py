"""How everything here is timed: in turns, with its spread; and memory of a process of its own.

Things that are compared take turns in one process, and every repeat begins with another of them, so
that a slow minute of the machine hits all. A ratio is taken within a repeat; what is reported is
the median of the repeats with the lowest and the highest.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


def take_turns(turns: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call each of `turns` once a repeat, beginning with another each time; return all answers."""
    names = list(turns)
    answers = {name: [] for name in names}
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            answers[name].append(turns[name]())
    return answers


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Each repeat's ratio."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float], digits: int = 3) -> str:
    """Median (lowest to highest), with this many significant digits: "1.93 (1.88–1.97)"."""
    low, middle, high = (figure(v, digits) for v in (min(values), median(values), max(values)))
    return f"{middle} ({low}–{high})" if len(values) > 1 else middle


def figure(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and no exponent: 0.0123, 1.93, 152."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])  # once rounded: 99.96 is 100
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def run_child(module: str, *words: str, every: float = 0.2) -> dict:
    """Run benchmarks/<module>.py with these words as a process of its own, and watch its memory.

    Returns:
        The JSON object that it printed last, on a line of its own, and `peak_mib`: the highest sum
        of anonymous memory over the process and all below it, looked up five times a second; None
        where the system does not tell. A page that forked processes share is counted once; pages of
        files, memory maps among them, are not counted: the system takes them back when it wants.

    Raises:
        RuntimeError: it failed; the message holds what it printed.
    """
    command = [sys.executable, str(HERE / f"{module}.py"), *words]
    peak, known = 0, Path("/proc/self/smaps_rollup").exists()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid)) if known else 0
            time.sleep(every)
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(words)} failed:\n{output}")
    answers = [line for line in output.splitlines() if line.startswith("{")]
    answer = json.loads(answers[-1])
    return answer | {"peak_mib": round(peak / 2**20) if known else None}


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and of all below it, shared pages counted once."""
    import psutil

    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_own_bytes(member.pid) for member in tree)


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))

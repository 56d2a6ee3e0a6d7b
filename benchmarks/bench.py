"""Measure this machine and write benchmarks/README.md: the one command of this folder.

    python benchmarks/bench.py                     # every section, some 40 minutes on two cores
    python benchmarks/bench.py training scoring    # these sections; the others' results are kept
    python benchmarks/bench.py --quick             # tiny sizes, into a temporary folder

`make bench` sets up what it compares with (benchmarks/requirements.txt) and runs it. After each
section its result is saved in results/<machine>.json, and the page is made from all files there.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # no loop pays for its progress bar

import data
import machine
import ours
import page
from thyroid_lib.files.writing import write_file
from timing import figure

HERE = Path(__file__).resolve().parent
EQUAL = "at equal layout (3 % are the noise that the bare step is allowed, too)"
READ_FRAMES = ("training", "fullsize", "preprocessing", "scoring", "scaling")
# Per section: (what its `reached` calls it, machines, sign, limit, what it says).
GOALS = {
    "training": [
        ("share of the bare step", "any", ">=", 0.97, "rate over the bare step's"),
        ("times the reported loop", "cpu", ">=", 1.8, "rate over the reported loop's"),
        ("times the reported loop", "gpu", ">=", 3.0, "rate over the reported loop's"),
        ("times monai as documented", "cpu", ">", 1.0, "rate over MONAI's, as documented"),
        ("times monai as documented", "gpu", ">=", 1.5, "rate over MONAI's, as documented"),
        ("times smp as documented", "cpu", ">", 1.0, "rate over smp's, as documented"),
        ("times smp as documented", "gpu", ">=", 1.5, "rate over smp's, as documented"),
        ("times monai at equal layout", "any", ">=", 0.97, f"rate over MONAI's, {EQUAL}"),
        ("times smp at equal layout", "any", ">=", 0.97, f"rate over smp's, {EQUAL}"),
    ],
    "fullsize": [
        ("three models", "gpu", "<=", 300, "seconds for the three full-size models"),
    ],
    "preprocessing": [
        ("times the plain loop", "any", ">=", 1.7, "rate over the plain loop's, by default"),
        ("up to date", "any", "<", 1.0, "seconds for a store that is up to date"),
    ],
    "scoring": [
        ("score_case", "any", "<=", 3.0, "milliseconds for all metrics of a case"),
        ("score_rows", "any", "<=", 3.0, "milliseconds for all that a case costs"),
        ("torchmetrics' Hausdorff", "any", ">=", 10.0, "rate over torchmetrics' Hausdorff"),
    ],
    "workflow": [
        ("overhead", "any", "<=", 4.0, "seconds of overhead, the slowest notebook's"),
        ("nothing to do", "any", "<=", 3.0, "seconds for Snakemake with nothing to do"),
    ],
    "bits": [
        ("same bits", "any", ">=", 1.0, "share of the runs that must repeat to the bit and do"),
    ],
    "deploy": [
        ("fp32 over torch", "any", ">=", 1.4, "rate of ONNX Runtime fp32 over torch's, resunet"),
        ("int8 over torch", "any", ">=", 3.0, "rate of ONNX Runtime int8 over torch's, resunet"),
        (
            "change by int8",
            "any",
            "<=",
            0.002,
            "change of Dice by int8, any fold and side, resunet",
        ),
    ],
    "scaling": [
        ("memory, preprocess", "any", "<=", 0.1, "growth of memory in preprocessing, as a share"),
        ("memory, train", "any", "<=", 0.1, "growth of memory in training, as a share"),
    ],
}
SIGNS = {">=": "at least", ">": "above", "<=": "at most", "<": "below"}


def judge(section: str, values: dict[str, float], about: dict) -> list[str]:
    """Say of each goal that holds for this machine whether it is met; Markdown lines."""
    kind = "gpu" if "gpu" in about else "cpu"
    lines = []
    for name, where, sign, limit, sentence in GOALS.get(section, []):
        if where not in ("any", kind):
            continue
        need = f"{sentence}, {SIGNS[sign]} {limit:g}"
        if name not in values:
            lines.append(f"- not measured: {need}.")
            continue
        met = "met" if is_met(values[name], sign, limit) else "**not met**"
        lines.append(f"- {met}: {need}; reached {figure(values[name])}.")
    return ["Goals:", "", *lines] if lines else []


def is_met(value: float, sign: str, limit: float) -> bool:
    """Hold a value against a limit."""
    holds = {">=": value >= limit, ">": value > limit, "<=": value <= limit, "<": value < limit}
    return holds[sign]


def sections_for(device: str) -> list[str]:
    """All that is measured if nothing is asked for; full-size models would take a CPU days."""
    return [name for name in page.SECTIONS if name != "fullsize" or device == "cuda"]


def save(section: str, result: dict, seconds: float, out: Path, command: str) -> Path:
    """Put one section's result into this machine's file; the others' stay. Then make the page."""
    about = machine.describe()
    file = out / "results" / f"{about['slug']}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}
    found = machine.circumstances(command) | {"seconds": round(seconds), "result": result}
    kept = {"machine": about, "sections": kept["sections"] | {section: found}}
    write_file(file, json.dumps(rounded(kept), indent=1) + "\n")
    return write_file(out / "README.md", page.render(out / "results", judge))


def rounded(value):
    """Five significant digits are more than any repeat gives back."""
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(page.SECTIONS)}; none for all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--render", action="store_true", help="only make the page from results/")
    parser.add_argument("--quiet", action="store_true", help="do not print the page")
    parser.add_argument("--out", type=Path, help="folder for results/ and README.md")
    parser.add_argument("--cache", type=Path, default=data.CACHE, help="folder for drawn frames")
    asked = parser.parse_args()
    if unknown := set(asked.sections) - set(page.SECTIONS):
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(page.SECTIONS)}")
    out = asked.out or (Path(tempfile.mkdtemp(prefix="thyroid-bench-")) if asked.quick else HERE)
    if asked.render:
        print(write_file(out / "README.md", page.render(out / "results", judge)))
        return 0
    asked.device = ours.pick_device()
    names = asked.sections or sections_for(asked.device.type)
    if len(names) > 1:  # each in a process of its own: none is measured with another's memory
        options = ["--quick"] * asked.quick + ["--out", str(out), "--cache", str(asked.cache)]
        for name in names:
            command = [sys.executable, str(HERE / "bench.py"), name, "--quiet", *options]
            subprocess.run(command, check=True)
        print((out / "README.md").read_text(encoding="utf-8"))
        return 0
    (name,) = names
    if name in READ_FRAMES:
        print("drawing frames, unless they are there …", flush=True)
        how = {"sweeps": 6, "frames": 8} if asked.quick else {}
        asked.frames = data.draw_frames(asked.cache, **how)
    command = " ".join(["python benchmarks/bench.py", name, *["--quick"] * asked.quick])
    began = time.perf_counter()
    result = importlib.import_module(name).measure(asked)
    seconds = time.perf_counter() - began
    written = save(name, result, seconds, out, command)
    print(f"{name}: {seconds:.0f} s; written: {written}", flush=True)
    if not asked.quiet:
        print(written.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

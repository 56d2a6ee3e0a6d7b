"""Measure this machine and write benchmarks/README.md: the command of this folder.

    python benchmarks/bench.py                     # all sections, some 40 minutes on two cores
    python benchmarks/bench.py training scoring    # these sections; the others' results are kept
    python benchmarks/bench.py --quick             # tiny sizes, into a temporary folder

`make bench` installs the peers (benchmarks/requirements.txt) and runs it. After each section its
result is saved in results/<machine>.json, and the page is written from all files there.
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
import ours
import page
from thyroid_lib.files.writing import write_file

HERE = Path(__file__).resolve().parent
READ_FRAMES = ("training", "networks", "fullsize", "preprocessing", "scoring", "scaling")


def save(section: str, result: dict, seconds: float, out: Path, command: str) -> Path:
    """Put one section's result into this machine's file, keep the others; then write the page."""
    about = page.describe()
    file = out / "results" / f"{about['slug']}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}
    found = page.circumstances(command) | {"seconds": round(seconds), "result": result}
    kept = {"machine": about, "sections": kept["sections"] | {section: found}}
    # five significant digits: more than repeats agree on
    kept = json.loads(json.dumps(kept), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    write_file(file, json.dumps(kept, indent=1) + "\n")
    return write_file(out / "README.md", page.render(out / "results"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(page.SECTIONS)}; none for all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--render", action="store_true", help="only write the page from results/")
    parser.add_argument("--out", type=Path, help="folder for results/ and README.md")
    parser.add_argument("--cache", type=Path, default=data.CACHE, help="folder for drawn frames")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(page.SECTIONS):
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(page.SECTIONS)}")
    out = args.out or (Path(tempfile.mkdtemp(prefix="thyroid-bench-")) if args.quick else HERE)
    if args.render:
        print(write_file(out / "README.md", page.render(out / "results")))
        return 0
    args.device = ours.pick_device()
    on_cpu = args.device.type == "cpu"
    names = args.sections or [name for name in page.SECTIONS if name != "fullsize" or not on_cpu]
    if len(names) > 1:  # each in a process of its own, with its own memory
        options = ["--quick"] * args.quick + ["--out", str(out), "--cache", str(args.cache)]
        for name in names:
            subprocess.run([sys.executable, str(HERE / "bench.py"), name, *options], check=True)
        return 0
    (name,) = names
    if name in READ_FRAMES:
        print("drawing frames, unless they are there …", flush=True)
        args.frames = data.draw_frames(
            args.cache, **({"sweeps": 6, "frames": 8} if args.quick else {})
        )
    command = " ".join(["python benchmarks/bench.py", name, *["--quick"] * args.quick])
    began = time.perf_counter()
    result = importlib.import_module(name).measure(args)
    seconds = time.perf_counter() - began
    print(importlib.import_module(name).show(result))
    print(f"{seconds:.0f} s; written: {save(name, result, seconds, out, command)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

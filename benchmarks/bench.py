"""Measure this machine and write benchmarks/README.md: the command of this folder.

    python benchmarks/bench.py                     # all sections, some 40 minutes on two cores
    python benchmarks/bench.py training scoring    # these sections; the others' results are kept
    python benchmarks/bench.py --quick             # tiny sizes, into a temporary folder
    python benchmarks/bench.py --render            # only write the pages from results/

`make bench` installs the peers (benchmarks/requirements.txt) and runs it; `make gpu` runs the
section `gpu`. Each result is saved in results/<machine>.json as it comes, and the page is written
from all files there.
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
HOLD = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"  # the processor to fewer instructions
READ_FRAMES = ("training", "networks", "preprocessing", "scoring", "scaling")


def save(section: str, result: dict, seconds: float, out: Path, command: str) -> Path:
    """Put one section's result into this machine's file, keep the others; then write the page."""
    about = page.describe()
    prefix = "gpu-" if section == "gpu" else ""  # of another environment than the others
    file = out / "results" / f"{prefix}{about['slug']}.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"sections": {}}
    found = page.circumstances(command) | {"seconds": round(seconds), "result": result}
    kept = {"machine": about, "sections": kept["sections"] | {section: found}}
    # five significant digits: more than repeats agree on
    kept = json.loads(json.dumps(kept), parse_float=lambda digits: float(f"{float(digits):.5g}"))
    write_file(file, json.dumps(kept, indent=1) + "\n")
    try:
        return render(out)
    except Exception as error:  # the figures are on the disk, and more are to come
        print(f"the page could not be written: {error!r}", file=sys.stderr)
        return file


def render(out: Path) -> Path:
    """Write the page, and the sentence on GPUs in the project's README."""
    if out == HERE:
        readme = HERE.parent / "README.md"
        write_file(readme, page.with_gpus(readme.read_text("utf-8"), out / "results"))
    return write_file(out / "README.md", page.render(out / "results"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(page.SECTIONS)}; none for all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--render", action="store_true", help="only write the page from results/")
    parser.add_argument("--loops", nargs="+", help="of section training, these alone")
    parser.add_argument("--out", type=Path, help="folder for results/ and README.md")
    parser.add_argument("--cache", type=Path, default=data.CACHE, help="folder for drawn frames")
    parser.add_argument("--seconds", type=float, default=450, help="time of the section gpu")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(page.SECTIONS):
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(page.SECTIONS)}")
    out = args.out or (Path(tempfile.mkdtemp(prefix="thyroid-bench-")) if args.quick else HERE)
    if args.render:
        print(render(out))
        return 0
    args.device = ours.pick_device()
    on_cpu = args.device.type == "cpu"
    names = args.sections or [name for name in page.SECTIONS if name != "gpu" or not on_cpu]
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
    loops = ["--loops", *args.loops] if args.loops else []
    held = [f"{key}={os.environ[key]}" for key in HOLD if key in os.environ]
    command = " ".join(
        [*held, "python benchmarks/bench.py", name, *loops, *["--quick"] * args.quick]
    )
    began = time.perf_counter()
    results = importlib.import_module(name).measure(args)
    for result in [results] if isinstance(results, dict) else results:  # or as they come
        seconds = time.perf_counter() - began
        written = save(name, result, seconds, out, command)
    print(importlib.import_module(name).show(result))
    print(f"{seconds:.0f} s; written: {written}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

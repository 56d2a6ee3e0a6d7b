"""What the workflow costs beyond the cells: seconds per notebook, and of a study that is done.

    python benchmarks/bench.py workflow

A study of one tiny run in a copy of the project. Each of the three core notebooks is run as the
workflow runs it, by `thyroid_lib.study.runner`; its overhead is the wall time
of that process less the sum of its cells' own times, as papermill notes them in the log: start of
Python, checks, start of the kernel, writing. Imports that a notebook makes are its cells' own. Then
Snakemake finishes that study and is asked again: nothing is left to do.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import median, seconds_of, spread

ROOT = Path(__file__).resolve().parent.parent
RUN = "unet-grouped-fold0-seed0"
PHANTOM = {"source": "phantom", "phantom_sweeps": 4, "phantom_frames": 3, "size": 32}
TRAIN = {"width": 4, "folds": 4, "epochs": 1, "batch_size": 4, "lr": 2.0e-3, "threads": 1}
STUDY = "results/tiny"
NOTEBOOKS = {  # name: its parameters
    "1-preprocess": PHANTOM | {"phantom_folder": f"{STUDY}/phantom", "store": f"{STUDY}/store"},
    "3-train": TRAIN | {"model": "unet", "store": f"{STUDY}/store", "out": f"{STUDY}/runs/{RUN}"},
    "4-compare": {"store": f"{STUDY}/store", "runs": [f"{STUDY}/runs/{RUN}"], "resamples": 200}
    | {"out": f"{STUDY}/compare"},
}
SETTINGS = PHANTOM | TRAIN | {"models": ["unet"], "protocols": ["grouped"], "seeds": [0]}


def copy_project(target: Path) -> Path:
    """What a study needs, so that no run touches the checkout."""
    for part in ("notebooks", "parameters", "thyroid_lib", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / part, target / part, ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", target)
    return target


def call(project: Path, *words: str) -> str:
    """Run a module of Python in the project; return what it printed, raise if it failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THYROID_")}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=project, env=clean | {"PYTHONPATH": str(project)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def run_notebook(project: Path, name: str) -> dict[str, float]:
    """Seconds of wall time, and of the cells alone."""
    log = project / STUDY / "logs" / f"{name}.ipynb"
    words = ["notebook", f"notebooks/{name}.ipynb", f"{STUDY}/notebooks/{name}.ipynb"]
    words += ["--log", str(log), "--parameters", json.dumps(NOTEBOOKS[name])]
    wall = seconds_of(lambda: call(project, "thyroid_lib.study.runner", *words))
    cells = json.loads(log.read_text(encoding="utf-8"))["cells"]
    took = [cell["metadata"].get("papermill", {}).get("duration") or 0 for cell in cells]
    return {"wall": wall, "cells": sum(took)}


def snakemake(project: Path) -> str:
    config = [f"{key}={json.dumps(value)}" for key, value in (SETTINGS | {"study": "tiny"}).items()]
    words = ["--cores", "2", "--configfile", "parameters/demo.yaml", "--config", *config]
    return call(project, "snakemake", *words)


def measure(asked) -> dict:
    """Run the notebooks in order, again and again; then Snakemake, where it is installed."""
    repeats = 1 if asked.quick else 4
    notebooks = {name: [] for name in NOTEBOOKS}
    nothing, reason = [], ""
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder, "project"))
        for _ in range(repeats):
            for name, seen in notebooks.items():
                seen.append(run_notebook(project, name))
        if importlib.util.find_spec("snakemake"):
            shutil.rmtree(project / STUDY)
            snakemake(project)
            for _ in range(repeats):
                nothing.append(seconds_of(lambda: _nothing_to_do(project)))
        else:
            reason = "snakemake is not installed"
    return {"notebooks": notebooks, "nothing": nothing, "skipped": reason}


def _nothing_to_do(project: Path) -> None:
    printed = snakemake(project)
    if "Nothing to be done" not in printed:
        raise RuntimeError(f"Snakemake found something to do:\n{printed[-2000:]}")


def overhead(runs: list[dict]) -> list[float]:
    return [run["wall"] - run["cells"] for run in runs]


def show(found: dict) -> str:
    """The table, in Markdown."""
    lines = ["| | wall, s | of it the cells, s | overhead, s |", "|:--|--:|--:|--:|"]
    for name, runs in found["notebooks"].items():
        wall, cells = (spread([run[part] for run in runs]) for part in ("wall", "cells"))
        lines.append(f"| {name} | {wall} | {cells} | {spread(overhead(runs))} |")
    if found["nothing"]:
        lines.append(f"| Snakemake, nothing to do | {spread(found['nothing'])} | | |")
    else:
        lines += ["", f"Snakemake with nothing to do was not measured: {found['skipped']}."]
    return "\n".join(lines)


def reached(found: dict) -> dict[str, float]:
    """The notebook with the largest overhead; Snakemake with nothing to do."""
    values = {"overhead": max(median(overhead(runs)) for runs in found["notebooks"].values())}
    return values | ({"nothing to do": median(found["nothing"])} if found["nothing"] else {})

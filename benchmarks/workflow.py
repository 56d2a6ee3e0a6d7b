"""The overhead of the workflow: seconds per notebook, and of Snakemake on a finished study.

    python benchmarks/bench.py workflow

A study of one tiny run, in a temporary folder. Three notebooks are run as the workflow runs them;
overhead is the wall time minus the times of the cells in the log: start of Python, checks, start of
the kernel, writing. Then Snakemake finishes that study and is started again, with nothing to do.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import median, seconds_of, spread, table

ROOT = Path(__file__).resolve().parent.parent
RUN, STUDY = "unet-grouped-fold0-seed0", "results/tiny"
PHANTOM = {"source": "phantom", "phantom_sweeps": 4, "phantom_frames": 3, "size": 32}
TRAIN = {"width": 4, "folds": 4, "epochs": 1, "batch_size": 4, "lr": 2.0e-3, "threads": 1}
NOTEBOOKS = {  # name: its parameters
    "1-preprocess": PHANTOM | {"phantom_folder": f"{STUDY}/phantom", "store": f"{STUDY}/store"},
    "3-train": TRAIN | {"model": "unet", "store": f"{STUDY}/store", "out": f"{STUDY}/runs/{RUN}"},
    "4-compare": {"store": f"{STUDY}/store", "runs": [f"{STUDY}/runs/{RUN}"], "resamples": 200}
    | {"out": f"{STUDY}/compare"},
}
SETTINGS = {"study": "tiny", "models": ["unet"], "protocols": ["grouped"], "seeds": [0]}


def call(results: Path, *words: str) -> str:
    """Run a Python module in the project; return its output, raise an error if it failed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THYROID_")}
    variables = clean | {"PYTHONPATH": str(ROOT), "THYROID_RESULTS": str(results)}
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=variables, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def run_notebook(results: Path, name: str) -> dict[str, float]:
    """Seconds of wall time, and of the cells alone."""
    log = results / "tiny" / "logs" / f"{name}.ipynb"
    words = ["notebook", f"notebooks/{name}.ipynb", str(results / "tiny" / f"{name}.ipynb")]
    words += ["--log", str(log), "--parameters", json.dumps(NOTEBOOKS[name])]
    wall = seconds_of(lambda: call(results, "thyroid_lib.study.runner", *words))
    cells = json.loads(log.read_text(encoding="utf-8"))["cells"]
    took = [cell["metadata"].get("papermill", {}).get("duration") or 0 for cell in cells]
    return {"wall": wall, "cells": sum(took)}


def snakemake(results: Path) -> str:
    settings = (PHANTOM | TRAIN | SETTINGS).items()
    config = [f"{key}={json.dumps(value)}" for key, value in settings]
    words = ["--cores", "2", "--configfile", "parameters/demo.yaml", "--config", *config]
    return call(results, "snakemake", *words)


def measure(args) -> dict:
    """Run the notebooks in order, several times; then Snakemake."""
    repeats, nothing = 1 if args.quick else 4, []
    notebooks = {name: [] for name in NOTEBOOKS}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for _ in range(repeats):
            for name, seen in notebooks.items():
                seen.append(run_notebook(results, name))
        shutil.rmtree(results / "tiny")
        for repeat in range(repeats + 1):
            printed = []
            took = seconds_of(lambda printed=printed: printed.append(snakemake(results)))
            if repeat and "Nothing to be done" not in printed[0]:
                raise RuntimeError(f"Snakemake found something to do:\n{printed[0][-2000:]}")
            nothing += [took] if repeat else []
    return {"notebooks": notebooks, "nothing": nothing}


def overhead(runs: list[dict]) -> list[float]:
    return [run["wall"] - run["cells"] for run in runs]


def show(found: dict) -> str:
    """The table, in Markdown."""
    rows = []
    for name, runs in found["notebooks"].items():
        parts = ([run[part] for run in runs] for part in ("wall", "cells"))
        rows.append((name, *map(spread, parts), spread(overhead(runs))))
    rows.append(("Snakemake, nothing to do", spread(found["nothing"]), "", ""))
    return table(("", "wall, s", "of it the cells, s", "overhead, s"), rows)


def goals(found: dict, on_gpu: bool):
    slowest = max(median(overhead(runs)) for runs in found["notebooks"].values())
    yield "seconds of overhead, the slowest notebook's", "<=", 4.0, slowest
    yield "seconds for Snakemake with nothing to do", "<=", 3.0, median(found["nothing"])

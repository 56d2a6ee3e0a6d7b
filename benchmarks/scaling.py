"""Time and memory of preprocessing and of CPU training at 1x, 3x and 10x TG3K's 3,585 frames.

    python benchmarks/bench.py scaling

Each is a process of its own, whose anonymous memory is summed over it and all below it (see
`timing.run_child`). Preprocessing is the notebook, run as the workflow runs it: papermill, kernel
and workers. Training is one epoch through `run.train_model` and `run.score_run`, with a network of
one convolution on frames averaged over 8 x 8 px, so that what is seen is the way of the data, and
ten times the frames take minutes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import data
from thyroid_lib.data.store import open_store
from thyroid_lib.study.runner import run_notebook
from timing import figure, run_child, seconds_of

ROOT = Path(__file__).resolve().parent.parent
TIMES = (1, 3, 10)


def preprocess(frames: Path, folder: Path, size: int) -> dict:
    """Run 1-preprocess as the workflow runs it."""
    built = folder / "store"
    shutil.rmtree(built, ignore_errors=True)
    settings = {"source": "folder", "data": str(frames), "store": str(built), "size": size}
    notebook, codes = ROOT / "notebooks" / "1-preprocess.ipynb", []
    took = seconds_of(
        lambda: codes.append(run_notebook(notebook, folder / notebook.name, settings))
    )
    if codes != [0]:
        raise RuntimeError(f"1-preprocess ended with {codes[0]}")
    return {"seconds": took, "frames": len(open_store(built))}


def train(frames: Path, folder: Path, size: int) -> dict:
    """One epoch, and the scores of its test cases, on the store that `preprocess` built."""
    from one_convolution import OneConvolution
    from thyroid_lib import models
    from thyroid_lib.train import run

    models.MODELS["one_convolution"] = OneConvolution
    store, finished = open_store(folder / "store"), []

    def train_once() -> None:
        settings = {"model": "one_convolution", "width": 1, "epochs": 1, "device": "cpu"}
        finished.append(run.train_model(store, out=folder / "run", **settings))

    shutil.rmtree(folder / "run", ignore_errors=True)
    seconds = seconds_of(train_once)
    return {"seconds": seconds, "scoring": seconds_of(lambda: run.score_run(finished[0], store))}


STEPS = {"preprocess": preprocess, "train": train}


def measure(asked) -> dict:
    """Measure both at every number of frames, each in a fresh process."""
    times, size = ((1, 3), 64) if asked.quick else (TIMES, 256)
    rows = []
    for many in times:
        frames = data.link_frames(asked.frames, many)
        with tempfile.TemporaryDirectory(dir=asked.cache) as folder:
            row = {"times": many}
            for name in STEPS:
                row[name] = run_child("scaling", name, str(frames), folder, str(size))
            rows.append(row)
    return {"rows": rows, "size": size}


def show(found: dict) -> str:
    """The table, in Markdown."""
    size = found["size"]
    lines = [
        f"At {size}×{size} px. Memory: the peak of anonymous memory, all processes together.",
        "",
        "| frames | preprocessing, s | memory, MiB | an epoch, s | scoring, s | memory, MiB |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        built, trained = row["preprocess"], row["train"]
        seconds = figure(trained["seconds"]), figure(trained["scoring"])
        lines.append(
            f"| {built['frames']} | {figure(built['seconds'])} | {built['peak_mib'] or '–'} | "
            f"{seconds[0]} | {seconds[1]} | {trained['peak_mib'] or '–'} |"
        )
    many = found["rows"][-1]["times"]
    grown = [f"{name} {share:+.1%}".replace("-", "−") for name, share in growth(found).items()]
    return "\n".join([*lines, "", f"Growth of memory from 1 to {many} times: {', '.join(grown)}."])


def growth(found: dict) -> dict[str, float]:
    """By how much memory grows from the fewest frames to the most, as a share."""
    first, last = found["rows"][0], found["rows"][-1]
    peaks = {name: (first[name]["peak_mib"], last[name]["peak_mib"]) for name in STEPS}
    return {name: b / a - 1 for name, (a, b) in peaks.items() if a and b}


def reached(found: dict) -> dict[str, float]:
    """Growth of memory, whichever way it went."""
    return {f"memory, {name}": abs(share) for name, share in growth(found).items()}


def main() -> None:
    """Do one step in this process, for whoever watches it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("frames", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("size", type=int)
    asked = parser.parse_args()
    print(json.dumps(STEPS[asked.step](asked.frames, asked.folder, asked.size)))


if __name__ == "__main__":
    sys.exit(main())

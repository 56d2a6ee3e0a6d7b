"""Time and memory of preprocessing and of CPU training at 1x, 3x and 10x TG3K's 3,585 frames.

    python benchmarks/bench.py scaling

Each is a process of its own, whose anonymous memory is summed over it and its workers (see
`timing.run_child`). Training is one epoch through `run.train_model` and `run.score_run`, with a
network of one convolution on frames averaged over 8 x 8 px, so that what is seen is the way of the
data, and ten times the frames take minutes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import data
from thyroid_lib import models, run
from thyroid_lib.store import build_store, load_cases, open_store
from timing import figure, run_child, seconds_of

TIMES = (1, 3, 10)


class OneConvolution(models.Network):
    """Average over 8 x 8 px, one 3x3 convolution, back to the size of the frame."""

    divisor = 8

    def __init__(self, in_channels: int = 1, out_channels: int = 1, width: int = 1):
        super().__init__(in_channels, out_channels, width)
        self.shrink, self.grow = nn.AvgPool2d(8), nn.Upsample(scale_factor=8)
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → logits (N, out_channels, H, W)."""
        return self.grow(self.convolution(self.shrink(images)))


def preprocess(frames: Path, folder: Path, size: int) -> dict:
    """Build a store anew."""
    built = folder / "store"
    shutil.rmtree(built, ignore_errors=True)
    took = seconds_of(lambda: build_store(load_cases("folder", frames), built, size=size))
    return {"seconds": took, "frames": len(open_store(built))}


def train(frames: Path, folder: Path, size: int) -> dict:
    """One epoch, and the scores of its test cases, on the store that `preprocess` built."""
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

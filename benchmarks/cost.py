"""What a training step costs: frames a second against the size of the frames and the width.

    python benchmarks/bench.py cost

`train.train_epoch`, in this project's own precision, on uint8 frames of noise.
"""

import time
from types import SimpleNamespace

import numpy as np

import limit
import ours
from timing import figure, median

MODELS = ("unet", "segnet", "resunet")
BATCH = 16
POINTS = {  # (width, size)
    "cpu": ((16, 64), (16, 128), (16, 256), (16, 384), (8, 256), (32, 256)),
    "cuda": ((64, 64), (64, 128), (64, 256), (64, 384), (8, 256), (16, 256), (32, 256)),
}
QUICK = ((4, 32),)


def rate(name: str, width: int, size: int, asked, precision: str) -> float:
    """Frames a second: the median of steps that together take three seconds, of three at least."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2 * BATCH, size, size), np.uint8)
    net = ours.make_model(name, width, asked.device)
    store = SimpleNamespace(images=frames, masks=frames & 1)
    run = ours.trainer(net, store, device=asked.device, precision=precision, batch_size=BATCH)
    steps = 10 if asked.device.type == "cuda" else 1
    run(steps)
    took, end = [], time.perf_counter() + (0.1 if asked.quick else 3)
    while len(took) < 3 or time.perf_counter() < end:
        limit.wait(asked.device)
        began = time.perf_counter()
        run(steps)
        limit.wait(asked.device)
        took.append((time.perf_counter() - began) / steps)
    return BATCH / median(took)


def measure(asked) -> dict:
    """Time every model at every point."""
    precision = ours.pick_precision(asked.device)
    kind = "cuda" if asked.device.type == "cuda" else "cpu"
    peak = limit.peaks(asked.device, asked.quick)[precision]
    rows = []
    for width, size in QUICK if asked.quick else POINTS[kind]:
        for name in MODELS:
            net = ours.make_model(name, width, asked.device).cpu()
            share = limit.step_operations(net, size) / peak
            each = rate(name, width, size, asked, precision)
            row = {"model": name, "width": width, "size": size, "rate": each}
            rows.append(row | {"share": each * share})
    return {"rows": rows, "precision": precision, "batch": BATCH}


def show(found: dict) -> str:
    """The table, in Markdown."""
    models = list(dict.fromkeys(row["model"] for row in found["rows"]))
    lines = [
        f"Frames a second, batch {found['batch']}, {found['precision']}; in brackets the share of "
        "the rate of a large matrix product.",
        "",
        f"| width | size, px | {' | '.join(models)} |",
        f"|--:|--:|{'--:|' * len(models)}",
    ]
    points = {}
    for row in found["rows"]:
        cell = f"{figure(row['rate'])} ({row['share']:.0%})"
        points.setdefault((row["width"], row["size"]), []).append(cell)
    lines += [f"| {w} | {s} | {' | '.join(cells)} |" for (w, s), cells in points.items()]
    return "\n".join(lines)


def reached(found: dict) -> dict:
    """No goal of its own."""
    return {}

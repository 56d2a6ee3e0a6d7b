"""The three full-size models, trained as long as the reported study trained them; on a GPU only.

    python benchmarks/bench.py fullsize

Width 64, 256 × 256 px, batch 16, 25 epochs of 2,509 frames; nothing is scaled up. The epochs alone
are what the reported study's time counts; a whole run adds validation, checkpoints and tables.
"""

import tempfile
from itertools import islice

import numpy as np
import torch

import ours
import timing
from data import store_of
from timing import figure, seconds_of


def measure(args) -> dict:
    """Train all three, one after the other."""
    device, precision = args.device, ours.pick_precision(args.device)
    if device.type == "cpu" and not args.quick:
        raise SystemExit("fullsize: a CPU would train for days: run it on a GPU, or give --quick")
    torch.backends.cudnn.benchmark = True  # as in a run of the project
    epochs, width, size = (1, 4, 64) if args.quick else (25, 64, 256)
    store, rows = store_of(args.frames, size), []
    frames = np.arange(len(store))[:2509]
    about = f"width {width}, {size} px, {precision}, {epochs} epochs of {len(frames)} frames"
    for name in ("unet", "segnet", "resunet"):
        net = ours.make_model(name, width, device)
        training = ours.train(net, store, frames, device=device, precision=precision, batch_size=16)
        next(training)  # the first epoch also sets up the GPU: not counted
        timing.wait(device)
        seconds = seconds_of(lambda t=training: (list(islice(t, epochs)), timing.wait(device)))
        how = {"model": name, "width": width, "protocol": "random", "epochs": epochs}
        with tempfile.TemporaryDirectory() as out:
            run = seconds_of(lambda h=how, o=out: ours.train_run(store, out=o, batch_size=16, **h))
        rate = epochs * len(frames) / seconds
        rows.append({"model": name, "seconds": seconds, "rate": rate, "run": run})
    return {"rows": rows, "about": about}


def show(found: dict) -> str:
    """The table, in Markdown."""
    numbers = {"seconds": "epochs alone, s", "rate": "frames/s", "run": "whole run, s"}
    rows = [(row["model"], *(figure(row[name]) for name in numbers)) for row in found["rows"]]
    return f"{found['about']}:\n\n{timing.table(('model', *numbers.values()), rows)}"


def goals(found: dict, on_gpu: bool) -> list:
    """None are set: the limit depends on the GPU."""
    return []

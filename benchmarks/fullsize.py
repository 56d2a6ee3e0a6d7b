"""The three full-size models, trained as long as the reported study trained them; on a GPU only.

    python benchmarks/bench.py fullsize

U-Net, SegNet and Residual U-Net of width 64, 256 x 256 px, batch 16, 25 epochs of 2,509 frames by
`train.train_epoch`: really trained, nothing is scaled up. Between start and end lie the training
epochs alone, which is what the reported study's time per epoch counts. Beside it a whole
`run.train_model`, which watches validation frames and writes a checkpoint after every epoch.
"""

import tempfile
import time

import torch

import limit
import ours
import training
from thyroid_lib.train.run import train_model
from timing import figure, seconds_of

MODELS = ("unet", "segnet", "resunet")
EPOCHS, FRAMES = 25, 2509
WIDTH, SIZE, BATCH = 64, 256, 16


def measure(asked) -> dict:
    """Train all three, one after the other."""
    if asked.device.type == "cpu" and not asked.quick:
        raise RuntimeError("fullsize: a CPU would train for days; run it where there is a GPU")
    torch.backends.cudnn.benchmark = True  # as a run has it
    epochs, width, size = (1, 4, 64) if asked.quick else (EPOCHS, WIDTH, SIZE)
    store, device = training.open_built(asked.frames, size), asked.device
    precision = ours.pick_precision(device)
    frames = min(FRAMES, len(store))
    models = {}
    for name in MODELS:
        net = ours.make_model(name, width, device)
        how = {"device": device, "precision": precision, "batch_size": BATCH, "frames": frames}
        run = ours.trainer(net, store, **how)
        run(4)  # what is set up at the first step
        limit.wait(device)
        began = time.perf_counter()
        for _ in range(epochs):
            run()
        limit.wait(device)
        seconds = time.perf_counter() - began
        operations = limit.step_operations(net.cpu(), size)
        del net, run
        whole = _whole_run(name, store, epochs, width)
        models[name] = {"seconds": seconds, "operations": operations, "whole": whole}
        if device.type == "cuda":
            torch.cuda.empty_cache()
    about = {"epochs": epochs, "frames": frames, "width": width, "size": size, "batch": BATCH}
    peak = limit.peaks(device, asked.quick)[precision]
    return {"models": models, "precision": precision, "peak": peak, "how": about}


def _whole_run(name: str, store, epochs: int, width: int) -> float:
    """Seconds of `train_model` on the split by frame, of which a part is watched."""
    how = {"model": name, "width": width, "protocol": "random", "epochs": epochs}
    with tempfile.TemporaryDirectory() as out:
        return seconds_of(lambda: train_model(store, out=out, batch_size=BATCH, **how))


def show(found: dict) -> str:
    """The table, in Markdown."""
    how = found["how"]
    lines = [
        f"Width {how['width']}, {how['size']}×{how['size']} px, batch {how['batch']}, "
        f"{found['precision']}: {how['epochs']} epochs of {how['frames']} frames, really trained. "
        "Share: of the rate of a large matrix product in the same precision. Whole run: "
        "`train_model` on the split by frame, validation and checkpoints included.",
        "",
        "| model | s | frames/s | share of the limit | whole run, s |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, one in found["models"].items():
        rate = how["epochs"] * how["frames"] / one["seconds"]
        share = rate * one["operations"] / found["peak"]
        lines.append(
            f"| {name} | {figure(one['seconds'])} | {figure(rate)} | {share:.0%} | "
            f"{figure(one['whole'])} |"
        )
    whole = sum(one["whole"] for one in found["models"].values())
    return "\n".join([*lines, f"| together | {figure(_together(found))} | | | {figure(whole)} |"])


def _together(found: dict) -> float:
    return sum(one["seconds"] for one in found["models"].values())


def reached(found: dict) -> dict[str, float]:
    """Seconds of the three together."""
    return {"three models": _together(found)}

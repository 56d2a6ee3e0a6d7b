"""The three full-size models, trained as long as the reported study trained them; on a GPU only.

    python benchmarks/bench.py fullsize

U-Net, SegNet and Residual U-Net of width 64, 256×256 px, batch 16, 25 epochs of 2,509 frames by the
project's recipe, not extrapolated. Timed are the epochs alone, after one that is not timed, as the
reported study's time per epoch. Beside it a whole run, with validation and checkpoints.
"""

import tempfile

import numpy as np
import torch

import ours
from data import store_of
from timing import figure, peaks, seconds_of, step_operations, table, wait

MODELS = ("unet", "segnet", "resunet")


def measure(args) -> dict:
    """Train all three, one after the other."""
    device = args.device
    if device.type == "cpu" and not args.quick:
        raise RuntimeError("fullsize: a CPU would train for days; run it where there is a GPU")
    torch.backends.cudnn.benchmark = True  # as in a run
    how = {"epochs": 25, "width": 64, "size": 256, "batch": 16}
    how |= {"epochs": 1, "width": 4, "size": 64} if args.quick else {}
    store, precision = store_of(args.frames, how["size"]), ours.pick_precision(device)
    how["frames"] = min(2509, len(store))
    models = {}
    for name in MODELS:
        net = ours.make_model(name, how["width"], device)
        epochs = ours.train(
            net, store, np.arange(how["frames"]), device=device, precision=precision,
            batch_size=how["batch"],
        )  # fmt: skip

        def train(epochs=epochs, count=how["epochs"]) -> None:
            for _ in range(count):
                next(epochs)
            wait(device)

        train(count=1)
        seconds = seconds_of(train)
        operations = step_operations(net.cpu(), how["size"])
        del net, epochs, train
        whole = seconds_of(lambda name=name: _whole_run(name, store, how))
        models[name] = {"seconds": seconds, "operations": operations, "whole": whole}
        if device.type == "cuda":
            torch.cuda.empty_cache()
    peak = peaks(device, args.quick)[precision]
    return {"models": models, "precision": precision, "peak": peak, "how": how}


def _whole_run(name: str, store, how: dict) -> None:
    """A whole run on the split by frame, which takes a part for validation."""
    with tempfile.TemporaryDirectory() as out:
        ours.train_run(
            store, out=out, model=name, width=how["width"], protocol="random",
            epochs=how["epochs"], batch_size=how["batch"],
        )  # fmt: skip


def show(found: dict) -> str:
    """The table, in Markdown."""
    how, rows = found["how"], []
    for name, one in found["models"].items():
        rate = how["epochs"] * how["frames"] / one["seconds"]
        share = f"{rate * one['operations'] / found['peak']:.0%}"
        rows.append((name, figure(one["seconds"]), figure(rate), share, figure(one["whole"])))
    sums = [sum(one[part] for one in found["models"].values()) for part in ("seconds", "whole")]
    rows.append(("together", figure(sums[0]), "", "", figure(sums[1])))
    return (
        f"Width {how['width']}, {how['size']}×{how['size']} px, batch {how['batch']}, "
        f"{found['precision']}: {how['epochs']} epochs of {how['frames']} frames. "
        "Share: of the rate of a large matrix product in the same precision. Whole run: on the "
        "split by frame, with validation and checkpoints.\n\n"
        + table(("model", "s", "frames/s", "share of the limit", "whole run, s"), rows)
    )


def goals(found: dict, on_gpu: bool):
    if on_gpu:
        seconds = sum(one["seconds"] for one in found["models"].values())
        yield "seconds for the three full-size models", "<=", 300, seconds

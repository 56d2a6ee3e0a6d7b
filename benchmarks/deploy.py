"""ONNX Runtime against torch: how much faster an exported network is, and what int8 costs.

    python benchmarks/bench.py deploy

Speed: one frame of 256×256 px on one CPU thread, each network as `6-deploy` exports it, against
torch in eager mode, with random weights. Dice: the selected network trained by
parameters/tg3k-sample.yaml on the real frames, if THYROID_SHARED_DATA or ../shared/data holds them.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import ours
from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.models import build_model, initialise, to_input
from thyroid_lib.settings import read_study
from timing import figure, median, ratios, seconds_of, spread, table, take_turns

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("unet", "segnet", "resunet")
SELECTED = "resunet"
FOLDS = (0, 1)
ABOUT = {"resize": "square", "threshold": 0.5}


def runners(name: str, width: int, size: int, folder: Path) -> dict:
    """Functions that return the processor seconds of one frame: torch, fp32 and int8."""
    from thyroid_lib.deploy import export
    from thyroid_lib.deploy.predictor import Predictor

    net = build_model(name, width=width)
    initialise(net, seed=0)
    frames = np.random.default_rng(0).integers(0, 256, (8, size, size)).astype(np.uint8)
    image = to_input(torch.from_numpy(frames))
    with torch.no_grad():
        net.train()(image[:2])  # fills batch norm's statistics
    path, small = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    about = ABOUT | {"model": name, "size": size}
    export.write_onnx(path, export.to_onnx(net, size), about)
    export.write_onnx(small, export.to_int8(path, frames, small), about)
    net = net.to(memory_format=torch.channels_last).eval()
    one = image[:1].contiguous(memory_format=torch.channels_last)

    def eager():
        with torch.inference_mode():
            return net(one)

    turns = {"torch": eager}
    for precision, file in (("fp32", path), ("int8", small)):
        predictor = Predictor.open(file)
        turns[precision] = lambda predictor=predictor: predictor.network(frames[:1])
    # in processor time, all on one thread: other processes do not count
    return {
        name: (lambda work=work: seconds_of(work, time.process_time))
        for name, work in turns.items()
    }


def dice_of(fold: int, folder: Path, data: Path) -> dict:
    """Train the selected network on the real frames, once; Dice of fp32 and int8 on each side."""
    from thyroid_lib.deploy import export
    from thyroid_lib.deploy.predictor import Predictor

    study = read_study([ROOT / "parameters" / "tg3k-sample.yaml"])
    cases = load_cases("tg3k", str(data), folder=folder, sweeps=1, frames=1, seed=0, text=False)
    how = {key: study[key] for key in ("size", "resize", "mend")}
    store = build_store(cases, folder / "store", **how)
    keys = ("width", "folds", "val_share", "epochs", "batch_size", "lr", "selection", "augment",
            "threshold", "threads", "precision")  # fmt: skip
    how = {key: study[key] for key in keys} | {"model": SELECTED, "protocol": "grouped"}
    out = folder / f"{SELECTED}-{fold}"
    run = ours.train_run(store, out=out, fold=fold, seed=0, device="cpu", **how)
    path, small = folder / "fp32.onnx", folder / "int8.onnx"
    about = {key: run.meta[key] for key in ("model", "size", "resize", "threshold")}
    export.write_onnx(path, export.to_onnx(run.model, store.size), about | {"temperature": 1.0})
    rows = export.calibration_rows(store, run.sides == "train")
    made = export.to_int8(path, store.images[rows], small)
    export.write_onnx(small, made, about | {"temperature": 1.0})
    both = {"fp32": Predictor.open(path), "int8": Predictor.open(small)}
    found = {"fold": fold, "pixels": export.agree(*both.values(), store)["pixels"]}
    for side in ("val", "test"):
        scores = {
            each: export.score(by, store, run.sides == side).groupby("group")["dice"].mean()
            for each, by in both.items()
        }
        change = scores["int8"] - scores["fp32"]
        found[side] = {each: float(of.mean()) for each, of in scores.items()}
        found[side] |= {"groups": len(change)}
        found[side] |= {"least": float(change.min()), "most": float(change.max())}
    return found


def measure(args) -> dict:
    """Time every network at two widths; then int8's Dice, if the real frames are available."""
    import onnxruntime

    from thyroid_lib.deploy import export

    torch.set_num_threads(1)
    points = ((4, 32, 2),) if args.quick else ((16, 256, 15), (64, 256, 5))
    shared = Path(os.environ.get("THYROID_SHARED_DATA") or ROOT.parent / "shared" / "data")
    data, rows, dices = shared / "tg3k-sample", [], []
    with tempfile.TemporaryDirectory() as folder, export._quiet():
        for width, size, repeats in points:
            for name in MODELS:
                turns = runners(name, width, size, Path(folder))
                take_turns(turns, 1)  # warm-up
                row = {"model": name, "width": width, "size": size}
                rows.append(row | {"seconds": take_turns(turns, repeats)})
        for fold in FOLDS if data.is_dir() and not args.quick else ():
            dices.append(dice_of(fold, Path(args.cache, "deploy"), data))
    return {"rows": rows, "dice": dices, "onnxruntime": onnxruntime.__version__}


def show(found: dict) -> str:
    """The tables, in Markdown."""
    rows = []
    for row in found["rows"]:
        took = row["seconds"]
        faster = (spread(ratios(took["torch"], took[name])) for name in ("fp32", "int8"))
        ms = spread([1e3 * each for each in took["torch"]])
        rows.append((row["model"], row["width"], row["size"], ms, *faster))
    columns = ("network", "width", "size, px", "torch, ms", "fp32, times as fast")
    text = (
        "One frame on one CPU thread, in processor time; ratios are within a repeat. ONNX Runtime "
        f"{found['onnxruntime']}.\n\n" + table((*columns, "int8, times as fast"), rows)
    )
    if not found["dice"]:
        return f"{text}\n\nThe real frames are not here, so what int8 costs was not measured."
    rows = []
    for each in found["dice"]:
        for side in ("val", "test"):
            of = each[side]
            change = f"{of['int8'] - of['fp32']:+.4f} ({of['least']:+.4f} to {of['most']:+.4f})"
            dice = f"{of['fp32']:.4f}", f"{of['int8']:.4f}", change
            pixels = f"{figure(100 * each['pixels'], 2)}%"
            rows.append((each["fold"], side, of["groups"], *dice, pixels))
    columns = ("fold", "side", "groups", "Dice, fp32", "Dice, int8", "change")
    return (
        f"{text}\n\nWhat int8 changes of {SELECTED}, trained as parameters/tg3k-sample.yaml says "
        "under `grouped` on the public sample: Dice averaged over groups, and in brackets the "
        "change of the groups, from the lowest to the highest.\n\n"
        + table((*columns, "mask pixels that differ"), rows, texts=2)
    )


def goals(found: dict, on_gpu: bool):
    """The slower width of the selected network, and the largest change of Dice on any side."""
    mine = [row["seconds"] for row in found["rows"] if row["model"] == SELECTED]
    for name, limit in (("fp32", 1.4), ("int8", 3.0)):
        least = min(median(ratios(took["torch"], took[name])) for took in mine)
        yield f"rate of ONNX Runtime {name} over torch's, {SELECTED}", ">=", limit, least
    sides = [each[side] for each in found["dice"] for side in ("val", "test")]
    change = max((abs(of["int8"] - of["fp32"]) for of in sides), default=None)
    yield f"change of Dice by int8, any fold and side, {SELECTED}", "<=", 0.002, change

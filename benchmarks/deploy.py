"""ONNX Runtime against torch: how much faster a released network is, and what int8 costs.

    python benchmarks/bench.py deploy

Speed: one frame of 256 x 256 px on one CPU thread, each network as `6-deploy` exports it, against
torch in eager mode. Weights decide no speed: they are drawn. Dice: the selected network trained as
parameters/tg3k-sample.yaml says, under `grouped`, on the real frames, where they are there
(THYROID_SHARED_DATA, or ../shared/data); int8's ranges come from training frames.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.models import build_model, initialise, to_input
from thyroid_lib.settings import read_study
from thyroid_lib.train.run import train_model
from timing import figure, median, ratios, spread, take_turns

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("unet", "segnet", "resunet")
SELECTED = "resunet"
FOLDS = (0, 1)
ABOUT = {"resize": "square", "threshold": 0.5}


def runners(name: str, width: int, size: int, folder: Path) -> dict:
    """Return what answers one frame, and its processor seconds: torch, fp32 and int8."""
    from thyroid_lib.deploy import export
    from thyroid_lib.deploy.predictor import Predictor

    net = build_model(name, width=width)
    initialise(net, seed=0)
    frames = np.random.default_rng(0).integers(0, 256, (8, size, size)).astype(np.uint8)
    image = to_input(torch.from_numpy(frames))
    with torch.no_grad():
        net.train()(image[:2])  # statistics of batch norm
    path, small = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
    about = ABOUT | {"model": name, "size": size}
    export.write_onnx(path, export.to_onnx(net, size), about)
    export.write_onnx(small, export.to_int8(path, frames, small), about)
    net = net.to(memory_format=torch.channels_last).eval()
    one = image[:1].contiguous(memory_format=torch.channels_last)

    def eager():
        with torch.inference_mode():
            return net(one)

    released = {p: Predictor.open(path if p == "fp32" else small) for p in ("fp32", "int8")}
    turns = {"torch": eager} | {
        each: (lambda by=by: by.network(frames[:1])) for each, by in released.items()
    }
    return {each: (lambda work=work: _seconds(work)) for each, work in turns.items()}


def _seconds(work) -> float:
    """Processor seconds of one call, all on one thread: what else runs here does not count."""
    began = time.process_time()
    work()
    return time.process_time() - began


def dice_of(fold: int, folder: Path, data: Path) -> dict:
    """Train the selected network on the real frames; Dice of fp32 and int8 by side, masks apart.

    What is kept in `folder` of an earlier time is not trained again.
    """
    from thyroid_lib.deploy import export
    from thyroid_lib.deploy.predictor import Predictor

    study = read_study([ROOT / "parameters" / "tg3k-sample.yaml"])
    cases = load_cases("tg3k", str(data), folder=folder, sweeps=1, frames=1, seed=0, text=False)
    how = {key: study[key] for key in ("size", "resize", "mend")}
    store = build_store(cases, folder / "store", **how)
    keys = ("width", "folds", "val_share", "epochs", "batch_size", "lr", "selection", "augment",
            "threshold", "threads", "precision")  # fmt: skip
    recipe = {key: study[key] for key in keys}
    run = train_model(
        store, out=folder / f"{SELECTED}-{fold}", model=SELECTED, protocol="grouped", fold=fold,
        seed=0, device="cpu", **recipe,
    )  # fmt: skip
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
        found[side] |= {
            "groups": len(change),
            "least": float(change.min()),
            "most": float(change.max()),
        }
    return found


def real_frames() -> Path | None:
    """Where the public sample lies, if it does."""
    shared = Path(os.environ.get("THYROID_SHARED_DATA") or ROOT.parent / "shared" / "data")
    return shared / "tg3k-sample" if (shared / "tg3k-sample").is_dir() else None


def measure(asked) -> dict:
    """Time every network at two widths; then int8's Dice, if the real frames are here."""
    import onnxruntime

    from thyroid_lib.deploy import export

    torch.set_num_threads(1)
    points = ((4, 32, 2),) if asked.quick else ((16, 256, 15), (64, 256, 5))
    rows, dices = [], []
    with tempfile.TemporaryDirectory() as folder, export._quiet():
        for width, size, repeats in points:
            for name in MODELS:
                turns = runners(name, width, size, Path(folder))
                take_turns(turns, 1)  # warm
                rows.append(
                    {"model": name, "width": width, "size": size}
                    | {"seconds": take_turns(turns, repeats)}
                )
        data = None if asked.quick else real_frames()
        for fold in FOLDS if data else ():
            dices.append(dice_of(fold, Path(asked.cache, "deploy"), data))
    return {"rows": rows, "dice": dices, "onnxruntime": onnxruntime.__version__}


def show(found: dict) -> str:
    """The tables, in Markdown."""
    lines = [
        "One frame on one CPU thread, in processor time; ratios are within a repeat. ONNX Runtime "
        f"{found['onnxruntime']}.",
        "",
        "| network | width | size, px | torch, ms | fp32, times as fast | int8, times as fast |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        took = row["seconds"]
        each = [spread(ratios(took["torch"], took[name])) for name in ("fp32", "int8")]
        milli = spread([1000 * value for value in took["torch"]])
        lines.append(
            f"| {row['model']} | {row['width']} | {row['size']} | {milli} | {' | '.join(each)} |"
        )
    if not found["dice"]:
        return "\n".join([*lines, "", "int8's Dice was not measured: no real frames here."])
    lines += [
        "",
        f"What int8 changes of {SELECTED}, trained as parameters/tg3k-sample.yaml says under "
        "`grouped` on the public sample: Dice averaged over groups, and in brackets the change of "
        "the groups, from the lowest to the highest.",
        "",
        "| fold | side | groups | Dice, fp32 | Dice, int8 | change | mask pixels that differ |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for each in found["dice"]:
        for side in ("val", "test"):
            of = each[side]
            change = f"{of['int8'] - of['fp32']:+.4f} ({of['least']:+.4f} to {of['most']:+.4f})"
            lines.append(
                f"| {each['fold']} | {side} | {of['groups']} | {of['fp32']:.4f} | "
                f"{of['int8']:.4f} | {change} | {figure(100 * each['pixels'], 2)}% |"
            )
    return "\n".join(lines)


def reached(found: dict) -> dict:
    """The selected network's slower width, and the largest change of Dice on validation."""
    mine = [row["seconds"] for row in found["rows"] if row["model"] == SELECTED]
    least = [
        min(median(ratios(took["torch"], took[name])) for took in mine) for name in ("fp32", "int8")
    ]
    values = {"fp32 over torch": least[0], "int8 over torch": least[1]}
    sides = [each[side] for each in found["dice"] for side in ("val", "test")]
    if sides:
        values["change by int8"] = max(abs(of["int8"] - of["fp32"]) for of in sides)
    return values

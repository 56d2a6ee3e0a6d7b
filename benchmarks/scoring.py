"""Scoring one case: this project's metrics against MONAI's and torchmetrics', on one core.

    python benchmarks/bench.py scoring

Pairs: the phantoms' masks at their native size, and as predictions the same masks moved by a few
pixels and eroded or dilated. MONAI computes five of the seven numbers, torchmetrics Dice and its
Hausdorff distance. All that a case costs (back to native size, metrics, calibration, Dice at nine
thresholds) is timed by `score_rows` on a store, minus the time to predict.
"""

import importlib.util
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

import ours
from data import list_pairs
from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.evaluate import predict
from thyroid_lib.evaluate.metrics import score_case
from timing import median, ratios, seconds_of, spread, table, take_turns

FEW = 2  # pairs for torchmetrics' Hausdorff, which takes seconds for each
NAMES = {  # in the order of the table
    "score_case": "**this project**: `score_case`, seven metrics",
    "score_rows": "**this project**: all that a case costs in `score_rows`, predicting left out",
    "monai": "MONAI: Dice, IoU, NSD, HD95, ASSD",
    "torchmetrics dice": "torchmetrics: Dice alone",
    "torchmetrics": "torchmetrics: Hausdorff distance alone",
}
INDEX = {"num_classes": 2, "include_background": False, "input_format": "index"}


def make_pairs(frames: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pred, ref), bool (H,W), spread over all sweeps."""
    files, rng = list_pairs(frames), np.random.default_rng(0)
    paths = [files[row][1] for row in np.linspace(0, len(files) - 1, count).astype(int)]
    refs = [np.array(Image.open(path).convert("L")) > 127 for path in paths]
    return [(disturb(ref, rng), ref) for ref in refs]


def disturb(ref: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A prediction close to it: moved by up to 4 px, eroded or dilated by up to 3."""
    change = ndimage.binary_erosion if rng.random() < 0.5 else ndimage.binary_dilation
    pred = change(ref, iterations=int(rng.integers(1, 4)))
    pred = np.roll(pred, rng.integers(-4, 5, 2), (0, 1))
    return pred if pred.any() else ref.copy()


def by_project(pred: np.ndarray, ref: np.ndarray) -> list[float]:
    scores = score_case(pred=pred, ref=ref)
    return [scores[name] for name in ("dice", "iou", "nsd", "hd95_px", "assd_px")]


def by_monai(pred: np.ndarray, ref: np.ndarray) -> list[float]:
    """Dice, IoU, NSD, HD95 and ASSD."""
    from monai import metrics

    both = {"y_pred": torch.from_numpy(pred)[None, None].float()}
    both["y"] = torch.from_numpy(ref)[None, None].float()
    edges = {**both, "include_background": True, "spacing": (1.0, 1.0)}
    return [
        metrics.compute_dice(**both, ignore_empty=False).item(),
        metrics.compute_iou(**both, ignore_empty=False).item(),
        metrics.compute_surface_dice(class_thresholds=[2.0], **edges).item(),
        metrics.compute_hausdorff_distance(percentile=95, **edges).item(),
        metrics.compute_average_surface_distance(symmetric=True, **edges).item(),
    ]


def by_torchmetrics(name: str, pred: np.ndarray, ref: np.ndarray) -> float:
    """Its `dice_score`, or its `hausdorff_distance`, which has no 95th percentile."""
    from torchmetrics.functional import segmentation

    masks = (torch.from_numpy(mask)[None].long() for mask in (pred, ref))  # (1,H,W) of 0 and 1
    return getattr(segmentation, name)(*masks, **INDEX).item()


class Answer(torch.nn.Module):
    """A model that returns given logits, the next ones at each call."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits, self.at = logits, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.logits[self.at : self.at + len(images)]
        self.at = (self.at + len(images)) % len(self.logits)
        return found


def whole_case(frames: Path, folder: Path, count: int, size: int):
    """Two functions: score so many cases of a store, and only predict them."""
    cases = load_cases("folder", frames)
    cases = cases.iloc[np.linspace(0, len(cases) - 1, count).astype(int)]
    store = build_store(cases, folder, size=size)
    rng, rows = np.random.default_rng(0), np.arange(len(store))
    pred = np.stack([disturb(mask > 0, rng) for mask in store.masks])
    logits = torch.from_numpy(ndimage.gaussian_filter(pred * 12.0 - 6.0, (0, 2, 2)))[:, None]
    model = Answer(logits.float())
    return (
        lambda: ours.score_rows(model, store, rows),
        lambda: predict.predict_prob(model, store.images[rows]),
    )


def measure(args) -> dict:
    """Time all in turns; milliseconds per case."""
    count, repeats, size = (4, 2, 64) if args.quick else (45, 5, 256)
    pairs = make_pairs(args.frames, count)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own calls
        score, only_predict = whole_case(args.frames, Path(folder, "store"), count, size)
        turns = {
            "score_case": lambda: _ms(by_project, pairs),
            "score_rows": lambda: 1e3 * (seconds_of(score) - seconds_of(only_predict)) / count,
            "score_case, few": lambda: _ms(by_project, pairs[:FEW]),
        }
        if importlib.util.find_spec("monai"):
            turns["monai"] = lambda: _ms(by_monai, pairs)
        if importlib.util.find_spec("torchmetrics"):
            by_dice, by_hausdorff = (
                partial(by_torchmetrics, name) for name in ("dice_score", "hausdorff_distance")
            )
            turns["torchmetrics dice"] = lambda: _ms(by_dice, pairs)
            turns["torchmetrics"] = lambda: _ms(by_hausdorff, pairs[:FEW])
        take_turns(turns, 1)  # first calls load and compile
        found = take_turns(turns, repeats)
    shapes = [pair[0].shape for pair in pairs]
    about = {"cases": count, "few": FEW, "smallest": min(shapes), "largest": max(shapes)}
    return about | {"ms": found}


def _ms(metric, pairs: list) -> float:
    return 1e3 * seconds_of(lambda: [metric(*pair) for pair in pairs]) / len(pairs)


def show(found: dict) -> str:
    """The table, in Markdown."""
    sizes = " to ".join("{}×{}".format(*found[side]) for side in ("smallest", "largest"))
    rows = []
    for name in (name for name in NAMES if name in found["ms"]):
        ratio = "" if "score" in name else spread(_ratio(found, name))
        rows.append((NAMES[name], spread(found["ms"][name]), ratio))
    text = (
        f"{found['cases']} pairs of {sizes} px ({found['few']} of them for torchmetrics' "
        "Hausdorff), one core. Ratio: their time over that of `score_case`, on the same pairs."
        "\n\n" + table(("", "ms per case", "ratio"), rows)
    )
    absent = [name for name in ("monai", "torchmetrics") if name not in found["ms"]]
    return text + (f"\n\nNot installed, so not measured: {', '.join(absent)}." if absent else "")


def _ratio(found: dict, name: str) -> list[float]:
    same = "score_case, few" if name == "torchmetrics" else "score_case"
    return ratios(found["ms"][name], found["ms"][same])


def goals(found: dict, on_gpu: bool):
    ms = found["ms"]
    yield "milliseconds for all metrics of a case", "<=", 3.0, median(ms["score_case"])
    yield "milliseconds for all that a case costs", "<=", 3.0, median(ms["score_rows"])
    slow = median(_ratio(found, "torchmetrics")) if "torchmetrics" in ms else None
    yield "rate over torchmetrics' Hausdorff", ">=", 10.0, slow

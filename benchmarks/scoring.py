"""Scoring one case: this project's metrics against MONAI's and torchmetrics', on one core.

    python benchmarks/bench.py scoring

Pairs: the phantoms' masks at their native size, and as predictions the same masks moved by a few
pixels and eroded or dilated. MONAI is asked for five of the seven numbers, torchmetrics for Dice
and for its Hausdorff distance. What a case costs beside its metrics (back to native size,
calibration, Dice at nine thresholds) is timed through `score_rows` on a store, less what predicting
alone takes.
"""

import tempfile
import warnings
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
from timing import median, ratios, seconds_of, spread, take_turns

FEW = 2  # pairs for torchmetrics' Hausdorff, of which each takes seconds


def make_pairs(frames: Path, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pred, ref), bool (H,W), spread over all sweeps."""
    files = list_pairs(frames)
    rng = np.random.default_rng(0)
    pairs = []
    for place in np.linspace(0, len(files) - 1, count).astype(int):
        ref = np.array(Image.open(files[place][1]).convert("L")) > 127
        pairs.append((disturb(ref, rng), ref))
    return pairs


def disturb(ref: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A prediction like it: moved by up to 4 px, eroded or dilated by up to 3."""
    change = ndimage.binary_erosion if rng.random() < 0.5 else ndimage.binary_dilation
    pred = change(ref, iterations=int(rng.integers(1, 4)))
    pred = np.roll(pred, rng.integers(-4, 5, 2), (0, 1))
    return pred if pred.any() else ref.copy()


def by_monai(pred: np.ndarray, ref: np.ndarray) -> list[float]:
    """Dice, IoU, NSD, HD95 and ASSD, of which MONAI has all."""
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


def torchmetrics_dice(pred: np.ndarray, ref: np.ndarray) -> float:
    from torchmetrics.functional.segmentation import dice_score

    return dice_score(*_indices(pred, ref), **INDEX).item()


def torchmetrics_hausdorff(pred: np.ndarray, ref: np.ndarray) -> float:
    """The largest distance; it has no 95th percentile."""
    from torchmetrics.functional.segmentation import hausdorff_distance

    return hausdorff_distance(*_indices(pred, ref), **INDEX).item()


INDEX = {"num_classes": 2, "include_background": False, "input_format": "index"}


def _indices(*masks: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(mask)[None].long() for mask in masks]  # (1,H,W) of 0 and 1


def by_project(pred: np.ndarray, ref: np.ndarray) -> list[float]:
    scores = score_case(pred=pred, ref=ref)
    return [scores[name] for name in ("dice", "iou", "nsd", "hd95_px", "assd_px")]


class Answer(torch.nn.Module):
    """A model that answers at once: with the next of the logits that it was given."""

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
    rng = np.random.default_rng(0)
    pred = np.stack([disturb(mask > 0, rng) for mask in store.masks])
    logits = torch.from_numpy(ndimage.gaussian_filter(pred * 12.0 - 6.0, (0, 2, 2)))[:, None]
    rows = np.arange(len(store))
    model = Answer(logits.float())
    return (
        lambda: ours.score_store(model, store, rows),
        lambda: predict.predict_prob(model, store.images[rows]),
    )


def measure(asked) -> dict:
    """Time all in turns; milliseconds per case."""
    count, repeats, size = (4, 2, 64) if asked.quick else (45, 5, 256)
    pairs = make_pairs(asked.frames, count)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own calls
            score, only_predict = whole_case(asked.frames, Path(folder, "store"), count, size)
            turns = {
                "score_case": lambda: _per_case(by_project, pairs),
                "score_rows": lambda: 1e3 * (seconds_of(score) - seconds_of(only_predict)) / count,
                "score_case, few": lambda: _per_case(by_project, pairs[:FEW]),
            }
            turns |= _others(pairs)
            for turn in turns.values():  # first calls load and compile
                turn()
            found = take_turns(turns, repeats)
    finally:
        torch.set_num_threads(threads)
    shapes = [pair[0].shape for pair in pairs]
    return {
        "ms": found,
        "cases": count,
        "few": FEW,
        "smallest": min(shapes),
        "largest": max(shapes),
    }


def _others(pairs: list) -> dict:
    """The turns of the libraries that are installed."""
    import importlib.util

    turns = {}
    if importlib.util.find_spec("monai"):
        turns["monai"] = lambda: _per_case(by_monai, pairs)
    if importlib.util.find_spec("torchmetrics"):
        turns["torchmetrics dice"] = lambda: _per_case(torchmetrics_dice, pairs)
        turns["torchmetrics"] = lambda: _per_case(torchmetrics_hausdorff, pairs[:FEW])
    return turns


def _per_case(metric, pairs: list) -> float:
    return 1e3 * seconds_of(lambda: [metric(*pair) for pair in pairs]) / len(pairs)


NAMES = {  # in the table's order
    "score_case": "**this project**: `score_case`, seven metrics",
    "score_rows": "**this project**: all that a case costs in `score_rows`, predicting left out",
    "monai": "MONAI: Dice, IoU, NSD, HD95, ASSD",
    "torchmetrics dice": "torchmetrics: Dice alone",
    "torchmetrics": "torchmetrics: Hausdorff distance alone",
}


def show(found: dict) -> str:
    """The table, in Markdown."""
    sizes = " to ".join(
        f"{height}×{width}" for height, width in (found["smallest"], found["largest"])
    )
    lines = [
        f"{found['cases']} pairs of {sizes} px ({found['few']} of them for torchmetrics' "
        "Hausdorff), one core. Ratio: their time over that of `score_case`, on the same pairs.",
        "",
        "| | ms per case | ratio |",
        "|:--|--:|--:|",
    ]
    for name, title in NAMES.items():
        if took := found["ms"].get(name):
            ratio = "" if "score" in name else spread(_ratio(found, name))
            lines.append(f"| {title} | {spread(took)} | {ratio} |")
    if absent := [name for name in ("monai", "torchmetrics") if name not in found["ms"]]:
        lines += ["", f"Not installed, so not measured: {', '.join(absent)}."]
    return "\n".join(lines)


def _ratio(found: dict, name: str) -> list[float]:
    same = "score_case, few" if name == "torchmetrics" else "score_case"
    return ratios(found["ms"][name], found["ms"][same])


def reached(found: dict) -> dict[str, float]:
    """Milliseconds of ours, and how many times theirs torchmetrics' Hausdorff takes."""
    values = {"score_case": median(found["ms"]["score_case"])}
    values["score_rows"] = median(found["ms"]["score_rows"])
    if "torchmetrics" in found["ms"]:
        values["torchmetrics' Hausdorff"] = median(_ratio(found, "torchmetrics"))
    return values

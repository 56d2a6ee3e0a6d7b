"""From frames to masks with a trained model, for the study's scores and for a folder of images.

    python -m thyroid_lib.predict --model results/demo/runs/<run>/model.pt --images DIR --out DIR

writes one mask (PNG, 0 or 255, at the image's own size) per image and `areas.csv`.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from thyroid_lib import frames, write_file
from thyroid_lib.metrics import dice, part_errors, score_case
from thyroid_lib.models import build_model, to_input
from thyroid_lib.store import Store

THRESHOLDS = tuple(percent / 100 for percent in range(30, 71, 5))
BINS = 15  # of probability, of equal width, for calibration
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}


def choose_device(device: str = "auto") -> torch.device:
    """Turn "auto" into CUDA, Apple's mps or the CPU, the first that is there.

    Raises:
        ValueError: a device was asked for by name and is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    if not there.get(device, False):
        usable = ", ".join(name for name, present in there.items() if present)
        raise ValueError(f"device: got {device!r}, this machine has {usable}; or say auto")
    return torch.device(device)


@torch.inference_mode()
def predict_prob(
    model: torch.nn.Module, images: np.ndarray, *, device: str = "cpu", batch_size: int = 16
) -> np.ndarray:
    """Return the probability of thyroid per pixel.

    Args:
        model: gives logits (N,1,S,S).
        images: uint8 (N,S,S), as the store holds them.

    Returns:
        float32 (N,S,S) in [0,1], before any threshold.
    """
    model = model.to(device).eval()
    prob = np.empty(images.shape, dtype=np.float32)
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.array(images[start : start + batch_size])).to(device)
        logits = model(to_input(batch))  # (B,1,S,S)
        prob[start : start + batch_size] = logits.float().sigmoid()[:, 0].cpu().numpy()
    return prob


def restore_model(name: str, width: int, weights: dict) -> torch.nn.Module:
    """Build a trained network, ready to predict on the CPU.

    In the one memory layout that every score comes from: another one gives other last bits.
    """
    model = build_model(name, width=width)
    model.load_state_dict(weights)
    return model.to(memory_format=torch.channels_last).eval()


def load_model(path: str | Path, device: str = "cpu") -> tuple[torch.nn.Module, dict]:
    """Read a finished run's `model.pt`.

    Returns:
        The model in evaluation mode, and what was written with it (model, width, size, resize,
        threshold, run_id, …).

    Raises:
        FileNotFoundError, ValueError: nothing there, or not a model of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}: give the model.pt of a finished run")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        weights, meta = state["weights"], state["meta"]
    except Exception as error:  # torch raises a dozen kinds on a file that is not its own
        raise ValueError(
            f"{path.name} is not a model of this project ({type(error).__name__}): "
            "give the model.pt of a finished run"
        ) from error
    return restore_model(meta["model"], meta["width"], weights).to(device), meta


def predict_rows(
    model: torch.nn.Module,
    store: Store,
    rows: np.ndarray,
    *,
    device: str = "cpu",
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Return the probability maps of these rows of a store, float32 (H,W) at native size."""
    prob = predict_prob(model, store.images[rows], device=device, batch_size=batch_size)
    sizes = store.index.iloc[rows][["height", "width"]].to_numpy(int)
    resize = store.settings["resize"]
    return [
        frames.restore_prob(prob[i], int(height), int(width), resize)
        for i, (height, width) in enumerate(sizes)
    ]


def segment_case(run: str | Path, store: Store, case_id: str, *, device: str = "cpu") -> np.ndarray:
    """Return a finished run's mask of one case of a store, bool (H,W) at native size.

    Raises:
        KeyError: the store has no such case.
    """
    model, meta = load_model(Path(run) / "model.pt", device)
    rows = np.flatnonzero(store.index["case_id"] == case_id)
    if not len(rows):
        raise KeyError(f"no case {case_id} in the store {store.folder.name}")
    prob = predict_rows(model, store, rows, device=device)[0]
    return frames.threshold_prob(prob, meta["threshold"])


@dataclass(frozen=True)
class Scores:
    """What is kept of a run's test cases.

    cases: one row per case: case_id, dataset, group, the metrics of `metrics.score_case` and
        `metrics.part_errors`, brier (mean squared error of the probability), pred_px and ref_px
        (areas in pixels).
    thresholds: one row per case: case_id, group, and Dice at each of `THRESHOLDS` ("0.30" …).
    calibration: one row per group and bin of probability (0 … 14) that has pixels: group, bin,
        pixels, mean_prob, share (of thyroid among them).
    """

    cases: pd.DataFrame
    thresholds: pd.DataFrame
    calibration: pd.DataFrame


def score_rows(
    model: torch.nn.Module,
    store: Store,
    rows: np.ndarray,
    *,
    threshold: float = 0.5,
    tolerance_px: float = 2.0,
    device: str = "cpu",
    batch_size: int = 16,
) -> Scores:
    """Score every case by itself at its native size, empty answers included."""
    cases, sweeps, bins = [], [], {}
    for start in range(0, len(rows), 256):  # native maps of all cases at once would fill memory
        part = rows[start : start + 256]
        probs = predict_rows(model, store, part, device=device, batch_size=batch_size)
        for row, prob in zip(part, probs, strict=True):
            pred, ref = frames.threshold_prob(prob, threshold), store.reference(row)
            case = store.index.iloc[row][["case_id", "dataset", "group"]].to_dict()
            case |= score_case(pred=pred, ref=ref, tolerance_px=tolerance_px)
            case |= part_errors(pred, ref)
            case["brier"] = float(np.square(prob - ref, dtype=np.float64).mean())
            cases.append(case | {"pred_px": int(pred.sum()), "ref_px": int(ref.sum())})
            at = {f"{t:.2f}": dice(frames.threshold_prob(prob, t), ref) for t in THRESHOLDS}
            sweeps.append({"case_id": case["case_id"], "group": case["group"]} | at)
            counts = _bin_pixels(prob, ref)
            bins[case["group"]] = bins.get(case["group"], 0) + counts
    table = [
        {"group": group, "bin": place, "pixels": int(n), "mean_prob": p / n, "share": t / n}
        for group, counts in sorted(bins.items())
        for place, (n, p, t) in enumerate(counts.T)
        if n
    ]
    return Scores(pd.DataFrame(cases), pd.DataFrame(sweeps), pd.DataFrame(table))


def _bin_pixels(prob: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """Per bin of probability: pixels, sum of probability, pixels of thyroid; float64 (3, BINS)."""
    place = np.minimum((prob * BINS).astype(int), BINS - 1).ravel()
    weights = (None, prob.ravel(), ref.ravel())
    return np.stack([np.bincount(place, w, BINS).astype(np.float64) for w in weights])


def fit_temperature(prob: np.ndarray, ref: np.ndarray) -> float:
    """Fit the one number that calibrates a network: logits are divided by it.

    Args:
        prob: float32 (N,S,S), predictions on validation cases, never on test cases.
        ref: bool (N,S,S).

    Returns:
        The temperature of least cross-entropy, in [0.1, 10]; above 1: the network was too sure.

    Source: Guo, Pleiss, Sun & Weinberger, ICML 2017 (arXiv 1706.04599).
    """
    prob = np.clip(prob.astype(np.float64).ravel(), 1e-6, 1 - 1e-6)
    sign = np.where(ref.ravel(), -1.0, 1.0)
    wrong = sign * np.log(prob / (1 - prob))  # logit, positive where it speaks for the wrong side

    def loss(log_t: float) -> float:
        return np.logaddexp(0, wrong / np.exp(log_t)).mean()

    limits = np.log(0.1), np.log(10)
    return float(np.exp(minimize_scalar(loss, bounds=limits, method="bounded").x))


def segment_folder(model_path: str | Path, images: str | Path, out: str | Path) -> pd.DataFrame:
    """Segment every image of a folder; an unreadable one is reported and passed over.

    Returns:
        One row per image: file, height, width, area_px, problem ("" where it went well).
    """
    model, meta = load_model(model_path)
    if not Path(images).is_dir():
        raise ValueError(f"no folder at {images}: give the folder that holds the images")
    files = sorted(f for f in Path(images).iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"no image in {images}: need {', '.join(sorted(IMAGE_SUFFIXES))}")
    rows = []
    for file in tqdm(files, unit="image", leave=False, disable=None):  # on a terminal only
        try:
            image = frames.read_gray(file)  # (H,W)
        except ValueError as error:
            rows.append({"file": file.name, "problem": str(error)})
            continue
        fitted = frames.fit_image(image, meta["size"], meta["resize"])
        prob = predict_prob(model, fitted[None])[0]
        native = frames.restore_prob(prob, *image.shape, meta["resize"])
        pred = frames.threshold_prob(native, meta["threshold"])
        target = Path(out) / f"{file.name}.mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pred.astype(np.uint8) * 255).save(target)
        height, width = image.shape
        rows.append(
            {"file": file.name, "height": height, "width": width, "area_px": int(pred.sum())}
        )
    columns = ["file", "height", "width", "area_px", "problem"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    table[columns[1:4]] = table[columns[1:4]].astype("Int64")
    table["problem"] = table["problem"].fillna("")
    write_file(Path(out) / "areas.csv", table.to_csv(index=False))
    return table


def main() -> int:
    """Segment a folder from the command line; exit 1 if any image failed, 2 if none could run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model.pt of a finished run")
    parser.add_argument("--images", required=True, help="folder of PNG, JPEG, BMP or TIFF")
    parser.add_argument("--out", required=True, help="folder for the masks and areas.csv")
    asked = parser.parse_args()
    try:
        table = segment_folder(asked.model, asked.images, asked.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = table[table.problem != ""]
    for row in failed.itertuples():
        print(f"passed over {row.file}: {row.problem}", file=sys.stderr)
    print(f"{len(table) - len(failed)} of {len(table)} images segmented into {asked.out}")
    return 1 if len(failed) else 0


if __name__ == "__main__":
    sys.exit(main())

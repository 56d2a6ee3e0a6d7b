"""Score tables of test cases, from the network's probability maps, without torch; temperature."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from thyroid_lib.data import frames
from thyroid_lib.evaluate.diameters import diameters
from thyroid_lib.evaluate.metrics import dice, part_errors, score_case
from thyroid_lib.files.parallel import map_in_order

THRESHOLDS = tuple(percent / 100 for percent in range(30, 71, 5))
BINS = 15  # of probability, of equal width, for calibration
LOGITS, LOGIT_STEP = 14.0, 0.005  # range, ± (beyond that of float32's useful part), and bin


@dataclass(frozen=True)
class Scores:
    """The score tables of a run's test cases.

    cases: one row per case: case_id, dataset, group, `metrics.score_case`, `metrics.part_errors`,
        brier (mean squared error of the probability), pred_px and ref_px (areas in pixels),
        pred_longest_px, pred_across_px, ref_longest_px, ref_across_px (see `diameters`).
    thresholds: one row per case: case_id, group, and Dice at each of `THRESHOLDS` ("0.30" …).
    calibration: one row per group and bin of probability (0 … 14) with pixels: group, bin, pixels,
        mean_prob, share (of thyroid among the pixels).
    """

    cases: pd.DataFrame
    thresholds: pd.DataFrame
    calibration: pd.DataFrame


def score_maps(
    index: pd.DataFrame,
    batches: Iterable[tuple[np.ndarray, list[np.ndarray]]],
    *,
    workers: int = 1,
    **how,
) -> Scores:
    """Score every case at its native size; empty masks count, too.

    `index`: case_id, dataset and group of every case; `batches`, in their order: probability maps,
    float32 (B,S,S), and references at native size, a list of B bool (H,W); `workers`: processes,
    which do not change the result; `how`: see `score_map`.
    """
    names = index[["case_id", "dataset", "group"]].to_dict("records")
    cases, sweeps, bins = [], [], {}
    with closing(map_in_order(partial(_score_batch, **how), batches, workers)) as scored:
        each = chain.from_iterable(scored)
        for name, (case, dices, counts) in zip(names, each, strict=True):
            cases.append(name | case)
            sweeps.append({key: name[key] for key in ("case_id", "group")} | dices)
            bins[name["group"]] = bins.get(name["group"], 0) + counts
    table = [
        {"group": group, "bin": bin_, "pixels": int(n), "mean_prob": p / n, "share": t / n}
        for group, counts in sorted(bins.items())
        for bin_, (n, p, t) in enumerate(counts.T)
        if n
    ]
    return Scores(pd.DataFrame(cases), pd.DataFrame(sweeps), pd.DataFrame(table))


def _score_batch(batch: tuple[np.ndarray, list[np.ndarray]], **how) -> list[tuple]:
    return [score_map(prob, ref, **how) for prob, ref in zip(*batch, strict=True)]


def score_map(
    prob: np.ndarray, ref: np.ndarray, *, resize: str, threshold=0.5, tolerance_px=2.0
) -> tuple[dict, dict, np.ndarray]:
    """Score one map, float32 (S,S), against its reference at native size, bool (H,W).

    `resize`: as the frame's, or `frames.NATIVE` for a map (H,W).

    Returns the metrics of a row of `Scores.cases`; Dice by threshold; pixels, sum of probability
    and pixels of thyroid per bin of probability, float64 (3,BINS).
    """
    if resize == frames.NATIVE:
        pred = frames.threshold_prob(prob, threshold)  # (H,W)
    else:
        prob, pred = frames.restore_mask(prob, *ref.shape, resize=resize, threshold=threshold)
    case = score_case(pred=pred, ref=ref, tolerance_px=tolerance_px) | part_errors(pred, ref)
    case["brier"] = float(np.square(prob - ref, dtype=np.float64).mean())
    case |= {"pred_px": int(pred.sum()), "ref_px": int(ref.sum())}
    for name, mask in (("pred", pred), ("ref", ref)):
        case[f"{name}_longest_px"], case[f"{name}_across_px"] = diameters(mask)
    dices = {f"{t:.2f}": dice(frames.threshold_prob(prob, t), ref) for t in THRESHOLDS}
    bins = np.minimum((prob * BINS).astype(np.intp), BINS - 1)
    each = (None, prob, ref)  # weights
    counts = [np.bincount(bins.ravel(), w if w is None else w.ravel(), BINS) for w in each]
    return case, dices, np.stack(counts).astype(np.float64)


def count_logits(prob: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """Count pixels by logit, with its sign changed so that it is positive where it is wrong.

    prob, ref: float32 and bool, of one shape. Returns int64 (5600,), bins of 0.005 from −14 to 14.
    """
    prob = np.clip(prob.astype(np.float64).ravel(), 1e-6, 1 - 1e-6)
    wrong = np.where(ref.ravel(), -1.0, 1.0) * np.log(prob / (1 - prob))
    bins = ((wrong + LOGITS) / LOGIT_STEP).astype(np.intp)
    return np.bincount(bins, minlength=round(2 * LOGITS / LOGIT_STEP))


def fit_temperature(counts: np.ndarray) -> float:
    """Fit the temperature that calibrates a network: logits are divided by it.

    That of least cross-entropy in [0.1, 10]; above 1 the network is overconfident. `counts` is by
    `count_logits`, of validation cases, never of test cases. Source: Guo, Pleiss, Sun & Weinberger,
    ICML 2017 (arXiv 1706.04599).
    """
    wrong = (np.arange(len(counts)) + 0.5) * LOGIT_STEP - LOGITS

    def loss(log_t: float) -> float:
        return counts @ np.logaddexp(0, wrong / np.exp(log_t)) / counts.sum()

    limits = np.log(0.1), np.log(10)
    return float(np.exp(minimize_scalar(loss, bounds=limits, method="bounded").x))

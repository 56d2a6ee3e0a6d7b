"""Score tables of test cases, from the network's probability maps, without torch; temperature."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from thyroid_lib.data import frames
from thyroid_lib.data.label_maps import restore_labels, to_labels
from thyroid_lib.evaluate.class_scores import find_lesions, mean_dice, score_classes, split_classes
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
    classes: of several classes one row per case and class that was outlined, see `class_scores`:
        case_id, group, class and the metrics; else None.
    lesions: where nodules are segmented one row per part of a reference but of the class `gland`:
        case_id, group, class, px, covered (share of its pixels); else None.

    Of several classes, area, diameters, Brier score and calibration are of the foreground.
    """

    cases: pd.DataFrame
    thresholds: pd.DataFrame
    calibration: pd.DataFrame
    classes: pd.DataFrame | None = None
    lesions: pd.DataFrame | None = None


def score_maps(
    index: pd.DataFrame,
    batches: Iterable[tuple],
    *,
    workers: int = 1,
    task: str = "gland",
    classes: Sequence[str] = ("gland",),
    **how,
) -> Scores:
    """Score every case at its native size; empty masks count, too.

    `index`: case_id, dataset and group of every case; `batches`, in their order: probability maps,
    float32 (B,S,S), and references at native size, a list of B bool (H,W), of K > 1 classes maps
    (B,K,S,S), label maps (H,W) and, if not all were outlined, bool (B,K); `workers`: processes,
    which do not change the result; `how`: see `score_map`.
    """
    names = index[["case_id", "dataset", "group"]].to_dict("records")
    cases, sweeps, bins, of_classes, lesions = [], [], {}, [], []
    how |= {"classes": [*classes], "lesions": "nodule" in task}
    with closing(map_in_order(partial(_score_batch, **how), batches, workers)) as scored:
        each = chain.from_iterable(scored)
        for name, (case, dices, counts, rows, found) in zip(names, each, strict=True):
            cases.append(name | case)
            short = {key: name[key] for key in ("case_id", "group")}
            sweeps.append(short | dices)
            bins[name["group"]] = bins.get(name["group"], 0) + counts
            of_classes += [short | row for row in rows]
            lesions += [short | row for row in found]
    table = [
        {"group": group, "bin": bin_, "pixels": int(n), "mean_prob": p / n, "share": t / n}
        for group, counts in sorted(bins.items())
        for bin_, (n, p, t) in enumerate(counts.T)
        if n
    ]
    named = ["case_id", "group", "class", "px", "covered"]  # there may be none to test on
    return Scores(
        pd.DataFrame(cases), pd.DataFrame(sweeps), pd.DataFrame(table),
        pd.DataFrame(of_classes) if of_classes else None,
        pd.DataFrame(lesions, columns=named) if how["lesions"] else None,
    )  # fmt: skip


def _score_batch(batch: tuple, **how) -> list[tuple]:
    return [score_map(*each, **how) for each in zip(*batch, strict=True)]


def score_map(
    prob: np.ndarray, ref: np.ndarray, annotated: np.ndarray | None = None, *, resize: str,
    threshold=0.5, tolerance_px=2.0, classes: Sequence[str] = ("gland",), lesions=False,
) -> tuple[dict, dict, np.ndarray, list[dict], list[dict]]:  # fmt: skip
    """Score one map, float32 (S,S), against its reference at native size, bool (H,W).

    Of K > 1 classes: (K,S,S) against a label map, uint8 (H,W); annotated: bool (K,), those that
    were outlined. `resize`: as the frame's, or `frames.NATIVE` for a map (H,W).

    Returns the metrics of a row of `Scores.cases`; Dice by threshold; pixels, sum of probability
    and pixels of thyroid per bin of probability, float64 (3,BINS); rows of classes and of lesions.
    """
    how, several, rows = {"resize": resize, "threshold": threshold}, len(classes) > 1, []
    if several:
        probs, labels = restore_labels(prob, *ref.shape, **how)
        annotated = np.ones(len(classes), bool) if annotated is None else annotated
        masks = split_classes(labels, ref, classes, annotated)
        case, rows = score_classes(masks, tolerance_px)
        at = (split_classes(to_labels(probs, t), ref, classes, annotated) for t in THRESHOLDS)
        dices = {f"{t:.2f}": mean_dice(x) for t, x in zip(THRESHOLDS, at, strict=True)}
        prob, pred, ref = probs.sum(0).clip(max=1), labels > 0, ref > 0
    else:
        if resize == frames.NATIVE:
            pred = frames.threshold_prob(prob, threshold)  # (H,W)
        else:
            prob, pred = frames.restore_mask(prob, *ref.shape, **how)
        case = score_case(pred=pred, ref=ref, tolerance_px=tolerance_px) | part_errors(pred, ref)
        dices = {f"{t:.2f}": dice(frames.threshold_prob(prob, t), ref) for t in THRESHOLDS}
        masks = {classes[0]: (pred, ref)}
    case["brier"] = float(np.square(prob - ref, dtype=np.float64).mean())
    case |= {"pred_px": int(pred.sum()), "ref_px": int(ref.sum())}
    for name, mask in (("pred", pred), ("ref", ref)):
        case[f"{name}_longest_px"], case[f"{name}_across_px"] = diameters(mask)
    bins = np.minimum((prob * BINS).astype(np.intp), BINS - 1)
    each = (None, prob, ref)  # weights
    counts = [np.bincount(bins.ravel(), w if w is None else w.ravel(), BINS) for w in each]
    found = find_lesions(masks) if lesions else []
    return case, dices, np.stack(counts).astype(np.float64), rows, found


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

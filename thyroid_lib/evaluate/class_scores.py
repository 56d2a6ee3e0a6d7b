"""Scores of a label map of several classes, and of single lesions, per case.

A class is scored as a mask of its own. A case's scores are the means over the classes that its
reference or its prediction has. Where the reference has foreground of a kind that is not known
(255), the foreground is scored as one class, and no class is.
"""

import numpy as np
from scipy import ndimage

from thyroid_lib.data.classes import SURROUND, UNKNOWN
from thyroid_lib.evaluate.metrics import dice, part_errors, score_case

COUNTS = ("missed_parts", "false_parts")  # summed over classes, where others are averaged


def split_classes(
    pred: np.ndarray, ref: np.ndarray, classes: list[str], annotated: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (pred, ref), bool (H,W), of each class that was outlined; label maps (H,W) in.

    Of a reference with a kind that is not known, the foreground alone, under the name "". Where
    lesions were not outlined, a prediction of them counts as the class `SURROUND` they lie in.
    """
    if (ref == UNKNOWN).any():
        return {"": (pred > 0, ref > 0)}
    masks, others = {}, [code for code, known in enumerate(annotated, 1) if not known]
    for code, name in enumerate(classes, 1):
        if annotated[code - 1]:
            codes = [code, *others] if name == SURROUND else [code]
            masks[name] = np.isin(pred, codes), ref == code
    return masks


def score_classes(masks: dict[str, tuple], tolerance_px: float) -> tuple[dict, list[dict]]:
    """Score what `split_classes` gives: the case's scores, and a row per class.

    A row: class, the metrics of `score_case` and `part_errors`, pred_px, ref_px and ref_parts, the
    number of parts of the reference.
    """
    rows = []
    for name, (pred, ref) in masks.items():
        scores = score_case(pred=pred, ref=ref, tolerance_px=tolerance_px) | part_errors(pred, ref)
        areas = {"pred_px": int(pred.sum()), "ref_px": int(ref.sum())}
        areas["ref_parts"] = ndimage.label(ref, np.ones((3, 3)))[1]
        rows.append({"class": name} | scores | areas)
    there = [row for row in rows if row["pred_px"] + row["ref_px"]] or rows[:1]
    how = {metric: np.sum if metric in COUNTS else np.mean for metric in scores}
    case = {metric: how[metric]([row[metric] for row in there]).item() for metric in how}
    return case, [row for row in rows if row["class"]]


def mean_dice(masks: dict[str, tuple]) -> float:
    """Return the Dice of `score_classes`' case alone."""
    there = [dice(*pair) for pair in masks.values() if pair[0].any() or pair[1].any()]
    return float(np.mean(there)) if there else 1.0


def find_lesions(masks: dict[str, tuple]) -> list[dict]:
    """Return a row per part (8-connected) of each class's reference: class, px, covered.

    The class `SURROUND` is no lesion. covered: the share of its pixels that the prediction of its
    class covers; 0: it was not found.
    """
    rows = []
    for name, (pred, ref) in masks.items():
        if name == SURROUND:
            continue
        parts, _ = ndimage.label(ref, np.ones((3, 3)))
        areas = np.bincount(parts.ravel())
        found = np.bincount(parts[pred], minlength=len(areas))
        pairs = zip(areas[1:].tolist(), found[1:].tolist(), strict=True)
        rows += [{"class": name, "px": area, "covered": hit / area} for area, hit in pairs]
    return rows

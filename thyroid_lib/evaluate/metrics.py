"""Metrics of one predicted mask against its reference: overlap and boundary distances, per case.

    scores = score_case(pred=prob > 0.5, ref=mask)

A boundary pixel is a foreground pixel with a background pixel above, below, left or right of it;
outside the image is background. So are boundaries in MONAI (`monai.metrics`, compared by a test).
surface-distance, which weighs by contour length, gives other numbers: never mix the two.
Empty masks: if both are empty, shares are 1 and distances 0; if one is, shares are 0 and distances
the image's diagonal. No score is NaN or infinite, which would drop it from a mean.

Sources: Maier-Hein et al. 2024 (arXiv 2206.01653); NSD: Nikolov et al. 2018 (arXiv 1809.04430).
"""

import math

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree


def dice(pred: np.ndarray, ref: np.ndarray) -> float:
    """Dice coefficient 2·|pred ∩ ref| / (|pred| + |ref|), in [0, 1]; 1 if both are empty.

    pred, ref: bool arrays of one shape; the pixels of a stack (N, H, W) are pooled.
    """
    check_masks(pred, ref)
    both, total = np.count_nonzero(pred & ref), np.count_nonzero(pred) + np.count_nonzero(ref)
    return 2 * both / total if total else 1.0


def pooled_dice(both: np.ndarray, total: np.ndarray, *, batch: int = 16) -> float:
    """Dice as in the reported study, for the replication alone: pooled over batches of frames.

    Frames are shuffled in the same order for every model; both, total: (N,) of `dice_of_areas`.
    """
    order = np.random.default_rng(0).permutation(len(both))
    starts = np.arange(0, len(order), batch)
    shared, pooled = (np.add.reduceat(areas[order], starts) for areas in (both, total))
    return float(dice_of_areas(shared, pooled).mean())


def dice_of_areas(both: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Dice, float64 (N,), from pixels (N,) of pred ∩ ref and of |pred| + |ref|; 1 where none."""
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def part_errors(pred: np.ndarray, ref: np.ndarray) -> dict[str, int]:
    """Count missed and false parts of masks, bool (H, W); parts are 8-connected components.

    `missed_parts`: parts of ref without a pixel of pred; `false_parts`: the reverse.
    """
    check_masks(pred, ref)
    box = bounding_box(pred | ref)
    errors = {}
    for name, mask, other in (("missed_parts", ref, pred), ("false_parts", pred, ref)):
        parts, count = ndimage.label(mask[box], structure=np.ones((3, 3)))
        errors[name] = count - np.count_nonzero(np.bincount(parts[other[box]])[1:])
    return errors


def score_case(*, pred: np.ndarray, ref: np.ndarray, tolerance_px: float = 2.0) -> dict[str, float]:
    """Score one predicted mask against its reference; both are bool (H, W), at native size.

    Returns `dice`, `iou`, `precision` (share of pred that is in ref), `recall` (share of ref that
    is in pred), `nsd` (share of both boundaries within `tolerance_px` of the other one): in [0, 1],
    higher is better. `hd95_px` (the larger of the two directed 95th percentiles), `assd_px` (mean
    over the pixels of both boundaries): in pixels, lower is better. Empty masks: see the module.
    Raises TypeError or ValueError unless masks and tolerance are as above.
    """
    check_masks(pred, ref)
    if pred.ndim != 2:
        raise ValueError(f"masks must be (H, W), got {pred.shape}; score one case at a time")
    if not 0 <= tolerance_px < math.inf:
        raise ValueError(f"tolerance_px must be a finite number from 0, got {tolerance_px!r}")
    both, n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in (pred & ref, pred, ref))
    either = n_pred + n_ref - both
    agreed = 1.0 if either == 0 else 0.0  # a share whose denominator is 0
    scores = {
        "dice": 2 * both / (n_pred + n_ref) if either else agreed,
        "iou": both / either if either else agreed,
        "precision": both / n_pred if n_pred else agreed,
        "recall": both / n_ref if n_ref else agreed,
        "nsd": agreed,
    }
    if not (n_pred and n_ref):
        return scores | dict.fromkeys(
            ("hd95_px", "assd_px"), 0.0 if agreed else math.hypot(*pred.shape)
        )
    box = bounding_box(pred | ref)
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) for mask in (pred[box], ref[box])]
    pairs = zip(edges, edges[::-1], strict=True)
    # float32 as in MONAI
    to_ref, to_pred = (KDTree(other).query(edge)[0].astype(np.float32) for edge, other in pairs)
    distances, share = np.concatenate([to_ref, to_pred]), np.float32(0.95)
    scores["nsd"] = float(np.mean(distances <= np.float32(tolerance_px)))
    scores["hd95_px"] = float(max(np.quantile(to_ref, share), np.quantile(to_pred, share)))
    scores["assd_px"] = float(distances.mean(dtype=np.float64))
    return scores


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the rectangle around a mask, bool (H,W); empty if it is."""
    lines = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return tuple(slice(at[0], at[-1] + 1) if len(at) else slice(0) for at in lines)


def check_masks(pred: np.ndarray, ref: np.ndarray) -> None:
    """Raise unless both are bool arrays of one shape."""
    for name, mask in (("pred", pred), ("ref", ref)):
        got = getattr(mask, "dtype", type(mask).__name__)
        if str(got) != "bool":
            use = "`prob > threshold` for probabilities, `mask > 0` for a mask of 0 and 1"
            raise TypeError(f"{name} must be a bool array, got {got}: use {use}")
    if pred.shape != ref.shape:
        more = "resize the prediction to the frame's native size"
        raise ValueError(f"pred and ref need one shape, got {pred.shape} and {ref.shape}: {more}")

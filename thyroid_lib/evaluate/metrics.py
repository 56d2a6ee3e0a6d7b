"""How one prediction is scored against its reference: overlap and boundary, per case.

Boundaries are pixels, as in MONAI's metrics (Apache-2.0, `monai.metrics`, held to it by a test): a
boundary pixel is a foreground pixel with a background pixel above, below, left or right of it, and
whatever lies outside the image is background. Libraries that weigh by contour length, such as
surface-distance, give other numbers for the same masks: never mix the two. Measures as reviewed by
Maier-Hein et al. 2024 (arXiv 2206.01653); NSD by Nikolov et al. 2018 (arXiv 1809.04430).

Empty masks, of which no distance exists, follow one rule: both empty is a perfect answer (1 for
every share, 0 for every distance); one empty is a total miss (0 for every share, the image's
diagonal for every distance). No score is ever NaN or infinite, so none drops out of a mean.

    scores = score_case(pred=prob > 0.5, ref=mask)
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree


def dice(pred: np.ndarray, ref: np.ndarray) -> float:
    """Dice coefficient 2·|pred ∩ ref| / (|pred| + |ref|), in [0, 1].

    Args:
        pred, ref: bool arrays of one shape, of any number of dimensions. Pixels are pooled: a
            stack (N, H, W) gives one number for all its frames together.

    Returns:
        1 if both are empty, 0 if only one is.

    Raises:
        TypeError: a mask is not a bool array.
        ValueError: their shapes differ.
    """
    check_masks(pred, ref)
    both, total = np.count_nonzero(pred & ref), np.count_nonzero(pred) + np.count_nonzero(ref)
    return 2 * both / total if total else 1.0


def pooled_dice(both: np.ndarray, total: np.ndarray, *, batch: int = 16) -> float:
    """Dice as the reported study took it: pooled over batches of frames, averaged over batches.

    A pooled batch hides its worst frames behind its best. For the replication alone. The order of
    the frames, which decides who shares a batch, is drawn once and is the same for every model.

    Args:
        both, total: pixels (N,) of pred ∩ ref and of |pred| + |ref| of every frame, at the size
            that the network sees.
        batch: frames in a batch; the last may have fewer.

    Returns:
        Mean of the batches' Dice, in [0, 1]; an empty batch counts 1.
    """
    order = np.random.default_rng(0).permutation(len(both))
    starts = np.arange(0, len(order), batch)
    shared, pooled = (np.add.reduceat(areas[order], starts) for areas in (both, total))
    return float(dice_of_areas(shared, pooled).mean())


def dice_of_areas(both: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Dice, float64 (N,), from pixels (N,) of pred ∩ ref and of |pred| + |ref|; 1 where none."""
    return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def part_errors(pred: np.ndarray, ref: np.ndarray) -> dict[str, int]:
    """Count glands missed and glands made up; parts are 8-connected components.

    Args:
        pred, ref: bool (H, W).

    Returns:
        `missed_parts`: parts of ref without a pixel of pred; `false_parts`: parts of pred without
        a pixel of ref.
    """
    check_masks(pred, ref)
    box = bounding_box(pred | ref)
    pred, ref = pred[box], ref[box]
    return {"missed_parts": _untouched(ref, pred), "false_parts": _untouched(pred, ref)}


def _untouched(mask: np.ndarray, other: np.ndarray) -> int:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    touched = np.zeros(count + 1, bool)
    touched[labels[other]] = True
    return count - np.count_nonzero(touched[1:])


def score_case(
    *,
    pred: np.ndarray,
    ref: np.ndarray,
    tolerance_px: float = 2.0,
    spacing_mm: Sequence[float] | None = None,
    tolerance_mm: float | None = None,
) -> dict[str, float]:
    """Score one predicted mask against its reference.

    Args:
        pred, ref: bool (H, W), at the frame's native size.
        tolerance_px: NSD counts a boundary pixel as right if the other boundary is no farther
            than this, in pixels.
        spacing_mm: (row, column) in mm per pixel: height of a pixel first, then its width.
        tolerance_mm: takes the place of `tolerance_px` in `nsd`; needs `spacing_mm`.

    Returns:
        `dice`, `iou`, `precision` (share of pred that is in ref), `recall` (share of ref that is
        in pred), `nsd`: in [0, 1], higher is better. `hd95_px`, `assd_px`: in pixels, from 0 up,
        lower is better. With a spacing also `hd95_mm` and `assd_mm`. HD95 is the larger of the two
        directed 95th percentiles; ASSD the mean over the pixels of both boundaries. Empty masks:
        see the module's docstring; precision and recall too are 1 if both are empty, 0 if one is.

    Raises:
        TypeError: a mask is not a bool array.
        ValueError: shapes differ or are not (H, W); a spacing or tolerance is not what is said
            above.
    """
    check_masks(pred, ref)
    if pred.ndim != 2:
        raise ValueError(f"masks must be (H, W), got {pred.shape}; score one case at a time")
    spacing_mm = check_units(tolerance_px, spacing_mm, tolerance_mm)

    both, n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in (pred & ref, pred, ref))
    either = n_pred + n_ref - both
    agreed = 1.0 if either == 0 else 0.0  # what a share without a denominator is worth
    scores = {
        "dice": 2 * both / (n_pred + n_ref) if either else agreed,
        "iou": both / either if either else agreed,
        "precision": both / n_pred if n_pred else agreed,
        "recall": both / n_ref if n_ref else agreed,
        "nsd": agreed,
    }

    units = {"px": ((1.0, 1.0), tolerance_px)}
    if spacing_mm is not None:
        units["mm"] = (spacing_mm, tolerance_mm)
    edges = boundaries(pred, ref) if n_pred and n_ref else None
    for unit, (spacing, tolerance) in units.items():
        if edges is None:
            miss = math.hypot(pred.shape[0] * spacing[0], pred.shape[1] * spacing[1])
            scores[f"hd95_{unit}"] = scores[f"assd_{unit}"] = 0.0 if agreed else miss
            continue
        to_ref, to_pred = boundary_distances(*edges, spacing)
        distances = np.concatenate([to_ref, to_pred])
        share = np.float32(0.95)
        scores[f"hd95_{unit}"] = float(max(np.quantile(to_ref, share), np.quantile(to_pred, share)))
        scores[f"assd_{unit}"] = float(distances.mean(dtype=np.float64))
        if tolerance is not None:
            scores["nsd"] = float(np.mean(distances <= np.float32(tolerance)))
    return scores


def boundaries(pred: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the boundary pixels of two masks, bool (H,W): int (n,2) and (m,2).

    Counted from the corner of the rectangle around both, beyond which all is background.
    """
    box = bounding_box(pred | ref)
    return np.argwhere(_edge(pred[box])), np.argwhere(_edge(ref[box]))


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the rectangle around a mask, bool (H,W); of no pixel if it is empty."""
    lines = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return tuple(slice(at[0], at[-1] + 1) if len(at) else slice(0) for at in lines)


def _edge(mask: np.ndarray) -> np.ndarray:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def boundary_distances(
    pred_edge: np.ndarray, ref_edge: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """From each pixel of one non-empty boundary, (n,2) and (m,2), to the nearest of the other.

    Returns float32 (n,), one per pixel of pred_edge, and float32 (m,), one per pixel of ref_edge,
    in the unit of spacing (row, column); (1, 1) gives pixels.
    """
    pred_edge, ref_edge = pred_edge * spacing, ref_edge * spacing
    to_ref, _ = KDTree(ref_edge).query(pred_edge)
    to_pred, _ = KDTree(pred_edge).query(ref_edge)
    # float32 as in MONAI, and lest 3 x 0.1 mm lie outside a tolerance of 0.3 mm
    return to_ref.astype(np.float32), to_pred.astype(np.float32)


def check_masks(pred: np.ndarray, ref: np.ndarray) -> None:
    """Raise unless both are bool arrays of one shape."""
    for name, mask in (("pred", pred), ("ref", ref)):
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            got = f"{mask.dtype} array" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(
                f"{name} must be a bool array, got {got}: binarise it first, "
                "`prob > threshold` for probabilities, `mask > 0` for a mask of 0 and 1"
            )
    if pred.shape != ref.shape:
        raise ValueError(
            f"pred and ref must have one shape, got {pred.shape} and {ref.shape}; bring the "
            "prediction back to the frame's native size first"
        )


def check_units(
    tolerance_px: float, spacing_mm: Sequence[float] | None, tolerance_mm: float | None
) -> tuple[float, float] | None:
    """Return the spacing as two floats, or None; raise ValueError for what cannot be a length."""
    for name, tolerance in (("tolerance_px", tolerance_px), ("tolerance_mm", tolerance_mm)):
        if tolerance is not None and not 0 <= tolerance < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {tolerance!r}")
    if spacing_mm is None:
        if tolerance_mm is not None:
            raise ValueError(f"tolerance_mm={tolerance_mm} needs spacing_mm=(row, column)")
        return None
    if np.shape(spacing_mm) != (2,) or not all(0 < step < math.inf for step in spacing_mm):
        raise ValueError(
            f"spacing_mm must be two positive numbers (row, column), got {spacing_mm!r}"
        )
    return float(spacing_mm[0]), float(spacing_mm[1])

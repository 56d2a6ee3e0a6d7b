"""How sure is a network of one mask? The Dice to be expected, calibrated on validation frames.

`expected_dice` is right where probabilities are; a network that takes something else for a gland is
sure of it nevertheless. So a line, never falling, is fitted from it to the Dice that validation
frames really have. Test frames have no part in it.
"""

import numpy as np


def expected_dice(prob: np.ndarray, mask: np.ndarray) -> float:
    """Return the Dice that a mask would have if each pixel were thyroid with its probability.

    2 Σ p over the mask / (its area + Σ p); of an empty mask 1 − the highest probability: how sure
    it is that there is nothing.
    """
    if not mask.any():
        return float(1 - prob.max())
    return float(2 * prob[mask].sum(dtype=np.float64) / (mask.sum() + prob.sum(dtype=np.float64)))


def calibrated(expected, line: dict | None):
    """Return the confidence, in [0,1], by a line of `fit_confidence`; without one as it is."""
    line = line or {"slope": 1.0, "offset": 0.0}
    return np.clip(line["offset"] + line["slope"] * expected, 0, 1)


def fit_confidence(expected: np.ndarray, dice: np.ndarray, group: np.ndarray) -> dict:
    """Fit the line, never falling, from the expected Dice to the real one; groups weigh alike.

    From one group alone only its height is fitted: one gland does not tell how the error varies.

    Args:
        expected, dice: float (N,) of validation frames.
        group: (N,).

    Returns:
        slope, offset; groups and frames, their numbers; error, mean absolute: of each group by the
        line of the others, and where there are no others by its own.
    """
    groups = np.unique(group)
    slope, offset = _line(expected, dice, group)
    errors = []
    for name in groups:
        out = group == name
        rest = ~out if len(groups) > 1 else out
        line = dict(
            zip(("slope", "offset"), _line(expected[rest], dice[rest], group[rest]), strict=True)
        )
        errors.append(np.abs(calibrated(expected[out], line) - dice[out]).mean())
    return {
        "slope": round(slope, 4), "offset": round(offset, 4),
        "error": round(float(np.mean(errors)), 4), "groups": len(groups), "frames": len(group),
    }  # fmt: skip


def _line(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> tuple[float, float]:
    groups, place, counts = np.unique(group, return_inverse=True, return_counts=True)
    weight = 1 / counts[place]
    middle = np.average(x, weights=weight), np.average(y, weights=weight)
    slope = 1.0
    if len(groups) > 1:
        spread = np.average((x - middle[0]) ** 2, weights=weight)
        together = np.average((x - middle[0]) * (y - middle[1]), weights=weight)
        slope = max(0.0, together / spread) if spread > 1e-12 else 0.0
    return float(slope), float(middle[1] - slope * middle[0])

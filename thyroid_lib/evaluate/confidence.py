"""Confidence of one mask: the expected Dice, calibrated on validation frames.

`expected_dice` is correct only if the probabilities are; a network is also sure of what it mistakes
for a gland. So a line that never falls maps it to the Dice measured on validation frames, never on
test frames.
"""

import numpy as np


def expected_dice(prob: np.ndarray, mask: np.ndarray) -> float:
    """Return the Dice of a mask if each pixel is thyroid with its probability.

    2 Σ p over the mask / (its area + Σ p); of an empty mask 1 − the highest probability.
    """
    if not mask.any():
        return float(1 - prob.max())
    return float(2 * prob[mask].sum(dtype=np.float64) / (mask.sum() + prob.sum(dtype=np.float64)))


def calibrated(expected, line: dict | None):
    """Return the confidence, in [0,1], by a line of `fit_confidence`; None leaves it unchanged."""
    line = line or {"slope": 1.0, "offset": 0.0}
    return np.clip(line["offset"] + line["slope"] * expected, 0, 1)


def fit_confidence(expected: np.ndarray, dice: np.ndarray, group: np.ndarray) -> dict:
    """Fit the line from expected to measured Dice, with slope ≥ 0 and equal weight per group.

    With one group only the offset is fitted: one gland does not show how the error varies. All
    arguments are (N,), of validation frames. Returns slope, offset; error, the mean absolute error
    of each group by the line of the others (of a single group by its own); groups, frames: counts.
    """
    groups, errors = np.unique(group), []
    for name in groups:
        out = group == name
        rest = ~out if len(groups) > 1 else out
        line = _fit_line(expected[rest], dice[rest], group[rest])
        errors.append(np.abs(calibrated(expected[out], line) - dice[out]).mean())
    line = _fit_line(expected, dice, group) | {"error": float(np.mean(errors))}
    line = {key: round(value, 4) for key, value in line.items()}
    return line | {"groups": len(groups), "frames": len(group)}


def _fit_line(x: np.ndarray, y: np.ndarray, group: np.ndarray) -> dict[str, float]:
    _, index, counts = np.unique(group, return_inverse=True, return_counts=True)
    weight = 1 / counts[index]
    slope = 1.0
    if len(counts) > 1:
        (spread, together), _ = np.cov(x, y, aweights=weight, ddof=0)
        slope = max(0.0, together / spread) if spread > 1e-12 else 0.0
    offset = np.average(y - slope * x, weights=weight)
    return {"slope": float(slope), "offset": float(offset)}

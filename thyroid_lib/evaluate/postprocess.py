"""Post-processing of a predicted mask: parts and holes that no gland has are removed.

The choices are compared on each run's rows (`evaluate.variations`); none is applied by default.
"""

import numpy as np
from scipy import ndimage

from thyroid_lib.data.frames import components

# Share of the frame's area. Of the 581 reference masks of TG3K's sample 2 % have a smaller part.
MIN_PART = 0.002


def largest_parts(mask: np.ndarray, count: int = 1) -> np.ndarray:
    """Keep the largest parts (8-connected) of a mask, bool (H,W); of equal ones the first."""
    numbers, areas, _ = components(mask)
    kept = np.zeros(len(areas), bool)
    kept[np.argsort(-areas, kind="stable")[:count]] = True
    kept[0] = False  # the background
    return kept[numbers]


def drop_small_parts(mask: np.ndarray, share: float = MIN_PART) -> np.ndarray:
    """Remove parts (8-connected) below a share of the frame's area from a mask, bool (H,W)."""
    numbers, _, small = components(mask, limit=share * mask.size)
    return mask & ~small[numbers]


POSTPROCESSES = {
    "largest": largest_parts,
    "two_largest": lambda mask: largest_parts(mask, 2),
    "filled": ndimage.binary_fill_holes,
    "no_small": drop_small_parts,
}

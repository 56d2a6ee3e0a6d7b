"""Diameters of a mask: the longest one of its largest part, and the extent across it."""

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

from thyroid_lib.evaluate.metrics import bounding_box

Pair = tuple[float, float]


def diameters(mask: np.ndarray, spacing: Pair = (1.0, 1.0)) -> Pair:
    """Return the longest diameter of a mask's largest part, and its extent across that one.

    Between pixel centres of a mask, bool (H,W), in the unit of the spacing; (0, 0) where empty.
    """
    box = bounding_box(mask)
    parts, count = ndimage.label(mask[box], np.ones((3, 3)))
    if not count:
        return 0.0, 0.0
    largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    edge = np.argwhere(largest & ~ndimage.binary_erosion(largest))
    points = (edge + [side.start for side in box]) * np.array(spacing)  # (P,2)
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # all on one line
        points = points[[0, -1]]
    farthest = pdist(points).argmax()
    first, second = (axis[farthest] for axis in np.triu_indices(len(points), 1))
    along = points[second] - points[first]
    length = float(np.hypot(*along))
    if not length:
        return 0.0, 0.0
    across = points @ np.array([-along[1], along[0]]) / length
    return length, float(np.ptp(across))

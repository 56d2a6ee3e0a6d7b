"""Content of a frame: where the scan is, and the scan alone, whatever surrounds it.

    frame, inside, view, weight, place = content.look(image, *image.shape)

The scan is the convex hull of the large bright parts, inside of bars at the frame's edges. Text,
scales and body marks are smaller, or thin. A view shows the scan about its centroid, at a scale
given by its area: so it stays the same if bars are added or the scan is turned, moved or scaled.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage, spatial

from thyroid_lib.data.frames import components

SIDE = 64  # px, of frames and views
LONGEST = 128  # px, side of the frame in which its content is looked for
FLAT = 6  # gray levels: rows and columns at the edge that vary less are bars
DARK = 0.1  # content is brighter than this part of the frame's range
SPAN = 1.4  # side of a view, in square roots of the content's area: frames of 2 : 1 fit in


def look(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Frame and its content, view and its content, float32 (64,64) each; the view's place (4,)."""
    shape = np.array([height, width]) * LONGEST / max(height, width)
    shape = np.rint(shape).astype(int).clip(min=4)
    picture = Image.fromarray(image)
    small = np.asarray(picture.resize(shape[::-1].tolist(), Image.Resampling.BOX), np.float32)
    content = scan_region(ndimage.gaussian_filter(small, 1.5))
    centre = np.argwhere(content).mean(axis=0) if content.any() else (shape - 1) / 2
    step = SPAN * np.sqrt(max(content.sum(), SIDE)) / SIDE  # px of `small` per px of the view
    how = {"offset": centre - step * (SIDE - 1) / 2, "output_shape": (SIDE, SIDE), "order": 1}
    sharp = ndimage.gaussian_filter(small, 0.2 + step / 2)  # against aliasing
    weight = ndimage.binary_erosion(content, iterations=2).astype(np.float32)
    view, weight = (ndimage.affine_transform(each, [step, step], **how) for each in (sharp, weight))
    frame = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
    inside = np.asarray(Image.fromarray(content).resize((SIDE, SIDE)), np.float32)
    place = np.r_[(centre + 0.5) / shape, step * SIDE / shape]
    return ndimage.gaussian_filter(frame, 0.7), inside, view, weight, place


def scan_region(level: np.ndarray) -> np.ndarray:
    """Find the scan in a blurred frame: the convex hull of its large bright parts, bool (H,W)."""
    content = np.zeros(level.shape, bool)
    rows, columns = (np.flatnonzero(np.ptp(level, axis=axis) > FLAT) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return content
    inner = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    low, high = np.percentile(level[inner], (2, 98))
    content[inner] = level[inner] > low + max(4, DARK * (high - low))
    opened = ndimage.binary_opening(content, iterations=3)  # no ticks, no text
    numbers, areas, _ = components(opened, diagonal=False)
    large = areas >= max(areas.max() / 8, level.size / 50)
    points = np.argwhere(large[numbers])
    hull = Image.new("1", level.shape[::-1])
    if len(points):  # an opened part is never a line
        corners = points[spatial.ConvexHull(points).vertices, ::-1]
        ImageDraw.Draw(hull).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    return np.array(hull)

"""Near-copies: which frames show nearly the same picture, moved, turned, scaled or mirrored.

    maps = copies.describe(images)
    found = copies.closest(maps, maps, apart=(groups, groups))
    near_copy = found["correlation"] >= copies.near_copy_threshold(maps, groups)

1. Content: the scan is the bright region of a frame. What lies around it (bars, text, scales) is
   ignored, and the scan is resampled about its centroid, to a scale that is given by its area.
2. Candidates: a bank of turned, scaled, shifted and mirrored descriptors proposes a few frames.
3. Alignment: Gauss-Newton steps find the affine transform between a frame and each candidate.
4. Confirmation: normalised correlation of the aligned maps where both have content. Local mean and
   contrast are removed before, so that brightness, gamma and what all necks share do not count.

Sources: Lewis, Fast Normalized Cross-Correlation, Vision Interface 1995; Baker & Matthews,
Lucas-Kanade 20 Years On, IJCV 56 (2004) 221 (the inverse compositional algorithm).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, ndimage

from thyroid_lib.audit.content import SIDE, look

GRID = 14  # px, side of the descriptors
SLACK = 4  # px of the map by which `pair_correlation` allows a shift
STEP = 1 / 16  # of the view's side, between the points of a descriptor
TURNS, SCALES = np.deg2rad(np.arange(-16, 17, 4)), (0.88, 1.0, 1.13)
SHIFTS = STEP * np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])
PROPOSED = 6  # candidates that are aligned for each frame
STEPS = ((SIDE // 2, 8), (SIDE, 5))  # side of the maps, Gauss-Newton steps on them
STRETCH = 0.78, 1.28  # limits of an alignment, along any axis
OVERLAP = 0.6  # of the smaller content, that both frames must show
LEAST = 0.05  # part of a view that has content; with less a frame is blank
BLOCK = 32  # frames compared at a time: some 100 MB, however many there are
# The default: unrelated frames of TG3K, DDTI and phantoms stay below, copies above (measured.md).
NEAR_COPY = 0.75
BOUNDS = 0.70, 0.85  # of a threshold that is derived from a data set
PRIOR = 20  # groups: how much the default counts in such a threshold


class Maps(NamedTuple):
    """What frames are compared by: locally normalised maps, float32, 0 outside the content."""

    fine: np.ndarray  # (N,64,64): the whole frame, stretched to a square
    view: np.ndarray  # (N,2,64,64): the content at its own scale, and its weight, 0 to 1
    place: np.ndarray  # (N,4): the view's centre (y,x) and sides (y,x), as parts of the frame's

    def take(self, rows) -> "Maps":
        """Return the maps of some frames, by their row numbers or a mask of them."""
        return Maps(*(part[rows] for part in self))


def describe(images: Sequence[np.ndarray], sides: np.ndarray | None = None) -> Maps:
    """Make the maps of frames, uint8 (N,S,S) or N times (H,W).

    `sides`: height and width, (N,2), of the frames before they were stretched, if they were.
    """
    sides = [image.shape for image in images] if sides is None else sides
    parts = [look(image, *side) for image, side in zip(images, sides, strict=True)]
    frame, inside, view, weight, place = (np.array(part) for part in zip(*parts, strict=True))
    view = np.stack([_normalise(view, weight), weight], axis=1)
    return Maps(_normalise(frame, inside), view, place)


def closest(queries: Maps, pool: Maps, *, apart: tuple | None = None) -> pd.DataFrame:
    """Find for each of n queries the frame, of N in the pool, that it copies best.

    `apart`: values (n,) and (N,); frames of equal value are not compared. Returns one row per
    query: row, in the pool, -1 if there is none to compare with; correlation, at most 1; mirrored
    (bool); how the query differs from that frame, after a mirrored one is mirrored back: turn
    (degrees, clockwise), scale, shift_y and shift_x (of the frame's middle, as parts of the side).
    """
    windows, parts = _descriptors(pool.view, _SHIFTS), []
    for start in range(0, len(queries.view), BLOCK):
        block = np.s_[start : start + BLOCK]
        equal = apart and np.asarray(apart[0])[block, None] == np.asarray(apart[1])[None]
        parts.append(_closest(queries.take(block), pool, windows, equal))
    return pd.concat(parts, ignore_index=True)


def near_copy_threshold(maps: Maps, groups: Sequence, *, most: int = 300) -> float:
    """Return the correlation that frames of two groups do not reach unless they are copies.

    The closest frames of other groups are looked up for up to `most` frames. Of Fisher's z of these
    correlations the median and the 90th percentile give a normal distribution, which copies among
    them hardly move; four standard deviations above the median is this data set's own threshold.
    `NEAR_COPY` counts as much as 20 groups that say so, and alone if no group has two frames: then
    groups are unknown, and neighbours in a sweep would count as unrelated.
    """
    groups = np.asarray(groups)
    rows = np.unique(np.linspace(0, len(groups) - 1, min(most, len(groups))).astype(int))
    count = len(set(groups.tolist()))
    if count in (1, len(groups)):
        return NEAR_COPY
    found = closest(maps.take(rows), maps, apart=(groups[rows], groups))["correlation"]
    middle, high = np.quantile(np.arctanh(found.clip(0, 0.999)), (0.5, 0.9))
    own = np.clip(np.tanh(middle + 4 * (high - middle) / 1.2816), *BOUNDS)
    return float((count * own + PRIOR * NEAR_COPY) / (count + PRIOR))


def pair_correlation(fine: np.ndarray, back: int) -> np.ndarray:
    """Correlate each frame with the one `back` (1 or more) before it, small shifts allowed.

    `fine`: maps of N frames, from `describe`. Returns float32 (N,), 0 for the first `back` frames.
    """
    best, side = np.zeros(len(fine), np.float32), SIDE - 2 * SLACK
    shifts, centres = np.s_[:, : 2 * SLACK + 1, : 2 * SLACK + 1], np.s_[:, side // 2 :, side // 2 :]
    for start in range(back, len(fine), BLOCK):
        now = np.arange(start, min(start + BLOCK, len(fine)))
        middle, before = fine[now, SLACK:-SLACK, SLACK:-SLACK], fine[now - back].astype(np.float64)
        middle = _unit(middle - middle.mean(axis=(1, 2), keepdims=True), axis=(1, 2))
        spectrum = np.conj(fft.rfft2(middle, before.shape[1:])) * fft.rfft2(before)
        means = [ndimage.uniform_filter(before**k, (0, side, side))[centres] for k in (1, 2)]
        length = side * np.sqrt(np.maximum(means[1] - means[0] ** 2, 0)) + 1e-3  # of each window
        correlation = fft.irfft2(spectrum)[shifts] / length[shifts]
        best[now] = np.minimum(correlation, 1).max(axis=(1, 2))
    return best


def _normalise(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Take away the local mean, divide by the local contrast, both over what has weight."""

    def blur(values):
        return ndimage.gaussian_filter(values, (0, 4, 4), truncate=3)

    share = blur(weights) + np.float32(1e-3)
    flat = maps - blur(maps * weights) / share
    contrast = np.sqrt(blur(weights * flat**2) / share)
    return (weights * flat / (contrast + 2)).astype(np.float32)  # two gray levels count as noise


def _unit(values: np.ndarray, axis) -> np.ndarray:
    """Scale to length 1; what is blank stays 0."""
    return values / (np.sqrt((values**2).sum(axis=axis, keepdims=True)) + 1e-3)


def _transform(turn: float = 0, scale: float = 1, shift=(0, 0)) -> np.ndarray:
    """Matrix (3,3) for points (y, x, 1), in parts of the view's side from its centre."""
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]], [0, 0, 1]])


_BANK = np.array([_transform(turn, scale) for scale in SCALES for turn in TURNS])
_SHIFTS = np.array([_transform(shift=shift) for shift in SHIFTS])


def _grid(side: int, step: float) -> np.ndarray:
    """Points (3, side²) as `_transform` takes them."""
    places = (np.arange(side) - (side - 1) / 2) * step
    y, x = np.meshgrid(places, places, indexing="ij")
    return np.stack([y.ravel(), x.ravel(), np.ones(side * side)]).astype(np.float32)


def _sample(maps: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of maps (B,C,S,S) at points (B,2,P), bilinear, 0 outside: (B,C,P)."""
    side = maps.shape[-1]
    at = points * side + (side - 1) / 2
    corner = np.floor(at).clip(0, side - 2).astype(np.int32)
    part = (at - corner).astype(np.float32)
    inside = ((part >= 0) & (part <= 1)).all(axis=1)
    flat, first = maps.reshape(*maps.shape[:2], -1), corner[:, :1] * side + corner[:, 1:]
    y, x = part[:, :1], part[:, 1:]
    weights = {0: (1 - y) * (1 - x), 1: (1 - y) * x, side: y * (1 - x), side + 1: y * x}
    each = (w * np.take_along_axis(flat, first + step, axis=2) for step, w in weights.items())
    return sum(each) * inside[:, None]


def _descriptors(view: np.ndarray, transforms) -> np.ndarray:
    """Coarse samples of views (N,2,64,64) under each of T transforms, of length 1: (T,N,196)."""
    smooth = ndimage.gaussian_filter(view[:, :1], (0, 0, 1.5, 1.5))
    points = [(transform @ _grid(GRID, STEP))[None, :2] for transform in transforms]
    return np.stack([_unit(_sample(smooth, each)[:, 0], axis=1) for each in points])


def _closest(queries: Maps, pool: Maps, windows: np.ndarray, equal) -> pd.DataFrame:
    """`closest` for one block of queries; `equal` marks pairs that are not compared."""
    count, size, each = len(queries.view), len(pool.view), np.arange(len(queries.view))
    sight = np.stack([queries.view, queries.view[..., ::-1]])  # (2,B,2,64,64): plain, mirrored
    bank = np.stack([_descriptors(view, _BANK) for view in sight], axis=2)  # (T,B,2,196)
    likeness = np.full((count, 2, size), -1, np.float32)
    for window in windows:
        for variant in bank:
            np.maximum(likeness, variant @ window.T, out=likeness)
    if equal is not None:
        likeness = np.where(equal[:, None], -np.inf, likeness)
    likeness, some = likeness.reshape(count, -1), min(PROPOSED, 2 * size)
    candidates = np.argpartition(-likeness, some - 1, axis=1)[:, :some]  # (B,K)
    flips, rows = np.divmod(candidates, size)
    chosen = np.einsum("tbkd,sbkd->bkts", bank[:, each[:, None], flips], windows[:, rows])
    variant, shift = np.divmod(chosen.reshape(count, some, -1).argmax(axis=2), len(SHIFTS))
    start = _BANK[variant] @ np.linalg.inv(_SHIFTS)[shift]  # from the pool's view to the query's
    # align all candidates, keep the best
    views = pool.view[rows], sight[flips, each[:, None]], start
    scores, ends = _align(*(part.reshape(-1, *part.shape[2:]) for part in views))
    scores, ends = scores.reshape(count, some), ends.reshape(count, some, 3, 3)
    scores[np.isneginf(np.take_along_axis(likeness, candidates, axis=1))] = -1
    best = scores.argmax(axis=1)
    row, score, flip, end = (part[each, best] for part in (rows, scores, flips, ends))
    # how the frames differ: from places in the views to places in the frames
    place, of, mirrored = queries.place.copy(), pool.place[row], (flip > 0) & (score > -1)
    place[mirrored, 1] = 1 - place[mirrored, 1]
    middle = np.c_[(0.5 - of[:, :2]) / of[:, 2:], np.ones(count)]  # of the pool's frame
    down, right = (place[:, :2] + place[:, 2:] * (end @ middle[:, :, None])[:, :2, 0] - 0.5).T
    turn = np.arctan2(end[:, 0, 1] - end[:, 1, 0], end[:, 0, 0] + end[:, 1, 1])
    area = np.linalg.det(end[:, :2, :2]) * (place[:, 2:] / of[:, 2:]).prod(axis=1)
    found = {"row": np.where(score > -1, row, -1), "correlation": score, "mirrored": mirrored}
    found |= {"turn": np.rad2deg(turn), "scale": np.sqrt(area)}
    return pd.DataFrame(found | {"shift_y": down, "shift_x": right})


def _align(fixed: np.ndarray, moving: np.ndarray, start: np.ndarray):
    """Align views (B,2,64,64), from transforms (B,3,3) of points of `fixed` to those of `moving`.

    Returns the highest correlation, (B,), and its transforms.
    """
    now, best, ends = start.astype(np.float32), np.zeros(len(start)), start.copy()
    for side, steps in STEPS:
        blocks = len(now), 2, side, SIDE // side, side, SIDE // side
        one, other = (each.reshape(blocks).mean(axis=(3, 5)) for each in (fixed, moving))
        grid = _grid(side, 1 / side)
        down, right = np.gradient(one[:, 0], axis=(1, 2))
        slopes = [side * slope.reshape(len(now), 1, -1) * grid for slope in (down, right)]
        slopes = np.concatenate(slopes, axis=1)  # (B,6,P)
        target, weight = one.reshape(len(now), 2, -1).swapaxes(0, 1)
        for _ in range(steps + 1):
            value, share = _sample(other, (now @ grid)[:, :2]).swapaxes(0, 1)
            both = weight * share
            if side == SIDE:
                score = _correlate(target, value, both)
                least = np.minimum(weight.sum(axis=1), other[:, 1].sum(axis=(1, 2)))
                stretch = np.linalg.svd(now[:, :2, :2], compute_uv=False)
                allowed = (both.sum(axis=1) >= OVERLAP * least) & (least > LEAST * side**2)
                allowed &= (stretch > STRETCH[0]).all(axis=1) & (stretch < STRETCH[1]).all(axis=1)
                better = allowed & (score > best)
                best[better], ends[better] = score[better], now[better]
            hessian = (slopes * both[:, None]) @ slopes.swapaxes(1, 2) + np.eye(6, dtype=np.float32)
            change = np.linalg.solve(hessian, slopes @ (both * (value - target))[:, :, None])
            change = change.reshape(-1, 2, 3).clip(-0.2, 0.2)  # can be inverted
            now = now @ np.linalg.inv(
                np.eye(3, dtype=np.float32) + np.pad(change, ((0, 0), (0, 1), (0, 0)))
            )
    return best, ends


def _correlate(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation of maps (B,P) with weights; 0 of blank ones."""
    total = weight.sum(axis=1, keepdims=True) + 1e-3
    means = [(weight * each).sum(axis=1, keepdims=True) / total for each in (one, other)]
    one, other = one - means[0], other - means[1]
    lengths = (weight * one**2).sum(axis=1) * (weight * other**2).sum(axis=1)
    return (weight * one * other).sum(axis=1) / (np.sqrt(lengths) + 0.1)

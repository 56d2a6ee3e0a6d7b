"""Near-copies: which frames show nearly the same picture, shifted, brightened or mirrored or not.

A descriptor (32 px) proposes a few frames for each, plain and mirrored; normalised
cross-correlation (64 px, small shifts allowed; Lewis, Vision Interface 1995) confirms. Local mean
and contrast are removed, so that brightness, gamma and what all necks share do not count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft, ndimage

COARSE, FINE = 32, 64  # px, sides of the maps that propose and that confirm
SLACK = 4  # px of the fine map that a copy may be shifted: a sixteenth of the frame
PROPOSED = 8  # candidates for each frame, and as many mirrored ones
BLOCK = 64  # frames compared at a time: a few tens of MB, however many there are
# Chosen on all pairs of 581 real frames (every fifth or so of 12 TG3K sweeps): no pair of two
# sweeps correlates above 0.588, 95 % of neighbours in a sweep do above 0.719; NEAR_COPY is the
# middle. Held out of that choice: phantom sweeps stay below 0.50 against each other, copies shifted
# by up to 8 of 256 px, brightened, mirrored and saved as JPEG of quality 20 above 0.88.
NEAR_COPY = 0.65


class Maps(NamedTuple):
    """What frames are compared by: locally normalised maps, float32."""

    coarse: np.ndarray  # (N,32,32)
    fine: np.ndarray  # (N,64,64)

    def take(self, rows) -> "Maps":
        """Return the maps of some frames, by their row numbers or a mask of them."""
        return Maps(self.coarse[rows], self.fine[rows])


def describe(images: Sequence[np.ndarray]) -> Maps:
    """Make the maps of frames, uint8 (N,S,S) or N times (H,W), which are stretched to squares.

    The border of a letterbox must be cut off: frames would resemble each other by it.
    """
    coarse = np.empty((len(images), COARSE, COARSE), np.float32)
    fine = np.empty((len(images), FINE, FINE), np.float32)
    for start in range(0, len(images), BLOCK):
        block = np.s_[start : start + BLOCK]
        squares = (
            Image.fromarray(image).resize((FINE, FINE), Image.Resampling.BOX)
            for image in images[block]
        )
        small = np.stack([np.asarray(image, np.float32) for image in squares])  # (B,64,64)
        fine[block] = _normalise(ndimage.gaussian_filter(small, (0, 0.7, 0.7)), 4)
        coarse[block] = _normalise(_halve(small), 6)
    return Maps(coarse, fine)


def closest(queries: Maps, pool: Maps, *, apart: tuple | None = None) -> pd.DataFrame:
    """Find for each of n queries the frame, of N in the pool, that it copies best.

    `apart`: values (n,) and (N,); frames of equal value are not compared. Returns one row per
    query: row, in the pool, -1 if there is none to compare with; correlation, at most 1; shift_y
    and shift_x, as parts of the side: how far the query lies down and right of that frame;
    mirrored (bool).
    """
    windows, spectra, parts = _windows(pool.coarse), fft.rfft2(pool.fine), []
    starts = range(0, len(pool.fine), BLOCK)
    energy = np.concatenate([_window_norm(pool.fine[at : at + BLOCK]) for at in starts])
    for start in range(0, len(queries.fine), BLOCK):
        block = np.s_[start : start + BLOCK]
        equal = apart and np.asarray(apart[0])[block, None] == np.asarray(apart[1])[None]
        parts.append(_closest(queries.take(block), windows, spectra, energy, equal))
    return pd.concat(parts, ignore_index=True)


def pair_correlation(fine: np.ndarray, back: int) -> np.ndarray:
    """Correlate each frame with the one `back` (1 or more) before it, small shifts allowed.

    `fine`: maps of N frames, from `describe`. Returns float32 (N,), 0 for the first `back` frames.
    """
    best = np.zeros(len(fine), np.float32)
    for start in range(back, len(fine), 4 * BLOCK):
        now = np.arange(start, min(start + 4 * BLOCK, len(fine)))
        before = fine[now - back]
        each = _correlate(_template(fine[now]), fft.rfft2(before), _window_norm(before))
        best[now] = each.max(axis=(1, 2))
    return best


def _halve(maps: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels: (…,S,S) to (…,S/2,S/2)."""
    rows = maps[..., ::2, :] + maps[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _normalise(maps: np.ndarray, sigma: float) -> np.ndarray:
    """Take away the local mean, divide by the local contrast; two gray levels count as noise."""
    flat = maps - ndimage.gaussian_filter(maps, (0, sigma, sigma), truncate=3)
    contrast = np.sqrt(ndimage.gaussian_filter(flat**2, (0, sigma, sigma), truncate=3))
    return flat / (contrast + 2)


def _unit(maps: np.ndarray) -> np.ndarray:
    """Shift to mean 0 and scale to length 1 over the last two axes; a blank map stays 0."""
    maps = maps - maps.mean(axis=(-2, -1), keepdims=True)
    return maps / (np.sqrt((maps**2).sum(axis=(-2, -1), keepdims=True)) + 1e-3)


def _windows(coarse: np.ndarray) -> np.ndarray:
    """Descriptors of nine windows of the coarse maps, a pixel apart, of length 1: (9,N,196)."""
    side, spots = COARSE - 4, [(y, x) for y in (1, 2, 3) for x in (1, 2, 3)]
    cut = [_unit(_halve(coarse[:, y : y + side, x : x + side])) for y, x in spots]  # (N,14,14)
    return np.stack(cut).reshape(len(spots), len(coarse), -1)


def _window_norm(fine: np.ndarray) -> np.ndarray:
    """Length of every window that a template can lie on, about its mean: (N,9,9)."""
    side, steps = FINE - 2 * SLACK, 2 * SLACK + 1
    boxes = []
    for power in (1, 2):
        sums = np.pad(fine.astype(np.float64) ** power, ((0, 0), (1, 0), (1, 0)))
        sums = sums.cumsum(axis=1).cumsum(axis=2)
        tall = sums[:, side : side + steps] - sums[:, :steps]
        boxes.append(tall[:, :, side : side + steps] - tall[:, :, :steps])
    spread = boxes[1] - boxes[0] ** 2 / side**2
    return np.sqrt(np.maximum(spread, 0)).astype(np.float32) + np.float32(1e-3)


def _template(fine: np.ndarray) -> np.ndarray:
    """Spectrum of the fine maps' middle at length 1, conjugated: (N,64,33)."""
    middle = _unit(fine[:, SLACK:-SLACK, SLACK:-SLACK])
    return np.conj(fft.rfft2(np.pad(middle, ((0, 0), (SLACK, SLACK), (SLACK, SLACK)))))


_SHIFTS = np.arange(-SLACK, SLACK + 1)
_DOWN = np.exp(2j * np.pi / FINE * np.outer(_SHIFTS, np.arange(FINE))) / FINE
_RIGHT = np.exp(2j * np.pi / FINE * np.outer(np.arange(FINE // 2 + 1), _SHIFTS)) / FINE
_RIGHT[1:-1] *= 2  # a real map's spectrum holds these once for both of their signs
_DOWN, _RIGHT = _DOWN.astype(np.complex64), _RIGHT.astype(np.complex64)


def _correlate(template: np.ndarray, spectra: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Normalised correlation at each shift of up to SLACK px: (M,9,9)."""
    tall = _DOWN @ (template * spectra)  # (M,9,33): of the inverse transform, only these shifts
    whole = (tall.reshape(-1, tall.shape[-1]) @ _RIGHT).real.reshape(-1, *energy.shape[1:])
    return np.minimum(whole / energy, 1)


def _closest(queries: Maps, windows, spectra, energy, equal) -> pd.DataFrame:
    """`closest` for one block of queries; `equal` marks pairs that are not compared."""
    count, pool = len(queries.fine), windows.shape[1]
    rows, scores, spots = [], [], []
    for flip in (1, -1):
        middle = _windows(queries.coarse[:, :, ::flip])[4]  # (B,196)
        likeness = np.full((count, pool), -1, np.float32)
        for window in windows:  # (N,196)
            np.maximum(likeness, middle @ window.T, out=likeness)
        if equal is not None:
            likeness[equal] = -np.inf
        some = min(PROPOSED, pool)
        candidates = np.argpartition(-likeness, some - 1, axis=1)[:, :some]  # (B,K)
        template = _template(queries.fine[:, :, ::flip])
        flat = candidates.ravel()
        each = _correlate(template.repeat(some, axis=0), spectra[flat], energy[flat])
        each = each.reshape(count, some, -1)
        each[np.isneginf(np.take_along_axis(likeness, candidates, axis=1))] = -1
        rows.append(candidates)
        spots.append(each.argmax(axis=2))
        scores.append(each.max(axis=2))
    rows, spots, scores = (np.concatenate(part, axis=1) for part in (rows, spots, scores))
    best = scores.argmax(axis=1)
    row, spot, score = (part[np.arange(count), best] for part in (rows, spots, scores))
    down, right = (SLACK - place for place in np.divmod(spot, 2 * SLACK + 1))
    nothing = score == -1
    found = {"row": np.where(nothing, -1, row), "correlation": score}
    found |= {"shift_y": down / FINE, "shift_x": right / FINE}
    return pd.DataFrame(found | {"mirrored": (best >= rows.shape[1] // 2) & ~nothing})

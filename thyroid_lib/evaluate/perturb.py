"""Perturbations of a stored frame, uint8 (S,S): what another machine or sonographer may change.

    changed = PERTURBATIONS["gain_up"](square, "0449")

Strengths are mild: a sonographer would still accept such a frame. Black pixels (outside of the fan,
a letterbox's border) stay black, except where blur reaches them.
"""

import zlib
from functools import partial

import numpy as np
from scipy import ndimage

# dB of overall gain: two steps of 3 dB on a machine's knob; gray levels are log-compressed, so gain
# adds levels. The frame's range of 60 dB is usual for B-mode and not known for each frame.
GAIN_DB, RANGE_DB = 6.0, 60.0
GAMMA = 1.4  # exponent of the gray curve, or 1 / it: as between neighbouring gray maps of a machine
BLUR = 1 / 128  # standard deviation in shares of the side: half the resolution of a 128 px square
SPECKLE = 0.1  # standard deviation as a share of the gray level; augmentation draws up to 0.15
GRAIN_PX = 0.7  # px, standard deviation of the smoothing that gives speckle its grain
SCALES = {"shrunk": 0.8, "enlarged": 1.25}  # of lengths: one step of a machine's depth or zoom


def change_gain(square: np.ndarray, case_id: str, decibels: float) -> np.ndarray:
    """Add the levels of a gain in dB; negative values darken."""
    return _to_levels(np.where(square, square + 255 * decibels / RANGE_DB, 0))


def change_gamma(square: np.ndarray, case_id: str, exponent: float) -> np.ndarray:
    """Bend the gray curve, black and white kept; above 1 darkens the middle."""
    return _to_levels(255 * (square / 255) ** exponent)


def blur(square: np.ndarray, case_id: str) -> np.ndarray:
    """Smooth by a Gaussian of `BLUR` shares of the side."""
    return _to_levels(ndimage.gaussian_filter(square.astype(np.float64), BLUR * len(square)))


def add_speckle(square: np.ndarray, case_id: str) -> np.ndarray:
    """Multiply by smoothed noise around 1, drawn by the case's name, in any order of cases."""
    noise = np.random.default_rng(zlib.crc32(case_id.encode())).normal(size=square.shape)
    noise = ndimage.gaussian_filter(noise, GRAIN_PX)
    return _to_levels(square * (1 + SPECKLE * noise / noise.std()))


def rescale(image: np.ndarray, factor: float) -> np.ndarray:
    """Scale an image (S,S) about its centre, bilinear, into float64 (S,S); 0 beyond its border."""
    corner = (len(image) - 1) / 2 * (1 - 1 / factor)
    return ndimage.affine_transform(
        image.astype(np.float64), [1 / factor] * 2, corner, order=1, mode="grid-constant"
    )


def _to_levels(levels: np.ndarray) -> np.ndarray:
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


PERTURBATIONS = {
    "gain_down": partial(change_gain, decibels=-GAIN_DB),
    "gain_up": partial(change_gain, decibels=GAIN_DB),
    "gamma_dark": partial(change_gamma, exponent=GAMMA),
    "gamma_bright": partial(change_gamma, exponent=1 / GAMMA),
    "blur": blur,
    "speckle": add_speckle,
    **{
        name: lambda square, case_id, factor=factor: _to_levels(rescale(square, factor))
        for name, factor in SCALES.items()
    },
}


def undo(name: str, prob: np.ndarray) -> np.ndarray:
    """Map a perturbed frame's probabilities, float32 (S,S), back on to the frame itself.

    What an enlarged frame pushes out of the square is 0.
    """
    return rescale(prob, 1 / SCALES[name]).astype(np.float32) if name in SCALES else prob

"""Distance of a frame from the training frames, to detect images that the network does not know.

The Mahalanobis distance of eight features, by mean and covariance of the training frames, as a
multiple of the 99th percentile of frames that the network has not seen.
"""

import numpy as np

FAR, TOO_FAR = 1.0, 3.0  # above these a frame gives a warning, or is refused


def distance(known: dict, fitted: np.ndarray) -> float:
    """Return how far a frame, uint8 (S,S), is from those that `describe_frames` describes."""
    return _distance(known, features(fitted))


def features(fitted: np.ndarray) -> np.ndarray:
    """Return eight features, float64 (8,), of a frame, uint8 (S,S).

    Mean and spread of the levels, shares of black and of bright pixels, where the brightness lies
    by depth, and speckle: mean differences down and across, spread of both.
    """
    levels = fitted.astype(np.float64) / 255
    down, across = np.abs(np.diff(levels, axis=0)), np.abs(np.diff(levels, axis=1))
    depth = np.linspace(0, 1, len(levels)) @ levels.sum(axis=1) / max(levels.sum(), 1e-9)
    return np.array([
        levels.mean(), levels.std(), (levels < 0.03).mean(), (levels > 0.7).mean(), depth,
        down.mean(), across.mean(), down.std() + across.std(),
    ])  # fmt: skip


def describe_frames(train: np.ndarray, val: np.ndarray, groups: np.ndarray | None = None) -> dict:
    """Return mean, inverse covariance and reach for `distance`, of fitted frames, uint8 (N,S,S).

    Without validation frames the reach is that of the training frames, those of each group (N,)
    measured from the others'; of a single group from its own.
    """
    known = np.stack([features(frame) for frame in train])  # (N,8)
    about = _describe(known)
    if len(val):
        distances = [distance(about, frame) for frame in val]
    else:
        groups = np.zeros(len(train)) if groups is None else groups
        parts = [groups == name for name in np.unique(groups)]
        others = [_describe(known[~part]) if len(parts) > 1 else about for part in parts]
        each = zip(others, parts, strict=True)
        distances = [_distance(other, one) for other, part in each for one in known[part]]
    return about | {"reach": max(float(np.percentile(distances, 99)), 1e-6)}


def _describe(known: np.ndarray) -> dict:
    covariance = np.cov(known, rowvar=False) if len(known) > 1 else np.zeros((8, 8))
    # regularised in each feature's own unit: few sweeps do not vary in all directions
    covariance += np.diag(0.05 * np.diag(covariance) + 1e-6)
    inverse = np.linalg.inv(covariance).tolist()
    return {"mean": known.mean(axis=0).tolist(), "reach": 1.0, "inverse_covariance": inverse}


def _distance(known: dict, found: np.ndarray) -> float:
    off = found - np.array(known["mean"])
    return float(np.sqrt(off @ np.array(known["inverse_covariance"]) @ off) / known["reach"])

"""Distance of a frame from the training frames, to detect images that the network does not know.

The Mahalanobis distance of eight features, by mean and covariance of the training frames, as a
multiple of the 99th percentile of the validation frames.
"""

import numpy as np

FAR, TOO_FAR = 1.0, 3.0  # above these a frame gives a warning, or is refused


def distance(known: dict, fitted: np.ndarray) -> float:
    """Return how far a frame, uint8 (S,S), is from those that `describe_frames` describes."""
    off = features(fitted) - np.array(known["mean"])
    return float(np.sqrt(off @ np.array(known["inverse_covariance"]) @ off) / known["reach"])


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


def describe_frames(train: np.ndarray, val: np.ndarray) -> dict:
    """Return mean, inverse covariance and reach for `distance`, of fitted frames, uint8 (N,S,S).

    Without validation frames the reach is that of the training frames.
    """
    known = np.stack([features(frame) for frame in train])  # (N,8)
    covariance = np.cov(known, rowvar=False) if len(known) > 1 else np.zeros((8, 8))
    # regularised in each feature's own unit: few sweeps do not vary in all directions
    covariance += np.diag(0.05 * np.diag(covariance) + 1e-6)
    about = {"mean": known.mean(axis=0).tolist(), "reach": 1.0}
    about["inverse_covariance"] = np.linalg.inv(covariance).tolist()
    distances = [distance(about, frame) for frame in (val if len(val) else train)]
    return about | {"reach": max(float(np.percentile(distances, 99)), 1e-6)}

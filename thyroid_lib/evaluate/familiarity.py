"""Is this such a frame as the network was trained on? A distance from what it has seen.

The Mahalanobis distance of eight numbers that say how a frame looks, by mean and covariance of the
training frames, as a multiple of what 99 of 100 validation frames keep within.
"""

import numpy as np

FAR, TOO_FAR = 1.0, 3.0  # where a warning begins, and where a frame is to be refused


def distance(known: dict, fitted: np.ndarray) -> float:
    """Return how far a frame is; above 1 is further than 99 of 100 validation frames.

    Args:
        known: what `describe_frames` gives.
        fitted: uint8 (S,S).
    """
    off = features(fitted) - np.array(known["mean"])
    return float(np.sqrt(off @ np.array(known["inverse_covariance"]) @ off) / known["reach"])


def features(fitted: np.ndarray) -> np.ndarray:
    """Describe how a frame looks by eight numbers: its gray levels, where they are, their texture.

    Args:
        fitted: uint8 (S,S).

    Returns:
        float64 (8,): mean and spread of the levels, shares of black and of bright pixels, where the
        brightness lies by depth, and speckle: mean steps down and across, spread of both.
    """
    levels = fitted.astype(np.float64) / 255
    down, across = np.abs(np.diff(levels, axis=0)), np.abs(np.diff(levels, axis=1))
    depth = np.linspace(0, 1, len(levels)) @ levels.sum(axis=1) / max(levels.sum(), 1e-9)
    return np.array([
        levels.mean(), levels.std(), (levels < 0.03).mean(), (levels > 0.7).mean(), depth,
        down.mean(), across.mean(), down.std() + across.std(),
    ])  # fmt: skip


def describe_frames(train: np.ndarray, val: np.ndarray) -> dict:
    """Return what `distance` needs to know of the frames that a model was trained on.

    Args:
        train, val: uint8 (N,S,S), fitted; without validation frames the training frames say how
            far is usual.
    """
    known = np.stack([features(frame) for frame in train])  # (N,8)
    covariance = np.cov(known, rowvar=False) if len(known) > 1 else np.zeros((8, 8))
    # a little of the identity, in each feature's own unit: few sweeps leave directions unseen
    covariance += np.diag(0.05 * np.diag(covariance) + 1e-6)
    about = {"mean": known.mean(axis=0).tolist(), "reach": 1.0}
    about["inverse_covariance"] = np.linalg.inv(covariance).tolist()
    distances = [distance(about, frame) for frame in (val if len(val) else train)]
    return about | {"reach": max(float(np.percentile(distances, 99)), 1e-6)}

"""From a network's logits to a probability of each class and a label map; no torch.

A network of one class gives one logit a pixel; of K > 1 classes K+1 logits, of which the first is
the background's. Label maps: see `classes`.
"""

import numpy as np
from PIL import ImageColor
from scipy import special

from thyroid_lib.data import frames
from thyroid_lib.data.classes import UNKNOWN, class_colours


def class_probs(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float32 (N,K,S,S), from logits, float32 (N,K+1,S,S).

    The softmax without its background. One class is the sigmoid of its one logit, (N,1,S,S).
    """
    if logits.shape[1] == 1:
        return special.expit(logits)
    return special.softmax(logits, axis=1)[:, 1:]


def foreground(prob: np.ndarray) -> np.ndarray:
    """Return the probability of any class, (N,S,S), from (N,K,S,S); (N,S,S) stays as it is."""
    return prob.sum(axis=1).clip(max=1) if prob.ndim == 4 else prob


def to_labels(prob: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return the label map, uint8 (H,W), of the classes' probabilities, float32 (K,H,W).

    A pixel is foreground where their sum, 1 − p(background), is strictly above the threshold; its
    class is the most probable one, of equals the first.
    """
    foreground = frames.threshold_prob(prob.sum(axis=0), threshold)
    return np.where(foreground, prob.argmax(axis=0) + 1, 0).astype(np.uint8)


def restore_labels(
    prob: np.ndarray, height: int, width: int, *, resize: str, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Resize a frame's probabilities, float32 (K,S,S), as `frames.restore_prob`.

    Returns them, (K,height,width), and their label map, uint8 (height,width).
    """
    prob = np.stack([frames.restore_prob(each, height, width, resize) for each in prob])
    return prob, to_labels(prob, threshold)


def class_masks(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mask of each class, bool (K,H,W), of a label map (H,W)."""
    return labels == np.arange(1, classes + 1)[:, None, None]


def class_rgb(classes: int) -> list[tuple[int, int, int]]:
    """Return the colour of each class in the study's figures, RGB."""
    named = class_colours(classes)
    return [ImageColor.getrgb(colour) for code, colour in named.items() if code != UNKNOWN]

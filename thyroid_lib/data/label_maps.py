"""Label maps: from a network's logits to a probability and a label per class, without torch.

A label map is uint8: 0 background, 1 to K the classes in their order; in a reference also 255,
foreground whose class is not known. A network of one class gives one logit a pixel, of K > 1
classes K+1 logits, of which the first is the background's.
"""

import numpy as np
from scipy import special

from thyroid_lib.data import frames

UNKNOWN = 255
# RGB of class 1, 2 … where the network drew it: the first is the prediction's in all figures
COLOURS = (
    (58, 168, 255), (255, 95, 162), (54, 211, 153), (255, 140, 66), (183, 148, 255), (79, 208, 224),
)  # fmt: skip


def class_probs(logits: np.ndarray) -> np.ndarray:
    """Return the probability of each class, float32 (N,K,S,S), from logits, float32 (N,K+1,S,S).

    The softmax without its background. One class is the sigmoid of its one logit, (N,1,S,S).
    """
    if logits.shape[1] == 1:
        return special.expit(logits)
    return special.softmax(logits, axis=1)[:, 1:]


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


def colour_of(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of class 1, 2 … in pages, pictures and figures."""
    return COLOURS[(label - 1) % len(COLOURS)]

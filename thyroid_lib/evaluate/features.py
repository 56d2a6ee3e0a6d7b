"""What a network itself sees of a frame: features at its bridge, and their distance from training.

The bridge is the last module of a forward pass whose output is the smallest in H x W; its features
are averaged over H and W. It is found by hooks, in any network. Pictures of another kind lie far
from the training frames' features (Lee, Lee, Lee & Shin, NeurIPS 2018, arXiv 1807.03888).
"""

from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from thyroid_lib.models import to_input


class _Reached(Exception):
    """Ends a forward pass at the bridge; holds its features, (B,C)."""


def find_bridge(network: nn.Module, images: Tensor) -> tuple[nn.Module, int]:
    """Return the bridge, and which of its calls in a forward pass of images (B,C,H,W) is meant.

    Outputs of one pixel are global averages (squeeze and excitation) and count only where there are
    no others.
    """
    calls, seen = Counter(), []

    def look(module, inputs, output) -> None:
        calls[module] += 1
        output = output[0] if isinstance(output, tuple) else output  # a max-pool with its indices
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append((output.shape[2] * output.shape[3], module, calls[module]))

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    network(images)
    for hook in hooks:
        hook.remove()
    smallest = min((pixels for pixels, *_ in seen if pixels > 1), default=1)
    return [each for pixels, *each in seen if pixels == smallest][-1]


@torch.inference_mode()
def bridge_features(
    network: nn.Module, images: np.ndarray, rows: np.ndarray, *, device="cpu", batch_size=16
) -> np.ndarray:
    """Return the features, float64 (N,C), of rows of stored images, uint8; of an ensemble its
    first member's. The forward pass ends at the bridge."""
    network = getattr(network, "members", [network])[0].to(device).eval()
    calls, found = 0, []

    def load(part: np.ndarray) -> Tensor:
        return to_input(torch.from_numpy(np.asarray(images[part])).to(device))

    def stop(module, given, output) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            output = output[0] if isinstance(output, tuple) else output
            raise _Reached(output.mean((2, 3)))

    bridge, call = find_bridge(network, load(rows[:1]))
    hook = bridge.register_forward_hook(stop)
    for part in np.split(rows, range(batch_size, len(rows), batch_size)):
        calls = 0
        try:
            network(load(part))
        except _Reached as reached:
            found.append(reached.args[0].double().cpu().numpy())
    hook.remove()
    return np.concatenate(found)


def shrunk_covariance(features: np.ndarray) -> np.ndarray:
    """Return the covariance (C,C) of features (N,C), shrunk towards a multiple of the identity.

    By how much: Ledoit & Wolf, J. Multivariate Anal. 88 (2004) 365.
    """
    count, size = features.shape
    off = features - features.mean(axis=0)
    covariance = off.T @ off / count
    scale = np.trace(covariance) / size
    spread = np.square(covariance).sum()
    noise = (np.square(off).T @ np.square(off)).sum() / count - spread
    target = spread - size * scale**2  # squared distance of the covariance from its target
    share = min(1.0, noise / count / target) if target > 0 else 1.0
    return (1 - share) * covariance + share * scale * np.eye(size)


def feature_distances(known: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far features (M,C) lie from those of training frames (N,C), twice (M,).

    Mahalanobis distance from their mean, divided by √C: about 1 for a frame like them. Cosine
    distance, 0 to 2, from the nearest of them.
    """
    off = new - known.mean(axis=0)
    # a tiny share of the identity, for features that do not vary at all
    covariance = shrunk_covariance(known) + 1e-9 * np.eye(known.shape[1])
    square = (off * np.linalg.solve(covariance, off.T).T).sum(axis=1)
    mahalanobis = np.sqrt(square / known.shape[1])
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (new, known))
    return mahalanobis, 1 - (a @ b.T).max(axis=1)

"""Where a killed run goes on: one atomic file an epoch, trusted only if its key fits.

The key covers all that decides the weights: the store's fingerprint, the split, the training
parameters (threads among them: sums in another order give other bits) and the code that trains.
Metrics and plots are left out on purpose, so that editing them never costs a training step.
"""

import hashlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch

from thyroid_lib import write_file
from thyroid_lib.fingerprint import code_fingerprint

# What, edited, makes other weights.
TRAINING_CODE = tuple(f"thyroid_lib.{name}" for name in ("splits", "models", "augment", "train"))


def run_key(*, data: str, labels: np.ndarray, parameters: dict) -> str:
    """Return a SHA-256 over data, split, training parameters and training code.

    Args:
        data: the store's fingerprint.
        labels: array of str (N,), the side of every case.
        parameters: what the training loop was asked for; plain JSON values.
    """
    content = {
        "code": code_fingerprint(*TRAINING_CODE),
        "data": data,
        "parameters": parameters,
        "split": hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        "torch": torch.__version__.split("+")[0],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(path: str | Path, state: dict) -> Path:
    """Write tensors and plain values whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_file(path, buffer.getvalue())


def load(path: str | Path, *, key: str, device: str = "cpu") -> dict | None:
    """Read a state saved under this key; None if there is none or another training made it.

    A file that cannot be read is named in a warning and passed over: it is data, never code
    (`weights_only=True`).
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds on a damaged file
        warnings.warn(
            f"{path.name} of {path.parent.name} cannot be read ({type(error).__name__}): "
            "training starts anew",
            stacklevel=2,
        )
        return None
    return state if isinstance(state, dict) and state.get("key") == key else None

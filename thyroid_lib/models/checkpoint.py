"""Checkpoints: files with checksums, used only under the key that they were saved under.

The key covers all that decides the weights, and nothing else.
"""

import errno
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from thyroid_lib.files.writing import print_note, remove_file, write_file

NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"


def run_key(
    *, data: str, sides: np.ndarray, parameters: dict, training_version: int, architecture: dict
) -> str:
    """Return a SHA-256 over all that decides the weights of a run.

    data: the store's fingerprint; sides: str (N,); architecture: of a user's network, else {}.
    """
    content = {
        "training_version": training_version,
        "data": data,
        "parameters": parameters,
        "split": hashlib.sha256("\n".join(sides).encode()).hexdigest(),
        "torch": torch.__version__.split("+")[0],
    } | ({"architecture": architecture} if architecture else {})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(path: str | Path, state: dict) -> Path:
    """Write tensors and plain values, the whole file or nothing."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_file(path, buffer.getbuffer())


def read(path: str | Path) -> dict:
    """Read a file of `save` on to the CPU, never code; ValueError: damaged, or of another kind."""
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as records:
            if damaged := records.testzip():  # torch does not look at the checksums
                raise ValueError(f"checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise a dozen kinds on a damaged file
        wrong_offset = getattr(error, "errno", None) == errno.EINVAL
        if isinstance(error, OSError | MemoryError) and not wrong_offset:
            raise
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path.name} of {path.parent.name} is damaged ({what})") from error


def load(path: str | Path, *, key: str) -> dict | None:
    """Read a state saved under this key; None if there is none, or one of another training.

    A damaged file is reported and removed. OSError, MemoryError: it cannot be read now, and stays.
    """
    path, state = Path(path), {}
    try:
        if path.exists():
            state = read(path)
    except ValueError as error:
        print_note(f"{error}: it is passed over and removed")
        path.unlink()
    return state if state.get("key") == key else None


def keep(folder: str | Path, state: dict) -> None:
    """Save the newest state of a training beside the one before, in case the disk damages one."""
    newest = Path(folder, NEWEST)
    if newest.exists():
        os.replace(newest, Path(folder, PREVIOUS))  # first: never three on the disk
    save(newest, state)


def resume(folder: str | Path, *, key: str) -> dict | None:
    """Return the newest undamaged state kept under this key; None if there is none."""
    return load(Path(folder, NEWEST), key=key) or load(Path(folder, PREVIOUS), key=key)


def forget(folder: str | Path) -> None:
    """Remove the checkpoints of a finished training."""
    for name in (NEWEST, PREVIOUS):
        remove_file(Path(folder, name))

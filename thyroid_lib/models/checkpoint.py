"""Where a killed run goes on: whole files, checked by checksum, trusted only if their key fits.

    checkpoint.pt  checkpoint-previous.pt  while a run trains; never more than these two
    model.pt                               what is left of them when it is finished

The key covers all that decides the weights: the store's fingerprint, the split, the training
parameters (threads among them: sums in another order give other bits), the version of the training
arithmetic, and the code of a user's own network. Moving or renaming a file of the library, or a
change of metrics or plots, costs no training step.
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

from thyroid_lib.files.writing import print_note, remove_file, write_error, write_file


def run_key(
    *,
    data: str,
    labels: np.ndarray,
    parameters: dict,
    training_version: int,
    architecture: dict | None = None,
) -> str:
    """Return a SHA-256 over data, split, training parameters and training arithmetic.

    Args:
        data: the store's fingerprint.
        labels: array of str (N,), the side of every case.
        parameters: what the training loop was asked for; plain JSON values.
        training_version: `train.TRAINING_VERSION`.
        architecture: what makes a network of one's own, see `architectures`; None or {} for one of
            the library, which the training version covers.
    """
    content = {
        "training_version": training_version,
        "data": data,
        "parameters": parameters,
        "split": hashlib.sha256("\n".join(labels).encode()).hexdigest(),
        "torch": torch.__version__.split("+")[0],
    }
    if architecture:
        content["architecture"] = architecture
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def save(path: str | Path, state: dict) -> Path:
    """Write tensors and plain values whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_file(path, buffer.getbuffer())


def read(path: str | Path) -> dict:
    """Read what `save` wrote, on to the CPU. It is data, never code (`weights_only=True`).

    Raises:
        ValueError: the file is damaged: a record's checksum, which torch itself passes over, is
            wrong; or it is none of these files.
        OSError, MemoryError: it could not be read, which is no fault of the file's.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as records:
            if damaged := records.testzip():
                raise ValueError(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"holds a {type(state).__name__}")
    except MemoryError:
        raise
    except Exception as error:  # zipfile and torch raise a dozen kinds on a damaged file
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is of a wrong offset
            raise
        if "allocate memory" in str(error):
            raise MemoryError(f"too little memory to read {path.name}") from error
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = "it holds what is no data, and is not run" if "weights_only" in str(error) else what
        raise ValueError(f"{path.name} of {path.parent.name} is damaged ({what})") from error
    return state


def load(path: str | Path, *, key: str) -> dict | None:
    """Read a state saved under this key; None if there is none or another training made it.

    A damaged file is named, passed over and removed.

    Raises:
        OSError, MemoryError: it could not be read, which is no fault of the file's; it stays.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        state = read(path)
    except ValueError as error:
        print_note(f"{error}: it is passed over, and what it held is made again")
        path.unlink()
        return None
    except OSError as error:  # a folder in its place, say
        raise write_error(error, path) from error
    return state if state.get("key") == key else None


def keep(folder: str | Path, state: dict) -> None:
    """Save where a training is; the state before stays, as the disk may spoil the newest."""
    newest, previous = _places(folder)
    if newest.exists():
        os.replace(newest, previous)  # first, so that three never lie on the disk
    save(newest, state)


def resume(folder: str | Path, *, key: str) -> dict | None:
    """Return the newest sound state that was kept under this key; None if there is none."""
    states = (load(path, key=key) for path in _places(folder))
    return next((state for state in states if state), None)


def forget(folder: str | Path) -> None:
    """Remove what was kept: the training is finished."""
    for path in _places(folder):
        remove_file(path)


def _places(folder: str | Path) -> tuple[Path, Path]:
    return Path(folder, "checkpoint.pt"), Path(folder, "checkpoint-previous.pt")

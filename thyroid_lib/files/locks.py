"""Advisory file locks for study folders and GPUs; the system releases them when a process ends.

A lock holds on one machine, and on a shared disk if that disk supports locks; else a note says so.
"""

import errno
import glob
import hashlib
import inspect
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from thyroid_lib.files.writing import print_note

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of some network disks
OPTIONS = {"thread_local": False}
if "fallback_to_soft" in inspect.signature(FileLock).parameters:  # to files that stay after a kill
    OPTIONS["fallback_to_soft"] = False


def take(path: str | Path, *, wait: bool = False) -> ExitStack | None:
    """Lock a file, created if it does not exist, until the result is closed or its process ends.

    Return None if another process holds the lock (and `wait` is false). OSError: it cannot be made.
    """
    held = ExitStack()
    try:
        held.enter_context(FileLock(path, **OPTIONS).acquire(timeout=-1 if wait else 0))
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        print_note(f"{path} cannot be locked here ({error}): do not start the same study twice")
    return held


def _lock_path(name: str) -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"thyroid-{user}-{name}.lock".replace("/", "-"))


def claim_path(path: str | Path, name: str) -> ExitStack:
    """Lock an output file or folder; wait if necessary, with a note that begins with `name`."""
    digest = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()
    lock_path = _lock_path(f"out-{digest[:16]}")
    held = take(lock_path)
    if held is None:
        print_note(f"{name}: another process is at it; waiting for its end …")
        held = take(lock_path, wait=True)
    return held


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Lock a folder and remove the half-written files that killed processes left in it."""
    folder = Path(folder)
    with claim_path(folder, folder.name):
        for partial in folder.glob("*.partial"):
            partial.unlink(missing_ok=True)
        yield


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def claim_gpu(name: str) -> ExitStack | None:
    """Lock a GPU that no other run of this user holds, or wait for one; None if there is no GPU."""
    gpus, noted = visible_gpus(), False
    job = os.environ.get("SLURM_JOB_ID", "")  # each job may see its own GPU as number 0
    while gpus:
        for gpu in gpus:
            if (held := take(_lock_path(f"gpu-{job}{gpu}"))) is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return held
        if not noted:
            noted = True
            print_note(f"{name}: other runs hold GPU {', '.join(gpus)}; waiting …")
        time.sleep(1)
    return None

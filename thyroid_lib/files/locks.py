"""Who is at it: locks that the system frees with the process that holds them, however that ends.

So none is ever stale, and none has to be taken away by hand. They hold on one machine; on Windows,
and on disks that know no locks (some of a network or a cloud), nothing is locked.
"""

import glob
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from thyroid_lib.files.writing import print_note


def take(path: str | Path, *, wait: bool = False) -> TextIO | None:
    """Lock a file, which is made if it is not there.

    Returns:
        The open file, which holds the lock until it is closed; None if another process holds it
        (and `wait` is false).

    Raises:
        OSError: the file cannot be opened.
    """
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        lock.close()
        return None
    except ImportError:  # Windows
        pass
    except OSError as error:
        print_note(f"{lock.name} cannot be locked here ({error.strerror}): start nothing twice")
    return lock


def _named(name: str) -> Path:
    """Where the lock of this name lies, which leaves nothing behind in anybody's results."""
    who = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"thyroid-{who}-{name}.lock".replace("/", "-"))


def claim_path(path: str | Path, name: str) -> TextIO:
    """Wait until no other process makes this file or folder; `name` tells who waits."""
    whole = str(Path(path).resolve())
    place = _named(f"out-{hashlib.sha256(whole.encode()).hexdigest()[:16]}")
    lock = take(place)
    if lock is None:
        print_note(f"{name}: another process is at it; waiting for its end …")
        lock = take(place, wait=True)
    return lock


def alive(pid: str | int) -> bool:
    """Say whether a process of this number is at work on this machine; not so for what is none."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Keep other processes out of a folder, and take away what killed ones left half-written."""
    folder = Path(folder)
    with claim_path(folder, folder.name):
        for partial in folder.glob("*.partial"):
            partial.unlink(missing_ok=True)
        yield


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use; found without loading CUDA."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [name for name in asked.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def claim_gpu(name: str) -> TextIO | None:
    """Take a GPU that no other run of this user holds, or wait for one; None where there is none.

    Snakemake deals out as many runs as there are GPUs; a second study beside it knows nothing of
    the first. Two runs on one GPU would take turns, or run out of its memory.
    """
    gpus, told = visible_gpus(), False
    job = os.environ.get("SLURM_JOB_ID", "")  # each job may see a GPU of its own as number 0
    while gpus:
        for gpu in gpus:
            if lock := take(_named(f"gpu-{job}{gpu}")):
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return lock
        if not told:
            told = True
            print_note(f"{name}: other runs hold GPU {', '.join(gpus)}; waiting …")
        time.sleep(1)
    return None

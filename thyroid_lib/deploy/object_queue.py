"""Queue on disk of received DICOM objects, which survive a kill, and the thread that answers them.

An object leaves the queue when the PACS has confirmed segmentation and report.
"""

import logging
import os
import queue
import re
import threading
import time
from contextlib import suppress
from pathlib import Path

from thyroid_lib.data import dicom
from thyroid_lib.deploy import pacs
from thyroid_lib.files import locks
from thyroid_lib.files.writing import write_file

MAX_DEATHS = 5  # how often the node may end while it answers an object
LONGEST_PAUSE = 60.0  # seconds between two tries
log = logging.getLogger("thyroid_lib.node")


def object_name(path: Path) -> str:
    return path.stem.partition("-")[2].partition(".")[0]


class Queue(threading.Thread):
    """Objects in a folder: <arrival>-<name>.<deaths>.dcm, and .working while one is answered.

    `deaths` counts how often the node ended over it. ValueError: another process uses the folder.
    """

    def __init__(self, folder: str | Path, client=None, answer=None):
        super().__init__(daemon=True)
        self.folder, self.client, self.answer = Path(folder), client, answer
        self.waiting, self.stopping, self.failures = queue.Queue(), threading.Event(), 0
        (self.folder / "failed").mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.lock = locks.take(self.folder / "lock")
        if self.lock is None:
            raise ValueError(f"another node has the queue {folder}: stop it or give another folder")
        for path in self.files(r"dcm\.\d+\.partial"):
            path.unlink()  # whose sender got no success, and sends it again
        for path in self.files("working"):  # the node ended over it: others come first now
            deaths = int(path.stem.rpartition(".")[2]) + 1
            path = path.replace(self._path(object_name(path), deaths))
            if deaths >= MAX_DEATHS:
                self.give_up(path, f"the node ended {deaths} times while it answered this object")
        for path in self.files("dcm"):
            self.waiting.put(path)

    def files(self, ending: str) -> list[Path]:
        """Return the queue's files with this ending, a pattern, oldest first."""
        own = re.compile(rf"\d{{20}}-[^.]+\.\d+\.{ending}")
        return sorted(path for path in self.folder.iterdir() if own.fullmatch(path.name))

    def _path(self, name: str, deaths: int = 0) -> Path:
        return self.folder / f"{time.time_ns():020d}-{name}.{deaths}.dcm"

    def put(self, name: str, content: bytes) -> None:
        """Add an object, which then survives a loss of power. OSError: the disk has no room."""
        path = write_file(self._path(name), content)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(self.folder, os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
        self.waiting.put(path)

    def give_up(self, path: Path, reason: str) -> None:
        """Move an object to failed/, with the reason beside it."""
        log.error("object %s: given up, kept in failed/: %s", object_name(path), reason)
        path.replace(kept := self.folder / "failed" / f"{path.stem}.dcm")
        with suppress(OSError):  # the disk may be full
            write_file(kept.with_suffix(".txt"), reason + "\n")

    def run(self):
        while (path := self.waiting.get()) and not self.stopping.is_set():
            try:
                self.serve(path)
            except OSError as error:  # of the queue's own disk
                self.retry_later(path, type(error).__name__)

    def stop(self, seconds: float) -> None:
        """Let the current object be finished in so many seconds, or put it back."""
        self.stopping.set()
        self.waiting.put(None)
        self.join(seconds)
        for path in self.files("working"):  # not counted as a death
            with suppress(FileNotFoundError):
                path.replace(path.with_suffix(".dcm"))

    def serve(self, path: Path) -> None:
        """Answer one object and remove it; if that is not possible now, put it back and pause."""
        start, working = time.monotonic(), path.with_suffix(".working")
        try:
            if not working.exists():
                path.replace(working)
            answers = self.answer(dicom.read_file(working))
            computed = time.monotonic()
            pacs.store(self.client, answers)
            working.unlink()
        except (OSError, MemoryError) as error:  # the PACS does not answer, or this machine fails
            self.retry_later(path, pacs.http_status(error) or type(error).__name__)
        except Exception as error:
            self.give_up(working, str(dicom.as_refusal(error)))
        else:
            self.failures = 0
            seconds = computed - start, time.monotonic() - computed
            text = "object %s: answered, computed in %.3f s, stored in %.3f s"
            log.info(text, object_name(path), *seconds)

    def retry_later(self, path: Path, problem: str) -> None:
        """Put an object at the end, and pause, longer after each failure in a row."""
        working = path.with_suffix(".working")
        with suppress(OSError):  # else it stays .working, and `serve` finds it so
            working.replace(path)
        if path.exists() or working.exists():
            self.waiting.put(path)
        pause = min(0.5 * 2 ** min(self.failures, 10), LONGEST_PAUSE)
        self.failures += 1
        text = "object %s: not answered yet: %s; next try in %.1f s"
        log.warning(text, object_name(path), problem, pause)
        self.stopping.wait(pause)

"""A second copy of the results where a session's end does not reach: Colab's Drive, say.

Once `keep_copies` is called, what `write_file` writes below results/ is copied to
`<folder>/results/…` as well, each epoch's checkpoint among it. A thread of its own does it: a Drive
that drops, or hangs, holds no training up, and what could not be copied is tried again with the
next file.
"""

import atexit
import os
import queue
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import thyroid_lib
from thyroid_lib import cannot_write, place, tell

PATIENCE = 120  # seconds that the end of the process waits for copies under way

_copies: "Copies | None" = None


class Copies:
    """Files on their way to a folder: `put` them, and `wait` for the last one.

    Args:
        folder: where the copies go; it is made.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.failed = ""  # why the last copy did not come about; "" if it did
        self._todo: queue.Queue[Path] = queue.Queue()
        self._again: dict[Path, None] = {}
        threading.Thread(target=self._work, daemon=True).start()

    def put(self, path: str | Path) -> None:
        """Copy a file soon, or remove its copy if it is gone by then; not one outside results/."""
        if target_of(path, self.folder):
            self._todo.put(Path(path))

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait for all that was put; False if it took too long, or did not come about."""
        if self._again:  # once more
            self._todo.put(next(iter(self._again)))
        done = threading.Event()
        threading.Thread(target=lambda: (self._todo.join(), done.set()), daemon=True).start()
        if not done.wait(seconds):
            tell(f"copies to {self.folder} are not done after {seconds:.0f} s")
            return False
        return not self._again

    def _work(self) -> None:
        while True:
            path = self._todo.get()
            self._again[path] = None
            for each in list(self._again):
                try:
                    _copy(each, target_of(each, self.folder))
                except OSError as error:
                    self._tell_failure(error.strerror or str(error))
                    break  # the others would fail alike, and each may take a Drive's time-out
                del self._again[each]
            else:
                if self.failed:
                    self.failed = ""
                    tell(f"copies to {self.folder}: they come through again")
            self._todo.task_done()

    def _tell_failure(self, why: str) -> None:
        if why != self.failed:
            self.failed = why
            tell(
                f"no copy to {self.folder} ({why}): work goes on here, and it is tried again with "
                "the next file"
            )


def target_of(path: str | Path, folder: str | Path) -> Path | None:
    """Return where the copy of a file lies; None for what is no result."""
    try:
        below = Path(path).absolute().relative_to(place("results"))
    except ValueError:
        return None
    return Path(folder, "results", below)


def keep_copies(folder: str | Path) -> Copies:
    """Copy what is written from now on, and bring back what an earlier session left.

    A folder of results comes back whole, and only where there is none: nothing here is overwritten,
    and nothing that was deleted here comes back into its folder.

    Raises:
        OSError: the folder cannot be used.
    """
    global _copies
    if _copies and _copies.folder == Path(folder):
        return _copies
    Path(folder, "results").mkdir(parents=True, exist_ok=True)
    bring_back(folder)
    if _put not in thyroid_lib.written:
        thyroid_lib.written.append(_put)
        atexit.register(_finish)
    _copies = Copies(folder)
    return _copies


def follow_environment(folder: str = "") -> bool:
    """Keep copies in `THYROID_COPY`, else in `folder`, if either is given; say whether it is done.

    A folder that cannot be used is told, and stops nothing.
    """
    folder = os.environ.get("THYROID_COPY") or folder
    try:
        return bool(folder and keep_copies(folder))
    except OSError as error:
        why = cannot_write(error, folder).strerror
        tell(f"no copies of the results will be kept in {folder}: {why}")
        return False


def _put(path: Path) -> None:
    if _copies:
        _copies.put(path)


def _finish() -> None:
    if _copies:
        _copies.wait()


def bring_back(folder: str | Path) -> int:
    """Copy the folders of results that are there and not here; return how many files came."""
    source, results, count = Path(folder, "results"), place("results"), 0
    missing = [
        (Path(here), files)
        for here, _, files in os.walk(source)
        if files and not (results / Path(here).relative_to(source)).exists()
    ]
    for here, files in missing:
        target = results / here.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        # in one step: a folder of which half came would be taken for one that is there
        with tempfile.TemporaryDirectory(dir=target.parent, suffix=".partial") as beside:
            whole = Path(beside, "whole")
            names = [name for name in files if not name.endswith(".partial")]
            for name in names:
                _copy(here / name, whole / name)
            if names and not target.exists():
                os.rename(whole, target)
                count += len(names)
    if count:
        tell(f"{count} files of an earlier session are back from {folder}")
    return count


def _copy(path: Path, target: Path) -> None:
    """Copy whole or not at all, times included; a file that is gone takes its copy with it."""
    if not path.exists():
        target.unlink(missing_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        shutil.copy2(path, partial)
        os.replace(partial, target)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

"""Copies of results/ in a second folder that outlives the session, such as Colab's Drive.

A thread of its own copies what was written below results/, the checkpoint of each epoch included.
A Drive that disconnects or hangs does not stop a training: the next pass tries again. What is
quickly built again is not copied: stores, phantoms and unpacked data.
"""

import atexit
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from thyroid_lib.data.locate import folder_of, where
from thyroid_lib.files import locks, writing
from thyroid_lib.files.writing import print_note, project_path, write_error

PATIENCE = 120  # seconds that the end of the process waits for the copies
STALE = 3600  # seconds after which a half-written copy belongs to an earlier session
REBUILT = {"images.npy", "phantom.json"}  # a folder with one of these is not copied
NOT_COPIED = (".partial", ".damaged", ".earlier")
OLDER = "checkpoint-previous.pt"  # was copied when it was the newest one
GONE = "the folder is not there any more"

_copies: "Copies | None" = None


class Copies:
    """Keep a folder equal to results/, in a daemon thread.

    Args:
        folder: where the copies go, below its `results/`.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.results = Path(folder), project_path("results")
        self.problem = ""  # why the last pass could not copy everything
        self._removed: set[Path] = set()  # whose copies are to be removed
        self._copied: dict[Path, tuple[int, int]] = {}  # path: size and time when it was copied
        self._requests: SimpleQueue[threading.Event] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def target(self, path: Path) -> Path:
        """Return the path of the copy of a file below results/."""
        return self.folder / "results" / path.absolute().relative_to(self.results)

    def refresh(self, removed: Path | None = None) -> threading.Event:
        """Request a pass over results/; the event is set after it."""
        if removed:
            self._removed.add(removed.absolute())
        self._requests.put(done := threading.Event())
        return done

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until everything is copied; print a note and return False if it is not."""
        answered = self.refresh().wait(seconds)
        if not answered:
            print_note(f"copies to {self.folder} are not finished after {seconds:.0f} s")
        elif self.problem:
            print_note(f"not all results have a copy in {self.folder}: {self.problem}")
        return answered and not self.problem

    def _work(self) -> None:
        while True:
            requests = [self._requests.get()]
            while not self._requests.empty():
                requests.append(self._requests.get())
            problem = self._copy_changed()
            if problem and problem != self.problem:
                print_note(f"no copy to {self.folder} ({problem}): it is tried again later")
            elif self.problem and not problem:
                print_note(f"copies to {self.folder}: they succeed again")
            self.problem = problem
            for done in requests:
                done.set()

    def _copy_changed(self) -> str:
        """Copy what changed since the last pass; return why it failed, "" if it did not."""
        if not self.folder.is_dir():  # nothing must be created below an empty mount point
            return GONE
        for path in list(self._removed):
            with suppress(OSError):
                if not path.exists():
                    self.target(path).unlink(missing_ok=True)
                self._removed.discard(path)
        problem = ""
        for path in files_to_copy(self.results):
            try:
                stat = path.stat()
                state = stat.st_size, stat.st_mtime_ns
                if self._copied.get(path) != state:
                    target = self.target(path)
                    if path in self._copied or not _equal(target, stat):
                        _copy(path, target)
                    self._copied[path] = state
            except OSError as error:
                if not self.folder.is_dir():  # each further file would wait for a time-out
                    return GONE
                if path.exists():  # otherwise it was replaced meanwhile, which requests a pass
                    problem = error.strerror or str(error)
        return problem


def files_to_copy(results: Path) -> Iterator[Path]:
    """Yield the files below results/ that are copied."""
    for folder, below, names in os.walk(results):
        if REBUILT & set(names) or Path(folder) == results / "data":
            below.clear()
            continue
        below[:] = [name for name in below if not name.endswith(NOT_COPIED)]
        if Path(folder).name == ".snakemake":  # records of the steps, not locks and logs
            below[:] = [name for name in below if name == "metadata"]
        names = [name for name in names if not name.startswith(".") and name != OLDER]
        yield from (Path(folder, name) for name in names if not name.endswith(NOT_COPIED))


def chosen_folder() -> Path | None:
    """Return the folder for copies: `THYROID_COPY`, or on Colab the Drive if it is mounted."""
    if chosen := os.environ.get("THYROID_COPY"):
        return Path(chosen).expanduser()
    drive = folder_of("content/drive/MyDrive")
    return drive / "thyroid" if where() == "colab" and drive.is_dir() else None


def keep_chosen() -> Copies | None:
    """Keep copies in the chosen folder, if there is one; a folder that fails gives only a note."""
    folder = chosen_folder()
    try:
        return keep_copies(folder) if folder else None
    except OSError as error:
        reason = write_error(error, folder).strerror
        print_note(f"no copies of the results will be kept in {folder}: {reason}")
        return None


def keep_copies(folder: str | Path) -> Copies | None:
    """Bring back the results of an earlier session, and copy all that is and will be in results/.

    Weights of another training that lie there under the same name are renamed to `….earlier`.

    Returns:
        The copies; None if results/ itself lies in the folder.

    Raises:
        OSError: the folder cannot be used.
    """
    global _copies
    folder = Path(folder)
    if _copies and _copies.folder == folder:
        _copies.refresh()
        return _copies
    if (folder / "results").resolve() == project_path("results").resolve():
        return None
    (folder / "results").mkdir(parents=True, exist_ok=True)
    copies = Copies(folder)
    if os.environ.get("THYROID_KEEPS") != str(folder):  # else the parent process has done it
        for partial in list(folder.rglob("*.partial")):
            with suppress(OSError):
                if partial.stat().st_mtime < time.time() - STALE:
                    partial.unlink()
        bring_back(folder)
        _rename_other_weights(copies)
        os.environ["THYROID_KEEPS"] = str(folder)
    if _on_write not in writing.written:
        writing.written.append(_on_write)
        atexit.register(_wait_at_exit)
    _copies = copies
    _copies.refresh()
    return _copies


def _rename_other_weights(copies: Copies) -> None:
    for path in files_to_copy(copies.results):
        target = copies.target(path)
        if path.suffix == ".pt" and target.exists() and not _equal(target, path.stat()):
            os.replace(target, target.with_name(f"{target.name}.earlier"))
            what = f"another {path.name} of {path.parent.name}"
            print_note(f"{copies.folder} has {what}: it stays there as .earlier")


def _on_write(path: Path, removed: bool) -> None:
    if _copies and path.absolute().is_relative_to(_copies.results):
        _copies.refresh(path if removed else None)


def _wait_at_exit() -> None:
    if _copies:
        _copies.wait()


def bring_back(folder: str | Path) -> int:
    """Copy the folders of results that exist there and not here; return the number of files.

    A folder is copied whole, and only where there is none: no file here is overwritten, and no file
    that was deleted here returns to its folder. A folder that cannot be read gives a note.
    """
    source, results, count = Path(folder, "results"), project_path("results"), 0
    walked = [(Path(top), names) for top, _, names in os.walk(source) if names]
    missing = [each for each in walked if not (results / each[0].relative_to(source)).exists()]
    for top, names in missing:
        target = results / top.relative_to(source)
        names = [name for name in names if not name.endswith(NOT_COPIED)]
        # renamed at the end: a folder that was copied in part would be taken for a whole one
        whole = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            for left in target.parent.glob(f"{target.name}.*.partial"):
                if not locks.alive(left.name.split(".")[-2]):
                    shutil.rmtree(left)
            for name in names:
                _copy(top / name, whole / name)
            if names and not target.exists():
                whole.rename(target)
                count += len(names)
        except OSError as error:
            print_note(f"{top} could not be brought back: {error.strerror or error}")
        finally:
            shutil.rmtree(whole, ignore_errors=True)
    if count:
        print_note(f"{count} files of an earlier session are back from {folder}")
    return count


def _equal(target: Path, stat: os.stat_result) -> bool:
    """Return whether a copy has the file's size, and its time to 2 s (as coarse as some disks)."""
    try:
        there = target.stat()
    except FileNotFoundError:
        return False
    return there.st_size == stat.st_size and abs(there.st_mtime - stat.st_mtime) < 2


def _copy(path: Path, target: Path) -> None:
    """Copy a file whole or not at all, with its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.copy.{os.getpid()}.partial")
    try:
        shutil.copyfile(path, partial)
        with suppress(OSError):  # some Drives keep no times
            shutil.copystat(path, partial)
        os.replace(partial, target)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

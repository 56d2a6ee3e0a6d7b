"""Copies of results/ in a second folder that outlives the session, such as Colab's Drive.

A thread copies what was written below results/, checkpoints every ten minutes and at the end; if a
Drive disconnects or hangs, the next pass tries again. Stores, phantoms and unpacked data are not
copied. A Drive moves what is replaced or removed to its bin, where it counts as space in use:
such files are emptied first.
"""

import atexit
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from thyroid_lib.data.locate import folder_of, where
from thyroid_lib.files import writing
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import print_note, write_error

PATIENCE = 120  # seconds that the end of the process waits for the copies
INTERVAL = 600  # seconds between two copies of a run's checkpoint
REPLACED = ".replaced.partial"  # ending of a copy between two renames
REBUILT = {"images.npy", "phantom.json"}  # a folder with one of these is not copied
NOT_COPIED = (".partial", ".damaged", ".earlier", "checkpoint-previous.pt")

_copies: "Copies | None" = None


class Copies:
    """Keep a folder's `results/` equal to the project's, in a daemon thread."""

    def __init__(self, folder: str | Path):
        self.folder, self.results = Path(folder), project_path("results")
        self.problem = ""  # why the last pass could not copy everything
        self._removed: set[Path] = set()  # whose copies are to be removed
        self._copied: dict[Path, tuple[int, int]] = {}  # path: size and time when it was copied
        self._requests: SimpleQueue[tuple[threading.Event, bool]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def target(self, path: Path) -> Path:
        """Return the path of the copy of a file below results/."""
        return self.folder / "results" / path.absolute().relative_to(self.results)

    def on_write(self, path: Path, removed: bool) -> None:
        """Request a pass if the file lies below results/."""
        if path.absolute().is_relative_to(self.results):
            self._removed |= {path.absolute()} if removed else set()
            self.refresh()

    def refresh(self, everything: bool = False) -> threading.Event:
        """Request a pass over results/, checkpoints if they are due; the event is set after it."""
        self._requests.put((done := threading.Event(), everything))
        return done

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until everything is copied; print a note and return False if it is not."""
        done = self.refresh(everything=True).wait(seconds)
        problem = self.problem if done else f"not finished after {seconds:.0f} s"
        if problem:
            print_note(f"not all results have a copy in {self.folder}: {problem}")
        return not problem

    def _work(self) -> None:
        while True:
            requests = []
            with suppress(Empty):  # nothing was written, but a checkpoint may be due
                requests.append(self._requests.get(timeout=INTERVAL / 10))
            while not self._requests.empty():
                requests.append(self._requests.get())
            before = self.problem
            self.problem = self._copy_changed(any(everything for _, everything in requests))
            if self.problem != before:
                state = f"{self.problem}: it is tried again" if self.problem else "succeed again"
                print_note(f"copies to {self.folder}: {state}")
            for done, _ in requests:
                done.set()

    def _copy_changed(self, everything: bool) -> str:
        """Copy what changed since the last pass; return why it failed, "" if it did not."""
        if not self.folder.is_dir():  # nothing must be created below an empty mount point
            return "the folder is not there any more"
        for path in list(self._removed):
            with suppress(OSError):
                if not path.exists():
                    _discard(self.target(path))
                self._removed.discard(path)
        problem = ""
        for path in files_to_copy(self.results):
            try:
                stat = path.stat()
                state = stat.st_size, stat.st_mtime_ns
                rare = path.name == "checkpoint.pt" and not everything
                if self._copied.get(path) == state or (rare and _is_recent(self.target(path))):
                    continue
                if path in self._copied or not _equal(self.target(path), stat):
                    copy_whole(path, self.target(path))
                self._copied[path] = state
            except OSError as error:
                if path.exists():  # otherwise it was replaced meanwhile, which requests a pass
                    problem = error.strerror or str(error)
                if not self.folder.is_dir():  # each further file would wait for a time-out
                    break
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
        names = [name for name in names if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.endswith(NOT_COPIED))


def keep_chosen() -> Copies | None:
    """Bring back the results of an earlier session, and copy all that is and will be in results/.

    The copies lie in `THYROID_COPY`, or on Colab in the folder thyroid of the mounted Drive. Return
    None if no folder is chosen, if results/ itself lies in it, and, with a note, if it fails.
    """
    global _copies
    drive = folder_of("content/drive/MyDrive")
    colab = drive / "thyroid" if where() == "colab" and drive.is_dir() else ""
    folder = Path(os.environ.get("THYROID_COPY") or colab).expanduser()
    if folder == Path() or (folder / "results").resolve() == project_path("results").resolve():
        return None
    try:
        if not _copies or _copies.folder != folder:
            (folder / "results").mkdir(parents=True, exist_ok=True)
            copies = Copies(folder)
            if os.environ.get("THYROID_KEEPS") != str(folder):  # else the parent has done it
                _tidy_up(copies)
                os.environ["THYROID_KEEPS"] = str(folder)
            writing.written.append(copies.on_write)
            atexit.register(copies.wait)
            _copies = copies
        _copies.refresh()
        return _copies
    except OSError as error:
        reason = write_error(error, folder).strerror
        print_note(f"no copies of the results will be kept in {folder}: {reason}")
        return None


def _tidy_up(copies: Copies) -> None:
    """Remove half-written copies, bring back results, rename the weights of other trainings."""
    for partial in list(copies.folder.rglob("*.partial")):
        with suppress(OSError):
            target = partial.with_name(partial.name.removesuffix(REPLACED))
            if target != partial and not target.exists():
                partial.rename(target)  # its successor did not come
            elif partial.stat().st_mtime < time.time() - 3600:  # of an earlier session
                _discard(partial)
    bring_back(copies.folder)
    for path in files_to_copy(copies.results):
        target, other = copies.target(path), f"another {path.name} of {path.parent.name}"
        if path.suffix == ".pt" and target.exists() and not _equal(target, path.stat()):
            _move_over(target, Path(f"{target}.earlier"))
            print_note(f"{copies.folder} has {other}: it stays there as .earlier")


def bring_back(folder: str | Path) -> int:
    """Copy the folders of results that exist there and not here; return the number of files.

    No file here is overwritten, and none that was deleted here returns to its folder.
    """
    source, results, count = Path(folder, "results"), project_path("results"), 0
    walked = [(Path(top), names) for top, _, names in os.walk(source)]
    folders = [(results / top.relative_to(source), top, names) for top, names in walked]
    for target, top, names in [each for each in folders if not each[0].exists()]:
        names = [name for name in names if not name.endswith(NOT_COPIED)]
        # renamed at the end: a folder that was copied in part would be taken for a whole one
        whole = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            for name in names:
                copy_whole(top / name, whole / name)
            if names:
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
    there = target.stat() if target.exists() else None
    return bool(there and there.st_size == stat.st_size and abs(there.st_mtime - stat.st_mtime) < 2)


def _is_recent(target: Path) -> bool:
    return target.exists() and time.time() - target.stat().st_mtime < INTERVAL


def copy_whole(path: Path, target: Path) -> None:
    """Copy a file whole or not at all, with its time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.copy.{os.getpid()}.partial")
    try:
        shutil.copyfile(path, partial)
        with suppress(OSError):  # some Drives keep no times
            shutil.copystat(path, partial)
        _move_over(partial, target)
    finally:
        with suppress(OSError):
            _discard(partial)


def _move_over(path: Path, target: Path) -> None:
    """Rename a file to `target`; what was there is moved aside, emptied and removed."""
    aside = Path(f"{target}{REPLACED}")
    with suppress(FileNotFoundError):  # another process may replace it, too
        if target.is_file():
            target.replace(aside)
    try:
        path.replace(target)
    except OSError:
        with suppress(FileNotFoundError):
            aside.replace(target)
        raise
    _discard(aside)


def _discard(path: Path) -> None:
    """Empty a file, so that a bin takes no space, and remove it; nothing if there is none."""
    with suppress(OSError), open(path, "r+b") as file:
        file.truncate()
    path.unlink(missing_ok=True)

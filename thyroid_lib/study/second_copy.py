"""A second copy of the results where a session's end does not reach: Colab's Drive, say.

`keep_copies` lets a thread bring `<folder>/results` into step with results/ whenever something was
written there, each epoch's checkpoint among it. A Drive that drops, or hangs, holds no training up;
what could not be copied is tried again the next time. What can be made again in moments stays out:
stores, phantoms and unpacked data.
"""

import atexit
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import thyroid_lib
from thyroid_lib.data.locate import folder_of, where
from thyroid_lib.files import locks
from thyroid_lib.files.writing import print_note, project_path, write_error

PATIENCE = 120  # seconds that the end of the process waits for copies under way
STALE = 3600  # seconds after which a half-made copy belongs to a session that is gone
MADE_AGAIN = {"images.npy", "phantom.json"}  # a folder with one of these is no result
PASSING = (".partial", ".damaged", ".earlier")
OLDER = "checkpoint-previous.pt"  # it was the newest one, and has been copied as that

_copies: "Copies | None" = None


class Copies:
    """Bring a folder into step with results/, in a thread of its own.

    Args:
        folder: where the copies go.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.results = project_path("results")
        self.missing = 0  # files that could not be copied the last time
        self._why = ""
        self._gone: set[Path] = set()  # to be removed there
        self._known: dict[Path, tuple] = {}  # what has been copied, or found alike
        self._wake, self._done = threading.Event(), threading.Condition()
        self._asked = self._answered = 0
        threading.Thread(target=self._work, daemon=True).start()

    def target(self, path: Path) -> Path:
        """Return where the copy of a file below results/ lies."""
        return self.folder / "results" / path.absolute().relative_to(self.results)

    def refresh(self, path: Path | None = None, *, gone: bool = False) -> None:
        """Bring the folder into step soon; a file that is `gone` loses its copy."""
        with self._done:
            if gone and path:
                self._gone.add(path.absolute())
            self._asked += 1
        self._wake.set()

    def wait(self, seconds: float = PATIENCE) -> bool:
        """Wait until all is copied; False, and a word about it, if it is not."""
        self.refresh()
        with self._done:
            asked = self._asked
            answered = self._done.wait_for(lambda: self._answered >= asked, seconds)
        if not answered:
            print_note(f"copies to {self.folder} are not done after {seconds:.0f} s")
        elif self.missing:
            print_note(f"not all results have a copy in {self.folder}: {self._why}")
        return answered and not self.missing

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._done:
                asked, gone = self._asked, list(self._gone)
            self._bring_into_step(gone)
            with self._done:
                self._answered = asked
                self._done.notify_all()

    def _bring_into_step(self, gone: list[Path]) -> None:
        missing, why = 0, ""
        if not os.path.isdir(self.folder):  # what lay below a mount point may be made there again
            missing, why = 1, "the folder is not there any more"
        for path in gone if not missing else ():
            with suppress(OSError):
                if not path.exists():
                    self.target(path).unlink(missing_ok=True)
                self._gone.discard(path)
        for path in kept(self.results) if not missing else ():
            try:
                stat = path.stat()
                state = stat.st_size, stat.st_mtime_ns
                if self._known.get(path) != state:
                    target = self.target(path)
                    if path in self._known or not _alike(target, stat):
                        _copy(path, target)
                    self._known[path] = state
            except OSError as error:
                if path.exists():  # else it was replaced meanwhile, and that is told
                    missing, why = missing + 1, error.strerror or str(error)
                if not os.path.isdir(self.folder):  # each file would take a Drive's time-out
                    why = "the folder is not there any more"
                    break
        if missing and why != self._why:
            print_note(
                f"no copy to {self.folder} ({why}): work goes on here, and it is tried again"
            )
        elif self.missing and not missing:
            print_note(f"copies to {self.folder}: they come through again")
        self.missing, self._why = missing, why


def kept(results: Path) -> Iterator[Path]:
    """Go through the files below results/ of which copies are kept."""
    for folder, below, names in os.walk(results):
        if MADE_AGAIN & set(names) or Path(folder) == results / "data":
            below.clear()
            continue
        below[:] = [name for name in below if not name.endswith(PASSING)]
        if Path(folder).name == ".snakemake":  # how files were made, and nothing of this start
            below[:] = ["metadata"]
        yield from (
            Path(folder, name)
            for name in names
            if not name.endswith(PASSING) and not name.startswith(".") and name != OLDER
        )


def chosen_folder() -> Path | None:
    """Return where copies are to go: `THYROID_COPY`, on Colab else the Drive, if it is mounted."""
    if asked := os.environ.get("THYROID_COPY"):
        return Path(os.path.expanduser(asked))
    drive = folder_of("content/drive/MyDrive")
    return drive / "thyroid" if where() == "colab" and os.path.isdir(drive) else None


def keep_chosen() -> Copies | None:
    """Keep copies in the chosen folder, if there is one; one that cannot be used stops nothing."""
    folder = chosen_folder()
    try:
        return keep_copies(folder) if folder else None
    except OSError as error:
        why = write_error(error, folder).strerror
        print_note(f"no copies of the results will be kept in {folder}: {why}")
        return None


def keep_copies(folder: str | Path) -> Copies | None:
    """Bring back what an earlier session left, and copy all that is and will be below results/.

    Weights of another training that lie there under the same name are put aside as `….earlier`.

    Returns:
        The copies under way; None if results/ itself lies in the folder.

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
    if os.environ.get("THYROID_KEEPS") != str(folder):  # else the process that began this one did
        _tidy(folder)
        bring_back(folder)
        _put_aside(copies)
        os.environ["THYROID_KEEPS"] = str(folder)
    if _put not in thyroid_lib.files.writing.written:
        thyroid_lib.files.writing.written.append(_put)
        atexit.register(_finish)
    _copies = copies
    _copies.refresh()
    return _copies


def _tidy(folder: Path) -> None:
    """Take away what sessions that are gone have copied half."""
    for partial in list(folder.rglob("*.partial")):
        with suppress(OSError):
            if partial.stat().st_mtime < time.time() - STALE:
                partial.unlink()


def _put_aside(copies: Copies) -> None:
    for path in kept(copies.results):
        target = copies.target(path)
        if path.suffix == ".pt" and target.exists() and not _alike(target, path.stat()):
            os.replace(target, target.with_name(f"{target.name}.earlier"))
            what = f"another {path.name} of {path.parent.name}"
            print_note(f"{copies.folder} has {what}: it stays there as .earlier")


def _put(path: Path, gone: bool) -> None:
    if _copies and path.absolute().is_relative_to(_copies.results):
        _copies.refresh(path, gone=gone)


def _finish() -> None:
    if _copies:
        _copies.wait()


def bring_back(folder: str | Path) -> int:
    """Copy the folders of results that are there and not here; return how many files came.

    A folder comes back whole, and only where there is none: nothing here is overwritten, and
    nothing that was deleted here comes back into its folder. One that cannot be read is told.
    """
    source, results, count = Path(folder, "results"), project_path("results"), 0
    missing = [
        (Path(here), names)
        for here, _, names in os.walk(source)
        if names and not (results / Path(here).relative_to(source)).exists()
    ]
    for here, names in missing:
        target = results / here.relative_to(source)
        names = [name for name in names if not name.endswith(PASSING)]
        # in one step: a folder of which half came would be taken for one that is there
        whole = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            for left in target.parent.glob(f"{target.name}.*.partial"):
                if not locks.alive(left.name.split(".")[-2]):
                    shutil.rmtree(left)
            for name in names:
                _copy(here / name, whole / name)
            if names and not target.exists():
                os.rename(whole, target)
                count += len(names)
        except OSError as error:
            print_note(f"{here} could not be brought back: {error.strerror or error}")
        finally:
            shutil.rmtree(whole, ignore_errors=True)
    if count:
        print_note(f"{count} files of an earlier session are back from {folder}")
    return count


def _alike(target: Path, stat: os.stat_result) -> bool:
    """Whether a copy has the file's size and time, to the two seconds that some disks keep."""
    try:
        there = target.stat()
    except FileNotFoundError:
        return False
    return there.st_size == stat.st_size and abs(there.st_mtime - stat.st_mtime) < 2


def _copy(path: Path, target: Path) -> None:
    """Copy whole or not at all, time included."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.copy.{os.getpid()}.partial")
    try:
        shutil.copyfile(path, partial)
        with suppress(OSError):  # not every Drive keeps times
            shutil.copystat(path, partial)
        os.replace(partial, target)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise

"""Files written whole or not at all, and notes to the terminal."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Called with each file that was written or removed, and whether it is gone.
written: list[Callable[[Path, bool], None]] = []


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write a whole file or nothing: to a `.partial` file beside it, synced, then renamed.

    OSError, if it cannot be written, names the file and what to do; nothing is left behind.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error(error, path) from error
        raise
    for listener in written:
        listener(path, False)
    return path


def remove_file(path: str | Path) -> None:
    """Remove a file that `write_file` wrote, if it exists."""
    Path(path).unlink(missing_ok=True)
    for listener in written:
        listener(Path(path), True)


def write_error(error: OSError, path: str | Path) -> OSError:
    """Return an error that names the file that could not be written and says what to do."""
    what_next = "; then start again and it goes on"
    if str(error.strerror).endswith(what_next):
        return error
    elsewhere = "set THYROID_RESULTS to a folder that can be written"
    in_the_way = "a file lies where a folder is needed, or the reverse: move it away"
    advice = dict.fromkeys((errno.EISDIR, errno.ENOTDIR, errno.EEXIST), in_the_way) | {
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the quota of disk space is used up: free some space",
        errno.EROFS: f"the disk is read-only: {elsewhere}",
        errno.EACCES: f"no permission to write here: change it, or {elsewhere}",
    }
    said = advice.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, said + what_next, str(path))


NOTE = "note: "


def print_note(text: str) -> None:
    """Print what was repaired or is waited for; the runner keeps it out of executed notebooks."""
    print(f"{NOTE}{text}", file=sys.stderr, flush=True)


def write_table(path: str | Path, table, *, digits: int = 6, **how) -> Path:
    """Write a DataFrame as CSV, whole or not at all; `how` goes to `DataFrame.to_csv`."""
    # few digits hide the differences between machines
    how = {"index": False, "float_format": f"%.{digits}f", "lineterminator": "\n"} | how
    return write_file(path, table.to_csv(**how))


def short_reason(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])

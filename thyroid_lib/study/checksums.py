"""A study's folder: one workflow's at a time, with nothing half-written or damaged in it.

What a step wrote stands in results/<study>/checksums/<step>.sha256, as `sha256sum -c` reads it when
it is started in the study's folder.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from thyroid_lib.files import locks
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import print_note, write_error, write_file

UNFINISHED = Path("logs", "report.failed.txt")  # there as long as the report tells of failed steps
WEIGHTS = "model.pt"
PASSING = (".partial", ".damaged")  # of files that are none of a step's results
# Below the folder alone: no absolute name, no part that is "..", no other system's separator.
LINE = re.compile(r"([0-9a-f]{64})  (?!/)(?!(?:.*/)?\.\.(?:/|$))([^\\\n\0]+)")


def claim(study: str | Path) -> TextIO:
    """Take a study's folder for this process and those it starts, until the result is closed.

    Raises:
        BlockingIOError: another workflow is at it; names its process.
        OSError: the folder cannot be written.
    """
    study = Path(study)
    try:
        study.mkdir(parents=True, exist_ok=True)
        lock = locks.take(study / ".lock")
    except OSError as error:
        raise write_error(error, error.filename or study) from error
    if lock is None:
        who = (study / ".lock").read_text("utf-8")
        raise BlockingIOError(
            f"{study.name}: another start of this study is at work{who and f' (process {who})'}: "
            "let it end, end it, or give this one another name (study=…)"
        )
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def mend(study: str | Path) -> list[str]:
    """Take away what killed steps left half-written, and put aside what has changed since.

    Such a file goes on as `<name>.damaged`, and its step is done again. Weights alone stay where
    they are: they hold checksums of their own, and to train them again costs most.

    Args:
        study: a claimed folder.

    Returns:
        What was put aside, relative to the study's folder.
    """
    study = Path(study)
    for partial in list(study.rglob("*.partial")):
        if locks.alive(partial.stem.rpartition(".")[2]):  # the process that writes it
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    if (study / UNFINISHED).exists():  # what the report tells may be over
        for name in ("report.html", "checksums/report.sha256", UNFINISHED):
            (study / name).unlink(missing_ok=True)
    known = {}
    for record in sorted(study.glob("checksums/*.sha256")):
        *lines, last = record.read_text("utf-8", "replace").split("\n")
        found = [LINE.fullmatch(line) for line in lines]
        if last or not found or None in found:
            print_note(
                f"checksums/{record.name} of {study.name} is damaged: the step is done again"
            )
            record.unlink()
            _do_again(study, record.stem)
        else:
            known |= {line[2]: (line[1], record.stem) for line in found}
    there = [name for name in known if (study / name).is_file()]
    gone = sorted(known.keys() - set(there))  # deleted, or no file any more
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(lambda name: file_digest(study / name), there))
    changed = [name for name, digest in zip(there, sums, strict=True) if digest != known[name][0]]
    weights = [name for name in changed if Path(name).name == WEIGHTS]
    for name in changed:
        what = "" if name in weights else f", and this one kept as {Path(name).name}.damaged"
        print_note(
            f"{name} of {study.name} is not the file that was written (damaged? edited?): it is "
            f"made again{what}"
        )
    aside = _put_aside(study, [*gone, *(name for name in changed if name not in weights)])
    for name in (*gone, *changed):
        _do_again(study, known[name][1])
    return sorted(aside)


def settle_times(paths: Iterable[str | Path]) -> None:
    """Set files that bear a time of the future, of a wrong clock, to now: content decides here.

    Snakemake would fail each step whose output is older than such an input.
    """
    now, count = time.time(), 0
    for path in map(Path, paths):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if path.stat().st_mtime > now:
                os.utime(path, (now, now))
                count += 1
    if count:
        print_note(
            f"{count} files bear times of the future: set to now (is this machine's clock right?)"
        )


def record(path: str | Path, files: Iterable[str | Path]) -> None:
    """Write down the checksums of what a step has written.

    Args:
        path: `<study>/checksums/<step>.sha256`.
        files: below the study's folder; what lies beside them is recorded as well, unless they are
            notebooks: figures and weights.
    """
    path = Path(path)
    study = path.parent.parent.absolute()
    files = [Path(file).absolute() for file in files]
    beside = {file.parent for file in files if file.suffix != ".ipynb"} - {study}
    files += [file for folder in beside for file in folder.iterdir() if file.is_file()]
    names = sorted({file.relative_to(study) for file in files if file.suffix not in PASSING})
    write_file(path, "".join(f"{file_digest(study / name)}  {name}\n" for name in names))


def _put_aside(study: Path, names: list[str]) -> list[str]:
    names = [name for name in names if os.path.lexists(study / name)]
    for name in names:
        target = study / f"{name}.damaged"
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(study / name, target)
    return names


def _do_again(study: Path, step: str) -> None:
    """Let Snakemake miss a step: what it was not promised, a figure say, it would not."""
    with suppress(OSError):
        (study / "notebooks" / f"{step}.ipynb").unlink()

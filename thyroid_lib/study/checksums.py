"""Checksums of a study's files: written by each step, checked at every start of the workflow.

A step's list is results/<study>/checksums/<step>.sha256, in the form of `sha256sum -c` started in
the study's folder. This module also locks the folder, as only its holder may repair it.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from psutil import pid_exists

from thyroid_lib.files import locks
from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.writing import print_note, write_error, write_file

UNFINISHED = Path("logs", "report.failed.txt")  # exists while the report names failed steps
WEIGHTS = "model.pt"
NO_RESULTS = (".partial", ".damaged")
# Only below the folder: no absolute name, no part that is "..", no other system's separator.
LINE = re.compile(r"([0-9a-f]{64})  (?!/)(?!(?:.*/)?\.\.(?:/|$))([^\\\n\0]+)")
RECORDS = Path(".snakemake", "metadata")  # of Snakemake, a file for each output of a step


def claim(study: str | Path) -> ExitStack:
    """Lock a study's folder for this process, until the result is closed.

    BlockingIOError: another workflow holds it. OSError: the folder cannot be written.
    """
    path = Path(study, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if (lock := locks.take(path)) is not None:
            path.write_text(str(os.getpid()), "utf-8")
            return lock
    except OSError as error:
        raise write_error(error, error.filename or study) from error
    at_work = f"another start of this study is at work (process {path.read_text('utf-8')})"
    advice = "let it end, end it, or give this one another name (study=…)"
    raise BlockingIOError(f"{path.parent.name}: {at_work}: {advice}")


def read(path: str | Path) -> dict[str, str] | None:
    """Return a step's checksums, digest by file name; None if the list is damaged."""
    *lines, last = Path(path).read_text("utf-8", "replace").split("\n")
    found = [LINE.fullmatch(line) for line in lines]
    return None if last or not found or None in found else {line[2]: line[1] for line in found}


def record(path: str | Path, files: Iterable[str | Path]) -> None:
    """Write the checksums of a step's files to `<study>/checksums/<step>.sha256`.

    What lies beside these files (figures, weights) is recorded as well, except beside notebooks.
    """
    path = Path(path).absolute()
    study = path.parent.parent
    files = [Path(file).absolute() for file in files]
    beside = {file.parent for file in files if file.suffix != ".ipynb"} - {study}
    files += [file for folder in beside for file in folder.iterdir() if file.is_file()]
    names = sorted({file.relative_to(study) for file in files if file.suffix not in NO_RESULTS})
    write_file(path, "".join(f"{file_digest(study / name)}  {name}\n" for name in names))


def mend(study: str | Path) -> list[str]:
    """Remove half-written files of killed steps, and put aside files that have changed since.

    A changed file is renamed to `<name>.damaged`, and its step runs again, as its notebook is
    removed; weights stay, which have checksums of their own. Return the names of the renamed files.
    """
    study, aside, known, again = Path(study), [], {}, set()
    _remove_unfinished(study)
    for path in sorted(study.glob("checksums/*.sha256")):
        if (sums := read(path)) is None:
            print_note(f"checksums/{path.name} of {study.name} is damaged: the step is done again")
            path.unlink()
            again.add(path.stem)
        else:
            known |= {name: (digest, path.stem) for name, digest in sums.items()}
    files = [study / name for name in known]
    with ThreadPoolExecutor() as pool:  # "" for what was deleted, or is no file any more
        found = list(pool.map(lambda file: file_digest(file) if file.is_file() else "", files))
    for (name, (expected, step)), path, digest in zip(known.items(), files, found, strict=True):
        if digest == expected:
            continue
        again.add(step)
        target = path.with_name(f"{path.name}.damaged")
        moved = os.path.lexists(path) and not (digest and path.name == WEIGHTS)
        if digest:
            said = "is not the file that was written (damaged? edited?): it is made again"
            print_note(f"{name} of {study.name} {said}" + f"; kept as {target.name}" * moved)
        if moved:
            os.replace(path, target)
            aside.append(name)
    for step in again:
        with suppress(OSError):  # gone already, or a folder, which is put aside as well
            (study / "notebooks" / f"{step}.ipynb").unlink()
    return sorted(aside)


def _below(folder: str | Path) -> list[Path]:
    """List files and folders; os.walk passes over what another process removes meanwhile."""
    walked = os.walk(folder)
    return [Path(top, name) for top, folders, names in walked for name in (*folders, *names)]


def _remove_unfinished(study: Path) -> None:
    for partial in _below(study):
        number = partial.stem.rpartition(".")[2]  # of the process that writes the file
        if partial.suffix != ".partial" or (number.isdecimal() and pid_exists(int(number))):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    if (study / UNFINISHED).exists():  # the failures that the report names may be over
        for name in ("report.html", "checksums/report.sha256", UNFINISHED):
            (study / name).unlink(missing_ok=True)
    for path in (study / RECORDS).glob("*"):  # Snakemake writes them in place, and ends on some
        try:
            if path.is_file() and not isinstance(json.loads(path.read_bytes()), dict):
                path.unlink()
        except ValueError:
            path.unlink()


def settle_times(study: str | Path) -> None:
    """Set files of the future (of a wrong clock) to now: Snakemake fails on such an input."""
    now, count = time.time(), 0
    for path in _below(study):
        with suppress(OSError):  # deleted meanwhile, or another user's
            if path.is_file() and path.stat().st_mtime > now:
                os.utime(path, (now, now))
                count += 1
    if count:
        print_note(f"{count} files bear times of the future: set to now (is the clock right?)")

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

    Raises:
        BlockingIOError: another workflow holds it; names its process.
        OSError: the folder cannot be written.
    """
    study = Path(study)
    try:
        study.mkdir(parents=True, exist_ok=True)
        lock = locks.take(study / ".lock")
        if lock is not None:
            (study / ".lock").write_text(str(os.getpid()), "utf-8")
    except OSError as error:
        raise write_error(error, error.filename or study) from error
    if lock is None:
        holder = (study / ".lock").read_text("utf-8")
        raise BlockingIOError(
            f"{study.name}: another start of this study is at work"
            f"{holder and f' (process {holder})'}: "
            "let it end, end it, or give this one another name (study=…)"
        )
    return lock


def read(path: str | Path) -> dict[str, str] | None:
    """Return a step's checksums, digest by file name; None if the list is damaged."""
    *lines, last = Path(path).read_text("utf-8", "replace").split("\n")
    found = [LINE.fullmatch(line) for line in lines]
    return None if last or not found or None in found else {line[2]: line[1] for line in found}


def record(path: str | Path, files: Iterable[str | Path]) -> None:
    """Write the checksums of a step's files.

    Args:
        path: `<study>/checksums/<step>.sha256`.
        files: outputs below the study's folder. What lies beside them (figures, weights) is
            recorded as well, except beside notebooks.
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

    A changed file is renamed to `<name>.damaged`, and its step runs again: its notebook goes, which
    Snakemake misses. Only weights stay: they carry checksums of their own, and cost most.

    Args:
        study: a claimed folder.

    Returns:
        What was put aside, relative to the study's folder.
    """
    study, aside = Path(study), []
    _remove_unfinished(study)
    known = {}
    for path in sorted(study.glob("checksums/*.sha256")):
        if (sums := read(path)) is None:
            print_note(f"checksums/{path.name} of {study.name} is damaged: the step is done again")
            path.unlink()
            with suppress(OSError):
                (study / "notebooks" / f"{path.stem}.ipynb").unlink()
        else:
            known |= {name: (digest, path.stem) for name, digest in sums.items()}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: _digest(study / name), known))
    for (name, (expected, step)), digest in zip(known.items(), found, strict=True):
        if digest == expected:
            continue
        path, target = study / name, study / f"{name}.damaged"
        moved = os.path.lexists(path) and not (digest and path.name == WEIGHTS)
        if digest:
            print_note(
                f"{name} of {study.name} is not the file that was written (damaged? edited?): it "
                f"is made again{f', and this one kept as {target.name}' if moved else ''}"
            )
        if moved:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(path, target)
            aside.append(name)
        with suppress(OSError):  # gone already, or a folder, which is put aside as well
            (study / "notebooks" / f"{step}.ipynb").unlink()
    return sorted(aside)


def _digest(path: Path) -> str:
    """Return a file's digest; "" where none is: it was deleted, or replaced by something else."""
    return file_digest(path) if path.is_file() else ""


def _below(folder: str | Path) -> list[Path]:
    """List files and folders; os.walk passes over what another process removes meanwhile."""
    walked = os.walk(folder)
    return [Path(top, name) for top, folders, names in walked for name in (*folders, *names)]


def _remove_unfinished(study: Path) -> None:
    for partial in _below(study):
        if partial.suffix != ".partial" or locks.alive(partial.stem.rpartition(".")[2]):
            continue  # else the number is of a process that has ended
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
    """Set files of the future (of a machine with a wrong clock) to now.

    Snakemake would fail each step whose output is older than such an input.
    """
    now, count = time.time(), 0
    for path in _below(study):
        with suppress(OSError):  # deleted meanwhile, or another user's
            if path.is_file() and path.stat().st_mtime > now:
                os.utime(path, (now, now))
                count += 1
    if count:
        print_note(
            f"{count} files bear times of the future: set to now (is this machine's clock right?)"
        )

"""Copy a study's tables into results/reference, where they are committed; no picture, no weights.

    python tools/publish.py results/tg3k-sample

Of an unfinished study the finished runs alone are copied. A finished one has a report.html that is
newer than its runs. What is there stays, but for runs made anew and for the tables of a finished
study. A run that was taken from committed tables (`reuse`) is not copied where it is already there.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from thyroid_lib.files.fingerprint import file_digest

ROOT = Path(__file__).parent.parent
WHOLE = "compare", "replication", "audit"  # tables that speak of all runs
TABLES = ".csv", ".md", ".json"


def publish(study: Path, reference: Path) -> str:
    """Copy `study` to the folder of its name in `reference`; return what was done.

    ValueError, before anything is written: it lies in `reference`, has no finished run, or one that
    is not as it was written.
    """
    to, runs = reference / study.name, sorted(study.glob("runs/*/run.json"))
    if to.resolve() == study.resolve():
        raise ValueError(f"{study} is the committed folder itself: name that of your results")
    if not runs:
        raise ValueError(f"{study} has no finished run: make study PARAMETERS=…")
    about = {run.parent: read_run(run.parent) for run in runs}
    new = [run for run, of in about.items() if "reused" not in of or not has(to, run, of)]
    report, newest = study / "report.html", max(run.stat().st_mtime for run in runs)
    finished = report.is_file() and report.stat().st_mtime >= newest
    parts = [study / name for name in WHOLE if finished and (study / name).exists()]
    files = {folder: list_tables(folder) for folder in (*new, *parts)}
    for folder, tables in files.items():
        target = to / folder.relative_to(study)
        shutil.rmtree(target, ignore_errors=True)
        for path in sorted(tables, key=lambda path: path.name == "run.json"):  # it comes last
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    rest = "the study's tables" if finished else "no more, as no report.html is newer than they"
    return f"{to}: runs copied {len(new)}, kept {len(runs) - len(new)}; {rest}"


def read_run(run: Path) -> dict:
    """Read a finished run's run.json; ValueError: damaged, or a table is not the one it lists."""
    again = "copy or score the run again"
    try:
        about = json.loads((run / "run.json").read_text("utf-8"))
        files = about["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / 'run.json'} is damaged ({error}): {again}") from None
    for name, digest in files:
        if not (run / name).is_file() or file_digest(run / name) != digest:
            raise ValueError(f"{run / name} is not the file that was written: {again}")
    return about


def has(to: Path, run: Path, about: dict) -> bool:
    """Say whether a run is there, whole and of the same training."""
    try:
        return read_run(to / "runs" / run.name)["key"] == about["key"]
    except (OSError, ValueError, KeyError):
        return False


def list_tables(folder: Path) -> list[Path]:
    """Return the tables in a folder and below; OSError: it cannot be read."""
    inside = sorted(folder.iterdir())
    found = [path for path in inside if path.is_file() and path.suffix in TABLES]
    return found + [path for each in inside if each.is_dir() for path in list_tables(each)]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path, help="a study's folder of results")
    try:
        print(publish(parser.parse_args().study.absolute(), ROOT / "results" / "reference"))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

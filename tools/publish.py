"""Copy a study's tables into results/reference, where they are committed; no picture, no weights.

    python tools/publish.py results/tg3k-sample

Of an unfinished study (no report.html) the finished runs alone are copied. What is there stays, but
for the same run made anew and for the tables of a finished study. A run that was taken from
committed tables (`reuse`) is not copied over itself.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHOLE = "compare", "replication", "audit"  # tables that speak of all runs
TABLES = "*.csv", "*.md", "*.json"


def publish(study: Path, reference: Path) -> str:
    """Copy `study` to the folder of its name in `reference`; return what was done.

    ValueError: it has no finished run; nothing is written.
    """
    runs = sorted(path.parent for path in study.glob("runs/*/run.json"))
    if not runs:
        raise ValueError(f"{study} has no finished run: make study PARAMETERS=…")
    to, finished = reference / study.name, (study / "report.html").is_file()
    new = [run for run in runs if not (reused(run) and (to / "runs" / run.name).exists())]
    for folder in [*new, *(study / name for name in WHOLE if finished)]:
        target = to / folder.relative_to(study)
        shutil.rmtree(target, ignore_errors=True)
        for path in sorted(path for kind in TABLES for path in folder.rglob(kind)):
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    rest = "the study's tables" if finished else "no more, as there is no report.html yet"
    return f"{to}: runs copied {len(new)}, kept {len(runs) - len(new)}; {rest}"


def reused(run: Path) -> bool:
    """Say whether a run's tables were taken from committed ones."""
    return "reused" in json.loads((run / "run.json").read_text("utf-8"))


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

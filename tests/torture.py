"""Faults done on purpose: whatever happens to a study, a plain restart ends in the same bytes.

    python tests/torture.py                        # 24 kills and every fault: make torture
    python tests/torture.py --only kills --kills 3 --seed 1
    python tests/torture.py --write                # and renew the figures of docs/sturdy.md

A small study is run once undisturbed; each fault is done to a study like it. The seed draws the
moments; where a process is then is the machine's choice. Full and read-only disks are small ones,
mounted as root or in a namespace of one's own (`unshare`); elsewhere these faults are skipped.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from faults import FAULTS, Skip
from tortured import MIB, Bench

PAGE = Path(__file__).parents[1] / "docs" / "sturdy.md"
MARKS = "<!-- figures: python tests/torture.py --write -->", "<!-- end of figures -->"
HEAD = "| fault | injected | kills | s | files | MiB | verdict |\n|---|---|--:|--:|--:|--:|---|"


def attempt(bench: Bench, name: str) -> dict:
    """Run one fault; an error of any kind is its verdict."""
    bench.compared, bench.killed, began = (0, 0), 0, time.monotonic()
    row = {"fault": name, "verdict": "survived"}
    try:
        row["injected"] = FAULTS[name](bench)
    except Skip as reason:
        row |= {"injected": str(reason), "verdict": "skipped"}
    except Exception:
        row |= {"injected": traceback.format_exc(), "verdict": "LOST"}
    files, size = bench.compared
    row |= {"kills": bench.killed, "s": time.monotonic() - began, "files": files, "size": size}
    while bench.copies:
        bench.copies.pop().remove()
    print(f"{name}: {row['verdict']}: {row['injected']}", flush=True)
    return row


def summary(bench: Bench, rows: list[dict], command: str) -> str:
    """Return the page's figures in words and as a table; every number comes from this run."""
    verdicts = [row["verdict"] for row in rows]
    kills, files, size = (sum(row[name] for row in rows) for name in ("kills", "files", "size"))
    disk = {name: f"{size / MIB:.1f}" for name, size in bench.disk.items()}
    lines = [
        f"| {row['fault']} | {row['injected'].splitlines()[-1][:240]} | {row['kills'] or ''} "
        f"| {row['s']:.0f} | {row['files'] or ''} | {row['size'] / MIB:.0f} | {row['verdict']} |"
        for row in rows
    ]
    return "\n".join([
        f"`{command}` on {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores,"
        f" {platform.system()}, Python {platform.python_version()}:",
        f"{verdicts.count('survived')} of {len(rows)} faults survived, "
        f"{verdicts.count('skipped')} skipped;"
        f" {kills} random kills; {files:,} files ({size:,} bytes) compared, none differs.",
        "", HEAD, *lines, "",
        f"Disk of the undisturbed study, MiB: peak {disk['peak']}, end {disk['end']};"
        f" store {disk['store']}, weights of all runs {disk['weights']}.",
    ])  # fmt: skip


def own_namespace() -> None:
    """Start again where this program may mount disks, if it may not and the system allows it."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    usable = os.geteuid() and shutil.which("unshare")
    if usable and subprocess.run([*unshare, "true"]).returncode == 0:
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", default=list(FAULTS))
    parser.add_argument("--write", action="store_true", help="renew the figures of docs/sturdy.md")
    args = parser.parse_args()
    own_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    # started in a shell's background, all that it starts would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), kills=args.kills, seed=args.seed)
        try:
            bench.run_undisturbed()
            print({step: round(seconds) for step, seconds in bench.usual.items()}, flush=True)
            rows = [attempt(bench, name) for name in args.only]
        finally:
            for study in (bench.undisturbed, *bench.copies):
                study.lose_power()
    text = summary(bench, rows, f"python tests/torture.py --seed {args.seed}")
    print(text)
    if args.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    return int(any(row["verdict"] == "LOST" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

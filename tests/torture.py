"""Faults done on purpose: whatever happens to a study, a plain restart ends in the same bytes.

    python tests/torture.py                        # 24 kills and every fault: make torture
    python tests/torture.py --only kills --kills 3 --seed 1
    python tests/torture.py --write                # and renew the figures of docs/sturdy.md

A small study is run once undisturbed. Then each fault is done to a study like it, the messages to
the user are checked, the cause is removed, the study is started again with the same plain command,
and every file is compared byte by byte with the undisturbed one's. The seed draws the moments; where
a process is at that moment is the machine's choice, so no two runs are alike.

Full and read-only disks are small ones, mounted as root or in a namespace of one's own (`unshare`);
where neither is allowed these faults are skipped, and the table says so.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from faults import FAULTS, Skip
from tortured import MIB, Bench, Outcome

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "sturdy.md"
MARKS = "<!-- figures: python tests/torture.py --write -->", "<!-- end of figures -->"


def attempt(bench: Bench, name: str) -> Outcome:
    """Run one fault; an error of any kind is its verdict."""
    outcome = bench.outcome = Outcome(name)
    began = time.monotonic()
    try:
        outcome.injected = FAULTS[name](bench)
    except Skip as reason:
        outcome.verdict, outcome.detail = "skipped", str(reason)
    except Exception as error:
        outcome.verdict = "LOST"
        known = isinstance(error, AssertionError)
        outcome.detail = str(error) if known else traceback.format_exc()
    outcome.seconds = round(time.monotonic() - began, 1)
    while bench.copies:
        bench.copies.pop().remove()
    return outcome


def table(outcomes: list[Outcome]) -> str:
    rows = [
        "| fault | injected | kills | s | files | MiB | verdict |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for each in outcomes:
        size = f"{each.bytes / MIB:.0f}" if each.bytes else ""
        injected = each.injected or each.detail.partition("\n")[0][:100]
        rows.append(
            f"| {each.name} | {injected} | {each.kills or ''} | {each.seconds:.0f} |"
            f" {each.files or ''} | {size} | {each.verdict} |"
        )
    return "\n".join(rows)


def summary(bench: Bench, outcomes: list[Outcome], command: str) -> str:
    """Return what `--write` puts into the page; every number comes from this run."""
    done = [each for each in outcomes if each.verdict == "survived"]
    disk = {name: f"{size / MIB:.1f}" for name, size in bench.disk.items()}
    skipped = sum(each.verdict == "skipped" for each in outcomes)
    return "\n".join(
        [
            f"`{command}` on {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores,"
            f" {platform.system()}, Python {platform.python_version()}:",
            f"{len(done)} of {len(outcomes)} faults survived, {skipped} skipped;"
            f" {sum(each.kills for each in done)} random kills;"
            f" {sum(each.files for each in done):,} files"
            f" ({sum(each.bytes for each in done):,} bytes) compared, none differs.",
            "",
            table(outcomes),
            "",
            f"Disk of the undisturbed study, MiB: peak {disk['peak']}, end {disk['end']};"
            f" store {disk['store']}, weights of all runs {disk['weights']}.",
        ]
    )


def write_page(text: str) -> None:
    """Replace the text between the marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    assert found + closed == "".join(MARKS), f"{PAGE.name} has lost its marks"
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def own_namespace() -> None:
    """Restart this program where it may mount disks, if it may not and the system allows it."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    may = shutil.which("unshare") and not subprocess.run([*unshare, "true"]).returncode
    if os.geteuid() and may:
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--write", action="store_true", help="renew the figures of docs/sturdy.md")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "torture.json")
    args = parser.parse_args()
    if args.list:
        print("\n".join(FAULTS))
        return 0
    own_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    # begun in a shell's background, it would let all that it starts ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes, names = [], args.only or list(FAULTS)
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), count=args.kills, seed=args.seed)
        try:
            bench.run_undisturbed()
            usual = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in bench.usual.items())
            print(f"undisturbed: {usual}", flush=True)
            for name in names:
                outcomes.append(attempt(bench, name))
                print(f"{name}: {outcomes[-1].verdict} {outcomes[-1].detail}", flush=True)
        finally:
            for study in (bench.undisturbed, *bench.copies):
                study.lose_power()
    print(f"\n{table(outcomes)}")
    args.json.parent.mkdir(exist_ok=True)
    about = {"seed": args.seed, "disk": bench.disk, "faults": [asdict(each) for each in outcomes]}
    args.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if args.write:
        write_page(summary(bench, outcomes, f"python tests/torture.py --seed {args.seed}"))
    return int(any(each.verdict == "LOST" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

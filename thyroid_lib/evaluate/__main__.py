"""Score a trained network on a folder of images and masks, and print a table by group.

    python -m thyroid_lib.evaluate --model MODEL --images DIR --masks DIR [--groups CSV]
    python -m thyroid_lib.evaluate --model MODEL --data PATH [--out DIR]

MODEL is a run's folder or model.pt, a release, or one of its .onnx files. PATH is any data set that
`python -m thyroid_lib.data` reads. OUT/scores.csv has a row per case, groups.csv one per group,
quarantine.csv what could not be scored.
"""

import argparse
import os
import sys
from pathlib import Path

from thyroid_lib.data.groups import groups_note
from thyroid_lib.data.locate import find_data
from thyroid_lib.evaluate.folder import evaluate_folder, show_groups
from thyroid_lib.files.text import count_of
from thyroid_lib.files.writing import write_table
from thyroid_lib.settings import FEW_GROUPS, MENDS


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 where model or data cannot be read; the reason is printed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="run, model.pt, release or .onnx")
    parser.add_argument("--data", default="", help="folder, archive or table with all of it")
    where = {"default": "", "help": "their folder; with --data a file pattern, too"}
    parser.add_argument("--images", **where)
    parser.add_argument("--masks", **where)
    parser.add_argument("--groups", default="", help="CSV, CSV:column, pattern on names, or none")
    parser.add_argument("--pairing", default="", help="pattern of what both names share")
    parser.add_argument("--mask-values", default="", help="the gland's levels or colours")
    parser.add_argument("--mend", nargs="*", default=[], choices=MENDS, help="default: nothing")
    tolerance = {"dest": "tolerance_px", "type": float, "default": 2.0}
    parser.add_argument("--tolerance", **tolerance, help="px, of the surface Dice")
    parser.add_argument("--device", default="cpu", help="of torch: cpu, cuda or mps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--out", default="", help="folder of the tables; default: none is written")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    try:
        if out and not next(p for p in (Path(out), *Path(out).parents) if p.exists()).is_dir():
            raise ValueError(f"out: got {out}, need a folder, and none below a file")
        found = evaluate_folder(**given | {"data": find_data(given["data"]) or ""})
        for name in ("scores", "groups", "quarantine") if out else ():
            write_table(Path(out, f"{name}.csv"), getattr(found, name))
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for what, sentence in found.seen.items():
        print(f"{what}: {sentence}")
    for reason, part in found.quarantine.groupby("reason"):
        print(f"set aside: {len(part)} {reason} ({part['file'].iloc[0]})")
    print(show_groups(found.groups).to_string(index=False))
    count = len(found.groups) - 1
    if note := groups_note(found.scores):
        print(f"note: {note}")
    elif count < FEW_GROUPS:
        few = "a single group gives no interval" if count == 1 else "the intervals are too narrow"
        print(f"note: {count_of(count, 'group')}: {few}")
    if out:
        print(f"written: {Path(out, 'scores.csv')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

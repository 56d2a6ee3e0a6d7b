"""Compare two folders of results byte by byte and show where they first differ.

    python -m thyroid_lib.study.verify results/reference/demo results/demo

Exit codes: 0 identical, 1 different, 2 nothing to compare. Importing this module loads no torch.
"""

import argparse
import io
import json
import re
import sys
import zipfile
from collections import namedtuple
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageChops

from thyroid_lib.files.packages import packages
from thyroid_lib.settings import MEASURED

LEFT_OUT = re.compile(
    r"(logs/|pace/|checksums/|\.snakemake/|runs/[^/]+/tensorboard/).*"
    r"|compare/cost\.csv|report\.html|.*\.lock"
)
LINES, WIDTH = 12, 160  # shown of a difference
Difference = namedtuple("Difference", ["file", "what"])  # its relative name, and a sentence


class Comparison(NamedTuple):
    """The number of equal files, the others (notebooks first), and what was not compared."""

    files: int
    differences: list[Difference]
    left_out: list[str]

    def report(self) -> str:
        """Return the text for the command line: the first difference, and the other files."""
        lines, count = [f"identical: {self.files} files"], len(self.differences)
        if count:
            first = "{}: {}".format(*self.differences[0])
            lines = [f"different: {count} of {self.files + count} files", "", first]
            lines += ["", "also different:"] * (count > 1)
            lines += [f"  {each.file}" for each in self.differences[1:]]
        if self.left_out:
            lines.append(f"not compared, because it holds times: {', '.join(self.left_out)}")
        return "\n".join(lines)


def compare(expected: str | Path, folder: str | Path) -> Comparison:
    """Compare a study's folder with another one; files and values that hold times are left out.

    `expected` may be a committed set: files of a study's notebooks/ and compare/ in one folder, all
    notebooks among them. ValueError: one of the two holds no file to compare.
    """
    wanted, found = (
        {p.relative_to(top).as_posix(): p for p in top.rglob("*") if p.is_file()}
        for top in map(Path, (expected, folder))
    )
    if not any("/" in name for name in wanted) and Path(folder, "notebooks").is_dir():
        found = {p.name: p for n, p in found.items() if n.startswith(("notebooks/", "compare/"))}
        found = {name: p for name, p in found.items() if name in wanted or p.suffix == ".ipynb"}
    names = sorted(wanted.keys() | found, key=lambda name: (not name.endswith(".ipynb"), name))
    parts = {LEFT_OUT.sub(lambda hit: hit[1] or hit[0], n) for n in names if LEFT_OUT.fullmatch(n)}
    parts |= {f"parts of {Path(name).name}" for name in names if Path(name).name in COMPARED}
    names = [name for name in names if not LEFT_OUT.fullmatch(name)]
    for top, files in ((expected, wanted), (folder, found)):
        if not files.keys() & set(names):
            raise ValueError(f"no file to compare in {top}: give two folders of results")
    pairs = [Difference(name, _difference(wanted.get(name), found.get(name))) for name in names]
    differences = [each for each in pairs if each.what]
    return Comparison(len(pairs) - len(differences), differences, sorted(parts))


def _difference(expected: Path | None, found: Path | None) -> str:
    """Return a sentence on how a file differs, "" if it does not; None stands for no file."""
    if not expected or not found:
        return "is missing" if expected else "was not expected"
    old, new = expected.read_bytes(), found.read_bytes()
    if old == new:
        return ""
    compared, explain = COMPARED.get(expected.name, bytes), EXPLAIN.get(expected.suffix, _bytes)
    try:
        before, after = compared(old), compared(new)
        same = "the same content, written in another way"
        return "" if before == after else explain(before, after) or same
    except Exception as error:  # a damaged file fails in one of many ways
        reason = str(error).partition("\n")[0]
        return f"one of the two cannot be read ({reason}); {_bytes(old, new)}"


def _without_times(content: bytes) -> bytes:
    about = {name: value for name, value in json.loads(content).items() if name not in MEASURED}
    return json.dumps(about, indent=1, sort_keys=True).encode()


def _weights(content: bytes) -> bytes:
    """Return the bytes of all tensors in a file that torch wrote, which is a zip."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if re.search(r"/data/\d+$", name)]
        if not names or archive.testzip():
            raise ValueError("it holds no weights, or its checksums do not match")
        return b"".join(archive.read(name) for name in names)


def _bytes(old: bytes, new: bytes) -> str:
    if len(old) != len(new):
        return f"expected {len(old)} bytes, got {len(new)}"
    apart = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    return f"{len(apart)} of {len(old)} bytes differ, the first is byte {apart[0]}"


def _text(old: bytes, new: bytes) -> str:
    lines = zip_longest(*(part.decode().splitlines() for part in (old, new)), fillvalue="nothing")
    for number, (was, now) in enumerate(lines, 1):
        if was != now:
            return f"line {number}: expected {was[:WIDTH]}, got {now[:WIDTH]}"
    return ""


def _table(old: bytes, new: bytes) -> str:
    """Name the row and the column of the first value that differs."""
    how = {"dtype": str, "keep_default_na": False}
    before, after = (pd.read_csv(io.BytesIO(part), **how) for part in (old, new))
    if list(before) != list(after) or len(before) != len(after):
        return _text(old, new)
    apart = (before != after).stack()
    if not apart.any():
        return ""
    row, column = apart.idxmax()
    was, now = (table.at[row, column] or "nothing" for table in (before, after))
    keys = ", ".join(value for value in before.loc[row] if value[:1].isalpha())[:WIDTH]
    return f"row {row + 1} ({keys}), column {column}: expected {was}, got {now}"


def _picture(old: bytes, new: bytes) -> str:
    """Return how many pixels differ, and by how much at most."""
    before, after = (Image.open(io.BytesIO(p), formats=["PNG"]).convert("RGBA") for p in (old, new))
    if before.size != after.size:
        expected, got = ("{}×{} px".format(*each.size) for each in (before, after))
        return f"another picture: expected {expected}, got {got}"
    apart = np.asarray(ImageChops.difference(before, after)).max(-1)  # (H,W)
    pixels = f"{np.count_nonzero(apart)} of {apart.size} pixels differ, by {apart.max()} of 255"
    return f"another picture: {pixels} at most" if apart.any() else ""


def _notebook(old: bytes, new: bytes) -> str:
    """Return the first difference that nbdime shows."""
    import nbformat

    with packages("nbdime"):
        import nbdime
        from nbdime.prettyprint import PrettyPrintConfig, pretty_print_notebook_diff

    before, after = (nbformat.reads(part.decode(), as_version=4) for part in (old, new))
    config = PrettyPrintConfig(out=io.StringIO(), use_color=False)
    pretty_print_notebook_diff("", "", before, nbdime.diff_notebooks(before, after), config)
    _, *parts = re.split(r"(?m)^## (?=\w+ .*/)", config.out.getvalue())
    if not parts:
        return ""
    lines = [line[:WIDTH] for line in parts[0].strip().splitlines()[:LINES]]
    return "\n".join([f"{len(parts)} differences, the first:", *lines])


COMPARED = {"run.json": _without_times, "model.pt": _weights}  # the rest of them holds times
EXPLAIN = {".ipynb": _notebook, ".csv": _table, ".png": _picture}
EXPLAIN |= dict.fromkeys((".md", ".json", ".html"), _text)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("expected", help="a committed set, as results/reference/demo, or a study")
    parser.add_argument("folder", help="the study to compare with it, as results/demo")
    try:
        result = compare(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result.report())
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())

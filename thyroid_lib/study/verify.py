"""Compare two folders of results byte by byte and show where they first differ.

    python -m thyroid_lib.study.verify results/reference/demo results/demo

Exit codes: 0 identical, 1 different, 2 nothing to compare. `make verify` runs the demo again and
compares it with the committed results. Importing this module loads no torch.
"""

import argparse
import filecmp
import io
import json
import re
import sys
import zipfile
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageChops

# Keys of run.json that differ between two runs of the same study: times, memory, epochs of a call.
TIMES = (
    "images_per_second", "peak_memory_mib", "scoring_seconds", "train_seconds", "trained_epochs",
)  # fmt: skip
LEFT_OUT = re.compile(
    r"(logs/|checksums/|\.snakemake/|runs/[^/]+/tensorboard/).*"
    r"|compare/cost\.csv|report\.html|.*\.lock"
)
PARTLY = {
    "run.json": f"in run.json {', '.join(TIMES)}",
    "model.pt": "in model.pt everything but the weights",
}
LINES, WIDTH = 12, 160  # shown of a difference


class Difference(NamedTuple):
    """A file that differs, is missing or was not expected."""

    file: str  # relative to both folders
    what: str  # one sentence; for a notebook, followed by the lines that nbdime shows


class Comparison(NamedTuple):
    """The result of `compare`; there are no `differences` between equal folders."""

    files: int  # number of equal files
    bytes: int  # their size
    differences: list[Difference]  # notebooks first, then by name
    left_out: list[str]  # files and parts of files that were not compared

    def report(self) -> str:
        """Return the text for the command line: the first difference, and the other files."""
        lines = [f"identical: {self.files} files, {self.bytes} bytes"]
        if self.differences:
            count = self.files + len(self.differences)
            first = "{}: {}".format(*self.differences[0])
            others = [f"  {each.file}" for each in self.differences[1:]]
            lines = [f"different: {len(self.differences)} of {count} files", "", first]
            lines += ["", "also different:", *others[:20]] if others else []
            lines += [f"  and {len(others) - 20} more"] if others[20:] else []
        if self.left_out:
            lines += [f"not compared, because it holds times: {', '.join(self.left_out)}"]
        return "\n".join(lines)


def compare(expected: str | Path, folder: str | Path) -> Comparison:
    """Compare two folders of results byte by byte; files and values that hold times are left out.

    Args:
        expected: a study's folder, or a committed set as `make reference` writes it: a flat
            selection of the files in a study's `notebooks/` and `compare/`. A table of the study
            that the set lacks is no difference, a notebook is.
        folder: the study's folder to compare with it.

    Raises:
        ValueError: one of the two is no folder, or `expected` holds no file to compare.
    """
    wanted, found = _files(Path(expected)), _files(Path(folder))
    if not any("/" in name for name in wanted) and Path(folder, "notebooks").is_dir():
        found = {p.name: p for n, p in found.items() if n.startswith(("notebooks/", "compare/"))}
        found = {name: p for name, p in found.items() if name in wanted or p.suffix == ".ipynb"}
    names = sorted(wanted.keys() | found, key=lambda name: (not name.endswith(".ipynb"), name))
    parts = {LEFT_OUT.sub(lambda hit: hit[1] or hit[0], n) for n in names if LEFT_OUT.fullmatch(n)}
    parts |= {PARTLY[Path(name).name] for name in names if Path(name).name in PARTLY}
    names = [name for name in names if not LEFT_OUT.fullmatch(name)]
    if not wanted.keys() & set(names):
        raise ValueError(f"no file to compare in {expected}: give a folder of results")
    pairs = [Difference(name, difference(wanted.get(name), found.get(name))) for name in names]
    same = [wanted[name].stat().st_size for name, what in pairs if not what]
    return Comparison(len(same), sum(same), [each for each in pairs if each.what], sorted(parts))


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}: give two folders of results")
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}


def difference(expected: Path | None, found: Path | None) -> str:
    """Return a sentence on how a file differs, "" if it does not; None stands for no file."""
    if expected is None:
        return "was not expected"
    if found is None:
        return "is missing"
    try:
        if filecmp.cmp(expected, found, shallow=False):
            return ""
        old, new = expected.read_bytes(), found.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror} ({error.filename})"
    try:
        compared, explain = COMPARED.get(expected.name, bytes), EXPLAIN.get(expected.suffix, _bytes)
        old, new = compared(old), compared(new)
        return "" if old == new else explain(old, new)
    except ImportError as error:
        return f"differs; pip install {error.name} shows where"
    except Exception as error:  # a damaged file fails in one of many ways
        reason = str(error).partition("\n")[0]
        return f"one of the two files is damaged ({reason}); {_bytes(old, new)}"


def _without_times(content: bytes) -> bytes:
    about = {name: value for name, value in json.loads(content).items() if name not in TIMES}
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
    return "the same lines with other line endings"


def _table(old: bytes, new: bytes) -> str:
    """Name the row and the column of the first value that differs."""
    how = {"dtype": str, "keep_default_na": False}
    before, after = (pd.read_csv(io.BytesIO(part), **how) for part in (old, new))
    if list(before) != list(after):
        return f"expected the columns {', '.join(before)}, got {', '.join(after)}"
    rows = min(len(before), len(after))
    apart = before[:rows].compare(after[:rows])
    if apart.empty and len(before) != len(after):
        return f"expected {len(before)} rows, got {len(after)}; the rows that both have are equal"
    if apart.empty:
        return "the same values, written in another way"
    row, values = apart.index[0], apart.iloc[0].dropna()
    (column, _), was, now = values.index[0], *values[:2]
    keys = ", ".join(value for value in before.iloc[row] if value[:1].isalpha())[:WIDTH]
    try:
        share = f" (relative difference {abs(float(now) / float(was) - 1):.2g})"
    except (ValueError, ZeroDivisionError):
        share = ""
    where = f"row {row + 1}{f' ({keys})' if keys else ''}, column {column}"
    return f"{where}: expected {was or 'nothing'}, got {now or 'nothing'}{share}"


def _picture(old: bytes, new: bytes) -> str:
    """Count the pixels that differ, and give the largest difference."""
    before, after = (Image.open(io.BytesIO(p), formats=["PNG"]).convert("RGBA") for p in (old, new))
    if before.size != after.size:
        sizes = ("{}×{} px".format(*each.size) for each in (before, after))
        return "another picture: expected {}, got {}".format(*sizes)
    apart = np.asarray(ImageChops.difference(before, after)).max(-1)  # (H,W)
    pixels = f"{np.count_nonzero(apart)} of {apart.size} pixels differ, by {apart.max()} of 255"
    return f"another picture: {pixels} at most" if apart.any() else "the same pixels, other bytes"


def _notebook(old: bytes, new: bytes) -> str:
    """Return the first difference that nbdime shows, with the heading above it."""
    import nbdime
    import nbformat
    from nbdime.prettyprint import PrettyPrintConfig, pretty_print_notebook_diff

    before, after = (nbformat.reads(part.decode(), as_version=4) for part in (old, new))
    config = PrettyPrintConfig(out=io.StringIO(), use_color=False)
    pretty_print_notebook_diff("", "", before, nbdime.diff_notebooks(before, after), config)
    _, *parts = re.split(r"(?m)^## (?=\w+ .*/)", config.out.getvalue())
    if not parts:
        return "the same cells and outputs, written in another way"
    cell = re.search(r"/cells/(\d+)", parts[0].partition("\n")[0])
    above = before.cells[: int(cell[1]) + 1] if cell else []
    texts = [each.source for each in above if each.cell_type == "markdown"]
    headings = [hit for text in texts for hit in re.findall(r"(?m)^#+ (.*)", text)[:1]]
    below = f" below “{headings[-1]}”" if headings else ""
    lines = [line[:WIDTH] for line in parts[0].strip().splitlines()[:LINES]]
    return "\n".join([f"{len(parts)} differences, the first{below}:", *lines])


COMPARED = {"run.json": _without_times, "model.pt": _weights}  # the rest of them holds times
EXPLAIN = dict.fromkeys((".md", ".json", ".html"), _text) | {
    ".ipynb": _notebook, ".csv": _table, ".png": _picture,
}  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("expected", help="a committed set, as results/reference/demo, or a study")
    parser.add_argument("folder", help="the study to compare with it, as results/demo")
    args = parser.parse_args()
    try:
        result = compare(args.expected, args.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result.report())
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())

"""Are two sets of results the same, file by file? If not, where do they first part?

    python -m thyroid_lib.study.verify results/reference/demo results/demo
    python -m thyroid_lib.study.verify results/first results/second

Exit codes: 0 identical, 1 different, 2 nothing to compare. `make verify` runs the demo anew and
asks this of it. Importing this module loads no torch.
"""

import argparse
import base64
import csv
import io
import json
import math
import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.files.fingerprint import file_digest

IDENTICAL, DIFFERENT, NOTHING = 0, 1, 2
# Times, memory, and how much a call had left to do: two runs of the same study differ in them.
TIMES = (
    "images_per_second", "peak_memory_mib", "scoring_seconds", "train_seconds", "trained_epochs",
)  # fmt: skip
LEFT_OUT = re.compile(
    r"(logs/|checksums/|\.snakemake/|runs/[^/]+/tensorboard/|compare/cost\.csv$|report\.html$|\.lock$)"
)
PARTS = ("notebooks/", "compare/")  # of a study; a committed set is taken from them
LINES = 3  # shown of either side
WIDEST = 160  # characters shown of a line


@dataclass(frozen=True)
class Difference:
    """One file that is not the same, missing or surplus."""

    file: str  # its path below either folder
    what: str  # a sentence; below it perhaps lines, "- " as expected and "+ " as found


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; equal sets have no `differences`."""

    files: int  # the same in both
    bytes: int  # of those
    differences: list[Difference]  # notebooks first, each kind by name
    left_out: list[str]  # what was there and not compared, or in part

    def report(self) -> str:
        """Say it for people: identical, or the first difference and which files differ too."""
        lines = []
        if self.differences:
            first, *others = self.differences
            count = self.files + len(self.differences)
            lines += [f"different: {len(self.differences)} of {count} files", ""]
            lines += [f"{first.file}: {first.what}"]
            if others:
                names = [each.file for each in others[:20]]
                more = len(others) - len(names)
                lines += ["", "also different:", *(f"  {name}" for name in names)]
                lines += [f"  and {more} more"] * (more > 0)
        else:
            lines += [f"identical: {self.files} files, {self.bytes} bytes"]
        if self.left_out:
            lines += [f"left out, since they hold times: {', '.join(self.left_out)}"]
        return "\n".join(lines)


def compare(expected: str | Path, folder: str | Path) -> Comparison:
    """Compare two sets of results byte by byte.

    A study is compared with a study, by the paths below either folder. `expected` may also be a
    committed set, as `make reference` makes it: flat, with notebooks and tables that lie in the
    study's `notebooks/` and `compare/`. It is a selection: a table that it has not is no surplus
    of the study, a notebook is.

    What holds times is left out: logs/, checksums/ and .snakemake/ (of such files, too),
    compare/cost.csv, report.html, event files of TensorBoard, in run.json the keys of `TIMES`. Of a
    model.pt the weights are compared, since its other part holds times, too.

    Raises:
        ValueError: one of the two is no folder, or `expected` has no file to compare.
    """
    expected, folder = Path(expected), Path(folder)
    for path in (expected, folder):
        if not path.is_dir():
            raise ValueError(f"no folder at {path}: give two folders of results")
    wanted, found = _files(expected), _files(folder)
    if not any("/" in name for name in wanted) and (folder / "notebooks").is_dir():
        found = {Path(n).name: p for n, p in found.items() if n.startswith(PARTS)}
        found = {n: p for n, p in found.items() if n in wanted or n.endswith(".ipynb")}
    names = sorted(wanted.keys() | found, key=lambda name: (not name.endswith(".ipynb"), name))
    left_out = [name for name in names if LEFT_OUT.match(name)]
    names = [name for name in names if name not in left_out]
    if not wanted.keys() & set(names):
        raise ValueError(f"no file to compare in {expected}: give a folder of results")
    same, size, differences = 0, 0, []
    for name in names:
        if what := _difference(wanted.get(name), found.get(name)):
            differences.append(Difference(name, what))
        else:
            same, size = same + 1, size + wanted[name].stat().st_size
    folders = r"^(logs|checksums|\.snakemake|runs/[^/]+/tensorboard)/.*"
    parts = sorted({re.sub(folders, r"\1/", name) for name in left_out})
    for ending, part in _IN_PART.items():
        parts += [part] if any(Path(name).name == ending for name in names) else []
    return Comparison(same, size, differences, parts)


def _files(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in files}


def _difference(expected: Path | None, found: Path | None) -> str:
    """Say how one file differs; "" if it does not."""
    if expected is None:
        return "is surplus: it was not expected"
    if found is None:
        return "is missing"
    try:
        if file_digest(expected) == file_digest(found):
            return ""
        pair = expected.read_bytes(), found.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror} ({error.filename})"
    keep = KEEP.get(expected.name, bytes)
    try:
        pair = keep(pair[0]), keep(pair[1])
    except Exception:  # damaged, in one of a dozen ways: compared as it is
        keep = bytes
    if pair[0] == pair[1]:
        return ""
    explain = _differing_bytes if keep is _weights else EXPLAIN.get(expected.suffix)
    return (explain or _differing_bytes)(*pair)


def _without_times(content: bytes) -> bytes:
    about = {name: value for name, value in json.loads(content).items() if name not in TIMES}
    return json.dumps(about, indent=1, sort_keys=True).encode()


def _weights(content: bytes) -> bytes:
    """Return all tensors of a file of torch's, one after the other: it is a zip of them."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    names = [name for name in archive.namelist() if re.search(r"/data/\d+$", name)]
    if not names or archive.testzip():  # damage in its other part must not pass for a time
        raise ValueError("no weights")
    return b"".join(archive.read(name) for name in names)


KEEP = {"run.json": _without_times, "model.pt": _weights}
_IN_PART = {
    "run.json": f"of run.json {', '.join(TIMES)}",
    "model.pt": "of model.pt all but the weights",
}  # as `report` says it


def _differing_bytes(expected: bytes, found: bytes) -> str:
    if len(expected) != len(found):
        return f"expected {len(expected)} bytes, got {len(found)}"
    differ = np.flatnonzero(np.frombuffer(expected, np.uint8) != np.frombuffer(found, np.uint8))
    return f"{len(differ)} of {len(expected)} bytes differ, the first is byte {differ[0]}"


def _differing_lines(expected: bytes, found: bytes) -> str:
    try:
        return _first_lines(expected.decode(), found.decode())
    except UnicodeDecodeError:
        return f"is no text: {_differing_bytes(expected, found)}"


def _first_lines(expected: str, found: str) -> str:
    """Say from which line on two texts differ; equal lines at their ends are left out."""
    old, new = expected.splitlines(), found.splitlines()
    start = next((i for i, (a, b) in enumerate(zip_longest(old, new)) if a != b), None)
    if start is None:
        return "the same lines with other ends of lines"
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    lines = [f"line {start + 1}"]
    for sign, part in (("-", old[start : len(old) - end]), ("+", new[start : len(new) - end])):
        lines += [f"{sign} {_clip(line)}" for line in part[:LINES]]
        lines += [f"{sign} … {len(part) - LINES} lines more"] * (len(part) > LINES)
    return "\n".join(lines)


def _clip(line: str) -> str:
    return line if len(line) <= WIDEST else f"{line[:WIDEST]} …"


def _differing_table(expected: bytes, found: bytes) -> str:
    """Name row and column of the first value that differs, and by how much."""
    try:
        old, new = (list(csv.reader(io.StringIO(part.decode()))) for part in (expected, found))
    except (UnicodeDecodeError, csv.Error):
        return f"is no table: {_differing_bytes(expected, found)}"
    columns = [",".join(rows[0]) if rows else "" for rows in (old, new)]
    if columns[0] != columns[1]:
        return f"other columns: {_first_lines(*columns)}"
    for row, (a, b) in enumerate(zip(old[1:], new[1:], strict=False), 1):
        for column, values in enumerate(zip_longest(a, b, fillvalue="")):
            if values[0] != values[1]:
                which = ", ".join(value for value in a if _number(value) is None and value)
                name = old[0][column] if column < len(old[0]) else f"number {column + 1}"
                return (
                    f"row {row}{f' ({_clip(which)})' if which else ''}, column {name}: expected "
                    f"{values[0] or 'nothing'}, got {values[1] or 'nothing'}{_apart(*values)}"
                )
    if len(old) != len(new):
        return f"expected {len(old) - 1} rows, got {len(new) - 1}; those that both have are equal"
    return "the same values, written in another way (quotes, ends of lines)"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _apart(expected: str, found: str) -> str:
    """Return the relative difference of two numbers in brackets, "" where there is none."""
    a, b = _number(expected), _number(found)
    if a is None or b is None or not math.isfinite(a) or not math.isfinite(b):
        return ""
    return f" (relative difference {abs(b - a) / abs(a):.2g})" if a else ""


def _differing_figure(expected: bytes, found: bytes) -> str:
    """Count the pixels that differ, and say by how much at most."""
    pictures = []
    for side, content in (("the expected", expected), ("this", found)):
        try:
            picture = Image.open(io.BytesIO(content), formats=["PNG"])
            pictures.append(np.asarray(picture.convert("RGBA"), np.int16))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's, of damaged files
            return f"another picture: {side} one cannot be read ({error})"
    old, new = pictures  # (H,W,4)
    if old.shape != new.shape:
        sizes = [f"{shape[1]}×{shape[0]}" for shape in (old.shape, new.shape)]
        return f"another picture: expected {sizes[0]} px, got {sizes[1]} px"
    apart = np.abs(old - new).max(-1)  # (H,W)
    if not apart.any():
        return "the same pixels in another file"
    return (
        f"another picture: {np.count_nonzero(apart)} of {apart.size} pixels differ, "
        f"by {apart.max()} of 255 at most"
    )


def _differing_notebook(expected: bytes, found: bytes) -> str:
    """Name the first cell that differs, and what of it."""
    sides = []
    for side, content in (("the expected notebook", expected), ("this notebook", found)):
        try:
            sides.append([_parts(cell) for cell in json.loads(content)["cells"]])
        except json.JSONDecodeError as error:
            return f"{side} cannot be read: it is damaged or breaks off at line {error.lineno}"
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{side} cannot be read: it is no notebook (format 4)"
    old, new = sides
    heading = ""
    for number, (a, b) in enumerate(zip(old, new, strict=False), 1):
        heading = a.pop("heading") or heading
        b.pop("heading")
        for name in [*b, *a]:
            where = f"cell {number} (“{heading}”), {name}"
            if name not in a:
                return f"{where}: was not expected\n+ {_clip(b[name].partition(chr(10))[0])}"
            if name not in b:
                return f"{where}: is missing"
            if a[name] != b[name]:
                return f"{where}: {_differing_output(name, a[name], b[name])}"
    if len(old) != len(new):
        return f"expected {len(old)} cells, got {len(new)}; those that both have are equal"
    rest = _differing_lines(expected, found)
    return f"cells and outputs are equal, other parts of the file are not: {rest}"


def _differing_output(name: str, expected: str, found: str) -> str:
    if not name.endswith("image/png"):
        return _first_lines(expected, found)
    try:
        return _differing_figure(base64.b64decode(expected), base64.b64decode(found))
    except ValueError:
        return "is no picture any more"


def _parts(cell: dict) -> dict[str, str]:
    """Name all that a reader sees of a cell: its text and each form of each output; its heading."""
    text = "".join(cell["source"])
    headings = re.findall(r"(?m)^#+ (.*)", text) if cell["cell_type"] == "markdown" else []
    parts = {"heading": headings[0] if headings else "", "its text": text}
    for number, output in enumerate(cell.get("outputs", []), 1):
        forms = output.get("data") or {output.get("name", "error"): output.get("text", "")}
        if output["output_type"] == "error":
            forms = {"error": f"{output['ename']}: {output['evalue']}"}
        for form in sorted(forms, key=lambda form: form != "text/plain"):  # the legible one first
            value = forms[form]
            text = json.dumps(value) if isinstance(value, dict) else "".join(value)
            parts[f"output {number}, {form}"] = text
    return parts


EXPLAIN: dict[str, Callable[[bytes, bytes], str]] = {
    ".ipynb": _differing_notebook,
    ".csv": _differing_table,
    ".md": _differing_lines,
    ".json": _differing_lines,
    ".html": _differing_lines,
    ".png": _differing_figure,
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="thyroid_lib.study.verify", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("expected", help="a committed set, as results/reference/demo, or a study")
    parser.add_argument("folder", help="the study to compare with it, as results/demo")
    args = parser.parse_args()
    try:
        found = compare(args.expected, args.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOTHING
    print(found.report())
    return DIFFERENT if found.differences else IDENTICAL


if __name__ == "__main__":
    sys.exit(main())

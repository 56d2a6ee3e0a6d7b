"""The split that came with a data set: its folders, a table, or lists in a JSON file.

split: ""              folders such as train/, val/ and test/, if there are any
split: split.csv       a column split, side, set, subset or fold with such words
split: split.json      {"train": ["a01", …], "test": […]}, {"a01": "train", …}, or such records
split: ImageSets       a folder of lists, train.txt, val.txt and test.txt, a name a line
split: none            not used
"""

import json
from pathlib import Path

import pandas as pd

from thyroid_lib.data.layouts import SIDE_OF
from thyroid_lib.data.name_tables import Names, column_key, read_table

COLUMNS = ("split", "official", "side", "set", "subset", "fold", "phase", "partition")


def find_sides(cases: pd.DataFrame, root: Path, wanted: str = "") -> tuple[list[str], str]:
    """Return each case's side, "train", "val", "test" or "", and a sentence that says whence.

    Column `official` of `cases` holds the sides that the layout gives; `wanted` is the key `split`.
    ValueError: no such file, or one of another form.
    """
    sides, source, more = list(cases["official"]), cases.attrs.get("official", "folders"), ""
    if wanted == "none":
        return [""] * len(cases), "not used (split: none)"
    if wanted:
        source, names = wanted, Names(cases, root)
        try:
            sides, more = names.spread(_read_lines(root / wanted, names), wanted)
            if wrong := sorted({*sides} - {"", *SIDE_OF}):
                raise ValueError(f"{wrong[0]!r} is neither train, val nor test")
            if not {"train", "test"} <= {*sides}:
                first = f"images are called as {cases['case_id'].iloc[0]!r}"
                raise ValueError(f"it puts no image in train or none in test, {first}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            need = 'a CSV of case_id and split, a JSON file {"train": [names], "test": [names]}, '
            need += "or a folder with train.txt and test.txt"
            raise ValueError(f"split: {wanted} cannot be read ({error}): need {need}") from error
    counts = {side: sides.count(side) for side in ("train", "val", "test") if side in sides}
    shown = ", ".join(f"{count} {side}" for side, count in counts.items())
    said = f"{shown}, by {source} (protocol official){more}"
    if not shown:
        lists = sorted(str(path.parent.relative_to(root)) for path in root.rglob("train.txt"))
        unused = f", but train.txt lies in {lists[0]}: set split to {lists[0]}" if lists else ""
        said = f"none came with the data{unused}"
    return sides, said


def _read_lines(path: Path, names: Names) -> list[tuple[str, str]]:
    """Read lines of a name and its side."""
    if path.is_dir():
        lists = [file for file in sorted(path.glob("*.txt")) if file.stem.casefold() in SIDE_OF]
        if len(lists) > 2:  # VOC's trainval is both train and val
            lists = [file for file in lists if file.stem.casefold() != "trainval"]
        lines = {file: file.read_text("utf-8-sig").splitlines() for file in lists}
        named = [(line, file) for file in lists for line in lines[file] if line.strip()]
        return [(line.split()[0], SIDE_OF[file.stem.casefold()]) for line, file in named]
    table = _read_json(path) if path.suffix.lower() == ".json" else read_table(path)
    if not (found := [name for name in COLUMNS if name in table]):
        raise ValueError(f"it has no column split, but {', '.join(table)}")
    words = [SIDE_OF.get(word.casefold(), word) for word in table.pop(found[0])]
    known = names.column(table, path.name) or table.columns[0]
    return list(zip(table[known], words, strict=True))


def _read_json(path: Path) -> pd.DataFrame:
    """Read a JSON file as a table: names by side, sides by name, or records."""
    held, rows = json.loads(path.read_text("utf-8-sig")), []
    if isinstance(held, list):
        return pd.DataFrame(held).rename(columns=lambda name: column_key(str(name))).astype(str)
    for key, value in held.items():
        if isinstance(value, str):
            rows.append((key, value))
        elif isinstance(value, list):  # others describe the data
            rows += [(str(v["image"] if isinstance(v, dict) else v), key) for v in value]
    return pd.DataFrame(rows, columns=["name", "split"], dtype=object)

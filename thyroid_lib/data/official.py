"""The split that came with a data set: its folders, a table, or lists in a JSON file.

split: ""              folders such as train/, val/ and test/, if there are any
split: split.csv       a column split, side, set, subset or fold with such words
split: split.json      {"train": ["a01", …], "val": […], "test": […]}
split: none            not used
"""

import json
from pathlib import Path

import pandas as pd

from thyroid_lib.data.layouts import SIDE_OF
from thyroid_lib.data.name_tables import Names, read_table

COLUMNS = ("split", "official", "side", "set", "subset", "fold", "phase", "partition")


def find_sides(cases: pd.DataFrame, root: Path, wanted: str = "") -> tuple[list[str], str]:
    """Return each case's side, "train", "val", "test" or "", and a sentence that says whence.

    Column `official` of `cases` holds the sides by folder; `wanted` is the study's key `split`.
    ValueError: no such file, or one of another form.
    """
    sides, source = list(cases["official"]), "folders"
    if wanted == "none":
        return [""] * len(cases), "not used (split: none)"
    if wanted:
        sides, source, names = [""] * len(cases), wanted, Names(cases, root)
        try:
            for name, word in _read_lines(root / wanted):
                side = SIDE_OF[word.casefold()]
                for row in names.find(name):
                    if sides[row] not in ("", side):
                        raise ValueError(f"{name!r} is on two sides")
                    sides[row] = side
            if not {"train", "test"} <= {*sides}:
                first = f"images are called as {cases['case_id'].iloc[0]!r}"
                raise ValueError(f"it puts no image in train or none in test, {first}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            need = 'a CSV of case_id and split, or a JSON file {"train": [names], "test": [names]}'
            raise ValueError(f"split: {wanted} cannot be read ({error}): need {need}") from error
    counts = {side: sides.count(side) for side in ("train", "val", "test") if side in sides}
    shown = ", ".join(f"{count} {side}" for side, count in counts.items())
    said = f"{shown}, by {source} (protocol official)" if shown else "none came with the data"
    return sides, said


def _read_lines(path: Path) -> list[tuple[str, str]]:
    """Read lines of a name and the word for its side."""
    if path.suffix.lower() == ".json":
        parts = json.loads(path.read_text("utf-8-sig"))
        return [(str(name), side) for side, names in parts.items() for name in names]
    table = read_table(path)
    [column, *_] = [name for name in COLUMNS if name in table] or ["split"]
    [first, *_] = table.columns.drop(column)
    return list(zip(table[first], table[column], strict=True))

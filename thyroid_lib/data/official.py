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

    Args:
        cases: a case table whose column `official` holds the sides by folder.
        wanted: the study's key `split`, see above.

    Raises:
        ValueError: no such file, or one of another form.
    """
    sides, source = list(cases["official"]), "folders"
    if wanted == "none":
        return [""] * len(cases), "not used (split: none)"
    if wanted:
        source, names = wanted, Names(cases, root)
        try:
            lines = _read_sides(root / wanted)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"split: {wanted} cannot be read ({error}): need a CSV with columns case_id and "
                'split, or a JSON file {"train": [names], "test": [names]}'
            ) from error
        sides = [""] * len(cases)
        for name, side in lines:
            for row in names.find(name):
                if sides[row] not in ("", side):
                    raise ValueError(f"split: {wanted} has {name!r} on two sides, keep one")
                sides[row] = side
        if "test" not in sides or "train" not in sides:
            first = f"{lines[0][0]!r}" if lines else "nothing"
            raise ValueError(
                f"split: {wanted} puts no image in train or none in test; it names {first}, the "
                f"images are called as {cases['case_id'].iloc[0]!r}"
            )
    counts = {side: sides.count(side) for side in ("train", "val", "test") if side in sides}
    shown = ", ".join(f"{count} {side}" for side, count in counts.items())
    return (
        sides,
        f"{shown}, by {source} (protocol official)" if shown else "none came with the data",
    )


def _read_sides(path: Path) -> list[tuple[str, str]]:
    """Read lines of a name and its side; words for sides as in folders' names."""
    if path.suffix.lower() == ".json":
        parts = json.loads(path.read_text("utf-8-sig"))
        lines = [(str(name), side) for side, names in parts.items() for name in names]
    else:
        table = read_table(path)
        column = next(name for name in (*COLUMNS, "") if name in table.columns or not name)
        if not column:
            raise ValueError(f"no column {', '.join(COLUMNS)}")
        rest = [name for name in table.columns if name != column]
        lines = [(row[rest[0]], row[column]) for row in table.to_dict("records")]
    wrong = [side for _, side in lines if side.casefold() not in SIDE_OF]
    if wrong:
        raise ValueError(f"got {wrong[0]!r}, need train, val or test")
    return [(name, SIDE_OF[side.casefold()]) for name, side in lines]

"""A case table of the user's own: a CSV file with the paths of images and masks.

    cases.csv: image_path,mask_path,group,case_id,dataset,split

Paths begin at the table's folder. The last four columns may be left out. Lines of one image are one
case, whose masks are joined.
"""

import os
from contextlib import suppress
from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import make_table
from thyroid_lib.data.layouts import SIDE_OF
from thyroid_lib.data.name_tables import TABLES, read_table
from thyroid_lib.data.official import COLUMNS
from thyroid_lib.data.readers import PICTURES

NEEDED = ["image_path", "mask_path"]
OWN = ["case_id", "dataset", "official"]


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table from a CSV file, or from the one in a folder; None where none is.

    Groups are left to `groups.assign_groups`, which reads the same table. ValueError: several such
    tables, columns missing from the given one, or lines that are wrong.
    """
    path, tables = Path(path), {}
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        if file.suffix.lower() in TABLES and file.is_file():
            with suppress(*[ValueError] * (file != path)):  # a table of something else
                table = read_table(file)
                if set(NEEDED) <= set(table.columns):
                    tables[file.name] = table
                elif file == path:
                    held = f"{file.name} has the columns {', '.join(table.columns[:8])}"
                    raise ValueError(f"{held}: need {', '.join(NEEDED)}")
    if len(tables) > 1:
        raise ValueError(f"{' and '.join(sorted(tables))} name images and masks: give one's path")
    for name, table in tables.items():
        return _read(name, table, path if path.is_dir() else path.parent)
    return None


def _read(name: str, table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    words = {c: {*table[c].str.casefold()} - {""} for c in COLUMNS if c in table}
    sided = [c for c, of in words.items() if c in COLUMNS[:2] or (of and of <= SIDE_OF.keys())]
    [column, *_] = [*sided, "official"]
    lines = table.assign(official=table.get(column, ""))
    lines = lines.reindex(columns=[*NEEDED, *OWN], fill_value="")
    for needed in NEEDED:
        paths = [text.replace("\\", "/") for text in lines[needed]]  # as Windows writes them
        lines[needed] = [str(folder / text) if text else "" for text in paths]
    lines["dataset"] = lines["dataset"].replace("", "csv")
    if wrong := sorted({*lines["official"].str.casefold()} - {"", *SIDE_OF}):
        raise ValueError(f"{name}: {column} is {wrong[0]!r}, need train, val, test or nothing")
    about = lines[["image_path", *OWN]].drop_duplicates().set_index("image_path")
    if not about.index.is_unique:
        twice = about.index[about.index.duplicated()][0]
        raise ValueError(f"{name}: lines of {Path(twice).name!r} differ in more than a mask")
    if not any(Path(image).is_file() for image in about.index):
        first = next(iter(about.index), "")
        raise ValueError(f"{name}: no file at {first}, paths begin at its folder")
    masks_of = lines.groupby("image_path")["mask_path"].agg(lambda of: "\n".join(filter(None, of)))
    unique, rows = len({Path(image).stem for image in about.index}) == len(about), []
    for image, case_id, dataset, side in about.itertuples():
        below = Path(image).relative_to(folder) if image.startswith(f"{folder}/") else Path(image)
        full = "-".join(below.with_suffix("").parts).lstrip("/-")
        case_id = case_id or (below.stem if unique else full)
        side = SIDE_OF.get(side.casefold(), "")
        rows.append((case_id, image, masks_of[image], "", dataset, side))
    made = make_table(rows, "official")
    listed = {Path(os.path.abspath(f)) for f in {*lines[NEEDED].to_numpy().ravel()} - {""}}
    left = {f for folder in {f.parent for f in listed} for f in folder.glob("*.*")} - listed
    left = sorted(file.name for file in left if file.suffix.lower() in PICTURES)
    said = f"{name}: {len(made)} images in {len(table)} lines"
    said += f"; {len(left)} images beside them are in no line: {left[0]!r}" if left else ""
    made.attrs = {"layout": said, "official": name}
    return made

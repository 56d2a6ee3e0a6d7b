"""A case table of the user's own: a CSV file with the paths of images and masks.

    cases.csv: image_path,mask_path,group,case_id,dataset,official

Paths begin at the table's folder. The last four columns may be left out. Lines of one image are one
case, whose masks are joined.
"""

from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import make_table
from thyroid_lib.data.layouts import SIDE_OF
from thyroid_lib.data.name_tables import TABLES, read_table

NEEDED = "image_path", "mask_path"


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table from a CSV file, or from the one in a folder; None where none is.

    Groups are left to `groups.assign_groups`, which reads the same table.

    Raises:
        ValueError: several such tables, columns missing from the given one, no file where the
            paths lead, lines of one image that differ, or a side that is none.
    """
    found = _find_tables(Path(path))
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{' and '.join(sorted(found))} name images and masks: give one's path")
    [(name, table)] = found.items()
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    about: dict[str, tuple[str, str, str]] = {}
    masks_of: dict[str, list[str]] = {}
    for line in table.to_dict("records"):
        image, mask = (_locate(folder, line[column]) for column in NEEDED)
        own = line.get("case_id", ""), line.get("dataset") or "csv", line.get("official", "")
        if own[2] and own[2].casefold() not in SIDE_OF:
            raise ValueError(f"{name}: official is {own[2]!r}, need train, val, test or nothing")
        if about.setdefault(image, own) != own:
            raise ValueError(f"{name}: lines of {line['image_path']!r} differ in more than a mask")
        masks_of.setdefault(image, []).append(mask)
    if not any(Path(image).is_file() for image in about):
        raise ValueError(f"{name}: no file at {next(iter(about), '')}, paths begin at its folder")
    stems = {Path(image).stem for image in about}
    rows = []
    for image, (case_id, dataset, side) in about.items():
        below = Path(image).relative_to(folder) if image.startswith(f"{folder}/") else Path(image)
        full = "-".join(below.with_suffix("").parts).lstrip("/-")
        case_id = case_id or (below.stem if len(stems) == len(about) else full)
        masks = "\n".join(filter(None, masks_of[image]))
        rows.append((case_id, image, masks, "", dataset, SIDE_OF.get(side.casefold(), "")))
    made = make_table(rows, "official")
    made.attrs["layout"] = f"{name}: {len(made)} images in {len(table)} lines"
    return made


def _find_tables(path: Path) -> dict[str, pd.DataFrame]:
    """Read the given table, or those tables of a folder that have the columns needed."""
    found = {}
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        if file.suffix.lower() in TABLES and file.is_file():
            try:
                table = read_table(file)
            except ValueError:
                if file == path:
                    raise
                continue  # a table of something else
            if set(NEEDED) <= set(table.columns):
                found[file.name] = table
            elif file == path:
                held = ", ".join(table.columns[:8])
                raise ValueError(f"{file.name} has the columns {held}: need {', '.join(NEEDED)}")
    return found


def _locate(folder: Path, name: str) -> str:
    """Return the path of a file that a line names; Windows writes paths with backslashes."""
    path = folder / name
    return str(path if path.exists() else folder / name.replace("\\", "/")) if name else ""

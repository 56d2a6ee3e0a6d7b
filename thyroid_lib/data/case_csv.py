"""A case table of the user's own: a CSV file with the paths of images and masks.

    cases.csv: image_path,mask_path,group,dataset,official

Paths begin at the table's folder. `case_id`, `group` (or patient …), `dataset` and `official` (or
split) may be left out. Lines of one image are one case, whose masks are joined.
"""

from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import COLUMNS
from thyroid_lib.data.groups import GROUPS, assign_groups
from thyroid_lib.data.layouts import SIDE_OF
from thyroid_lib.data.name_tables import TABLES, read_table

IMAGES = ("image_path", "image", "image_file")
MASKS = ("mask_path", "mask", "mask_file")
SIDES = ("official", "split", "side")


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table from a CSV file, or from the one in a folder; None where none is.

    Raises:
        ValueError: several such tables, columns missing from the given one, no file where the
            paths lead, lines of one image that differ, or a side that is none.
    """
    found = _find_table(Path(path))
    if found is None:
        return None
    file, table = found
    image, mask = _column(table, IMAGES), _column(table, MASKS)
    groups, side = _column(table, GROUPS), _column(table, SIDES)
    wrong = {value for value in table.get(side, ()) if value and value.casefold() not in SIDE_OF}
    if wrong:
        raise ValueError(
            f"{file.name}: {side} has {min(wrong)!r}, need train, val, test or nothing"
        )
    masks_of: dict[str, list[str]] = {}
    about: dict[str, tuple[str, ...]] = {}
    for line in table.to_dict("records"):
        own = line.get("case_id", ""), line.get("dataset") or "csv", line.get(side, "")
        own += (line.get(groups, ""),)
        paths = [_locate(file.parent, line[column]) for column in (image, mask)]
        if about.setdefault(paths[0], own) != own:
            raise ValueError(
                f"{file.name}: the lines of {line[image]!r} differ in more than a mask"
            )
        masks_of.setdefault(paths[0], []).append(paths[1])
    if not any(Path(name).is_file() for name in masks_of):
        raise ValueError(
            f"{file.name}: no file at {next(iter(masks_of))}, needed are paths "
            "from the table's folder"
        )
    names = _names(file.parent, list(masks_of))
    rows = [
        (
            own[0] or names[path],
            path,
            "\n".join(filter(None, masks)),
            "",
            own[1],
            SIDE_OF.get(own[2].casefold(), ""),
        )
        for (path, masks), own in zip(masks_of.items(), about.values(), strict=True)
    ]
    made = pd.DataFrame(rows, columns=[*COLUMNS, "official"], dtype=object)
    made = made.sort_values(["case_id", "image_path"], ignore_index=True)
    said = ""
    made["group"] = made["case_id"]
    if groups:
        made["group"], said = assign_groups(made, file.parent, [], f"{file.name}:{groups}")
    made.attrs |= {
        "layout": f"{file.name}: {len(made)} images in {len(table)} lines",
        "groups": said,
    }
    return made


def _find_table(path: Path) -> tuple[Path, pd.DataFrame] | None:
    """Return the table, and its file, that has columns of images and masks."""
    if path.suffix.lower() in TABLES and path.is_file():
        table = read_table(path)
        if not (_column(table, IMAGES) and _column(table, MASKS)):
            held = ", ".join(table.columns[:8])
            raise ValueError(f"{path.name} has the columns {held}: need image_path and mask_path")
        return path, table
    found = []
    for file in sorted(path.glob("*")):
        if file.suffix.lower() in TABLES and file.is_file():
            try:
                table = read_table(file)
            except ValueError:
                continue  # a table of something else
            if _column(table, IMAGES) and _column(table, MASKS):
                found.append((file, table))
    if len(found) > 1:
        both = " and ".join(file.name for file, _ in found[:2])
        raise ValueError(f"{both} name images and masks: give the path of the one that is meant")
    return found[0] if found else None


def _column(table: pd.DataFrame, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in table.columns), "")


def _locate(folder: Path, name: str) -> str:
    """Return the path of a file that a line names; Windows writes paths with backslashes."""
    path = folder / name
    return str(path if path.exists() else folder / name.replace("\\", "/")) if name else ""


def _names(folder: Path, paths: list[str]) -> dict[str, str]:
    """Return each image's name: of its file, or of its path where two files have one name."""
    stems = [Path(path).stem for path in paths]
    if len(set(stems)) == len(stems):
        return dict(zip(paths, stems, strict=True))
    full = [Path(path).with_suffix("") for path in paths]
    below = [p.relative_to(folder) if p.is_relative_to(folder) else p for p in full]
    return {path: "-".join(p.parts).lstrip("/-") for path, p in zip(paths, below, strict=True)}

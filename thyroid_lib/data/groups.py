"""Groups: which images must not be split, from a table, a column or a pattern on the names.

    groups: ""                   a file whose name begins with "group", or a table with patients
    groups: patients.csv:number  this column of this table
    groups: "^(\\d+)_"           what the brackets match in the name of the image
    groups: "^([^/]+)/"          the same in its path below the data's folder
    groups: proposed             frames that look alike, found when the store is built
    groups: none                 every image is a group of its own

A table's group names are one if they differ in letter case, spaces or leading zeros alone: groups
that are too large waste a little, groups that are too small put one patient on both sides.
"""

import re
from contextlib import suppress
from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import name_key, split_references
from thyroid_lib.data.name_tables import TABLES, Names, column_key, compile_pattern, read_table

GROUPS = (
    "group", "groups", "group_id", "patient", "patient_id", "patientid", "patients", "subject",
    "subject_id", "subjectid", "pid", "person", "sweep", "case",
)  # fmt: skip
ALONE = (
    "groups are not known: every image counts as a group of its own, which is wrong if two show "
    "one gland; add a groups.csv (columns case_id, group) or set groups to a pattern on the names, "
    'groups: "^(\\d+)_"; groups: proposed makes them of frames that look alike'
)
UNKNOWN = (
    "Groups are not known: every image counts as a group of its own. Where two show one gland, "
    "results are too good and intervals too narrow."
)
PROPOSED = "proposed"  # name of all groups until the store is built, and how they begin then
ARE_PROPOSED = (
    "Groups are proposed, made of frames that look alike, and not known: one patient who looks "
    "different in two sweeps may stand on both sides of a split."
)


def groups_note(table: pd.DataFrame) -> str:
    """Say what is doubtful about the groups of an index or of scores, "" if they are known."""
    alone = table["group"].astype(str) == table["case_id"].astype(str)
    if alone.groupby(table.get("dataset", alone * 0)).all().any():
        return UNKNOWN
    return ARE_PROPOSED * are_proposed(table)


def are_proposed(table: pd.DataFrame) -> bool:
    """Say whether any group of a table was proposed, or waits for that (`groups: proposed`)."""
    return bool(table["group"].astype(str).str.fullmatch(rf"(.+\.)?{PROPOSED}\d*").any())


def assign_groups(
    cases: pd.DataFrame, root: Path, others: list[Path], wanted: str = ""
) -> tuple[list[str], str]:
    """Return each case's group, "" where it is not known, and a sentence that says whence.

    The cases' files and `others`, which are no images, lie below `root`; `wanted` is the study's
    key. ValueError: it is wrong, a file named group… cannot be read, or there are several.
    """
    if wanted == "none":
        return cases["case_id"].tolist(), "every image is a group of its own (groups: none)"
    if wanted == PROPOSED:
        return [PROPOSED] * len(cases), "made of frames that look alike (groups: proposed)"
    if "(" in wanted:
        return _by_pattern(cases, root, wanted)
    names = Names(cases, root)
    if wanted:
        name, _, column = wanted.partition(":")
        if not (root / name).is_file():
            held = ", ".join(path.name for path in others[:8]) or "no table"
            raise ValueError(f"groups: no file {name} in {root}, which holds {held}")
        return _by_table(cases, names, root / name, column.strip())
    named = [path for path in others if path.name.casefold().startswith("group")]
    if len(named) > 1:
        shown = ", ".join(str(path.relative_to(root)) for path in named)
        raise ValueError(f"several files may name the groups: {shown}; set groups to one of them")
    if named:
        return _by_table(cases, names, named[0], "")
    for path in others:
        if path.suffix.lower() in TABLES:
            with suppress(ValueError):  # a table of something else
                table = read_table(path)
                known = names.column(table)
                usual = [n for n in GROUPS if n in table and n != known and table[n].any()]
                if known and usual:
                    return _by_table(cases, names, path, usual[0])
    return cases["case_id"].tolist(), ALONE


def _by_pattern(cases: pd.DataFrame, root: Path, wanted: str) -> tuple[list[str], str]:
    pattern, names = compile_pattern("groups", wanted), cases["case_id"]
    if "/" in wanted:
        files = cases["image_path"].where(cases["image_path"] != "", cases["mask_path"])
        names = [Path(split_references(file)[0][0]).relative_to(root).as_posix() for file in files]
    groups = [(match[1] or "") if (match := pattern.search(name)) else "" for name in names]
    if not any(groups):
        first = f"the first is {cases['case_id'].iloc[0]!r}"
        raise ValueError(f"groups: {wanted!r} matches no image name with its brackets, {first}")
    return groups, f"{_count(groups)} by the pattern {wanted} on the names"


def _by_table(cases: pd.DataFrame, names: Names, path: Path, column: str) -> tuple[list[str], str]:
    """Read the groups from a table; `column` "" for a usual one."""
    table = read_table(path)
    if not (known := names.column(table)):
        need = f"need a column case_id of names such as {min(cases['case_id'])!r}"
        raise ValueError(f"{path.name} names no image that is there: {need}")
    rest = [name for name in table.columns if name != known]
    usual = [name for name in GROUPS if name in rest] or (rest if len(rest) == 1 else [])
    column = column_key(column) or (usual or [""])[0]
    if column not in rest:
        held = f"{', '.join(rest[:8])}; set groups to one of them: {path.name}:{rest[0]}"
        raise ValueError(f"{path.name} has no column {column or 'group'}, its columns are {held}")
    groups, key_of, spelled, strangers = [""] * len(cases), {}, {}, []
    for name, group in zip(table[known], table[column], strict=True):
        rows = names.find(name)
        if len({cases["case_id"].iat[row] for row in rows}) > 1:
            raise ValueError(f"{path.name} names {name!r}, which several images have: write paths")
        if name and not rows:
            strangers.append(name)
        key = re.sub(r"\b0+(?=\d)", "", name_key(" ".join(group.split())))
        for row in rows:
            if key_of.setdefault(row, key) != key:
                raise ValueError(f"{path.name} names {name!r} in two groups: keep one line")
            groups[row] = spelled.setdefault(key, group)
    said = f"{_count(groups)} from {path.name} ({known}, {column})"
    if merged := sorted({*table[column]} - {"", *spelled.values()}):
        said += f"; {len(merged)} names count as one with another of their spelling: {merged[0]!r}"
    if missing := groups.count(""):
        said += f"; {missing} images are in no group and are set aside"
    if strangers:
        said += f"; {len(strangers)} lines name no image that is there: {strangers[0]!r}"
    return groups, said


def _count(groups: list[str]) -> str:
    return f"{len({*groups} - {''})} groups"

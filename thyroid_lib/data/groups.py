"""Groups: which images must not be split, from a table, a column or a pattern on the names.

    groups: ""                   a file whose name begins with "group", or a table with patients
    groups: patients.csv:number  this column of this table
    groups: "^(\\d+)_"           what the brackets match in the name of the image
    groups: "^([^/]+)/"          the same in its path below the data's folder
    groups: proposed             frames that look alike, found when the store is built
    groups: none                 every image is a group of its own

Group names are one if they differ in letter case, spaces or leading zeros alone, see `group_key`:
groups that are too large waste a little, too small ones put one patient on both sides.
"""

import re
from os.path import relpath
from pathlib import Path

import pandas as pd

from thyroid_lib.data import name_tables
from thyroid_lib.data.cases import name_key, split_references
from thyroid_lib.data.name_tables import GROUPS, Names, column_key, compile_pattern

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


def waits(table: pd.DataFrame) -> pd.Series:
    """Say of each row whether its group is to be proposed (`groups: proposed`), bool (N,)."""
    of_dataset = table.get("dataset", "") + f".{PROPOSED}"
    return (table["group"] == PROPOSED) | (table["group"] == of_dataset)


def are_proposed(table: pd.DataFrame) -> bool:
    """Say whether any group of a table was proposed, by its name, or is to be."""
    return bool(table["group"].astype(str).str.fullmatch(rf"(.+\.)?{PROPOSED}\d*").any())


def group_key(name: str) -> str:
    """Return the same key for spellings of one group: P 1, p1, P01 and p001; 7 and 7.0."""
    return re.sub(r"\s|^0+(?=\w)|(?<!\d)0+(?=\d)|(?<=\d)\.0+$", "", name_key(name))


def assign_groups(
    cases: pd.DataFrame, root: Path, others: list[Path], wanted: str = ""
) -> tuple[list[str], str]:
    """Return each case's group, "" where it is not known, and a sentence that says whence.

    The cases' files and `others`, which are no images, lie below `root`; `wanted` is the study's
    key. A table named group… comes before the groups that the data's format knows. ValueError: a
    table that may name groups cannot be read, or tables differ.
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
        return _by_tables(names, [_read_lines(names, root / name, column.strip())])
    others = [path for path in others if path not in names.files]
    named = [path for path in others if path.name.casefold().startswith("group")]
    if len(named) > 1:
        shown = ", ".join(relpath(path, root) for path in named)
        raise ValueError(f"several files may name the groups: {shown}; set groups to one of them")
    if named:
        return _by_tables(names, [_read_lines(names, named[0])])
    if said := cases.attrs.get("groups"):
        return cases["group"].tolist(), f"{_count(cases['group'].tolist())}: {said}"
    found, unused = [], []
    for path in (path for path in others if path.suffix.lower() in name_tables.TABLES):
        try:
            found += filter(None, [_read_lines(names, path, may=True)])
            unused += [path.name] * (found == [])
        except ValueError as error:
            unused += [path.name if path.suffix.lower() == ".txt" else str(error)]  # a read-me?
    more = f"; no groups were found in {'; '.join(unused)}" if unused else ""
    groups, said = _by_tables(names, found) if found else (cases["case_id"].tolist(), ALONE)
    return groups, said + more


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


def _read_lines(names: Names, path: Path, column: str = "", *, may: bool = False) -> tuple | None:
    """Return a table's lines, name and columns; None if it `may` and does not name groups."""
    table, column = name_tables.read_table(path), column_key(column)
    known = names.column(table.drop(columns=column, errors="ignore"), path.name)
    rest = [name for name in table.columns if name != known]
    usual = [name for name in GROUPS if name in rest and table[name].any()]
    usual.sort(key=lambda name: may and name.startswith("group"))  # of patients, or of a trial?
    if may and not (known and usual):
        return None
    if not known:
        need = f"need a column case_id of names such as {min(names.of_row)[0]!r}"
        raise ValueError(f"{path.name} names no image that is there: {need}")
    column = column or (usual or (rest if len(rest) == 1 else [""]))[0]
    if column not in rest:
        held = f"{', '.join(rest[:8])}; set groups to one of them: {path.name}:{rest[0]}"
        raise ValueError(f"{path.name} has no column {column or 'group'}, its columns are {held}")
    return list(zip(table[known], table[column], strict=True)), path.name, f"({known}, {column})"


def _by_tables(names: Names, tables: list[tuple]) -> tuple[list[str], str]:
    """Take each row's group from the lines of one or more tables, which must not differ."""
    lines = [(name, " ".join(group.split())) for each, *_ in tables for name, group in each]
    keyed, spelled = [(name, group_key(group)) for name, group in lines], {"": ""}
    keys, strangers = names.spread(keyed, " with ".join(name for _, name, _ in tables))
    for _, group in lines:
        spelled.setdefault(group_key(group), group)
    groups = [spelled[key] for key in keys]
    said = f"{_count(groups)} from {', '.join(' '.join(about) for _, *about in tables)}"
    if merged := sorted({group for _, group in lines} - {*spelled.values()}):
        said += f"; {len(merged)} names count as one with another of their spelling: {merged[0]!r}"
    if missing := groups.count(""):
        said += f"; {missing} images are in no group and are set aside"
    return groups, said + strangers


def _count(groups: list[str]) -> str:
    return f"{len({*groups} - {''})} groups"

"""Folder source: images and masks paired by equal file names, as a case table.

    data/images/a01.png   data/masks/a01.png   data/groups.csv (columns case_id, group; optional)

A group is what must not be split: a patient, or a sweep. Without groups.csv every image is a group
of its own, which is right only if no two images show the same gland.
"""

import csv
import os
import unicodedata
import warnings
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import is_one_line, make_table, name_key

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Names of files need be no UTF-8; where pyarrow is installed, pandas keeps texts in a form that is.
pd.set_option("mode.string_storage", "python")


def cases(
    images: str | Path, masks: str | Path, groups: str | Path | None = None, dataset="folder"
) -> pd.DataFrame:
    """Pair the images of one folder with the masks of another; no file is opened but `groups`.

    Names are paired without regard to letter case. A missing partner is an empty path, a name that
    occurs twice (a.png and a.jpg) is two rows, a case that `groups` (a CSV with columns case_id,
    the file's name without its ending, and group) does not name has group "". ValueError: no
    folder, nothing in it, no name in common, or a wrong `groups`.
    """
    images, masks = Path(images), Path(masks)
    image_of, mask_of = _list_images(images), _list_images(masks)
    if not image_of.keys() & mask_of.keys():
        names = [next(iter(found.values()))[0] for found in (image_of, mask_of)]
        raise ValueError(
            f"no image has a mask of its name: {images.name}/ begins with {names[0]!r}, "
            f"{masks.name}/ with {names[1]!r}; name each mask as its image"
        )
    keys = image_of.keys() | mask_of.keys()
    group_of = groups and _read_groups(Path(groups), keys)
    if groups is None:
        said = "every image counts as a group of its own, which is wrong if two show one gland"
        warnings.warn(f"no groups.csv for {images.name}/: {said}", stacklevel=2)
    rows = []
    for key in keys:
        for image, mask in zip_longest(image_of.get(key, []), mask_of.get(key, []), fillvalue=""):
            stem = unicodedata.normalize("NFC", os.path.splitext(image or mask)[0])
            group = stem if groups is None else group_of.get(key, "")
            files = str(images / image) if image else "", str(masks / mask) if mask else ""
            rows.append((stem, *files, group, dataset))
    return make_table(rows)


def cases_in(path: str | Path, dataset: str = "folder") -> pd.DataFrame:
    """Make the case table of a folder that holds images/ and masks/, and perhaps groups.csv."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no folder at {path}: give one that holds images/ and masks/")
    there = sorted(os.listdir(path))
    folders = [[n for n in (part, part[:-1]) if n in there] for part in ("images", "masks")]
    if not all(folders):
        held = ", ".join(there[:8]) or "nothing"
        raise ValueError(f"{path} must hold the folders images/ and masks/, it holds {held}")
    groups = path / "groups.csv" if "groups.csv" in there else None
    return cases(*(path / names[0] for names in folders), groups, dataset)


def _list_images(folder: Path) -> dict[str, list[str]]:
    """List the names of a folder's image files by their `name_key`; warn of other files."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder that holds the image files")
    found, others = {}, []
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if name.startswith(".") or name in ("Thumbs.db", "desktop.ini"):  # hidden, or of Windows
            continue
        if suffix.lower() in SUFFIXES:
            found.setdefault(name_key(stem), []).append(name)
        else:
            others.append(name)
    shown, needed = ", ".join(map(ascii, others[:3])) or "nothing", " ".join(SUFFIXES)
    if not found:
        raise ValueError(f"no image file ({needed}) in {folder}: it holds {shown}")
    if others:
        said = f"skipped {len(others)} by the ending: {shown}; needed are {needed}"
        warnings.warn(f"{folder.name}/: {said}", stacklevel=3)
    return found


def _read_groups(path: Path, known: set[str]) -> dict[str, str]:
    """Read groups.csv as {name_key: group}; identifiers stay text ("0007" is not 7)."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
            rows = list(reader)
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{path.name} is no CSV file in UTF-8 ({error}), save it as one"
        raise ValueError(problem) from error
    for column in ("case_id", "group"):
        if columns.count(column) != 1:
            said = f"needs one column {column}, its columns are {columns[:8]}"
            raise ValueError(f"{path.name} {said}; write case_id,group, separated by a comma")
    group_of: dict[str, str] = {}
    for row in rows:
        name, group = row["case_id"].strip(), row["group"].strip()
        if any(map(str.strip, row.get(None, ()))):
            raise ValueError(
                f"{path.name}: the line of {name[:80]!r} has more fields than the first line; "
                'put a text that holds a comma in "quotes"'
            )
        if not is_one_line(name + group):
            raise ValueError(
                f"{path.name} holds a line break or what is no text in {(name + group)[:80]!r}: "
                "a quote too many or too few?"
            )
        if (key := name_key(name)) in group_of:
            raise ValueError(f"{path.name} names {name!r} more than once, keep one line per case")
        if name or group:
            group_of[key] = group
    strangers = [key for key in group_of if key not in known]
    if len(strangers) == len(group_of):
        needed = f"case_id must be a file's name without its ending, such as {min(known)!r}"
        said = f"names no image that is there, in {len(rows)} lines: {needed}"
        raise ValueError(f"{path.name} {said}")
    if strangers:
        said = f"names {len(strangers)} cases that are not there: {strangers[0]!r} …"
        warnings.warn(f"{path.name} {said}", stacklevel=3)
    return group_of

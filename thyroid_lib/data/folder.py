"""Folder source: images and masks paired by equal file names, as a case table.

    data/images/a01.png   data/masks/a01.png   data/groups.csv (columns case_id, group; optional)

A group is what must not be split: a patient, or a sweep. Without groups.csv every image is a group
of its own, which is right only if no two images show the same gland.
"""

import csv
import os
import sys
import unicodedata
import warnings
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from thyroid_lib.data.cases import is_one_line, make_table, name_key

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LITTER = ("Thumbs.db", "desktop.ini")  # of Windows
IMAGE_FOLDERS, MASK_FOLDERS = ("images", "image"), ("masks", "mask")
# Names of files need be no UTF-8; where pyarrow is installed, pandas keeps texts in a form that is.
pd.set_option("mode.string_storage", "python")


def cases(
    images: str | Path,
    masks: str | Path,
    groups: str | Path | None = None,
    dataset: str = "folder",
) -> pd.DataFrame:
    """Pair the images of one folder with the masks of another; no file is opened but `groups`.

    Names are paired without regard to letter case. A missing partner is an empty path, a name that
    occurs twice (a.png and a.jpg) is two rows, a case that `groups` does not name has group "".
    Folders below and other file types are skipped with a warning, hidden files without.

    Args:
        images, masks: two folders.
        groups: a CSV with columns case_id (the file's name without its ending) and group.
        dataset: its name in the table.

    Returns:
        The case table, columns `cases.COLUMNS`.

    Raises:
        ValueError: not two folders, nothing in them, no name in common, or a wrong `groups`.
    """
    images, masks = Path(images), Path(masks)
    image_of, mask_of = list_images(images), list_images(masks)
    if images.samefile(masks):
        raise ValueError(f"images and masks are one folder ({images.name}), give two")
    if not image_of.keys() & mask_of.keys():
        names = [next(iter(found.values()))[0] for found in (image_of, mask_of)]
        raise ValueError(
            f"no image has a mask of its name: {images.name}/ begins with {names[0]!r}, "
            f"{masks.name}/ with {names[1]!r}; name each mask as its image"
        )
    keys = image_of.keys() | mask_of.keys()
    group_of = None if groups is None else _read_groups(Path(groups), keys)
    if group_of is None:
        warnings.warn(
            f"no groups.csv for {images.name}/: every image counts as a group of its own, which is "
            "wrong if two of them show one gland",
            stacklevel=2,
        )
    rows = []
    for key in keys:
        pair = (found.get(key, []) for found in (image_of, mask_of))
        for image, mask in zip_longest(*pair, fillvalue=""):
            stem = unicodedata.normalize("NFC", os.path.splitext(image or mask)[0])
            group = stem if group_of is None else group_of.get(key, "")
            files = str(images / image) if image else "", str(masks / mask) if mask else ""
            rows.append((stem, *files, group, dataset))
    return make_table(rows)


def cases_in(path: str | Path, dataset: str = "folder") -> pd.DataFrame:
    """Make the case table of a folder that holds images/ and masks/, and perhaps groups.csv.

    Raises:
        ValueError: as `cases`, or if the two folders are missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"no folder at {path}: give one that holds images/ and masks/")
    there = sorted(os.listdir(path))
    images = next((name for name in IMAGE_FOLDERS if name in there), None)
    masks = next((name for name in MASK_FOLDERS if name in there), None)
    if images is None or masks is None:
        raise ValueError(
            f"{path} must hold the folders images/ and masks/, it holds "
            f"{', '.join(there[:8]) or 'nothing'}"
        )
    groups = path / "groups.csv" if "groups.csv" in there else None  # a broken link counts
    return cases(path / images, path / masks, groups, dataset)


def list_images(folder: Path) -> dict[str, list[str]]:
    """List the names of a folder's image files by their `name_key`."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the folder that holds the image files")
    found, others = {}, []
    there = sorted(os.listdir(folder))
    for name in there:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and not name.startswith("."):
            found.setdefault(name_key(stem), []).append(name)
        elif not name.startswith(".") and name not in LITTER:
            others.append(name)
    if not found:
        held = ", ".join(map(_shown, there[:5])) or "nothing"
        raise ValueError(f"no image file ({' '.join(SUFFIXES)}) in {folder}: it holds {held}")
    if others:
        first = ", ".join(map(_shown, others[:3])) + " …" * (len(others) > 3)
        needed = " ".join(SUFFIXES)
        warnings.warn(
            f"{folder.name}/: skipped {len(others)} by the ending: {first}; needed are {needed}",
            stacklevel=3,
        )
    return found


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _read_groups(path: Path, known: set[str]) -> dict[str, str]:
    """Read groups.csv as {name_key: group}; identifiers stay text ("0007" is not 7)."""
    try:
        if not path.is_file():  # opening a pipe would wait forever
            raise ValueError("it is a folder, a broken link or none at all")
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if any(map(str.strip, row))]
        if not rows:
            raise ValueError("it is empty")
    except (OSError, ValueError, csv.Error) as error:
        problem = f"{path.name} is no CSV file in UTF-8 ({error}), save it as one"
        raise ValueError(problem) from error
    columns = [column.strip() for column in rows.pop(0)]
    for column in ("case_id", "group"):
        if columns.count(column) != 1:
            held = ", ".join(_shown(name[:80]) for name in columns[:8])
            raise ValueError(
                f"{path.name} needs one column {column}, its columns are {held}; "
                "write case_id,group, separated by a comma"
            )
    group_of: dict[str, str] = {}
    strangers = []
    for row in rows:
        if any(map(str.strip, row[len(columns) :])):
            raise ValueError(
                f"{path.name}: the line of {row[0][:80]!r} has more fields than the first line; "
                'put a text that holds a comma in "quotes"'
            )
        row += [""] * (len(columns) - len(row))
        name, group = (row[columns.index(column)].strip() for column in ("case_id", "group"))
        if odd := [text for text in (name, group) if not is_one_line(text)]:
            raise ValueError(
                f"{path.name} holds a line break or what is no text in {odd[0][:80]!r}: a quote "
                "too many or too few?"
            )
        key = name_key(name)
        if key in group_of:
            raise ValueError(f"{path.name} names {name!r} more than once, keep one line per case")
        group_of[key] = sys.intern(group)  # one text for all frames of a group
        strangers += [] if key in known else [name]
    if len(strangers) == len(rows):
        raise ValueError(
            f"{path.name} names no image that is there: it has {len(rows)} lines, case_id must be "
            f"a file's name without its ending, such as {min(known)!r}"
        )
    if strangers:
        warnings.warn(
            f"{path.name} names {len(strangers)} cases that are not there: {strangers[0]!r} …",
            stacklevel=3,
        )
    return group_of

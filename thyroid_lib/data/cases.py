"""Case table: one row per image with the path of its mask, whatever the source.

A source (phantom, tg3k, folder) makes the table without opening an image; the store reads each pair
once. A case that cannot be used has one of a few reasons, so that they can be counted.
"""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.data.frames import read_gray

COLUMNS = ["case_id", "image_path", "mask_path", "group", "dataset"]
QUARANTINE = ["case_id", "file", "reason", "detail"]  # columns; file is the name only
_NO_GROUP = "its sweep or patient is not known, name it in groups.csv"


class BadCase(ValueError):
    """A case that cannot be used: args are the reason in a few words and the detail, a sentence."""


def make_table(rows: list[tuple[str, str, str, str, str]]) -> pd.DataFrame:
    """Make a case table of rows in the order of `COLUMNS`: all str, sorted by case_id."""
    # dtype: a path may hold bytes that are no text, which Arrow's strings refuse
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.sort_values(COLUMNS[:3], ignore_index=True)


def reference(path: str | Path, part: str | int = "") -> str:
    """Return how a case table names a file, or one picture in it."""
    return f"{path}\t{part}" if part != "" else str(path)


def read_pair(image_path: str | Path, mask_path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its mask, uint8 and bool (H,W) at native size; raises BadCase."""
    pair = []
    for kind, path in (("image", image_path), ("mask", mask_path)):
        try:
            pair.append(read_gray(path))
        except ValueError as error:
            raise BadCase(f"unreadable {kind}", str(error)) from error
    image, levels = pair
    if image.shape != levels.shape:
        sizes = " and ".join(f"{height} x {width}" for height, width in (image.shape, levels.shape))
        detail = f"image and mask are {sizes} (height x width): they must be of one size"
        raise BadCase("size mismatch", detail)
    mask = levels > 127
    if not mask.any():
        detail = f"no pixel is above 127, the brightest is {levels.max()}"
        raise BadCase("empty mask", f"{detail}: save masks with 0 and 255")
    if mask.all():
        raise BadCase("full mask", "every pixel is above 127: is this the mask?")
    if all(edge.all() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])):
        detail = "the frame's whole border is above 127: save masks with 255 on the thyroid"
        raise BadCase("inverted mask", f"{detail}, 0 around")
    return image, mask


def find_problems(cases: pd.DataFrame) -> list[list[str] | None]:
    """Return each row's first problem, as a row of the quarantine, or None; opens no file.

    Names that differ in letter case only are equal, as they are on some disks.
    """
    keys = cases["case_id"].map(name_key)
    problems = []
    for case, count in zip(cases.itertuples(), keys.map(keys.value_counts()), strict=True):
        odd = not is_one_line(case.case_id)
        checks = (
            (count > 1, "duplicate name", f"{count} files have this name, keep one"),
            (odd, "unusable name", "it holds a line break or what is no text, rename it"),
            (not case.image_path, "missing image", "add the image under the mask's name"),
            (not case.mask_path, "missing mask", "add the mask under the image's name"),
            (not case.group, "no group", _NO_GROUP),
        )
        found = next(((reason, detail) for wrong, reason, detail in checks if wrong), None)
        problems.append(found and problem_row(case, *found))
    return problems


def problem_row(case, reason: str, detail: str) -> list[str]:
    """Return one row of a quarantine, in the order of `QUARANTINE`; plain text always."""
    about_mask = ("mask" in reason and case.mask_path) or not case.image_path
    names = case.case_id, Path(case.mask_path if about_mask else case.image_path).name
    return [*(n if is_one_line(n) else repr(n)[1:-1] for n in names), reason, detail]


def name_key(name: str) -> str:
    """Return the same key for names that differ in letter case or in the form of accents only."""
    return unicodedata.normalize("NFC", name).casefold()


def is_one_line(text: str) -> bool:
    """Say whether a text holds no control character, such as a line break, and nothing but text."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)

"""The case table: one row per image with the path of its mask, from whatever source.

A source (phantom, tg3k, folder) makes the table without opening a file; the store reads each pair
once. What is wrong with a case has one of a few reasons, so that a quarantine can be counted.
"""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.data.frames import read_gray

COLUMNS = ["case_id", "image_path", "mask_path", "group", "dataset"]

REASONS = (
    "duplicate name",
    "unusable name",
    "missing image",
    "missing mask",
    "no group",
    "unreadable image",
    "unreadable mask",
    "size mismatch",
    "empty mask",
    "full mask",
    "inverted mask",
)


class BadCase(ValueError):
    """A case that cannot be used: `reason` is one of `REASONS`, `detail` a sentence about it."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def make_table(rows: list[tuple[str, str, str, str, str]]) -> pd.DataFrame:
    """Turn rows in the order of `COLUMNS` into a case table, all str, sorted by case_id."""
    # dtype: a path may hold bytes that are no text, which Arrow's strings refuse
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    return table.sort_values(COLUMNS[:3], ignore_index=True)


def read_pair(image_path: str | Path, mask_path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an image and its mask and check that they can be used together.

    Returns:
        image uint8 (H,W), mask bool (H,W), both at native size.

    Raises:
        BadCase: with a reason out of `REASONS`.
    """
    for kind, path in (("image", image_path), ("mask", mask_path)):
        if not os.path.lexists(path):
            raise BadCase(f"missing {kind}", _MISSING[kind])
    image, levels = _read(image_path, "image"), _read(mask_path, "mask")
    if image.shape != levels.shape:
        sizes = " and ".join(f"{height} x {width}" for height, width in (image.shape, levels.shape))
        raise BadCase(
            "size mismatch",
            f"image and mask are {sizes} (height x width): they must be of one size",
        )
    mask = levels > 127
    if not mask.any():
        raise BadCase(
            "empty mask",
            f"no pixel is above 127, the brightest is {levels.max()}: save masks with 0 and 255",
        )
    if mask.all():
        raise BadCase("full mask", "every pixel is above 127: is this the mask?")
    if all(edge.all() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])):
        raise BadCase(
            "inverted mask",
            "the frame's whole border is above 127: save masks with 255 on the thyroid, 0 around",
        )
    return image, mask


def table_problems(cases: pd.DataFrame) -> pd.DataFrame:
    """List what is wrong with a case table without opening a file.

    Names are compared as on a disk that knows no upper and lower case, so that what works on one
    machine works on all. A row has one problem at most, the first of `REASONS` that holds.

    Returns:
        Columns case_id, file (its name only), reason, detail; indexed as the rows of `cases`.

    Raises:
        ValueError: not a case table.
    """
    if missing := [column for column in COLUMNS if column not in cases.columns]:
        raise ValueError(
            f"not a case table: it lacks {', '.join(missing)} and has "
            f"{', '.join(map(str, cases.columns)) or 'no columns'}; make it with a source"
        )
    keys = cases["case_id"].map(name_key)
    counts = keys.value_counts()
    problems = {}
    for row, case, key in zip(cases.index, cases.itertuples(index=False), keys, strict=True):
        if counts[key] > 1:
            problem = "duplicate name", f"{counts[key]} files have this name, keep one"
        elif not is_one_line(case.case_id):
            problem = "unusable name", "it holds a line break or what is no text, rename it"
        elif not case.image_path:
            problem = "missing image", _MISSING["image"]
        elif not case.mask_path:
            problem = "missing mask", _MISSING["mask"]
        elif not case.group:
            problem = "no group", "its sweep or patient is not known, name it in groups.csv"
        else:
            continue
        problems[row] = problem_row(case, *problem)
    return pd.DataFrame.from_dict(
        problems, orient="index", columns=["case_id", "file", "reason", "detail"], dtype=object
    )


def problem_row(case, reason: str, detail: str) -> list[str]:
    """One row of a quarantine: case_id, file (its name only), reason, detail; plain text always."""
    about_mask = ("mask" in reason and case.mask_path) or not case.image_path
    path = Path(case.mask_path if about_mask else case.image_path)
    return [_plain(case.case_id), _plain(path.name), reason, detail]


def name_key(name: str) -> str:
    """Stems of one key are one case: upper or lower case and the form of accents do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def is_one_line(text: str) -> bool:
    """Whether a text holds no control character, such as a line break, and nothing but text."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


_MISSING = {
    "image": "there is a mask and no image, add the image under the mask's name",
    "mask": "there is an image and no mask, add the mask under the image's name",
}


def _read(path: str | Path, kind: str) -> np.ndarray:
    try:
        return read_gray(path)
    except ValueError as error:
        raise BadCase(f"unreadable {kind}", str(error)) from error


def _plain(name: str) -> str:
    return "".join(
        c if unicodedata.category(c) not in ("Cc", "Cs") else repr(c)[1:-1] for c in name
    )

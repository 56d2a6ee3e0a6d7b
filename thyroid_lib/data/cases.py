"""Case table: one row per image with the path of its mask, whatever the source.

A source (phantom, tg3k, folder) makes the table; the store reads each pair. A row may have more
than `COLUMNS`: `official` (its side in the data's own split), `mask_rule` (what in a mask is gland,
see `mask_values`, or each class, see `classes`), `image_highest` (white, in images of more than 8
bits), `annotated` (the classes that its source outlines, "" for all), `DETAILS` and `problem`
(reason and detail, where the source knows that the case cannot be used).
"""

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.data import mask_values, readers
from thyroid_lib.data.classes import merge_masks
from thyroid_lib.data.frames import components, read_gray

# Names of files need be no UTF-8; where pyarrow is installed, pandas keeps texts in a form that is.
pd.set_option("mode.string_storage", "python")
COLUMNS = ["case_id", "image_path", "mask_path", "group", "dataset"]
# What a source says of a patient or a nodule, as texts; "" where it says nothing.
DETAILS = ["age", "sex", "composition", "echogenicity", "margins", "calcifications", "tirads"]
QUARANTINE = ["case_id", "file", "reason", "detail"]  # columns; file is the name only


class BadCase(ValueError):
    """A case that cannot be used: args are the reason in a few words and the detail, a sentence."""


def make_table(rows: list[tuple], *more: str) -> pd.DataFrame:
    """Make a case table of rows in the order of `COLUMNS`, all str, and of `more` columns."""
    # dtype: a path may hold bytes that are no text, which Arrow's strings refuse
    table = pd.DataFrame(rows, columns=[*COLUMNS, *more], dtype=object)
    return table.sort_values(COLUMNS[:3], ignore_index=True)


def read_rows(path: str | Path) -> pd.DataFrame:
    """Read a table with a row per case; identifiers stay text, "0007" is not 7."""
    return pd.read_csv(path, dtype={"case_id": str, "group": str})


def reference(path: str | Path, part: str | int = "") -> str:
    """Name one picture as `image_path` and `mask_path` hold it; `part`: a page or frame from 0."""
    return f"{path}\t{part}" if str(part) else str(path)


def split_references(text: str) -> list[tuple[str, str]]:
    """Return the (path, part) of each reference, one a line: several masks of one image."""
    return [tuple(f"{line}\t".split("\t")[:2]) for line in str(text).split("\n")]


def read_pair(case) -> tuple[np.ndarray, np.ndarray]:
    """Read a case's image and mask, uint8 and bool (H,W) at native size; raises BadCase.

    `case` is a row of the case table, with or without `mask_rule` and `image_highest`. Its masks
    are joined. Where its rule names classes, the mask is a label map, uint8 (H,W).
    """
    kind = "image"
    try:
        image = read_image(case)
        kind = "mask"
        masks = _read_masks(case, image.shape)
    except (ValueError, OSError, ImportError) as error:
        raise BadCase(f"unreadable {kind}", str(error)) from error
    for found in masks:
        if image.shape != found.shape:
            sizes = [f"{height} x {width}" for height, width in (image.shape, found.shape)]
            detail = f"image and mask are {' and '.join(sizes)} (height x width)"
            raise BadCase("size mismatch", f"{detail}: they must be of one size")
    labels, rule = _join(masks), getattr(case, "mask_rule", "")
    mask = labels > 0
    means = f"the gland's levels ({rule})" if rule else "a level above 127"
    if not mask.any():
        raise BadCase("empty mask", f"no pixel has {means}: is there no gland, or a wrong level?")
    if mask.all():
        raise BadCase("full mask", f"every pixel has {means}: is this the mask?")
    if all(edge.all() for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1])):
        detail = f"the frame's whole border has {means}: save masks with the gland's level inside"
        raise BadCase("inverted mask", f'{detail}, or set mask_values: "{"0" if rule else "<128"}"')
    around, areas, _ = components(~mask, diagonal=False)
    outside = {*around[0], *around[-1], *around[:, 0], *around[:, -1]}
    if areas.sum() - areas[list(outside)].sum() > mask.sum():
        detail = "it encloses more than it covers: save masks that are filled"
        raise BadCase("outline as mask", detail)
    return image, labels


def _join(masks: list[np.ndarray]) -> np.ndarray:
    """Join the masks of one image, bool (H,W), or its label maps; of two classes the higher."""
    if masks[0].dtype == bool:
        return np.any(masks, axis=0)
    codes = [(int(code), labels) for labels in masks for code in np.unique(labels) if code]
    return merge_masks([(code, labels == code) for code, labels in codes], masks[0].shape)


def read_image(case) -> np.ndarray:
    """Read the image of a row of the case table, uint8 (H,W); raises ValueError."""
    [(path, part)] = split_references(case.image_path)
    return readers.read_image(path, part, getattr(case, "image_highest", 0))


def read_levels(case) -> np.ndarray:
    """Read the mask of a row as filed, uint8 (H,W); 0 and 255 where a rule says what is gland."""
    (path, part), *more = split_references(case.mask_path)
    rule = getattr(case, "mask_rule", "").rpartition("=")[2]
    if not (more or rule or readers.reader_of(path)):
        return read_gray(path, page=part)
    return np.any(_read_masks(case, read_image(case).shape), axis=0).astype(np.uint8) * 255


def _read_masks(case, shape: tuple[int, int]) -> list[np.ndarray]:
    """Read each mask of a case by its source's rule, bool (H,W); a reader may need the shape."""
    masks, rule = [], getattr(case, "mask_rule", "")
    for path, part in split_references(case.mask_path):
        reader = readers.reader_of(path)
        levels = reader.read_mask(path, part, shape) if reader else None
        masks.append(mask_values.read_mask(path, part, rule, levels))
    return masks


def find_problems(cases: pd.DataFrame) -> list[list[str] | None]:
    """Return each row's first problem, as a row of the quarantine, or None; opens no file.

    Names that differ in letter case only are equal, as they are on some disks.
    """
    keys, problems = cases["case_id"].map(name_key), []
    for case, count in zip(cases.itertuples(), keys.map(keys.value_counts()), strict=True):
        known, twice = getattr(case, "problem", None), f"{count} files have this name, keep one"
        checks = (
            (count > 1, "duplicate name", twice),
            (not is_one_line(case.case_id), "unusable name", "no text of one line, rename it"),
            (not case.image_path, "missing image", "add the image under the mask's name"),
            (not case.mask_path, "missing mask", "add the mask under the image's name"),
            (not case.group, "no group", "its patient is not known, name it in groups.csv"),
        )
        found = known or next((problem for wrong, *problem in checks if wrong), None)
        problems.append(found and problem_row(case, *found))
    return problems


def problem_row(case, reason: str, detail: str) -> list[str]:
    """Return one row of a quarantine, in the order of `QUARANTINE`; plain text always."""
    about_mask = ("mask" in reason and case.mask_path) or not case.image_path
    path = case.mask_path if about_mask else case.image_path
    names = case.case_id, Path(path.split("\t")[0]).name
    return [*(n if is_one_line(n) else repr(n)[1:-1] for n in names), reason, detail]


def name_key(name: str) -> str:
    """Return the same key for names that differ in letter case or in the form of accents only."""
    return unicodedata.normalize("NFC", name).casefold()


def is_one_line(text: str) -> bool:
    """Say whether a text holds no control character, such as a line break, and nothing but text."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)

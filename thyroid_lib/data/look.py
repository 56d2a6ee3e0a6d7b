"""Look at a data set before anything is trained: what it holds, how it is read, what is set aside.

    seen = look("my-data")                       # or with any choice of the study's keys:
    seen = look("my-data", masks="*_mask*.png", mask_values="1, 2", groups="^(\\d+)_")
    print(seen)
    build_store(seen.cases, "results/mine/store")

From a terminal: python -m thyroid_lib.data my-data masks='*_mask*.png'
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from thyroid_lib.data import archives
from thyroid_lib.data import cases as case_table
from thyroid_lib.data.classes import annotate, annotated_names, by_value, class_colours, one_class
from thyroid_lib.data.frames import fit_image, fit_mask
from thyroid_lib.data.groups import PROPOSED, assign_groups
from thyroid_lib.data.layouts import find_pairs, list_files
from thyroid_lib.data.mask_values import choose_classes, choose_rule, count_levels
from thyroid_lib.data.name_tables import TABLES
from thyroid_lib.data.official import find_sides
from thyroid_lib.data.readers import expand_stacks, measure_image, reader_of, white_level
from thyroid_lib.data.shrink import lost_sentence, size_needed
from thyroid_lib.files.parallel import count_workers, map_in_order
from thyroid_lib.settings import CHOICES

# Modules of this wing with cases(path) -> case table, or None if the data are in another format;
# attrs["layout"] and attrs["groups"] of the table say what was found.
DATA_FORMATS = ("nnunet", "ddti", "case_csv", "arrays", "dicom_folder")
SHEET = (4, 6, 160)  # rows and columns of the contact sheet, px of a picture


@dataclass(frozen=True)
class Look:
    """A case table that is ready for `build_store`, and a sentence on each thing that was seen."""

    cases: pd.DataFrame
    seen: dict[str, str]  # layout, masks, images, groups, split

    def __str__(self) -> str:
        width = max(map(len, self.seen))
        return "\n".join(f"{what:{width}}  {said}" for what, said in self.seen.items())


def look(
    path: str | Path,
    *,
    dataset: str = "",
    classes: Mapping[str, str] | None = None,
    annotated: str = "",
    **choices: str,
) -> Look:
    """Look at a folder or archive: find images, masks and groups, and what the masks' levels mean.

    `dataset` names the cases, "" for the format's name; `classes` are those of a study, {name:
    values}, `annotated` the ones that these data outline, "" for all; `choices` are any of
    `CHOICES`, as in a study's YAML. ValueError: what cannot be decided; says what was found and
    which key decides it.
    """
    if {*"\n\t"} & {*str(path)}:  # a case table's signs between references
        raise ValueError(f"{str(path)!r} holds a line break or tab, rename that folder")
    given, path = path, archives.unpack(path) if archives.is_archive(path) else Path(path)
    if unknown := sorted(set(choices) - set(CHOICES)):
        raise ValueError(f"got {', '.join(unknown)}, need any of {', '.join(CHOICES)}")
    wanted = dict.fromkeys(CHOICES, "") | choices
    table, others, layout = _find_cases(path, dataset, wanted)
    root = path if path.is_dir() else path.parent
    beside = Path(given).parent.glob("[gG][rR][oO][uU][pP]*") if Path(given).is_file() else ()
    others += [f for f in beside if f.suffix.lower() in (*TABLES, ".xlsx") and f not in others]
    groups, said = assign_groups(table, root, others, wanted["groups"])
    if wanted["groups"] != PROPOSED:  # a group of that name does not wait to be proposed
        groups = [f"{PROPOSED}000" if group == PROPOSED else group for group in groups]
    table = table.assign(group=groups, official=table.get("official", ""))
    sides, split = find_sides(table, root, wanted["split"])
    table = expand_stacks(table.assign(official=sides))
    table, seen = read_levels(table, wanted["mask_values"], classes or {}, annotated)
    table.attrs["seen"] = {"layout": layout} | seen | {"groups": said, "split": split}
    return Look(table, table.attrs["seen"])


def _find_cases(path: Path, dataset: str, wanted: dict) -> tuple[pd.DataFrame, list[Path], str]:
    """Return the cases of the first format that fits, the files that are none, and the layout."""
    pairs = {name: wanted[name] for name in ("images", "masks", "pairing")}
    for name in () if any(pairs.values()) else DATA_FORMATS:
        table = import_module(f"thyroid_lib.data.{name}").cases(_only_folder(path))
        if table is not None:
            table["dataset"] = dataset or table["dataset"]
            others = list_files(path)[1] if path.is_dir() else [path]
            return table, others, table.attrs["layout"]
    if not path.is_dir():
        raise ValueError(f"no folder at {path}: give one that holds images and masks")
    table, others, said = find_pairs(path, dataset=dataset or "folder", **pairs)
    return table, others, "; ".join(said)


def _only_folder(path: Path) -> Path:
    """Return the folder below which everything lies."""
    held = [path]
    while len(held) == 1 and held[0].is_dir():
        path = held[0]
        held = [each for each in path.iterdir() if not each.name.startswith((".", "__MACOSX"))]
    return path


def read_levels(
    cases: pd.DataFrame, wanted: str, classes: Mapping[str, str], annotated: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read all files of a case table once; choose its mask rule and the white of deep images.

    `wanted` is the study's key `mask_values`, `classes` and `annotated` are as of `look`. Returns
    the table with `mask_rule` and `image_highest`, and sentences on masks and images.
    """
    pairs = zip(cases["image_path"], cases["mask_path"], strict=True)
    found = list(map_in_order(_survey, pairs, count_workers(len(cases))))
    sizes, levels, masks = ([each[i] for each in found] for i in range(3))
    counted = [each for of_case in masks for each in of_case if each]
    rule, said = "", "they say by themselves what is gland" if any(masks) else "none can be read"
    names = annotated_names(classes, annotated) if len(classes) > 1 else []
    if counted and len(names) < 2:
        rule, said = choose_rule(counted, wanted, cases.attrs.get("levels"))
    cases = cases.assign(mask_rule=rule)
    if len(names) > 1:
        cases, said = _choose_classes(cases, counted, classes, names)
    elif names:
        cases, said = one_class(cases, names[0], classes), f"of {names[0]} alone: {said}"
    highest, deep = white_level(levels)
    numbers = Counter(size for size in sizes if size).most_common()
    shown = ", ".join(f"{height} x {width} ({n})" for (height, width), n in numbers[:4])
    images = f"{len(cases)}, height x width {shown}{', …' * (len(numbers) > 4)}"
    images += f"; {deep}" * bool(deep)
    return cases.assign(image_highest=highest), {"masks": said, "images": images}


def _choose_classes(
    cases: pd.DataFrame, counted: list, classes: Mapping[str, str], names: list[str]
) -> tuple[pd.DataFrame, str]:
    """Give a case table the mask rule of several classes; returns it with a sentence."""
    if column := cases.attrs.get("kinds"):
        cases, said = by_value(cases, column, classes)
        return annotate(cases, names, classes), said
    if not counted:
        need = "list the data as a source, with the one class that they outline as `annotated`"
        raise ValueError(f"classes: these masks have no levels that could be classes, {need}")
    values = {name: classes[name] if name in names else None for name in classes}
    rule, said = choose_classes(counted, values, cases.attrs.get("levels"))
    return annotate(cases.assign(mask_rule=rule), names, classes), said


def _survey(pair: tuple[str, str]) -> tuple[tuple | None, float, list]:
    """Return an image's size and its highest deep level, and the levels of each of its masks."""
    image, masks = pair
    references, found = case_table.split_references, []
    size, highest = measure_image(*references(image)[0]) if image else (None, 0)
    for path, part in references(masks) if size and masks else ():
        with suppress(ValueError, OSError, ImportError):  # the store sets it aside
            reader = reader_of(path)
            levels = reader.read_mask(path, part, size) if reader else None
            drawn = levels is not None and levels.dtype == bool
            found.append(None if drawn else count_levels(path, part, levels))
    return size, highest, found


def check_cases(cases: pd.DataFrame, *, size: int, resize: str) -> dict[str, str]:
    """Read every pair; say what a store will set aside, and how many masks its size would lose."""
    rows = cases.assign(problem=case_table.find_problems(cases)).to_dict("records")
    work = partial(_check, size=size, resize=resize)
    bad, needed = defaultdict(list), []
    each = (SimpleNamespace(**row) for row in rows)
    for found in map_in_order(work, each, count_workers(len(rows))):
        if isinstance(found, int):
            needed.append(found)
        else:
            _, file, reason, detail = found
            bad[reason].append(f"({file}: {detail})")
    reasons = "; ".join(f"{len(of)} {reason} {of[0]}" for reason, of in sorted(bad.items()))
    aside = f"{len(cases) - len(needed)} of {len(cases)}: {reasons}" if bad else "none"
    return {"set aside": aside} | ({"size": lost_sentence(needed, size)} if needed else {})


def _check(case, *, size: int, resize: str) -> list[str] | int:
    """Return a row of the quarantine, or the size that the mask needs."""
    if case.problem:
        return case.problem
    try:
        return size_needed(case_table.read_pair(case)[1], size, resize)
    except case_table.BadCase as bad:
        return case_table.problem_row(case, *bad.args)


def contact_sheet(cases: pd.DataFrame) -> Image.Image:
    """Draw up to 24 cases, evenly chosen, their masks in yellow, or each class in its colour.

    Where a case is set aside, it says why.
    """
    rows, columns, side = SHEET
    places = np.unique(np.linspace(0, len(cases) - 1, rows * columns).astype(int))
    cases = cases.assign(problem=case_table.find_problems(cases))
    wide, high = side + 4, side + 18
    sheet = Image.new("RGB", (columns * wide, math.ceil(len(places) / columns) * high), "#303030")
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(places):
        corner, case = (place % columns * wide, place // columns * high), cases.iloc[row]
        try:
            if case["problem"]:
                raise case_table.BadCase(*case["problem"][2:])
            image, mask = case_table.read_pair(case)
        except case_table.BadCase as bad:
            draw.text((corner[0] + 4, corner[1] + side // 2), bad.args[0], "#ffd600")
        else:
            picture = Image.fromarray(fit_image(image, side, "letterbox")).convert("RGB")
            fitted = fit_mask(mask, side, "letterbox")
            colours = {1: "#ffd600"} if mask.dtype == bool else class_colours(fitted.max())
            for code in np.unique(fitted[fitted > 0]):
                inside = fitted == code
                outline = inside & ~ndimage.binary_erosion(inside)
                paper = Image.fromarray(np.uint8(40 * inside + 215 * outline))
                picture.paste(colours[code], mask=paper)
            sheet.paste(picture, corner)
        draw.text((corner[0] + 2, corner[1] + side + 2), case["case_id"][-26:], "white")
    return sheet

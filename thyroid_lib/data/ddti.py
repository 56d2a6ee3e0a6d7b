"""DDTI: thyroid nodules with outlines in XML, as a case table.

    ddti/1.xml   ddti/1_1.jpg   ddti/1_2.jpg

`N.xml` describes the images `N_k.jpg`: each `<mark>` holds an image's number and its regions, JSON
polygons in pixels. Case numbers that share a byte-identical image are one group, as they may be one
patient. Images without a usable outline stay in the table, each with its problem. Columns of the
table hold what the XML says of the patient and the nodule, the TI-RADS score among it.

Source: Pedraza, Vargas, Narváez, Durán, Muñoz & Romero, SIPAIM 2015.
"""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy import ndimage

from thyroid_lib.data.cases import DETAILS, make_table, reference
from thyroid_lib.files.fingerprint import file_digest

IMAGE, FILE = re.compile(r"(\d+_\d+)\.(?:jpe?g|png)", re.I), re.compile(r"(\d+)\.xml", re.I)
NO_DETAILS = [""] * len(DETAILS)


class Outline(NamedTuple):
    """The regions of one image."""

    polygons: list[list[tuple[float, float]]]  # points (x,y) in px
    problem: tuple[str, str] | None = None  # reason and sentence, where there is no region
    arrows: int = 0  # marks of fewer than three points, which enclose nothing


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table of DDTI, in a folder or up to two levels below; None for other data."""
    folder = _find_folder(Path(path))
    if folder is None:
        return None
    names = sorted(os.listdir(folder))
    pictures = [(m[1], str(folder / m[0])) for m in map(IMAGE.fullmatch, names) if m]
    files = {m[1]: str(folder / m[0]) for m in map(FILE.fullmatch, names) if m}
    read = {number: _read_file(file) for number, file in files.items()}
    named = {f"{number}_{part}" for number, (outlines, *_) in read.items() for part in outlines}
    group_of, rows, arrows = _join_cases(pictures), [], 0
    missing = named - {case_id for case_id, _ in pictures}
    for case_id, image in (*pictures, *((name, "") for name in missing)):
        number, _, part = case_id.partition("_")
        mask = reference(files[number], part) if number in files else ""
        outlines, otherwise, details = read.get(number, ({}, Outline([]), NO_DETAILS))
        outline = outlines.get(part, otherwise)
        arrows += outline.arrows
        group = group_of.get(number, number)
        row = case_id, image, mask, group, "ddti", outline.problem
        rows.append((*row, *details))
    table = make_table(rows, "problem", *DETAILS)
    more = f"; {arrows} marks of fewer than three points (arrows) are left out" * (arrows > 0)
    table.attrs["layout"] = (
        f"DDTI: {len(pictures)} images, outlines in {len(files)} XML files{more}"
    )
    table.attrs["kinds"] = "tirads"
    table.attrs["groups"] = "case numbers; those that share an identical image are one group"
    return table


def read_mask(path: str | Path, part: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw the regions of image number `part`, bool (H,W). Raises ValueError if there are none."""
    outlines, otherwise, _ = _read_file(str(path))
    outline = outlines.get(part, otherwise)
    if outline.problem:
        raise ValueError(f"{Path(path).name!r}, image {part}: {outline.problem[1]}")
    mask = np.any([draw_polygon(points, shape) for points in outline.polygons], axis=0)
    if not mask.any():
        said = "its outline lies outside of the image: outline it again"
        raise ValueError(f"{Path(path).name!r}, image {part}: {said}")
    return mask


def draw_polygon(points: list[tuple[float, float]], shape: tuple[int, int]) -> np.ndarray:
    """Rasterise a closed line through (x,y) pixel centres: bool (H,W), the line included.

    All that the line encloses is inside, also where a freehand line crosses itself.
    """
    canvas = Image.new("1", shape[::-1])
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return ndimage.binary_fill_holes(np.array(canvas))


def _find_folder(path: Path) -> Path | None:
    """Return the first folder that holds N.xml beside N_k.jpg."""
    for folder in (path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))):
        names = os.listdir(folder) if folder.is_dir() else []
        files = {m[1] for m in map(FILE.fullmatch, names) if m}
        if any(m and m[1].partition("_")[0] in files for m in map(IMAGE.fullmatch, names)):
            return folder
    return None


def _join_cases(images: list[tuple[str, str]]) -> dict[str, str]:
    """Return the group of each case number: "150+233" where two hold the same image."""
    members = {(number := name.partition("_")[0]): {number} for name, _ in images}
    first_with: dict[str, str] = {}  # digest: case number
    for name, file in images:
        number = name.partition("_")[0]
        members[number] |= members[first_with.setdefault(file_digest(file), number)]
        members |= dict.fromkeys(members[number], members[number])
    return {number: "+".join(sorted(joined, key=int)) for number, joined in members.items()}


def _read_file(file: str) -> tuple[dict[str, Outline], Outline, list[str]]:
    """Read an XML file: outlines by image number, what stands for all other images, `DETAILS`."""
    try:
        root = ElementTree.parse(file).getroot()  # noqa: S314 (expat limits entities)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        said = f"its XML cannot be read ({error}): copy {Path(file).name} again from its source"
        return {}, Outline([], ("damaged annotation", said)), NO_DETAILS
    texts = defaultdict(list)
    for mark in root.iter("mark"):
        number, text = ((mark.findtext(tag) or "").strip() for tag in ("image", "svg"))
        if number.isdecimal():
            texts[number].append(text)
    said = f"{Path(file).name} has no mark of this image: outline it"
    found = {number: _parse_regions(of_image) for number, of_image in texts.items()}
    details = [" ".join((root.findtext(name) or "").split()) for name in DETAILS]
    return found, Outline([], ("no region", said)), details


def _parse_regions(texts: list[str]) -> Outline:
    """Read the regions of one image, a JSON list per mark; one that is damaged spoils the image."""
    try:
        regions = [region["points"] for text in filter(None, texts) for region in json.loads(text)]
        lines = [[(float(p["x"]), float(p["y"])) for p in points] for points in regions]
        if not all(abs(value) < 1e6 for line in lines for value in np.ravel(line)):  # nor NaN
            raise ValueError("a point lies outside of every image")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"the JSON of its outline is cut off or damaged ({error}): outline it again"
        return Outline([], ("damaged annotation", said))
    polygons = [line for line in lines if len(line) > 2]
    arrows, problem = len(lines) - len(polygons), None
    if not polygons:
        said = "its marks are arrows of fewer than three points" if arrows else "its mark is empty"
        problem = "no region", f"{said}: outline the nodule"
    return Outline(polygons, problem, arrows)

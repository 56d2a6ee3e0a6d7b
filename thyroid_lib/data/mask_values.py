"""Mask values: what in a source's mask files means gland, found by one pass over all of them.

A rule holds for a whole source, in a form that the case table carries:

    ""                     a gray level above 127, as TG3K's JPEG masks mean it
    "levels:1"             these gray levels, as stored: "levels:85,170"
    "colours:ff0000"       these colours, RGB in hexadecimal digits
    "transparent"          what is not there, of 4 channels
    "above:0"              gray levels above a number

Several rules, joined by ";", are gland where one of them says so.
"""

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from thyroid_lib.data.frames import decode_file, read_gray
from thyroid_lib.data.readers import check_levels

TRANSPARENT = -1  # codes: gray levels from 0, transparent, and below it the colours
MANY = 4096  # levels that are counted in one mask
BLACK, WHITE = 32, 223  # channels of a JPEG's black are below, of its white above
BLUR = 24  # levels that differ by no more are one in a JPEG
SQUARE = 4  # px


def read_mask(path: str, page: str = "", rule: str = "", levels=None) -> np.ndarray:
    """Read a mask by a rule, bool (H,W): a file, or what a reader of its own gave as `levels`.

    Masks of a reader may be bool (H,W) already. ValueError: as `frames.read_gray`.
    """
    if levels is not None:
        return levels if levels.dtype == bool else apply_rule(check_levels(levels), rule)
    jpeg = is_jpeg(path)
    if jpeg and rule.startswith("above"):  # as `count_levels` sees it
        brightest = decode_file(path, lambda image, _: np.max(image.convert("RGB"), axis=2), page)
        return apply_rule(brightest, rule)
    if jpeg or not rule:
        return read_gray(path, page=page) > 127
    return apply_rule(decode_file(path, _codes, page), rule)


def is_jpeg(path: str | Path) -> bool:
    """Say whether a file is a JPEG, whose levels are blurred, by its first bytes."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(3) == b"\xff\xd8\xff"
    return False


def apply_rule(codes: np.ndarray, rule: str) -> np.ndarray:
    """Return which pixels are gland, bool (H,W), of codes as `_codes` gives them."""
    mask = np.zeros(codes.shape, bool)
    for part in (rule or "above:127").split(";"):
        kind, _, values = part.partition(":")
        if kind == "levels":
            wanted = np.array([float(value) for value in values.split(",")])
            wanted = wanted.astype(codes.dtype) if codes.dtype.kind == "f" else wanted
            mask |= np.isin(codes, wanted)
        elif kind == "colours":
            mask |= np.isin(codes, [_colour_code(int(value, 16)) for value in values.split(",")])
        else:
            mask |= codes > float(values) if kind == "above" else codes == TRANSPARENT
    return mask


def _codes(image: Image.Image, tags) -> np.ndarray:
    """Return a mask's levels as stored, (H,W): gray levels, `TRANSPARENT`, or codes of colours."""
    if image.mode.startswith(("I", "F")):
        levels = check_levels(np.asarray(image))
        if tags.get(262) == 0 and levels.dtype == np.uint16:  # 0 is white
            levels = 65535 - levels
        whole = levels.dtype.kind != "f" and not (levels % 257).any() and levels.max() <= 65535
        return (levels // 257).astype(np.uint8) if whole else levels  # 8 bits, saved as 16
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    indices = np.asarray(image) if image.mode == "P" else None
    rgba = np.asarray(image.convert("RGBA")).astype(np.int32)  # (H,W,4)
    red, green, blue, alpha = np.moveaxis(rgba, 2, 0)
    codes = _colour_code((red << 16) | (green << 8) | blue)
    codes = np.where(alpha <= 127, TRANSPARENT, codes).astype(np.int64)
    if indices is not None and len(np.unique(indices)) > len(np.unique(codes)):
        return indices.astype(np.int32)  # a palette that shows two classes alike
    return codes


def _colour_code(rgb):
    """Return the code of a colour, or of an array of them: below `TRANSPARENT`."""
    gray = (rgb >> 16 == rgb >> 8 & 255) & (rgb & 255 == rgb >> 8 & 255)
    return np.where(gray, rgb & 255, -2 - rgb)


class Levels(NamedTuple):
    """What one mask holds: pixels by code, and of what kind the codes are."""

    counts: dict[float, int]
    border: float | None = None  # the code that fills the whole border, if one does
    jpeg: bool = False
    deep: bool = False  # "above 127" does not mean the codes


def count_levels(path: str, page: str = "", levels: np.ndarray | None = None) -> Levels:
    """Count the pixels by code of an image file, or of `levels` that a reader of its own gave.

    Of a JPEG only even squares count: black as 0, white as 255, others by their brightest channel.
    """
    jpeg = levels is None and is_jpeg(path)
    if jpeg:
        codes = decode_file(path, _even_squares, page)
    else:
        codes = decode_file(path, _codes, page) if levels is None else check_levels(levels)
    values, counts = np.unique(codes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MANY]
    deep = levels is None and codes.dtype not in (np.uint8, np.int64)
    shortest = [float(str(value)) for value in values[most]]  # 0.1 of 32 bits is 0.1
    pixels = dict(zip(shortest, counts[most].tolist(), strict=True))
    edges = () if jpeg else (codes[0], codes[-1], codes[:, 0], codes[:, -1])
    border = {code for edge in edges for code in np.unique(edge).tolist()}
    return Levels(pixels, border.pop() if len(border) == 1 else None, jpeg, deep)


def _even_squares(image: Image.Image, _) -> np.ndarray:
    """Return the levels of those squares of a JPEG that hold one level, uint8 (n,)."""
    rgb = np.asarray(image.convert("RGB"))
    height, width = (side // SQUARE for side in rgb.shape[:2])
    squares = rgb[: height * SQUARE, : width * SQUARE].reshape(height, SQUARE, width, SQUARE, 3)
    low, high = squares.min(axis=(1, 3)), squares.max(axis=(1, 3))  # (H/4,W/4,3)
    even = (high - low).max(axis=2) <= BLUR
    darkest, brightest = low.min(axis=2)[even], high.max(axis=2)[even]
    return np.select([brightest < BLACK, darkest > WHITE], [0, 255], brightest.astype(int))


def choose_rule(
    found: list[Levels], wanted: str = "", names: dict[int, str] | None = None
) -> tuple[str, str]:
    """Choose a source's mask rule by what `count_levels` found in each of its masks.

    wanted: the gland's levels or colours, "1", "85, 170" or "ff0000"; "alpha"; or ">0". names: of
    levels, where the data set gives them. Returns the rule, and a sentence that names every level
    with its share of the pixels. ValueError: levels that could be classes; `wanted` is not there.
    """
    counts: Counter = Counter()
    for each in found:
        counts.update(each.counts)
    jpegs, total = sum(each.jpeg for each in found), counts.total()
    levels = {level_name(code): code for code in sorted(counts, key=lambda c: (c < TRANSPARENT, c))}
    called = {str(level): f"{level} {name}" for level, name in (names or {}).items()}
    shares = {
        name: f"{called.get(name, name)} ({100 * counts[code] / total:.2g} %)"
        for name, code in levels.items()
    }
    shown = ", ".join(shares.values())
    if len(levels) > 16:
        shown = f"from {level_name(min(counts))} to {level_name(max(counts))}"
    if wanted:
        rule, gland = _wanted_rule(wanted.strip(), levels, shown, jpegs)
    elif jpegs == len(found) or _is_blurred(counts):
        middle = [code for code in counts if 0 < code < 255] if jpegs else []
        between = sum(counts[code] for code in middle)
        if between > 0.01 * (total - counts[0]):
            areas = f"levels {min(middle):g} to {max(middle):g} ({100 * between / total:.2g} %)"
            need = f'set the least that is gland, mask_values: ">{max(0, min(middle) - 20):g}"'
            raise ValueError(f"JPEG masks hold areas neither black nor white, {areas}: {need}")
        return "", "masks are blurred at their edges (JPEG or resized): above 127 is gland"
    else:
        gland = _gland_of_two([*levels.values()], {each.border for each in found})
        if gland is None:
            which = f"{shown}; which of them are gland? {_proposal(levels, counts)}"
            raise ValueError(f"masks hold {len(levels)} levels or colours: {which}")
        usual = set(counts) <= {0, 255} and 0 not in gland and not any(each.deep for each in found)
        rule = "" if usual else _rule_of(gland)
    sides = {"gland is": [], "background": []}
    for name, share in shares.items():
        sides["gland is" if levels[name] in gland else "background"].append(share)
    return rule, ", ".join(f"{side} {', '.join(of) or 'nowhere'}" for side, of in sides.items())


def level_name(code: float) -> str:
    """Return a code as it is shown and set: a number, "transparent", or a colour's RGB digits."""
    if code < TRANSPARENT:
        return f"{-2 - int(code):06x}"
    return "transparent" if code == TRANSPARENT else str(int(code) if code == int(code) else code)


def _is_blurred(counts: Counter) -> bool:
    """Say whether gray levels between black and white are but the soft edge of one class."""
    between = [n for code, n in counts.items() if 0 < code < 255]
    some = len(between) > 16 and min(counts) >= 0 and max(counts) == 255
    return some and max(between) < 0.02 * (counts[255] + sum(between)) and counts[0] > 0


def _gland_of_two(codes: list[float], borders: set) -> list[float] | None:
    """Return the codes that are gland where there is but one way to see it; None otherwise.

    Of two, background is what fills the border of every mask, else transparent, black, or darker.
    """
    if len(codes) < 2:
        return [code for code in codes if code]
    if len(borders) == 1 and borders <= set(codes):
        [around] = borders
    else:
        around = TRANSPARENT if TRANSPARENT in codes else max(min(codes), 0)
    others = [code for code in codes if code != around]
    return others if len(codes) == 2 and len(others) == 1 else None


def _proposal(levels: dict[str, float], counts: Counter) -> str:
    """Return what a user may write where the levels alone do not say what is gland."""
    if len(levels) > 16 and min(counts) >= 0:
        middle = 0.5 if max(counts) <= 1 else 127 if max(counts) <= 255 else int(max(counts)) // 2
        return f'They may be blurred, or probabilities: set a limit, mask_values: ">{middle}"'
    most = level_name(counts.most_common(1)[0][0])
    background = next((name for name in ("transparent", "0") if name in levels), most)
    others = ", ".join(name for name in levels if name != background)
    return f'Name those that are, all but {background} would be mask_values: "{others}"'


def _rule_of(gland: list[float]) -> str:
    levels = [level_name(code) for code in gland if code >= 0]
    colours = [level_name(code) for code in gland if code < TRANSPARENT]
    parts = [f"levels:{','.join(levels)}"] * bool(levels)
    parts += [f"colours:{','.join(colours)}"] * bool(colours)
    return ";".join(parts + ["transparent"] * (TRANSPARENT in gland))


def _wanted_rule(wanted: str, levels: dict, shown: str, jpegs: int) -> tuple:
    """Return the rule that a study sets, and the codes of the gland."""
    if wanted.startswith(">"):
        if not re.fullmatch(r">\s*\d+\.?\d*", wanted) or min(levels.values()) < 0:
            need = f'need a gray level, ">0"; the masks hold {shown}'
            raise ValueError(f"mask_values: got {wanted!r}, {need}")
        limit = float(wanted[1:])
        return f"above:{limit:g}", [code for code in levels.values() if code > limit]
    if wanted == "alpha":
        wanted = " ".join(name for name in levels if name != "transparent")
    names = [name.strip("#\"'").lower() for name in re.split(r"[\s,;]+", wanted) if name]
    names = [level_name(float(n)) if re.fullmatch(r"\d+\.\d*", n) else n for n in names]
    if missing := [name for name in names if name not in levels]:
        raise ValueError(f"mask_values: got {', '.join(missing)}, the masks hold {shown}")
    if jpegs:
        need = 'set a limit, ">127", or save them as PNG'
        raise ValueError(f"mask_values: got {wanted}, but {jpegs} masks are blurred JPEGs: {need}")
    gland = [levels[name] for name in names]
    return _rule_of(gland), gland

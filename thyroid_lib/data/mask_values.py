"""Mask values: what in a source's mask files means gland, found by one pass over all of them.

A rule holds for a whole source, in a form that the case table carries:

    ""                     a gray level above 127, as TG3K's JPEG masks mean it
    "levels:1"             these gray levels, as stored: "levels:85,170"
    "colours:ff0000"       these colours, RGB in hexadecimal digits
    "transparent"          what is not there, of 4 channels
    "above:0", "below:9"   gray levels above or below a number, of colours the brightest channel

Several rules, joined by ";", are gland where one of them says so.
"""

import re
import unicodedata
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from thyroid_lib.data.classes import join_rules, merge_masks, split_rule, split_values
from thyroid_lib.data.frames import check_levels, decode_file, read_gray
from thyroid_lib.settings import MOST_CLASSES

TRANSPARENT = -1  # codes: gray levels from 0, transparent, and below it the colours
MANY = 4096  # levels that are counted in one mask
SHARP = 16  # levels that a mask may hold; one of more has soft edges, as a JPEG has
BLACK, WHITE = 32, 223  # channels of a soft mask's black are below, of its white above
BLUR = 24  # levels that differ by no more are one in a soft mask
SQUARE = 4  # px


def read_mask(path: str, page: str = "", rule: str = "", levels=None) -> np.ndarray:
    """Read a mask by a rule, bool (H,W): a file, or what a reader of its own gave as `levels`.

    A rule of classes gives a label map, uint8 (H,W). Masks of a reader may be bool (H,W) already.
    ValueError: as `frames.read_gray`.
    """
    if rules := split_rule(rule):
        if any(of_class.startswith("levels") for _, of_class in rules) and is_jpeg(path):
            raise ValueError(f"{Path(path).name!r} is a JPEG, whose levels are blurred: need a PNG")
        masks = [(code, read_mask(path, page, of_class, levels)) for code, of_class in rules]
        return merge_masks(masks, masks[0][1].shape)
    if levels is not None:
        return levels if levels.dtype == bool else apply_rule(check_levels(levels), rule)
    if not rule or (is_jpeg(path) and not rule.startswith(("above", "below"))):
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
        elif kind == "transparent":
            mask |= codes == TRANSPARENT
        else:
            bright, limit = _channels(codes).max(axis=-1), float(values)
            gray = np.where(codes < TRANSPARENT, bright, codes)
            mask |= gray > limit if kind == "above" else (gray >= 0) & (gray < limit)
    return mask


def _channels(codes: np.ndarray) -> np.ndarray:
    """Return the channels of codes of 8 bits, (…,3); transparent is black."""
    codes = codes.astype(np.int64)
    rgb = np.where(codes < TRANSPARENT, -2 - codes, np.maximum(codes, 0) * 0x010101)
    return rgb[..., None] >> np.array([16, 8, 0]) & 255


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
    image = image if image.has_transparency_data else image.convert("RGB")
    rgba = np.asarray(image.convert("RGBA")).astype(np.int32)  # (H,W,4)
    red, green, blue, alpha = np.moveaxis(rgba, 2, 0)
    codes = _colour_code((red << 16) | (green << 8) | blue)
    thin, _ = _even_squares(rgba[..., 3:])  # ink may be thin all over, or only at its edge
    limit = thin[thin > BLACK].min(initial=alpha.max()) // 2
    codes = np.where(alpha <= limit, TRANSPARENT, codes).astype(np.int64)
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
    border: float | None = None  # the code that fills the whole border, if one of several does
    soft: bool = False  # only even squares are counted
    deep: bool = False  # "above 127" does not mean the codes


def count_levels(path: str, page: str = "", levels: np.ndarray | None = None) -> Levels:
    """Count the pixels by code of an image file, or of `levels` that a reader of its own gave.

    Of soft masks, JPEG files or more than `SHARP` levels of 8 bits, only even squares count: black
    as 0, white as 255, others by their brightest channel.
    """
    codes = decode_file(path, _codes, page) if levels is None else check_levels(levels)
    edges = np.concatenate([codes[0], codes[-1], codes[:, 0], codes[:, -1]])
    values, counts = np.unique(codes, return_counts=True)
    deep = levels is None and codes.dtype not in (np.uint8, np.int64)
    jpeg, soft = levels is None and is_jpeg(path), False
    if codes.dtype.kind != "f" and values.max() <= 255 and (jpeg or len(values) > SHARP):
        squares = _black_or_white(*_even_squares(_channels(codes)))
        # else a photograph, or probabilities
        soft = 2 * SQUARE**2 * len(squares) > codes.size and (jpeg or squares.any())
    if soft:
        middle = (squares > 0) & (squares < 255)
        if middle.sum() <= 0.01 * (squares > 0).sum():
            squares = squares[~middle]
        values, counts = np.unique(squares, return_counts=True)
        edges = _black_or_white(*[_channels(edges)] * 2)
    most = np.argsort(-counts, kind="stable")[:MANY]
    shortest = [float(str(value)) for value in values[most]]  # 0.1 of 32 bits is 0.1
    pixels = dict(zip(shortest, counts[most].tolist(), strict=True))
    border = float(str(edges[0])) if len(pixels) > 1 and (edges == edges[0]).all() else None
    return Levels(pixels, border, soft, deep)


def _even_squares(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest channels (n,C), of (H,W,C), of squares that hold one level."""
    height, width = (side // SQUARE for side in channels.shape[:2])
    cut = channels[: height * SQUARE, : width * SQUARE]
    squares = cut.reshape(height, SQUARE, width, SQUARE, -1)
    low, high = squares.min(axis=(1, 3)), squares.max(axis=(1, 3))  # (H/4,W/4,C)
    even = (high - low).max(axis=2) <= BLUR
    return low[even], high[even]


def _black_or_white(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return 0 for black, 255 for white, else the brightest of channels (…,3), at most 254."""
    low, high = low.min(axis=-1), high.max(axis=-1)
    return np.select([high < BLACK, low > WHITE], [0, 255], np.minimum(high, 254))


def choose_rule(
    found: list[Levels], wanted: str = "", names: dict[int, str] | None = None
) -> tuple[str, str]:
    """Choose a source's mask rule by what `count_levels` found in each of its masks.

    wanted: the gland's levels or colours, "1", "85, 170" or "ff0000"; "alpha"; ">0" or "<9".
    names: of levels, where the data set gives them. Returns the rule, and a sentence that names
    every level with its share. ValueError: levels that could be classes; `wanted` is not there.
    """
    counts, levels, shares = _count(found, names or {})
    soft = sum(each.soft for each in found)
    around = Counter(each.border for each in found if each.border is not None)
    shown = ", ".join(shares.values())
    if len(levels) > SHARP:
        shown = f"from {level_name(min(counts))} to {level_name(max(counts))}"
    deep = any(each.deep for each in found)
    usual = {code for each in found if not each.soft for code in each.counts} <= {0, 255}
    if wanted:
        rule, gland = _wanted_rule(wanted.strip(), levels, shown, soft)
    elif soft and usual and not deep:
        if middle := [code for code in counts if 0 < code < 255]:
            areas = f"areas neither black nor white, {min(middle):g} to {max(middle):g} or coloured"
            need = f'set a limit half way below what is gland, mask_values: ">{min(middle) // 2:g}"'
            raise ValueError(f"blurred masks hold {areas}: {need}")
        rule, gland, ways = "", [255], ['">127"', '"<128"']
    else:
        gland = _gland_of_two([*levels.values()], around, names or {})
        ways = [f'"{name}"' for name in levels]
        if gland is None:
            which = f"{shown}; which of them are gland? {_proposal(levels, counts, names or {})}"
            raise ValueError(f"masks hold {len(levels)} levels or colours: {which}")
        rule = "" if usual and not deep and 0 not in gland else _rule_of(gland)
    if not (wanted or names) and len(levels) > 1:
        mixed = around.total() > 1.1 * max(around.values(), default=0)
        inside = [sum(x.counts.get(code, 0) for code in gland) for x in found]
        large = sum(2 * n > sum(x.counts.values()) for n, x in zip(inside, found, strict=True))
        if mixed or 10 * large > len(found):  # a tenth of the masks is gland by more than half
            need = f"which is gland? Set mask_values: {' or '.join(ways)}"
            raise ValueError(f"masks may be inverted, they hold {shown}: {need}")
    if soft and not (wanted or rule):
        return rule, "masks are blurred at their edges (JPEG or resized): above 127 is gland"
    sides = {"gland is": [], "background": []}
    for name, share in shares.items():
        sides["gland is" if levels[name] in gland else "background"].append(share)
    return rule, ", ".join(f"{side} {', '.join(of) or 'nowhere'}" for side, of in sides.items())


def choose_classes(
    found: list[Levels], classes: dict[str, str | None], names: dict[int, str] | None = None
) -> tuple[str, str]:
    """Choose the mask rule of several classes, {name: levels or colours}; as `choose_rule`.

    A class without values has the level of its own name; one of None is not annotated. ValueError:
    values that are not there, or that stand in two classes.
    """
    _, levels, shares = _count(found, names or {})
    soft, rules, codes_of = sum(each.soft for each in found), {}, {}
    called = {name.casefold(): str(level) for level, name in (names or {}).items()}
    shown = ", ".join(shares.values())
    for code, (name, values) in enumerate(classes.items(), 1):
        if values is None:
            continue
        wanted = ", ".join(called.get(v, v) for v in split_values(values or name))
        rules[code], held = _wanted_rule(wanted, levels, shown, soft, f"classes: {name}")
        for level in held:
            if codes_of.setdefault(level, name) != name:
                twice = f"{level_name(level)} stands in {codes_of[level]} and {name}"
                raise ValueError(f"classes: {twice}, need one class for each level")
    said = {name: [] for name in (*classes, "background")}
    for name, share in shares.items():
        said[codes_of.get(levels[name], "background")].append(share)
    sides = (f"{name} is {', '.join(of) or 'nowhere'}" for name, of in said.items())
    return join_rules(rules), ", ".join(sides)


def _count(found: list[Levels], names: dict) -> tuple[Counter, dict[str, float], dict[str, str]]:
    """Return pixels by code, codes by the name of their level, and levels with their share."""
    counts: Counter = Counter()
    for each in found:
        counts.update(each.counts)
    levels = {level_name(code): code for code in sorted(counts, key=lambda c: (c < TRANSPARENT, c))}
    called = {str(level): f"{level} {name}" for level, name in names.items()}
    shares = {
        name: f"{called.get(name, name)} ({100 * counts[code] / counts.total():.2g} %)"
        for name, code in levels.items()
    }
    return counts, levels, shares


def level_name(code: float) -> str:
    """Return a code as it is shown and set: a number, "transparent", or a colour's RGB digits."""
    if code < TRANSPARENT:
        return f"{-2 - int(code):06x}"
    return "transparent" if code == TRANSPARENT else str(int(code) if code == int(code) else code)


def _gland_of_two(codes: list[float], around: Counter, names: dict) -> list[float] | None:
    """Return the codes that are gland where there is but one way to see it; None otherwise.

    Of two, background is 0 where levels have names, else what fills the border of masks, else
    transparent, black, or darker. A level named ignore is neither.
    """
    if len(codes) < 2:
        return [code for code in codes if code]
    [(code, _)] = around.most_common(1) or [(max(min(codes), 0), 0)]
    background = 0 if names else TRANSPARENT if TRANSPARENT in codes and not around else code
    others = [code for code in codes if code != background]
    clear = len(codes) == 2 and len(others) == 1 and names.get(others[0]) != "ignore"
    return others if clear else None


def _proposal(levels: dict[str, float], counts: Counter, names: dict) -> str:
    """Return what a user may write where the levels alone do not say what is gland."""
    if len(levels) > SHARP:
        middle = 0.5 if 0 < max(counts) <= 1 else max(counts) // 2 or 127  # 0: black, of colours
        return f'They may be blurred, or probabilities: set a limit, mask_values: ">{middle:g}"'
    most = level_name(counts.most_common(1)[0][0])
    background = next((name for name in ("transparent", "0") if name in levels), most)
    others = [name for name in levels if name != background]
    said = f'Name those that are, all but {background} would be mask_values: "{", ".join(others)}"'
    if len(others) > MOST_CLASSES:
        return said
    called = {str(level): _class_name(name) for level, name in names.items()}
    each = (f'{called.get(name) or f"class{i}"}: "{name}"' for i, name in enumerate(others, 1))
    return f"{said}; or each a class, classes: {{{', '.join(each)}}}"


def _class_name(name: str) -> str:
    """Return a level's name as a study may call a class: a-z first, then a-z, 0-9 and _; or ""."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40]
    return plain if plain[:1].isalpha() else ""


def _rule_of(gland: list[float]) -> str:
    levels = [level_name(code) for code in gland if code >= 0]
    colours = [level_name(code) for code in gland if code < TRANSPARENT]
    parts = [f"levels:{','.join(levels)}"] * bool(levels)
    parts += [f"colours:{','.join(colours)}"] * bool(colours)
    return ";".join(parts + ["transparent"] * (TRANSPARENT in gland))


def _wanted_rule(
    wanted: str, levels: dict, shown: str, soft: int, key: str = "mask_values"
) -> tuple[str, list]:
    """Return the rule that a study sets by a key, and the codes of the gland or class."""
    if wanted.startswith((">", "<")):
        if not re.fullmatch(r"[<>]\s*\d+\.?\d*", wanted):
            need = f'need a gray level, ">0"; the masks hold {shown}'
            raise ValueError(f"{key}: got {wanted!r}, {need}")
        rule = f"{'above' if wanted[0] == '>' else 'below'}:{float(wanted[1:]):g}"
        codes = np.array([*levels.values()])
        return rule, codes[apply_rule(codes, rule)].tolist()
    if wanted == "alpha":
        wanted = " ".join(name for name in levels if name != "transparent")
    names = [name.strip("#\"'").lower() for name in re.split(r"[\s,;]+", wanted) if name]
    names = [level_name(float(n)) if re.fullmatch(r"\d+\.\d*", n) else n for n in names]
    names = [n.zfill(6) if n.zfill(6) in levels else n for n in names]  # 8000: YAML cuts the zeros
    missing = [name for name in names if name not in levels]
    if missing or not names:
        got = ", ".join(missing) or repr(wanted)
        raise ValueError(f"{key}: got {got}, the masks hold {shown}")
    if soft:
        need = 'set a limit, ">127" or "<128", or save them as PNG with sharp edges'
        raise ValueError(f"{key}: got {wanted}, but {soft} masks are blurred: {need}")
    gland = [levels[name] for name in names]
    return _rule_of(gland), gland

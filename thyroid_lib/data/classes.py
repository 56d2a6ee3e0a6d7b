"""Classes: label maps of studies with more than one class, and which class a source's masks are.

A label map, uint8 (H,W), holds 0 for background, 1 to K for the classes in the study's order, and
255 for foreground whose class is not known. The column `mask_rule` of a case table then holds, for
each class, "code=rule" with a rule of `mask_values`, joined by "|": "1=levels:1|2=levels:2,3".
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # a release runs without pandas
    import pandas as pd

UNKNOWN = 255
SURROUND = "gland"  # the class that lesions lie in: where nodules are not outlined, they are in it
COLOURS = ("#f0c000", "#ff5fa2", "#36d399", "#ff8c42", "#b794ff", "#4fd0e0")  # of classes 1, 2 …
UNKNOWN_COLOUR = "#e8e8e8"


def class_colours(count: int) -> dict[int, str]:
    """Return the colour of each code of a label map of so many classes, and of 255."""
    named = {code: COLOURS[(code - 1) % len(COLOURS)] for code in range(1, min(count, 254) + 1)}
    return named | {UNKNOWN: UNKNOWN_COLOUR}


def merge_masks(masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, int]) -> np.ndarray:
    """Make a label map of masks, (code, bool (H,W)) each.

    Where two overlap, the higher class counts; 255 only where no class does.
    """
    labels = np.zeros(shape, np.uint8)
    for code, mask in sorted(masks, key=lambda part: part[0] % UNKNOWN):
        labels[mask] = code
    return labels


def pack_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Pack a label map of so many classes, or a mask of one, to bits, uint8 (bytes,).

    Of a label map these are planes of bits, the lowest first, end to end; 255 is the code K + 1.
    """
    codes = np.where(labels == UNKNOWN, count + 1, labels)
    return np.concatenate([np.packbits(codes >> bit & 1) for bit in range(_bits_of(count))])


def unpack_labels(packed: np.ndarray, shape: tuple[int, int], count: int) -> np.ndarray:
    """Return what `pack_labels` packed, from the start of `packed`; of one class bool (H,W)."""
    bits, length = _bits_of(count), -(-shape[0] * shape[1] // 8)
    packed = packed[: bits * length].reshape(bits, length)
    planes = np.unpackbits(packed, axis=1, count=shape[0] * shape[1]).reshape(-1, *shape)
    if bits == 1:
        return planes[0].view(bool)
    codes = sum(plane << bit for bit, plane in enumerate(planes))
    return np.where(codes > count, UNKNOWN, codes).astype(np.uint8)


def _bits_of(count: int) -> int:
    return (count + 1).bit_length() if count > 1 else 1


def split_rule(rule: str) -> list[tuple[int, str]]:
    """Return the (code, rule) of each class of a `mask_rule`; [] where it names no classes."""
    parts = (part.partition("=") for part in rule.split("|") if "=" in rule)
    return [(int(code), of_class) for code, _, of_class in parts]


def join_rules(rules: Mapping[int, str]) -> str:
    """Return the `mask_rule` of rules by code."""
    return "|".join(f"{code}={rule}" for code, rule in rules.items())


def split_values(values: str) -> list[str]:
    """Return the values of a class, "2, 3, 4a": split at commas, and in lower case."""
    return [value.strip().casefold() for value in values.split(",") if value.strip()]


def annotated_names(classes: Mapping[str, str], annotated: str = "") -> list[str]:
    """Return the classes that a source annotates, in the study's order; all where "" is given.

    ValueError: a name that is no class of the study.
    """
    wanted = [name for name in re.split(r"[\s,]+", annotated) if name] or [*classes]
    if unknown := [name for name in wanted if name not in classes]:
        raise ValueError(f"annotated: got {unknown[0]!r}, need any of {', '.join(classes)}")
    return [name for name in classes if name in wanted]


def annotate(cases: "pd.DataFrame", names: list[str], classes: Mapping[str, str]) -> "pd.DataFrame":
    """Give a case table the column `annotated`, if a source does not annotate all classes."""
    return cases if len(names) == len(classes) else cases.assign(annotated=" ".join(names))


def one_class(cases: "pd.DataFrame", name: str, classes: Mapping[str, str]) -> "pd.DataFrame":
    """Make all foreground of a case table one class, the only one that is annotated."""
    code, rules = [*classes].index(name) + 1, cases.get("mask_rule", "")
    return annotate(cases.assign(mask_rule=f"{code}=" + rules), [name], classes)


def by_value(
    cases: "pd.DataFrame", column: str, classes: Mapping[str, str]
) -> tuple["pd.DataFrame", str]:
    """Give each case's foreground the class that a column's value stands for; 255 if none does.

    Returns the table with its `mask_rule`, and a sentence that counts images by class and value.
    ValueError: a value stands for two classes, or no case has a value of any class.
    """
    code_of: dict[str, int] = {}
    for code, (name, values) in enumerate(classes.items(), 1):
        for value in split_values(values or name):
            if code_of.setdefault(value, code) != code:
                raise ValueError(f"classes: {column} {value} stands in two of them")
    values = cases[column].str.casefold()
    codes = values.map(code_of).fillna(UNKNOWN).astype(int)
    usable, said = cases["problem"].map(lambda problem: not problem), []
    for code, name in (*enumerate(classes, 1), (UNKNOWN, "of a kind that is not known")):
        here = values[(codes == code) & usable]
        counts = here.replace("", f"no {column}").value_counts().sort_index()
        held = f" ({', '.join(f'{value}: {n}' for value, n in counts.items())})" * bool(len(counts))
        said.append(f"{counts.sum()} images {name}{held}")
    sentence = f"classes by {column}: {', '.join(said)}"
    if (codes == UNKNOWN).all():
        raise ValueError(f"{sentence}; classes: name the values of each, low: '2, 3', high: '5'")
    return cases.assign(mask_rule=codes.map("{}=".format)), sentence


def class_names(about: dict) -> list[str]:
    """Return the names of a network's classes, from its metadata; one class has its task's name."""
    return list(about.get("classes") or [about.get("task", "gland")])

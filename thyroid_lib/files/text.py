"""YAML text, and how values and names are written in messages and tables."""

import difflib
import json
import math
import re
from collections.abc import Iterable


def read_yaml(text: str):
    """Read YAML 1.2; ValueError: begins with ", line n: " or ": "."""
    from ruamel.yaml import YAML, YAMLError  # not there yet when a notebook installs the library

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"{where}: {said}") from None


def show(value) -> str:
    """Return any value on one line of at most 101 characters, in JSON's words: for messages."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # of keys, of a list that holds itself
        text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def printable(name) -> str:
    """Return a key's or a file's name as it is, if it is one line that is not long."""
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100
    return name if plain else show(name)


def unknown(name, choices: Iterable[str]) -> str:
    """Say that there is no such name, which one may have been meant, and what there is."""
    choices = list(choices)
    close = difflib.get_close_matches(str(name)[:100], choices, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{printable(name)}: unknown{meant}; there are: {', '.join(choices)}"


def count_of(number: int, what: str) -> str:
    """Write `3 groups`, `1 group`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def with_interval(table, names: tuple[str, str, str], digits: int = 3) -> list[str]:
    """Write a table's rows as `estimate [low, high]`, or the estimate alone; † if `conditional`."""
    marks = table["conditional"] if "conditional" in table else [False] * len(table)
    rows = zip(*(table[name] for name in names), marks, strict=True)
    form = f" [{{:z.{digits}f}}, {{:z.{digits}f}}]{{}}"
    return [
        decimal(value, digits) + (form.format(low, high, " †" * bool(mark)) if low == low else "")
        for value, low, high, mark in rows
    ]


def decimal(value: float, digits: int) -> str:
    """Write a number, without a minus before zero; – where it is not known."""
    return f"{value:z.{digits}f}" if math.isfinite(value) else "–"


def variant_name(model: str) -> str:
    """Return the name of a network without settings of its own, fit for files and tables."""
    return re.sub(r"[^a-z0-9_]", "_", model.lower())[:40]

"""YAML text, and how values and names are written in messages."""

import difflib
import json
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


def variant_name(model: str) -> str:
    """Return the name of a network without settings of its own, fit for files and tables."""
    return re.sub(r"[^a-z0-9_]", "_", model.lower())[:40]

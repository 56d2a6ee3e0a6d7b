"""Tables that name a data set's images: CSV in any usual delimiter, encoding and spelling.

A table says of each image which group it belongs to, or which side of a split. Its lines name
images by file name or path, with or without ending, in any letter case; spreadsheets may have cut
the zeros at the front.
"""

import csv
import io
import re
from collections import defaultdict
from pathlib import Path, PurePath

import pandas as pd

from thyroid_lib.data.cases import is_one_line, name_key, split_references
from thyroid_lib.data.readers import PICTURES, READERS

TABLES = (".csv", ".tsv", ".txt")
IDS = (
    "case_id", "image_id", "image", "image_name", "image_path", "filename", "file_name", "file",
    "frame", "name", "id", "case",
)  # fmt: skip


def column_key(name: str) -> str:
    """Return a column's name in lower case, with _ for spaces."""
    return name.casefold().replace(" ", "_").replace("-", "_")


def compile_pattern(key: str, pattern: str) -> re.Pattern:
    """Compile what a study's key sets; ValueError for no regular expression, or no brackets."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: {pattern!r} is no regular expression ({error})") from None
    if not compiled.groups:
        raise ValueError(f"{key}: got {pattern!r}, need brackets around what counts")
    return compiled


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV as texts, its columns named as by `column_key`; ValueError says what is wrong."""
    problem = f"{path.name} is no table in CSV"
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{problem} ({', '.join(TABLES)}): save it as one")
    try:
        text = _decode(path.read_bytes())
        first = text.lstrip("\n").split("\n")[0]
        sign = max(",;\t|", key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{problem} ({error}): save it as one in UTF-8") from error
    rows = [[field.strip() for field in row] for row in rows if any(map(str.strip, row))]
    header = [column_key(name) for name in rows[0]] if rows else []
    if len(header) < 2 or len(set(header)) < len(header):
        need = "need two or more different columns, such as case_id,group"
        raise ValueError(f"the first line of {path.name} is {header[:8]}: {need}")
    for row in rows[1:]:
        line = f"{path.name}, line {','.join(row)[:80]!r}"
        if any(row[len(header) :]):
            raise ValueError(f'{line}: too many fields, put a text with a comma in "quotes"')
        if not is_one_line("".join(row)):
            raise ValueError(f"{line}: it holds a line break, is a quote too many or too few?")
    lines = [[*row, *[""] * len(header)][: len(header)] for row in rows[1:]]
    return pd.DataFrame(lines, columns=header, dtype=object)


def _decode(content: bytes) -> str:
    """Decode a text file: UTF-16 by its mark, UTF-8, or as Windows writes it."""
    try:
        marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"^sep=.*\n", "", text, flags=re.IGNORECASE)  # as Excel writes it


class Names:
    """The names by which tables may call the images of a case table."""

    def __init__(self, cases: pd.DataFrame, root: Path):
        self.rows, self.numbers = defaultdict(set), defaultdict(set)  # by name, without zeros
        for row, case in enumerate(cases.itertuples()):
            names = {case.case_id}
            for path, _ in split_references(f"{case.image_path}\n{case.mask_path}"):
                inside = path and Path(path).is_relative_to(root)
                parts = Path(path).relative_to(root).parts if inside else ()
                names |= {"/".join(parts[i:]) for i in range(len(parts))}
            for key in map(_key, names):
                self.rows[key].add(row)
                if key.isdecimal():
                    self.numbers[key.lstrip("0")].add(row)

    def find(self, name: str) -> set[int]:
        """Return the rows that a table's line names; empty if there are none."""
        key = _key(name.replace("\\", "/").removeprefix("./"))
        while key:
            number = key.isdecimal() and key.lstrip("0")
            if rows := self.rows.get(key) or self.numbers.get(number):
                return rows
            key = key.partition("/")[2]  # a path that was another one where the table was written
        return set()

    def column(self, table: pd.DataFrame) -> str:
        """Return the column that names the images: a usual one, else that which names most."""
        if headless := [name for name in table.columns if self.find(name)]:
            needed = "write the columns' names there, case_id,group"
            raise ValueError(f"the first line of a table names an image, {headless[0]!r}: {needed}")
        found = {c: sum(bool(self.find(v)) for v in table[c]) for c in table.columns}
        best = max(found, key=found.get)
        most = best if found[best] > len(table) / 2 else ""
        return next((name for name in IDS if found.get(name)), most)


def _key(name: str) -> str:
    key = name_key(name.strip())
    ending = PurePath(key).suffix
    return key.removesuffix(ending) if ending in (*PICTURES, *READERS) else key

"""Tables that name a data set's images: CSV in any usual delimiter, encoding and spelling.

A table says of each image which group it belongs to, or which side of a split. Its lines name
images by file name or path, with or without ending, in any letter case; spreadsheets may have cut
the zeros at the front.
"""

import csv
import io
import os
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
GROUPS = (
    "group", "groups", "group_id", "patient", "patient_id", "patientid", "patients", "subject",
    "subject_id", "subjectid", "pid", "person", "sweep", "case",
)  # fmt: skip
HEADER = re.compile(r"(?!#)[\s,;|]*[^\s,;|][^,;\t|]*[,;\t|][\s,;|]*[^\s,;|]")  # two filled fields
ZEROS = re.compile(r"^0+(?=\d+$)")  # which spreadsheets cut


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
    """Read a CSV as texts, columns as by `column_key`, without titles above and unnamed columns."""
    problem = f"{path.name} is no table in CSV"
    if path.suffix.lower() not in TABLES:
        raise ValueError(f"{problem} ({', '.join(TABLES)}): save it as one")
    try:
        text = _decode(path.read_bytes())
        first = next(filter(HEADER.match, text.split("\n")), text)
        sign = max(",;\t|", key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{problem} ({error}): save it as one in UTF-8") from error
    rows = [[re.sub(r"^'(.*)'$", r"\1", field.strip()) for field in row] for row in rows]
    rows = [row for row in rows if any(row)]
    titles = [row[0].startswith("#") or sum(map(bool, row)) < 2 for row in rows]
    rows = rows[titles.index(False) if False in titles else 0 :]
    header = [column_key(name) for name in rows[0]] if rows else []
    while header and not header[-1]:
        header.pop()
    named = [name for name in header if name]
    if len(named) < 2 or len(set(named)) < len(named):
        need = "need two or more different columns, such as case_id,group"
        raise ValueError(f"the first line of {path.name} is {named[:8]}: {need}")
    for row in rows[1:]:
        line = f"{path.name}, line {','.join(row)[:80]!r}"
        if any(row[len(header) :]):
            raise ValueError(f'{line}: too many fields, put a text with a comma in "quotes"')
        if not is_one_line("".join(row)):
            raise ValueError(f"{line}: it holds a line break, is a quote too many or too few?")
    lines = [[*row, *[""] * len(header)][: len(header)] for row in rows[1:]]
    return pd.DataFrame(lines, columns=header, dtype=object)[named]


def _decode(content: bytes) -> str:
    """Decode a text file: UTF-16, also without its mark, UTF-8, or as Windows writes it."""
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    wide = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    try:
        text = content.decode("utf-16" if marked else wide if b"\0" in content else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"^sep=.*\n", "", text, flags=re.IGNORECASE)  # as Excel writes it


class Names:
    """The names by which tables may call the images of a case table."""

    def __init__(self, cases: pd.DataFrame, root: Path):
        self.rows, self.second = defaultdict(set), defaultdict(set)  # by name; if there is none
        self.files, self.of_row = set(), []
        for row, case in enumerate(cases.itertuples()):
            references = split_references(f"{case.image_path}\n{case.mask_path}")
            files, names = [Path(path) for path, _ in references if path], {case.case_id}
            for path in files:
                parts = (path.relative_to(root) if path.is_relative_to(root) else path).parts
                names |= {"/".join(parts[i:]) for i in range(len(parts))}
            keys = {*map(_key, names)}
            for key in keys:
                self.rows[key].add(row)
            for key in keys | _common_name(*(path.stem for path in files[:2])):
                self.second[ZEROS.sub("", key)].add(row)
            self.files |= {*files}
            self.of_row.append((case.case_id, case.image_path.partition("\t")[0]))

    def find(self, name: str) -> set[int]:
        """Return the rows that a table's line names; empty if there are none."""
        key = _key(name.replace("\\", "/").removeprefix("./"))
        while key:
            if rows := self.rows.get(key) or self.second.get(ZEROS.sub("", key)):
                return rows
            key = key.partition("/")[2]  # a path that was another one where the table was written
        return set()

    def spread(self, lines: list[tuple[str, str]], file: str) -> tuple[list[str], str]:
        """Return each row's value by lines of (name, value), "" for none, and names of no image."""
        values, strangers = [""] * len(self.of_row), []
        for name, value in lines:
            rows = self.find(name)
            strangers += [name] * (name != "" and not rows)
            if min(len({self.of_row[row][i] for row in rows}) for i in (0, 1)) > 1:  # no stack
                raise ValueError(f"{file} names {name!r}, which several images have: write paths")
            for row in rows if value else ():
                if values[row] not in ("", value):
                    both = f"{values[row]!r} and {value!r}"
                    twice = f"{file} names {name!r} twice, with {both}"
                    raise ValueError(f"{twice}: keep one line or table")
                values[row] = value
        said = f"; {len(strangers)} lines name no image that is there"
        return values, said + f": {strangers[0]!r}" if strangers else ""

    def column(self, table: pd.DataFrame, file: str) -> str:
        """Return the column that names the images: by endings, its name or most lines; or ""."""
        if headless := [name for name in table.columns if self.find(name)]:
            needed = "write the columns' names there, case_id,group"
            raise ValueError(f"the first line of {file} names an image, {headless[0]!r}: {needed}")
        lines = table.drop_duplicates()
        found = {name: [self.find(value) for value in lines[name]] for name in lines}
        fit = [c for c, of in found.items() if sum(map(bool, of)) > (c not in IDS) * len(of) / 2]
        ended = [c for c in fit if lines[c].str.lower().str.endswith((*PICTURES, *READERS)).any()]
        rank = {name: 2 for name in GROUPS} | {name: -1 / i for i, name in enumerate(IDS, 1)}
        best, *others = sorted(ended or fit, key=lambda name: rank.get(name, 1)) or [""]
        for other in others:
            pairs = zip(found[best], found[other], strict=True)
            differ = any(one and two and one.isdisjoint(two) for one, two in pairs)
            if differ and other not in GROUPS and lines[other].is_unique:
                which = f"columns {best} and {other} of {file} name different images"
                raise ValueError(f"{which}: remove the one that does not name them")
        return best


def _common_name(image: str = "", mask: str = "") -> set[str]:
    """Return what an image and its mask are called but for a word: "a" for a_image and a_mask."""
    for turn in (1, -1):  # from the front, from the end
        names = image[::turn], mask[::turn]
        match = re.match(r"(.+)[-_. ]", os.path.commonprefix(names))  # noqa: RUF071
        rests = {name[match.end() :] for name in names} if match else {""}
        if len(rests) == 2 and all(map(str.isalpha, rests)):
            return {name_key(match[1][::turn])}
    return set()


def _key(name: str) -> str:
    key = name_key(name.strip())
    ending = PurePath(key).suffix
    return key.removesuffix(ending) if ending in (*PICTURES, *READERS) else key

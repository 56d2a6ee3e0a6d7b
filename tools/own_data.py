"""Write the table of data sets in docs/own-data.md from the drawn ones of the tests.

python tools/own_data.py
"""

import sys
from pathlib import Path

from marks import with_part

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "own-data.md"
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "data")]
HEAD = ["| data | read or refused | what decides it |", "|---|---|---|"]


def tables() -> str:
    """Return a table for each part of the drawn data sets, in Markdown."""
    from format_cases import READ, REFUSED
    from table_cases import CASES

    lines = ["### Formats", "", *HEAD, *(f"| {title} | read | |" for title in READ)]
    lines += ["| DDTI, outlines and scores in XML | read, damaged outlines set aside | |"]
    for title, (_, _, choices) in REFUSED.items():
        shown = show_keys(choices) or "the files"
        lines.append(f"| {title} | refused | {shown} |")
    lines.append("")
    for part, cases in CASES.items():
        lines += [f"### {part}", "", *HEAD]
        for title, case in cases.items():
            result = "refused" if case.refused else "read"
            said = f"{result}: {case.said.rstrip(' (')}" if case.said else result
            keys = case.choices | case.mend
            shown = show_keys(keys) or "the files" * case.refused
            cells = (cell.replace("|", "\\|") for cell in (title, said, shown))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines)


def show_keys(keys: dict) -> str:
    """Return keys as they stand in a study's YAML."""
    lines = []
    for key, value in keys.items():
        if isinstance(value, dict):
            lines.append(f"`{key}: {{{', '.join(f'{k}: {v!r}' for k, v in value.items())}}}`")
        else:
            lines.append(f"`{key}: '{value}'`")
    return ", ".join(lines)


def page() -> str:
    """Return the page with its tables written anew."""
    return with_part(PAGE.read_text("utf-8"), "data sets: tools/own_data.py", f"\n{tables()}\n")


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

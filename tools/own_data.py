"""Write the table of data sets in docs/own-data.md from the drawn ones of the tests.

python tools/own_data.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "own-data.md"
START, END = "<!-- data sets: tools/own_data.py -->", "<!-- end of data sets -->"
sys.path.append(str(ROOT / "tests" / "data"))


def tables() -> str:
    """Return a table for each part of the drawn data sets, in Markdown."""
    from layout_cases import CASES

    lines = []
    for part, cases in CASES.items():
        lines += [
            f"### {part}",
            "",
            "| data | read or refused | what decides it |",
            "|---|---|---|",
        ]
        for title, case in cases.items():
            result = "refused" if case.refused else "read"
            said = f"{result}: {case.said.rstrip(' (')}" if case.said else result
            keys = case.choices | case.mend
            shown = ", ".join(f"`{key}: '{value}'`" for key, value in keys.items())
            shown = shown or "the files" * case.refused
            cells = (cell.replace("|", "\\|") for cell in (title, said, shown))
            lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """Return the page with its tables written anew."""
    before, rest = PAGE.read_text("utf-8").split(START)
    return f"{before}{START}\n\n{tables()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

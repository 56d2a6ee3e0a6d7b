"""Write the list of the library's files in docs/map.md from the first lines of their docstrings.

python tools/map.py
"""

import argparse
import ast
import sys
from pathlib import Path

from marks import with_part

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "map.md"
WINGS = (
    "files", "data", "models", "evaluate", "audit", "train", "compare", "plots", "study", "deploy",
)  # fmt: skip


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].removesuffix(".")


def list_files(library: Path) -> str:
    """Return one section per wing, from the ground up, with one row per file."""
    parts = [("settings.py", [library / "settings.py"])]
    parts += [(f"{wing}/", sorted((library / wing).glob("*.py"))) for wing in WINGS]
    text = ""
    for title, paths in parts:
        rows = [
            f"| `{path.name}` | {first_line(path)} |\n"
            for path in paths
            if path.name != "__init__.py"
        ]
        package = [first_line(path) for path in paths if path.name == "__init__.py"]
        text += f"### {title}\n\n" + "".join(f"{line}.\n\n" for line in package if line)
        text += f"| file | what it is |\n|:--|:--|\n{''.join(rows)}\n"
    return text


def with_files(page: str) -> str:
    """Return the page's text with the list between its marks replaced."""
    return with_part(page, "files", list_files(ROOT / "thyroid_lib"))


def main() -> int:
    """Run the command line."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    PAGE.write_text(with_files(PAGE.read_text("utf-8")), "utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

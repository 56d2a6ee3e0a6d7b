"""Write the library into a hidden cell of notebooks/own-data.ipynb, which then needs no other file.

    make carry    at each release: what the cell holds is the library as it is now

The cell makes a wheel of it, which the set-up cell installs if the library is missing and neither a
repository's address nor a wheel is there. The same tree gives the same bytes, on every machine.
"""

import base64
import bz2
import io
import json
import re
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "own-data.ipynb"
CELL = """\
# @title The library, packed: nothing to read here
import base64
import bz2
from pathlib import Path
from tempfile import mkdtemp

carried = Path(mkdtemp(), "{name}")
packed = "{packed}"  # noqa: E501
written = carried.write_bytes(bz2.decompress(base64.b85decode(packed)))
"""
HIDDEN = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["library"]}


def wheel(root: Path = ROOT) -> tuple[str, bytes]:
    """Return the name and content of an uncompressed wheel of the library."""
    text = (root / "thyroid_lib" / "__init__.py").read_text("utf-8")
    version = re.search(r'__version__ = "(.+)"', text)[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    about = [("Metadata-Version", "2.4"), ("Name", project["name"]), ("Version", version)]
    about += [("License-Expression", project["license"])]
    about += [("Requires-Python", project["requires-python"])]
    about += [("Requires-Dist", need) for need in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        about += [("Provides-Extra", extra)]
        about += [("Requires-Dist", f'{need}; extra == "{extra}"') for need in needs]
    paths = [path for path in (root / "thyroid_lib").rglob("*") if path.is_file()]
    names = {path.relative_to(root).as_posix(): path for path in paths}
    files = {name: names[name].read_bytes() for name in names if "__pycache__" not in name}
    folder = f"thyroid_lib-{version}.dist-info"
    files[f"{folder}/METADATA"] = "".join(f"{key}: {value}\n" for key, value in about).encode()
    files[f"{folder}/licenses/LICENSE"] = (root / "LICENSE").read_bytes()
    kind = "Wheel-Version: 1.0\nGenerator: carry\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{folder}/WHEEL"] = kind.encode()
    record = [*sorted(files), f"{folder}/RECORD"]
    files[f"{folder}/RECORD"] = "".join(f"{name},,\n" for name in record).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name in record:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, files[name])
    return f"thyroid_lib-{version}-py3-none-any.whl", content.getvalue()


def library_cell(root: Path = ROOT) -> dict:
    """Return the cell that holds the library."""
    name, content = wheel(root)
    packed = base64.b85encode(bz2.compress(content)).decode()
    source = CELL.rstrip().replace("{name}", name).replace("{packed}", packed)
    cell = {"cell_type": "code", "execution_count": None, "id": "library", "outputs": []}
    return cell | {"metadata": HIDDEN, "source": source.splitlines(keepends=True)}


def main() -> int:
    """Run the command line."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["id"] != "library"]
    cells.insert([cell["id"] for cell in cells].index("setup"), library_cell())
    text = json.dumps(notebook | {"cells": cells}, indent=1, sort_keys=True, ensure_ascii=False)
    before, after = len(NOTEBOOK.read_text("utf-8")), NOTEBOOK.write_text(text + "\n", "utf-8")
    print(f"{NOTEBOOK.relative_to(ROOT)}: {before:,} -> {after:,} letters")
    return 0


if __name__ == "__main__":
    sys.exit(main())

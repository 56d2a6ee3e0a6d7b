"""Executed notebooks without times, paths and random names: two runs give the same bytes."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import NOTE

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidy_notebook(path: Path, *, source: Path) -> str:
    """Return an executed notebook's JSON without times, paths, versions, notes and random names.

    Where the cells of `source`, the notebook before it ran, have no ids, the new ones are random.
    """
    import nbformat
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    ids = all("id" in cell for cell in json.loads(source.read_text(encoding="utf-8"))["cells"])
    nb = nbformat.read(path, as_version=4)
    nb.metadata = METADATA
    for number, cell in enumerate(nb.cells):
        if not ids:
            cell.id = f"cell-{number}"
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"
        timed = "papermill", "execution"
        cell.metadata = {k: x for k, x in cell.metadata.items() if x and k not in timed}
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                lines = output.text.splitlines(keepends=True)
                output.text = "".join(line for line in lines if not line.startswith(NOTE))
        if cell.cell_type == "code":
            empty = "", {"text/plain": ""}  # a stream, and where a progress bar was
            cell.outputs = [x for x in cell.outputs if x.get("text", x.get("data")) not in empty]
    CoalesceStreamsPreprocessor().preprocess(nb, {})  # streams arrive in pieces of any size
    return hide_places(nbformat.writes(nb) + "\n")


def hide_places(text: str) -> str:
    """Return a text, or a notebook's JSON, with this machine's folders replaced by short names.

    `project_path` resolves those of the project, the results and the home again.
    """
    names = {
        os.environ.get("THYROID_RESULTS"): "results",
        str(project_path("")): ".",
        os.path.expanduser("~"): "~",
        sys.prefix: "python",
        sys.base_prefix: "python",
        tempfile.gettempdir(): "$TMPDIR",
    }
    shown: dict[str, str] = {}
    for folder, name in names.items():
        for path in (os.path.abspath(folder), os.path.realpath(folder)) if folder else ():
            if path not in ("/", "/usr", "/usr/local", "/tmp", "/var/tmp"):  # not this machine's
                shown.setdefault(path, name)
                shown.setdefault(json.dumps(path)[1:-1], name)
    places = "|".join(map(re.escape, sorted(shown, key=len, reverse=True)))
    # not where the name goes on (`…/ab`, `…/a-b`, `…/a.b` for `…/a`); a full stop may follow
    # `/a` is no part of `/mnt/a`, but it may follow a line break (`\n`) or a colour (`m`)
    before = r"(?:(?<![\w.~-])|(?<=\\n)|(?<=\\t)|(?<=\\r)|(?<=\dm))"
    part = re.compile(rf"{before}(?:{places})(?![\w-]|\.\w)")
    return part.sub(lambda hit: shown[hit[0]], text)

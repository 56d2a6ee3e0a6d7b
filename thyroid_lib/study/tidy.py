"""Executed notebooks without times, paths and random names: two runs give the same bytes."""

import json
import os
import re
import sys
import tempfile
from pathlib import Path

from thyroid_lib.files.writing import NOTE, no_grammars, project_path


def read_notes(running: Path) -> list[str]:
    """Return what the cells of a notebook printed by `thyroid_lib.files.writing.print_note`."""
    try:
        cells = json.loads(running.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError):
        return []
    streams = [o for cell in cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    lines = "".join(line for stream in streams for line in stream["text"]).splitlines()
    return [line.removeprefix(NOTE) for line in lines if line.startswith(NOTE)]


def tidy_notebook(path: Path, *, source: Path) -> str:
    """Return an executed notebook's JSON without times, paths, versions and random names.

    Two runs that compute the same give the same bytes. Outputs stay as they are, except that the
    pieces in which a stream happened to arrive are joined.

    Args:
        source: the notebook as it was before; where its cells have no ids, the executed ones are
            random and are replaced.
    """
    with no_grammars():
        import nbformat

    ids = all("id" in cell for cell in json.loads(source.read_text(encoding="utf-8"))["cells"])
    nb = nbformat.read(path, as_version=4)
    nb.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags")
        for key in ("papermill", "execution", *(() if tags else ("tags",))):
            cell.metadata.pop(key, None)
        if not ids:
            cell.id = f"cell-{number}"
        if tags and "injected-parameters" in tags:
            cell.id = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    text = nbformat.writes(nb) + "\n"
    shown = json.dumps([cell.get("outputs") for cell in nb.cells])  # not the user's own parameters
    for folder in {str(project_path("")).rstrip("/"), os.path.expanduser("~")} - {"", "/"}:
        if re.search(re.escape(folder) + r"(?![\w -])", shown):
            print(f"warning: {path.name} shows a path of this machine: {folder}", file=sys.stderr)
    return hide_places(text)


def hide_places(text: str) -> str:
    """Return a text, or a notebook's JSON, with this machine's folders replaced.

    The project becomes `.`, the folder of results `results` and the home `~`, which `project_path`
    resolves again; Python's folder becomes `python`, that of temporary files `$TMPDIR`.
    """
    names = {
        os.environ.get("THYROID_RESULTS", ""): "results",
        str(project_path("")): ".",
        os.path.expanduser("~"): "~",
        sys.prefix: "python",
        sys.base_prefix: "python",
        tempfile.gettempdir(): "$TMPDIR",
    }
    shown = {}
    for folder, name in names.items():
        for path in {os.path.abspath(folder), os.path.realpath(folder)} if folder else ():
            if path not in (
                "/",
                "/usr",
                "/usr/local",
                "/tmp",
                "/var/tmp",
            ):  # the same on every machine
                for form in (path, *(json.dumps(path, ensure_ascii=x)[1:-1] for x in (0, 1))):
                    shown.setdefault(form, name)
    longest = sorted(shown, key=len, reverse=True)
    places = "|".join(map(re.escape, longest))
    # not where the name goes on (`…/ab`, `…/a-b`, `…/a.b` for `…/a`); a full stop may follow
    # `/a` is no part of `/mnt/a`, but it may follow a line break (`\n`) or a colour (`m`)
    before = r"(?:(?<![\w.~-])|(?<=\\n)|(?<=\\t)|(?<=\\r)|(?<=\dm))"
    part = re.compile(rf"{before}(?:{places})(?![\w-]|\.\w)")
    return part.sub(lambda hit: shown[hit[0]], text) if shown else text


def _join_streams(outputs: list) -> list:
    """Join the pieces of a stream, and leave out notes, which are for the terminal."""
    joined = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            lines = output.text.splitlines(keepends=True)
            output.text = "".join(line for line in lines if not line.startswith(NOTE))
            if not output.text:
                continue
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and last.name == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined

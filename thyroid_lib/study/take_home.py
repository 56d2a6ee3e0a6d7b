"""The results of a notebook as one zip, offered for download on Colab, on Kaggle and elsewhere."""

import json
import os
import sys
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LEFT_OUT = ("store", "phantom")  # folders: frames, which their owner has
PARTLY = (".partial", ".zip", "checkpoint.pt", "checkpoint-previous.pt")


def pack(folder: str | Path, runs: Iterable[str]) -> Path:
    """Write <folder>/<name>.zip: tables, figures, weights and, where it can be had, the notebook.

    The store, drawn frames and runs/ other than these, of earlier settings, are left out. The zip
    is whole or not there.
    """
    folder = Path(folder)
    out, partial = folder / f"{folder.name}.zip", folder / f"{folder.name}.{os.getpid()}.partial"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    try:
        with zipfile.ZipFile(partial, "w") as packed:
            for path in files:
                inside = path.relative_to(folder)
                old = inside.parts[0] == "runs" and inside.parts[1] not in runs
                if inside.parts[0] not in LEFT_OUT and not old and not path.name.endswith(PARTLY):
                    small = path.suffix in (".csv", ".json", ".md")  # the rest is dense
                    packed.write(path, inside, zipfile.ZIP_DEFLATED if small else None)
            if notebook := executed_notebook():
                packed.writestr("notebook.ipynb", notebook)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def executed_notebook() -> str:
    """Return this kernel's notebook with its outputs, as JSON; "" where it cannot be had.

    Colab hands out what its page shows; Jupyter and VS Code have what was saved last.
    """
    with suppress(Exception):  # Colab's page may be closed
        from google.colab import _message

        answer = _message.blocking_request("get_ipynb", timeout_sec=20)
        return json.dumps(answer["ipynb"], ensure_ascii=False)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    saved = shell.user_ns.get("__vsc_ipynb_file__", "") if shell else ""
    with suppress(OSError):
        return Path(saved or os.environ.get("JPY_SESSION_NAME", "")).read_text("utf-8")
    return ""


def offer(path: Path) -> object:
    """Let the browser download a file on Colab; return a link to it for a cell to show."""
    with suppress(Exception):  # not on Colab, or its page is closed
        from google.colab import files

        files.download(str(path))
    from IPython.display import FileLink

    return FileLink(os.path.relpath(path))

"""Thin library under the notebooks of the thyroid ultrasound segmentation study.

Importing it costs nothing: heavy packages load with the module that needs them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__version__ = "0.1.0"


def place(path: str | Path) -> Path:
    """Turn a path of the parameters into an absolute one, wherever the kernel was started.

    A relative path hangs off the project's root: `THYROID_ROOT` if set, else the checkout that this
    file belongs to, else (installed from a wheel) the working folder. A path below `results/` moves
    to `THYROID_RESULTS` if that is set, which is how nbval keeps off the committed results.
    """
    path = Path(path).expanduser()
    moved = os.environ.get("THYROID_RESULTS")
    if path.is_absolute():
        return path
    if moved and path.parts and path.parts[0] == "results":
        return Path(moved).absolute().joinpath(*path.parts[1:])
    checkout = Path(__file__).resolve().parent.parent
    root = os.environ.get("THYROID_ROOT") or (
        checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    )
    return Path(root).absolute() / path


def write_file(path: str | Path, content: bytes | str) -> Path:
    """Write a whole file or nothing: beside it first, on to the disk, then moved into its place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


@contextmanager
def no_grammars() -> Iterator[None]:
    """Import nbformat here: its schema checker would compile 38 grammars of addresses.

    That takes a second, for formats that no notebook has; where the package of grammars is not
    installed, the checker does without.
    """
    known = sys.modules.get("rfc3987_syntax")
    sys.modules["rfc3987_syntax"] = known
    try:
        yield
    finally:
        if known is None:
            del sys.modules["rfc3987_syntax"]


def write_table(path: str | Path, table, *, digits: int = 6, **how) -> Path:
    """Write a DataFrame as CSV, whole or not at all; fewer digits where machines differ.

    Args:
        how: further arguments of `DataFrame.to_csv`; the index is left out by default.
    """
    how = {"index": False, "float_format": f"%.{digits}f", "lineterminator": "\n"} | how
    return write_file(path, table.to_csv(**how))

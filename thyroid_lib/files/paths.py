"""Paths of the project: from a study's parameters to this machine, and back; JSON files at them."""

import json
import os
from pathlib import Path


def project_path(path: str | Path) -> Path:
    """Turn a path of the parameters into an absolute one, wherever the process was started.

    A relative path starts at the project's root: `THYROID_ROOT` if set, else the checkout that this
    file belongs to, else (installed from a wheel) the working folder. A path below `results/` moves
    to `THYROID_RESULTS` if that is set.
    """
    path = Path(os.path.expanduser(path))  # unlike Path's, it keeps the name of an unknown user
    results = os.environ.get("THYROID_RESULTS")
    if path.is_absolute():
        return path
    if results and path.parts and path.parts[0] == "results":
        return Path(results).absolute().joinpath(*path.parts[1:])
    checkout = Path(__file__).resolve().parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("THYROID_ROOT") or root).absolute() / path


def read_json(path: Path) -> dict:
    """Read a mapping that the project wrote. ValueError: damaged. OSError: it cannot be read."""
    try:
        if isinstance(content := json.loads(path.read_text("utf-8")), dict):
            return content
        reason = f"holds {type(content).__name__}"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{path} is damaged ({reason}): copy it again, or make it again")


def portable_path(path: str) -> str:
    """Return a path of the results, project or home as another machine would write it.

    It is the inverse of `project_path`; other texts, names of data sets among them, stay.
    """
    for name, folder in (("results", "results"), ("", ""), ("~", "~")):
        below = project_path(folder)
        if os.path.isabs(path) and Path(path).is_relative_to(below):
            portable = str(Path(name, Path(path).relative_to(below)))
            if project_path(portable) == Path(path):
                return portable
    return path

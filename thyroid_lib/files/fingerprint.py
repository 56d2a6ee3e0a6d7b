"""SHA-256 fingerprints of files, of Python code, and of all library code that a notebook uses."""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).parents[1]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_fingerprint(path: Path) -> str:
    """Return a SHA-256 over a file of Python code without comments, docstrings and layout."""
    source = path.read_text("utf-8-sig")
    return hashlib.sha256(f"{path.stem} {_outline(ast.parse(source))}\n".encode()).hexdigest()


def _outline(node) -> str:
    """Write a syntax tree down without docstrings; ast.dump differs between Python versions."""
    if isinstance(node, list):
        return f"[{','.join(map(_outline, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = fields["body"][1:]
    kept = [f"{k}={_outline(v)}" for k, v in fields.items() if v is not None and v != []]
    return f"{type(node).__name__}({','.join(kept)})"


def code_digests(*paths: Path) -> list[str]:
    """Return "folder/name digest" of notebooks and modules, and of all library files they import.

    Digests are of bytes, so that every edit counts. The cells tagged `setup`, which only prepare
    the platform, are left out of a notebook's imports.
    """
    found, waiting = {}, list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = f"{path.parent.name}/{path.name} {file_digest(path)[:16]}"
            waiting += _imported_files(path)
    return sorted(found.values())


@cache
def _imported_files(path: Path) -> list[Path]:
    """Return the library files that a module or notebook imports itself."""
    try:
        source = path.read_text("utf-8-sig")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
            cells = [cell for cell in cells if "setup" not in cell["metadata"].get("tags", [])]
            source = "\n".join("".join(cell["source"]) for cell in cells)
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, KeyError):
        return []  # the step itself reports it
    files = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            files |= _files_of(node.module or "", [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            files |= {file for alias in node.names for file in _files_of(alias.name, [])}
    return sorted(files)


def _files_of(module: str, names: list[str]) -> set[Path]:
    """Return the library files of one import; a wing's own name may come from any of its files."""
    package, *parts = module.split(".")
    if package != "thyroid_lib" or parts in ([], ["settings"]):
        return set()  # a setting that matters is among the step's parameters
    path = LIBRARY.joinpath(*parts)
    if not path.is_dir():
        return {path.with_suffix(".py")} if path.with_suffix(".py").is_file() else set()
    modules = {path / f"{name}.py" for name in names}
    return modules if all(map(Path.is_file, modules)) else set(path.glob("*.py"))

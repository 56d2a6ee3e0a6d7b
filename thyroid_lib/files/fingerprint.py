"""SHA-256 fingerprints: of a file's bytes, and of what a file of Python code does."""

import ast
import hashlib
from pathlib import Path


def code_fingerprint(path: Path) -> str:
    """Return a SHA-256 over what a file of Python code does.

    Comments, docstrings and layout do not count; every other change does. The same on every
    version of Python that parses the source alike.
    """
    source = path.read_text("utf-8-sig")
    return hashlib.sha256(f"{path.stem} {_outline(ast.parse(source))}\n".encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

"""What code does, and what a file holds, as a number: so that a store or a training is redone when,
and only when, its own code has changed, and a damaged file is found out.
"""

import ast
import hashlib
import importlib.util
from pathlib import Path
from types import ModuleType


def code_fingerprint(*modules: ModuleType | str | Path) -> str:
    """Return a SHA-256 over what the modules' code does.

    Comments, docstrings and layout do not count; every other change does. The same on every
    version of Python that parses the source alike.

    Args:
        modules: modules, their full names, or the paths of files of code.
    """
    digest = hashlib.sha256()
    for module in modules:
        if isinstance(module, Path):
            name, path = module.stem, module
        else:
            name = module if isinstance(module, str) else module.__name__
            path = Path(importlib.util.find_spec(name).origin)
        source = path.read_text("utf-8-sig")
        digest.update(f"{name} {_outline(ast.parse(source))}\n".encode())
    return digest.hexdigest()


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

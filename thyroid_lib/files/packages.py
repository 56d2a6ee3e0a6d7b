"""Packages that only some parts need: where one is missing, a sentence says what to install."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


def missing_packages(*names: str) -> str:
    """Say which of these packages are not installed and how to get them; "" if all are there."""
    missing = [name for name in names if not find_spec(name)]
    advice = f"not installed: `pip install {' '.join(missing)}`"
    return f"{', '.join(missing)} {advice}" if missing else ""


@contextmanager
def packages(*names: str, module: str = "") -> Iterator[None]:
    """Stand around imports of packages that may be missing; ImportError: one is.

    In a module that runs as a command (`module` is "__main__") it is printed, with exit code 2.
    """
    if problem := missing_packages(*names):
        if module != "__main__":
            raise ImportError(problem)
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    yield

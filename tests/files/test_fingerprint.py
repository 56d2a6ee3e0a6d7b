"""Fingerprints change with what the code does, and cover all code that a notebook imports."""

import json
from pathlib import Path

import pytest

from thyroid_lib.files.fingerprint import code_digests, code_fingerprint

ROOT = Path(__file__).parents[2]

SOURCE = '''
"""What it is."""
def area(mask, spacing=None):
    """Count."""
    # a comment
    return mask.sum() * 2 + f"{spacing!r:>3}".count("x")
class Empty:
    """Nothing but words."""
'''
CHANGES = [
    ("What it is", "What it was", True),
    ("Count.", "Count the pixels.", True),
    ("    # a comment\n", "", True),
    ("mask.sum() * 2 +", "(mask.sum()*2) +", True),
    ('    """Nothing but words."""', "    pass", False),
    ("* 2", "* 3", False),
    ("* 2", "* 2.0", False),
    ("* 2 +", "* 2 -", False),
    ("spacing=None", "spacing=False", False),
    ("!r:>3", "!r:>4", False),
    ('"x"', '"y"', False),
    ("mask.sum()", "mask.max()", False),
]
IMPORTS = [
    ("from thyroid_lib.files import locks", {"files/locks.py", "files/writing.py"}),
    ("def later():\n    from thyroid_lib.files.paths import project_path", {"files/paths.py"}),
    ("import thyroid_lib.files.paths", {"files/paths.py"}),
    ("from thyroid_lib.models import build_model", {"models/registry.py", "models/segnet.py"}),
    ("from thyroid_lib.settings import read_study\nimport thyroid_libs.x, json", set()),
    ("import thyroid_lib.audit as", set()),  # the step itself reports it
]


def test_code_counts_and_words_do_not(tmp_path):
    path = tmp_path / "network.py"
    path.write_text(SOURCE)
    before = code_fingerprint(path)
    for old, new, same in CHANGES:
        assert old in SOURCE
        path.write_text(SOURCE.replace(old, new))
        assert (code_fingerprint(path) == before) == same, (old, new)


def names(*paths: Path) -> list[str]:
    return [line.split()[0] for line in code_digests(*paths)]


@pytest.mark.parametrize(("source", "found"), IMPORTS)
def test_imports_are_followed_to_the_files(tmp_path, source, found):
    notebook = tmp_path / "notebooks" / "n.ipynb"
    notebook.parent.mkdir()
    cell = {"cell_type": "code", "metadata": {}, "source": source.splitlines(True)}
    setup = cell | {"metadata": {"tags": ["setup"]}, "source": "import thyroid_lib.audit"}
    notebook.write_text(json.dumps({"cells": [setup, cell]}))
    assert {"notebooks/n.ipynb"} | found <= set(names(notebook))
    assert found or names(notebook) == ["notebooks/n.ipynb"]
    assert not any(name.startswith(("audit/", "plots/")) for name in names(notebook))


def test_steps_depend_on_what_they_use_and_no_more():
    preprocess, train, compare = (
        set(names(next(ROOT.glob(f"notebooks/{number}-*.ipynb")))) for number in (1, 3, 4)
    )
    networks = {f"models/{name}.py" for name in ("unet", "segnet", "resunet", "reported")}
    assert networks | {"train/recipe.py", "evaluate/metrics.py", "data/store.py"} <= train
    assert {"data/tg3k.py", "data/frames.py"} <= preprocess
    assert {"compare/selection.py", "plots/compare.py"} <= compare
    assert not {"models/unet.py", "train/recipe.py", "plots/compare.py"} & preprocess
    assert not {"compare/selection.py", "plots/compare.py", "study/runner.py"} & train

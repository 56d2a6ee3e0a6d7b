"""The notebooks' own rules: short, told in words, without numbers that could go stale."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = [*sorted((ROOT / "notebooks").glob("*.ipynb")), ROOT / "tools" / "kernel.ipynb"]
YEAR = re.compile(r"\b(19|20)\d\d\b")
NAME = re.compile(r"\b(?=\w*[A-Za-z])\w*\d[\w-]*|\b[A-Za-z][\w]*-\d\w*")  # TG3K, HD95, ResNet-34
CODE = re.compile(r"```.*?```|`[^`]*`", re.S)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    notebook = nbformat.read(request.param, as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


def lines_of(cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def prose_of(cells) -> list[str]:
    return [CODE.sub(" ", cell.source) for cell in cells if cell.cell_type == "markdown"]


def code_of(cells, *tags: str) -> list:
    """The code cells with one of these tags; without arguments, those that have neither."""
    code = [cell for cell in cells if cell.cell_type == "code"]
    of = [(cell, {"setup", "parameters"} & set(cell.metadata.get("tags", []))) for cell in code]
    return [cell for cell, has in of if (has & set(tags) if tags else not has)]


def test_cells_are_few_short_and_plain(cells):
    assert len(cells) <= 24
    # the setup is the same everywhere, and a parameter more is no more to understand
    assert statistics.median(map(lines_of, code_of(cells))) <= 6
    assert max(map(lines_of, code_of(cells))) <= 22  # own-data's imports
    assert all(lines_of(cell) <= 8 for cell in code_of(cells, "setup"))
    for cell in code_of(cells) + code_of(cells, "parameters"):  # the setup has pip's magic
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef}, cell.source


def test_prose_holds_no_numbers(cells):
    for prose in prose_of(cells):
        lines = [line for line in prose.splitlines() if not line.startswith("#")]
        bare = NAME.sub("", YEAR.sub("", "\n".join(lines)))
        assert not re.search(r"\d", bare), bare


def test_every_figure_and_table_answers_a_question(cells):
    firsts = [cell.source.splitlines()[0] for cell in cells if cell.cell_type == "markdown"]
    questions = [first for first in firsts if first.startswith("## ")]
    assert len(questions) >= 4
    assert all(question.endswith("?") for question in questions)


def test_they_are_stripped_and_have_one_parameters_cell(cells):
    tagged = code_of(cells, "parameters", "setup")
    assert [cell.id for cell in tagged] in (["parameters"], ["parameters", "setup"])
    assert not any(cell.outputs or cell.execution_count for cell in code_of(cells) + tagged)

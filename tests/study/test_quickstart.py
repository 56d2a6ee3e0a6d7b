"""The quickstart, run as a newcomer runs it: anywhere, without a checkout, to the end, in words."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

pytestmark = pytest.mark.study

ROOT = Path(__file__).parents[2]
FIGURES = ("sweep", "alikeness", "curves", "frames_held_back", "sweeps_held_back", "exams")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    """Run it in an empty folder, with the library as a package: no pyproject.toml beside it."""
    top = tmp_path_factory.mktemp("quickstart")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "thyroid_lib", top / "site" / "thyroid_lib", ignore=ignored)
    shutil.copy2(ROOT / "notebooks" / "0-quickstart.ipynb", top / "mine.ipynb")
    clean = {k: v for k, v in os.environ.items() if k not in ("THYROID_RESULTS", "THYROID_ROOT")}
    command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", "mine.ipynb"]
    done = subprocess.run(
        [*command, "0-quickstart.ipynb", "--pin-instructions"], cwd=top, capture_output=True,
        env=clean | {"PYTHONPATH": str(top / "site")}, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return top


@pytest.fixture(scope="module")
def outputs(quickstart) -> dict[str, list]:
    """What each cell showed: the MIME types with their contents."""
    cells = nbformat.read(quickstart / "0-quickstart.ipynb", as_version=4).cells
    return {cell.id: [o.get("data", o) for o in cell.get("outputs", [])] for cell in cells}


def readings(outputs) -> list[str]:
    shown = [data for cell in outputs.values() for data in cell]
    return [data["text/markdown"] for data in shown if "text/markdown" in data]


def test_it_leaves_all_it_shows_below_the_working_folder(quickstart):
    made = quickstart / "results" / "quickstart"
    for name in FIGURES:
        assert (made / f"{name}.png").stat().st_size > 5_000, name
    assert len(list(quickstart.iterdir())) == 4  # with site/ and two notebooks
    assert not list(made.rglob("checkpoint*"))


def test_each_figure_has_its_reading_below(outputs):
    shown = [data for cell in outputs.values() for data in cell]
    figures = [place for place, data in enumerate(shown) if "image/png" in data]
    assert len(figures) == len(FIGURES)
    assert all("text/markdown" in shown[place + 1] for place in figures)
    assert not any("name" in data for data in shown), "a stream"


def test_readings_and_table_are_of_this_run(quickstart, outputs):
    table = pd.read_csv(quickstart / "results" / "quickstart" / "exams.csv")
    (shown,) = [data["text/html"] for data in outputs["table"]]
    said = readings(outputs)[-1]
    assert len(table) == 4
    assert all(f"{dice:.3f}" in shown and f"{dice:.3f}" in said for dice in table["dice"])
    exams = table.pivot(index="model", columns="exam", values="dice")
    gap = exams["frames held back"] - exams["sweeps held back"]
    assert f"The exam moves Dice by {gap.abs().mean():.3f}" in said
    # the story: every network knows people whom it has seen far better, and hardly differs itself
    assert (gap > 0.1).all()
    between_models = (exams.max() - exams.min()).mean()
    assert gap.mean() > 2 * between_models
    copies = re.search(r"within a sweep, (\d+) % .* between sweeps, (\d+) %", readings(outputs)[1])
    assert tuple(map(int, copies.groups())) == (100, 0)

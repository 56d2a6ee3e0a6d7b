"""The notebooks on imitations of Colab and Kaggle: from a wheel alone, in the platform's Python."""

import json
import os
import subprocess
import sys

import pytest
from imitated import COLAB, KAGGLE, ROOT, Session, find_python, make_wheel, printed

pytestmark = pytest.mark.study
NOTEBOOKS = {path.stem[0]: path for path in sorted((ROOT / "notebooks").glob("[0-9]-*.ipynb"))}
SMALL = {"width": 4, "epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    return make_wheel(tmp_path_factory.mktemp("wheel"))


def begin(platform, folder, wheel) -> Session:
    python = find_python(platform.python)
    if not python:
        pytest.skip(f"no Python {platform.python} here, which {platform.name} has")
    try:
        session = Session(platform, folder, python)
    except OSError as error:
        pytest.skip(f"{platform.name}'s packages cannot be installed here: {str(error)[-200:]}")
    (folder / "root" / platform.upload / wheel.name).write_bytes(wheel.read_bytes())
    return session


@pytest.mark.parametrize(
    "platform", [COLAB, pytest.param(KAGGLE, marks=pytest.mark.slow)], ids=lambda each: each.name
)
def test_the_notebooks_run_from_a_wheel_alone(platform, tmp_path, wheel):
    """One after the other, with their defaults except for the size of the training."""
    session = begin(platform, tmp_path, wheel)
    assert platform.note in printed(session.run(NOTEBOOKS["1"]))
    session.run(NOTEBOOKS["2"])
    session.run(NOTEBOOKS["3"], SMALL)
    compared = session.run(NOTEBOOKS["4"], {"resamples": 200})
    assert "image/png" in json.dumps(compared)
    assert "unet" in (session.cwd / "results/alone/compare/model_card.md").read_text("utf-8")
    assert session.given <= session.packages()  # no package was changed
    assert str(session.top / "env") in session.pip("show", "thyroid-lib")  # not from a checkout


@pytest.mark.slow
@pytest.mark.parametrize("platform", [COLAB, KAGGLE], ids=lambda each: each.name)
def test_the_quickstart_runs_there_as_well(platform, tmp_path, wheel):
    begin(platform, tmp_path, wheel).run(NOTEBOOKS["0"])


def test_without_a_wheel_the_set_up_cell_says_what_to_do(tmp_path):
    cells = json.loads(NOTEBOOKS["1"].read_text("utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["id"] == "setup")
    code = code.replace('find_spec("thyroid_lib")', 'find_spec("not_there")')
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code]
    how = {"cwd": tmp_path, "env": os.environ | {"IPYTHONDIR": str(tmp_path)}}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert "upload a wheel (make wheel) here" in done.stdout + done.stderr

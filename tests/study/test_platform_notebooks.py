"""The notebooks on imitations of Colab and Kaggle: from a wheel, or alone, in their Python."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_pair, save_pairs
from imitated import COLAB, KAGGLE, ROOT, Session, find_python, make_wheel, printed

import carry

pytestmark = pytest.mark.study
NOTEBOOKS = {path.stem[0]: path for path in sorted((ROOT / "notebooks").glob("[0-9]-*.ipynb"))}
SMALL = {"width": 4, "epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    return make_wheel(tmp_path_factory.mktemp("wheel"))


def begin(platform, folder, wheel=None) -> Session:
    python = find_python(platform.python)
    if not python:
        pytest.skip(f"no Python {platform.python} here, which {platform.name} has")
    try:
        session = Session(platform, folder, python)
    except OSError as error:
        pytest.skip(f"{platform.name}'s packages cannot be installed here: {str(error)[-200:]}")
    if wheel:
        shutil.copy2(wheel, folder / "root" / platform.upload)
    return session


BOTH = pytest.mark.parametrize(
    "platform", [COLAB, pytest.param(KAGGLE, marks=pytest.mark.slow)], ids=lambda each: each.name
)


@BOTH
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


OWN = ROOT / "notebooks" / "own-data.ipynb"
FEW = SMALL | {"run_folds": [0], "folds": 2, "resamples": 200}


@BOTH
def test_own_data_to_the_table_from_a_lone_notebook(platform, tmp_path):
    """Nothing lies beside it; phantoms first, then a folder of 0/1 masks with its patients."""
    session = begin(platform, tmp_path)
    first = printed(session.run(OWN, FEW))
    assert platform.note in first
    assert "precision auto means" in first
    results, mine, rng = (
        session.cwd / "results" / "own",
        session.cwd / "mine",
        np.random.default_rng(0),
    )
    phantoms = pd.read_csv(results / "phantom" / "store" / "index.csv")
    pairs, names = [ellipse_pair(rng, 40, 48) for _ in range(12)], [f"a{i:02}" for i in range(12)]
    images, masks = zip(*pairs, strict=True)
    save_pairs(mine, images, [mask.astype(np.uint8) for mask in masks], names)
    lines = (f"{name},p{i // 3}\n" for i, name in enumerate(names))
    (mine / "groups.csv").write_text("case_id,group\n" + "".join(lines), "utf-8")
    executed = session.run(OWN, FEW | {"data": "mine"})
    assert "gland is 1" in printed(executed)
    index = pd.read_csv(results / "mine" / "store" / "index.csv")
    assert (list(index["case_id"]), sorted(set(index["group"]))) == (
        names,
        ["p0", "p1", "p2", "p3"],
    )
    assert len(phantoms) == 96
    table = pd.read_csv(results / "mine" / "compare" / "summary.csv")
    assert set(table["model"]) == {"unet", "segnet", "resunet"}
    assert set(table["protocol"]) == {"grouped", "random"}
    with zipfile.ZipFile(results / "mine" / "mine.zip") as packed:
        held = set(packed.namelist())
    assert {"compare/summary.md", "estimates.png", "frames.pdf", "look.png"} <= held
    assert "runs/unet-grouped-fold0-seed0/model.pt" in held
    assert not any(name.startswith("store") for name in held)
    trained = (results / "mine" / "runs").glob("*/model.pt")
    before = {path: path.read_bytes() for path in trained}
    session.run(OWN, FEW | {"data": "mine"})  # "Run all" once more
    assert {path: path.read_bytes() for path in before} == before
    abouts = (results / "mine" / "runs").glob("*/run.json")
    assert {json.loads(path.read_text("utf-8"))["trained_epochs"] for path in abouts} == {0}
    with pytest.raises(
        OSError, match=r"no folder at .*nowhere: give one that holds images and mas"
    ):
        session.run(OWN, FEW | {"data": "nowhere"})
    assert session.given <= session.packages()  # no package was changed
    newer = shutil.copytree(ROOT / "thyroid_lib", tmp_path / "newer" / "thyroid_lib").parent
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, newer)
    (newer / "thyroid_lib" / "__init__.py").write_text('__version__ = "99.0"\n', "utf-8")
    name, content = carry.wheel(newer)
    (tmp_path / "root" / platform.upload / name).write_bytes(content)
    assert f"{name} replaces the installed" in printed(session.run(NOTEBOOKS["1"]))
    assert "Version: 99.0" in session.pip("show", "thyroid-lib")


NEWER = """
import sys
from importlib import metadata
from thyroid_lib.study import platforms
carried, platforms.__file__ = sys.argv[1], "/no/checkout/a.py"
metadata.version = lambda name: "9.1"
platforms.subprocess.run = lambda command, **_: print(command[-1].name)
print(platforms.take_newer_wheel(), "thyroid_lib.study" in sys.modules)
"""


@pytest.mark.parametrize(
    ("wheel", "carried", "taken"),
    [
        ("thyroid_lib-10.0-py3.whl", "thyroid_lib-9.2-py3.whl", "thyroid_lib-10.0-py3.whl"),
        ("drive/MyDrive/thyroid_lib-9.0-py3.whl", "thyroid_lib-9.2-py3", "thyroid_lib-9.2-py3"),
        ("../input/code/thyroid_lib-9.1-py3.whl", "thyroid_lib-9.1-py3.whl", ""),
        ("thyroid_lib-9.0-py3.whl", "", ""),
    ],
)
def test_the_newest_wheel_replaces_an_older_library(tmp_path, wheel, carried, taken):
    (here := tmp_path / "working").mkdir()
    (here / wheel).parent.mkdir(parents=True, exist_ok=True)
    (here / wheel).touch()
    command = [sys.executable, "-c", NEWER, carried]
    how = {"cwd": here, "capture_output": True, "text": True}
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **how)
    said = f"{taken}\nTrue False\n" if taken else "False True\n"
    assert done.stdout == said, done.stderr


def test_the_library_that_it_carries_is_this_release_and_the_same_bytes_each_time(tmp_path):
    def of(cell) -> str:
        return "".join(cell["source"])

    cells = json.loads(OWN.read_text("utf-8"))["cells"]
    (carried,) = [of(cell) for cell in cells if cell["id"] == "library"]
    space: dict = {}
    exec(carried, space)  # noqa: S102
    name, content = carry.wheel()
    assert space["carried"].name == name  # its version; otherwise: make carry
    assert zipfile.ZipFile(space["carried"]).testzip() is None
    for part in ("thyroid_lib", "pyproject.toml", "LICENSE"):  # other times and places
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copyfile
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "thyroid_lib" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "thyroid_lib" / "__pycache__" / "more.pyc").touch()
    assert carry.wheel(tmp_path) == (name, content)
    assert of(carry.library_cell(tmp_path)) == of(carry.library_cell())


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
    assert "upload a wheel (make wheel), or run own-data.ipynb first" in done.stdout + done.stderr

"""Notebooks and packages on imitations of Colab and Kaggle: from a wheel, or alone."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_pair, save_pairs
from imitated import COLAB, KAGGLE, ROOT, Session, find_python, make_wheel, printed
from packaging.utils import canonicalize_name

import carry
from thyroid_lib.files.writing import write_file

pytestmark = pytest.mark.study
NOTEBOOKS = {path.stem[0]: path for path in sorted((ROOT / "notebooks").glob("[0-9]-*.ipynb"))}
SMALL = {"width": 4, "epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu"}
OWN = ROOT / "notebooks" / "own-data.ipynb"
FEW = SMALL | {"run_folds": [0], "folds": 2, "resamples": 200}
BOTH = [COLAB, pytest.param(KAGGLE, marks=pytest.mark.slow)]
# Kaggle is said to move to 3.13, for which NumPy 2.0 has no release.
NEWER_NUMPY = KAGGLE.packages.replace("numpy==2.0.2", "numpy==2.1.3")
NEXT = replace(KAGGLE, python="3.13", packages=NEWER_NUMPY)
EXTRAS = "app,deploy,dicom,download,hdf5,tensorboard"
WHEELS = [
    ("thyroid_lib-10.0-py3.whl", "thyroid_lib-9.2-py3.whl", "thyroid_lib-10.0-py3.whl"),
    ("drive/MyDrive/thyroid_lib-9.0-py3.whl", "thyroid_lib-9.2-py3", "thyroid_lib-9.2-py3"),
    ("../input/code/thyroid_lib-9.1-py3.whl", "thyroid_lib-9.1-py3.whl", ""),
    ("thyroid_lib-9.0-py3.whl", "", ""),
]
NEWER = """
import sys
from importlib import metadata
from thyroid_lib.study import platforms
carried, platforms.__file__ = sys.argv[1], "/no/checkout/a.py"
metadata.version = lambda name: "9.1"
platforms.subprocess.run = lambda command, **_: print(command[-1].name)
print(platforms.take_newer_wheel(), "thyroid_lib.study" in sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module", params=BOTH, ids=lambda each: each.name)
def platform(request, tmp_path_factory) -> Session:
    folder = tmp_path_factory.mktemp(request.param.name)
    try:
        return Session(request.param, folder, find_python(request.param))
    except OSError as error:
        name, reason = request.param.name, str(error)[-200:]
        pytest.skip(f"{name}'s packages cannot be installed here: {reason}")


@pytest.fixture
def session(platform) -> Session:
    """A session without the library and without a user's files."""
    platform.pip("uninstall", "-q", "-y", "thyroid-lib")
    for folder in (platform.cwd, platform.uploads):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    return platform


@pytest.mark.slow
def test_the_notebooks_run_from_a_wheel_alone(session, wheel):
    """One after the other, with their defaults except for the size of the training."""
    shutil.copy2(wheel, session.uploads)
    assert session.platform.note in printed(session.run(NOTEBOOKS["1"]))
    session.run(NOTEBOOKS["2"])
    session.run(NOTEBOOKS["3"], SMALL)
    compared = session.run(NOTEBOOKS["4"], {"resamples": 200})
    assert "image/png" in json.dumps(compared)
    assert "unet" in (session.cwd / "results/alone/compare/model_card.md").read_text("utf-8")
    assert session.given <= session.packages()  # no package was changed
    assert str(session.top / "env") in session.pip("show", "thyroid-lib")  # not from a checkout


def test_own_data_to_the_table_from_a_lone_notebook(session, tmp_path):
    """Nothing lies beside it; phantoms first, then a folder of 0/1 masks with its patients."""
    first = printed(session.run(OWN, FEW))
    assert session.platform.note in first
    assert "precision auto means" in first
    results, mine = session.cwd / "results" / "own", session.cwd / "mine"
    assert len(pd.read_csv(results / "phantom" / "store" / "index.csv")) == 96
    rng = np.random.default_rng(0)
    pairs, names = [ellipse_pair(rng, 40, 48) for _ in range(12)], [f"a{i:02}" for i in range(12)]
    images, masks = zip(*pairs, strict=True)
    save_pairs(mine, images, [mask.astype(np.uint8) for mask in masks], names)
    lines = (f"{name},p{i // 3}\n" for i, name in enumerate(names))
    (mine / "groups.csv").write_text("case_id,group\n" + "".join(lines), "utf-8")
    executed = session.run(OWN, FEW | {"data": "mine"})
    assert "gland is 1" in printed(executed)
    index = pd.read_csv(results / "mine" / "store" / "index.csv")
    assert index["case_id"].tolist() == names
    assert set(index["group"]) == {"p0", "p1", "p2", "p3"}
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
    with pytest.raises(OSError, match=r"no folder at .*nowhere: give one that holds images"):
        session.run(OWN, FEW | {"data": "nowhere"})
    assert session.given <= session.packages()  # no package was changed
    newer = shutil.copytree(ROOT / "thyroid_lib", tmp_path / "newer" / "thyroid_lib").parent
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, newer)
    (newer / "thyroid_lib" / "__init__.py").write_text('__version__ = "99.0"\n', "utf-8")
    name, content = carry.wheel(newer)
    (session.uploads / name).write_bytes(content)
    assert f"{name} replaces the installed" in printed(session.run(NOTEBOOKS["1"]))
    assert "Version: 99.0" in session.pip("show", "thyroid-lib")


@pytest.mark.parametrize(("wheel", "carried", "taken"), WHEELS)
def test_the_newest_wheel_replaces_an_older_library(tmp_path, wheel, carried, taken):
    (here := tmp_path / "working").mkdir()
    write_file(here / wheel, "")
    how = {"cwd": here, "env": os.environ | {"PYTHONPATH": str(ROOT)}, "text": True}
    done = subprocess.run([sys.executable, "-c", NEWER, carried], capture_output=True, **how)
    said = f"{taken}\nTrue False\n" if taken else "False True\n"
    assert done.stdout == said, done.stderr


def test_the_library_that_it_carries_is_this_release_and_the_same_bytes_each_time(tmp_path):
    cells = json.loads(OWN.read_text("utf-8"))["cells"]
    (carried,) = ["".join(cell["source"]) for cell in cells if cell["id"] == "library"]
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
    assert carry.library_cell(tmp_path) == carry.library_cell()


@pytest.mark.slow
def test_the_quickstart_runs_there_as_well(session, wheel):
    shutil.copy2(wheel, session.uploads)
    session.run(NOTEBOOKS["0"])


def test_without_a_wheel_the_set_up_cell_says_what_to_do(tmp_path):
    cells = json.loads(NOTEBOOKS["1"].read_text("utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["id"] == "setup")
    code = code.replace('find_spec("thyroid_lib")', 'find_spec("not_there")')
    command = [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code]
    how = {"cwd": tmp_path, "env": os.environ | {"IPYTHONDIR": str(tmp_path)}}
    done = subprocess.run(command, capture_output=True, text=True, **how)
    assert "upload a wheel (make wheel), or run own-data.ipynb first" in done.stdout + done.stderr


@pytest.fixture(params=[COLAB, KAGGLE, NEXT], ids=lambda each: f"{each.name}-{each.python}")
def resolve(request, tmp_path):
    """Ask pip what it would install beside the versions that a platform publishes.

    The platform's packages are records without files (name and version) in an empty environment
    of its Python, so that torch is not downloaded; pip resolves and installs nothing.
    """
    python, platform = find_python(request.param), request.param
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    pins = dict(pin.split("==") for pin in platform.packages.split())
    for name, version in pins.items():
        about = site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        write_file(about, f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "pins.txt").write_text("\n".join(platform.packages.split()), "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env/bin/python"), "install"]
    pip += ["--dry-run", "-q", "--report", "-", "--constraint", str(tmp_path / "pins.txt")]
    pip += ["--only-binary=:all:"]  # as `platforms.install_missing`

    def ask(*needs: str) -> tuple[set[str], set[str]]:
        done = subprocess.run([*pip, *needs], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
        added = (each["metadata"]["name"] for each in json.loads(done.stdout)["install"])
        return {*map(canonicalize_name, added)}, {*map(canonicalize_name, pins)}

    try:
        ask("tqdm>=4.66", "tenacity>=8")
    except ValueError as error:
        pytest.skip(f"the package index is out of reach: {str(error)[-200:]}")
    return ask


def test_the_library_resolves_beside_them(resolve, wheel):
    for need in (str(wheel), f"{wheel}[{EXTRAS}]"):
        added, theirs = resolve(need)
        assert "thyroid-lib" in added
        assert not added & theirs


def test_snakemake_does_not_which_is_why_it_has_an_environment_of_its_own(resolve):
    with pytest.raises(ValueError, match=r"(?s)packaging.*conflict"):
        resolve("--only-binary=:none:", "snakemake>=9.27,<10")  # of the extra study

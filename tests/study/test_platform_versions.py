"""pip's answer: beside the versions that Colab and Kaggle publish, nothing of theirs is replaced.

A platform's packages are records without files (name and version) in an empty environment of its
Python, so that torch is not downloaded; pip resolves and installs nothing.
"""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from imitated import COLAB, KAGGLE, find_python, make_wheel
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.study
# Kaggle is said to move to 3.13, for which NumPy 2.0 has no release.
NEXT = replace(
    KAGGLE, python="3.13", packages=KAGGLE.packages.replace("numpy==2.0.2", "numpy==2.1.3")
)
PLATFORMS = COLAB, KAGGLE, NEXT
EXTRAS = "app,deploy,dicom,download,hdf5,tensorboard"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(params=PLATFORMS, ids=lambda each: f"{each.name}-{each.python}")
def resolve(request, tmp_path):
    """Ask pip for requirements; return the names that it would install, and the platform's."""
    python, platform = find_python(request.param.python), request.param
    if not python:
        pytest.skip(f"no Python {platform.python} here, which {platform.name} has")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    for pin in platform.packages.split():
        name, version = pin.split("==")
        about = site / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (about / "METADATA").write_text(text, "utf-8")
    (tmp_path / "pins.txt").write_text("\n".join(platform.packages.split()), "utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "env/bin/python"), "install"]
    pip += ["--dry-run", "-q", "--report", "-", "--constraint", str(tmp_path / "pins.txt")]
    pip += ["--only-binary=:all:"]  # as `platforms.install_missing`

    def ask(*needs: str) -> tuple[set[str], set[str]]:
        done = subprocess.run([*pip, *needs], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
        added = (each["metadata"]["name"] for each in json.loads(done.stdout)["install"])
        theirs = (pin.split("==")[0] for pin in platform.packages.split())
        return {*map(canonicalize_name, added)}, {*map(canonicalize_name, theirs)}

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

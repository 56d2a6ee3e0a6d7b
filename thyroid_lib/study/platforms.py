"""Where the notebooks run: Colab, Kaggle or a machine of one's own, and what each of them asks for.

The first cell of every notebook installs this library, if it is not there, and calls `start`. On
one's own machine that says nothing and loads nothing; on the two platforms it installs what is
missing besides, tries the GPU and tells where results go and how they survive.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from thyroid_lib.data.locate import where
from thyroid_lib.files.writing import print_note, project_path
from thyroid_lib.study import second_copy


def start() -> None:
    """See what is here: on Colab and Kaggle complete the library, try the GPU, and tell of it.

    Copies of results go to `THYROID_COPY` if that is set, on Colab else to the folder thyroid of
    the Drive, once it is mounted; what an earlier session left there comes back first.

    Raises:
        RuntimeError: what is missing cannot be installed beside what is there.
    """
    here = where()
    if here != "local":
        install_missing()
    from thyroid_lib.study.parameters import check_cells  # needs what was installed just now

    check_cells()
    copies = second_copy.keep_chosen()
    if here == "local" or os.environ.get("THYROID_WORKFLOW_PID"):  # the workflow tells its own
        return
    print_note(f"{here.title()}: {_gpu(here)}")
    print_note(f"results go to {project_path('results')}; {_survival(here, bool(copies))}")


def missing_packages() -> list[str]:
    """List this library's requirements that no installed package meets, as pip reads them."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("thyroid-lib") or []
    except importlib.metadata.PackageNotFoundError:  # a copy of its files: nothing is known
        return []
    missing = []
    for need in map(Requirement, lines):
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            there = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            there = None
        if there is None or not need.specifier.contains(there, prereleases=True):
            missing.append(str(need))
    return missing


def install_missing() -> list[str]:
    """Install what this library needs and this Python lacks, and replace nothing that is there.

    Every installed package's version is a constraint of pip's, torch's and numpy's among them, and
    is looked at again afterwards. Wheels beside the library's own are taken first, so that a folder
    of them does without the network.

    Returns:
        What was installed, as `missing_packages` lists it.

    Raises:
        RuntimeError: pip found no way, or replaced something; says what to do.
    """
    missing = missing_packages()
    if not missing:
        return []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    before = _installed(pip)
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "there.txt")
        pins.write_text("\n".join(before), "utf-8")
        wheels = [f"--find-links={path}" for path in _wheel_folders()]
        command = [*pip, "install", "-q", f"--constraint={pins}", *wheels, *missing]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = "\n".join(f"  | {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise RuntimeError(
            f"pip could not add {', '.join(missing)} beside what is installed here:\n{why}\n"
            "switch the internet on, or lay their wheels beside the library's own"
        )
    if replaced := set(before) - set(_installed(pip)):
        raise RuntimeError(f"pip replaced {', '.join(sorted(replaced))}: restart the session")
    return missing


def _installed(pip: list[str]) -> list[str]:
    """Return all installed packages as name==version."""
    done = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"pip cannot say what is installed here: {done.stderr.strip()[-300:]}")
    return done.stdout.split()


def _wheel_folders() -> list[Path]:
    """Return the folder of the wheel that this library was installed from, if it was from one."""
    about = importlib.metadata.distribution("thyroid-lib").read_text("direct_url.json")
    address = urlparse(json.loads(about)["url"] if about else "")
    folder = Path(unquote(address.path)).parent
    return [folder] if address.scheme == "file" and folder.is_dir() else []


def _gpu(here: str) -> str:
    from thyroid_lib.train import (
        device,  # loads torch, which a machine of one's own need not do here
    )

    try:
        problem = device.gpu_problem()
    except RuntimeError as error:
        return str(error)
    if problem:
        return f"{problem}. Trainings will use the CPU"
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, and torch {torch.__version__} computes on it"
    menu = {
        "kaggle": "Settings, Accelerator, GPU T4 x2",
        "colab": "Runtime, Change runtime type, T4 GPU",
    }[here]
    return f"no GPU is switched on ({menu}); the CPU does for the demo's size"


def _survival(here: str, copied: bool) -> str:
    if copied:
        return "copies of them are kept, after every epoch, and come back in the next session"
    if here == "kaggle":
        return (
            "they stay with the notebook's version: Save Version, Save & Run All. A session that "
            "is only edited keeps them if Persistence is set to files"
        )
    return (
        "they end with this session. To keep them, run `from google.colab import drive; "
        "drive.mount('/content/drive')` and then this cell again"
    )

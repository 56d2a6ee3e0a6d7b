"""Set-up of a notebook on Colab, on Kaggle, or on a local machine.

The first cell of every notebook installs this library if it is missing, and calls `start`. On a
local machine `start` prints nothing and loads no torch. On Colab and Kaggle it installs missing
packages, runs an operation on the GPU, and says where results go and how they survive the session.
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

GPU_MENU = {
    "kaggle": "Settings, Accelerator, GPU T4 x2",
    "colab": "Runtime, Change runtime type, T4 GPU",
}
SURVIVAL = {
    "copied": "copies are kept after every epoch, and come back in the next session",
    "kaggle": "they stay with the notebook's version: Save Version, Save & Run All. An interactive "
    "session keeps them only if Persistence is set to files",
    "colab": "they end with this session. To keep them, run `from google.colab import drive; "
    "drive.mount('/content/drive')` and then this cell again",
}


def start() -> None:
    """Prepare this session: on Colab and Kaggle install what is missing, and try the GPU.

    Copies of results go to `THYROID_COPY` if that is set, on Colab otherwise to the folder thyroid
    of the mounted Drive; the results of an earlier session come back from there first.

    Raises:
        RuntimeError: what is missing cannot be installed beside the installed packages.
    """
    here = where()
    if here != "local":
        install_missing()
    from thyroid_lib.study.parameters import check_cells  # needs what was installed just now

    check_cells()
    copies = second_copy.keep_chosen()
    if here == "local" or os.environ.get("THYROID_WORKFLOW_PID"):  # else once per run of a study
        return
    print_note(f"{here.title()}: {_gpu(here)}")
    survival = SURVIVAL["copied" if copies else here]
    print_note(f"results go to {project_path('results')}; {survival}")


def missing_packages() -> list[str]:
    """List this library's requirements that no installed package meets, as pip reads them."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires("thyroid-lib") or []
    except importlib.metadata.PackageNotFoundError:  # a copy of the files, without metadata
        return []
    needs = [need for need in map(Requirement, lines)
             if not need.marker or need.marker.evaluate({"extra": ""})]  # fmt: skip
    return [str(need) for need in needs if not _is_met(need)]


def _is_met(need) -> bool:
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return need.specifier.contains(version, prereleases=True)


def install_missing() -> list[str]:
    """Install the requirements that this Python lacks, and change no installed package.

    The version of every installed package, torch and numpy among them, is a constraint for pip, and
    is checked afterwards. Wheels in the folder of the library's own wheel are preferred, so that no
    network is needed where they are all there.

    Returns:
        The installed requirements, as `missing_packages` lists them.

    Raises:
        RuntimeError: pip failed, or changed a package; says what to do.
    """
    missing = missing_packages()
    if not missing:
        return []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    before = _installed(pip)
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "installed.txt")
        pins.write_text("\n".join(before), "utf-8")
        wheels = [f"--find-links={path}" for path in _wheel_folders()]
        command = [*pip, "install", "-q", f"--constraint={pins}", *wheels, *missing]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = "\n".join(f"  | {line}" for line in done.stderr.strip().splitlines()[-6:])
        raise RuntimeError(
            f"pip could not add {', '.join(missing)} beside the installed packages:\n{reason}\n"
            "switch the internet on, or put their wheels beside the library's own"
        )
    if replaced := set(before) - set(_installed(pip)):
        raise RuntimeError(f"pip replaced {', '.join(sorted(replaced))}: restart the session")
    return missing


def _installed(pip: list[str]) -> list[str]:
    """Return all installed packages as name==version."""
    done = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"pip cannot list the installed packages: {done.stderr.strip()[-300:]}")
    return done.stdout.split()


def _wheel_folders() -> list[Path]:
    """Return the folder of the wheel that this library was installed from, if there is one."""
    about = importlib.metadata.distribution("thyroid-lib").read_text("direct_url.json")
    address = urlparse(json.loads(about)["url"] if about else "")
    folder = Path(unquote(address.path)).parent
    return [folder] if address.scheme == "file" and folder.is_dir() else []


def _gpu(here: str) -> str:
    from thyroid_lib.train import device  # loads torch

    try:
        problem = device.gpu_problem()
    except RuntimeError as error:
        return str(error)
    if problem:
        return f"{problem}. Trainings will use the CPU"
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, and torch {torch.__version__} computes on it"
    return f"no GPU is switched on ({GPU_MENU[here]}); a CPU is enough for the demo's size"

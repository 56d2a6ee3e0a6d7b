"""Set-up of a notebook on Colab, on Kaggle, or on a local machine.

The first cell of every notebook installs this library if it is missing, and calls `start`, which
on a local machine prints nothing and loads no torch.
"""

import glob
import importlib
import json
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from thyroid_lib.data.locate import where
from thyroid_lib.files.paths import project_path
from thyroid_lib.files.writing import print_note
from thyroid_lib.study import second_copy

GPU_MENU = {
    "kaggle": "Settings, Accelerator, GPU T4 x2",
    "colab": "Runtime, Change runtime type, T4 GPU",
}
SURVIVAL = {
    "copied": "copies are kept, of trainings every 10 minutes, and come back in the next session",
    "kaggle": "they stay with the notebook's version: Save Version, Save & Run All. An interactive "
    "session keeps them only if Persistence is set to files",
    "colab": "they end with this session. To keep them, run `from google.colab import drive; "
    "drive.mount('/content/drive')` and then this cell again",
}

PIP = sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"
# where a wheel may lie, seen from the notebook: in a session, in Colab's Drive, in Kaggle's data
WHEELS = (".", "drive/MyDrive", "drive/MyDrive/thyroid", "../input/*", "../input/datasets/*/*")


def start() -> None:
    """Install what is missing, check the notebook's parameters, keep copies, and try the GPU.

    RuntimeError: a package cannot be installed beside the others. ValueError: a wrong parameter.
    """
    here = where()
    if here != "local" and take_newer_wheel():
        importlib.import_module(__name__).start()
        return
    install_missing()
    from thyroid_lib.study.parameters import check_cells  # needs what was installed just now

    check_cells()
    copies = second_copy.keep_chosen()
    if here == "local" or os.environ.get("THYROID_WORKFLOW_PID"):  # else once per run of a study
        return
    print_note(f"{here.title()}: {_gpu(here)}")
    survival = SURVIVAL["copied" if copies else here]
    print_note(f"results go to {project_path('results')}; {survival}")


def take_newer_wheel() -> bool:
    """Install the newest wheel of the library that lies here, if it is newer than what runs.

    All modules of the library are forgotten then, so that what is imported next is the new one.
    """
    from packaging.version import Version

    try:
        installed = Version(metadata.version("thyroid-lib"))
    except metadata.PackageNotFoundError:  # a copy of the files
        return False
    paths = [path for place in WHEELS for path in glob.glob(f"{place}/thyroid_lib-*.whl")]
    paths += filter(None, [getattr(sys.modules["__main__"], "carried", None)])  # by own-data.ipynb
    found = {Version(Path(path).name.split("-")[1]): Path(path).resolve() for path in paths}
    newest, checkout = max(found, default=installed), Path(__file__).parents[2] / "pyproject.toml"
    if newest <= installed or checkout.exists():
        return False
    subprocess.run([*PIP, "--no-deps", found[newest]], check=True)
    print_note(f"{found[newest].name} replaces the installed {installed}")
    for name in [name for name in sys.modules if name.split(".")[0] == "thyroid_lib"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return True


def install_missing(extra: str = "") -> list[str]:
    """Install the requirements, or those of an extra, that Colab or Kaggle lacks; return them.

    No installed package is changed: all versions are constraints for pip. Wheels in the folder of
    the library's own wheel are used, so that no network is needed. RuntimeError: pip failed.
    """
    if where() == "local":
        return []
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = [(each.metadata["Name"], each.version) for each in metadata.distributions()]
    # reversed: of two packages with one name, Python uses the first
    versions = {canonicalize_name(name): each for name, each in reversed(found) if name and each}
    if "thyroid-lib" not in versions:  # a copy of the files
        return []
    missing = []
    for need in map(Requirement, metadata.requires("thyroid-lib") or []):
        version = versions.get(canonicalize_name(need.name))
        fits = version is not None and need.specifier.contains(version, prereleases=True)
        if not fits and (not need.marker or need.marker.evaluate({"extra": extra})):
            missing.append(f"{need.name}{need.specifier}")
    if not missing:
        return []
    about = metadata.distribution("thyroid-lib").read_text("direct_url.json")
    wheels = Path(unquote(urlparse(json.loads(about)["url"] if about else "").path)).parent
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "installed.txt")
        pins.write_text("\n".join(map("==".join, versions.items())), "utf-8")
        command = [*PIP, "--only-binary=:all:"]  # building one from source may take an hour
        command += [f"--constraint={pins}", f"--find-links={wheels}", *missing]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = "\n".join(f"  | {line}" for line in done.stderr.strip().splitlines()[-6:])
        problem = f"pip could not add {', '.join(missing)} beside the installed packages"
        advice = "switch the internet on, or put their wheels beside the library's own"
        raise RuntimeError(f"{problem}:\n{reason}\n{advice}")
    importlib.invalidate_caches()
    return missing


def _gpu(here: str) -> str:
    """Return a sentence on the GPU of this session."""
    import torch

    from thyroid_lib.train import device

    try:
        if problem := device.gpu_problem():
            return f"{problem}. Trainings will use the CPU"
    except RuntimeError as error:
        return str(error)
    auto = f"precision auto means {device.choose_precision('auto', device.choose_device())} here"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return f"{name}, and torch {torch.__version__} computes on it; {auto}"
    return f"no GPU is switched on ({GPU_MENU[here]}); a CPU is enough for the demo's size; {auto}"

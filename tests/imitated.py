"""Imitations of Colab and Kaggle: their Python, packages, variables and folders, no repository.

Versions as the platforms publish them: Colab's list of 2026-08-19; Kaggle's image, built on Colab's
of 2026-05-14, with its own requirements; of these, the packages that the study, pip and a kernel
use. torch is the same release, with the CUDA of the package index.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOTH = (
    "ipykernel==6.17.1 ipython==7.34.0 jupyter_client==7.4.9 matplotlib==3.10.0 pillow==11.3.0 "
    "psutil==5.9.5 pyyaml==6.0.3 scipy==1.16.3 seaborn==0.13.2 statsmodels==0.14.6 tabulate==0.9.0 "
)


@dataclass(frozen=True)
class Platform:
    """The packages of a platform, and the folders of a user's files there."""

    name: str
    python: str
    packages: str
    variables: dict[str, str]
    cwd: str  # where notebooks run
    upload: str  # where the wheel lies, beside the notebook or as a data set
    note: str  # of the first cell


COLAB = Platform(
    "colab",
    "3.13",
    packages=BOTH + "numpy==2.1.3 pandas==2.2.3 torch==2.11.0 tqdm==4.67.3 traitlets==5.7.1 "
    "nbclient==0.10.4 nbconvert==7.17.1 nbformat==5.11.1 packaging==26.3 pyzmq==26.2.1",
    variables={"COLAB_RELEASE_TAG": "release-colab_20260819", "COLAB_JUPYTER_IP": "127.0.0.1"},
    cwd="content",
    upload="content",
    note="Colab: no GPU is switched on",
)
KAGGLE = Platform(
    name="kaggle",
    python="3.12",
    packages=BOTH + "numpy==2.0.2 pandas==2.2.2 torch==2.10.0 tqdm==4.67.3 jupyter_server==2.12.5 "
    "nbconvert==6.4.5 packaging==26.1 papermill==2.7.0",
    variables={
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
        "COLAB_RELEASE_TAG": "release-colab-external-images_20260514",  # its image is Colab's
    },
    cwd="kaggle/working",
    upload="kaggle/input/datasets/somebody/thyroid-code",
    note="Kaggle: no GPU is switched on",
)


def find_python(platform: Platform) -> str:
    """Return an interpreter of a platform's version that can make environments, or skip."""
    version = platform.python
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for python in filter(None, (shutil.which(f"python{version}"), *map(str, managed))):
        command = [python, "-c", "import ensurepip, venv"]
        if not subprocess.run(command, capture_output=True).returncode:  # no empty shim
            return python
    pytest.skip(f"no Python {version} here, which {platform.name} has")


def make_wheel(folder: Path) -> Path:
    """Build the library's wheel, as `make wheel` does, from a copy: builds leave files behind."""
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "thyroid_lib", source / "thyroid_lib", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, check=True)
    return next(folder.glob("*.whl"))


class Session:
    """A session on an imitated platform, with its Python, below the empty folder `top`."""

    def __init__(self, platform: Platform, top: Path, python: str):
        self.platform, self.top = platform, top
        self.cwd, self.uploads = (top / "root" / each for each in (platform.cwd, platform.upload))
        self.python = top / "env" / "bin" / "python"
        kernel = top / "jupyter" / "kernels" / platform.name
        for folder in (self.cwd, self.uploads, top / "home", kernel):
            folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([python, "-m", "venv", top / "env"], check=True, capture_output=True)
        self.pip("install", "-q", "--no-compile", *platform.packages.split())
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": platform.name, "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec), "utf-8")
        self.given = self.packages()

    def pip(self, *words: str) -> str:
        command = [self.python, "-m", "pip", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=self.variables())
        if done.returncode:
            raise OSError(done.stderr[-2000:])
        return done.stdout

    def packages(self) -> set[str]:
        return set(self.pip("list", "--format=freeze").split())

    def variables(self) -> dict[str, str]:
        """The environment variables there: none of this project's, but pip's own settings."""
        kept = {name: x for name, x in os.environ.items() if name.startswith(("PIP_", "PATH"))}
        return kept | self.platform.variables | {
            "HOME": str(self.top / "home"), "JUPYTER_PATH": str(self.top / "jupyter"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as both platforms set it
            "THYROID_PLATFORM_ROOT": str(self.top / "root"), "TQDM_DISABLE": "1",
        }  # fmt: skip

    def run(self, notebook: Path, parameters: dict | None = None) -> dict:
        """Execute an uploaded notebook in the platform's kernel; return it, executed.

        papermill is this machine's: what is imitated is the kernel, in which all of it runs.
        """
        uploaded, out = self.cwd / notebook.name, self.cwd / "out.ipynb"
        shutil.copy2(notebook, uploaded)
        command = [sys.executable, "-m", "papermill", "-k", self.platform.name, uploaded, out]
        command += ["--no-progress-bar", "-y", json.dumps(parameters or {})]
        how = {"cwd": self.cwd, "env": self.variables(), "text": True}
        done = subprocess.run(command, capture_output=True, **how)
        if done.returncode:
            raise OSError(done.stderr[-3000:])
        return json.loads(out.read_text("utf-8"))


def printed(executed: dict) -> str:
    """Return all that an executed notebook's cells printed."""
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)

"""A study of one small run in a copy of the project, run by Snakemake: shared by several tests."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
RUN = "unet-grouped-fold0-seed0"
TINY = {
    "study": "tiny", "phantom_sweeps": 4, "phantom_frames": 3, "size": 32, "models": "[unet]",
    "width": 4, "protocols": "[grouped]", "seeds": "[0]", "epochs": 1, "batch_size": 4,
    "lr": "2.0e-3", "deploy": "false",
}  # fmt: skip
RESULTS = Path("results", "tiny")


def copy_project(target: Path, settings: dict = TINY) -> Path:
    """Copy what the workflow needs; parameters/tiny.yaml is the demo's with these settings."""
    target.mkdir(parents=True, exist_ok=True)
    for part in ("notebooks", "parameters", "thyroid_lib", "workflow"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / part, target / part, ignore=ignored)
    shutil.copy2(ROOT / "pyproject.toml", target)
    text = (target / "parameters" / "demo.yaml").read_text(encoding="utf-8")
    for key, value in settings.items():
        text, found = re.subn(rf"(?m)^{key}:[^#\n]*", f"{key}: {value}  ", text)
        assert found == 1, key
    (target / "parameters" / "tiny.yaml").write_text(text, encoding="utf-8")
    return target


def environment(project: Path, **variables: str) -> dict[str, str]:
    """This process's environment, with the project's own library and results."""
    kept = {name: value for name, value in os.environ.items() if name != "THYROID_RESULTS"}
    return kept | {"PYTHONPATH": str(project)} | variables


def command(*options: str) -> list[str]:
    words = [sys.executable, "-m", "snakemake", "--cores", "2"]
    return [*words, "--configfile", "parameters/tiny.yaml", *options]


def snakemake(project: Path, *options: str, **variables: str) -> subprocess.CompletedProcess:
    how = {"cwd": project, "env": environment(project, **variables), "timeout": 600, "text": True}
    return subprocess.run(command(*options), capture_output=True, **how)


def steps(project: Path, *options: str) -> dict[str, int]:
    """Return how often each rule would run now."""
    return steps_of(run_study(project, "-n", *options))


def steps_of(output: str) -> dict[str, int]:
    """Return how often each rule runs, by Snakemake's own table."""
    table = output.partition("Job stats:")[2].partition("total")[0]
    assert table or "Nothing to be done" in output, output
    counts = {name: int(count) for name, count in re.findall(r"(?m)^(\w+) +(\d+)$", table)}
    return {name: count for name, count in counts.items() if name != "all"}


def run_study(project: Path, *options: str, **variables: str) -> str:
    done = snakemake(project, *options, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results_of(project: Path) -> dict[str, bytes]:
    """Return the content of every file without times and memory."""
    top = project / RESULTS
    files = [*top.glob("notebooks/*"), *top.glob("store/*"), *top.glob("runs/*/*.csv")]
    files += [path for path in top.glob("compare/*") if path.name != "cost.csv"]
    return {str(path.relative_to(top)): path.read_bytes() for path in files}


def flip(path: Path) -> None:
    """Turn over one bit in the middle; of weights, in the middle of the largest tensor.

    Between tensors there is padding, which means nothing and has no checksum.
    """
    content = path.read_bytes()
    inner = content
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as records:
            inner = max(map(records.read, records.namelist()), key=len)
    middle = content.index(inner) + len(inner) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])


def wait_until(
    what: Callable[[], object], why: str = "", seconds: float = 300, pause: float = 0.05
) -> object:
    """Return what a function gives, once it is true; TimeoutError if it is not in time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"{why or what}: not within {seconds:.0f} s")
        time.sleep(pause)
    return found


def processes_with(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes that have this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found

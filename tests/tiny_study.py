"""A study of one small run in a copy of the project, run by Snakemake: shared by several tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
    for part in ("notebooks", "parameters", "thyroid_lib", "workflow", "pyproject.toml"):
        if (ROOT / part).is_file():
            shutil.copy2(ROOT / part, target / part)
        else:
            ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            shutil.copytree(ROOT / part, target / part, ignore=ignored)
    text = (target / "parameters" / "demo.yaml").read_text(encoding="utf-8")
    for key, value in settings.items():
        text, found = re.subn(rf"(?m)^{key}:[^#\n]*", f"{key}: {value}  ", text)
        assert found == 1, key
    (target / "parameters" / "tiny.yaml").write_text(text, encoding="utf-8")
    return target


def snakemake(project: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    command += ["--configfile", "parameters/tiny.yaml", *options]
    clean = {name: value for name, value in os.environ.items() if name != "THYROID_RESULTS"}
    return subprocess.run(
        command,
        cwd=project,
        env=clean | {"PYTHONPATH": str(project)} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def steps(project: Path, *options: str) -> dict[str, int]:
    """Return how often each rule would run now, by Snakemake's own table."""
    done = snakemake(project, "-n", *options)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    counts = {name: int(count) for name, count in re.findall(r"(?m)^(\w+) +(\d+)$", table)}
    return {name: count for name, count in counts.items() if name != "all"}


def run_study(project: Path, *options: str, **environment: str) -> str:
    done = snakemake(project, *options, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results_of(project: Path, results: Path = RESULTS) -> dict[str, bytes]:
    """Return the content of every file without times and memory."""
    top = project / results
    files = [*top.glob("notebooks/*"), *top.glob("store/*"), *top.glob("runs/*/*.csv")]
    files += [path for path in top.glob("compare/*") if path.name != "cost.csv"]
    return {str(path.relative_to(top)): path.read_bytes() for path in files}

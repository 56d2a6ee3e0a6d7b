"""Studies through SLURM: real daemons, which tests/cluster.py starts here and ends again.

What is compared is every table and executed notebook, with those of the same study run plainly.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster, Missing, wait_until
from test_workflow import TINY, copy_project, run_study, snakemake

pytest.importorskip("snakemake_executor_plugin_slurm", reason="no extra [slurm]")

PROFILE = Path("workflow", "profiles", "slurm")
# Of this cluster: it has no accounting, two CPUs, and no network disk that lags.
HERE = (
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
    "--max-threads", "2", "--latency-wait", "10", "--default-resources", "mem_mb=1000",
    "runtime=60", "slurm_extra='--signal=TERM@180'",
)  # fmt: skip
TRAIN = "3-train-unet-grouped-fold0-seed0"


@pytest.fixture(scope="module")
def cluster():
    try:
        with Cluster() as running:
            yield running
    except Missing as error:
        pytest.skip(str(error))


class Submitted:
    """A study's workflow that has been started on the cluster."""

    def __init__(self, project: Path, cluster: Cluster, *options: str, file: str = "tiny"):
        self.project, self.log = project, project / "submitted.log"
        command = [sys.executable, "-m", "snakemake", "--profile", str(PROFILE), *HERE]
        command += ["--configfile", f"parameters/{file}.yaml", *options]
        import os

        clean = {name: value for name, value in os.environ.items() if name != "THYROID_RESULTS"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=project, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=clean | cluster.environment | {"PYTHONPATH": str(project)},
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def end(self, seconds: float = 300) -> str:
        """Wait for a good end; what was said."""
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        assert code == 0, self.said() + jobs_said(self.project)
        return self.said()


def jobs_said(project: Path) -> str:
    """The last lines of the jobs that failed, or run."""
    logs = sorted((project / ".snakemake" / "slurm_logs").rglob("*.log"))
    return "\n".join(f"{log.name}:\n{log.read_text('utf-8', 'replace')[-1500:]}" for log in logs)


def results(project: Path, study: str) -> dict[str, bytes]:
    """Tables and executed notebooks by name, less what tells times."""
    folder = project / "results" / study
    found = [
        path
        for part in ("store", "audit", "compare", "replication", "runs", "notebooks")
        for path in (folder / part).rglob("*")
        if path.suffix in (".csv", ".md", ".ipynb") and path.name not in ("cost.csv", "details.md")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def checkpoint(project: Path, study: str, run: str) -> Path:
    return project / "results" / study / "runs" / run / "checkpoint.pt"

"""Studies through SLURM's real daemons, compared with the same studies run without SLURM."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from cluster import Cluster, Missing
from tiny_study import RUN, TINY, copy_project, environment, run_study, wait_until

from thyroid_lib.study.verify import compare

pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra [slurm]")

pytestmark = pytest.mark.study
# This cluster has no accounting, two CPUs, and a disk that does not lag.
HERE = (
    "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
    "--max-threads", "2", "--latency-wait", "10",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """At its end no daemon, no job and no file is left, though a job may be running."""
    try:
        with Cluster() as running:
            yield running
            running.ask("sbatch", "--wrap=sleep 600", "--output=/dev/null")
            wait_until(running.running_jobs, "the job runs", 60)
    except Missing as error:
        pytest.skip(str(error))
    wait_until(lambda: not running.processes(), "daemons and jobs are gone", 30)
    assert not running.folder.exists()


@pytest.fixture
def submit(cluster):
    """Start a study's workflow on the cluster; what is left of it ends with the test."""
    started = []

    def start(project: Path, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--profile", "workflow/profiles/slurm"]
        how = {"cwd": project, "env": environment(project, **cluster.environment)}
        with open(project / "submitted.log", "wb") as log:
            command += [*HERE, *options]
            started.append(subprocess.Popen(command, stdout=log, stderr=log, **how))
        return started[-1]

    yield start
    for workflow in started:
        workflow.kill()
        workflow.wait()
    cluster.ask("scancel", "--full", "--signal=KILL", *cluster.running_jobs())
    cluster.ask("scancel", *cluster.jobs())


def test_a_study_is_submitted_stopped_requeued_and_the_same(cluster, submit, tmp_path):
    """Begun plainly; its training gets Ctrl-C; then its node's daemon dies; then it is requeued."""
    links = [link for one in cluster.processes() for link in one.net_connections("inet")]
    ports = {link.laddr.ip for link in links if link.status == psutil.CONN_LISTEN}
    assert ports == {"127.0.0.1"}
    settings = TINY | {"device": "auto", "epochs": 90, "resamples": 1000}
    plain = copy_project(tmp_path / "plain", settings)
    run_study(plain, "--until", "audit")
    project = shutil.copytree(plain, tmp_path / "cluster")
    folder = project / "results" / "tiny" / "runs" / RUN

    def said() -> str:
        logs = project.glob("results/*/.snakemake/slurm_logs/**/*.log")
        logs = [project / "submitted.log", *logs]
        return "\n".join(log.read_text("utf-8", "replace")[-3000:] for log in logs)

    def wait_for(what, why: str):
        found = wait_until(lambda: what() or (workflow.poll() is not None and "ended"), why)
        assert found != "ended", said()
        return found

    def kept() -> list[int]:
        """Return the identity of each state on the disk; a new state is a new file."""
        with suppress(FileNotFoundError):  # renamed between the two looks
            return [path.stat().st_ino for path in folder.glob("checkpoint*.pt")]
        return []

    def training(before=()) -> list[str]:
        newer = set(kept()) - set(before)
        return cluster.running_jobs(f"rule_train_wildcards_{RUN}") if newer else []

    tiny = "--configfile", "parameters/tiny.yaml", "--until", "compare"
    workflow = submit(project, *tiny)
    (job,) = wait_for(training, "the run trains")
    assert "gres:gpu:1" in cluster.show(job).get("TresPerJob", ""), "no GPU asked for"
    workflow.send_signal(signal.SIGINT)
    assert workflow.wait(600) != 0
    assert "start again and it goes on" in said()
    wait_until(lambda: not cluster.running_jobs(), "its jobs end")
    assert not (folder / "scores.csv").exists()
    stopped = kept()
    workflow = submit(project, *tiny)
    (job,) = wait_for(lambda: training(stopped), "the run trains on")
    cluster.kill("slurmd")
    cluster.start("slurmd")
    wait_for(lambda: cluster.state() in ("idle", "mix", "alloc"), "the node is back")
    cluster.ask("scontrol", "requeue", job)
    wait_until(lambda: cluster.jobs()[job][0] == "PENDING", f"job {job} waits again")
    # without the two minutes that SLURM waits
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert workflow.wait(600) == 0, said()
    trained = json.loads((folder / "run.json").read_text())["trained_epochs"]
    assert trained < 90, "all epochs were trained again"
    run_study(plain, "--until", "compare")
    found = compare(plain / "results" / "tiny", project / "results" / "tiny")
    assert not found.differences, found.report()

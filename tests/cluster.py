"""A SLURM cluster of one node on this machine: real daemons on loopback, fake GPUs, no database.

All its files lie in one temporary folder. It has no cgroups, so it neither limits memory nor hides
a GPU from a job; it only counts CPUs, memory and GPUs.
"""

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from tiny_study import processes_with, wait_until

CLIENTS = ("setpriv", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
NODE = "n0"
GUARD = ("setpriv", "--pdeathsig", "TERM")  # a daemon ends with its parent, however that ends
DAEMONS = {
    "munged": "--foreground --force --socket={0}/munge.socket --key-file={0}/munge.key "
    "--pid-file={0}/munged.pid --seed-file={0}/munge.seed --log-file={0}/munged.log",
    "slurmctld": "-D -f {0}/slurm.conf",
    "slurmd": f"-D -N {NODE} -f {{0}}/slurm.conf",
}
CONF = """\
ClusterName=thyroid
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
# nothing listens but on loopback
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,bf_interval=2
ReturnToService=2
SlurmdTimeout=60
GresTypes=gpu
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=2 RealMemory=64000 \
Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""


class Missing(Exception):
    """SLURM is not installed, or does not run here; says why."""


class Cluster:
    """The daemons, which run within this context."""

    def __init__(self):
        os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian has daemons, for root alone
        if missing := [name for name in (*DAEMONS, *CLIENTS) if not shutil.which(name)]:
            raise Missing(f"SLURM lacks {', '.join(missing)} (apt-get install slurm-wlm munge)")
        # munge's socket has a name of at most 107 bytes; pytest's folders are longer
        self.folder = folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.running: dict[str, subprocess.Popen] = {}
        with ExitStack() as free:  # ports of loopback
            sockets = [free.enter_context(socket.socket()) for _ in range(2)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            controller, node = (each.getsockname()[1] for each in sockets)
        for part in ("state", "spool", "bin"):
            (folder / part).mkdir()
        self.conf, srun = folder / "slurm.conf", folder / "bin" / "srun"
        named = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
        named |= {"folder": folder, "name": NODE, "controller": controller, "node": node}
        self.conf.write_text(CONF.format(**named), "utf-8")
        for gpu in range(2):  # SLURM reads the number of a GPU in the name of its file
            (folder / f"nvidia{gpu}").symlink_to("/dev/null")
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/nvidia[0-1]\n", "utf-8")
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n", "utf-8")
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        # in a job Snakemake's plugin removes SLURM_CONF; a real cluster has it in a usual place
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        path = f"{srun.parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {"SLURM_CONF": str(self.conf), "PATH": path}

    def __enter__(self) -> "Cluster":
        try:
            self.start("munged")
            wait_until((self.folder / "munge.socket").exists, "munged listens", 10)
            self.start("slurmctld")
            self.start("slurmd")
            wait_until(lambda: self.state() in ("idle", "mix"), "the node is idle", 30)
        except OSError as error:  # TimeoutError among them
            logs = [path.read_text("utf-8", "replace")[-900:] for path in self.folder.glob("*.log")]
            self.__exit__()
            raise Missing("\n".join([f"SLURM does not run here: {error}", *logs])) from error
        return self

    def start(self, name: str) -> None:
        """Start a daemon as a child of this process."""
        clean = {name: value for name, value in os.environ.items() if name[:6] != "SLURM_"}
        with open(self.folder / f"{name}.out.log", "ab") as out:
            self.running[name] = subprocess.Popen(
                [*GUARD, name, *DAEMONS[name].format(self.folder).split()], cwd=self.folder,
                env=clean | self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        """Kill a daemon; the processes of its jobs go on."""
        self.running[name].kill()
        self.running[name].wait()

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands and return its output, "" if it failed."""
        how = {"capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(command, env=os.environ | self.environment, **how)
        return done.stdout.strip() if done.returncode == 0 else ""

    def state(self) -> str:
        """Return the state of the node, in sinfo's words."""
        return self.ask("sinfo", "--noheader", "--format=%t").rstrip("*")

    def jobs(self) -> dict[str, list[str]]:
        """Return state and comment of every job that SLURM knows, by its id."""
        lines = self.ask("squeue", "--states=all", "--noheader", "--format=%i|%T|%k").splitlines()
        return {job: about for job, *about in (line.split("|") for line in lines)}

    def running_jobs(self, word: str = "") -> list[str]:
        """Return the ids of running jobs with this word in their comment."""
        found = self.jobs().items()
        return [job for job, about in found if about[0] == "RUNNING" and word in about[1]]

    def show(self, job: str) -> dict[str, str]:
        """Return what scontrol knows of a job."""
        words = self.ask("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def processes(self) -> list[psutil.Process]:
        """Return the processes of jobs and daemons: only they have this cluster's environment."""
        return processes_with("SLURM_CONF", str(self.conf))

    def __exit__(self, *_) -> None:
        """End the jobs and the daemons, and remove their folder."""
        self.ask("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
        self.ask("scancel", "--user", getpass.getuser())
        for name in reversed(self.running):
            process = self.running[name]
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

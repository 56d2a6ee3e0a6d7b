"""A study in its own folder that can be watched, killed, restarted and compared with another.

All its processes, orphans too, are found by one variable of their environment.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
from tiny_study import TINY, command, copy_project, environment, processes_with, wait_until

from thyroid_lib.study.verify import compare

# Enough frames for two store workers and epochs to be killed in; best weights in every checkpoint.
SETTINGS = TINY | {
    "study": "torture", "phantom_sweeps": 8, "phantom_frames": 32, "models": "[unet, resunet]",
    "width": 8, "protocols": "[random, grouped]", "epochs": 16, "batch_size": 16,
    "selection": "val", "resamples": 500,
}  # fmt: skip
HALF_DONE = re.compile(r"\.partial|\.failed\.|(^|/)checkpoint[^/]*\.pt")
SECONDS = 120  # for an end "within seconds" on a machine that other work keeps busy
MIB = 2**20
Step = namedtuple("Step", ["runner", "kernel", "workers"])  # pids; kernel may be None


class Study:
    """A copy of the project with its one study, in `folder`, which holds all that it leaves."""

    def __init__(self, folder: Path, *, like: "Study | None" = None, **changes):
        self.settings = like.settings if like else SETTINGS | changes
        self.folder, self.project = folder, folder / "project"
        self.results = self.project / "results" / self.settings["study"]
        self.temporary, self.output = folder / "tmp", folder / "output.txt"
        self.temporary.mkdir(parents=True)
        self.workflow = None
        if like:
            shutil.copytree(like.project, self.project)
        else:
            copy_project(self.project, self.settings)
        names = [self.settings[key].strip("[]").split(", ") for key in ("models", "protocols")]
        self.runs = [f"{m}-{p}-fold0-seed0" for m in names[0] for p in names[1]]
        trains = [f"3-train-{run}" for run in self.runs]
        self.steps = ["1-preprocess", "2-audit", *trains, "4-compare", "report"]

    def start(self, *options: str) -> None:
        """Start the workflow as a user does, as the leader of its own process group."""
        with open(self.output, "w") as output:
            how = {"cwd": self.project, "env": self.environment(), "start_new_session": True}
            self.workflow = subprocess.Popen(
                command(*options), stdout=output, stderr=output, stdin=subprocess.DEVNULL, **how
            )

    def environment(self) -> dict[str, str]:
        variables = environment(self.project, TMPDIR=str(self.temporary))
        return {name: value for name, value in variables.items() if "THYROID" not in name}

    def end(self) -> tuple[int, str]:
        """Wait for the workflow's end; return its exit code and output."""
        return self.workflow.wait(600), self.said()

    def finish(self, *options: str, codes: tuple = (0,)) -> str:
        """Run the workflow, which must end with one of these codes; return its output."""
        self.start(*options)
        code, said = self.end()
        assert code in codes, f"ended with {code}, not {codes}:\n{said[-3000:]}"
        return said

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition):
        """Wait until a function returns something true, and return it; before the workflow ends."""

        def look():
            ended = self.workflow.poll() is not None
            found = condition()
            assert found or not ended, f"it ended meanwhile:\n{self.said()[-3000:]}"
            return found

        return wait_until(look, condition.__name__)

    def training(self) -> list[str]:
        """Return the runs at work that have kept an epoch."""
        steps = self.steps_at_work()
        kept = (run for run in self.runs if list(self.run_folder(run).glob("checkpoint*.pt")))
        return [run for run in kept if f"3-train-{run}" in steps]

    def run_folder(self, run: str) -> Path:
        return self.results / "runs" / run

    def processes(self) -> dict[int, tuple[int, list[str]]]:
        """Return parent and arguments of every living process of this study, by pid."""
        found = {}
        for process in processes_with("PYTHONPATH", str(self.project)):
            with contextlib.suppress(psutil.Error):  # it has ended
                found[process.pid] = process.ppid(), process.cmdline()
        return found

    def steps_at_work(self) -> dict[str, Step]:
        processes, steps = self.processes(), {}
        kernels = [pid for pid, (_, args) in processes.items() if "ipykernel_launcher" in args]
        for pid, (_, args) in processes.items():
            if "thyroid_lib.study.report" in args:
                steps["report"] = Step(pid, None, [])
            elif args[1:4] == ["-m", "thyroid_lib.study.runner", "notebook"]:
                kernel = next((each for each in kernels if processes[each][0] == pid), None)
                workers = [each for each in kernels if processes[each][0] == kernel]
                steps[Path(args[5]).stem] = Step(pid, kernel, workers)
        return steps

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def lose_power(self) -> None:
        """Kill all of its processes at once, orphans too, until none is left."""
        while processes := self.processes():
            self.kill(*processes)
            time.sleep(0.03)
        if self.workflow:
            self.workflow.wait()

    def wait_until_alone(self) -> float:
        """Wait until none of its processes is left; return the seconds that it took."""
        began, ended = time.monotonic(), self.workflow.poll
        wait_until(lambda: ended() is not None and not self.processes(), "all end", SECONDS)
        return time.monotonic() - began

    def remove(self) -> None:
        self.lose_power()
        shutil.rmtree(self.folder, ignore_errors=True)


def assert_same(study: Study, expected: Study) -> tuple[int, int]:
    """Compare a finished study with the undisturbed one; return the files and bytes compared."""
    found = compare(expected.results, study.results)
    assert not found.differences, found.report()
    pages = []
    for results in (study.results, expected.results):  # without the table of times and memory
        cost = pd.read_csv(results / "compare" / "cost.csv").to_html(index=False, border=0)
        pages.append((results / "report.html").read_text(encoding="utf-8").replace(cost, ""))
    assert pages[0] == pages[1], "report.html differs"
    files = [path for path in study.results.rglob("*") if path.is_file()]
    names = [path.relative_to(study.results).as_posix() for path in files]
    assert not (left := [name for name in names if HALF_DONE.search(name)]), f"left behind: {left}"
    assert not (left := study.processes()), f"still running: {left}"
    return found.files + 1, sum(path.stat().st_size for path in files)


def assert_no_traceback(said: str) -> None:
    """There is none but of a kernel whose port was taken, which starts once more."""
    port_taken = r"Traceback \(most recent call last\):\n(?: .*\n)+zmq.*Address already in use"
    assert "Traceback (most recent call last)" not in re.sub(port_taken, "", said), said[-4000:]


def line_with(said: str, *words: str) -> str:
    """Return the line that has all of these words; a traceback anywhere is an error."""
    assert_no_traceback(said)
    lines = [line for line in said.splitlines() if all(word in line for word in words)]
    assert lines, f"no line has all of {words}:\n{said[-4000:]}"
    return lines[0]


@dataclass
class Bench:
    """The undisturbed study, and studies like it for the faults."""

    folder: Path
    settings: dict = field(default_factory=dict)
    kills: int = 24
    seed: int = 0
    killed: int = 0
    compared: tuple[int, int] = (0, 0)  # files and bytes
    usual: dict[str, float] = field(default_factory=dict)  # seconds of each step
    disk: dict[str, int] = field(default_factory=dict)  # bytes
    copies: list[Study] = field(default_factory=list)

    def __post_init__(self):
        self.undisturbed = Study(self.folder / "undisturbed", **self.settings)
        self.missing = [run for run in self.undisturbed.runs if "-grouped-" in run]

    def run_undisturbed(self) -> None:
        """Run it once; measure the time of each step, and the disk."""
        study, seen, peak = self.undisturbed, {}, 0
        study.start()
        while study.workflow.poll() is None:
            now = time.monotonic()
            for step in study.steps_at_work():
                seen.setdefault(step, [now, now])[1] = now
            peak = max(peak, disk_used(study.results))
            time.sleep(0.05)
        code, said = study.end()
        assert code == 0, f"the undisturbed study failed:\n{said[-4000:]}"
        self.usual = {step: last - first for step, (first, last) in seen.items()}
        weights = [disk_used(path) for path in study.results.glob("runs/*/model.pt")]
        self.disk = {"peak": peak, "end": disk_used(study.results), "weights": sum(weights)}
        self.disk |= {"store": disk_used(study.results / "store"), "largest_weights": max(weights)}

    def finished(self) -> Study:
        """Return a copy of the undisturbed study."""
        self.copies.append(Study(self.folder / f"study-{len(self.copies)}", like=self.undisturbed))
        return self.copies[-1]

    def fresh(self) -> Study:
        """Return a study of which nothing is done."""
        study = self.finished()
        shutil.rmtree(study.results)
        return study

    def prepared(self) -> Study:
        """Return a study that still lacks its grouped runs, `missing`, and what needs them."""
        study = self.finished()
        for folder in (study.results / "compare", *map(study.run_folder, self.missing)):
            shutil.rmtree(folder)
        names = [f"notebooks/3-train-{run}.ipynb" for run in self.missing]
        for name in (*names, "notebooks/4-compare.ipynb", "report.html"):
            (study.results / name).unlink()
        return study

    def restart(self, study: Study) -> str:
        """Start a study plainly, compare it with the undisturbed one, and return its output."""
        said = study.finish()
        self.compare(study)
        return said

    def compare(self, study: Study) -> None:
        files, size = assert_same(study, self.undisturbed)
        self.compared = self.compared[0] + files, self.compared[1] + size


def disk_used(path: Path) -> int:
    """Return the bytes that a file, or a folder with all that is in it, takes on the disk."""
    below = [Path(top, name) for top, folders, names in os.walk(path) for name in folders + names]
    total = 0
    for each in (path, *below):
        with contextlib.suppress(OSError):  # it was there a moment ago
            total += each.stat().st_blocks * 512
    return total

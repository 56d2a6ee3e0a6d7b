"""A study in a folder of its own that can be watched, killed, restarted and held against another.

`torture` and `test_torture` do to it what machines and people do. All its processes, orphans too,
are known by one variable of their environment.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from test_workflow import TINY, copy_project

# Small, but complete: enough frames for two store workers, enough epochs to be killed in, and the
# best weights so far, which `selection: val` keeps, in every checkpoint. Arithmetic as the demo's:
# fp32, one thread, pinned instructions.
SETTINGS = TINY | {
    "study": "torture", "phantom_sweeps": 8, "phantom_frames": 32, "models": "[unet, resunet]",
    "width": 8, "protocols": "[random, grouped]", "epochs": 16, "batch_size": 16,
    "selection": "val", "resamples": 500,
}  # fmt: skip
# Of `run.json` and of `model.pt`: how long it took, and how often it was begun.
VOLATILE = {
    "train_seconds", "images_per_second", "peak_memory_mib", "scoring_seconds", "trained_epochs",
}  # fmt: skip
# Of other names each time, or with times in them: watched notebooks, checksums of such files.
UNLIKE = re.compile(r"logs/|checksums/|provenance/|\.lock$|compare/cost\.")
HALF_DONE = re.compile(r"\.partial|\.failed\.|(^|/)checkpoint[^/]*\.pt")
SECONDS = 40  # that "within seconds" may take where two busy cores do everything
MIB = 2**20
TRACEBACK = "Traceback (most recent call last)"


class Step(NamedTuple):
    """A step that is being made, by the pids of those who make it."""

    runner: int
    kernel: int | None
    workers: list[int]  # of the kernel


class Study:
    """A copy of the project with its one study, in `folder`, which holds all that it leaves."""

    def __init__(self, folder: Path, *, like: "Study | None" = None, **changes):
        self.folder, self.settings = folder, SETTINGS | changes
        self.project = folder / "project"
        self.results = self.project / "results" / self.settings["study"]
        self.temporary, self.output = folder / "tmp", folder / "output.txt"
        self.temporary.mkdir(parents=True)
        self.workflow = None
        if like:
            self.settings = like.settings
            shutil.copytree(like.project, self.project)
        else:
            self.project.mkdir()
            copy_project(self.project, self.settings)
        lists = (self.settings[key].strip("[]").split(", ") for key in ("models", "protocols"))
        models, protocols = lists
        self.runs = [f"{m}-{p}-fold0-seed0" for m in models for p in protocols]
        self.trains = [f"3-train-{run}" for run in self.runs]
        self.steps = ["1-preprocess", "2-audit", *self.trains, "4-compare", "report"]

    # Running it

    def start(self, *options: str) -> None:
        """Start the workflow as a user does, as the leader of its own process group."""
        command = [sys.executable, "-m", "snakemake", "--cores", "2"]
        command += ["--configfile", "parameters/tiny.yaml", *options]
        kept = {name: value for name, value in os.environ.items() if "THYROID" not in name}
        env = kept | {"PYTHONPATH": str(self.project), "TMPDIR": str(self.temporary)}
        with open(self.output, "w") as output:
            self.workflow = subprocess.Popen(
                command, cwd=self.project, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Wait for the workflow's end; return its exit code and all that it said."""
        code = self.workflow.wait(seconds)
        return code, self.said()

    def run(self, *options: str) -> tuple[int, str]:
        self.start(*options)
        return self.end()

    def finish(self, *options: str) -> str:
        """Start it and hold it to its success; return what it said."""
        code, said = self.run(*options)
        assert code == 0, f"a plain restart ended with {code}:\n{said[-3000:]}"
        return said

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition, seconds: float = 120):
        """Wait until it holds; return what it gave. The workflow must not end before."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain for {condition.__doc__ or 'it'}"
            assert self.workflow.poll() is None, f"it ended meanwhile:\n{self.said()[-3000:]}"
            time.sleep(0.05)
        return found

    def training(self) -> list[str]:
        """Runs that are between two epochs, or in one that is not the first."""
        running = self.making()
        return [
            run
            for run in self.runs
            if f"3-train-{run}" in running and (self.results / f"runs/{run}/checkpoint.pt").exists()
        ]

    # Its processes

    def processes(self) -> dict[int, tuple[int, list[str]]]:
        """Every living process of this study: parent and arguments by pid."""
        mark, found = f"PYTHONPATH={self.project}".encode(), {}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if mark in place.joinpath("environ").read_bytes().split(b"\0"):
                    state = place.joinpath("stat").read_text().rpartition(")")[2].split()
                    arguments = place.joinpath("cmdline").read_bytes().decode().split("\0")
                    found[int(place.name)] = int(state[1]), arguments
        return found

    def making(self) -> dict[str, Step]:
        """The steps that are being made now."""
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
        """Kill all of its processes at once, orphans too; after it none is left."""
        while processes := self.processes():
            self.kill(*processes)
            time.sleep(0.03)
        if self.workflow:
            self.workflow.wait()

    def wait_until_alone(self, seconds: float) -> float:
        """Wait until none of its processes is left, so long at most; return how long it took."""
        began = time.monotonic()
        while left := self.processes():
            if self.workflow:
                self.workflow.poll()
            took = time.monotonic() - began
            assert took < seconds, f"still there after {took:.0f} s: {list(left.values())}"
            time.sleep(0.05)
        return time.monotonic() - began

    # What it left

    def content(self) -> dict[str, bytes]:
        """What it made, file by file, without times: two studies that went well have the same."""
        made = {}
        for path in sorted(self.results.rglob("*")):
            name = str(path.relative_to(self.results))
            if not path.is_file() or UNLIKE.search(name):
                continue
            made[name] = READERS.get(path.name, Path.read_bytes)(path)
        return made

    def leftovers(self) -> list[str]:
        """Of a finished study: files that only an unfinished one may have, and processes."""
        names = [str(path.relative_to(self.results)) for path in self.results.rglob("*")]
        left = [name for name in names if HALF_DONE.search(name)]
        return left + [" ".join(arguments) for _, arguments in self.processes().values()]

    def remove(self) -> None:
        self.lose_power()
        shutil.rmtree(self.folder, ignore_errors=True)


def _report(path: Path) -> bytes:
    """The page without the table of costs."""
    cost = pd.read_csv(path.parent / "compare" / "cost.csv").to_html(index=False, border=0)
    page = path.read_text(encoding="utf-8")
    assert cost in page
    return page.replace(cost, "").encode()


def _run_json(path: Path) -> bytes:
    return _without_times(json.loads(path.read_text(encoding="utf-8")))


def _weights(path: Path) -> bytes:
    """Every tensor's bytes, the history and the settings; the file itself holds seconds as well."""
    state = torch.load(path, weights_only=True)
    parts = [_without_times(state["meta"]), json.dumps(state["history"]).encode()]
    for name, tensor in sorted(state["weights"].items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.numpy().tobytes()]
    return b"\0".join(parts)


def _without_times(about: dict) -> bytes:
    return json.dumps({k: about[k] for k in about if k not in VOLATILE}, sort_keys=True).encode()


READERS = {"report.html": _report, "run.json": _run_json, "model.pt": _weights}


def assert_same(study: Study, reference: dict[str, bytes]) -> tuple[int, int]:
    """Hold a finished study against the undisturbed one; return files and bytes compared."""
    found = study.content()
    missing, more = reference.keys() - found.keys(), found.keys() - reference.keys()
    assert not missing, f"missing: {sorted(missing)}"
    assert not more, f"more than the undisturbed study has: {sorted(more)}"
    differ = [name for name in reference if reference[name] != found[name]]
    assert not differ, f"other bytes than the undisturbed study's: {differ}"
    assert not (left := study.leftovers()), f"left behind: {left}"
    return len(found), sum(map(len, found.values()))


def told(said: str, *words: str) -> str:
    """Return the line that has all of these words; nobody should have to read a traceback."""
    assert TRACEBACK not in said, f"a traceback:\n{said[-4000:]}"
    lines = [line for line in said.splitlines() if all(word in line for word in words)]
    assert lines, f"no line has all of {words}:\n{said[-4000:]}"
    return lines[0]


@dataclass
class Outcome:
    """What one fault did, and what became of the study."""

    name: str
    injected: str = ""
    kills: int = 0
    seconds: float = 0
    files: int = 0
    bytes: int = 0
    verdict: str = "survived"
    detail: str = ""


@dataclass
class Bench:
    """The undisturbed study, and what faults need to make studies like it."""

    folder: Path
    settings: dict = field(default_factory=dict)
    count: int = 24  # kills
    seed: int = 0
    outcome: Outcome = field(default_factory=lambda: Outcome("undisturbed"))
    reference: dict[str, bytes] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)  # seconds of each step
    disk: dict[str, int] = field(default_factory=dict)  # bytes
    made: list[Study] = field(default_factory=list)

    def __post_init__(self):
        self.undisturbed = Study(self.folder / "undisturbed", **self.settings)

    def run_undisturbed(self) -> None:
        """Run it once and watch: how long each step takes, and how much disk."""
        study, seen, peak = self.undisturbed, {}, 0
        study.start()
        while study.workflow.poll() is None:
            now = time.monotonic()
            for step in study.making():
                seen.setdefault(step, [now, now])[1] = now
            peak = max(peak, disk_used(study.results))
            time.sleep(0.05)
        code, said = study.end()
        assert code == 0, f"the undisturbed study failed:\n{said[-4000:]}"
        self.reference = study.content()
        self.usual = {step: last - first for step, (first, last) in seen.items()}
        weights = sum(disk_used(path) for path in study.results.glob("runs/*/model.pt"))
        self.disk = {
            "peak": peak,
            "end": disk_used(study.results),
            "store": disk_used(study.results / "store"),
            "weights": weights,
            "largest_weights": max(map(disk_used, study.results.glob("runs/*/model.pt"))),
        }

    def _study(self, **how) -> Study:
        study = Study(self.folder / f"study-{len(self.made)}", **how)
        self.made.append(study)
        return study

    def fresh(self) -> Study:
        """A study of which nothing is done, of the very code that the undisturbed one ran."""
        study = self.finished()
        shutil.rmtree(study.results)
        shutil.rmtree(study.project / ".snakemake")
        return study

    def finished(self) -> Study:
        """A copy of the undisturbed study."""
        return self._study(like=self.undisturbed)

    def prepared(self) -> Study:
        """A study whose store is made; its grouped runs, and what needs them, are still to come."""
        study = self.finished()
        shutil.rmtree(study.results / "compare")
        for run in self.missing:
            shutil.rmtree(study.results / "runs" / run)
            (study.results / "notebooks" / f"3-train-{run}.ipynb").unlink()
        for name in ("notebooks/4-compare.ipynb", "report.html"):
            (study.results / name).unlink()
        return study

    @property
    def missing(self) -> list[str]:
        """Runs that a prepared study still has to make."""
        return [run for run in self.undisturbed.runs if "-grouped-" in run]

    def restart(self, study: Study, *options: str) -> str:
        """Start it plainly, hold every byte against the undisturbed study's; what it said."""
        said = study.finish(*options)
        self.compare(study)
        return said

    def compare(self, study: Study) -> None:
        files, size = assert_same(study, self.reference)
        self.outcome.files += files
        self.outcome.bytes += size


def disk_used(path: Path) -> int:
    """Bytes that a file, or a folder with all that is in it, takes on the disk."""
    total = 0
    for each in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):  # it was there a moment ago
            total += each.stat().st_blocks * 512
    return total

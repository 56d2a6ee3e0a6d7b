"""Faults injected on purpose: whatever happens to a study, a plain restart ends in the same bytes.

    python tests/torture.py                        # 24 kills and every fault: make torture
    python tests/torture.py --only kills --kills 3 --seed 1
    python tests/torture.py --write                # and renew the figures of docs/sturdy.md

A small study is run once undisturbed. Then each fault is done to a study like it, what a user is
told is read, the cause is removed, the study is started again with the same plain command, and
every file that it made is held byte by byte against the undisturbed one. Moments are drawn from
the seed; where a process is at that moment is the machine's choice, so no two runs are alike.

Disks that are full or read-only are small ones mounted for the purpose, as root or in a namespace
of one's own (`unshare`); where neither is allowed these faults are skipped, and that is told.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
import torch
from tortured import HALF_DONE, Study, assert_same, told

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "sturdy.md"
MARKS = "<!-- figures: python tests/torture.py --write -->", "<!-- end of figures -->"
KINDS = ("workflow", "tree", "runner", "kernel", "worker")
GOLDEN = 0.618034  # moments that follow each other by it never come to lie close together
SECONDS = 15  # that "within seconds" may take on a busy machine
MIB = 2**20


class Skip(Exception):
    """This machine cannot have this fault."""


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
        """A study whose store is made, and nothing else."""
        study = self.finished()
        for name in ("runs", "audit", "compare"):
            shutil.rmtree(study.results / name)
        for path in (*study.results.glob("notebooks/[2-9]*"), study.results / "report.html"):
            path.unlink()
        return study

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


# The faults. Each does its worst to a study of the bench, reads what the user is told, and ends in
# `bench.restart` or `bench.compare`. It returns what was injected.

FAULTS: dict[str, Callable[[Bench], str]] = {}


def fault(function):
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


class Deck:
    """Whom to kill and when, drawn so that every kind and every part of a step has its turn."""

    def __init__(self, kinds: tuple[str, ...], steps: list[str], seed: int):
        self.random = random.Random(seed)
        self.kinds, self.waiting = kinds, []
        self.share = {step: self.random.random() for step in steps}

    def kind(self, step: str) -> str:
        """Store workers are there in one step alone, and the report has no kernel."""
        fits = {"1-preprocess": {"worker", "workflow", "tree"}, "report": {"workflow", "tree"}}
        fits = fits.get(step, {"workflow", "tree", "runner", "kernel"}) & set(self.kinds)
        fits = fits or set(self.kinds)
        if not fits & set(self.waiting):
            self.waiting += self.random.sample(self.kinds, len(self.kinds))
        kind = next(kind for kind in self.waiting if kind in fits)
        self.waiting.remove(kind)
        return kind

    def moment(self, step: str) -> float:
        """Share of the step's usual time."""
        self.share[step] = (self.share[step] + GOLDEN) % 1
        return 0.02 + 0.94 * self.share[step]


def kill_at_random(
    bench: Bench, count: int, *, seed: int = 0, kinds: tuple[str, ...] = KINDS
) -> list[tuple[str, str, str]]:
    """Kill again and again, each step of a study once, until it is finished; then begin another.

    Returns:
        Step, what was killed, and where the step was, for each kill. Studies were compared.
    """
    deck, kills = Deck(kinds, bench.undisturbed.steps, seed), []
    while len(kills) < count:
        study, left = bench.fresh(), set(bench.undisturbed.steps)
        study.start()
        hit = False  # since this start
        while True:
            if study.workflow.poll() is not None:
                code, said = study.end()
                if code == 0:
                    break
                assert hit, f"a plain restart ended with {code}:\n{said[-4000:]}"
                study.start()
                hit = False
            step = next((each for each in study.making() if each in left), None)
            if step and len(kills) < count:
                left.discard(step)
                if done := _kill(
                    study, step, deck.kind(step), bench.usual[step], deck.moment(step)
                ):
                    kills.append(done)
                    bench.outcome.kills = len(kills)
                    hit = True
            time.sleep(0.02)
        study.wait_until_alone(SECONDS)
        bench.compare(study)
        study.remove()
    return kills


def _kill(study: Study, step: str, kind: str, usual: float, share: float):
    """Wait for the moment and kill; None if the step was done before."""
    moment = time.monotonic() + share * usual
    while (making := study.making().get(step)) and study.workflow.poll() is None:
        # a worker lives for a second or two: it dies wherever in its work it is found
        if making.workers if kind == "worker" else time.monotonic() >= moment:
            break
        time.sleep(0.01)
    else:
        return None
    where = _progress(study, step)
    if kind == "workflow":
        study.kill(study.workflow.pid)
        study.workflow.wait()
    elif kind == "tree":
        study.lose_power()
    elif kind == "worker":
        study.kill(making.workers[0])
    elif kind == "kernel" and making.kernel:
        study.kill(making.kernel)
    else:
        kind = "runner"
        study.kill(making.runner)
    return step, kind, where


def _progress(study: Study, step: str) -> str:
    folder = study.results / "runs" / step.removeprefix("3-train-")
    if not step.startswith("3-train-"):
        return "-"
    if (folder / "model.pt").exists():
        return "scoring"
    return "training" if list(folder.glob("checkpoint*")) else "starting"


@fault
def kills(bench: Bench) -> str:
    done = kill_at_random(bench, bench.count, seed=bench.seed)
    for step, kind, where in done:
        print(f"  killed: {kind} in {step}, {where}", file=sys.stderr)
    steps = (re.sub("-train-.*", "-train", step) for step, _, _ in done)
    parts = list(zip(*done, strict=True))
    whom, where = list_counts(parts[1]), list_counts(each for each in parts[2] if each != "-")
    return f"SIGKILL of {whom}; in {list_counts(steps)} (of the runs: {where})"


def list_counts(names) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))


@fault
def sigterm(bench: Bench) -> str:
    return _signal(bench, lambda study: study.workflow.send_signal(signal.SIGTERM))


@fault
def sigint(bench: Bench) -> str:
    """As Ctrl-C does it: to the whole process group."""
    return _signal(bench, lambda study: os.killpg(study.workflow.pid, signal.SIGINT))


def _signal(bench: Bench, send: Callable[[Study], None]) -> str:
    study, stopped, took = stop_while_training(bench, send)
    code, said = study.end()
    assert code, f"a stopped study ended with 0:\n{said[-2000:]}"
    assert "Traceback" not in said, said[-4000:]
    bench.restart(study)
    for run in stopped:
        resumed(study, run)
    return f"while {len(stopped)} runs train; all ended in {took:.1f} s, with a checkpoint"


def stop_while_training(bench: Bench, send) -> tuple[Study, list[str], float]:
    """Stop a prepared study once a run trains; which runs did, and how long it took to end."""
    study = bench.prepared()
    study.start()
    study.wait_for(study.training)
    trained = study.training()
    send(study)
    took = study.wait_until_alone(SECONDS)
    for run in trained:
        assert epochs_kept(study, run) >= 0, f"{run} trained and has no checkpoint"
    return study, trained, took


def epochs_kept(study: Study, run: str) -> int:
    """Whole epochs that this run's newest checkpoint holds; -1 without one."""
    found = (study.results / "runs" / run).glob("checkpoint*.pt")
    return max((torch.load(path, weights_only=True)["epoch"] for path in found), default=-1)


def resumed(study: Study, run: str) -> None:
    """Hold a run to having gone on from a checkpoint."""
    about = json.loads((study.results / "runs" / run / "run.json").read_text())
    epochs = int(study.settings["epochs"])
    assert about["trained_epochs"] < epochs, f"{run} trained all of its {epochs} epochs again"


@fault
def dead_kernel(bench: Bench) -> str:
    study = bench.prepared()
    study.start()
    (run, *_) = study.wait_for(study.training)
    study.kill(study.making()[f"3-train-{run}"].kernel)
    code, said = study.end()
    assert code == 1
    told(said, "error:", f"3-train-{run}", "kernel died")
    bench.restart(study)
    resumed(study, run)
    return "the kernel of a run, while the others go on"


@fault
def exit_in_a_cell(bench: Bench) -> str:
    study = bench.finished()
    path = study.project / "notebooks" / "3-train.ipynb"
    whole = path.read_bytes()
    notebook = nbformat.reads(whole.decode(), as_version=4)
    notebook.cells.insert(3, nbformat.v4.new_code_cell("import sys; sys.exit(0)", id="exit"))
    nbformat.write(notebook, path)
    code, said = study.run()
    assert code == 1
    for step in study.trains:
        told(said, "error:", step, "cells ran", "exit()")
    path.write_bytes(whole)
    bench.restart(study)
    return "sys.exit(0) in a cell of 3-train"


@fault
def loss_is_nan(bench: Bench) -> str:
    """A learning rate at which this study's U-Net overflows in its second or third epoch."""
    study = bench.prepared()
    code, said = study.run("--config", "lr=1.6e10", "models=[unet]", "protocols=[grouped]")
    assert code == 1
    told(said, "error:", "3-train-unet-grouped", "nan", "epoch", "lr 1.6e+10", "lower lr")
    kept = epochs_kept(study, "unet-grouped-fold0-seed0")
    assert kept >= 1, "the last good checkpoint is gone"
    bench.restart(study)
    return f"lr 1.6e10: NaN in epoch {kept + 1}, the checkpoint of epoch {kept} kept"


@fault
def two_studies(bench: Bench) -> str:
    study = bench.prepared()
    study.start()
    study.wait_for(study.making)
    began = time.monotonic()
    second = second_start(study)
    took = time.monotonic() - began
    assert second.returncode == 2, second.stdout
    told(second.stdout, "error:", str(study.workflow.pid))
    code, said = study.end()
    assert code == 0, said[-3000:]
    bench.compare(study)
    return f"a second start on the same folder, refused after {took:.1f} s; the first went on"


def second_start(study: Study) -> subprocess.CompletedProcess:
    """Start a study once more that is running already."""
    environment = os.environ | {"PYTHONPATH": str(study.project), "TMPDIR": str(study.temporary)}
    return subprocess.run(
        study.workflow.args, cwd=study.project, env=environment, text=True, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@fault
def future_times(bench: Bench) -> str:
    study = bench.finished()
    later = 4102444800  # 2100
    for part in ("results", "notebooks", "thyroid_lib", "parameters", "workflow"):
        for path in (study.project / part).rglob("*"):
            os.utime(path, (later, later))
    (study.results / "compare" / "summary.csv").unlink()
    said = bench.restart(study)
    assert steps_of(said) == {"compare": 1, "report": 1}, said[-3000:]
    assert "Nothing to be done" in study.finish()
    return "every file of 2100, one table deleted: compare and report alone ran"


def steps_of(said: str) -> dict[str, int]:
    """How often each rule runs, by Snakemake's own table."""
    table = said.partition("Job stats:")[2].partition("total")[0]
    counts = {name: int(count) for name, count in re.findall(r"(?m)^(\w+) +(\d+)$", table)}
    return {name: count for name, count in counts.items() if name != "all"}


# Damaged bytes


def flip(path: Path) -> None:
    """Turn over one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def damaged_files(study: Study) -> list[str]:
    """One of every kind that a step leaves, over all steps and several runs."""
    first, second, *_ = study.runs
    return [
        "store/images.npy", "store/masks.npy", "store/reference.npy", "store/index.csv",
        "store/store.json", "audit/leakage.csv", f"runs/{first}/scores.csv",
        f"runs/{first}/history.csv", f"runs/{second}/run.json", f"runs/{second}/calibration.csv",
        f"notebooks/3-train-{second}.ipynb", "notebooks/4-compare.ipynb", "compare/summary.csv",
        "compare/selected.json", "report.html",
    ]  # fmt: skip


def damage(bench: Bench, how: Callable[[Path], None], names: list[str] | None = None) -> Study:
    """Damage files of a finished study, and hold the next start to naming and remaking them."""
    study = bench.finished()
    names = names or damaged_files(study)
    for name in names:
        how(study.results / name)
    said = bench.restart(study)
    for name in names:
        told(said, name)
    return study


@fault
def flipped_bits(bench: Bench) -> str:
    names = damaged_files(damage(bench, flip))
    return f"one bit in each of {len(names)} files of a finished study; all named"


@fault
def truncated_files(bench: Bench) -> str:
    names = damaged_files(damage(bench, truncate))
    return f"a third cut off each of {len(names)} files of a finished study; all named"


@fault
def damaged_weights(bench: Bench) -> str:
    """One file at a time: nothing else gives the start a reason to look at the run."""
    for how, run in ((flip, 0), (truncate, -1)):
        damage(bench, how, [f"runs/{bench.undisturbed.runs[run]}/model.pt"])
    return "model.pt of a finished run flipped, of another truncated"


@fault
def damaged_checkpoints(bench: Bench) -> str:
    """The newest of one run; of another both, so that it has to begin anew."""
    study, trained, _ = stop_while_training(bench, Study.lose_power)
    for run in trained:
        flip(study.results / "runs" / run / "checkpoint.pt")
    said = bench.restart(study)
    for run in trained:
        log = (study.results / "logs" / f"3-train-{run}.ipynb").read_text()
        assert "checkpoint.pt" in said + log, f"nobody said that {run} lost a checkpoint"
    study, trained, _ = stop_while_training(bench, Study.lose_power)
    for run in trained:
        for path in (study.results / "runs" / run).glob("checkpoint*"):
            truncate(path)
    bench.restart(study)
    return f"of {len(trained)} runs killed in training the newest flipped; then all truncated"


# Disks


@contextlib.contextmanager
def small_disk(study: Study, mib: int = 96) -> Iterator[Callable[[int], None]]:
    """Move a study's results to a small disk of their own; gives what fills it.

    The function takes the bytes to leave free, and writes the rest full; None empties it again.
    """
    aside = study.folder / "aside"
    study.results.mkdir(parents=True, exist_ok=True)
    study.results.rename(aside)
    study.results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", study.results]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"no disk can be mounted here: {done.stderr.strip()}")
    ballast = study.results / "ballast"

    def fill(leave: int | None) -> None:
        if leave is None:
            return ballast.unlink()
        free = shutil.disk_usage(study.results).free - leave
        with open(ballast, "ab") as file, contextlib.suppress(OSError):
            for _ in range(max(0, free) // 4096 + (leave == 0)):
                file.write(bytes(4096))
                file.flush()
        return None

    try:
        shutil.copytree(aside, study.results, dirs_exist_ok=True)
        yield fill
    finally:
        study.lose_power()
        kept = study.folder / "kept"  # what a failed fault left can be looked at
        shutil.copytree(study.results, kept, ignore=shutil.ignore_patterns("ballast"))
        subprocess.run(["umount", "--lazy", study.results], check=True)
        shutil.copytree(kept, study.results, dirs_exist_ok=True)


def disk_full(study: Study) -> str:
    """Hold a study whose disk is full to saying so and leaving nothing half done; what it said."""
    code, said = study.end()
    assert code == 1, f"ended with {code} on a full disk:\n{said[-3000:]}"
    line = told(said, "error:", "full")
    left = [path.name for path in study.results.rglob("*") if ".partial" in path.name]
    assert not left, f"partial files on a full disk: {left}"
    return line


@fault
def disk_full_in_store(bench: Bench) -> str:
    study = bench.fresh()
    results = bench.undisturbed.results
    with small_disk(study) as fill:
        leave = disk_used(results / "phantom") + disk_used(results / "store") // 2
        fill(leave)
        study.start()
        line = disk_full(study)
        assert "1-preprocess" in line, line
        fill(None)
        bench.restart(study)
    return f"{leave / MIB:.0f} MiB free at the start: frames fit, the store does not"


@fault
def disk_full_in_checkpoint(bench: Bench) -> str:
    study = bench.prepared()
    with small_disk(study) as fill:
        study.start()
        study.wait_for(study.training)
        fill(0)
        line = disk_full(study)
        assert "checkpoint" in line, line
        kept = [run for run in study.runs if epochs_kept(study, run) >= 1]
        assert kept, "the last good checkpoint is gone"
        fill(None)
        bench.restart(study)
        for run in kept:
            resumed(study, run)
    return f"full while runs train; {len(kept)} good checkpoints kept, and gone on from"


@fault
def disk_full_in_tables(bench: Bench) -> str:
    """First in a run that has its weights, then in the comparison."""
    study = bench.prepared()

    def scoring() -> list:
        return list(study.results.glob("runs/*/model.pt"))

    def comparing() -> bool:
        return "4-compare" in study.making()

    with small_disk(study) as fill:
        for moment in (scoring, comparing):
            study.start()
            study.wait_for(moment)
            fill(0)
            disk_full(study)
            fill(None)
        bench.restart(study)
    return "full while a run is scored; again while the runs are compared"


@fault
def disk_read_only(bench: Bench) -> str:
    study = bench.prepared()
    with small_disk(study):
        remount = ["mount", "-o", "remount,ro", study.results]
        subprocess.run(remount, check=True)
        code, said = study.run()
        assert code in (1, 2), code
        told(said, "error:", "read-only", study.results.name)
        subprocess.run([*remount[:2], "remount,rw", study.results], check=True)
        bench.restart(study)
    return "results mounted read-only"


# One run that cannot succeed


@fault
def a_run_that_cannot_succeed(bench: Bench) -> str:
    """A folder lies where its weights belong."""
    study, run = bench.prepared(), bench.undisturbed.runs[0]
    lost, step = study.results / "runs" / run / "model.pt", f"3-train-{run}"
    (lost / "in-the-way").mkdir(parents=True)
    code, said = study.run()
    assert code == 1
    told(said, "error:", step, "model.pt")
    for other in study.trains:
        made = (study.results / "notebooks" / f"{other}.ipynb").exists()
        assert made == (other != step), f"{other}: {'made' if made else 'not made'}"
    page = (study.results / "report.html").read_text(encoding="utf-8")
    failed = re.search(r'(?s)<section id="failed">.*?</section>', page)
    assert failed, "the report has no section of what failed"
    for words in (step, "model.pt", f"logs/{step}"):
        assert words in failed[0], f"the report's failed section lacks {words}: {failed[0][:2000]}"
    shutil.copy(study.results / "report.html", bench.folder.parent / "failed-report.html")
    shutil.rmtree(lost)
    said = bench.restart(study)
    ran = steps_of(said)
    assert ran == {"train": 1, "compare": 1, "report": 1}, ran
    return "the others finished, the report names it, and it alone was run after the fix"


@fault
def time_budget(bench: Bench) -> str:
    study = bench.prepared()
    code, said = study.run("--config", "budget_minutes=0.15")
    assert code, "a study that ran out of its budget ended with 0"
    told(said, "budget")
    stopped = [run for run in study.runs if epochs_kept(study, run) >= 1]
    bench.restart(study)
    for run in stopped:
        resumed(study, run)
    assert "Nothing to be done" in study.finish("--config", "budget_minutes=60")
    return f"0.15 minutes: {len(stopped)} runs stopped in training, and went on"


@fault
def peak_disk(bench: Bench) -> str:
    """Beside frames and results never more than two checkpoints for each run that is under way.

    A checkpoint holds weights, Adam's two moments and the best weights so far, four times the
    weights; while one is written there are the previous one and the new one's partial file.
    """
    disk = bench.disk
    bound = disk["end"] + 2 * 3 * 4 * disk["largest_weights"]  # two cores, so two runs at once
    assert disk["peak"] <= bound, f"peak {disk['peak']}, bound {bound}"
    assert not any(HALF_DONE.search(name) for name in bench.reference)
    peak, end = (disk[name] / (disk["store"] + disk["weights"]) for name in ("peak", "end"))
    return f"peak {peak:.1f}, end {end:.1f} times store and weights; bound {bound / MIB:.0f} MiB"


# Report


def attempt(bench: Bench, name: str) -> Outcome:
    """Run one fault; whatever goes wrong is its verdict."""
    outcome = bench.outcome = Outcome(name)
    began = time.monotonic()
    try:
        outcome.injected = FAULTS[name](bench)
    except Skip as reason:
        outcome.verdict, outcome.detail = "skipped", str(reason)
    except Exception as error:
        outcome.verdict = "LOST"
        known = isinstance(error, AssertionError)
        outcome.detail = str(error) if known else traceback.format_exc()
    outcome.seconds = round(time.monotonic() - began, 1)
    while bench.made:
        bench.made.pop().remove()
    return outcome


def table(outcomes: list[Outcome]) -> str:
    rows = [
        "| fault | injected | kills | s | files | MiB | verdict |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for each in outcomes:
        size = f"{each.bytes / MIB:.0f}" if each.bytes else ""
        injected = each.injected or each.detail.partition("\n")[0][:100]
        rows.append(
            f"| {each.name} | {injected} | {each.kills or ''} | {each.seconds:.0f} |"
            f" {each.files or ''} | {size} | {each.verdict} |"
        )
    return "\n".join(rows)


def summary(bench: Bench, outcomes: list[Outcome], command: str) -> str:
    """What `--write` puts into the page: every number of it comes from this run."""
    done = [each for each in outcomes if each.verdict == "survived"]
    disk = {name: f"{size / MIB:.1f}" for name, size in bench.disk.items()}
    skipped = sum(each.verdict == "skipped" for each in outcomes)
    return "\n".join(
        [
            f"`{command}` on {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores,"
            f" {platform.system()}, Python {platform.python_version()}:",
            f"{len(done)} of {len(outcomes)} faults survived, {skipped} skipped;"
            f" {sum(each.kills for each in done)} random kills;"
            f" {sum(each.files for each in done):,} files"
            f" ({sum(each.bytes for each in done):,} bytes) compared, none differs. The study"
            f" undisturbed has {len(bench.reference)} such files.",
            "",
            table(outcomes),
            "",
            f"Disk of the undisturbed study, MiB: peak {disk['peak']}, end {disk['end']};"
            f" store {disk['store']}, weights of all runs {disk['weights']}.",
        ]
    )


def write_page(text: str) -> None:
    """Renew what stands between the marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(MARKS[0])
    _, closed, after = rest.partition(MARKS[1])
    assert found + closed == "".join(MARKS), f"{PAGE.name} has lost its marks"
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


def own_namespace() -> None:
    """Not root? Start again where mounting is allowed, if the system has such a place."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    may = shutil.which("unshare") and not subprocess.run([*unshare, "true"]).returncode
    if os.geteuid() and may:
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=24, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the faults")
    parser.add_argument("--write", action="store_true", help="renew the figures of docs/sturdy.md")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "torture.json")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(FAULTS))
        return 0
    own_namespace()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    outcomes, names = [], asked.only or list(FAULTS)
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), count=asked.kills, seed=asked.seed)
        try:
            bench.run_undisturbed()
            usual = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in bench.usual.items())
            print(f"undisturbed: {len(bench.reference)} files; {usual}", flush=True)
            for name in names:
                outcomes.append(attempt(bench, name))
                print(f"{name}: {outcomes[-1].verdict} {outcomes[-1].detail}", flush=True)
        finally:
            for study in (bench.undisturbed, *bench.made):
                study.lose_power()
    print(f"\n{table(outcomes)}")
    asked.json.parent.mkdir(exist_ok=True)
    about = {"seed": asked.seed, "disk": bench.disk, "faults": [asdict(each) for each in outcomes]}
    asked.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    if asked.write:
        write_page(summary(bench, outcomes, f"python tests/torture.py --seed {asked.seed}"))
    return int(any(each.verdict == "LOST" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

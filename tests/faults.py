"""What can happen to a study, one function each; the docstrings say what is not plain.

Each does its worst to a study of the bench, reads what the user is told, takes the cause away, and
ends in `bench.restart` or `bench.compare`, which hold every byte against the undisturbed study.
It returns what was injected, for the table.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import torch
from kills import kill_at_random
from tortured import HALF_DONE, MIB, SECONDS, Bench, Study, disk_used, told


class Skip(Exception):
    """This machine cannot have this fault."""


FAULTS: dict[str, Callable[[Bench], str]] = {}


def fault(function):
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


@fault
def kills(bench: Bench) -> str:
    done = kill_at_random(bench, bench.count, seed=bench.seed)
    for step, kind, where in done:
        print(f"  killed: {kind} in {step} {where.strip('-')}")
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


@fault
def workflow_killed_alone(bench: Bench) -> str:
    """Nobody tells its notebooks; they find out, and end as if told to stop."""
    return _signal(bench, lambda study: study.kill(study.workflow.pid))


def _signal(bench: Bench, send: Callable[[Study], None]) -> str:
    study, stopped, took = stop_while_training(bench, send)
    code, said = study.end()
    assert code, f"a stopped study ended with 0:\n{said[-2000:]}"
    assert "Traceback" not in said, said[-4000:]
    bench.restart(study)
    for run in stopped:
        resumed(study, run)
    return f"while runs train ({len(stopped)}); all ended in {took:.1f} s, with a checkpoint"


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
    """Turn over one bit in the middle; of weights, in the middle of the largest tensor.

    Between tensors there is padding, which means nothing and which nobody sums.
    """
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as records:
            largest = max(records.infolist(), key=lambda record: record.file_size)
            inner = records.read(largest)
        place = bytes(content).index(inner) + len(inner) // 2
    content[place] ^= 0x10
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
        "compare/selected.json",
    ]  # fmt: skip


def damage(bench: Bench, how: Callable[[Path], None], names: list[str] | None = None) -> Study:
    """Damage files of a finished study, and hold the next start to naming and remaking them.

    What was damaged may stay, put aside: it could be something that somebody edited.
    """
    study = bench.finished()
    names = names or damaged_files(study)
    for name in names:
        how(study.results / name)
    said = study.finish()
    for name in names:
        told(said, "note: ", name)
        (study.results / f"{name}.damaged").unlink(missing_ok=True)
    bench.compare(study)
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
        told(said, "note: ", "checkpoint.pt", run)
    study, trained, _ = stop_while_training(bench, Study.lose_power)
    for run in trained:
        for path in (study.results / "runs" / run).glob("checkpoint*"):
            truncate(path)
    bench.restart(study)
    return f"of runs killed in training ({len(trained)}) the newest flipped; then all truncated"


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
        with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(max(0, free) // 4096 + (leave == 0)):
                file.write(bytes(4096))
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


def disk_full(study: Study, fill: Callable, leave: int = 0) -> str:
    """Keep the disk full until the study ends, and hold it to saying so; what it said."""
    while study.workflow.poll() is None:
        if leave == 0:
            fill(0)  # again: what a failed step takes away would be room for the next
        time.sleep(0.1)
    code, said = study.end()
    assert code == 1, f"ended with {code} on a full disk:\n{said[-3000:]}"
    told(said, "error:", "full")
    left = [path.name for path in study.results.rglob("*.partial")]
    assert not left, f"partial files on a full disk: {left}"
    return said


@fault
def disk_full_in_store(bench: Bench) -> str:
    study = bench.fresh()
    results = bench.undisturbed.results
    with small_disk(study) as fill:
        leave = disk_used(results / "phantom") + disk_used(results / "store") // 2
        fill(leave)
        study.start()
        told(disk_full(study, fill, leave), "error:", "1-preprocess", "full")
        fill(None)
        bench.restart(study)
    return f"{leave / MIB:.0f} MiB free at the start: frames fit, the store does not"


@fault
def disk_full_in_checkpoint(bench: Bench) -> str:
    study = bench.prepared()
    with small_disk(study) as fill:
        study.start()
        study.wait_for(study.training)
        told(disk_full(study, fill), "error:", "3-train", "full")
        kept = [run for run in study.runs if epochs_kept(study, run) >= 1]
        assert kept, "the last good checkpoint is gone"
        fill(None)
        bench.restart(study)
        for run in kept:
            resumed(study, run)
    return f"full while runs train; good checkpoints kept ({len(kept)}), and gone on from"


@fault
def disk_full_in_tables(bench: Bench) -> str:
    """First in a run that has its weights, then in the comparison."""
    study = bench.prepared()

    def scoring() -> list:
        return [run for run in bench.missing if (study.results / f"runs/{run}/model.pt").exists()]

    def comparing() -> bool:
        return "4-compare" in study.making()

    with small_disk(study) as fill:
        for moment in (scoring, comparing):
            study.start()
            study.wait_for(moment)
            disk_full(study, fill)
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
    """A folder lies where its checkpoints belong; in the place of results it would be put aside."""
    study, run = bench.prepared(), bench.missing[0]
    lost, step = study.results / "runs" / run / "checkpoint.pt", f"3-train-{run}"
    (lost / "in-the-way").mkdir(parents=True)
    code, said = study.run()
    assert code == 1
    told(said, "error:", step, "checkpoint.pt")
    for other in study.trains:
        made = (study.results / "notebooks" / f"{other}.ipynb").exists()
        assert made == (other != step), f"{other}: {'made' if made else 'not made'}"
    page = (study.results / "report.html").read_text(encoding="utf-8")
    failed = re.search(r'(?s)<section id="unfinished">.*?</section>', page)
    assert failed, "the report has no section of what is unfinished"
    for words in (step, "checkpoint.pt", f"logs/{step}"):
        assert words in failed[0], f"the report's section lacks {words}: {failed[0][:2000]}"
    blamed = re.findall("<h2>(.*?)</h2>", failed[0])
    assert blamed == [step], f"the report blames {blamed}"
    shutil.rmtree(lost)
    said = bench.restart(study)
    ran = steps_of(said)
    assert ran == {"train": 1, "compare": 1, "report": 1}, ran
    return "the others finished, the report names it, and it alone was run after the fix"


@fault
def time_budget(bench: Bench) -> str:
    study = bench.prepared()
    usual = bench.usual[f"3-train-{bench.missing[0]}"]
    code, said = study.run("--config", f"budget_minutes={(3 + 0.3 * usual) / 60:.2f}")
    assert code, "a study that ran out of its budget ended with 0"
    told(said, "budget")
    stopped = [run for run in study.runs if epochs_kept(study, run) >= 1]
    bench.restart(study)
    for run in stopped:
        resumed(study, run)
    assert "Nothing to be done" in study.finish("--config", "budget_minutes=60")
    return f"over within a run's usual time; stopped in training ({len(stopped)}), and gone on"


@fault
def peak_disk(bench: Bench) -> str:
    """Beside what a study leaves never more than two checkpoints for each run that is under way.

    A checkpoint holds weights, Adam's two moments and the best weights so far, four times the
    weights; while one is written the one before is the other.
    """
    disk = bench.disk
    beside, bound = disk["peak"] - disk["end"], 2 * 2 * 4 * disk["largest_weights"]  # two runs
    assert beside <= bound, f"{beside} bytes beside the results, at most {bound} expected"
    assert not any(HALF_DONE.search(name) for name in bench.reference)
    peak, end = (disk[name] / (disk["store"] + disk["weights"]) for name in ("peak", "end"))
    return (
        f"at most {beside / MIB:.0f} MiB beside the results, bound {bound / MIB:.0f};"
        f" peak {peak:.1f}, end {end:.1f} times store and weights"
    )

"""What can happen to a study, one function each: it returns what it did, for the table.

It checks the messages to the user, removes the cause, and ends in `bench.restart` or
`bench.compare`, which compare every byte with the undisturbed study.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from kills import kill_at_random
from tiny_study import flip, steps_of
from tortured import MIB, Bench, Study, assert_no_traceback, disk_used, line_with


class Skip(Exception):
    """This machine cannot have this fault."""


FAULTS: dict[str, Callable[[Bench], str]] = {}


def fault(function):
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


@fault
def kills(bench: Bench) -> str:
    done = kill_at_random(bench, bench.kills, seed=bench.seed)
    done = [(re.sub("-train-.*", "-train", step), kind, where) for step, kind, where in done]
    steps, whom, runs = (
        ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
        for names in zip(*done, strict=True)
    )
    return f"SIGKILL of {whom}; in {steps} (of the runs: {runs})"


def stop_while_training(bench: Bench, send: Callable[[Study], None]) -> tuple[Study, list, float]:
    """Stop a prepared study once a run has kept an epoch; return it, such runs, and the seconds."""
    study = bench.prepared()
    study.start()
    runs = study.wait_for(study.training)
    send(study)
    seconds = study.wait_until_alone()
    assert all(epochs_kept(study, run) >= 1 for run in runs), "a run has kept no epoch"
    return study, runs, seconds


def epochs_kept(study: Study, run: str) -> int:
    """Return how many epochs this run has kept, once its processes have ended; 0 for none."""
    folder = study.run_folder(run)
    states = [torch.load(path, weights_only=True) for path in folder.glob("checkpoint*.pt")]
    if (folder / "model.pt").exists():
        return int(study.settings["epochs"])
    return max((len(state["history"]) for state in states), default=0)


def assert_resumed(study: Study, *runs: str) -> None:
    """Check that runs went on from an epoch that they had kept."""
    for run in runs:
        trained = json.loads((study.run_folder(run) / "run.json").read_text())["trained_epochs"]
        assert trained < int(study.settings["epochs"]), f"{run} trained all of its epochs again"


def _stopped(bench: Bench, send: Callable[[Study], None]) -> str:
    study, runs, seconds = stop_while_training(bench, send)
    code, said = study.end()
    assert code, f"a stopped study ended with 0:\n{said[-2000:]}"
    assert_no_traceback(said)
    bench.restart(study)
    assert_resumed(study, *runs)
    return f"while runs train ({len(runs)}); all ended in {seconds:.1f} s, with a kept epoch"


FAULTS["sigterm"] = partial(_stopped, send=lambda study: study.workflow.send_signal(signal.SIGTERM))
# As Ctrl-C does it: to the whole process group.
FAULTS["sigint"] = partial(_stopped, send=lambda s: os.killpg(s.workflow.pid, signal.SIGINT))
# Nothing signals its notebooks then; they notice it, and end as after a signal.
FAULTS["workflow-killed-alone"] = partial(_stopped, send=lambda s: s.kill(s.workflow.pid))


@fault
def time_budget(bench: Bench) -> str:
    study = bench.prepared()
    usual = bench.usual[f"3-train-{bench.missing[0]}"]
    minutes = f"budget_minutes={(3 + 0.3 * usual) / 60:.2f}"
    line_with(study.finish("--config", minutes, codes=(1,)), "budget")
    stopped = [run for run in bench.missing if epochs_kept(study, run) >= 1]
    bench.restart(study)
    assert_resumed(study, *stopped)
    assert "Nothing to be done" in study.finish("--config", "budget_minutes=60")
    return f"over within a run's usual time; stopped in training ({len(stopped)}), and gone on"


def second_start(study: Study) -> None:
    """Start a running study once more: it must be refused, and name the first one's process."""
    how = {"cwd": study.project, "env": study.environment(), "text": True, "timeout": 300}
    second = subprocess.run(study.workflow.args, stderr=subprocess.PIPE, **how)
    assert second.returncode == 2, second.stderr
    line_with(second.stderr, "error:", str(study.workflow.pid))


@fault
def loss_is_nan(bench: Bench) -> str:
    """A learning rate at which this study's U-Net overflows in its second or third epoch."""
    study, run = bench.prepared(), "unet-grouped-fold0-seed0"
    given = "lr=1.6e10", "models=[unet]", "protocols=[grouped]"
    said = study.finish("--config", *given, codes=(1,))
    line_with(said, "error:", f"3-train-{run}", "nan", "epoch", "lr 1.6e+10", "lower lr")
    kept = epochs_kept(study, run)
    assert kept >= 1, "the last good checkpoint is gone"
    bench.restart(study)
    return f"lr 1.6e10: NaN in epoch {kept + 1}, the checkpoint of epoch {kept} kept"


@fault
def future_times(bench: Bench) -> str:
    study, year_2100 = bench.finished(), 4102444800
    for part in ("results", "notebooks", "thyroid_lib", "parameters", "workflow"):
        for path in (study.project / part).rglob("*"):
            os.utime(path, (year_2100, year_2100))
    (study.results / "compare" / "summary.csv").unlink()
    assert steps_of(bench.restart(study)) == {"compare": 1, "report": 1}
    assert "Nothing to be done" in study.finish()
    return "every file of 2100, one table deleted: compare and report alone ran"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def damage(bench: Bench, how: Callable[[Path], None], names: list[str]) -> None:
    """Damage files of a finished study: the next start must name them and make them again."""
    study = bench.finished()
    for name in names:
        how(study.results / name)
    said = study.finish()
    for name in names:
        line_with(said, "note: ", name)
        (study.results / f"{name}.damaged").unlink(missing_ok=True)
    bench.compare(study)


def _damaged_files(bench: Bench, how: Callable[[Path], None], words: str) -> str:
    """Damage one file of every kind that a step leaves, over all steps and several runs."""
    first, second, *_ = bench.undisturbed.runs
    names = [
        "store/images.npy", "store/masks.npy", "store/reference.npy", "store/index.csv",
        "store/store.json", "audit/leakage.csv", f"runs/{first}/scores.csv",
        f"runs/{first}/history.csv", f"runs/{second}/run.json", f"runs/{second}/calibration.csv",
        f"notebooks/3-train-{second}.ipynb", "notebooks/4-compare.ipynb", "compare/summary.csv",
        "compare/selected.json",
    ]  # fmt: skip
    damage(bench, how, names)
    return f"{words} each of {len(names)} files of a finished study; all named"


FAULTS["flipped-bits"] = partial(_damaged_files, how=flip, words="one bit in")
FAULTS["truncated-files"] = partial(_damaged_files, how=truncate, words="a third cut off")


@fault
def damaged_weights(bench: Bench) -> str:
    """One file at a time: nothing else gives the start a reason to look at the run."""
    for how, run in ((flip, 0), (truncate, -1)):
        damage(bench, how, [f"runs/{bench.undisturbed.runs[run]}/model.pt"])
    return "model.pt of a finished run flipped, of another truncated"


@fault
def damaged_checkpoints(bench: Bench) -> str:
    """The newest of a run's; then all of them, so that it has to begin anew."""
    for how, pattern in ((flip, "checkpoint.pt"), (truncate, "checkpoint*.pt")):
        study, runs, _ = stop_while_training(bench, Study.lose_power)
        damaged = [path for run in runs for path in study.run_folder(run).glob(pattern)]
        for path in damaged:
            how(path)
        said = bench.restart(study)
        for path in damaged:
            line_with(said, "note: ", path.name, path.parent.name)
    return f"of runs killed in training ({len(runs)}) the newest flipped; then all truncated"


@contextlib.contextmanager
def small_disk(study: Study, mib: int = 96) -> Iterator[Callable[[int], None]]:
    """Move a study's results to a small disk; yield the function that fills it but for so much."""
    aside = study.folder / "aside"
    study.results.mkdir(parents=True, exist_ok=True)
    study.results.rename(aside)
    study.results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", study.results]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"no disk can be mounted here: {done.stderr.strip()}")

    def fill(leave: int) -> None:
        free = shutil.disk_usage(study.results).free - leave
        with open(study.results / "ballast", "ab", 0) as file, contextlib.suppress(OSError):
            for _ in range(max(0, free) // 4096 + (leave == 0)):
                file.write(bytes(4096))

    try:
        shutil.copytree(aside, study.results, dirs_exist_ok=True)
        yield fill
    finally:
        study.lose_power()
        subprocess.run(["umount", "--lazy", study.results], check=True)


def fill_disk(bench: Bench, study: Study, moments: list, *words: str, leave: int = 0) -> list[str]:
    """Fill the disk at each moment until the study ends, which must say so; then give it room.

    With `leave`, so many bytes stay free from the start on instead. Return the runs that had kept
    an epoch by then; they went on from it.
    """
    with small_disk(study) as fill:
        for moment in moments:
            if leave:
                fill(leave)
            study.start()
            study.wait_for(moment)
            while study.workflow.poll() is None:
                if not leave:
                    fill(0)  # again: what a failed step removes would be room for the next
                time.sleep(0.1)
            code, said = study.end()
            assert code == 1, f"ended with {code} on a full disk:\n{said[-3000:]}"
            line_with(said, "error:", "full", *words)
            assert not list(study.results.rglob("*.partial"))
            kept = [run for run in bench.missing if epochs_kept(study, run) >= 1]
            (study.results / "ballast").unlink()
        bench.restart(study)
        assert_resumed(study, *kept)
    return kept


@fault
def disk_full_in_store(bench: Bench) -> str:
    study, results = bench.fresh(), bench.undisturbed.results
    leave = disk_used(results / "phantom") + disk_used(results / "store") // 2
    fill_disk(bench, study, [study.processes], "1-preprocess", leave=leave)
    return f"{leave / MIB:.0f} MiB free at the start: frames fit, the store does not"


@fault
def disk_full_in_checkpoint(bench: Bench) -> str:
    study = bench.prepared()
    kept = fill_disk(bench, study, [study.training], "3-train")
    assert kept, "the last good checkpoint is gone"
    return f"full while runs train; good checkpoints kept ({len(kept)}), and gone on from"


@fault
def disk_full_in_tables(bench: Bench) -> str:
    """First in a run that has its weights, then in the comparison."""
    study = bench.prepared()

    def scoring() -> bool:
        return any((study.run_folder(run) / "model.pt").exists() for run in bench.missing)

    fill_disk(bench, study, [scoring, lambda: "4-compare" in study.steps_at_work()])
    return "full while a run is scored; again while the runs are compared"


@fault
def disk_read_only(bench: Bench) -> str:
    study = bench.prepared()
    with small_disk(study):
        remount = ["mount", "-o", "remount,ro", study.results]
        subprocess.run(remount, check=True)
        line_with(study.finish(codes=(1, 2)), "error:", "read-only", study.results.name)
        subprocess.run([*remount[:2], "remount,rw", study.results], check=True)
        bench.restart(study)
    return "results mounted read-only"


@fault
def peak_disk(bench: Bench) -> str:
    """Beside its results a study takes two checkpoints at most for each of two runs under way.

    A checkpoint holds weights, Adam's two moments and the best weights so far: four times weights.
    """
    disk = bench.disk
    beside, bound = disk["peak"] - disk["end"], 2 * 2 * 4 * disk["largest_weights"]
    assert beside <= bound, f"{beside} bytes beside the results, at most {bound} expected"
    return f"at most {beside / MIB:.0f} MiB beside the results, bound {bound / MIB:.0f}"

"""What trains to the same bits, and how close the rest comes: one thing changed at a time.

    .venv/bin/python benchmarks/bench.py bits    # with the versions that the demo is locked to

The demo's networks are trained as the demo trains them (parameters/demo.yaml, frames split at
random), then so again with one thing changed, in processes of their own, since much of it must be
set before torch loads. Two runs are the same if their weights, their logits on the test frames and
their table of scores are, to the bit. Nothing here is a time: processes run side by side, those of
several threads by themselves.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import thyroid_lib
from thyroid_lib import models
from thyroid_lib.data import frames, splits, store
from thyroid_lib.evaluate import predict
from thyroid_lib.files.parallel import cores
from thyroid_lib.settings import read_study
from thyroid_lib.study.runner import PINNED
from thyroid_lib.train import recipe as train
from thyroid_lib.train import run
from thyroid_lib.train.device import choose_device
from timing import figure, median, spread

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
ONE = (0,)
QUICK_SEEDS = (0, 1)
QUICK = {"width": 2, "size": 32, "epochs": 2, "phantom_frames": 2}
EMULATOR = "qemu-x86_64", "-cpu", "Haswell"  # Intel, without AVX-512: Debian's qemu-user


@dataclass(frozen=True)
class Way:
    """How one set of runs, a run per model and seed, is trained and scored."""

    seeds: tuple[int, ...] = SEEDS
    train: dict = field(default_factory=dict)  # of `run.train_model`, unlike the demo's
    score: dict = field(default_factory=dict)  # of `predict.score_rows`
    weights: str = ""  # scores what another way of its process has trained
    contiguous: bool = False  # layout in memory; else channels_last, as the project trains
    killed: bool = False  # outright, in the middle of an epoch, and started again


@dataclass(frozen=True)
class Process:
    """What is set before a Python starts; it goes through its ways in turn, once for each seed."""

    ways: dict[str, Way]
    pinned: bool = True  # see `runner.PINNED`
    threads: int = 1
    environment: dict = field(default_factory=dict)
    backwards: bool = False  # the models in the other order
    elsewhere: bool = False  # copies of data and library in another folder, of another user
    emulated: bool = False
    on_gpu: bool = False


GPU = choose_device("auto").type  # "cpu" where there is none
AUGMENTED = Way(ONE, train={"augment": "standard"})
FREE_BF16 = {"train": {"precision": "bf16"}}
ONE_EPOCH = Way(ONE, train={"epochs": 1})
PROCESSES = (
    Process({"emulated": ONE_EPOCH}, emulated=True),  # the slowest, so it starts first
    Process(
        {
            "demo": Way(),
            "same process": Way(ONE),
            "one epoch": ONE_EPOCH,
            "two workers": Way(score={"workers": 2}, weights="demo"),
            "other batches": Way(score={"batch_size": 5}, weights="demo"),
        }
    ),
    Process({"new process": Way(ONE)}),
    Process({"other order": Way(ONE)}, backwards=True, environment={"PYTHONHASHSEED": "1"}),
    Process({"elsewhere": Way(ONE)}, elsewhere=True),
    Process({"killed": Way(ONE, killed=True)}),
    Process({"augmented": AUGMENTED}),
    Process({"augmented again": AUGMENTED}),
    Process({"contiguous": Way(contiguous=True)}),
    Process({"free": Way()}, pinned=False),
    Process({"free again": Way(ONE)}, pinned=False),
    Process({"bf16": Way(**FREE_BF16)}, pinned=False),
    Process({"bf16 again": Way(ONE, **FREE_BF16)}, pinned=False),
    Process({"two threads": Way(train={"threads": 2})}, threads=2),
    Process({"two threads again": Way(ONE, train={"threads": 2})}, threads=2),
    Process({"gpu": Way(train={"device": GPU})}, on_gpu=True),
    Process({"gpu again": Way(ONE, train={"device": GPU})}, on_gpu=True),
)
# What is changed, from which way to which, and whether the bits must stay the same.
ROWS = (
    ("nothing: trained again in the same process", "demo", "same process", True),
    ("nothing: trained again in a new process", "demo", "new process", True),
    ("order of the runs, PYTHONHASHSEED", "demo", "other order", True),
    ("folder of data, results and library; user", "demo", "elsewhere", True),
    ("killed in the middle of an epoch, started again", "demo", "killed", True),
    ("`augment: standard`, trained again", "augmented", "augmented again", True),
    ("processor: an emulated Intel Haswell, one epoch", "one epoch", "emulated", True),
    ("workers that score: 2 for 1", "demo", "two workers", True),
    ("batches when scoring: 5 frames for 16", "demo", "other batches", False),
    ("2 threads, trained again", "two threads", "two threads again", True),
    ("threads: 2 for 1", "demo", "two threads", False),
    ("not pinned, trained again", "free", "free again", True),
    ("instructions: not pinned", "demo", "free", False),
    ("layout in memory: contiguous for channels_last", "demo", "contiguous", False),
    ("not pinned, bf16, trained again", "bf16", "bf16 again", True),
    ("not pinned, bf16 for fp32", "free", "bf16", False),
    ("on a GPU, trained again", "gpu", "gpu again", False),
    ("GPU for CPU", "demo", "gpu", False),
)
OTHER_SEED = "for comparison: another seed"


def missing(process: Process, quick: bool) -> str:
    """Say why a process cannot run here; "" if it can."""
    if process.emulated and quick:
        return "takes minutes"
    if process.emulated and (platform.machine() != "x86_64" or not shutil.which(EMULATOR[0])):
        return f"no {EMULATOR[0]} here"
    return "no GPU here" if process.on_gpu and GPU == "cpu" else ""


def settings_of(quick: bool) -> dict:
    """The demo's settings; few and small frames where it must be quick."""
    return read_study([ROOT / "parameters" / "demo.yaml"]) | (QUICK if quick else {})


def measure(asked, rows: tuple = ROWS) -> dict:
    """Train every way that a row names, and hold against each other what it names."""
    how, seeds = settings_of(asked.quick), QUICK_SEEDS if asked.quick else SEEDS
    why = {name: missing(each, asked.quick) for each in PROCESSES for name in each.ways}
    needed = {"demo"} | {name for _, *pair, _ in rows for name in pair}
    there = [(n, each) for n, each in enumerate(PROCESSES) if needed & each.ways.keys()]
    there = [(n, each) for n, each in there if not missing(each, asked.quick)]
    with tempfile.TemporaryDirectory(prefix="thyroid-bits-") as folder:
        folder = Path(folder)
        build(folder, how)
        narrow = [(n, seed) for n, each in there if each.threads == 1 for seed in seeds]
        with ThreadPoolExecutor(min(8, cores())) as pool:
            list(pool.map(lambda job: start(*job, folder, asked.quick), narrow))
        for number, seed in [(n, seed) for n, each in there if each.threads > 1 for seed in seeds]:
            start(number, seed, folder, asked.quick)
        found = []
        for title, before, after, must in rows:
            row = {"title": title, "must": must}
            if gap := why[before] or why[after]:
                found.append(row | {"missing": gap})
            else:
                found.append(row | {"runs": pairs(folder, before, after)})
        found.append({"title": OTHER_SEED, "must": False, "runs": seed_pairs(folder)})
        capability = {
            name: json.loads(next(folder.glob(f"seen/{name}/*.json")).read_text())["instructions"]
            for name in ("demo", "free")
            if (folder / "seen" / name).is_dir()
        }
    kept = ("width", "size", "epochs", "batch_size", "lr", "models")
    return {
        "rows": found, "how": {name: how[name] for name in kept}, "instructions": capability,
        "torch": torch.__version__.split("+")[0],
    }  # fmt: skip


def build(folder: Path, how: dict) -> None:
    """Draw the frames and build the store that every run reads."""
    names = ("sweeps", "frames", "seed", "text")
    drawn = {name: how[f"phantom_{name}"] for name in names}
    cases = store.load_cases("phantom", folder=folder / "phantom", **drawn)
    settings = {name: how[name] for name in ("size", "resize", "mend")}
    store.build_store(cases, folder / "store", **settings)


def start(number: int, seed: int, folder: Path, quick: bool) -> None:
    """Run one process of `PROCESSES` to its end, however often it is killed on the way.

    Raises:
        RuntimeError: it failed; the message holds what it printed.
    """
    process = PROCESSES[number]
    if not any(seed in way.seeds for way in process.ways.values()):
        return
    library, home = Path(thyroid_lib.__file__).parent, folder
    if process.elsewhere:
        home = folder / "elsewhere" / f"of somebody {seed}"
        shutil.copytree(folder / "store", home / "store")
        library = shutil.copytree(library, home / "code" / "thyroid_lib")
    kept = {name: value for name, value in os.environ.items() if name not in PINNED}
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # as the runner does
    kept |= dict.fromkeys(threads, str(process.threads)) | process.environment
    kept |= PINNED if process.pinned else {}
    kept |= {"PYTHONPATH": os.pathsep.join(map(str, (library.parent, Path(__file__).parent)))}
    if process.elsewhere:
        kept |= {"HOME": str(home), "USER": "somebody"}
    command = [sys.executable]
    if process.emulated:  # which starts no link of a virtual environment
        command = [*EMULATOR, str(Path(sys.executable).resolve())]
        kept["PYTHONPATH"] += os.pathsep + os.pathsep.join(path for path in sys.path if path)
    command += [__file__, str(number), str(seed), str(folder), str(home), *["--quick"] * quick]
    while True:
        done = subprocess.run(command, env=kept, cwd=home, capture_output=True, text=True)
        if done.returncode != -signal.SIGKILL or not any(w.killed for w in process.ways.values()):
            break
    if done.returncode:
        raise RuntimeError(f"{', '.join(process.ways)} failed:\n{done.stdout}{done.stderr}")


def train_ways(process: Process, seed: int, folder: Path, home: Path, quick: bool) -> None:
    """In a process of its own: train and score, and leave in folder/seen what others compare."""
    how = settings_of(quick)
    data = store.open_store(home / "store")
    names = how["models"][::-1] if process.backwards else how["models"]
    for way_name, way in process.ways.items():
        for model in names if seed in way.seeds else ():
            out = home / "runs" / (way.weights or way_name) / f"{model}-{seed}"
            seen = folder / "seen" / way_name / f"{model}-{seed}"
            if not seen.with_suffix(".json").exists():
                look(train_run(data, out, model, seed, way, how), data, way, how, seen)


def train_run(data, out: Path, model: str, seed: int, way: Way, how: dict) -> tuple:
    """Train one run as the study does; return the network and the rows of the test cases."""
    names = ("width", "epochs", "batch_size", "lr", "augment", "threads", "device", "precision")
    asked = {name: how[name] for name in names} | way.train
    split = {"protocol": "random", "folds": how["folds"], "val_share": how["val_share"]}
    if way.killed:
        labels = splits.split_cases(data.index, **split)
        steps = math.ceil((labels == "train").sum() / asked["batch_size"])
        die_once(out.with_suffix(".died"), asked["epochs"] // 2 * steps + steps // 2)
    if not way.contiguous:
        done = run.train_model(data, out=out, model=model, seed=seed, **split, **asked)
        if way.killed and not 0 < done.meta["trained_epochs"] < asked["epochs"]:
            raise RuntimeError(f"{out.name} did not go on where it was killed")
        return done.model, np.flatnonzero(done.sides == "test")
    labels = splits.split_cases(data.index, **split)
    net = models.build_model(model, width=asked["width"])
    torch.set_num_threads(asked["threads"])
    images, masks = run.place_frames(data, torch.device("cpu"))
    rows = torch.from_numpy(np.flatnonzero(labels == "train"))
    part = {name: asked[name] for name in ("epochs", "batch_size", "lr", "augment", "precision")}
    for _ in train.fit(net, images, masks, rows=rows, seed=seed, **part):
        pass
    net = predict.restore_model(model, asked["width"], net.state_dict())  # scored as all others
    return net, np.flatnonzero(labels == "test")


def die_once(mark: Path, step: int) -> None:
    """Kill this process outright at this step from now, unless the mark says that it died."""
    if mark.exists():
        return
    taken = iter(range(step - 1, -1, -1))

    def die(*_) -> None:
        if next(taken) == 0:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die)


def look(trained: tuple, data, way: Way, how: dict, seen: Path) -> None:
    """Leave logits (N,S,S) and digests of a run's weights and scores under this name."""
    net, rows = trained
    batch = {name: way.score[name] for name in ("batch_size",) if name in way.score}
    logits = [part for _, part in predict.predict_logits(net, data.images, rows=rows, **batch)]
    scored = {name: how[name] for name in ("threshold", "tolerance_px")}
    cases = predict.score_rows(net, data, rows, **scored, **way.score).cases
    weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    seen.parent.mkdir(parents=True, exist_ok=True)
    np.save(seen.with_suffix(".npy"), torch.cat(logits)[:, 0].numpy())
    about = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "scores": hashlib.sha256(cases.to_csv().encode()).hexdigest(),
        "dice": float(cases["dice"].mean()),
        "threshold": how["threshold"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    seen.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")


def pairs(folder: Path, before: str, after: str) -> list[dict]:
    """Each run that both ways have, held against itself."""
    names = [path.stem for path in sorted((folder / "seen" / after).glob("*.json"))]
    return [
        {"run": name} | apart(*(folder / "seen" / way / name for way in (before, after)))
        for name in names
    ]


def seed_pairs(folder: Path, way: str = "demo") -> list[dict]:
    """Each model's runs, held against those of its other seeds."""
    files = sorted(path.with_suffix("") for path in (folder / "seen" / way).glob("*.json"))
    return [
        {"run": f"{a.name}, {b.name}"} | apart(a, b)
        for a, b in combinations(files, 2)
        if a.name.split("-")[0] == b.name.split("-")[0]
    ]


def apart(before: Path, after: Path) -> dict:
    """How far two runs are apart, of which `look` left what it saw under these names."""
    pair = [json.loads(p.with_suffix(".json").read_text("utf-8")) for p in (before, after)]
    logits = [np.load(path.with_suffix(".npy")) for path in (before, after)]  # (N,S,S) each
    same = all(pair[0][name] == pair[1][name] for name in ("weights", "scores"))
    probs = [torch.from_numpy(part).sigmoid().numpy() for part in logits]
    preds = [frames.threshold_prob(p, a["threshold"]) for p, a in zip(probs, pair, strict=True)]
    return {
        "same": bool(same and logits[0].tobytes() == logits[1].tobytes()),
        "pixels": float((preds[0] != preds[1]).mean()),
        "dice": pair[1]["dice"] - pair[0]["dice"],
        "logit": float(np.abs(logits[0] - logits[1]).max()),
    }


def show(found: dict) -> str:
    """The table, in Markdown."""
    how, free = found["how"], found["instructions"]
    words = f" ({free['free']} for {free['demo']})" if len(free) == 2 else ""
    lines = [
        f"torch {found['torch']}; {', '.join(how['models'])} of width {how['width']} at "
        f"{how['size']}×{how['size']} px, {how['epochs']} epochs, batch {how['batch_size']}, lr "
        f"{how['lr']:g}: the demo's runs under `random`, where a row says nothing else in fp32, on "
        f"one thread, with pinned instructions ({free.get('demo', '?')}). Same bits: of weights, "
        "logits on the test frames and scores. The other columns are the median over the runs, in "
        "brackets the lowest and the highest: pixels of the test frames whose masks differ, size "
        "of the change of the mean test Dice (beside it its mean over the runs, with its sign), "
        "largest change of a logit.",
        "",
        "| what is changed | same bits | pixels that differ | change of Dice | mean | of a logit |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        title = row["title"] + words * row["title"].endswith(": not pinned")
        if "missing" in row:
            lines.append(f"| {title} | not measured: {row['missing']} | | | | |")
        else:
            cells = _cells(row["runs"], signed=row["title"] != OTHER_SEED)
            lines.append(f"| {title} | {' | '.join(cells)} |")
    if shares := against_seeds(found["rows"]):
        words = "; ".join(f"{title} ({figure(share, 2)})" for title, share in shares.items())
        lines += ["", f"The median of pixels that differ, over that of another seed: {words}."]
    return "\n".join(lines)


def against_seeds(rows: list[dict]) -> dict[str, float]:
    """How much of another seed's effect on the masks a change has, for changes that have one."""
    there = [row for row in rows if row.get("runs")]
    pixels = {row["title"]: median([each["pixels"] for each in row["runs"]]) for row in there}
    seeds = pixels.pop(OTHER_SEED, 0)
    return {title: value / seeds for title, value in pixels.items() if value and seeds}


def _cells(runs: list[dict], *, signed: bool) -> Iterator[str]:
    same = sum(each["same"] for each in runs)
    word = {len(runs): "yes", 0: "no"}.get(same, "not always")
    yield f"{word}, {same} of {len(runs)}"
    pixels, dice, logit = ([each[name] for each in runs] for name in ("pixels", "dice", "logit"))
    yield f"{spread([100 * each for each in pixels], 2)}%" if any(pixels) else "0"
    yield spread([abs(each) for each in dice], 2) if any(dice) else "0"
    mean = sum(dice) / len(dice)
    sign = "+" if mean > 0 else "−"
    yield ("0" if not any(dice) else f"{sign}{figure(abs(mean), 2)}") if signed else "–"
    yield spread(logit, 2) if any(logit) else "0"


def reached(found: dict) -> dict[str, float]:
    """The share of the runs that must repeat to the bit, over all rows that were measured."""
    must = [each["same"] for row in found["rows"] if row["must"] for each in row.get("runs", [])]
    return {"same bits": sum(must) / len(must)} if must else {}


def main() -> None:
    """Be one of the processes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("number", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    process = PROCESSES[asked.number]
    train_ways(process, asked.seed, asked.folder, asked.home, asked.quick)


if __name__ == "__main__":
    sys.exit(main())

"""Which changes of the environment keep a training's bits, and how close the others come.

    .venv/bin/python benchmarks/bench.py bits    # with the versions that the demo is locked to

The demo's networks are trained as the demo trains them (parameters/demo.yaml, frames split at
random), then again with one thing changed, in processes of their own, because much of it must be
set before torch loads. Two runs are the same if their weights, their logits on the test frames and
their table of scores are, to the bit. Nothing is timed; processes run side by side, those of
several threads by themselves.
"""

import hashlib
import json
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

import ours
import thyroid_lib
from thyroid_lib.data import frames, splits, store
from thyroid_lib.evaluate import predict
from thyroid_lib.files.parallel import cores
from thyroid_lib.settings import read_study
from thyroid_lib.study.runner import PINNED
from timing import figure, median, spread, table

ROOT = Path(__file__).resolve().parent.parent
SEEDS, ONE = (0, 1, 2), (0,)
QUICK = {"width": 2, "size": 32, "epochs": 2, "phantom_frames": 2}
EMULATOR = "qemu-x86_64", "-cpu", "Haswell"  # Intel, without AVX-512: Debian's qemu-user
GPU = ours.pick_device().type  # "cpu" where there is none
OTHER_SEED = "for comparison: another seed"


@dataclass(frozen=True)
class Way:
    """How a run per model and seed is trained and scored, and with which way it is compared."""

    title: str = ""  # what is changed: a row of the table; "" for a way that others refer to
    base: str = "demo"  # the way it is compared with
    must: bool = True  # whether the bits must be the same
    seeds: tuple[int, ...] = ONE
    train: dict = field(default_factory=dict)  # settings that differ from the demo's
    score: dict = field(default_factory=dict)  # arguments of `predict.score_rows`
    weights: str = ""  # the way whose weights are scored; "" for its own
    process: str = ""  # the way in whose process it is trained, after it; "" for its own process
    pinned: bool = True  # see `runner.PINNED`
    threads: int = 1
    killed: bool = False  # by SIGKILL in the middle of an epoch, and started again
    backwards: bool = False  # models in reverse order, another PYTHONHASHSEED
    elsewhere: bool = False  # copies of data and library in another folder, of another user
    emulated: bool = False
    on_gpu: bool = False


AUGMENTED, BF16, SHORT = {"augment": "standard"}, {"precision": "bf16"}, {"epochs": 1}
FREE, TWO, ON_GPU = {"pinned": False}, {"threads": 2}, {"train": {"device": GPU}, "on_gpu": True}
WAYS = {  # in the order of the table
    "demo": Way(seeds=SEEDS),
    "one epoch": Way(train=SHORT, process="demo"),
    "augmented": Way(train=AUGMENTED),
    "same process": Way("nothing: trained again in the same process", process="demo"),
    "new process": Way("nothing: trained again in a new process"),
    "other order": Way("order of the runs, PYTHONHASHSEED", backwards=True),
    "elsewhere": Way("folder of data, results and library; user", elsewhere=True),
    "killed": Way("killed in the middle of an epoch, started again", killed=True),
    "augmented again": Way("`augment: standard`, trained again", "augmented", train=AUGMENTED),
    "emulated": Way(
        "processor: an emulated Intel Haswell, one epoch", "one epoch", train=SHORT, emulated=True
    ),
    "two workers": Way(
        "workers that score: 2 for 1", seeds=SEEDS, score={"workers": 2}, weights="demo",
        process="demo",
    ),
    "other batches": Way(
        "batches when scoring: 5 frames for 16", must=False, seeds=SEEDS, weights="demo",
        score={"batch_size": 5}, process="demo",
    ),
    "two threads again": Way("2 threads, trained again", "two threads", **TWO),
    "two threads": Way("threads: 2 for 1", must=False, seeds=SEEDS, **TWO),
    "free again": Way("not pinned, trained again", "free", **FREE),
    "free": Way("instructions: not pinned", must=False, seeds=SEEDS, **FREE),
    "bf16 again": Way("not pinned, bf16, trained again", "bf16", train=BF16, **FREE),
    "bf16": Way("not pinned, bf16 for fp32", "free", False, SEEDS, BF16, **FREE),
    "gpu again": Way("on a GPU, trained again", "gpu", False, **ON_GPU),
    "gpu": Way("GPU for CPU", must=False, seeds=SEEDS, **ON_GPU),
}  # fmt: skip


def missing(way: Way, quick: bool) -> str:
    """Return why a way cannot be trained here; "" if it can."""
    if way.emulated and quick:
        return "takes minutes"
    if way.emulated and (platform.machine() != "x86_64" or not shutil.which(EMULATOR[0])):
        return f"no {EMULATOR[0]} here"
    return "no GPU here" if way.on_gpu and GPU == "cpu" else ""


def settings_of(quick: bool) -> dict:
    """The demo's settings; with few and small frames if `quick`."""
    return read_study([ROOT / "parameters" / "demo.yaml"]) | (QUICK if quick else {})


def measure(args, names=tuple(WAYS)) -> dict:
    """Train the named ways and those they are compared with, and compare the pairs."""
    how, seeds = settings_of(args.quick), SEEDS[:2] if args.quick else SEEDS
    needed = {"demo", *names, *(WAYS[name].base for name in names)}
    starts = {WAYS[name].process or name for name in needed if not missing(WAYS[name], args.quick)}
    # the emulator is slowest, so it starts first
    starts = sorted(starts, key=lambda name: (not WAYS[name].emulated, name))
    jobs = [(name, seed) for name in starts for seed in WAYS[name].seeds if seed in seeds]
    with tempfile.TemporaryDirectory(prefix="thyroid-bits-") as folder:
        folder = Path(folder)
        drawn = {name: how[f"phantom_{name}"] for name in ("sweeps", "frames", "seed", "text")}
        cases = store.load_cases("phantom", folder=folder / "phantom", **drawn)
        sizes = {name: how[name] for name in ("size", "resize", "mend")}
        store.build_store(cases, folder / "store", **sizes)
        with ThreadPoolExecutor(min(8, cores())) as pool:
            narrow = [job for job in jobs if WAYS[job[0]].threads == 1]
            list(pool.map(lambda job: start(*job, folder, args.quick), narrow))
        for job in (job for job in jobs if WAYS[job[0]].threads > 1):
            start(*job, folder, args.quick)
        rows = []
        for name in (name for name in names if WAYS[name].title):
            way = WAYS[name]
            reason = missing(way, args.quick)
            result = {"missing": reason} if reason else {"runs": pairs(folder, way.base, name)}
            rows.append({"title": way.title, "must": way.must} | result)
        rows.append({"title": OTHER_SEED, "must": False, "runs": seed_pairs(folder)})
        files = {name: next(folder.glob(f"seen/{name}/*.json"), None) for name in ("demo", "free")}
        found = [(name, json.loads(file.read_text())) for name, file in files.items() if file]
        used = {name: about["instructions"] for name, about in found}
    kept = ("width", "size", "epochs", "batch_size", "lr", "models")
    return {
        "rows": rows, "how": {name: how[name] for name in kept}, "instructions": used,
        "torch": torch.__version__.split("+")[0],
    }  # fmt: skip


def start(name: str, seed: int, folder: Path, quick: bool) -> None:
    """Run the process of a way to its end; start it again if it was to be killed.

    Raises:
        RuntimeError: it failed; the message holds its output.
    """
    way, library, home = WAYS[name], Path(thyroid_lib.__file__).parent, folder
    variables = {key: value for key, value in os.environ.items() if key not in PINNED}
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # as in the runner
    variables |= dict.fromkeys(threads, str(way.threads)) | (PINNED if way.pinned else {})
    variables |= {"PYTHONHASHSEED": "1"} if way.backwards else {}
    if way.elsewhere:
        home = folder / "elsewhere" / f"of somebody {seed}"
        shutil.copytree(folder / "store", home / "store")
        library = shutil.copytree(library, home / "code" / "thyroid_lib")
        variables |= {"HOME": str(home), "USER": "somebody"}
    paths, command = [library.parent, Path(__file__).parent], [sys.executable]
    if way.emulated:  # the emulator does not follow the link in a virtual environment
        command = [*EMULATOR, str(Path(sys.executable).resolve())]
        paths += [path for path in sys.path if path]
    variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    command += [__file__, name, str(seed), str(folder), str(home), "quick" * quick]
    while True:
        done = subprocess.run(command, env=variables, cwd=home, capture_output=True, text=True)
        if done.returncode != -signal.SIGKILL or not way.killed:
            break
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout}{done.stderr}")


def main(name: str, seed: str, folder: str, home: str, quick: str) -> None:
    """Train and score in a process of its own; write what is compared to folder/seen."""
    how, seed = settings_of(bool(quick)), int(seed)
    data = store.open_store(Path(home, "store"))
    for way_name, way in WAYS.items():
        if name not in (way_name, way.process) or seed not in way.seeds:
            continue
        for model in how["models"][::-1] if way.backwards else how["models"]:
            out = Path(home, "runs", way.weights or way_name, f"{model}-{seed}")
            seen = Path(folder, "seen", way_name, f"{model}-{seed}")
            if not seen.with_suffix(".json").exists():
                look(*train(data, out, model, seed, way, how), data, way, how, seen)


def train(data, out: Path, model: str, seed: int, way: Way, how: dict) -> tuple:
    """Train one run as the study does; return the network and the rows of the test cases."""
    names = ("width", "epochs", "batch_size", "lr", "augment", "device", "precision")
    settings = {name: how[name] for name in names} | {"threads": way.threads} | way.train
    split = {"protocol": "random", "folds": how["folds"], "val_share": how["val_share"]}
    sides = splits.split_cases(data.index, **split)
    rows = {side: np.flatnonzero(sides == side) for side in ("train", "test")}
    if way.killed:
        steps = -(-len(rows["train"]) // settings["batch_size"])
        die_once(out.with_suffix(".died"), settings["epochs"] // 2 * steps + steps // 2)
    done = ours.train_run(data, out=out, model=model, seed=seed, **split, **settings)
    if way.killed and not 0 < done.meta["trained_epochs"] < settings["epochs"]:
        raise RuntimeError(f"{out.name} did not continue from its checkpoint")
    return done.model, rows["test"]


def die_once(mark: Path, step: int) -> None:
    """Kill this process at this optimiser step from now, unless the file `mark` exists."""
    if mark.exists():
        return
    left = iter(range(step - 1, -1, -1))

    def die(*_) -> None:
        if next(left) == 0:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(die)


def look(net, rows: np.ndarray, data, way: Way, how: dict, seen: Path) -> None:
    """Write logits (N,S,S) and digests of a run's weights and scores under this name."""
    batch = {name: way.score[name] for name in ("batch_size",) if name in way.score}
    logits = [part for _, part in predict.predict_logits(net, data.images, rows=rows, **batch)]
    scored = {name: how[name] for name in ("threshold", "tolerance_px")}
    cases = ours.score_rows(net, data, rows, **scored, **way.score)
    weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    seen.parent.mkdir(parents=True, exist_ok=True)
    np.save(seen.with_suffix(".npy"), torch.cat(logits)[:, 0].numpy())
    about = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "scores": hashlib.sha256(cases.to_csv().encode()).hexdigest(),
        "dice": float(cases["dice"].mean()), "threshold": how["threshold"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip
    seen.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")


def pairs(folder: Path, before: str, after: str) -> list[dict]:
    """Each run that both ways have, compared."""
    names = [path.stem for path in sorted((folder / "seen" / after).glob("*.json"))]
    ways = folder / "seen" / before, folder / "seen" / after
    return [{"run": name} | apart(*(way / name for way in ways)) for name in names]


def seed_pairs(folder: Path, way: str = "demo") -> list[dict]:
    """Each model's runs, compared with those of its other seeds."""
    files = sorted(path.with_suffix("") for path in (folder / "seen" / way).glob("*.json"))
    return [
        {"run": f"{a.name}, {b.name}"} | apart(a, b)
        for a, b in combinations(files, 2)
        if a.name.split("-")[0] == b.name.split("-")[0]
    ]


def apart(before: Path, after: Path) -> dict:
    """How far two runs are apart, from what `look` wrote under these names."""
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
    how, used, rows = found["how"], found["instructions"], []
    words = f" ({used['free']} for {used['demo']})" if len(used) == 2 else ""
    for row in found["rows"]:
        title = row["title"] + words * row["title"].endswith(": not pinned")
        cells = [f"not measured: {row.get('missing')}", *[""] * 4]
        if "missing" not in row:
            cells = _cells(row["runs"], signed=row["title"] != OTHER_SEED)
        rows.append((title, *cells))
    columns = ("what is changed", "same bits", "pixels that differ", "change of Dice", "mean")
    text = (
        f"torch {found['torch']}; {', '.join(how['models'])} of width {how['width']} at "
        f"{how['size']}×{how['size']} px, {how['epochs']} epochs, batch {how['batch_size']}, lr "
        f"{how['lr']:g}: the demo's runs under `random`, where a row says nothing else in fp32, on "
        f"one thread, with pinned instructions ({used.get('demo', '?')}). Same bits: of weights, "
        "logits on the test frames and scores. The other columns are the median over the runs, in "
        "brackets the lowest and the highest: pixels of the test frames whose masks differ, size "
        "of the change of the mean test Dice (beside it its mean over the runs, with its sign), "
        "largest change of a logit.\n\n" + table((*columns, "of a logit"), rows, texts=2)
    )
    measured = [row for row in found["rows"] if row.get("runs")]
    pixels = {row["title"]: median([each["pixels"] for each in row["runs"]]) for row in measured}
    if seeds := pixels.pop(OTHER_SEED, 0):
        shares = (f"{name} ({figure(v / seeds, 2)})" for name, v in pixels.items() if v)
        text += "\n\nThe median of pixels that differ, over that of another seed: "
        text += f"{'; '.join(shares)}."
    return text


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


def goals(found: dict, on_gpu: bool):
    must = [each["same"] for row in found["rows"] if row["must"] for each in row.get("runs", [])]
    share = sum(must) / len(must) if must else None
    yield "share of the runs that must repeat to the bit and do", ">=", 1.0, share


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Time and memory of preprocessing and of CPU training at 1, 3 and 10 times TG3K's 3,585 frames.

    python benchmarks/bench.py scaling

Each is a process of its own, whose anonymous memory is measured with its children's (see
`timing.run_child`). Preprocessing is the notebook as the workflow runs it. Training is one epoch of
a run with a network of one convolution, so that reading and moving the frames dominates.
"""

import tempfile
from pathlib import Path

import data
import ours
from thyroid_lib import models
from thyroid_lib.data.store import open_store
from thyroid_lib.study.runner import run_notebook
from timing import figure, run_child, seconds_of, table

ROOT = Path(__file__).resolve().parent.parent


def preprocess(frames: str, folder: str, size: int) -> dict:
    """Run 1-preprocess as the workflow runs it."""
    built, codes = Path(folder, "store"), []
    settings = {"source": "folder", "data": frames, "store": str(built), "size": size}
    words = ROOT / "notebooks" / "1-preprocess.ipynb", Path(folder, "1-preprocess.ipynb"), settings
    took = seconds_of(lambda: codes.append(run_notebook(*words)))
    if codes != [0]:
        raise RuntimeError(f"1-preprocess ended with {codes[0]}")
    return {"seconds": took, "frames": len(open_store(built))}


def train(frames: str, folder: str, size: int) -> dict:
    """One epoch, and the scores of its test cases, on the store that `preprocess` built."""
    models.MODELS["one_convolution"] = ours.OneConvolution
    store, finished, out = open_store(Path(folder, "store")), [], Path(folder, "run")
    settings = {"model": "one_convolution", "width": 1, "epochs": 1, "device": "cpu"}
    seconds = seconds_of(lambda: finished.append(ours.train_run(store, out=out, **settings)))
    return {"seconds": seconds, "scoring": seconds_of(lambda: ours.score_run(finished[0], store))}


STEPS = ("preprocess", "train")


def measure(args) -> dict:
    """Measure both at every number of frames, each in a new process."""
    times, size = ((1, 3), 64) if args.quick else ((1, 3, 10), 256)
    rows = []
    for many in times:
        frames = data.link_frames(args.frames, many)
        with tempfile.TemporaryDirectory(dir=args.cache) as folder:
            how = {"frames": str(frames), "folder": folder, "size": size}
            steps = {name: run_child("scaling", name, **how) for name in STEPS}
        rows.append({"times": many} | steps)
    return {"rows": rows, "size": size}


def show(found: dict) -> str:
    """The table, in Markdown."""
    size, rows = found["size"], []
    for row in found["rows"]:
        built, trained = row["preprocess"], row["train"]
        seconds = figure(trained["seconds"]), figure(trained["scoring"])
        cells = built["frames"], figure(built["seconds"]), built["peak_mib"] or "–"
        rows.append((*cells, *seconds, trained["peak_mib"] or "–"))
    columns = ("frames", "preprocessing, s", "memory, MiB", "an epoch, s", "scoring, s")
    grown = [f"{name} {share:+.1%}".replace("-", "−") for name, share in growth(found).items()]
    return (
        f"At {size}×{size} px. Memory: the peak of anonymous memory, all processes together.\n\n"
        + table((*columns, "memory, MiB"), rows, texts=0)
        + f"\n\nGrowth of memory from 1 to {found['rows'][-1]['times']} times: {', '.join(grown)}."
    )


def growth(found: dict) -> dict[str, float]:
    """The growth of memory from the fewest frames to the most, as a share."""
    mib = {name: [row[name]["peak_mib"] for row in found["rows"]] for name in STEPS}
    return {name: each[-1] / each[0] - 1 for name, each in mib.items() if all(each)}


def goals(found: dict, on_gpu: bool):
    shares = {name: abs(share) for name, share in growth(found).items()}
    sentence = "growth of memory in {}, as a share"
    yield sentence.format("preprocessing"), "<=", 0.1, shares.get("preprocess")
    yield sentence.format("training"), "<=", 0.1, shares.get("train")

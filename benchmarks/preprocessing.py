"""Preprocessing: `build_store` against a plain loop with Pillow that makes the same arrays.

    python benchmarks/bench.py preprocessing

The plain loop is one process: open, convert to gray, resize, and for masks threshold at 127 before
and after; both arrays are saved at the end. The store also checks every case, sets unusable ones
aside, keeps the masks at native size and checksums everything. Files are in the system's cache. The
arrays of both must be equal.
"""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data import list_pairs
from thyroid_lib.data.frames import mend_text
from thyroid_lib.data.store import build_store, load_cases, open_store
from thyroid_lib.files.parallel import count_workers
from timing import median, ratios, seconds_of, spread, table, take_turns

DEFAULT = "burnt-in text mended, the default"
MENDS = {DEFAULT: ["text"], "nothing mended": []}


def make_plainly(frames: Path, out: Path, size: int, mend: list[str]) -> None:
    """The plain loop: images.npy and masks.npy, uint8 (N,S,S), from a folder of frames."""
    images, masks, square = [], [], ((size, size), Image.Resampling.BILINEAR)
    for image_path, mask_path in list_pairs(frames):
        images.append(np.array(Image.open(image_path).convert("L").resize(*square)))
        mask = np.array(Image.open(mask_path).convert("L")) > 127
        if mend:
            mask = mend_text(mask)[0]
        mask = np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize(*square)) > 127
        masks.append(mask.astype(np.uint8))
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "images.npy", np.stack(images))
    np.save(out / "masks.npy", np.stack(masks))


def build(frames: Path, out: Path, size: int, mend: list[str]):
    """The project's way, reading the case table included."""
    return build_store(load_cases("folder", frames), out, size=size, mend=mend)


WAYS = {"plain": make_plainly, "store": build}


def check_equal(plain: Path, store) -> None:
    """Raise an error unless both ways made the same arrays."""
    for name, array in (("images", store.images), ("masks", store.masks)):
        if not np.array_equal(np.load(plain / f"{name}.npy", mmap_mode="r"), array):
            raise RuntimeError(f"{name}: the plain loop and build_store made different arrays")


def measure(args) -> dict:
    """Time both ways in turns, then a store that is up to date."""
    size, repeats = (64, 2) if args.quick else (256, 5)
    with tempfile.TemporaryDirectory() as folder:
        out = {(name, way): Path(folder, way + name[:3]) for name in MENDS for way in WAYS}
        turns = {
            (name, way): partial(_seconds_anew, WAYS[way], args.frames, path, size, MENDS[name])
            for (name, way), path in out.items()
        }
        took = take_turns(turns, repeats)
        for name in MENDS:
            store = open_store(out[name, "store"])
            check_equal(out[name, "plain"], store)
        last = partial(build, args.frames, store.folder, size, MENDS[name])
        again = [seconds_of(last) for _ in range(repeats)]
    return {
        "seconds": {name: {way: took[name, way] for way in WAYS} for name in MENDS},
        "up_to_date": again, "frames": len(store), "size": size,
        "workers": count_workers(len(store)),
    }  # fmt: skip


def _seconds_anew(work, frames: Path, out: Path, size: int, mend: list[str]) -> float:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # pending writes of the last turn are not this one's
    return seconds_of(lambda: work(frames, out, size, mend))


def show(found: dict) -> str:
    """The table, in Markdown."""
    size, rows = found["size"], []
    for name, took in found["seconds"].items():
        ratio = spread(ratios(took["plain"], took["store"]))
        rows.append((name, spread(took["plain"]), spread(took["store"]), ratio))
    rows.append(("store is up to date", "", spread(found["up_to_date"]), ""))
    return (
        f"{found['frames']} frames to {size}×{size} px; the arrays of both ways were compared and "
        f"are equal. The plain loop is one process, `build_store` has {found['workers']}. Seconds:"
        "\n\n" + table(("", "plain loop", "`build_store`", "ratio"), rows)
    )


def goals(found: dict, on_gpu: bool):
    took = found["seconds"][DEFAULT]
    faster = median(ratios(took["plain"], took["store"]))
    yield "rate over the plain loop's, by default", ">=", 1.7, faster
    yield "seconds for a store that is up to date", "<", 1.0, median(found["up_to_date"])

"""Preprocessing: `build_store` against a plain loop with Pillow that makes the same arrays.

    python benchmarks/bench.py preprocessing

The plain loop is one process: open, gray, resize, and for masks above 127, resize, above 127; both
arrays are saved at the end. It checks and keeps nothing else; the store also checks every case,
sets unusable ones aside, keeps the masks at native size and checksums all. Both read files that the
system has in its cache. The arrays are compared and must be equal.
"""

import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from data import list_pairs
from thyroid_lib.data.store import build_store, load_cases, open_store
from thyroid_lib.files.parallel import count_workers
from timing import median, ratios, seconds_of, spread, take_turns

DEFAULT = "burnt-in text mended, the default"
MENDS = {DEFAULT: ["text"], "nothing mended": []}
TEXT_PX, TEXT_TOP, TEXT_LEFT = 80, 0.10, 0.20  # as thyroid_lib.data.frames says it


def make_plainly(frames: Path, out: Path, size: int, mend: list[str]) -> None:
    """The plain loop: images.npy and masks.npy, uint8 (N,S,S), from a folder of frames."""
    images, masks = [], []
    for image_path, mask_path in list_pairs(frames):
        image = Image.open(image_path).convert("L").resize((size, size), Image.Resampling.BILINEAR)
        mask = np.array(Image.open(mask_path).convert("L")) > 127
        if mend:
            mask = take_out_text(mask)
        mask = Image.fromarray(mask.astype(np.uint8) * 255)
        mask = np.array(mask.resize((size, size), Image.Resampling.BILINEAR)) > 127
        images.append(np.array(image))
        masks.append(mask.astype(np.uint8))
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "images.npy", np.stack(images))
    np.save(out / "masks.npy", np.stack(masks))


def take_out_text(mask: np.ndarray) -> np.ndarray:
    """Drop components under 80 px that lie wholly in the frame's top 10 % and left 20 %."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    height, width = mask.shape
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = rows.stop <= TEXT_TOP * height and columns.stop <= TEXT_LEFT * width
        if inside and areas[label] < TEXT_PX:
            mask = mask & (labels != label)
    return mask


def build(frames: Path, out: Path, size: int, mend: list[str]):
    """The project's way, its case table included."""
    return build_store(load_cases("folder", frames), out, size=size, mend=mend)


WAYS = {"plain": make_plainly, "store": build}


def check_equal(plain: Path, store) -> None:
    """Raise unless both ways made the same arrays."""
    for name, array in (("images", store.images), ("masks", store.masks)):
        if not np.array_equal(np.load(plain / f"{name}.npy", mmap_mode="r"), array):
            raise RuntimeError(f"{name}: the plain loop and build_store made different arrays")


def measure(asked) -> dict:
    """Time both ways in turns, then the store that is up to date already."""
    size, repeats = (64, 2) if asked.quick else (256, 5)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        out = {(name, way): Path(folder, way + name[:3]) for name in MENDS for way in WAYS}
        turns = {
            (name, way): partial(_timed_anew, WAYS[way], asked.frames, place, size, MENDS[name])
            for (name, way), place in out.items()
        }
        for (name, way), took in take_turns(turns, repeats).items():
            seconds.setdefault(name, {})[way] = took
        for name in MENDS:
            store = open_store(out[name, "store"])
            check_equal(out[name, "plain"], store)
        last = partial(build, asked.frames, store.folder, size, MENDS[name])
        again = [seconds_of(last) for _ in range(repeats)]
        if open_store(store.folder).fingerprint != store.fingerprint:
            raise RuntimeError("the store that was up to date was built anew")
    return {
        "seconds": seconds,
        "up_to_date": again,
        "frames": len(store),
        "size": size,
        "workers": count_workers(len(store)),
    }


def _timed_anew(work, frames: Path, out: Path, size: int, mend: list[str]) -> float:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what the last turn left to be written is not this one's
    return seconds_of(lambda: work(frames, out, size, mend))


def show(found: dict) -> str:
    """The table, in Markdown."""
    size = found["size"]
    lines = [
        f"{found['frames']} frames to {size}×{size} px; the arrays of both ways were compared and "
        f"are equal. The plain loop is one process, `build_store` has {found['workers']}. Seconds:",
        "",
        "| | plain loop | `build_store` | ratio |",
        "|:--|--:|--:|--:|",
    ]
    for name, took in found["seconds"].items():
        ratio = spread(ratios(took["plain"], took["store"]))
        lines.append(f"| {name} | {spread(took['plain'])} | {spread(took['store'])} | {ratio} |")
    lines.append(f"| store is up to date | | {spread(found['up_to_date'])} | |")
    return "\n".join(lines)


def reached(found: dict) -> dict[str, float]:
    """The ratio of the default, and the seconds of a store that is up to date."""
    took = found["seconds"][DEFAULT]
    faster = median(ratios(took["plain"], took["store"]))
    return {"times the plain loop": faster, "up to date": median(found["up_to_date"])}

"""The frames that every section reads: as many phantoms as TG3K has frames, stored as TG3K does.

    python benchmarks/data.py    # draws them, about a minute on two cores; bench.py does it itself

3,585 frames, 15 sweeps of 239, at their native size (about 191x265 to 238x325 px), as JPEG of
quality 95 in images/ and masks/, with groups.csv. They are drawn once, into a folder below the
system's temporary folder. More frames than that are the same files again, hard-linked under other
names, as sweeps of their own: reading them takes as long, and memory does not know the difference.
"""

import hashlib
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.data import phantom

SWEEPS, FRAMES = 15, 239
QUALITY = 95  # of the JPEG files
CACHE = Path(tempfile.gettempdir()) / "thyroid-bench"


def draw_frames(cache: Path = CACHE, *, sweeps: int = SWEEPS, frames: int = FRAMES) -> Path:
    """Return the folder of sweeps x frames phantoms; draw them if they are not there."""
    drawer = hashlib.sha256(Path(phantom.__file__).read_bytes()).hexdigest()[:8]
    folder = cache / f"frames-{sweeps}x{frames}-{drawer}"  # drawn anew by another phantom.py
    if folder.is_dir():
        return folder
    partial_folder = _start(folder)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_draw_sweep, partial_folder, frames), range(sweeps)))
    names = [(f"s{s:02d}f{f:03d}", f"sweep{s:02d}") for s in range(sweeps) for f in range(frames)]
    return _finish(partial_folder, folder, names)


def link_frames(folder: Path, times: int) -> Path:
    """Return a folder with all frames of `folder` `times` times over, by hard links."""
    if times == 1:
        return folder
    many = folder.with_name(f"{folder.name}-{times}-times")
    if many.is_dir():
        return many
    partial_folder = _start(many)
    names = []
    for line in (folder / "groups.csv").read_text(encoding="utf-8").split()[1:]:
        case_id, group = line.split(",")
        for copy in range(times):
            for part in ("images", "masks"):
                source = folder / part / f"{case_id}.jpg"
                os.link(source, partial_folder / part / f"c{copy}{case_id}.jpg")
            names.append((f"c{copy}{case_id}", f"c{copy}{group}"))
    return _finish(partial_folder, many, names)


def list_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Image and mask of every frame, in the order of their names."""
    images = sorted((folder / "images").iterdir())
    return [(image, folder / "masks" / image.name) for image in images]


def _draw_sweep(folder: Path, frames: int, sweep: int) -> None:
    made = phantom.make_sweep(seed=0, sweep=sweep, frames=frames)
    for frame, (image, mask) in enumerate(zip(made["images"], made["masks"], strict=True)):
        name = f"s{sweep:02d}f{frame:03d}.jpg"
        Image.fromarray(image).save(folder / "images" / name, quality=QUALITY)
        mask = Image.fromarray(mask.astype(np.uint8) * 255)
        mask.save(folder / "masks" / name, quality=QUALITY)


def _start(folder: Path) -> Path:
    """An empty folder beside it: what a killed run leaves is never taken for the whole."""
    partial_folder = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial_folder, ignore_errors=True)
    for part in ("images", "masks"):
        (partial_folder / part).mkdir(parents=True)
    return partial_folder


def _finish(partial_folder: Path, folder: Path, names: list[tuple[str, str]]) -> Path:
    lines = ["case_id,group", *(",".join(pair) for pair in names)]
    (partial_folder / "groups.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return partial_folder.rename(folder)


if __name__ == "__main__":
    print(draw_frames())

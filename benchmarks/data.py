"""The frames of all sections: as many phantoms as TG3K has frames, stored as TG3K stores them.

    python benchmarks/data.py    # draws them, about a minute on two cores; bench.py does so itself

3,585 frames, 15 sweeps of 239, at their native size, as JPEG. They are drawn once, into a folder
below the system's temporary folder. Larger sets are hard links to the same files.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.data import phantom
from thyroid_lib.data.store import build_store, load_cases

SWEEPS, FRAMES = 15, 239
QUALITY = 95  # of the JPEG files
CACHE = Path(tempfile.gettempdir()) / "thyroid-bench"


def draw_frames(cache: Path = CACHE, *, sweeps: int = SWEEPS, frames: int = FRAMES) -> Path:
    """Return the folder of sweeps × frames phantoms; draw them if they are missing."""
    drawer = hashlib.sha256(Path(phantom.__file__).read_bytes()).hexdigest()[:8]
    folder = cache / f"frames-{sweeps}x{frames}-{drawer}"  # another phantom.py, another folder
    if not folder.is_dir():
        names = [(f"s{s:02d}f{f:03d}", f"sweep{s:02d}") for s in range(sweeps)
                 for f in range(frames)]  # fmt: skip
        with _written(folder, names) as new, ProcessPoolExecutor() as pool:
            list(pool.map(partial(_draw_sweep, new, frames), range(sweeps)))
    return folder


def link_frames(folder: Path, times: int) -> Path:
    """Return a folder with all frames of `folder` so many times, by hard links."""
    many = folder.with_name(f"{folder.name}-{times}-times")
    if times == 1 or many.is_dir():
        return folder if times == 1 else many
    lines = (folder / "groups.csv").read_text(encoding="utf-8").split()[1:]
    names = [(f"c{copy}{line.split(',')[0]}", f"c{copy}{line.split(',')[1]}")
             for line in lines for copy in range(times)]  # fmt: skip
    with _written(many, names) as new:
        for name, _ in names:
            for part in ("images", "masks"):
                source = folder / part / f"{name[name.index('s') :]}.jpg"
                os.link(source, new / part / f"{name}.jpg")
    return many


def list_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Image and mask of every frame, in the order of their names."""
    images = sorted((folder / "images").iterdir())
    return [(image, folder / "masks" / image.name) for image in images]


def store_of(frames: Path, size: int):
    """The project's store of these frames, built beside them once."""
    built = frames.with_name(f"{frames.name}-store-{size}")
    return build_store(load_cases("folder", frames), built, size=size)


def _draw_sweep(folder: Path, frames: int, sweep: int) -> None:
    drawn = phantom.make_sweep(seed=0, sweep=sweep, frames=frames)
    for frame, (image, mask) in enumerate(zip(drawn["images"], drawn["masks"], strict=True)):
        for part, array in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            path = folder / part / f"s{sweep:02d}f{frame:03d}.jpg"
            Image.fromarray(array).save(path, quality=QUALITY)


@contextmanager
def _written(folder: Path, names: list[tuple[str, str]]) -> Iterator[Path]:
    """Give an empty folder and rename it at the end, so that it is whole or missing."""
    new = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(new, ignore_errors=True)
    for part in ("images", "masks"):
        (new / part).mkdir(parents=True)
    yield new
    lines = ["case_id,group", *(",".join(pair) for pair in names)]
    (new / "groups.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    new.rename(folder)


if __name__ == "__main__":
    print(draw_frames())

"""Recall and precision on planted near-copies: a table of `docs/measured.md`.

    python tools/measure_copies.py --data ../shared/data

Every other sweep is the pool. Frames of the pool are changed and looked up in it, and so are as
many frames of the other sweeps, changed alike: what is found must be content, not the change.
"""

import argparse
import io
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from marks import with_part
from thyroid_lib.audit import copies
from thyroid_lib.data import frames, phantom, tg3k

PAGE = Path(__file__).parent.parent / "docs" / "measured.md"


def turn(image: np.ndarray, degrees: float = 0, scale: float = 1) -> np.ndarray:
    """Turn a frame (clockwise) and scale it about its middle; what comes in is black."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix, middle = np.array([[c, -s], [s, c]]) / scale, (np.array(image.shape) - 1) / 2
    return ndimage.affine_transform(image, matrix, middle - matrix @ middle, order=1)


def letterbox(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add a black bar of 10 to 30 % on one side."""
    axis, after = rng.integers(0, 2, 2)
    bar = int(rng.uniform(0.1, 0.3) * image.shape[axis])
    widths = np.zeros((2, 2), int)
    widths[axis, after] = bar
    return np.pad(image, widths)


def brighten(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change gamma, gain and offset."""
    level = 255 * (image / 255) ** rng.uniform(0.6, 1.5) * rng.uniform(0.8, 1.4)
    return np.clip(level + rng.uniform(0, 25), 0, 255).astype(np.uint8)


def add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise of 12 gray levels."""
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def save_jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Save as JPEG of quality 20 and read again."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=20)
    return np.asarray(Image.open(file))


def turn_and_scale(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn by up to 15 degrees, scale by up to 15 %."""
    return turn(image, rng.uniform(-15, 15), rng.uniform(0.85, 1.15))


def everything(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply all kinds of change, one after the other."""
    for change in (turn_and_scale, brighten, add_noise, letterbox, save_jpeg):
        image = change(image, rng)
    return image[:, ::-1].copy()


CHANGES = {
    "turned by 3°": lambda image, rng: turn(image, rng.choice([-3, 3])),
    "turned by 8°": lambda image, rng: turn(image, rng.choice([-8, 8])),
    "turned by 15°": lambda image, rng: turn(image, rng.choice([-15, 15])),
    "scaled by 0.85": lambda image, rng: turn(image, scale=0.85),
    "scaled by 1.15": lambda image, rng: turn(image, scale=1.15),
    "turned by up to 15°, scaled by 0.85 to 1.15": turn_and_scale,
    "black bar on one side": letterbox,
    "turned by 15°, black bar on one side": lambda image, rng: letterbox(
        turn(image, rng.choice([-15, 15])), rng
    ),
    "noise of 12 gray levels": add_noise,
    "gamma, gain and offset": brighten,
    "JPEG of quality 20": save_jpeg,
    "mirrored": lambda image, rng: image[:, ::-1].copy(),
    "turned, scaled, brightened, noisy, bar, JPEG, mirrored": everything,
}


class Pool(NamedTuple):
    """Frames of every other group, in which copies are looked up, and all frames."""

    images: list
    groups: np.ndarray  # (N,)
    rows: np.ndarray  # of the pool's frames
    maps: copies.Maps
    threshold: float


def make_pool(images: list, groups: np.ndarray) -> Pool:
    """Take every other group as pool: frames, uint8 (H,W), and their groups, (N,)."""
    rows = np.flatnonzero(np.isin(groups, sorted(set(groups.tolist()))[::2]))
    maps = copies.describe([images[row] for row in rows])
    return Pool(images, groups, rows, maps, copies.near_copy_threshold(maps, groups[rows]))


def measure(pool: Pool, change: str, *, count: int = 100, seed: int = 0) -> tuple[float, ...]:
    """Plant `count` copies, and look them up with as many frames of other groups.

    Returns recall, precision, and the share of copies that are traced to the very frame. A copy
    counts as found if it is flagged with a frame of its own group.
    """
    rng, groups = np.random.default_rng(seed), pool.groups
    rest = np.setdiff1d(np.arange(len(groups)), pool.rows)
    planted, others = (
        rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
        for rows in (pool.rows, rest)
    )
    queries = [CHANGES[change](pool.images[row], rng) for row in (*planted, *others)]
    found = copies.closest(copies.describe(queries), pool.maps)
    flagged = (found["correlation"] >= pool.threshold).to_numpy()
    row = pool.rows[found["row"]][: len(planted)]
    right = flagged[: len(planted)] & (groups[row] == groups[planted])
    return right.mean(), right.sum() / max(1, flagged.sum()), (row == planted).mean()


def real_frames(data: Path) -> tuple[list, np.ndarray]:
    """Frames of TG3K and their sweeps."""
    cases = tg3k.cases(data / "tg3k-sample")
    return [frames.read_gray(path) for path in cases["image_path"]], cases["group"].to_numpy()


def phantom_frames(sweeps: int = 60, each: int = 4) -> tuple[list, np.ndarray]:
    """Frames of phantom sweeps, and the sweep of each."""
    made = [phantom.make_sweep(sweep=sweep, frames=each)["images"] for sweep in range(sweeps)]
    return [image for images in made for image in images], np.repeat(np.arange(sweeps), each)


def ddti_sentence(folder: Path) -> str:
    """Say which pairs of DDTI's scans are flagged."""
    paths = sorted(folder.glob("*.jpg"))
    images, case = [frames.read_gray(path) for path in paths], [p.stem.split("_")[0] for p in paths]
    maps, case, rows = copies.describe(images), np.array(case), np.arange(len(paths))
    threshold = copies.near_copy_threshold(maps, case)
    found = copies.closest(maps, maps, apart=(rows, rows))
    flagged = np.flatnonzero(found["correlation"] >= threshold)
    pairs = sorted({tuple(sorted((row, int(found["row"][row])))) for row in flagged})
    same = [images[a].tobytes() == images[b].tobytes() for a, b in pairs]
    within = [case[a] == case[b] for a, b in pairs]
    print(*(f"{paths[a].stem} {paths[b].stem}" for a, b in pairs), sep="; ")
    other = sum(not (one or two) for one, two in zip(same, within, strict=True))
    return (
        f"On DDTI ({len(paths)} scans of {len(set(case))} cases, threshold {threshold:.2f}) "
        f"{len(pairs)} pairs are flagged: {sum(same)} are the same picture, "
        f"{sum(two and not one for one, two in zip(same, within, strict=True))} other pairs are "
        f"of one case, {other} of two cases."
    )


def main():
    """Measure, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=100, help="planted copies of each kind")
    args = parser.parse_args()
    sources, said = [real_frames(args.data), phantom_frames()], []
    for (images, groups), name in zip(sources, ("real frames", "phantom frames"), strict=True):
        start, maps = time.process_time(), copies.describe(images)
        copies.closest(maps, maps, apart=(groups, groups))
        seconds = time.process_time() - start
        threshold = copies.near_copy_threshold(maps, groups)
        count = f"{len(images)} {name} of {len(set(groups.tolist()))} sweeps"
        said.append(
            f"{count}: threshold {threshold:.2f}, {seconds:.0f} s of processor time to compare all."
        )
    lines = ["| copies | real: recall | precision | phantoms: recall | precision |"]
    lines.append("|---|---:|---:|---:|---:|")
    pools = [make_pool(*source) for source in sources]
    for name in CHANGES:
        figures = [measure(pool, name, count=args.count)[:2] for pool in pools]
        lines.append(
            f"| {name} | " + " | ".join(f"{v:.2f}" for pair in figures for v in pair) + " |"
        )
        print(lines[-1], flush=True)
    said.append(ddti_sentence(args.data / "ddti-sample"))
    text = "\n".join(["", *lines, "", *(f"- {line}" for line in said), "", ""])
    PAGE.write_text(with_part(PAGE.read_text("utf-8"), "copies", text), "utf-8")
    print(*said, sep="\n")


if __name__ == "__main__":
    main()

"""Are neighbouring sweeps of TG3K more alike than others, as two lobes of one person might be?

    python tools/sweeps.py DATA

DATA is TG3K or its sample. Each pair of sweeps gets four distances: of frame size, of gray levels
(gain), of correlation along depth and across (depth, focus, speckle), and of anatomy at their ends
(blurred first and last frames, also mirrored, as the other lobe would be). The mean over sweeps
of neighbouring numbers is compared with the means in random orders of the sweeps.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.ndimage import gaussian_filter

from thyroid_lib.data import tg3k

SPLITS = Path(__file__).resolve().parent.parent / "splits" / "tg3k.json"
ENDS, LAGS, ORDERS = 5, 6, 10_000  # frames of an end, pixels of correlation, random orders
ANATOMY = "anatomy at the ends"


def describe(paths) -> dict[str, np.ndarray]:
    """Return what is compared of a sweep, from its frames in their order."""
    levels, correlation, small = [], [], []
    for path in paths:
        picture = Image.open(path).convert("L")
        image = np.asarray(picture, dtype=float)
        seen = image[image > 4]  # outside the fan it is black
        levels.append(np.histogram(seen, bins=32, range=(0, 256))[0] / seen.size)
        height, width = image.shape
        part = image[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4]
        power = np.abs(np.fft.fft2(part - part.mean())) ** 2
        both = np.fft.ifft2(power).real
        correlation.append(np.r_[both[1:LAGS, 0], both[0, 1:LAGS]] / both[0, 0])
        square = gaussian_filter(np.asarray(picture.resize((64, 64)), dtype=float), 3)
        small.append((square - square.mean()) / square.std())
    ends = np.array([np.mean(part, axis=0) for part in (small[:ENDS], small[-ENDS:])])
    return {
        "frame size": np.log(image.shape), "gray levels": np.mean(levels, axis=0),
        "correlation": np.mean(correlation, axis=0), ANATOMY: ends,
    }  # fmt: skip


def distance(kind: str, a: np.ndarray, b: np.ndarray) -> float:
    """Return how far two sweeps are apart; anatomy: 1 − correlation of the most similar ends."""
    if kind != ANATOMY:
        return float(np.abs(a - b).sum())
    return min(float(1 - (x * y).mean()) for x, y in product(a, [*b, *b[:, :, ::-1]]))


def compare(cases: pd.DataFrame) -> pd.DataFrame:
    """Return a row per kind of distance: mean of neighbours, of all pairs, p of so small a mean."""
    paths = cases.sort_values("case_id").groupby("group")["image_path"]
    sweeps = {int(name.removeprefix("run")): describe(of) for name, of in paths}
    numbers, rows = sorted(sweeps), []
    first, rng = np.flatnonzero(np.diff(numbers) == 1), np.random.default_rng(0)
    orders = np.array([rng.permutation(len(numbers)) for _ in range(ORDERS)])
    for kind in sweeps[numbers[0]]:
        apart = [
            [distance(kind, sweeps[a][kind], sweeps[b][kind]) for b in numbers] for a in numbers
        ]
        apart = np.array(apart)
        means = apart[orders[:, first], orders[:, first + 1]].mean(1)
        mean = apart[first, first + 1].mean()
        everyone = apart[np.triu_indices(len(numbers), 1)].mean()
        rows.append((kind, mean, everyone, (means <= mean + 1e-12).mean()))
    return pd.DataFrame(rows, columns=["distance of", "neighbours", "all pairs", "p"])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", help="TG3K, or a part of it")
    known = json.loads(SPLITS.read_text("utf-8"))
    odd = {f"{frame:04d}" for frame in known["nearly_black"] + known["out_of_place"]}
    try:
        cases = tg3k.cases(parser.parse_args().data)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = compare(cases[~cases["case_id"].isin(odd)])
    print(found.to_markdown(index=False, floatfmt=("", ".3f", ".3f", ".2f")))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""TG3K source: 3,585 real frames of healthy thyroids with masks of the gland, as a case table.

    tg3k/thyroid-image/0000.jpg   tg3k/thyroid-mask/0000.jpg   tg3k/tg3k-trainval.json

A group is consecutive frames of one size, taken as one video sweep and named run01 … run15.
Neighbouring frames are near-copies. Whether two groups come from one person is unknown.

Sources: Wunderling, Golla, Poudel, Arens, Friebe & Hansen, SPIE Medical Imaging 2017 (16 sweeps, GE
Logiq E9); re-packed by Gong et al., TRFE-Net (ISBI 2021) and TRFE+ (2022).
"""

import json
import os
from bisect import bisect_left
from pathlib import Path

import pandas as pd

from thyroid_lib.data import archives
from thyroid_lib.data.layouts import find_pairs
from thyroid_lib.files.writing import short_reason

IMAGES, MASKS, SPLIT = "thyroid-image", "thyroid-mask", "tg3k-trainval.json"
WANTED = f"(^|/)({SPLIT}|({IMAGES}|{MASKS})/[^/]+)$"  # of an archive
DRIVE_ID = "1reHyY5eTZ5uePXMVMzFOq5j3eFOSp50F"  # of the release's archive on Google Drive
BY_HAND = (
    f"get the archive (about 395 MB) from Google Drive, file id {DRIVE_ID}, with a browser, and "
    f"set `data` to it, or to the unpacked folder that holds {IMAGES}/ and {MASKS}/"
)
DEPTH = 4  # folders below the given one that are searched
# the last frame of each sweep
LASTS = 271, 448, 655, 826, 1017, 1196, 1512, 1691, 1952, 2188, 2445, 2696, 3025, 3269, 3584


def cases(path: str | Path) -> pd.DataFrame:
    """Make the case table of TG3K, or of any part of it, in what `locate` finds at a path.

    case_id is as in the release ("0007"), group run01 … run15, "" for a name that it does not have.
    Column `official` is the side in the release's own split, "" where the split's file is missing.
    """
    folder = locate(path)
    table, _, _ = find_pairs(folder, images=IMAGES, masks=MASKS, dataset="tg3k")
    runs = ((frame, bisect_left(LASTS, frame) + 1) for frame in range(LASTS[-1] + 1))
    group_of = {f"{frame:04d}": f"run{run:02d}" for frame, run in runs}
    side_of = official_sides(folder / SPLIT) if os.path.lexists(folder / SPLIT) else {}
    for column, known in (("group", group_of), ("official", side_of)):
        table[column] = [known.get(case_id, "") for case_id in table["case_id"]]
    return table


def locate(path: str | Path) -> Path:
    """Return the folder that holds thyroid-image/ and thyroid-mask/.

    `path` is that folder, one up to four levels above it, or an archive with it inside, which is
    unpacked, see `archives`. ValueError: it is not found; says how to get the release.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file():
        path = archives.unpack(path, pattern=WANTED, advice=BY_HAND)
    if not path.is_dir():
        raise ValueError(f"no TG3K at {path}: nothing is there; {BY_HAND}, or call tg3k.download")
    for depth in range(DEPTH + 1):
        for images in sorted(path.glob("*/" * depth + IMAGES)):
            if (images.parent / MASKS).is_dir():
                return images.parent
    found = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
    needed = f"needed are the folders {IMAGES}/ and {MASKS}/, found was {found}"
    raise ValueError(f"no TG3K in {path}: {needed}; {BY_HAND}, or call tg3k.download")


def official_sides(file: Path) -> dict[str, str]:
    """Read the release's own split, {case_id: "train" or "test"}: run14 lies on both sides."""
    try:
        split = json.loads(file.read_text("utf-8"))
        sides = [("train", frame) for frame in split["train"]]
        sides += [("test", frame) for frame in split["val"]]
        if sorted(frame for _, frame in sides) != list(range(LASTS[-1] + 1)):
            raise ValueError("not every frame once")
        return {f"{frame:04d}": side for side, frame in sides}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        needed = f"two lists of frame numbers, train and val, with each of 0 to {LASTS[-1]} once"
        raise ValueError(f"{SPLIT} is damaged: needed are {needed}; copy it again") from error


def download(folder: str | Path) -> Path:
    """Download the release's archive with gdown, unpack TG3K, and return its folder."""
    archive = Path(folder) / "tg3k-release.zip"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        try:
            import gdown  # it writes under another name until the file is whole

            if not gdown.download(id=DRIVE_ID, output=str(archive)):
                raise OSError("nothing came")
        except Exception as error:  # gdown passes on whatever its transport raises
            problem = f"download failed ({short_reason(error)}): pip install gdown if it is missing"
            raise RuntimeError(f"{problem}, or {BY_HAND}") from error
    return locate(archive)

"""Stacks: files that hold the frames of a cine, TIFF or GIF pages or an npy array (N,H,W).

images/a.tif (30 pages)   masks/a.tif (30 pages)      30 cases of one group, a_00 … a_29
"""

from pathlib import Path

import pandas as pd
from PIL import Image

from thyroid_lib.data import arrays
from thyroid_lib.data.cases import reference

SUFFIXES = (".tif", ".tiff", ".gif", ".npy")


def expand(table: pd.DataFrame) -> pd.DataFrame:
    """Give each picture of a stack, with the mask of the same number, a row of its own.

    Frames keep the group of their file. A file with more pictures than its mask, or fewer, keeps
    one row, with the `problem` of it: a reason and a sentence.
    """
    rows = []
    for case in table.to_dict("records"):
        files = [case["image_path"], *case["mask_path"].split("\n")]
        counts = [count_pictures(file) if file else 0 for file in files]
        most = max(counts)
        if most > 1 and min(counts) == most:
            image, *masks = files
            for number in range(most):
                names = {
                    "case_id": f"{case['case_id']}_{number:0{len(str(most - 1))}}",
                    "image_path": reference(image, number),
                    "mask_path": "\n".join(reference(mask, number) for mask in masks),
                }
                rows.append(case | names)
        elif most > 1 and 0 not in counts:
            held = f"the image's file holds {counts[0]} pictures, the mask's {counts[1]}"
            problem = "size mismatch", f"{held}: save one mask for each picture"
            rows.append(case | {"problem": problem})
        else:
            rows.append(case)
    expanded = pd.DataFrame(rows, dtype=object) if len(rows) else table
    expanded.attrs = table.attrs
    if "problem" in expanded:
        expanded["problem"] = [p if isinstance(p, tuple) else None for p in expanded["problem"]]
    return expanded


def count_pictures(path: str) -> int:
    """Return how many pictures a file holds; 1 for files that are no stacks, damaged ones too."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":
            return arrays.count_pictures(path) or 1
        if suffix in SUFFIXES:
            with Image.open(path, formats=("TIFF", "GIF")) as image:
                return image.n_frames
    except Exception:  # decoders raise a dozen kinds: reading it for the store says why
        return 1
    return 1

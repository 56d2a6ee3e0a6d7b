"""Reading one image, whatever file it stands in; stacks; the level that is white in deep images.

A format of its own is a module of this wing, named in `READERS` by its files' endings, with

    read_image(path, part) -> gray levels (H,W) of any type, or RGB (H,W,3), uint8
    read_mask(path, part, shape) -> bool (H,W), or levels of which the mask rule says what is gland
"""

import math
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.data import frames

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2",
)  # fmt: skip
STACKS = (".tif", ".tiff", ".gif", ".npy")
ARRAYS = (".npy", ".npz", ".h5", ".hdf5", ".hdf")
READERS = dict.fromkeys(ARRAYS, "arrays") | {".xml": "ddti"}  # all others: DICOM


def reader_of(path: str | Path):
    """Return the module that reads a file, None for a common image file."""
    suffix = Path(path).suffix.lower()
    name = READERS.get(suffix, "" if suffix in PICTURES else "dicom_folder")
    module = name and import_module(f"thyroid_lib.data.{name}")
    return module if name != "dicom_folder" or module.is_dicom(path) else None


def read_image(path: str, part: str = "", highest: float = 0) -> np.ndarray:
    """Read an image as gray levels, uint8 (H,W); `highest` is white in images of over 8 bits."""
    if not (reader := reader_of(path)):
        return frames.read_gray(path, page=part, highest=highest)
    levels = reader.read_image(path, part)
    deep = highest and levels.ndim == 2 and levels.dtype != np.uint8
    return frames.scale_levels(levels, highest) if deep else frames.to_gray(levels)


def measure_image(path: str, part: str = "") -> tuple[tuple[int, int] | None, float]:
    """Return an image's height and width, and its highest level if it has more than 8 bits, or 0.

    An image that cannot be read is None and 0: reading it for the store says why.
    """
    try:
        if reader := reader_of(path):
            levels = reader.read_image(path, part)
        else:
            with Image.open(path, formats=frames.FORMATS) as image:
                size, deep = (image.height, image.width), image.mode.startswith(("I", "F"))
                bits = getattr(image, "tag_v2", {}).get(258, (16,))[0] if deep else 8
            if bits < 16:  # the header says it
                return size, 2**bits - 1 if deep else 0
            levels = frames.decode_file(path, lambda image, _: np.asarray(image), part)
        if levels.ndim != 2 or levels.dtype in (np.uint8, bool):
            return levels.shape[:2], 0
        return levels.shape, float(frames.check_levels(levels).max())
    except Exception:  # decoders raise a dozen kinds
        return None, 0


def white_level(found: list[float]) -> tuple[float, str]:
    """Choose one white for all deep images of a source by their highest levels.

    Returns the level, 0 where it is the type's own highest, and a sentence, "" for no deep image.
    """
    if not (highest := max(found, default=0)):
        return 0, ""
    count = f"{sum(level > 0 for level in found)} images of more than 8 bits"
    whole = all(level == int(level) for level in found)
    bits = max(8, math.ceil(math.log2(highest + 1)))
    white = 1 if highest <= 1 and not whole else 2**bits - 1
    return 0 if white == 65535 else white, f"{count}: highest level {highest:g}, white is {white}"


def count_pictures(path: str) -> int:
    """Return how many pictures a file holds; 1 for files that are no stacks, damaged ones too."""
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".npy":
            return reader_of(path).count_pictures(np.load(path, mmap_mode="r").shape) or 1
        with Image.open(path, formats=("TIFF", "GIF")) as image:
            return image.n_frames
    except Exception:  # decoders raise a dozen kinds: reading it for the store says why
        return 1


def expand_stacks(table):
    """Give each picture of a case table's stacks, with the mask of its number, a row of its own.

    A stack is a TIFF or GIF of several pages, or an npy array (N,H,W). Its pictures keep its group.
    Where the mask's file holds another number, the row stays one and has a `problem`.
    """
    rows = []
    for case in table.to_dict("records"):
        files = [case["image_path"], *case["mask_path"].split("\n")]
        counts = [count_pictures(file) if file.lower().endswith(STACKS) else 1 for file in files]
        most = max(counts)
        case = {"problem": None} | case
        if most > min(counts) and all(files):
            held = f"the image's file holds {counts[0]} pictures, the mask's {counts[1]}"
            needed = "save one mask for each picture, and no class or channel as a page of its own"
            case["problem"] = "size mismatch", f"{held}: {needed}"
        if most == 1 or most > min(counts):
            rows.append(case)
            continue
        for number in range(most):
            image, *masks = (f"{file}\t{number}" for file in files)
            case_id = f"{case['case_id']}_{number:0{len(str(most - 1))}}"
            paths = {"image_path": image, "mask_path": "\n".join(masks)}
            rows.append(case | {"case_id": case_id} | paths)
    expanded = type(table)(rows, dtype=object) if rows else table
    expanded.attrs = table.attrs
    return expanded

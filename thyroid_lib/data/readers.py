"""Reading one image, whatever file it stands in; and the level that is white in deep images.

A format of its own is a module of this wing, named in `READERS` by its files' endings, with

    read_image(path, part) -> gray levels (H,W) of any type, or RGB (H,W,3), uint8
    read_mask(path, part, shape) -> bool (H,W), or levels of which the mask rule says what is gland
"""

import math
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from thyroid_lib.data.frames import FORMATS, decode_file, read_gray, scale_levels, to_gray

PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".jp2",
)  # fmt: skip
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
        return read_gray(path, page=part, highest=highest)
    levels = reader.read_image(path, part)
    deep = highest and levels.ndim == 2 and levels.dtype != np.uint8
    return scale_levels(levels, highest) if deep else to_gray(levels)


def measure_image(path: str, part: str = "") -> tuple[tuple[int, int] | None, float]:
    """Return an image's height and width, and its highest level if it has more than 8 bits, or 0.

    A damaged image is None and 0: reading it for the store says why.

    Raises:
        ValueError: levels below 0, or no numbers.
    """
    try:
        if reader := reader_of(path):
            levels = reader.read_image(path, part)
        else:
            with Image.open(path, formats=FORMATS) as image:
                size, bits = (image.height, image.width), 16
                if not image.mode.startswith(("I", "F")):
                    return size, 0
                if hasattr(image, "tag_v2"):
                    bits = image.tag_v2.get(258, (16,))[0]
            if bits < 16:  # the header says it
                return size, 2**bits - 1
            levels = decode_file(path, lambda image, _: np.asarray(image), part)
    except Exception:  # decoders raise a dozen kinds
        return None, 0
    if levels.ndim != 2 or levels.dtype in (np.uint8, bool):
        return levels.shape[:2], 0
    if not np.isfinite(levels).all() or levels.min() < 0:
        problem = f"{Path(path).name!r} has levels below 0, or that are no numbers"
        raise ValueError(f"{problem}: save images with levels from 0 up")
    return levels.shape, float(levels.max())


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

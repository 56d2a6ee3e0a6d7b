"""Frames: from an image file to the square that a model sees, and back to the frame's own size.

The only pre- and post-processing there is: notebooks, training, prediction and anything deployed
read, resize, restore and threshold with these functions. NumPy, Pillow and SciPy; no torch.

Sources: TG3K's masks are JPEG and mean `> 127`; they hold the scanner's burnt-in text as thyroid
(Gong et al., TRFE-Net, ISBI 2021, re-packed from Wunderling et al., SPIE 2017).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

MAX_PIXELS = 64_000_000
MAX_SCANS = 100  # of a progressive JPEG, each a pass over all of it; encoders make about ten
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF")  # Pillow knows more, some of which run programs
BITS, PHOTOMETRIC, WHITE_IS_0 = 258, 262, 0  # tags of TIFF, and a value of the second
RESIZES = ("square", "letterbox")
TEXT_PX = 80  # a component of burnt-in text is smaller
TEXT_TOP, TEXT_LEFT = 0.10, 0.20  # and lies wholly in this share of the frame
SPECK_PX = 40  # no part of a gland is smaller: TG3K's smallest have 74 px, its specks up to 35
HOLE_PX = 40


def read_gray(path: str | Path) -> np.ndarray:
    """Read an image file as gray levels, as a viewer would show it; its content decides the format.

    EXIF rotation is applied, 16 bits are scaled to 8, colour becomes luma. Transparent parts become
    black: that is what surrounds an ultrasound image, and what is not marked in a mask. A JPEG, BMP
    or TIFF has no checksums: a flipped bit may go unseen where the file can still be decoded.

    Returns:
        uint8 (H,W).

    Raises:
        ValueError: one sentence with the file's name, what was got and what to do: not an image
            file, damaged, more than one picture, over 64 megapixels, or no gray levels in it.
    """
    try:
        if not os.path.isfile(path):
            raise ValueError(f"is {_what(Path(path))}, give a PNG, JPEG, BMP or TIFF file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError("is empty (0 bytes), copy it again from its source")
            return _decode(file)
    except ValueError as error:  # the name's repr stays on one line whatever is in it
        raise ValueError(f"{Path(path).name!r} {error}") from error
    except OSError as error:
        raise ValueError(
            f"{Path(path).name!r} cannot be opened ({error.strerror or error}), "
            "check its permissions"
        ) from error


def to_gray(levels: np.ndarray, *, bits: int = 0, inverted: bool = False) -> np.ndarray:
    """Convert decoded pixels to gray levels; the one conversion for files, DICOM and arrays.

    Args:
        levels: gray (H,W), uint8 or uint16, or RGB, uint8 (H,W,3).
        bits: number of bits that are used; 0 for all bits of the type.
        inverted: whether 0 is white.

    Returns:
        uint8 (H,W).

    Raises:
        ValueError: another shape or type, or more than `MAX_PIXELS` pixels.
    """
    levels = np.asarray(levels)
    gray = levels.ndim == 2 and levels.dtype in (np.uint8, np.uint16)
    colour = levels.ndim == 3 and levels.shape[2] == 3 and levels.dtype == np.uint8
    if not levels.size or not (gray or colour):
        raise ValueError(
            f"got {levels.dtype} {levels.shape}, need gray levels (H,W), uint8 or uint16, or RGB "
            "(H,W,3), uint8"
        )
    if levels.shape[0] * levels.shape[1] > MAX_PIXELS:
        raise ValueError(f"has more than {MAX_PIXELS // 1_000_000} megapixels")
    highest = 2 ** (bits or 8 * levels.itemsize) - 1
    if inverted:
        levels = highest - np.minimum(levels, highest)
    if levels.dtype == np.uint16:
        return np.rint(np.minimum(levels, highest) / (highest / 255)).astype(np.uint8)
    return np.array(Image.fromarray(levels).convert("L"))


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask file, bool (H,W): where its gray level is above 127. Raises as `read_gray`."""
    return read_gray(path) > 127


def mend_text(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Take burnt-in text out of a mask.

    Dropped are components (8-connected) under 80 px that lie wholly inside the top 10 % and the
    left 20 % of the frame.

    Args:
        mask: bool (H,W) at native size.

    Returns:
        The mended mask, bool (H,W); how many components were dropped; how many pixels.
    """
    # One row and one column more than text may fill: what reaches these does not lie wholly inside.
    rows, columns = int(TEXT_TOP * mask.shape[0]), int(TEXT_LEFT * mask.shape[1])
    labels, areas = _components(mask[: rows + 1, : columns + 1])
    text = (areas > 0) & (areas < TEXT_PX)
    text[labels[rows:].ravel()] = text[labels[:, columns:].ravel()] = False
    mended = mask.copy()
    mended[: rows + 1, : columns + 1] &= ~text[labels]
    return mended, int(text.sum()), int(areas[text].sum())


def mend_specks(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Drop components (8-connected) under 40 px, wherever they lie; returns as `mend_text`."""
    labels, areas = _components(mask)
    specks = (areas > 0) & (areas < SPECK_PX)
    return mask & ~specks[labels], int(specks.sum()), int(areas[specks].sum())


def mend_holes(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Fill background under 40 px that foreground encloses; returns as `mend_text`."""
    enclosed = ndimage.binary_fill_holes(mask) & ~mask
    labels, areas = _components(enclosed, diagonal=False)
    holes = (areas > 0) & (areas < HOLE_PX)
    return mask | holes[labels], int(holes.sum()), int(areas[holes].sum())


MENDS = {"text": mend_text, "specks": mend_specks, "holes": mend_holes}


def mend_mask(
    mask: np.ndarray, rules: Sequence[str] = ("text",)
) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
    """Mend a mask by these rules, in the order of `MENDS`.

    Args:
        mask: bool (H,W) at native size.
        rules: keys of `MENDS`, none for a mask as it is.

    Returns:
        The mended mask, bool (H,W), and for every key of `MENDS` how many components and how many
        pixels it changed, 0 for rules that were not asked for.

    Raises:
        ValueError: an unknown rule.
    """
    if unknown := sorted(set(rules) - set(MENDS)):
        raise ValueError(f"mend: got {', '.join(unknown)}, need any of {', '.join(MENDS)}")
    counts = dict.fromkeys(MENDS, (0, 0))
    for name, rule in MENDS.items():
        if name in rules:
            mask, components, pixels = rule(mask)
            counts[name] = components, pixels
    return mask, counts


def fit_image(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Resize a frame to a square, bilinear and antialiased.

    Args:
        image: uint8 (H,W).
        size: side of the square in pixels.
        resize: "square" stretches the frame, as the reported study did; "letterbox" keeps its
            aspect, centres it and pads with 0.

    Returns:
        uint8 (size,size).
    """
    top, left, height, width = _content_box(*image.shape, size, resize)
    content = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    if (height, width) == (size, size):
        return np.array(content)
    fitted = np.zeros((size, size), np.uint8)
    fitted[top : top + height, left : left + width] = content
    return fitted


def fit_mask(mask: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Resize a mask as its frame: bool (H,W) to uint8 (size,size) of 0 and 1."""
    return (fit_image(mask.astype(np.uint8) * 255, size, resize) > 127).astype(np.uint8)


def restore_prob(prob: np.ndarray, height: int, width: int, resize: str) -> np.ndarray:
    """Bring a probability map back to its frame's native size, bilinear: the inverse of the fit.

    Args:
        prob: float32 (S,S) in [0,1].
        height, width: the frame's native size in pixels.
        resize: how the frame was fitted; a letterbox's border is cut off first.

    Returns:
        float32 (height,width) in [0,1], before any threshold.
    """
    if prob.ndim != 2 or prob.shape[0] != prob.shape[1]:
        raise ValueError(f"prob: got shape {prob.shape}, need one square map (S,S)")
    top, left, rows, columns = _content_box(height, width, len(prob), resize)
    content = prob[top : top + rows, left : left + columns].astype(np.float32)
    return np.array(Image.fromarray(content).resize((width, height), Image.Resampling.BILINEAR))


def restore_mask(
    prob: np.ndarray, height: int, width: int, *, resize: str, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a network's map to the frame's native size, then threshold it; arguments as above.

    Scoring, notebooks and deployment make every mask with this function.

    Returns:
        The probability, float32 (height,width), and the mask, bool (height,width).
    """
    prob = restore_prob(prob, height, width, resize)
    return prob, threshold_prob(prob, threshold)


def threshold_prob(prob: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return bool, true where the probability is strictly above the threshold, as in the report."""
    return prob > threshold


def _content_box(height: int, width: int, size: int, resize: str) -> tuple[int, int, int, int]:
    """Where a frame of this size lies in the square: top, left, height, width in pixels."""
    if resize not in RESIZES:
        raise ValueError(f"resize: got {resize!r}, need one of {', '.join(RESIZES)}")
    if resize == "square":
        return 0, 0, size, size
    longer = max(height, width)
    rows, columns = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    return (size - rows) // 2, (size - columns) // 2, rows, columns


def _what(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a broken link" if path.is_symlink() else "no file"


def _decode(file: BinaryIO) -> np.ndarray:
    """Decode the whole file; uint8 (H,W). ValueErrors go on where the file's name stands."""
    try:
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if getattr(image, "n_frames", 1) > 1:
            raise _Refused(f"holds {image.n_frames} pictures, save the one that is meant alone")
        if image.format == "PNG":  # decoding passes over its checksums, and verifying uses it up
            image.verify()
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
        if image.format == "TIFF" and _covered(image) < image.width * image.height:
            raise ValueError("part of the picture is missing")  # it would be black
        if image.info.get("progressive"):
            file.seek(0)
            if file.read().count(b"\xff\xda") > MAX_SCANS:
                raise _Refused(f'has more than {MAX_SCANS} scans, save it without "progressive"')
        _unify_transparency(image)
        tags = getattr(image, "tag_v2", {})
        if image.format != "JPEG" or image.info.keys() & {"exif", "xmp"}:  # most JPEG have none
            image = ImageOps.exif_transpose(image)
        return _gray_levels(image, tags)
    except _Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"has more than {MAX_PIXELS // 1_000_000} megapixels, save it smaller"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError("is no PNG, JPEG, BMP or TIFF image, convert it to one") from error
    except Exception as error:  # decoders raise a dozen kinds on a damaged file
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"is damaged ({what}), copy or export it again") from error


def _covered(image: Image.Image) -> int:
    """Number of pixels that a file which is opened and not yet decoded has data for."""
    boxes = {tile[1] for tile in image.tile}  # left, top, right, bottom; one for each colour
    return sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)


def _unify_transparency(image: Image.Image) -> None:
    """Count the level that a PNG calls transparent in 8 bits, as Pillow does those of the pixels.

    It does not where a PNG has 2 or 4 bits, or 1 for an older Pillow: nothing would be transparent.
    """
    clear = image.info.get("transparency")
    if image.format == "PNG" and isinstance(clear, int):
        packed = image.tile[0][3]
        clear = (
            255 * bool(clear) if packed == "1" else clear * {"L;2": 85, "L;4": 17}.get(packed, 1)
        )
        image.info["transparency"] = clear


def _gray_levels(image: Image.Image, tags: Mapping) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, "I;16" or in a container of 32
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise _Refused("has 32-bit gray levels beyond 0 to 65535, save it with 8 or 16 bits")
        if "transparency" in image.info:
            levels = np.where(levels == image.info["transparency"], 0, levels)
        tiff = image.mode == "I;16" and BITS in tags  # may have 12 bits, or 0 for white
        bits = tags[BITS][0] if tiff else 16
        inverted = tiff and tags.get(PHOTOMETRIC) == WHITE_IS_0
        return to_gray(levels.astype(np.uint16), bits=bits, inverted=inverted)
    if image.mode == "F":
        raise _Refused("has floating-point gray levels, save it with 8 or 16 bits")
    if image.mode == "1":
        image = image.convert("L")  # Pillow makes nothing transparent in one bit
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    # not every mode turns gray in one step
    return to_gray(np.asarray(image if image.mode == "L" else image.convert("RGB")))


def _components(mask: np.ndarray, *, diagonal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Number the components of a mask from 1; areas in px by number, 0 for the background."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)) if diagonal else None)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    return labels, areas


class _Refused(ValueError):
    """A sound file that is not what is needed."""

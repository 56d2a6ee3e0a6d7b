"""Frames: reading image files, mending masks, resizing to the network's square and back.

This is the only pre- and post-processing, of notebooks, training and deployment; no torch.

Sources: TG3K's masks are JPEG and mean `> 127`; they hold the scanner's burnt-in text as thyroid
(Gong et al., TRFE-Net, ISBI 2021, re-packed from Wunderling et al., SPIE 2017).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

MAX_PIXELS = 64_000_000
# Pillow knows more, some of which run programs
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "JPEG2000")
RESIZES = ("square", "letterbox")
NATIVE = "native"  # of a probability map: it has its frame's own size
TEXT_PX = 80  # a component of burnt-in text is smaller
TEXT_TOP, TEXT_LEFT = 0.10, 0.20  # and lies wholly in this share of the frame
SPECK_PX = 40  # no part of a gland is smaller: TG3K's smallest have 74 px, its specks up to 35
HOLE_PX = 40


class Refused(ValueError):
    """An intact file that is not what is needed."""


def read_gray(path: str | Path, *, page: str = "", highest: float = 0) -> np.ndarray:
    """Read an image file as gray levels, uint8 (H,W); its content decides its format.

    EXIF rotation is applied, 16 bits are scaled to 8, colour becomes luma, transparent parts become
    black. ValueError, with the file's name: no image file, damaged, several pictures, over 64
    megapixels, levels that 8 bits cannot hold.

    page: number of the picture in a file of several, from 0; "" where there is one. highest: white,
    in files of more than 8 bits; 0 for the highest level of the file's type.
    """
    return decode_file(path, partial(_gray_levels, highest=highest), page)


def decode_file(path: str | Path, decode: Callable, page: str = ""):
    """Open an image file, EXIF rotation applied, and return decode(image, tags of a TIFF)."""
    path = Path(path)
    try:
        if not path.is_file():
            raise Refused("is no file, give a PNG, JPEG, BMP or TIFF file")
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                raise Refused("is empty (0 bytes), copy it again from its source")
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            # the further pictures of a phone's JPEG ("MPO") are previews
            if not page and getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise Refused(f"holds {image.n_frames} pictures, save the one that is meant alone")
            tags = getattr(image, "tag_v2", {})
            if tags.get(284) == 2 and (planes := tags.get(277, 1)) > 1:
                advice = "save each picture alone, or colours pixel by pixel"
                raise Refused(f"holds {planes} planes, which may be a stack of pictures: {advice}")
            if image.format == "PNG":  # decoding ignores its checksums; verifying uses the image up
                image.verify()
                file.seek(0)
                image = Image.open(file, formats=FORMATS)
            image.seek(int(page or 0))
            if tags.get(258) == (8,) and tags.get(339) == (2,):
                raise Refused("has gray levels with a sign, save levels from 0 up")
            if ";16" in str(image.tile) and image.mode[0] != "I":  # Pillow would drop 8 of them
                raise Refused("has colours of 16 bits, save gray levels or colours of 8 bits")
            return decode(ImageOps.exif_transpose(image), tags)
    except Exception as error:  # decoders raise a dozen kinds on a damaged file
        what = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, Image.DecompressionBombError):
            what = f"has more than {MAX_PIXELS // 1_000_000} megapixels, save it smaller"
        elif isinstance(error, Image.UnidentifiedImageError):
            what = "is no PNG, JPEG, BMP or TIFF image, convert it to one"
        elif isinstance(error, OSError) and error.errno:
            what = f"cannot be opened ({error.strerror}), check its permissions"
        elif not isinstance(error, Refused):
            what = f"is damaged ({what}), copy or export it again"
        # the name's repr stays on one line whatever is in it
        raise ValueError(f"{path.name!r} {what}") from error


def to_gray(levels: np.ndarray, *, bits: int = 0, inverted: bool = False) -> np.ndarray:
    """Convert decoded pixels to gray levels, uint8 (H,W): of files, DICOM and arrays.

    levels: gray (H,W), uint8 or uint16, or RGB (H,W,3), uint8. bits: how many are used, 0 for all.
    inverted: 0 is white. ValueError: another shape or type, or more than `MAX_PIXELS` pixels.
    """
    levels = np.asarray(levels)
    gray = levels.ndim == 2 and levels.dtype in (np.uint8, np.uint16)
    if not levels.size or not (gray or (levels.shape[2:] == (3,) and levels.dtype == np.uint8)):
        need = "gray levels (H,W), uint8 or uint16, or RGB (H,W,3), uint8"
        raise ValueError(f"got {levels.dtype} {levels.shape}, need {need}")
    if levels.shape[0] * levels.shape[1] > MAX_PIXELS:
        raise ValueError(f"has more than {MAX_PIXELS // 1_000_000} megapixels")
    highest = 2 ** (bits or 8 * levels.itemsize) - 1
    if inverted:
        levels = highest - np.minimum(levels, highest)
    if levels.dtype == np.uint16:
        return scale_levels(levels, highest)
    return np.array(Image.fromarray(levels).convert("L"))


def scale_levels(levels: np.ndarray, highest: float) -> np.ndarray:
    """Scale gray levels (H,W) of any type, black at 0 and white at `highest`, to uint8."""
    return np.rint(np.clip(check_levels(levels), 0, highest) / (highest / 255)).astype(np.uint8)


def check_levels(levels: np.ndarray) -> np.ndarray:
    """Return gray levels as they are; raises Refused if some are below 0 or no numbers."""
    if not np.isfinite(levels).all() or levels.min(initial=0) < 0:
        raise Refused("has levels below 0, or that are no numbers: save levels from 0 up")
    return levels


def mend_text(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Remove burnt-in text from a mask, bool (H,W) at native size.

    Text is a component (8-connected) under 80 px that lies wholly inside the top 10 % and the left
    20 % of the frame. Returns the mended mask, and how many components and pixels were removed.
    """
    # one row and one column more than text may fill: what reaches these is no text
    rows, columns = int(TEXT_TOP * mask.shape[0]), int(TEXT_LEFT * mask.shape[1])
    numbers, areas, text = components(mask[: rows + 1, : columns + 1], TEXT_PX)
    text[numbers[rows:].ravel()] = text[numbers[:, columns:].ravel()] = False
    mended = mask.copy()
    mended[: rows + 1, : columns + 1] &= ~text[numbers]
    return mended, int(text.sum()), int(areas[text].sum())


def mend_specks(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Remove components (8-connected) under 40 px, wherever they lie; returns as `mend_text`."""
    numbers, areas, specks = components(mask, SPECK_PX)
    return mask & ~specks[numbers], int(specks.sum()), int(areas[specks].sum())


def mend_holes(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Fill background under 40 px that foreground encloses; returns as `mend_text`."""
    enclosed = ndimage.binary_fill_holes(mask) & ~mask
    numbers, areas, holes = components(enclosed, HOLE_PX, diagonal=False)
    return mask | holes[numbers], int(holes.sum()), int(areas[holes].sum())


MENDS = {"text": mend_text, "specks": mend_specks, "holes": mend_holes}


def mend_mask(mask: np.ndarray, rules: Sequence[str] = ("text",)) -> tuple[np.ndarray, dict]:
    """Mend a mask, bool (H,W), or the foreground of a label map, by these rules, as in `MENDS`.

    A hole in a label map gets the nearest class; a speck of one class that lies inside another
    becomes that one. Returns the mended mask, and for every key of `MENDS` how many components and
    pixels it changed.
    """
    counts, labels, mask = dict.fromkeys(MENDS, (0, 0)), mask, mask > 0
    for name in MENDS:
        if name in rules:
            mask, *count = MENDS[name](mask)
            counts[name] = tuple(count)
    if labels.dtype == bool:
        return mask, counts
    unlabelled = mask & (labels == 0)
    for code in np.unique(labels[mask & ~unlabelled]) if "specks" in rules else ():
        numbers, areas, specks = components((labels == code) & mask, SPECK_PX)
        # not those that reach the outside, such as a sliver of gland beside a nodule
        specks[numbers[~ndimage.binary_erosion(mask, border_value=1)]] = False
        unlabelled |= specks[numbers] & (labels == code)
        counts["specks"] = tuple(np.add(counts["specks"], (specks.sum(), areas[specks].sum())))
    known = mask & ~unlabelled
    if unlabelled.any() and known.any():
        _, nearest = ndimage.distance_transform_edt(~known, return_indices=True)
        labels = labels[tuple(nearest)]
    return np.where(mask, labels, 0), counts


def fit_image(image: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Resize a frame, uint8 (H,W), to a square, uint8 (size,size), bilinear and antialiased.

    `resize` "square" stretches the frame, as the reported study did; "letterbox" keeps its aspect,
    centres it and pads with 0.
    """
    top, left, height, width = content_box(*image.shape, size, resize)
    content = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    fitted = np.zeros((size, size), np.uint8)
    fitted[top : top + height, left : left + width] = content
    return fitted


def fit_mask(mask: np.ndarray, size: int, resize: str) -> np.ndarray:
    """Resize a mask as its frame: bool (H,W) to uint8 (size,size) of 0 and 1, or a label map.

    A label map, uint8, has its foreground where a mask would have it; each pixel of it takes the
    class that covers most of it, so every class that covers over half of a pixel.
    """
    fitted = (fit_image((mask > 0).astype(np.uint8) * 255, size, resize) > 127).astype(np.uint8)
    if mask.dtype == bool or not mask.any():
        return fitted
    codes = np.unique(mask[mask > 0])
    shares = [fit_image((mask == code).astype(np.uint8) * 255, size, resize) for code in codes]
    return fitted * codes[np.argmax(shares, axis=0)]  # shares: (classes, size, size)


def restore_prob(prob: np.ndarray, height: int, width: int, resize: str) -> np.ndarray:
    """Resize a probability map, float32 (S,S) in [0,1], to its frame's native size in pixels.

    Bilinear, the inverse of `fit_image`; a letterbox's border is cut off first.
    """
    top, left, rows, columns = content_box(height, width, len(prob), resize)
    content = prob[top : top + rows, left : left + columns].astype(np.float32)
    return np.array(Image.fromarray(content).resize((width, height), Image.Resampling.BILINEAR))


def restore_mask(
    prob: np.ndarray, height: int, width: int, *, resize: str, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return `restore_prob` of a network's map, and its mask, bool (height,width)."""
    prob = restore_prob(prob, height, width, resize)
    return prob, threshold_prob(prob, threshold)


def threshold_prob(prob: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Return bool, true where the probability is strictly above the threshold, as reported."""
    return prob > threshold


def content_box(height: int, width: int, size: int, resize: str) -> tuple[int, int, int, int]:
    """Return the area that a frame fills in the square: top, left, height, width in pixels."""
    if resize not in RESIZES:
        raise ValueError(f"resize: got {resize!r}, need one of {', '.join(RESIZES)}")
    if resize == "square":
        return 0, 0, size, size
    longer = max(height, width)
    rows, columns = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    return (size - rows) // 2, (size - columns) // 2, rows, columns


def _gray_levels(image: Image.Image, tags: Mapping, *, highest: float = 0) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # 16 bits, "I;16" or in a container of 32; or float
        levels, white_at_0 = check_levels(np.asarray(image)), tags.get(262) == 0
        if highest:
            return scale_levels(highest - levels if white_at_0 else levels, highest)
        if image.mode == "F":
            raise Refused("has floating-point gray levels, save it with 8 or 16 bits")
        if levels.max() > 65535:
            raise Refused("has 32-bit gray levels beyond 0 to 65535, save it with 8 or 16 bits")
        bits = tags.get(258, (16,))[0] if image.mode == "I;16" else 16  # a TIFF may have 12
        inverted = white_at_0 and image.mode == "I;16"
        return to_gray(levels.astype(np.uint16), bits=bits, inverted=inverted)
    if image.mode == "1":
        image = image.convert("L")  # Pillow makes nothing transparent in one bit
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    # not every mode turns gray in one step
    return to_gray(np.asarray(image if image.mode == "L" else image.convert("RGB")))


def components(mask: np.ndarray, limit: int = 0, *, diagonal: bool = True) -> tuple:
    """Number components from 1, (H,W); by number: areas in px, and whether that is below limit."""
    numbers, _ = ndimage.label(mask, structure=np.ones((3, 3)) if diagonal else None)
    areas = np.bincount(numbers.ravel())
    areas[0] = 0  # the background
    return numbers, areas, (areas > 0) & (areas < limit)

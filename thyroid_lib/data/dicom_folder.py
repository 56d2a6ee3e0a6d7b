"""DICOM folder: ultrasound with masks in segmentation objects or PNG files, as a case table.

    set/a.dcm   set/seg.dcm      a segmentation object names the images and frames it lies over
    set/a.dcm   set/masks/a.png  a mask of the image's name; a_1.png, a_2.png … for its frames
    set/a.dcm   set/a_mask.png   the same without a folder; set/a.png is no mask

A group is a patient: PatientID, hashed with a salt, so that tables hold no patient's number. File
names become the names of cases: they should hold no patient's name.

Sources: DICOM PS3.3 A.51 (Segmentation), C.7.6.16.2.6 (Derivation Image).
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from thyroid_lib.data.cases import make_table, reference
from thyroid_lib.data.frames import Refused
from thyroid_lib.data.groups import group_key
from thyroid_lib.data.layouts import ROLE_OF, WORDS, paired_names
from thyroid_lib.data.readers import PICTURES

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


class Segment(NamedTuple):
    """A frame of a segmentation object, and the frame of an image that it lies over."""

    file: Path
    frame: int  # from 0
    kind: str  # type and label of what is segmented
    image: str  # SOPInstanceUID; "" where it names none, or several
    image_frame: int | None  # from 0; None where the object names an image only


def cases(path: str | Path) -> pd.DataFrame | None:
    """Make the case table of a folder with DICOM files, a row for each frame; None without any.

    `problem` is None, or why a file cannot be used. Segments of several kinds are levels from 1 in
    the masks; `attrs["levels"]` names them. ImportError: pydicom is missing.
    """
    found = sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    images, segments, broken, others = _read_headers(filter(is_dicom, found))
    if not (images or segments or broken):
        return None
    # nobody knows all UIDs who has not got the files: no table of numbers gives a patient away
    salt = "\n".join(sorted({str(h.get("StudyInstanceUID")) for h in images.values()}))
    kinds = sorted({segment.kind for segment in segments})
    masks = _masks_of_frames(segments, images, kinds)
    pictures = [file for file in found if file.suffix.lower() in PICTURES]
    drawn = defaultdict(list)  # masks by name, and a_12.png by ("a", 12), too
    for picture in pictures:
        words = map(str.casefold, WORDS.findall(picture.parent.relative_to(path).name))
        names = [name for name, _ in paired_names(picture.stem, "mask")]
        for name in names if "mask" in map(ROLE_OF.get, words) else names[1:]:
            head, _, tail = name.rpartition("_")
            for key in {(name, None), (head, int(tail)) if tail.isdecimal() else (name, None)}:
                drawn[key].append(picture)
    stems, rows = Counter(file.stem.lower() for file in images), []
    for file, header in images.items():
        uid, alone = str(header.get("SOPInstanceUID")), stems[file.stem.lower()] == 1
        name = file.stem if alone else f"{file.stem}-{_digest(uid)[:8]}"
        count, patient = _count_frames(header), group_key(str(header.get("PatientID") or ""))
        group = f"patient-{_digest(salt, patient)[:10]}" if patient else ""
        own = _drawn_masks(file, count, drawn, alone)
        for frame in range(count):
            case_id = name + f"_{frame + 1:0{len(str(count))}}" * (count > 1)
            image, over = reference(file, frame if count > 1 else ""), masks.pop((uid, frame), [])
            rows.append((case_id, image, "\n".join(over) or own[frame], group, "dicom", None))
    if pictures and not any(row[2] for row in rows):
        if {*pictures} == {picture for held in drawn.values() for picture in held}:
            need = "name each masks/a.png as its file, of several frames masks/a_1.png, a_2.png …"
            raise ValueError(f"no DICOM file has all masks among {len(pictures)} pictures: {need}")
        return None  # DICOM files beside data of another layout
    table = make_table(rows + broken, "problem")
    said = [f"DICOM: {len(rows)} frames in {len(images)} files"]
    said += [f"{len(segments)} frames of segmentations"] * bool(segments)
    said += [f"{len(masks)} frames that are not here have segmentations"] * bool(masks)
    said += [f"{others} other objects are not read"] * bool(others)
    unread = len({*map(str, pictures)} - {row[2] for row in rows})
    said += [f"{unread} pictures are not read"] * bool(unread)
    table.attrs = {"layout": "; ".join(said), "groups": "patients (PatientID, hashed)"}
    table.attrs["levels"] = dict(enumerate(kinds, 1)) if len(kinds) > 1 else {}
    return table


def is_dicom(path: str | Path) -> bool:
    """Say whether a file is a DICOM file, by its content."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES and not path.name.startswith("."):
        with suppress(OSError), open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    return False


def read_image(path: str | Path, part: str) -> np.ndarray:
    """Read a frame, number `part` from 0: uint8, gray (H,W) or RGB (H,W,3)."""
    file, wanted = (str(path), os.stat(path).st_mtime_ns), int(part or 0)
    try:
        if _open_image(*file)[0][0] > wanted:  # it is past that frame
            _open_image.cache_clear()
        number, frames = _open_image(*file)
        for levels in frames:
            number[0] += 1
            if number[0] > wanted:
                return levels
        raise ValueError(f"it has no frame {wanted + 1}")
    except ValueError as error:
        _open_image.cache_clear()
        raise ValueError(f"{Path(path).name!r}: {error}") from error


def read_mask(path: str | Path, part: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read and join frames of a segmentation object: part "0,3" as bool (H,W).

    Part "0,3/2" gives levels instead, uint8 (H,W): 2, the number of the kind, and 0.
    """
    frames, _, level = part.partition("/")
    try:
        header = _open_segmentation(str(path), os.stat(path).st_mtime_ns)
        mask = np.any([_read_segment(header, int(frame)) for frame in frames.split(",")], axis=0)
    except Exception as error:
        raise ValueError(_say_broken(path, error)) from None
    return mask * np.uint8(level) if level else mask


def _read_headers(files: Iterable[Path]) -> tuple[dict, list[Segment], list[tuple], int]:
    """Return the images' headers, the segments, rows of broken files, and how many are others."""
    images, segments, broken, others = {}, [], [], 0
    for file in files:
        try:
            header = _read_header(file)
            if header.get("SOPClassUID") == SEGMENTATION:
                segments += list(_segments(file, header))
            elif "Rows" in header:
                images[file] = header
            else:
                others += 1
        except ImportError as error:
            raise ImportError("DICOM needs the package pydicom: pip install pydicom") from error
        except Exception as error:  # pydicom raises a dozen kinds
            problem = "unreadable image", _say_broken(file, error)
            broken.append((file.stem, str(file), "", "", "dicom", problem))
    return images, segments, broken, others


def _read_header(file: str | Path, *, pixels: bool = False):
    """Read a DICOM file's elements."""
    import pydicom

    from thyroid_lib.data import dicom  # noqa: F401 (silences pydicom, which quotes values)

    header = pydicom.dcmread(file, stop_before_pixels=not pixels)
    header.decode()  # texts, so that errors come now
    if "SOPClassUID" not in header and "DirectoryRecordSequence" not in header:
        raise ValueError
    return header


def _say_broken(file: str | Path, error: Exception) -> str:
    """Name a file and its problem; pydicom's own words may quote a patient's name."""
    broken = f"it is a broken DICOM file ({type(error).__name__}), copy it again"
    return f"{Path(file).name!r}: {error if isinstance(error, Refused) else broken}"


def _segments(file: Path, header) -> Iterator[Segment]:
    """List the frames of a segmentation object."""
    kind_of = {}
    for item in header.get("SegmentSequence") or ():
        [code] = item.get("SegmentedPropertyTypeCodeSequence") or [{}]
        words = str(code.get("CodeMeaning", "")), str(item.get("SegmentLabel", ""))
        kind_of[item.get("SegmentNumber")] = ": ".join(dict.fromkeys(filter(None, words)))
    [shared] = header.get("SharedFunctionalGroupsSequence") or [{}]
    for number, own in enumerate(header.get("PerFrameFunctionalGroupsSequence") or ()):
        names = "SegmentIdentificationSequence", "DerivationImageSequence"
        identity, derived = (own.get(name) or shared.get(name) or [] for name in names)
        kind = kind_of.get(identity[0].get("ReferencedSegmentNumber"), "") if identity else ""
        sources = [source for each in derived for source in each.get("SourceImageSequence") or ()]
        # of several, nobody can tell which one it lies over
        source = sources[0] if len(sources) == 1 else {}
        frame = source.get("ReferencedFrameNumber")
        image = str(source.get("ReferencedSOPInstanceUID", ""))
        yield Segment(file, number, kind, image, frame - 1 if isinstance(frame, int) else None)


def _masks_of_frames(segments: list[Segment], images: dict, kinds: list[str]) -> dict:
    """Return the references of the masks over each (SOPInstanceUID, frame)."""
    single = {str(h.get("SOPInstanceUID")) for h in images.values() if _count_frames(h) == 1}
    found = defaultdict(lambda: defaultdict(list))
    for segment in segments:
        frame = 0 if segment.image in single else segment.image_frame
        level = f"/{kinds.index(segment.kind) + 1}" if len(kinds) > 1 else ""
        found[segment.image, frame][segment.file, level].append(str(segment.frame))
    return {
        over: [reference(file, ",".join(held) + level) for (file, level), held in each.items()]
        for over, each in found.items()
    }


def _drawn_masks(file: Path, count: int, pictures: dict, alone: bool) -> list[str]:
    """Return for each frame the picture that is named after it, "" where that is not certain.

    `alone`: no other file has this name; else the picture must lie beside this file or its folder.
    """
    stem, near = file.stem.lower(), (file.parent, file.parent.parent)
    for first in (0, 1):  # what the frames are numbered from
        found = []
        for frame in range(first, first + count):
            held = pictures.get((stem, frame if count > 1 else None), [])
            held = [p for p in held if alone or p.parent in near[:1] or p.parent.parent in near]
            found.append(held)
        more = {(stem, first - 1), (stem, first + count)} & pictures.keys() if count > 1 else ()
        if not more and all(len(held) == 1 for held in found):
            return [str(held[0]) for held in found]
    return [""] * count


def _count_frames(header) -> int:
    count = header.get("NumberOfFrames")
    return int(count) if isinstance(count, int) and count > 0 else 1


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


@lru_cache(maxsize=2)
def _open_image(path: str, _changed: int) -> tuple[list[int], Iterator[np.ndarray]]:
    """Return the number of the next frame, to be counted on, and the frames."""
    from thyroid_lib.data import dicom

    return [0], dicom.read_frames(dicom.read_file(path))


@lru_cache(maxsize=2)
def _open_segmentation(path: str, _changed: int):
    header = _read_header(Path(path), pixels=True)
    if header.file_meta.TransferSyntaxUID.is_encapsulated or header.get("BitsAllocated") != 1:
        needed = "save it as BINARY, Explicit VR Little Endian"
        raise Refused(f"it is compressed or FRACTIONAL: {needed}")
    if 8 * len(header.PixelData) < int(header.Rows) * int(header.Columns) * _count_frames(header):
        raise EOFError
    return header


def _read_segment(header, frame: int) -> np.ndarray:
    """Unpack a frame of a segmentation, bool (H,W)."""
    shape = int(header.Rows), int(header.Columns)
    size, data = shape[0] * shape[1], np.frombuffer(header.PixelData, np.uint8)
    start = frame * size
    bits = np.unpackbits(data[start // 8 : (start + size + 7) // 8], bitorder="little")
    return bits[start % 8 : start % 8 + size].reshape(shape).astype(bool)

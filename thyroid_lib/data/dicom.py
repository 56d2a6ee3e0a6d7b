"""Read DICOM ultrasound: header checks, decoding of frames, pixel spacing.

    dataset = dicom.read_file("cine.dcm")
    for frame in dicom.read_frames(dataset): ...  # uint8, gray (H,W) or RGB (H,W,3)

What cannot be read raises `Refused` with the status code that a DICOM storage server returns; its
text holds no patient data.

Sources: DICOM PS3.3 C.7.6.3 (image pixels), C.7.9 (palettes), C.8.5.5 (ultrasound regions);
ISO/IEC 15444-1 A.4 and A.5.1 (headers and size of a JPEG 2000 image).
"""

import io
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import config, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import get_decoder
from pydicom.tag import Tag

from thyroid_lib.data.frames import MAX_PIXELS, to_gray

# pydicom's warnings quote values, which may be a patient's
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

MAX_BYTES, MAX_FRAMES = 512 * 2**20, 2_000
MAX_TOTAL = 2_000_000_000  # pixels of all frames: a segmentation of 250 MB
MAX_ELEMENT = 2**20  # bytes of an element other than PixelData
MAX_READS = 150_000  # by the parser, which needs two or three per element
MAX_RLE = 16 * 2**20  # bytes of a decoded frame: hostile RLE unpacks to 64 times its length
MAX_TILES, SMALLEST_BLOCK = 64, 2  # of JPEG 2000: 2 stands for a side of 16 px
MAX_RATIO = 800  # of compression: a black frame as JPEG Baseline reaches 512,
MAX_RATIO_J2K = 80_000  # as JPEG 2000 far more
# DIMSE status codes: cannot understand, does not match, SOP class not supported, out of resources
BROKEN, NOT_FITTING, NO_SUCH_CLASS, TOO_LARGE = 0xC000, 0xA900, 0x0122, 0xA700
# fmt: off
SINGLE = uid.UltrasoundImageStorage, "1.2.840.10008.5.1.4.1.1.6"  # and its retired form
SEVERAL = uid.UltrasoundMultiFrameImageStorage, "1.2.840.10008.5.1.4.1.1.3"
SYNTAXES = (
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
    uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless,
    uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEG2000,
)
J2K, LOSSLESS = SYNTAXES[-2:], SYNTAXES[-4:-2]
SAMPLES = {  # samples per pixel by PhotometricInterpretation
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3,
    "YBR_FULL_422": 3, "YBR_RCT": 3, "YBR_ICT": 3,
}
COPIED = (  # into segmentation and report; empty where the source has none,
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)
COPIED_IF_PRESENT = (  # or left out
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "IssuerOfPatientID", "StudyDescription",
)
READ = [Tag(keyword) for keyword in (
    *COPIED, *COPIED_IF_PRESENT, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID",
    "InstanceNumber", "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime",
    "SeriesDate", "SeriesTime", "SequenceOfUltrasoundRegions", "PixelSpacing", "NumberOfFrames",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PixelData",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
      for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)]
# fmt: on


class Refused(ValueError):
    """An object that is not accepted: a sentence without patient data, and a DIMSE status code."""

    def __init__(self, text: str, status: int = BROKEN):
        super().__init__(text)
        self.status = status


def as_refusal(error: Exception) -> Refused:
    """Return the refusal that a sender gets for an error, whose text might quote the object."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, (OSError, MemoryError)):  # this machine has no room
        code = getattr(error, "errno", None)
        return Refused(os.strerror(code) if code else type(error).__name__, TOO_LARGE)
    return Refused(f"{type(error).__name__} while it was being read")


class _LimitedReader(io.BytesIO):
    """A file that stops the parser after `MAX_READS` reads, against millions of empty elements."""

    left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Refused("the object has too many elements", TOO_LARGE)
        return super().read(size)


def read_file(source: bytes | str | Path) -> Dataset:
    """Read the elements `READ` of a DICOM file, bytes or path. Refused: it cannot be read."""
    in_memory = isinstance(source, bytes)
    if (len(source) if in_memory else os.stat(source).st_size) > MAX_BYTES:
        raise Refused(f"the object has more than {MAX_BYTES >> 20} MiB", TOO_LARGE)
    file = _LimitedReader(source if in_memory else Path(source).read_bytes())
    try:
        read_preamble(file, force=False)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        if syntax not in SYNTAXES:  # the size of a deflated one is unknown
            name = syntax.name if syntax in uid.AllTransferSyntaxes else "an unknown one"
            raise Refused(f"{name} is not read: send it in another transfer syntax", NOT_FITTING)
        little, implicit = syntax.is_little_endian, syntax.is_implicit_VR
        dataset = read_dataset(file, implicit, little, specific_tags=READ)
        for tag in list(dataset.keys()):
            raw = dataset.get_item(tag)
            length = len(raw.value or b"") if raw.is_raw else 0
            if raw.is_raw and raw.length not in (length, 0xFFFFFFFF):
                raise Refused("the file is cut off: send it again")
            if length > MAX_ELEMENT and tag != Tag("PixelData"):
                raise Refused(f"element {tag} is longer than {MAX_ELEMENT} bytes", TOO_LARGE)
            if dataset[tag].VR not in dictionary_VR(tag):
                raise Refused(f"element {tag} has another value representation than the standard's")
        list(dataset.iterall())  # parses nested elements, so that errors come now
    except (Refused, MemoryError):
        raise
    except Exception as error:  # of a dozen kinds, some of which quote values
        raise Refused(f"no DICOM file, or a broken one ({type(error).__name__})") from None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def check(dataset: Dataset) -> None:
    """Raise Refused unless the header is of ultrasound, complete, supported, not too large."""
    if (sop := dataset.get("SOPClassUID")) not in SINGLE + SEVERAL:
        raise Refused("its SOP class is no ultrasound image", NO_SUCH_CLASS)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not re.fullmatch(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)+", str(dataset.get(keyword, ""))):
            raise Refused(f"{keyword} is missing or no UID", NOT_FITTING)
    for keyword in COPIED + COPIED_IF_PRESENT:  # the answer must name the same patient
        if "\ufffd" in str(dataset.get(keyword, "")):
            raise Refused(f"{keyword} does not fit SpecificCharacterSet")
    if not isinstance(dataset.get("PixelData"), bytes):
        raise Refused("there is no PixelData", NOT_FITTING)
    rows, columns, count = (_number(dataset, of) for of in ("Rows", "Columns", "NumberOfFrames"))
    if count > 1 and sop in SINGLE:
        raise Refused(f"got {count} frames in a class for one", NOT_FITTING)
    pixels = rows * columns
    if pixels > MAX_PIXELS or count > MAX_FRAMES or pixels * count > MAX_TOTAL:
        most = f"{MAX_FRAMES} frames, {MAX_PIXELS:,} pixels each, {MAX_TOTAL:,} in all"
        raise Refused(f"got {count} frames of {rows} x {columns}, need at most {most}", TOO_LARGE)
    colour, samples = dataset.get("PhotometricInterpretation"), _number(dataset, "SamplesPerPixel")
    if SAMPLES.get(str(colour)) != samples:
        raise Refused(f"got {samples} samples, need one of {', '.join(SAMPLES)}", NOT_FITTING)
    allocated, stored = _number(dataset, "BitsAllocated"), _number(dataset, "BitsStored")
    layout = _number(dataset, "HighBit", 0), _number(dataset, "PixelRepresentation", 0)
    fits = allocated in (8, 16) if samples == 1 else allocated == stored == 8
    if not fits or stored > allocated or layout != (stored - 1, 0):
        needed = "need all of 8, or for gray the lower of 8 or 16, unsigned"
        raise Refused(f"got {stored} bits in {allocated}, {needed}", NOT_FITTING)
    size, got = pixels * samples * count * allocated // 8, len(dataset.PixelData)
    syntax = dataset.file_meta.TransferSyntaxUID
    packed = syntax.is_encapsulated
    if colour in ("YBR_RCT", "YBR_ICT") and syntax not in J2K:
        raise Refused(f"got {colour} in {syntax.name}, which has no such colours", NOT_FITTING)
    if colour == "YBR_FULL_422" and not packed:
        size = size // 3 * 2 if columns % 2 == 0 else -1
    ratio = MAX_RATIO_J2K if syntax in J2K else MAX_RATIO
    if size > ratio * got if packed else got not in (size, size + size % 2):
        raise Refused(f"got {got} bytes of PixelData, which its header makes {size} unpacked")


def _number(dataset: Dataset, keyword: str, least: int = 1) -> int:
    value = dataset.get(keyword)
    if value in (None, "") and keyword == "NumberOfFrames":
        return 1
    if not isinstance(value, int) or value < least:
        raise Refused(f"{keyword} is missing, or no number from {least}", NOT_FITTING)
    return int(value)


def read_frames(dataset: Dataset) -> Iterator[np.ndarray]:
    """Decode frame by frame: uint8, gray (H,W) or RGB (H,W,3). Refused: by `check`, or damaged."""
    check(dataset)
    count, done = _number(dataset, "NumberOfFrames"), 0
    colour, bits = dataset.PhotometricInterpretation, dataset.BitsStored
    try:
        palette, first = _palette(dataset) if colour == "PALETTE COLOR" else (None, 0)
        for done, levels in enumerate(_levels(dataset, colour, count), 1):
            if done > count or levels.shape[:2] != (dataset.Rows, dataset.Columns):
                raise Refused("the frames in PixelData are not as its header says")
            if palette is not None:
                levels = palette[np.clip(levels.astype(np.int32) - first, 0, len(palette) - 1)]
            elif levels.ndim == 2:  # other depths are scaled to 8 bits
                levels = levels if bits == 8 else levels.astype(np.uint16)
                levels = to_gray(levels, bits=bits, inverted=colour == "MONOCHROME1")
            yield levels
    except (Refused, MemoryError):
        raise
    except Exception as error:
        raise Refused(f"frame {done + 1} cannot be decoded ({type(error).__name__})") from None
    if done != count:
        raise Refused(f"PixelData has {done} frames, but its header makes them {count}")


def _palette(dataset: Dataset) -> tuple[np.ndarray, int]:
    """Return a palette's colours, uint8 (N,3), and the pixel value of the first one."""
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    size, first, bits = dataset.RedPaletteColorLookupTableDescriptor
    size, colours = size or 2**16, []  # 0 stands for 65,536
    for each in ("Red", "Green", "Blue"):
        data = dataset.get(f"{each}PaletteColorLookupTableData")
        segmented = dataset.get(f"Segmented{each}PaletteColorLookupTableData")
        words = np.frombuffer(data or segmented, f"{order}u2").astype("<u2")
        # entries of 8 bits come two in a word, the lower one first, or one in a word
        packed = bits == 8 and (not data or len(data) < 2 * size)
        entries = words.view(np.uint8) if packed else words
        if not data:
            entries = _expanded(entries.tolist(), size, 1 if packed else 2)
        if len(entries) < size:
            raise Refused(f"a palette has {len(entries)} entries, its descriptor says {size}")
        colours.append(entries[:size])
    table = np.stack(colours, axis=1)
    deep = bits == 16 and table.max() > 255  # some scanners declare 16 bits and use 8
    return (table >> 8 if deep else table).astype(np.uint8), first


def _expanded(words: list[int], size: int, width: int) -> np.ndarray:
    """Return at most `size` entries of a segmented palette, whose words have `width` bytes."""
    entries, at, left, back = [], 0, 0, 0  # segments left of a jump, and where to go on after it
    while at + 2 < len(words) and len(entries) <= size:
        kind, length, at = words[at], words[at + 1], at + 2
        if length == 0:
            raise Refused("a segmented palette is damaged")
        if kind == 0:  # entries as they are
            entries += words[at : at + length]
            at += length
        elif kind == 1 and entries:  # a line from the last entry
            entries += np.rint(np.linspace(entries[-1], words[at], length + 1))[1:].tolist()
            at += 1
        elif kind == 2 and entries and not left:  # earlier segments once more, by byte offset
            offset, step = words[at : at + 4 // width], 8 * width
            left, back = length, at + len(offset)
            at = sum(word << i * step for i, word in enumerate(offset)) // width
            continue
        else:
            raise Refused("a segmented palette is damaged")
        if left:
            left -= 1
            at = at if left else back
    return np.array(entries, np.uint16)


def _levels(dataset: Dataset, colour: str, count: int) -> Iterator[np.ndarray]:
    """Yield the decoded frames; YBR is converted to RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder, raw = get_decoder(syntax), colour == "PALETTE COLOR"
    plugin = "pillow" if syntax in J2K or syntax == uid.JPEGExtended12Bit else ""
    if not decoder.is_available:
        raise Refused(f"{syntax.name.split(',')[0]} needs a decoder: `pip install python-gdcm`")
    if not syntax.is_encapsulated:  # one by one: pydicom reads only single frames in 4:2:2
        for index in range(count):
            yield decoder.as_array(dataset, index=index, raw=raw)[0]
        return
    one = dataset.group_dataset(0x0028)
    one.file_meta, how = dataset.file_meta, {"number_of_frames": 1, "planar_configuration": 0}
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    for code in generate_frames(dataset.PixelData, number_of_frames=count):
        if syntax == uid.RLELossless and (len(code) > 1024 + 9 * size // 8 or size > MAX_RLE):
            raise Refused("a frame's RLE is in pieces, or longer than it may be", TOO_LARGE)
        if syntax != uid.RLELossless:
            code = _plain_j2k(code, one) if syntax in J2K else _plain_jpeg(code, one)
        one.PixelData = encapsulate([code])
        yield decoder.as_array(one, index=0, raw=raw, decoding_plugin=plugin, **how)[0]


def _plain_jpeg(code: bytes, dataset: Dataset) -> bytes:
    """Check a JPEG stream against the header; return it, a lossless one without comment segments.

    Decoders allocate memory by the stream's own header, and gdcm may end the process on damage.
    """
    offset, kept, size = 2, [b"\xff\xd8"], None
    lossless = dataset.file_meta.TransferSyntaxUID in LOSSLESS
    while kept[-1][:2] != b"\xff\xda":  # until start of scan
        start, marker, length = struct.unpack(">BBH", code[offset : offset + 4])
        segment = code[offset : offset + 2 + length]
        if size is None and marker in ((0xC3,) if lossless else (0xC0, 0xC1)):  # start of frame
            precision, *size = struct.unpack(">BHHB", segment[4:10])
            fits = dataset.BitsAllocated - 8 < precision <= dataset.BitsAllocated
            fits &= size == [dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
            fits &= not lossless or set(segment[11::3]) == {0x11}  # no subsampling
        else:  # tables and comments
            fits = marker in (0xC4, 0xDA, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker < 0xF0
            if lossless and marker == 0xDA:  # gdcm never ends on other values
                fits &= segment[-3:-2] in b"\1\2\3\4\5\6\7" and segment[-2:-1] == b"\0"
                fits &= segment[-1] < 16
        if not fits or start != 0xFF or len(segment) != length + 2:
            raise Refused("a frame's JPEG stream is damaged, or does not fit the header")
        kept += [] if lossless and marker >= 0xE0 else [segment]
        offset += len(segment)
    rest = code[offset:].rstrip(b"\0\xff")
    if size is None or not rest.endswith(b"\xff\xd9"):
        raise Refused("a frame's JPEG stream is cut off")
    return b"".join([*kept, rest, bytes(len(rest) % 2)])


def _plain_j2k(code: bytes, dataset: Dataset) -> bytes:
    """Check a JPEG 2000 stream against the header; return it without the boxes of a JP2 file."""
    code = code[max(code.find(b"\xff\x4f\xff\x51"), 0) :].rstrip(b"\0")
    right, bottom, left, top, width, height = struct.unpack(">6I", code[8:32])
    samples = struct.unpack(">H", code[40:42])[0]
    parts = code[42 : 42 + 3 * samples]
    wanted = [dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
    fits = [bottom - top, right - left, samples] == wanted
    fits &= set(parts[1::3]) | set(parts[2::3]) == {1}  # no subsampling
    fits &= all(dataset.BitsAllocated - 8 <= each < dataset.BitsAllocated for each in parts[::3])
    tiles = math.ceil(right / max(width, 1)) * math.ceil(bottom / max(height, 1))
    if not fits or code[:4] != b"\xff\x4f\xff\x51" or width * height < 1 or tiles > MAX_TILES:
        raise Refused("a frame's JPEG 2000 stream is damaged, or does not fit the header")
    # its blocks and precincts may be so small that a short stream takes gigabytes
    for marker, style in _j2k_segments(code):
        own = marker == 0xFF53 or (marker == 0xFF52 and style[0] & 1)  # precincts, or a component's
        if own or (marker == 0xFF52 and min(style[6:8]) < SMALLEST_BLOCK):
            raise Refused("a frame's JPEG 2000 stream has blocks of its own, or ones too small")
    if not code.endswith(b"\xff\xd9"):
        raise Refused("a frame's JPEG 2000 stream is cut off")
    return code + bytes(len(code) % 2)


def _j2k_segments(code: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment in the headers of image and tiles."""
    at, end = 2, len(code) - 2
    while at < len(code) - 2:
        marker, length = struct.unpack(">HH", code[at : at + 4])
        if marker == 0xFF93 and end > at:  # data, up to the next part of a tile
            at = end
            continue
        yield marker, code[at + 4 : at + 2 + length]
        if marker == 0xFF90:
            part = struct.unpack(">I", code[at + 6 : at + 10])[0]
            end = at + part if part else len(code) - 2
            if end < at + 12:
                raise Refused("a frame's JPEG 2000 stream is damaged")
        at += 2 + length


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Return mm per pixel of rows and columns; None where the object is ambiguous.

    All regions of 2D tissue must be in cm and agree within 1 %. PixelSpacing counts where there
    are no regions, and must not contradict them.
    """
    regions = dataset.get("SequenceOfUltrasoundRegions") or []
    try:
        tissue = [of for of in regions if (of.RegionSpatialFormat, of.RegionDataType) == (1, 1)]
        if any((of.PhysicalUnitsYDirection, of.PhysicalUnitsXDirection) != (3, 3) for of in tissue):
            return None
        # beyond the edge by more than the usual pixel: the picture was cut or shrunk since
        sides = [(x.get("RegionLocationMaxY1", 0), x.get("RegionLocationMaxX1", 0)) for x in tissue]
        if any(y > dataset.Rows or x > dataset.Columns for y, x in sides):
            return None
        found = [(10 * of.PhysicalDeltaY, 10 * of.PhysicalDeltaX) for of in tissue]
        if dataset.get("PixelSpacing") and (found or not regions):
            found.append([float(each) for each in dataset.PixelSpacing])
        pairs = np.abs(np.array(found, np.float64).reshape(-1, 2))  # (N,2)
    except (AttributeError, TypeError, ValueError):
        return None
    possible = np.all((pairs > 1e-3) & (pairs < 10))  # no scanner's are below 1 µm or above 10 mm
    if not len(pairs) or not possible or np.any(np.ptp(pairs, axis=0) > 0.01 * pairs[0]):
        return None
    return tuple(pairs[0].tolist())

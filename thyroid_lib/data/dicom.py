"""DICOM: from an ultrasound object to frames, and from predictions to a segmentation and a report.

    dataset = dicom.read_file("cine.dcm")
    seg, sr = dicom.answer(dataset, Predictor.open("results/demo/deploy"))

What cannot be read raises `Refused`, with the status that a storage SCP answers; its text holds
nothing of a patient. The same object and model always make the same two objects, to the byte.

Sources: DICOM PS3.3 A.51 (Segmentation), A.35.3 (Comprehensive SR), C.8.5.5 (US regions); PS3.16
TID 1500 (Measurement Report) and 1410 (Planar ROI); PS3.5 B.2 (UIDs under 2.25).
"""

import hashlib
import io
import json
import logging
import os
import re
import struct
import uuid
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import config, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag

from thyroid_lib import __version__
from thyroid_lib.data import frames
from thyroid_lib.deploy.predictor import Prediction, Predictor, to_gray

# pydicom quotes the values that it warns of
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

MAX_BYTES, MAX_FRAMES = 512 * 2**20, 2_000
MAX_TOTAL = 2_000_000_000  # pixels of all frames: a segmentation of 250 MB
MAX_ELEMENT = 2**20  # bytes of what is no pixels
MAX_READS = 150_000  # of the parser, two or three an element
MAX_RLE = 16 * 2**20  # bytes of a frame, which a hostile one unpacks to 64 times as many
MAX_RATIO = 800  # of compression: a black frame as JPEG Baseline reaches 512
BROKEN, NOT_FITTING, NO_SUCH_CLASS, TOO_LARGE = 0xC000, 0xA900, 0x0122, 0xA700
NOTICE, MAKER = "Research use, not for diagnosis", "thyroid_lib"
THYROID, PIXELS = Code("69748006", "SCT", "Thyroid gland"), Code("{pixels}", "UCUM", "pixels")
ENGLISH = Code("en-US", "RFC5646", "English (United States)")
ULTRASOUND = codes.SCT.DiagnosticUltrasonography
MODIFIES, OBSERVES = "HAS CONCEPT MOD", "HAS OBS CONTEXT"
# fmt: off
SINGLE = uid.UltrasoundImageStorage, "1.2.840.10008.5.1.4.1.1.6"  # and the retired one
SEVERAL = uid.UltrasoundMultiFrameImageStorage, "1.2.840.10008.5.1.4.1.1.3"
SYNTAXES = (
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
    uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGLossless, uid.JPEGLosslessSV1,
)
SAMPLES = {  # of a pixel, by PhotometricInterpretation
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3,
    "YBR_FULL_422": 3,
}
SAME = (  # in the answers as in the source: empty where it has none,
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName",
)
IF_ANY = (  # or left out
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "IssuerOfPatientID", "StudyDescription",
)
KEPT = [Tag(keyword) for keyword in (
    *SAME, *IF_ANY, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "InstanceNumber",
    "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime",
    "SequenceOfUltrasoundRegions", "PixelSpacing", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PixelData",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
      for part in ("Descriptor", "Data")),
)]
# fmt: on


class Refused(ValueError):
    """Why an object is not taken, in a sentence without patient data; status is the DIMSE one."""

    def __init__(self, text: str, status: int = BROKEN):
        super().__init__(text)
        self.status = status


class _Counted(io.BytesIO):
    """A file that ends a parser which is led through millions of empty elements."""

    left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Refused("the object has too many elements", TOO_LARGE)
        return super().read(size)


def read_file(source: bytes | str | Path) -> Dataset:
    """Read what is needed of a DICOM file, bytes or path; other elements are left out.

    Raises:
        Refused: no DICOM file, broken, too large, or in a transfer syntax that is not read.
        OSError, MemoryError: of this machine.
    """
    given = isinstance(source, bytes)
    if (len(source) if given else os.stat(source).st_size) > MAX_BYTES:
        raise Refused(f"the object has more than {MAX_BYTES >> 20} MiB", TOO_LARGE)
    file = _Counted(source if given else Path(source).read_bytes())
    try:
        read_preamble(file, force=False)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        if syntax not in SYNTAXES:  # a deflated one has no size before it is unpacked
            raise Refused(f"transfer syntax {_shown(syntax)} is not read", NOT_FITTING)
        little, implicit = syntax.is_little_endian, syntax.is_implicit_VR
        dataset = read_dataset(file, implicit, little, specific_tags=KEPT)
        for tag in list(dataset.keys()):
            raw = dataset.get_item(tag)
            length = len(raw.value or b"") if raw.is_raw else 0
            if raw.is_raw and raw.length not in (length, 0xFFFFFFFF):
                raise Refused("the file is cut off: send it again")
            if length > MAX_ELEMENT and tag != Tag("PixelData"):
                raise Refused(f"element {tag} is longer than {MAX_ELEMENT} bytes", TOO_LARGE)
            if dataset[tag].VR not in dictionary_VR(tag):
                raise Refused(f"element {tag} is of another kind than it should be")
        for _ in dataset.iterall():  # what cannot be understood shows itself now
            pass
    except (Refused, MemoryError):
        raise
    except Exception as error:  # of a dozen kinds, and some quote values
        raise Refused(f"no DICOM file, or a broken one ({type(error).__name__})") from None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def check(dataset: Dataset) -> None:
    """Refuse by its header what is no ultrasound, not complete, not supported or too large.

    Raises:
        Refused: says what the header has and what it needs to have.
    """
    if (sop := dataset.get("SOPClassUID")) not in SINGLE + SEVERAL:
        raise Refused(f"SOP class {_shown(sop)} is no ultrasound image", NO_SUCH_CLASS)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not re.fullmatch(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)+", str(dataset.get(keyword, ""))):
            raise Refused(f"{keyword} is missing or no UID", NOT_FITTING)
    for keyword in SAME + IF_ANY:  # an answer must be the same patient's, to the byte
        if "\ufffd" in str(dataset.get(keyword, "")):
            raise Refused(f"{keyword} is not written in the character set that is named")
    if (syntax := dataset.file_meta.TransferSyntaxUID) not in SYNTAXES:
        raise Refused(f"transfer syntax {_shown(syntax)} is not read", NOT_FITTING)
    if not isinstance(dataset.get("PixelData"), bytes):
        raise Refused("there is no PixelData", NOT_FITTING)
    rows, columns, count = (_number(dataset, of) for of in ("Rows", "Columns", "NumberOfFrames"))
    if count > 1 and sop in SINGLE:
        raise Refused(f"got {count} frames in a class for one", NOT_FITTING)
    pixels = rows * columns
    if pixels > frames.MAX_PIXELS or count > MAX_FRAMES or pixels * count > MAX_TOTAL:
        most = f"{MAX_FRAMES} frames, {frames.MAX_PIXELS:,} pixels each, {MAX_TOTAL:,} in all"
        raise Refused(f"got {count} frames of {rows} x {columns}, need at most {most}", TOO_LARGE)
    colour, samples = dataset.get("PhotometricInterpretation"), _number(dataset, "SamplesPerPixel")
    if SAMPLES.get(str(colour)) != samples:
        raise Refused(f"got {samples} samples, need one of {', '.join(SAMPLES)}", NOT_FITTING)
    allocated, stored = _number(dataset, "BitsAllocated"), _number(dataset, "BitsStored")
    highest, signed = _number(dataset, "HighBit", 0), _number(dataset, "PixelRepresentation", 0)
    fits = allocated in (8, 16) if samples == 1 else allocated == stored == 8
    if not fits or stored > allocated or highest != stored - 1 or signed:
        got = f"{stored} bits in {allocated}, bit {highest} the highest, sign {signed}"
        needed = "all of 8, or for gray the lower of 8 or 16, unsigned"
        raise Refused(f"got {got}, need {needed}", NOT_FITTING)
    size, got = pixels * samples * count * allocated // 8, len(dataset.PixelData)
    if colour == "YBR_FULL_422" and not syntax.is_encapsulated:
        size = size // 3 * 2 if columns % 2 == 0 else -1
    if size > MAX_RATIO * got if syntax.is_encapsulated else got not in (size, size + size % 2):
        raise Refused(f"got {got} bytes of PixelData, which its header makes {size} unpacked")


def _number(dataset: Dataset, keyword: str, least: int = 1) -> int:
    value = dataset.get(keyword)
    if value in (None, "") and keyword == "NumberOfFrames":
        return 1
    if not isinstance(value, int) or value < least:
        raise Refused(f"{keyword} is missing, or no number from {least}", NOT_FITTING)
    return int(value)


def _shown(value) -> str:
    """Return a UID as it may be shown: nothing else can hide in it."""
    return value if re.fullmatch(r"[0-9.]{1,64}", str(value)) else "(none)"


def read_frames(dataset: Dataset) -> Iterator[np.ndarray]:
    """Decode frame by frame, for `Predictor.predict`: uint8, gray (H,W) or RGB (H,W,3).

    Raises:
        Refused: by `check`, at once; where a frame cannot be decoded, when its turn comes.
    """
    check(dataset)
    return _decode(dataset, _number(dataset, "NumberOfFrames"))


def _decode(dataset, count):
    colour, bits, done = dataset.PhotometricInterpretation, dataset.BitsStored, 0
    try:
        for done, levels in enumerate(_levels(dataset, colour, count), 1):
            if done > count or levels.shape[:2] != (dataset.Rows, dataset.Columns):
                raise Refused("the frames in PixelData are not as its header says")
            if colour == "PALETTE COLOR":
                levels = apply_color_lut(levels, dataset)
                levels = (levels >> 8 * (levels.itemsize - 1)).astype(np.uint8)
            elif levels.ndim == 2:  # fewer bits than 8 are scaled to 8 as more are
                levels = levels if bits == 8 else levels.astype(np.uint16)
                levels = to_gray(levels, bits=bits, inverted=colour == "MONOCHROME1")
            yield levels
    except (Refused, MemoryError):
        raise
    except Exception as error:
        raise Refused(f"frame {done + 1} cannot be decoded ({type(error).__name__})") from None
    if done != count:
        raise Refused(f"PixelData has {done} frames, but its header makes them {count}")


def _levels(dataset, colour, count):
    """Yield frames as they are decoded; what was YBR is RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    decoder, raw = get_decoder(syntax), colour == "PALETTE COLOR"
    if not syntax.is_encapsulated:  # each by itself: of 4:2:2 pydicom can read one frame
        for index in range(count):
            yield decoder.as_array(dataset, index=index, raw=raw)[0]
        return
    about = {
        "number_of_frames": 1, "rows": dataset.Rows, "columns": dataset.Columns,
        "bits_allocated": dataset.BitsAllocated, "bits_stored": dataset.BitsStored,
        "samples_per_pixel": dataset.SamplesPerPixel, "pixel_representation": 0,
        "photometric_interpretation": colour, "planar_configuration": 0,
    }  # fmt: skip
    size = dataset.Rows * dataset.Columns * dataset.SamplesPerPixel * dataset.BitsAllocated // 8
    for code in generate_frames(dataset.PixelData, number_of_frames=count):
        if syntax == uid.RLELossless and (len(code) > 1024 + 9 * size // 8 or size > MAX_RLE):
            raise Refused("a frame's RLE is in pieces, or longer than it may be", TOO_LARGE)
        plain = code if syntax == uid.RLELossless else _plain_jpeg(code, dataset)
        if syntax != uid.JPEGBaseline8Bit:
            yield decoder.as_array(encapsulate([plain]), index=0, raw=raw, **about)[0]
            continue
        image = Image.open(io.BytesIO(code), formats=("JPEG",))
        # libjpeg makes RGB of what the stream calls YBR, and of what it gives no name to
        named = "jfif" in image.info or "adobe" in image.info or image.layer[0][0] == ord("R")
        if colour == "RGB" and not named:
            image.draft("YCbCr", image.size)  # how to get it as it is
        yield np.array(image)


def _plain_jpeg(code: bytes, dataset: Dataset) -> bytes:
    """Hold a stream against the header, and return it without applications' and other comments.

    Decoders take memory by what the stream says; and where its header is not quite right, gdcm
    ends the process.
    """
    place, kept, size = 2, [b"\xff\xd8"], None
    lossless = dataset.file_meta.TransferSyntaxUID != uid.JPEGBaseline8Bit
    while kept[-1][:2] != b"\xff\xda":  # start of scan; before it
        start, marker, length = struct.unpack(">BBH", code[place : place + 4])
        segment = code[place : place + 2 + length]
        if size is None and marker in ((0xC3,) if lossless else (0xC0, 0xC1)):  # the frame,
            precision, *size = struct.unpack(">BHHB", segment[4:10])
            fits = dataset.BitsAllocated - 8 < precision <= dataset.BitsAllocated
            # of lossless ones in full resolution
            fits &= size == [dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
            fits &= not lossless or set(segment[11::3]) == {0x11}
        else:  # tables and comments
            fits = marker in (0xC4, 0xDA, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker < 0xF0
            if lossless and marker == 0xDA:  # gdcm never ends where these are others
                fits &= segment[-3:-2] in b"\1\2\3\4\5\6\7" and segment[-2:-1] == b"\0"
                fits &= segment[-1] < 16
        if not fits or start != 0xFF or len(segment) != length + 2:
            raise Refused("a frame's JPEG stream is damaged, or does not fit the header")
        kept += [] if marker >= 0xE0 else [segment]
        place += len(segment)
    rest = code[place:].rstrip(b"\0\xff")
    if size is None or not rest.endswith(b"\xff\xd9"):
        raise Refused("a frame's JPEG stream is cut off")
    return b"".join([*kept, rest, bytes(len(rest) % 2)])


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Return mm per pixel, of rows and of columns; None where the object is not clear about it.

    That is what all regions of 2D tissue, in cm, agree on within 1 %. PixelSpacing counts where
    there are no regions, and must not contradict them.
    """
    regions, found = dataset.get("SequenceOfUltrasoundRegions") or [], []
    try:
        for region in regions:
            if (region.get("RegionSpatialFormat"), region.get("RegionDataType")) == (1, 1):
                if (region.PhysicalUnitsYDirection, region.PhysicalUnitsXDirection) != (3, 3):
                    return None
                found.append((10 * region.PhysicalDeltaY, 10 * region.PhysicalDeltaX))
        if dataset.get("PixelSpacing") and (found or not regions):
            found.append([float(each) for each in dataset.PixelSpacing])
        pairs = np.abs(np.array(found, np.float64).reshape(-1, 2))  # (N,2)
    except (AttributeError, TypeError, ValueError):
        return None
    # no scanner resolves less than a micrometre or has pixels of a centimetre
    if not len(pairs) or not np.all((pairs > 1e-3) & (pairs < 10)):
        return None
    return None if np.any(np.ptp(pairs, axis=0) > 0.01 * pairs[0]) else tuple(pairs[0].tolist())


def _made(**elements) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        if isinstance(value, Code):
            code, scheme, meaning, _ = value
            value = [_made(CodeValue=code, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]
        setattr(made, keyword, value)
    return made


def _uid(*parts: str | int) -> uid.UID:
    return uid.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def _reference(dataset: Dataset, frame: int = 0, **more) -> Dataset:
    """Refer to an object, and to a frame of it where it may have several."""
    if frame and dataset.SOPClassUID not in SINGLE:
        more["ReferencedFrameNumber"] = frame
    sop = {"ReferencedSOPClassUID": dataset.SOPClassUID}
    return _made(**sop, ReferencedSOPInstanceUID=dataset.SOPInstanceUID, **more)


def _text(value) -> str:
    return str(value).encode("ascii", "replace").decode().replace("\\", "/")[:64]


def _answer(
    dataset: Dataset, about: dict, sop: str, modality: str, series: int, content: bytes
) -> Dataset:
    """Begin an object of the same patient and study, in a series of its own.

    Args:
        content: what it will say; what says something else has another UID.
    """
    made_by = json.dumps([about, __version__], sort_keys=True, default=str)
    model = hashlib.sha256(made_by.encode()).hexdigest()
    said = hashlib.sha256(content)
    said.update(repr([str(dataset.get(keyword)) for keyword in SAME + IF_ANY]).encode())
    number = dataset.get("InstanceNumber")
    own = _uid(dataset.SOPInstanceUID, modality, model, said.hexdigest())
    new = _made(
        SOPClassUID=sop, SOPInstanceUID=own,
        SeriesInstanceUID=_uid(dataset.SeriesInstanceUID, modality, model), Modality=modality,
        SeriesNumber=series, SeriesDescription=f"Thyroid {modality}: {NOTICE}",
        InstanceNumber=number if isinstance(number, int) else 1, Manufacturer=MAKER,
        ManufacturerModelName=_text(about.get("model", "model")), DeviceSerialNumber=model[:16],
        SoftwareVersions=__version__, ContentDate="19000101", ContentTime="000000",
    )  # fmt: skip
    for keyword in SAME + IF_ANY:
        if keyword in dataset:
            new[keyword] = dataset[keyword]
        elif keyword in SAME:
            setattr(new, keyword, None)
    # The time of the frames, not of the answer: an object that comes again is answered the same.
    for kind in ("Study", "Series", "Acquisition", "Content"):
        date, time = str(dataset.get(f"{kind}Date")), str(dataset.get(f"{kind}Time"))
        if re.fullmatch(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", date):
            new.ContentDate, new.ContentTime = date, "000000"
            if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", time):
                new.ContentTime = time
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    new.file_meta.MediaStorageSOPClassUID = sop
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    return new


def segmentation(dataset: Dataset, predictions: Iterable[Prediction], about: dict) -> Dataset:
    """Return a DICOM Segmentation: BINARY, frame i over frame i of the source, also where empty.

    The masks of refused frames are in it, too; its label says how many those are.

    Args:
        dataset: the source, as `read_file` gives it.
        predictions: one per frame; taken one by one.
        about: of the predictor.

    Raises:
        ValueError: not as many masks, or not of the size, as the source has frames.
    """
    rows, columns, count = dataset.Rows, dataset.Columns, _number(dataset, "NumberOfFrames")
    packed, rest, refused = [], np.zeros(0, bool), 0
    for found in predictions:
        if found.mask.shape != (rows, columns) or len(packed) == count:
            raise ValueError(f"got {found.mask.shape}, need {count} masks of {rows} x {columns}")
        refused += found.refused
        bits = np.concatenate([rest, found.mask.ravel()])  # which run on from frame to frame
        packed.append(np.packbits(bits[: len(bits) // 8 * 8], bitorder="little").tobytes())
        rest = bits[len(bits) // 8 * 8 :]
    if len(packed) != count:
        raise ValueError(f"got {len(packed)} masks, need {count}")
    data = b"".join([*packed, np.packbits(rest, bitorder="little").tobytes()])
    seg = _answer(dataset, about, uid.SegmentationStorage, "SEG", 9101, data)
    space, name = _uid(seg.SOPInstanceUID, "dimensions"), seg.ManufacturerModelName
    label = THYROID.meaning + f" ({refused} of {count} frames refused)" * bool(refused)
    segment = _made(
        SegmentNumber=1, SegmentLabel=label, SegmentDescription=NOTICE,
        SegmentAlgorithmType="AUTOMATIC", SegmentAlgorithmName=name,
        SegmentationAlgorithmIdentificationSequence=[_made(
            AlgorithmFamilyCodeSequence=codes.DCM.ArtificialIntelligence, AlgorithmName=name,
            AlgorithmVersion=__version__, AlgorithmParameters=_text(about.get("run_id", "")),
            AlgorithmSource=MAKER)],
        SegmentedPropertyCategoryCodeSequence=codes.SCT.AnatomicalStructure,
        SegmentedPropertyTypeCodeSequence=THYROID,
    )  # fmt: skip
    why = codes.DCM.SourceImageForImageProcessingOperation
    how = {"PurposeOfReferenceCodeSequence": why, "SpatialLocationsPreserved": "YES"}
    seg.update(_made(
        ImageType=["DERIVED", "PRIMARY"], PatientOrientation=None, ContentLabel="THYROID",
        ContentDescription=NOTICE, ContentCreatorName=None, SamplesPerPixel=1, NumberOfFrames=count,
        PhotometricInterpretation="MONOCHROME2", Rows=rows, Columns=columns, BitsAllocated=1,
        BitsStored=1, HighBit=0, PixelRepresentation=0, LossyImageCompression="00",
        SegmentationType="BINARY", SegmentsOverlap="NO", SegmentSequence=[segment],
        ReferencedSeriesSequence=[_made(
            SeriesInstanceUID=dataset.SeriesInstanceUID,
            ReferencedInstanceSequence=[_reference(dataset)])],
        DimensionOrganizationSequence=[_made(DimensionOrganizationUID=space)],
        DimensionIndexSequence=[
            _made(DimensionOrganizationUID=space, DimensionDescriptionLabel=pointer,
                  DimensionIndexPointer=Tag(pointer), FunctionalGroupPointer=Tag(group))
            for pointer, group in (("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
                                   ("TemporalPositionIndex", "FrameContentSequence"))],
        # no PixelMeasures: readers ask for a thickness there, which no such frame has
        SharedFunctionalGroupsSequence=[
            _made(SegmentIdentificationSequence=[_made(ReferencedSegmentNumber=1)])],
        PerFrameFunctionalGroupsSequence=[
            _made(
                DerivationImageSequence=[_made(
                    DerivationCodeSequence=codes.DCM.SegmentationImageDerivation,
                    SourceImageSequence=[_reference(dataset, number, **how)])],
                FrameContentSequence=[_made(
                    DimensionIndexValues=[1, number], TemporalPositionIndex=number)])
            for number in range(1, count + 1)],
    ))  # fmt: skip
    lossy = dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    if lossy or dataset.get("LossyImageCompression") == "01":
        seg.LossyImageCompression = "01"
        size = count * rows * columns * dataset.SamplesPerPixel
        usual = {"Ratio": f"{size / len(dataset.PixelData):.4g}", "Method": "ISO_10918_1"}
        for part, value in usual.items():
            if dataset.get(keyword := f"LossyImageCompression{part}"):
                seg[keyword] = dataset[keyword]
            elif lossy:  # else how, and how much, nobody knows
                setattr(seg, keyword, value)
    seg.add_new("PixelData", "OB", data + bytes(len(data) % 2))
    return seg


def _item(kind: str, name: Code, value, *children: Dataset, of: str = "CONTAINS") -> Dataset:
    """Return a content item of a structured report."""
    item = _made(ValueType=kind, ConceptNameCodeSequence=name, RelationshipType=of)
    if kind == "NUM":
        measured = _made(NumericValue=f"{value[0]:.8g}", MeasurementUnitsCodeSequence=value[1])
        item.MeasuredValueSequence = [measured]
    elif kind == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
        if value:
            template = _made(MappingResource="DCMR", TemplateIdentifier=value)
            item.ContentTemplateSequence = [template]
    else:
        keywords = {"TEXT": "TextValue", "UIDREF": "UID", "CODE": "ConceptCodeSequence"}
        item.update(_made(**{keywords.get(kind, "ReferencedSOPSequence"): value}))
    if children:
        item.ContentSequence = list(children)
    return item


def report(
    dataset: Dataset, segmentation: Dataset, predictions: Iterable[Prediction], about: dict
) -> Dataset:
    """Return a Comprehensive SR, TID 1500: area and diameters by frame, of a cine the largest too.

    In mm where the spacing is known, else in pixels; a refused frame has none. Arguments as of
    `segmentation`.
    """
    found = list(predictions)
    groups = [_group(dataset, segmentation, *each) for each in enumerate(found, 1)]
    if len(found) > 1:
        seen = [each for each in found if each.area_px and not each.refused]
        refused, largest = sum(each.refused for each in found), []
        said = f"Thyroid in {len(seen)} of {len(found)} frames, {refused} refused."
        if seen:
            most = max(seen, key=lambda each: each.area_px)
            said += f" Largest in frame {found.index(most) + 1}."
            maximum = _item("CODE", codes.DCM.Derivation, codes.SCT.Maximum, of=MODIFIES)
            largest = [_item("NUM", codes.SCT.Area, _sizes(most)[0], maximum)]
        groups.insert(0, _item(
            "CONTAINER", codes.DCM.MeasurementGroup, "1501",
            *_tracked(segmentation, 0, "Thyroid, all frames"),
            *largest, _item("TEXT", codes.DCM.Comment, said),
        ))  # fmt: skip
    content = repr(
        [segmentation.SOPInstanceUID, *(replace(each, prob=0, mask=0) for each in found)]
    )
    sr = _answer(dataset, about, uid.ComprehensiveSRStorage, "SR", 9102, content.encode())
    device = _uid(MAKER, sr.DeviceSerialNumber)
    sr.update(_item(
        "CONTAINER", codes.DCM.ImagingMeasurementReport, "1500",
        _item("CODE", codes.DCM.LanguageOfContentItemAndDescendants, ENGLISH, of=MODIFIES),
        _item("CODE", codes.DCM.ObserverType, codes.DCM.Device, of=OBSERVES),
        _item("UIDREF", codes.DCM.DeviceObserverUID, device, of=OBSERVES),
        _item("TEXT", codes.DCM.DeviceObserverName, MAKER, of=OBSERVES),
        _item("CODE", codes.DCM.ProcedureReported, ULTRASOUND, of=MODIFIES),
        _item("TEXT", codes.DCM.Comment, NOTICE),
        _item("CONTAINER", codes.DCM.ImagingMeasurements, "", *groups),
    ))  # fmt: skip
    del sr.RelationshipType  # of the root, to nothing
    sr.update(_made(
        ReferencedPerformedProcedureStepSequence=[], PerformedProcedureCodeSequence=[],
        CompletionFlag="COMPLETE", VerificationFlag="UNVERIFIED",
        CurrentRequestedProcedureEvidenceSequence=[_made(
            StudyInstanceUID=dataset.StudyInstanceUID, ReferencedSeriesSequence=[
                _made(SeriesInstanceUID=of.SeriesInstanceUID,
                      ReferencedSOPSequence=[_reference(of)]) for of in (dataset, segmentation)])],
    ))  # fmt: skip
    return sr


def _tracked(segmentation, number, name):
    tracked = _uid(segmentation.SOPInstanceUID, number)
    return [
        _item("TEXT", codes.DCM.TrackingIdentifier, name, of=OBSERVES),
        _item("UIDREF", codes.DCM.TrackingUniqueIdentifier, tracked, of=OBSERVES),
        _item("CODE", codes.DCM.Finding, THYROID),
        _item("TEXT", codes.DCM.AlgorithmName, segmentation.ManufacturerModelName, of=MODIFIES),
        _item("TEXT", codes.DCM.AlgorithmVersion, __version__, of=MODIFIES),
    ]


def _sizes(found: Prediction) -> tuple:
    """Return area, longest diameter and the one across, each with its unit."""
    if found.area_mm2 is None:
        return tuple((each, PIXELS) for each in (found.area_px, *found.diameters_px))
    mm = ((each, codes.UCUM.Millimeter) for each in found.diameters_mm)
    return (found.area_mm2, codes.UCUM.SquareMillimeter), *mm


def _group(dataset, segmentation, number, found):
    frame, source = _reference(segmentation, number), _reference(dataset, number)
    names = codes.SCT.Area, codes.SCT.LongAxis, codes.SCT.ShortAxis
    numbers = list(zip(names, _sizes(found), strict=True))
    if found.confidence is not None:
        sure = 100 * found.confidence, codes.UCUM.Percent
        numbers.append((codes.DCM.CertaintyOfFinding, sure))
    said = ["Refused: not measured."] * found.refused + [doubt.text for doubt in found.doubts]
    return _item(
        "CONTAINER", codes.DCM.MeasurementGroup, "1410",
        *_tracked(segmentation, number, f"Thyroid, frame {number}"),
        _item("IMAGE", codes.DCM.ReferencedSegmentationFrame, [frame]),
        _item("IMAGE", codes.DCM.SourceImageForSegmentation, [source]),
        *(_item("NUM", *each) for each in numbers if not found.refused),
        *(_item("TEXT", codes.DCM.Comment, text) for text in said),
    )  # fmt: skip


def answer(
    dataset: Dataset, predictor: Predictor, *, told: list | None = None
) -> tuple[Dataset, Dataset]:
    """Return segmentation and report of an object, decoded and segmented frame by frame.

    Args:
        told: takes what was found in each frame, without its prob and mask: a cine has hundreds.

    Raises:
        Refused: the object cannot be read.
    """
    images, spacing, nothing = read_frames(dataset), spacing_of(dataset), np.zeros((0, 0), bool)
    told = [] if told is None else told

    def found():
        for image in images:
            prediction = predictor.predict(image, spacing_mm=spacing)
            told.append(replace(prediction, prob=nothing, mask=nothing))
            yield prediction

    seg = segmentation(dataset, found(), predictor.about)
    return seg, report(dataset, seg, told, predictor.about)

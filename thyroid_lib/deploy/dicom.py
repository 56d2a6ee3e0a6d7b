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
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.tag import Tag

from thyroid_lib import __version__, frames
from thyroid_lib.deploy.predictor import Prediction, Predictor, to_gray

# pydicom quotes the values that it warns of
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

MAX_BYTES, MAX_FRAMES = 512 * 2**20, 2_000
MAX_TOTAL = 2_000_000_000  # pixels of all frames: a segmentation of 250 MB
MAX_ELEMENT = 2**20  # bytes of what is no pixels
MAX_READS = 150_000  # of the parser, two or three an element
MAX_RATIO = 400  # of compression: black frames as JPEG Baseline stay below
BROKEN, NOT_FITTING, NO_SUCH_CLASS, TOO_LARGE = 0xC000, 0xA900, 0x0122, 0xA700
NOTICE, MAKER = "Research use, not for diagnosis", "thyroid_lib"
# fmt: off
SINGLE = uid.UltrasoundImageStorage, "1.2.840.10008.5.1.4.1.1.6"  # and the retired one
SEVERAL = uid.UltrasoundMultiFrameImageStorage, "1.2.840.10008.5.1.4.1.1.3"
DECODERS = {  # by transfer syntax, pydicom's plugin
    uid.ImplicitVRLittleEndian: "", uid.ExplicitVRLittleEndian: "", uid.ExplicitVRBigEndian: "",
    uid.RLELossless: "pydicom", uid.JPEGBaseline8Bit: "pillow", uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
}
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
    """
    given = isinstance(source, bytes)
    try:
        if (len(source) if given else os.stat(source).st_size) > MAX_BYTES:
            raise Refused(f"the object has more than {MAX_BYTES >> 20} MiB", TOO_LARGE)
        file = _Counted(source if given else Path(source).read_bytes())
        read_preamble(file, force=False)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        if syntax not in DECODERS:  # a deflated one has no size before it is unpacked
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
    except Refused:
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
    if (syntax := dataset.file_meta.TransferSyntaxUID) not in DECODERS:
        raise Refused(f"transfer syntax {_shown(syntax)} is not read", NOT_FITTING)
    if not isinstance(dataset.get("PixelData"), bytes):
        raise Refused("there is no PixelData", NOT_FITTING)
    rows, columns, count = (_number(dataset, of) for of in ("Rows", "Columns", "NumberOfFrames"))
    pixels = rows * columns
    if pixels > frames.MAX_PIXELS or count > MAX_FRAMES or pixels * count > MAX_TOTAL:
        raise Refused(
            f"{count} frames of {rows} x {columns} are too many: at most {MAX_FRAMES} frames, "
            f"{frames.MAX_PIXELS:,} pixels each, {MAX_TOTAL:,} in all",
            TOO_LARGE,
        )
    colour, samples = (
        str(dataset.get("PhotometricInterpretation")),
        _number(dataset, "SamplesPerPixel"),
    )
    if SAMPLES.get(colour) != samples or (colour == "YBR_FULL_422" and columns % 2):
        raise Refused(f"colours of {samples} samples need {', '.join(SAMPLES)}", NOT_FITTING)
    allocated, stored = _number(dataset, "BitsAllocated"), _number(dataset, "BitsStored")
    highest, signed = _number(dataset, "HighBit", 0), _number(dataset, "PixelRepresentation", 0)
    depths = (8, 16) if samples == 1 else (8,)
    if allocated not in depths or stored > allocated or highest != stored - 1 or signed:
        raise Refused(
            f"{stored} bits in {allocated}, the highest {highest}, {'' if signed else 'un'}signed: "
            f"need the lower bits of {' or '.join(map(str, depths))}, unsigned",
            NOT_FITTING,
        )
    size, got = pixels * samples * count * allocated // 8, len(dataset.PixelData)
    if colour == "YBR_FULL_422" and not syntax.is_encapsulated:
        size = size // 3 * 2
    if size > MAX_RATIO * got if syntax.is_encapsulated else got not in (size, size + size % 2):
        raise Refused(f"PixelData has {got} bytes, but its header makes it {size}, unpacked")


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
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"frame {done + 1} cannot be decoded ({type(error).__name__})") from None
    if done != count:
        raise Refused(f"PixelData has {done} frames, but its header makes them {count}")


def _levels(dataset, colour, count):
    """Yield frames as they are decoded; what was YBR is RGB."""
    syntax, palette = dataset.file_meta.TransferSyntaxUID, colour == "PALETTE COLOR"
    decoder = get_decoder(syntax)
    if not syntax.is_encapsulated:  # each by itself: of 4:2:2 pydicom can read one frame
        for index in range(count):
            yield decoder.as_array(dataset, index=index, raw=palette)[0]
        return
    how = {"decoding_plugin": DECODERS[syntax], "raw": palette}
    if DECODERS[syntax] == "gdcm":
        how["planar_configuration"] = 0  # as JPEG has it, whatever the header says
    decoded = (levels for levels, _ in decoder.iter_array(dataset, **how))
    if syntax == uid.RLELossless:
        yield from decoded
        return
    baseline = syntax == uid.JPEGBaseline8Bit
    for code in generate_frames(dataset.PixelData, number_of_frames=count):
        _check_jpeg(code, dataset, b"\xc0\xc1" if baseline else b"\xc3")
        if not baseline:
            yield next(decoded)
            continue
        image = Image.open(io.BytesIO(code), formats=("JPEG",))
        # libjpeg makes RGB of what the stream calls YBR, and of what it gives no name to
        named = "jfif" in image.info or "adobe" in image.info or image.layer[0][0] == ord("R")
        if colour == "RGB" and not named:
            image.draft("YCbCr", image.size)  # how to get it as it is
        yield np.array(image)


def _check_jpeg(code: bytes, dataset: Dataset, kinds: bytes) -> None:
    """Hold a stream against the header, before a decoder takes memory for it."""
    place = 2
    while code[place] == 0xFF and code[place + 1] not in b"\xc0\xc1\xc2\xc3\xda":
        place += 2 + int.from_bytes(code[place + 2 : place + 4])
    precision, *size = struct.unpack(">BHHB", code[place + 4 : place + 10])
    if (
        code[place + 1] not in kinds
        or size != [dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
        or not dataset.BitsAllocated - 8 < precision <= dataset.BitsAllocated
        or not code.rstrip(b"\0\xff").endswith(b"\xff\xd9")
    ):
        raise Refused("a frame's JPEG stream is cut off, or does not fit the header")


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
        setattr(made, keyword, value)
    return made


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    return [_made(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


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


def _answer(dataset: Dataset, about: dict, sop: str, modality: str, series: int) -> Dataset:
    """Begin an object of the same patient and study, in a series of its own."""
    model = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    number = dataset.get("InstanceNumber")
    new = _made(
        SOPClassUID=sop, SOPInstanceUID=_uid(dataset.SOPInstanceUID, modality, model),
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
            if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d){2}(\.\d{1,6})?", time):
                new.ContentTime = time
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    new.file_meta.MediaStorageSOPClassUID = sop
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    return new


# fmt: off
ANATOMY, THYROID = ("91723000", "SCT", "Anatomical structure"), ("69748006", "SCT", "Thyroid gland")
AI = "123110", "DCM", "Artificial Intelligence"
SEGMENTED, SOURCE = ("113076", "DCM", "Segmentation"), (
    "121322", "DCM", "Source image for image processing operation")
LANGUAGE, ENGLISH = ("121049", "DCM", "Language of Content Item and Descendants"), (
    "en-US", "RFC5646", "English (United States)")
OBSERVER, DEVICE = ("121005", "DCM", "Observer Type"), ("121007", "DCM", "Device")
PROCEDURE, ULTRASOUND = ("121058", "DCM", "Procedure reported"), (
    "16310003", "SCT", "Diagnostic ultrasonography")
DERIVATION, MAXIMUM = ("121401", "DCM", "Derivation"), ("56851009", "SCT", "Maximum")
FINDING, SITE = ("121071", "DCM", "Finding"), ("363698007", "SCT", "Finding Site")
TRACKING, TRACKING_UID = ("112039", "DCM", "Tracking Identifier"), (
    "112040", "DCM", "Tracking Unique Identifier")
AREA, COMMENT = ("42798000", "SCT", "Area"), ("121106", "DCM", "Comment")
LONG, SHORT = ("103339001", "SCT", "Long axis"), ("103340004", "SCT", "Short axis")
CERTAINTY = "111012", "DCM", "Certainty of Finding"  # the Dice to be expected
PIXELS, PERCENT = ("{pixels}", "UCUM", "pixels"), ("%", "UCUM", "Percent")
MM, MM2 = ("mm", "UCUM", "mm"), ("mm2", "UCUM", "mm2")
# fmt: on


def segmentation(dataset: Dataset, predictions: Iterable[Prediction], about: dict) -> Dataset:
    """Return a DICOM Segmentation: BINARY, frame i over frame i of the source, also where empty.

    Args:
        dataset: the source, as `read_file` gives it.
        predictions: one per frame; taken one by one.
        about: of the predictor.

    Raises:
        ValueError: not as many masks, or not of the size, as the source has frames.
    """
    packed, rest, count = [], np.zeros(0, bool), _number(dataset, "NumberOfFrames")
    for found in predictions:
        if found.mask.shape != (dataset.Rows, dataset.Columns) or len(packed) == count:
            raise ValueError(
                f"got another mask, need {count} of {dataset.Rows} x {dataset.Columns}"
            )
        bits = np.concatenate([rest, found.mask.ravel()])  # which run on from frame to frame
        packed.append(np.packbits(bits[: len(bits) // 8 * 8], bitorder="little").tobytes())
        rest = bits[len(bits) // 8 * 8 :]
    if len(packed) != count:
        raise ValueError(f"got {len(packed)} masks, need {count}")
    data = b"".join([*packed, np.packbits(rest, bitorder="little").tobytes()])
    name, seg = (
        _text(about.get("model", "model")),
        _answer(dataset, about, uid.SegmentationStorage, "SEG", 9101),
    )
    algorithm = _made(
        AlgorithmFamilyCodeSequence=_code(*AI), AlgorithmName=name, AlgorithmSource=MAKER,
        AlgorithmVersion=__version__, AlgorithmParameters=_text(about.get("run_id", "")),
    )  # fmt: skip
    segment = _made(
        SegmentNumber=1, SegmentLabel=THYROID[2], SegmentDescription=NOTICE,
        SegmentAlgorithmType="AUTOMATIC", SegmentAlgorithmName=name,
        SegmentationAlgorithmIdentificationSequence=[algorithm],
        SegmentedPropertyCategoryCodeSequence=_code(*ANATOMY),
        SegmentedPropertyTypeCodeSequence=_code(*THYROID),
    )  # fmt: skip
    space = _uid(seg.SOPInstanceUID, "dimensions")
    dimensions = [
        _made(DimensionOrganizationUID=space, DimensionIndexPointer=Tag(pointer),
              FunctionalGroupPointer=Tag(group), DimensionDescriptionLabel=pointer)
        for pointer, group in (("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
                               ("TemporalPositionIndex", "FrameContentSequence"))
    ]  # fmt: skip
    shared = _made(SegmentIdentificationSequence=[_made(ReferencedSegmentNumber=1)])
    groups = [
        _made(
            DerivationImageSequence=[_made(
                DerivationCodeSequence=_code(*SEGMENTED), SourceImageSequence=[_reference(
                    dataset, number, SpatialLocationsPreserved="YES",
                    PurposeOfReferenceCodeSequence=_code(*SOURCE))])],
            FrameContentSequence=[_made(
                DimensionIndexValues=[1, number], TemporalPositionIndex=number)],
        )
        for number in range(1, count + 1)
    ]  # fmt: skip
    series = _made(
        SeriesInstanceUID=dataset.SeriesInstanceUID,
        ReferencedInstanceSequence=[_reference(dataset)],
    )
    seg.update(_made(
        ImageType=["DERIVED", "PRIMARY"], PatientOrientation=None, ContentLabel="THYROID",
        ContentDescription=NOTICE, ContentCreatorName=None, SamplesPerPixel=1, NumberOfFrames=count,
        PhotometricInterpretation="MONOCHROME2", Rows=dataset.Rows, Columns=dataset.Columns,
        BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0, LossyImageCompression="00",
        SegmentationType="BINARY", SegmentsOverlap="NO", SegmentSequence=[segment],
        ReferencedSeriesSequence=[series], DimensionIndexSequence=dimensions,
        DimensionOrganizationSequence=[_made(DimensionOrganizationUID=space)],
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=groups,
    ))  # fmt: skip
    lossy = dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    if lossy or dataset.get("LossyImageCompression") == "01":
        size = count * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
        seg.LossyImageCompression = "01"
        usual = {"Ratio": f"{size / len(dataset.PixelData):.4g}", "Method": "ISO_10918_1"}
        for part, value in usual.items():
            if (keyword := f"LossyImageCompression{part}") in dataset:
                seg[keyword] = dataset[keyword]
            else:
                setattr(seg, keyword, value)
    seg.add_new("PixelData", "OB", data + bytes(len(data) % 2))
    return seg


def _item(relation: str, name: tuple, kind: str, value, *children: Dataset) -> Dataset:
    """Return a content item of a structured report."""
    item = _made(ValueType=kind, ConceptNameCodeSequence=_code(*name))
    if relation:
        item.RelationshipType = relation
    if kind == "NUM":
        unit = _code(*value[1])
        measured = _made(NumericValue=f"{value[0]:.8g}", MeasurementUnitsCodeSequence=unit)
        item.MeasuredValueSequence = [measured]
    elif kind == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
        if value:
            template = _made(MappingResource="DCMR", TemplateIdentifier=value)
            item.ContentTemplateSequence = [template]
    else:
        keyword = {"TEXT": "TextValue", "UIDREF": "UID", "CODE": "ConceptCodeSequence"}
        value = _code(*value) if kind == "CODE" else value
        setattr(item, keyword.get(kind, "ReferencedSOPSequence"), value)
    if children:
        item.ContentSequence = list(children)
    return item


def report(
    dataset: Dataset, segmentation: Dataset, predictions: Iterable[Prediction], about: dict
) -> Dataset:
    """Return a Comprehensive SR, TID 1500: area and diameters by frame, of a cine the largest too.

    In mm where the spacing is known, else in pixels. Arguments as of `segmentation`.
    """
    found = list(predictions)
    groups = [_measured(dataset, segmentation, *each, about) for each in enumerate(found, 1)]
    if len(found) > 1:
        largest = max(range(len(found)), key=lambda place: found[place].area_px)
        seen, grave = sum(each.area_px > 0 for each in found), sum(each.refused for each in found)
        groups.insert(0, _item(
            "CONTAINS", ("125007", "DCM", "Measurement Group"), "CONTAINER", "1501",
            *_tracked(segmentation, 0),
            _item("CONTAINS", AREA, "NUM", _sizes(found[largest])[0],
                  _item("HAS CONCEPT MOD", DERIVATION, "CODE", MAXIMUM)),
            _item("CONTAINS", COMMENT, "TEXT",
                  f"Largest in frame {largest + 1}. Thyroid in {seen} of {len(found)} frames, "
                  f"grave doubts in {grave}."),
        ))  # fmt: skip
    sr = _answer(dataset, about, uid.ComprehensiveSRStorage, "SR", 9102)
    observer = _uid(MAKER, sr.DeviceSerialNumber)
    sr.update(_item(
        "", ("126000", "DCM", "Imaging Measurement Report"), "CONTAINER", "1500",
        _item("HAS CONCEPT MOD", LANGUAGE, "CODE", ENGLISH),
        _item("HAS OBS CONTEXT", OBSERVER, "CODE", DEVICE),
        _item("HAS OBS CONTEXT", ("121012", "DCM", "Device Observer UID"), "UIDREF", observer),
        _item("HAS OBS CONTEXT", ("121013", "DCM", "Device Observer Name"), "TEXT", MAKER),
        _item("HAS CONCEPT MOD", PROCEDURE, "CODE", ULTRASOUND),
        _item("CONTAINS", COMMENT, "TEXT", NOTICE),
        _item("CONTAINS", ("126010", "DCM", "Imaging Measurements"), "CONTAINER", "", *groups),
    ))  # fmt: skip
    series = [
        _made(SeriesInstanceUID=of.SeriesInstanceUID, ReferencedSOPSequence=[_reference(of)])
        for of in (dataset, segmentation)
    ]
    evidence = _made(StudyInstanceUID=dataset.StudyInstanceUID, ReferencedSeriesSequence=series)
    sr.update(_made(
        ReferencedPerformedProcedureStepSequence=[], PerformedProcedureCodeSequence=[],
        CompletionFlag="COMPLETE", VerificationFlag="UNVERIFIED",
        CurrentRequestedProcedureEvidenceSequence=[evidence],
    ))  # fmt: skip
    return sr


def _sizes(found: Prediction) -> tuple:
    """Return area, longest and shortest diameter, each with its unit."""
    if found.area_mm2 is None:
        return tuple((each, PIXELS) for each in (found.area_px, *found.diameters_px))
    return (found.area_mm2, MM2), *((each, MM) for each in found.diameters_mm)


def _tracked(segmentation: Dataset, number: int) -> list[Dataset]:
    tracked, name = _uid(segmentation.SOPInstanceUID, number), f"Thyroid, frame {number}"
    return [
        _item("HAS OBS CONTEXT", TRACKING, "TEXT", name if number else "Thyroid, all frames"),
        _item("HAS OBS CONTEXT", TRACKING_UID, "UIDREF", tracked),
        _item("CONTAINS", FINDING, "CODE", THYROID),
    ]


def _measured(dataset, segmentation, number, found, about):
    frame, source = _reference(segmentation, number), _reference(dataset, number)
    items = [
        *_tracked(segmentation, number),
        _item("HAS CONCEPT MOD", ("111001", "DCM", "Algorithm Name"), "TEXT",
              segmentation.ManufacturerModelName),
        _item("HAS CONCEPT MOD", ("111003", "DCM", "Algorithm Version"), "TEXT", __version__),
        _item("HAS CONCEPT MOD", SITE, "CODE", THYROID),
        _item("CONTAINS", ("121214", "DCM", "Referenced Segmentation Frame"), "IMAGE", [frame]),
        _item("CONTAINS", ("121233", "DCM", "Source image for segmentation"), "IMAGE", [source]),
        *(_item("CONTAINS", name, "NUM", size)
          for name, size in zip((AREA, LONG, SHORT), _sizes(found), strict=True)),
    ]  # fmt: skip
    if found.confidence is not None:
        items.append(_item("CONTAINS", CERTAINTY, "NUM", (100 * found.confidence, PERCENT)))
    items += [_item("CONTAINS", COMMENT, "TEXT", doubt.text) for doubt in found.doubts]
    return _item("CONTAINS", ("125007", "DCM", "Measurement Group"), "CONTAINER", "1410", *items)


def answer(
    dataset: Dataset, predictor: Predictor, *, refuse: bool = False
) -> tuple[Dataset, Dataset]:
    """Return segmentation and report of an object, decoded and segmented frame by frame.

    Args:
        refuse: whether to refuse an object that has grave doubts about each of its frames.

    Raises:
        Refused: the object cannot be read, or that.
    """
    images, spacing, told = read_frames(dataset), spacing_of(dataset), []
    nothing = np.zeros((0, 0), bool)

    def found():
        for image in images:
            prediction = predictor.predict(image, spacing_mm=spacing)
            told.append(replace(prediction, prob=nothing, mask=nothing))  # a cine has hundreds
            yield prediction

    seg = segmentation(dataset, found(), predictor.about)
    if refuse and all(each.refused for each in told):
        grave = next(doubt for doubt in told[0].doubts if doubt.grave)
        raise Refused(f"no frame can be used: {grave.text}", NOT_FITTING)
    return seg, report(dataset, seg, told, predictor.about)

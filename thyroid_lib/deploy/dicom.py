"""DICOM: from an ultrasound object to frames, and from predictions to a segmentation and a report.

    dataset = dicom.read_file("cine.dcm")
    seg, sr = dicom.answer(dataset, Predictor.open("results/demo/deploy"))

Whatever cannot be read raises `Refused`, with the status that a storage SCP answers; its text holds
nothing of a patient. The same object and model always make the same two objects, to the byte.

Sources: DICOM PS3.3 A.51 (Segmentation), A.35.3 (Comprehensive SR), C.8.5.5 (US regions); PS3.16
TID 1500 (Measurement Report), TID 1410 (Planar ROI); PS3.5 B.2 (UIDs under 2.25).
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
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.tag import Tag

from thyroid_lib import __version__, frames
from thyroid_lib.deploy.predictor import Prediction, Predictor, to_gray

# What pydicom warns of, it quotes.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")

MAX_BYTES = 512 * 2**20
MAX_ELEMENT = 2**20  # bytes of whatever is not pixels
MAX_READS = 500_000  # of the parser: an element takes two or three
MAX_FRAMES = 2_000
MAX_TOTAL = 2_000_000_000  # pixels of all frames: a segmentation of 250 MB
MAX_RATIO = 400  # of compression: not even a black frame as JPEG Baseline reaches it
BROKEN, NOT_FITTING, NO_SUCH_CLASS, TOO_LARGE = 0xC000, 0xA900, 0x0122, 0xA700
NOTICE = "Research use, not for diagnosis"
MAKER = "thyroid_lib"
CLASSES = {
    uid.UltrasoundImageStorage, uid.UltrasoundMultiFrameImageStorage,
    "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3",  # retired
}  # fmt: skip
DECODERS = {
    uid.ImplicitVRLittleEndian: "", uid.ExplicitVRLittleEndian: "", uid.ExplicitVRBigEndian: "",
    uid.RLELossless: "pydicom", uid.JPEGBaseline8Bit: "pillow", uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
}  # fmt: skip
COLOURS = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1}  # samples per pixel
COLOURS |= {"RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3}
SAME = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientName", "PatientID",
    "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription",
)  # fmt: skip
OPTIONAL = ("SpecificCharacterSet", "TimezoneOffsetFromUTC", "IssuerOfPatientID")
OPTIONAL += ("StudyDescription",)
KEPT = [Tag(keyword) for keyword in (
    *SAME, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "InstanceNumber",
    "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime",
    "SequenceOfUltrasoundRegions", "PixelSpacing", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "PixelData",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
      for part in ("Descriptor", "Data")),
)]  # fmt: skip


class Refused(ValueError):
    """Why an object is not taken, in a sentence without patient data; status is the DIMSE one."""

    def __init__(self, text: str, status: int = BROKEN):
        super().__init__(text)
        self.status = status


class _Counted(io.BytesIO):
    """Ends a parser that is led through millions of empty elements."""

    left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Refused("the object has too many elements", TOO_LARGE)
        return super().read(size)


def read_file(source: bytes | str | Path) -> Dataset:
    """Read what is needed of a DICOM file; all other elements are left out.

    Raises:
        Refused: no DICOM file, broken, too large, or in a transfer syntax that is not read.
    """
    try:
        size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
        if size > MAX_BYTES:
            raise Refused(f"the object has more than {MAX_BYTES >> 20} MiB", TOO_LARGE)
        file = _Counted(source if isinstance(source, bytes) else Path(source).read_bytes())
        read_preamble(file, force=False)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        syntax = uid.UID(meta.TransferSyntaxUID)
        if syntax not in DECODERS:  # deflated ones too: their size would be known too late
            raise Refused(f"transfer syntax {_shown(syntax)} is not read", NOT_FITTING)
        little, implicit = syntax.is_little_endian, syntax.is_implicit_VR
        dataset = read_dataset(file, implicit, little, specific_tags=KEPT)
        for tag in list(dataset.keys()):
            raw = dataset.get_item(tag)
            length = len(raw.value or b"") if raw.is_raw else 0
            if raw.is_raw and raw.length not in (length, 0xFFFFFFFF):
                raise Refused("the file is cut off: send it again")
            if length > MAX_ELEMENT and tag != Tag("PixelData"):
                raise Refused(f"element {tag} has more than {MAX_ELEMENT >> 20} MiB", TOO_LARGE)
        for _ in dataset.iterall():  # what cannot be understood shows itself here
            pass
    except Refused:
        raise
    except Exception as error:  # pydicom raises a dozen kinds, some of which quote values
        raise Refused(f"no DICOM file, or a broken one ({type(error).__name__})") from None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def check(dataset: Dataset) -> None:
    """Refuse by its header what is no ultrasound image, not complete, not supported or too large.

    Raises:
        Refused: says which element has what, and what it needs to have.
    """
    sop = dataset.get("SOPClassUID")
    if sop not in CLASSES:
        raise Refused(f"SOP class {_shown(sop)} is no ultrasound image", NO_SUCH_CLASS)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        if not re.fullmatch(r"(?=.{1,64}$)\d+(\.\d+)+", str(dataset.get(keyword, ""))):
            raise Refused(f"{keyword} is missing or no UID", NOT_FITTING)
    if dataset.file_meta.TransferSyntaxUID not in DECODERS:
        raise Refused("the transfer syntax is not read", NOT_FITTING)
    if not isinstance(dataset.get("PixelData"), bytes):
        raise Refused("there is no PixelData", NOT_FITTING)
    rows, columns, count = (
        _number(dataset, name) for name in ("Rows", "Columns", "NumberOfFrames")
    )
    if (
        rows * columns > frames.MAX_PIXELS
        or count > MAX_FRAMES
        or rows * columns * count > MAX_TOTAL
    ):
        raise Refused(
            f"{count} frames of {rows} x {columns} are too many: at most {MAX_FRAMES} frames, "
            f"{frames.MAX_PIXELS // 10**6} megapixels each, {MAX_TOTAL // 10**6} in all",
            TOO_LARGE,
        )
    colour, samples = (
        str(dataset.get("PhotometricInterpretation")),
        _number(dataset, "SamplesPerPixel"),
    )
    if COLOURS.get(colour) != samples:
        raise Refused(f"{samples} samples of {_shown(colour)} are not read", NOT_FITTING)
    allocated, stored = _number(dataset, "BitsAllocated"), _number(dataset, "BitsStored")
    layout = allocated, _number(dataset, "HighBit"), _number(dataset, "PixelRepresentation", 0)
    depths = (8,) if samples == 3 else (8, 16)
    if allocated not in depths or stored > allocated or layout[1:] != (stored - 1, 0):
        raise Refused(
            f"{stored} bits in {allocated}, highest {layout[1]}, representation {layout[2]} are "
            f"not read: needs unsigned {' or '.join(map(str, depths))} bits",
            NOT_FITTING,
        )
    size, got = rows * columns * samples * count * allocated // 8, len(dataset.PixelData)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if size > MAX_RATIO * got:
            raise Refused(f"{got} bytes cannot hold {count} frames of {rows} x {columns}")
    else:
        size = size // 3 * 2 if colour == "YBR_FULL_422" else size
        if got not in (size, size + size % 2):
            raise Refused(f"PixelData has {got} bytes, its header makes it {size}")


def _number(dataset: Dataset, keyword: str, least: int = 1) -> int:
    value = dataset.get(keyword)
    if value in (None, "") and keyword in ("NumberOfFrames", "HighBit"):
        value = 1 if keyword == "NumberOfFrames" else _number(dataset, "BitsStored") - 1
    if not isinstance(value, int) or value < least:
        raise Refused(f"{keyword} is missing or no number from {least}", NOT_FITTING)
    return int(value)


def _shown(value) -> str:
    """Return a code of a header as it may be shown: short, without what a name could hide in."""
    return re.sub(r"[^A-Z0-9_. ]", "", str(value))[:64] or "(none)"


def read_frames(dataset: Dataset) -> Iterator[np.ndarray]:
    """Decode frame by frame, for `Predictor.predict`: uint8, gray (H,W) or RGB (H,W,3).

    Raises:
        Refused: by `check`, at once; where a frame cannot be decoded, when its turn comes.
    """
    check(dataset)
    return _decode(dataset)


def _decode(dataset):
    colour, bits = dataset.PhotometricInterpretation, dataset.BitsStored
    count, done = _number(dataset, "NumberOfFrames"), 0
    try:
        for levels in _levels(dataset, colour):
            done += 1
            if done > count:
                break
            if levels.shape[:2] != (dataset.Rows, dataset.Columns):
                raise Refused(f"frame {done} is not of the size that the header gives")
            if colour == "PALETTE COLOR":
                levels = apply_color_lut(levels, dataset)
                yield (levels >> 8 * (levels.itemsize - 1)).astype(np.uint8)
            elif levels.ndim == 3:
                yield levels
            else:  # fewer than 8 bits are scaled to 8 as more are
                wide = levels if bits == 8 else levels.astype(np.uint16)
                yield to_gray(wide, bits=bits, inverted=colour == "MONOCHROME1")
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"frame {done + 1} cannot be decoded ({type(error).__name__})") from None
    if done != count:
        raise Refused(f"there are not {count} frames in PixelData, as NumberOfFrames has it")


def _levels(dataset, colour: str):
    """Yield frames as pydicom or Pillow decodes them; what was YBR is RGB."""
    syntax = dataset.file_meta.TransferSyntaxUID
    decoded = get_decoder(syntax).iter_array(
        dataset, decoding_plugin=DECODERS[syntax], raw=colour == "PALETTE COLOR"
    )
    if syntax not in uid.JPEGTransferSyntaxes:
        yield from (levels for levels, _ in decoded)
        return
    for code in generate_frames(
        dataset.PixelData, number_of_frames=_number(dataset, "NumberOfFrames")
    ):
        _check_jpeg(code, dataset, b"\xc3" if syntax != uid.JPEGBaseline8Bit else b"\xc0\xc1")
        if syntax != uid.JPEGBaseline8Bit:
            yield next(decoded)[0]
            continue
        image = Image.open(io.BytesIO(code), formats=("JPEG",))
        # libjpeg makes RGB of what the stream calls YBR, and of what the stream says nothing of
        tagged = "jfif" in image.info or "adobe" in image.info or image.layer[0][0] == ord("R")
        if colour == "RGB" and not tagged:
            image.draft("YCbCr", image.size)  # the way to get it as it is
        yield np.array(image)


def _check_jpeg(code: bytes, dataset: Dataset, kinds: bytes) -> None:
    """Hold a stream against the header, before a decoder takes memory for it."""
    place = 2
    while code[place : place + 1] == b"\xff" and code[place + 1] not in b"\xc0\xc1\xc2\xc3\xda":
        place += 2 + int.from_bytes(code[place + 2 : place + 4])
    precision, *size = struct.unpack(">BHHB", code[place + 4 : place + 10])
    if (
        code[place + 1] not in kinds
        or size != [dataset.Rows, dataset.Columns, dataset.SamplesPerPixel]
        or not dataset.BitsAllocated - 8 < precision <= dataset.BitsAllocated
        or not code.rstrip(b"\0\xff").endswith(b"\xd9")
    ):
        raise Refused("a frame's JPEG stream is cut off or does not fit the header")


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Return mm per pixel, of rows and of columns; None where the object does not say for certain.

    That is what all regions of 2D tissue agree on within 1 %, in cm; PixelSpacing counts where
    there are no regions, and must not contradict them.
    """
    regions = dataset.get("SequenceOfUltrasoundRegions") or []
    try:
        found = []
        for region in regions:
            if (region.get("RegionSpatialFormat"), region.get("RegionDataType")) == (1, 1):
                if (region.PhysicalUnitsYDirection, region.PhysicalUnitsXDirection) != (3, 3):
                    return None
                found.append((10 * region.PhysicalDeltaY, 10 * region.PhysicalDeltaX))
        if dataset.get("PixelSpacing") and (found or not regions):
            found.append(tuple(map(float, dataset.PixelSpacing)))
        pairs = np.abs(np.array(found, np.float64).reshape(-1, 2))  # (N,2)
    except (AttributeError, TypeError, ValueError):
        return None
    # what no scanner resolves or covers is a mistake
    if not len(pairs) or not np.all((pairs > 1e-3) & (pairs < 10)):
        return None
    return None if np.any(np.ptp(pairs, axis=0) > 0.01 * pairs[0]) else tuple(pairs[0].tolist())


def _uid(*parts: str) -> uid.UID:
    return uid.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return [code]


def _reference(dataset: Dataset, **more) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def _new(dataset: Dataset, about: dict, sop: str, modality: str, number: int) -> Dataset:
    """Return an object of the same patient and study, in a series of its own."""
    new = Dataset()
    for keyword in SAME:
        if keyword in dataset:
            new[keyword] = dataset[keyword]
        elif keyword not in OPTIONAL:
            setattr(new, keyword, None)
    model = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
    source = dataset.SOPInstanceUID, modality, model
    new.SOPClassUID, new.SOPInstanceUID = sop, _uid(*source)
    new.SeriesInstanceUID = _uid(*source, "series")
    new.Modality, new.SeriesNumber, new.InstanceNumber = modality, number, 1
    new.SeriesDescription = f"Thyroid {modality}: {NOTICE}"
    new.Manufacturer, new.ManufacturerModelName = MAKER, _text(about.get("model", "model"))
    new.DeviceSerialNumber, new.SoftwareVersions = model[:16], __version__
    # the time of the frames, not of the answer: a frame that comes again makes the same object
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date = str(dataset.get(f"{kind}Date", ""))
        if re.fullmatch(r"\d{8}", date):
            time = str(dataset.get(f"{kind}Time", ""))
            new.ContentDate = date
            new.ContentTime = time if re.fullmatch(r"\d{6}(\.\d{1,6})?", time) else "000000"
            break
    else:
        new.ContentDate, new.ContentTime = "19000101", "000000"
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    new.file_meta.MediaStorageSOPClassUID = sop
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    return new


def _text(value) -> str:
    return str(value).encode("ascii", "replace").decode().replace("\\", "/")[:64]


def segmentation(dataset: Dataset, predictions: Iterable[Prediction], about: dict) -> Dataset:
    """Return a DICOM Segmentation: BINARY, frame i over frame i of the source, also where empty.

    Args:
        dataset: the source, as `read_file` gives it.
        predictions: one per frame; taken one by one.
        about: of the predictor.

    Raises:
        Refused: the source cannot be read to its end.
    """
    seg = _new(dataset, about, uid.SegmentationStorage, "SEG", 9101)
    packed, bits = [], np.zeros(0, bool)
    for found in predictions:  # bits run on from frame to frame
        bits = np.concatenate([bits, found.mask.ravel()])
        whole = len(bits) // 8 * 8
        packed.append(np.packbits(bits[:whole], bitorder="little").tobytes())
        bits = bits[whole:]
    count = len(packed)
    data = b"".join([*packed, np.packbits(bits, bitorder="little").tobytes()])
    seg.ImageType, seg.PatientOrientation = ["DERIVED", "PRIMARY"], None
    seg.ContentLabel, seg.ContentDescription, seg.ContentCreatorName = "THYROID", NOTICE, None
    seg.SamplesPerPixel, seg.PhotometricInterpretation = 1, "MONOCHROME2"
    seg.NumberOfFrames, seg.Rows, seg.Columns = count, dataset.Rows, dataset.Columns
    seg.BitsAllocated, seg.BitsStored, seg.HighBit, seg.PixelRepresentation = 1, 1, 0, 0
    lossy = dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    seg.LossyImageCompression = (
        "01" if lossy or dataset.get("LossyImageCompression") == "01" else "00"
    )
    if seg.LossyImageCompression == "01":
        size = count * dataset.Rows * dataset.Columns * dataset.SamplesPerPixel
        ratio = dataset.get("LossyImageCompressionRatio") or f"{size / len(dataset.PixelData):.4g}"
        seg.LossyImageCompressionRatio = ratio
        seg.LossyImageCompressionMethod = (
            dataset.get("LossyImageCompressionMethod") or "ISO_10918_1"
        )
    seg.SegmentationType, seg.SegmentsOverlap = "BINARY", "NO"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "Thyroid gland"
    segment.SegmentDescription = NOTICE
    segment.SegmentAlgorithmType = "AUTOMATIC"
    segment.SegmentAlgorithmName = _text(about.get("model", "model"))
    segment.SegmentedPropertyCategoryCodeSequence = _code(*ANATOMY)
    segment.SegmentedPropertyTypeCodeSequence = _code(*THYROID)
    algorithm = Dataset()
    algorithm.AlgorithmFamilyCodeSequence = _code("123110", "DCM", "Artificial Intelligence")
    algorithm.AlgorithmName, algorithm.AlgorithmVersion = segment.SegmentAlgorithmName, __version__
    algorithm.AlgorithmParameters = _text(about.get("run_id", ""))
    algorithm.AlgorithmSource = MAKER
    segment.SegmentationAlgorithmIdentificationSequence = [algorithm]
    seg.SegmentSequence = [segment]
    series = Dataset()
    series.SeriesInstanceUID = dataset.SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(dataset)]
    seg.ReferencedSeriesSequence = [series]
    organization = _uid(seg.SOPInstanceUID, "dimensions")
    seg.DimensionOrganizationSequence = [Dataset()]
    seg.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    seg.DimensionIndexSequence = []
    for pointer, group in (
        ("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
        ("TemporalPositionIndex", "FrameContentSequence"),
    ):
        index = Dataset()
        index.DimensionOrganizationUID = organization
        index.DimensionIndexPointer, index.FunctionalGroupPointer = Tag(pointer), Tag(group)
        index.DimensionDescriptionLabel = pointer
        seg.DimensionIndexSequence.append(index)
    shared, identity = Dataset(), Dataset()
    identity.ReferencedSegmentNumber = 1
    shared.SegmentIdentificationSequence = [identity]
    if spacing := spacing_of(dataset):
        measures = Dataset()
        measures.PixelSpacing = [f"{each:.8g}" for each in spacing]
        shared.PixelMeasuresSequence = [measures]
    seg.SharedFunctionalGroupsSequence = [shared]
    seg.PerFrameFunctionalGroupsSequence = []
    for number in range(1, count + 1):
        group, derivation, content = Dataset(), Dataset(), Dataset()
        source = _reference(dataset, SpatialLocationsPreserved="YES", **_frame(dataset, number))
        source.PurposeOfReferenceCodeSequence = _code(
            "121322", "DCM", "Source Image for Image Processing Operation"
        )
        derivation.SourceImageSequence = [source]
        derivation.DerivationCodeSequence = _code("113076", "DCM", "Segmentation")
        content.DimensionIndexValues, content.TemporalPositionIndex = [1, number], number
        group.DerivationImageSequence, group.FrameContentSequence = [derivation], [content]
        seg.PerFrameFunctionalGroupsSequence.append(group)
    seg.PixelData = data + bytes(len(data) % 2)
    seg["PixelData"].VR = "OB"
    return seg


def _frame(dataset: Dataset, number: int) -> dict:
    """Name a frame, which only an object of several may do."""
    return {"ReferencedFrameNumber": number} if "NumberOfFrames" in dataset else {}


ANATOMY = "91723000", "SCT", "Anatomical structure"
THYROID = "69748006", "SCT", "Thyroid gland"
AREA = "42798000", "SCT", "Area"
LONG, SHORT = ("103339001", "SCT", "Long axis"), ("103340004", "SCT", "Short axis")
CONFIDENCE = "111012", "DCM", "Certainty of Finding"  # the Dice to be expected
COMMENT = "121106", "DCM", "Comment"
PIXELS, PERCENT = ("{pixels}", "UCUM", "pixels"), ("%", "UCUM", "Percent")


def _item(relation: str, kind: str, name: tuple, value, *children: Dataset) -> Dataset:
    """Return a content item of a structured report."""
    item = Dataset()
    if relation:
        item.RelationshipType = relation
    item.ValueType, item.ConceptNameCodeSequence = kind, _code(*name)
    if kind == "NUM":
        number, unit = value
        measured = Dataset()
        measured.NumericValue = f"{number:.8g}"
        measured.MeasurementUnitsCodeSequence = _code(*unit)
        item.MeasuredValueSequence = [measured]
    elif kind == "CODE":
        item.ConceptCodeSequence = _code(*value)
    elif kind == "IMAGE":
        item.ReferencedSOPSequence = [value]
    elif kind == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
        if value:
            template = Dataset()
            template.MappingResource, template.TemplateIdentifier = "DCMR", value
            item.ContentTemplateSequence = [template]
    else:
        setattr(item, {"TEXT": "TextValue", "UIDREF": "UID"}[kind], value)
    if children:
        item.ContentSequence = list(children)
    return item


def report(
    dataset: Dataset, segmentation: Dataset, predictions: Iterable[Prediction], about: dict
) -> Dataset:
    """Return a Comprehensive SR: TID 1500, areas and diameters per frame, of a cine the largest.

    In mm where the spacing is known, else in pixels. Arguments as of `segmentation`.
    """
    sr = _new(dataset, about, uid.ComprehensiveSRStorage, "SR", 9102)
    sr.ReferencedPerformedProcedureStepSequence = sr.PerformedProcedureCodeSequence = []
    sr.CompletionFlag, sr.VerificationFlag = "COMPLETE", "UNVERIFIED"
    evidence = Dataset()
    evidence.StudyInstanceUID, evidence.ReferencedSeriesSequence = dataset.StudyInstanceUID, []
    for each in (dataset, segmentation):
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedSOPSequence = (
            each.SeriesInstanceUID,
            [_reference(each)],
        )
        evidence.ReferencedSeriesSequence.append(series)
    sr.CurrentRequestedProcedureEvidenceSequence = [evidence]
    predictions = list(predictions)
    groups = [
        _group(dataset, segmentation, number, found, about)
        for number, found in enumerate(predictions, 1)
    ]
    root = _item(
        "", "CONTAINER", ("126000", "DCM", "Imaging Measurement Report"), "1500",
        _item("HAS CONCEPT MOD", "CODE",
              ("121049", "DCM", "Language of Content Item and Descendants"),
              ("en-US", "RFC5646", "English (United States)")),
        _item("HAS OBS CONTEXT", "CODE", ("121005", "DCM", "Observer Type"), ("121007", "DCM", "Device")),
        _item("HAS OBS CONTEXT", "UIDREF", ("121012", "DCM", "Device Observer UID"),
              _uid(sr.DeviceSerialNumber, "device")),
        _item("HAS OBS CONTEXT", "TEXT", ("121013", "DCM", "Device Observer Name"), MAKER),
        _item("HAS CONCEPT MOD", "CODE", ("121058", "DCM", "Procedure reported"),
              ("16310003", "SCT", "Diagnostic ultrasonography")),
        _item("CONTAINS", "CONTAINER", ("126010", "DCM", "Imaging Measurements"), "", *groups),
    )  # fmt: skip
    sr.update(root)
    return sr


def _group(dataset, segmentation, number, found, about):
    mm2, mm = (
        (("mm2", "UCUM", "mm2"), ("mm", "UCUM", "mm"))
        if found.area_mm2 is not None
        else (PIXELS, PIXELS)
    )
    area = found.area_px if found.area_mm2 is None else found.area_mm2
    long, short = found.diameters_mm or found.diameters_px
    mods = "HAS CONCEPT MOD"
    items = [
        _item("HAS OBS CONTEXT", "TEXT", ("112039", "DCM", "Tracking Identifier"), f"Thyroid, frame {number}"),
        _item("HAS OBS CONTEXT", "UIDREF", ("112040", "DCM", "Tracking Unique Identifier"),
              _uid(segmentation.SOPInstanceUID, number)),
        _item("CONTAINS", "CODE", ("121071", "DCM", "Finding"), THYROID),
        _item(mods, "TEXT", ("111001", "DCM", "Algorithm Name"), _text(about.get("model", "model"))),
        _item(mods, "TEXT", ("111003", "DCM", "Algorithm Version"), __version__),
        _item("CONTAINS", "IMAGE", ("121214", "DCM", "Referenced Segmentation Frame"),
              _reference(segmentation, ReferencedFrameNumber=number)),
        _item("CONTAINS", "IMAGE", ("121233", "DCM", "Source image for segmentation"),
              _reference(dataset, **_frame(dataset, number))),
        _item(mods, "CODE", ("363698007", "SCT", "Finding Site"), THYROID),
        _item("CONTAINS", "NUM", AREA, (area, mm2)),
        _item("CONTAINS", "NUM", LONG, (long, mm)),
        _item("CONTAINS", "NUM", SHORT, (short, mm)),
    ]  # fmt: skip
    if found.confidence is not None:
        items.append(_item("CONTAINS", "NUM", CONFIDENCE, (100 * found.confidence, PERCENT)))
    for doubt in found.doubts:
        items.append(_item("CONTAINS", "TEXT", COMMENT, doubt.text))
    return _item("CONTAINS", "CONTAINER", ("125007", "DCM", "Measurement Group"), "1410", *items)


def answer(
    dataset: Dataset, predictor: Predictor, *, refuse: bool = False
) -> tuple[Dataset, Dataset]:
    """Return segmentation and report of an object, decoded and segmented frame by frame.

    Args:
        refuse: whether to refuse an object of whose frames each has a grave doubt.

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
        raise Refused(f"no frame can be used: {told[0].doubts[0].text}", NOT_FITTING)
    return seg, report(dataset, seg, told, predictor.about)

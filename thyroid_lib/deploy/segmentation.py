"""DICOM Segmentation objects from predictions, and the header that every derived object shares.

Built here, as highdicom 0.28 refuses multi-frame ultrasound. No clock and no random number is used:
an object that is sent twice has one segmentation, with the same bytes and UIDs. Sources: DICOM
PS3.3 A.51 (Segmentation); PS3.5 B.2 (UIDs under 2.25).
"""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag

from thyroid_lib import __version__
from thyroid_lib.data.classes import class_names
from thyroid_lib.data.dicom import COPIED, COPIED_IF_PRESENT, SINGLE
from thyroid_lib.deploy import NOTICE
from thyroid_lib.deploy.predictor import Prediction
from thyroid_lib.evaluate.networks import model_name

MAKER = "thyroid_lib"
THYROID = Code("69748006", "SCT", "Thyroid gland")


def make_dataset(**elements) -> Dataset:
    """Return a dataset of these elements, by keyword; a Code becomes a code sequence."""
    dataset = Dataset()
    for keyword, value in elements.items():
        if isinstance(value, Code):
            code, scheme, meaning, _ = value
            named = {"CodingSchemeDesignator": scheme, "CodeMeaning": meaning}
            value = [make_dataset(CodeValue=code, **named)]
        setattr(dataset, keyword, value)
    return dataset


def name_uid(*parts: str | int) -> uid.UID:
    """Return a name-based UID: the same parts always give the same one."""
    return uid.UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def reference(dataset: Dataset, frame: int = 0, **more) -> Dataset:
    """Return a reference to an object; `frame`, from 1, of a multi-frame object."""
    if frame and dataset.SOPClassUID not in SINGLE:
        more["ReferencedFrameNumber"] = frame
    sop = {"ReferencedSOPClassUID": dataset.SOPClassUID}
    return make_dataset(**sop, ReferencedSOPInstanceUID=dataset.SOPInstanceUID, **more)


def derive_object(
    source: Dataset, about: dict, sop_class: str, modality: str, series: int, content: bytes
) -> Dataset:
    """Begin an object of the source's patient and study; other content gives another UID."""
    made_by = json.dumps([about, __version__], sort_keys=True, default=str)
    model = hashlib.sha256(made_by.encode()).hexdigest()
    copied = repr([str(source.get(key)) for key in COPIED + COPIED_IF_PRESENT]).encode()
    digest = hashlib.sha256(content + copied).hexdigest()
    number = source.get("InstanceNumber")
    own_uid = name_uid(source.SOPInstanceUID, modality, model, digest)
    new = make_dataset(
        SOPClassUID=sop_class, SOPInstanceUID=own_uid, Modality=modality, SeriesNumber=series,
        SeriesInstanceUID=name_uid(source.SeriesInstanceUID, modality, model),
        SeriesDescription=f"Thyroid {modality}: {NOTICE}",
        InstanceNumber=number if isinstance(number, int) else 1, Manufacturer=MAKER,
        ManufacturerModelName=_short_text(model_name(about)),
        DeviceSerialNumber=model[:16], SoftwareVersions=__version__,
        ContentDate="19000101", ContentTime="000000",  # where the source has no date
    )  # fmt: skip
    for keyword in COPIED + COPIED_IF_PRESENT:
        if keyword in source:
            new[keyword] = source[keyword]
        elif keyword in COPIED:
            setattr(new, keyword, None)
    # the time of the frames, not of this computation: a resent object must give the same bytes
    for kind in ("Study", "Series", "Acquisition", "Content"):
        date, time = str(source.get(f"{kind}Date")), str(source.get(f"{kind}Time"))
        if re.fullmatch(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", date):
            new.ContentDate, new.ContentTime = date, "000000"
            if re.fullmatch(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?", time):
                new.ContentTime = time
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    new.file_meta.MediaStorageSOPClassUID = sop_class
    new.file_meta.MediaStorageSOPInstanceUID = own_uid
    return new


def _short_text(value) -> str:
    return str(value).encode("ascii", "replace").decode().replace("\\", "/")[:64]


def describe_class(name: str) -> tuple[str, dict]:
    """Return what a class is called, and its codes; all but the gland are a kind of nodule."""
    if name == "gland":
        return THYROID.meaning, {
            "SegmentedPropertyCategoryCodeSequence": codes.SCT.AnatomicalStructure,
            "SegmentedPropertyTypeCodeSequence": THYROID,
        }
    return "Thyroid nodule" + f": {name}" * (name != "nodule"), {
        "SegmentedPropertyCategoryCodeSequence": codes.SCT.MorphologicallyAbnormalStructure,
        "SegmentedPropertyTypeCodeSequence": codes.SCT.Nodule,
        "AnatomicRegionSequence": THYROID,
    }


def segmentation(source: Dataset, predictions: Iterable[Prediction], about: dict) -> Dataset:
    """Return a BINARY segmentation, a segment per class, frames empty or not.

    The frames of the source follow each other, over each one frame per class: of one class frame i
    lies over frame i. Refused frames have their masks, too. Predictions are taken one by one: few
    are in memory.
    """
    rows, columns, count = source.Rows, source.Columns, int(source.get("NumberOfFrames") or 1)
    packed, rest, refused = [], np.zeros(0, bool), 0
    for prediction in predictions:
        refused += prediction.refused
        masks = (each.mask.ravel() for each in prediction.classes)
        bits = np.concatenate([rest, *masks])  # frames are not padded to bytes
        packed.append(np.packbits(bits[: len(bits) // 8 * 8], bitorder="little").tobytes())
        rest = bits[len(bits) // 8 * 8 :]
    data = b"".join([*packed, np.packbits(rest, bitorder="little").tobytes()])
    seg = derive_object(source, about, uid.SegmentationStorage, "SEG", 9101, data)
    space, name = name_uid(seg.SOPInstanceUID, "dimensions"), seg.ManufacturerModelName
    note, names = f" ({refused} of {count} frames refused)" * bool(refused), class_names(about)
    segments = []
    for number, each in enumerate(names, 1):
        label, coded = describe_class(each)
        segments.append(make_dataset(
            SegmentNumber=number, SegmentLabel=_short_text(label + note),
            SegmentDescription=NOTICE if names == ["gland"] else f"{label}. {NOTICE}",
            SegmentAlgorithmType="AUTOMATIC", SegmentAlgorithmName=name,
            SegmentationAlgorithmIdentificationSequence=[make_dataset(
                AlgorithmFamilyCodeSequence=codes.DCM.ArtificialIntelligence, AlgorithmName=name,
                AlgorithmVersion=__version__,
                AlgorithmParameters=_short_text(about.get("run_id", "")), AlgorithmSource=MAKER)],
            **coded,
        ))  # fmt: skip
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    image = {"PurposeOfReferenceCodeSequence": purpose, "SpatialLocationsPreserved": "YES"}
    seg.update(make_dataset(
        ImageType=["DERIVED", "PRIMARY"], PatientOrientation=None, ContentLabel="THYROID",
        ContentDescription=NOTICE, ContentCreatorName=None, SamplesPerPixel=1,
        NumberOfFrames=count * len(names), PhotometricInterpretation="MONOCHROME2", Rows=rows,
        Columns=columns, BitsAllocated=1, BitsStored=1, HighBit=0, PixelRepresentation=0,
        LossyImageCompression="00", SegmentationType="BINARY", SegmentsOverlap="NO",
        SegmentSequence=segments,
        ReferencedSeriesSequence=[make_dataset(
            SeriesInstanceUID=source.SeriesInstanceUID,
            ReferencedInstanceSequence=[reference(source)])],
        DimensionOrganizationSequence=[make_dataset(DimensionOrganizationUID=space)],
        DimensionIndexSequence=[
            make_dataset(DimensionOrganizationUID=space, DimensionDescriptionLabel=pointer,
                         DimensionIndexPointer=Tag(pointer), FunctionalGroupPointer=Tag(group))
            for pointer, group in (("ReferencedSegmentNumber", "SegmentIdentificationSequence"),
                                   ("TemporalPositionIndex", "FrameContentSequence"))],
        # no PixelMeasures: readers expect a slice thickness there, which such frames lack
        SharedFunctionalGroupsSequence=[make_dataset(**_segment_of(1) if len(names) == 1 else {})],
        PerFrameFunctionalGroupsSequence=[
            make_dataset(
                **_segment_of(label) if len(names) > 1 else {},
                DerivationImageSequence=[make_dataset(
                    DerivationCodeSequence=codes.DCM.SegmentationImageDerivation,
                    SourceImageSequence=[reference(source, number, **image)])],
                FrameContentSequence=[make_dataset(
                    DimensionIndexValues=[label, number], TemporalPositionIndex=number)])
            for number in range(1, count + 1) for label in range(1, len(names) + 1)],
    ))  # fmt: skip
    lossy = source.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
    if lossy or source.get("LossyImageCompression") == "01":
        seg.LossyImageCompression = "01"
        ratio = count * rows * columns * source.SamplesPerPixel / len(source.PixelData)
        for part, own in (("Ratio", f"{ratio:.4g}"), ("Method", "ISO_10918_1")):
            keyword = f"LossyImageCompression{part}"  # unknown after an earlier compression
            if value := source.get(keyword) or (own if lossy else None):
                setattr(seg, keyword, value)
    seg.add_new("PixelData", "OB", data + bytes(len(data) % 2))
    return seg


def _segment_of(number: int) -> dict:
    return {"SegmentIdentificationSequence": [make_dataset(ReferencedSegmentNumber=number)]}

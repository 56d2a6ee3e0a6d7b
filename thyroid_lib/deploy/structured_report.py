"""DICOM reports (Comprehensive SR, TID 1500) of what was measured in each frame, by highdicom.

    seg, sr = answer(dicom.read_file("cine.dcm"), Predictor.open("results/demo/deploy"))

The header is `segmentation.derive_object`'s: highdicom's own has the time of day, and needs all of
a patient's data. Sources: DICOM PS3.3 A.35.3; PS3.16 TID 1500, 1410 (Planar ROI), 1501.
"""

from highdicom import sr
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from thyroid_lib import __version__
from thyroid_lib.data.dicom import SINGLE, check, read_frames, spacing_of
from thyroid_lib.deploy import NOTICE
from thyroid_lib.deploy import segmentation as objects
from thyroid_lib.deploy.predictor import Prediction, Predictor

PIXELS = Code("{pixels}", "UCUM", "pixels")


def answer(
    source: Dataset, predictor: Predictor, *, measured: list | None = None
) -> tuple[Dataset, Dataset]:
    """Return segmentation and report of an object of `dicom.read_file`; Refused: it is unreadable.

    `measured` is filled with the predictions, without prob and mask.
    """
    check(source)
    measured, spacing = [] if measured is None else measured, spacing_of(source)

    def predictions():
        for image in read_frames(source):
            prediction = predictor.predict(image, spacing_mm=spacing)
            measured.append(prediction.without_maps())
            yield prediction

    seg = objects.segmentation(source, predictions(), predictor.about)
    return seg, report(source, seg, measured, predictor.about)


def report(source: Dataset, seg: Dataset, predictions: list[Prediction], about: dict) -> Dataset:
    """Return the report: area and diameters of each frame and class, of a cine the largest, too."""
    by_class = list(zip(*(each.classes for each in predictions), strict=True))  # K x frames
    groups = [
        _frame_group(source, seg, number, label, each)
        for number, found in enumerate(predictions, 1)
        for label, each in enumerate(found.classes, 1)
    ]
    if len(predictions) > 1:
        groups = [_cine_group(seg, *each) for each in enumerate(by_class, 1)] + groups
    kind, content = (uid.ComprehensiveSRStorage, "SR", 9102), [seg.SOPInstanceUID, *predictions]
    content += [each for found in predictions for each in found.of_class]
    document = objects.derive_object(source, about, *kind, repr(content).encode())
    own_uid = objects.name_uid(objects.MAKER, document.DeviceSerialNumber)
    device = sr.DeviceObserverIdentifyingAttributes(own_uid, objects.MAKER)
    observer = sr.ObserverContext(codes.DCM.Device, device)
    context = sr.ObservationContext(observer_device_context=observer)
    procedure = codes.SCT.DiagnosticUltrasonography
    [root] = sr.MeasurementReport(context, procedure, imaging_measurements=groups)
    root.ContentSequence.append(_comment(NOTICE))
    document.update(root)
    make = objects.make_dataset
    document.update(make(
        ReferencedPerformedProcedureStepSequence=[], PerformedProcedureCodeSequence=[],
        CompletionFlag="COMPLETE", VerificationFlag="UNVERIFIED",
        CurrentRequestedProcedureEvidenceSequence=[make(
            StudyInstanceUID=source.StudyInstanceUID, ReferencedSeriesSequence=[
                make(SeriesInstanceUID=each.SeriesInstanceUID,
                     ReferencedSOPSequence=[objects.reference(each)])
                for each in (source, seg)])],
    ))  # fmt: skip
    return document


def _frame_group(source: Dataset, seg: Dataset, number: int, label: int, found: Prediction):
    measurements, comments = [], [doubt.text for doubt in found.doubts]
    if found.refused:
        comments.insert(0, "Refused: not measured.")
    else:
        names = codes.SCT.Area, codes.SCT.LongAxis, codes.SCT.ShortAxis
        sizes = zip(names, _sizes(found), strict=True)
        measurements = [_measurement(name, *size) for name, size in sizes]
        if found.confidence is not None:
            percent = 100 * found.confidence, codes.UCUM.Percent
            measurements.append(_measurement(codes.DCM.CertaintyOfFinding, *percent))
    numbers = None if source.SOPClassUID in SINGLE else [number]
    image = sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID, numbers)
    of_seg = [(number - 1) * len(seg.SegmentSequence) + label]
    own = seg.SOPClassUID, seg.SOPInstanceUID, of_seg, label, image
    frame = sr.ReferencedSegmentationFrame(*own)
    del frame[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # not beside a frame number
    named = _identity(seg, label, number, found) | {"measurements": measurements}
    group = sr.PlanarROIMeasurementsAndQualitativeEvaluations(**named, referenced_segment=frame)
    group[0].ContentSequence.extend(map(_comment, comments))
    return group


def _cine_group(seg: Dataset, label: int, predictions: tuple[Prediction, ...]):
    with_it = [each for each in predictions if each.area_px and not each.refused]
    refused, measurements = sum(each.refused for each in predictions), []
    title, count = _title(predictions[0]), len(predictions)
    text = f"{title} in {len(with_it)} of {count} frames, {refused} refused."
    if with_it:
        largest = max(with_it, key=lambda each: each.area_px)
        text += f" Largest in frame {predictions.index(largest) + 1}."
        area = _sizes(largest)[0]
        measurements = [_measurement(codes.SCT.Area, *area, derivation=codes.SCT.Maximum)]
    named = _identity(seg, label, 0, predictions[0]) | {"measurements": measurements}
    group = sr.MeasurementsAndQualitativeEvaluations(**named)
    group[0].ContentSequence.append(_comment(text))
    return group


def _identity(seg: Dataset, label: int, number: int, found: Prediction) -> dict:
    """Name a group: of a frame, or (0) of all, and of a class, whose code is its segment's."""
    name = f"{_title(found)}, " + (f"frame {number}" if number else "all frames")
    parts = (number, label) if len(seg.SegmentSequence) > 1 else (number,)
    tracking = sr.TrackingIdentifier(objects.name_uid(seg.SOPInstanceUID, *parts), name)
    algorithm = sr.AlgorithmIdentification(seg.ManufacturerModelName, __version__)
    [kind] = (segment := seg.SegmentSequence[label - 1]).SegmentedPropertyTypeCodeSequence
    named = {"finding_type": Code(kind.CodeValue, "SCT", kind.CodeMeaning)}
    if "AnatomicRegionSequence" in segment:
        named["finding_sites"] = [sr.FindingSite(objects.THYROID)]
    return named | {"tracking_identifier": tracking, "algorithm_id": algorithm}


def _title(found: Prediction) -> str:
    return {"gland": "Thyroid"}.get(found.name, found.name.capitalize())


def _sizes(found: Prediction) -> tuple:
    if found.area_mm2 is None:
        return tuple((each, PIXELS) for each in (found.area_px, *found.diameters_px))
    mm = ((each, codes.UCUM.Millimeter) for each in found.diameters_mm)
    return (found.area_mm2, codes.UCUM.SquareMillimeter), *mm


def _measurement(name: Code, value: float, unit: Code, **more) -> sr.Measurement:
    value = value if isinstance(value, int) else float(f"{value:.8g}")
    return sr.Measurement(name, value, unit, **more)


def _comment(text: str) -> sr.TextContentItem:
    return sr.TextContentItem(codes.DCM.Comment, text, sr.RelationshipTypeValues.CONTAINS)

"""DICOM segmentation and report: the predictor's masks and numbers, in valid objects."""

import io
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicoms import drawn, make_us, to_bytes

from thyroid_lib.data import dicom
from thyroid_lib.deploy import NOTICE
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.deploy.structured_report import answer

VALIDATED = {
    "explicit": {}, "jpeg": {"syntax": "jpeg", "photometric": "YBR_FULL_422"},
    "rle": {"syntax": "rle", "photometric": "RGB"}, "no spacing": {"spacing_mm": None},
    "16 bit": {"bits": 16, "syntax": "lossless"}, "empty": {},
}  # fmt: skip
ODD = {
    "nobody": dict.fromkeys(("PatientID", "PatientName", "PatientBirthDate", "PatientSex")),
    "no dates": dict.fromkeys(("StudyDate", "StudyTime", "ContentDate", "ContentTime")),
    "odd dates": {"ContentDate": "2024.02.29", "ContentTime": "99", "StudyDate": "20241399"},
    "utf-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ωmega^Ünal=山田^太郎"},
    "japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    },
    "long values": {"PatientID": "x" * 300, "StudyInstanceUID": "1." + "3" * 62},
    "several ids": {"PatientID": ["a", "b"]},
    "no number": {"InstanceNumber": None},
}


@pytest.fixture(scope="module")
def trusting(predictor):
    """Without a distance from the training frames, of which the drawn ellipses are far."""
    about = {key: value for key, value in predictor.about.items() if key != "quality"}
    return Predictor(predictor.network, about)


def answered(dataset, predictor) -> tuple:
    return answer(dicom.read_file(to_bytes(dataset)), predictor)


def reread(dataset):
    return pydicom.dcmread(io.BytesIO(to_bytes(dataset)))


def predicted(predictor, dataset, **how) -> list:
    frames = dicom.read_frames(dicom.read_file(to_bytes(dataset)))
    return [predictor.predict(each, **how) for each in frames]


@pytest.mark.parametrize("shape", [(61, 74), (64, 80), (1, 1)])
@pytest.mark.parametrize("count", [1, 5])
def test_masks_are_the_predictors_to_the_pixel(predictor, shape, count):
    """Read by pydicom, and by highdicom by the frames of the source; the last shows nothing."""
    images = drawn(count, *shape)
    images[4:] = 30
    dataset = make_us(images)
    seg, _ = answered(dataset, predictor)
    masks = np.stack([each.mask for each in predicted(predictor, dataset)])
    assert (reread(seg).pixel_array.reshape(masks.shape) == masks).all()
    assert not masks[4:].any()
    read = highdicom.seg.segread(io.BytesIO(to_bytes(seg)))
    numbers = list(range(1, count + 1))
    got = read.get_pixels_by_source_frame(dataset.SOPInstanceUID, numbers)
    assert (got[..., 0].astype(bool) == masks).all()


@pytest.mark.parametrize(
    ("spacing", "units"),
    [((0.08, 0.05), ("mm2", "mm", "mm", "%")), (None, ("{pixels}",) * 3 + ("%",))],
)
def test_highdicom_reads_the_numbers_of_the_report(trusting, spacing, units):
    dataset = make_us(drawn(3), spacing_mm=spacing)
    seg, sr = answered(dataset, trusting)
    content = highdicom.sr.srread(io.BytesIO(to_bytes(sr))).content
    groups = content.get_planar_roi_measurement_groups()
    found = predicted(trusting, dataset, spacing_mm=spacing)
    areas = [each.area_mm2 if spacing else each.area_px for each in found]
    names = ("Area", "Long axis", "Short axis", "Certainty of Finding")
    for number, (group, each, area) in enumerate(zip(groups, found, areas, strict=True), 1):
        sizes = each.diameters_mm if spacing else each.diameters_px
        got = [(m.name.meaning, m.value, m.unit.value) for m in group.get_measurements()]
        values = pytest.approx((area, *sizes, 100 * each.confidence), rel=1e-6)
        assert tuple(zip(*got, strict=True)) == (names, values, units)
        frame, image = (
            each.ReferencedSOPSequence[0] for each in group.referenced_segmentation_frame
        )
        assert frame.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert frame.ReferencedFrameNumber == number
        assert image.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    [summary] = content.get_image_measurement_groups()
    [largest] = summary.get_measurements()
    assert largest.value == pytest.approx(max(areas))


def test_a_refused_frame_is_marked_and_has_no_numbers(trusting):
    images = np.stack([np.zeros((80, 110), np.uint8), *drawn(2, 80, 110)])
    images[2, 40:] = 255  # much of it white
    dataset = make_us(images, spacing_mm=None)
    seg, sr = answered(dataset, trusting)
    assert seg.SegmentSequence[0].SegmentLabel == "Thyroid gland (2 of 3 frames refused)"
    texts = [each.value for each in sr.iterall() if each.keyword == "TextValue"]
    assert texts.count("There is no picture in this frame.") == 1
    assert texts.count("Refused: not measured.") == 2
    assert "Thyroid in 1 of 3 frames, 2 refused. Largest in frame 2." in texts
    assert NOTICE in texts
    found = predicted(trusting, dataset)
    numbers = [float(each.value) for each in sr.iterall() if each.keyword == "NumericValue"]
    assert len(numbers) == 5  # the largest area; area, two diameters and confidence of frame 2
    assert numbers[0] == numbers[1] == found[1].area_px
    _, sr = answered(make_us(images[:1]), trusting)
    assert not [each for each in sr.iterall() if each.keyword == "NumericValue"]


@pytest.fixture(scope="module")
def of_classes(class_release):
    """Of gland, of nodules without and with a name of their own; see `trusting`."""
    found = Predictor.open(class_release)
    about = {key: value for key, value in found.about.items() if key != "quality"}
    return Predictor(found.network, about | {"classes": ["gland", "high risk"]})


@pytest.mark.parametrize("count", [1, 5])
def test_every_class_is_a_coded_segment_with_numbers_of_its_own(of_classes, count):
    images = drawn(count, 61, 74)
    images[3:4] = np.minimum(images[3:4], 140)  # a gland without a nodule
    images[4:] //= 2
    dataset = make_us(images)
    seg, sr = answered(dataset, of_classes)
    found = predicted(of_classes, dataset, spacing_mm=(0.08, 0.08))
    read = highdicom.seg.segread(io.BytesIO(to_bytes(seg)))
    described = [read.get_segment_description(number) for number in (1, 2)]
    codes = [(each.segmented_property_type, each.segmented_property_category) for each in described]
    assert [[code.value for code in each] for each in codes] == [
        ["69748006", "91723000"], ["27925004", "49755003"],
    ]  # fmt: skip
    labels = [each.segment_label for each in described]
    assert labels == ["Thyroid gland", "Thyroid nodule: high risk"]
    assert described[1].anatomic_regions[0].value == "69748006"
    numbers = list(range(1, count + 1))
    maps = np.stack([each.labels for each in found])
    if count > 1:
        assert [len(np.unique(each)) for each in maps[3:]] == [2, 1]
    got = read.get_pixels_by_source_frame(dataset.SOPInstanceUID, numbers, combine_segments=True)
    assert (got == maps).all()
    content = highdicom.sr.srread(io.BytesIO(to_bytes(sr))).content
    groups = iter(content.get_planar_roi_measurement_groups())
    for number, frame in enumerate(found):
        for place, each in enumerate(frame.classes):
            group = next(groups)
            assert group.finding_type.value == codes[place][0].value
            [area] = [m.value for m in group.get_measurements() if m.name.meaning == "Area"]
            assert area == pytest.approx(each.area_mm2)
            [own] = group.referenced_segmentation_frame[0].ReferencedSOPSequence
            at = own.ReferencedFrameNumber - 1
            assert (reread(seg).pixel_array[at] == each.mask).all()
            assert at == 2 * number + place
    largest = [
        group.get_measurements()[0].value for group in content.get_image_measurement_groups()
    ]
    by_class = zip(*(frame.classes for frame in found), strict=True)
    expected = [max(each.area_mm2 for each in of) for of in by_class]
    assert largest == pytest.approx(expected * (count > 1))


def test_a_model_of_nodules_alone_says_so(predictor):
    about = {key: value for key, value in predictor.about.items() if key != "quality"}
    nodules = Predictor(predictor.network, about | {"task": "nodule"})
    seg, sr = answered(make_us(np.stack([drawn(1)[0], drawn(1)[0] // 5])), nodules)
    [segment] = seg.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
    assert segment.SegmentLabel == "Thyroid nodule"
    texts = {each.value for each in sr.iterall() if each.keyword == "TextValue"}
    assert {
        "No nodule was found.",
        "Nodule in 1 of 2 frames, 0 refused. Largest in frame 1.",
    } <= texts
    assert not any("hyroid in" in text or "No thyroid" in text for text in texts)


@pytest.mark.study
@pytest.mark.parametrize("case", [*VALIDATED, "classes"])
def test_dciodvfy_finds_no_fault(predictor, of_classes, tmp_path, case):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is not installed: apt install dicom3tools")
    predictor = of_classes if case == "classes" else predictor
    images = drawn(3, 60, 72) * (case != "empty")
    for frames in (images, images[0], images[:1]):  # a cine, one frame, a cine of one frame
        for number, made in enumerate(
            answered(make_us(frames, **VALIDATED.get(case, {})), predictor)
        ):
            (tmp_path / "object.dcm").write_bytes(to_bytes(made))
            command = ["dciodvfy", tmp_path / "object.dcm"]
            ran = subprocess.run(command, capture_output=True, text=True)
            output = (ran.stderr + ran.stdout).strip()
            assert output == ("Segmentation", "ComprehensiveSR")[number]  # no error, no warning


def test_equal_objects_have_equal_bytes_and_others_have_other_uids(predictor, release):
    def made(image, predictor=predictor, **attributes):
        return answered(make_us(image, uid="1.2.826.7.1", **attributes), predictor)

    def uids(*how, **attributes):
        return {each.SOPInstanceUID for each in made(*how, **attributes)}

    one, other = drawn(2)
    first, again = made(one), made(one, Predictor.open(release))
    assert [to_bytes(each) for each in first] == [to_bytes(each) for each in again]
    assert all(each.SOPInstanceUID.is_valid for each in first)
    assert uids(one) == uids(one, syntax="rle") == uids(one, syntax="lossless")
    assert not uids(one) & uids(other)
    assert not uids(one) & uids(one, Predictor.open(release, model="segnet"))
    assert not uids(one) & uids(one, PatientID="corrected")
    assert len(uids(one) & uids(one, spacing_mm=(0.5, 0.5))) == 1  # the same mask
    for each, same in zip(first, made(one, SOPInstanceUID="1.2.3.9"), strict=True):
        assert each.SeriesInstanceUID == same.SeriesInstanceUID  # one series of each kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ODD)
def test_odd_sources_are_answered(predictor, case):
    dataset = make_us(drawn(1)[0], **ODD[case])
    dataset.add_new(0x00091010, "LO", "private")
    for made in map(reread, answered(dataset, predictor)):
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
            assert (made.get(keyword) or "") == (dataset.get(keyword) or "")
        assert len(made.ContentDate) == 8
        assert (0x0009, 0x1010) not in made


def test_elements_of_the_source_are_used_only_where_they_are_valid(predictor):
    times = {"10": "10", "1030": "1030", "103000.5": "103000.5", "25": "000000"}
    for time, expected in times.items():
        made = answered(make_us(drawn(1), ContentTime=time), predictor)
        assert {each.ContentTime for each in made} == {expected}
    seg, _ = answered(make_us(drawn(1), LossyImageCompression="01"), predictor)
    assert seg.LossyImageCompression == "01"
    assert "LossyImageCompressionMethod" not in seg  # it is not known
    dataset = make_us(drawn(1), syntax="jpeg", LossyImageCompressionRatio=None)
    assert answered(dataset, predictor)[0].LossyImageCompressionRatio > 1


@pytest.mark.study
def test_the_example_of_the_docs_runs(release, tmp_path, monkeypatch):
    text = Path(__file__).parents[2].joinpath("docs", "dicom.md").read_text("utf-8")
    code = textwrap.dedent(re.search(r"\n\n((?:    .*\n|\n)+)", text).group(1))
    monkeypatch.chdir(tmp_path)
    Path("cine.dcm").write_bytes(to_bytes(make_us(drawn(2))))
    shutil.copytree(release, "results/demo/deploy")
    exec(code, {})  # noqa: S102
    assert pydicom.dcmread("seg.dcm").NumberOfFrames == 2
    assert pydicom.dcmread("sr.dcm").Modality == "SR"

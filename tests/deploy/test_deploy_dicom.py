"""DICOM in and out: pixels as drawn, masks to the bit, objects without a fault."""

import io
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ellipse_pair
from fuzzing import limited

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("gdcm")
from dicoms import SYNTAXES, make_region, make_us, to_bytes  # noqa: E402
from PIL import Image  # noqa: E402
from pydicom.encaps import encapsulate, generate_frames  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

from thyroid_lib.deploy import dicom  # noqa: E402
from thyroid_lib.deploy.predictor import Predictor  # noqa: E402

ROOT = Path(__file__).parents[2]
GRAY = ("MONOCHROME2", "MONOCHROME1", "PALETTE COLOR")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422")
EVERY = [
    (syntax, photometric, bits)
    for syntax in SYNTAXES
    for photometric in GRAY + COLOURS
    for bits in (8, 12, 16)
    if bits == 8 or (photometric.startswith("MONO") and syntax != "jpeg")
    if photometric != "YBR_FULL_422" or syntax in ("implicit", "explicit", "big", "jpeg")
]


@pytest.fixture(scope="module")
def predictor(release):
    return Predictor.open(release)


@pytest.fixture(scope="module")
def trusting(predictor):
    """The same, which knows of no frames that it was trained on: ellipses are far from them."""
    about = {key: value for key, value in predictor.about.items() if key != "quality"}
    return Predictor(predictor.network, about)


def drawn(count: int = 3, height: int = 61, width: int = 74) -> np.ndarray:
    """Frames with an ellipse each, uint8 (count,H,W); of no size that is a multiple of 8."""
    rng = np.random.default_rng(7)
    return np.stack([ellipse_pair(rng, height, width)[0] for _ in range(count)])


def painted(gray: np.ndarray) -> np.ndarray:
    """Smooth colours over gray, uint8 (…,3)."""
    rows = np.linspace(0, 1, gray.shape[-2])[:, None] * np.ones(gray.shape)
    channels = [gray, gray * (1 - rows), 200 * rows]
    return np.stack(channels, axis=-1).astype(np.uint8)


def read(dataset) -> list:
    return list(dicom.read_frames(dicom.read_file(to_bytes(dataset))))


def masks_of(seg) -> np.ndarray:
    return pydicom.dcmread(io.BytesIO(to_bytes(seg))).pixel_array.astype(bool)


def validate(dataset, folder) -> str:
    """What dciodvfy has to say, less the name of the object."""
    program = shutil.which("dciodvfy")
    if not program:
        pytest.skip("dciodvfy is not installed: apt install dicom3tools")
    (folder / "object.dcm").write_bytes(to_bytes(dataset))
    ran = subprocess.run([program, folder / "object.dcm"], capture_output=True, text=True)
    lines = [line for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
    names = [line for line in lines if not line.startswith(("Error", "Warning"))]
    assert names in (["Segmentation"], ["ComprehensiveSR"]), lines
    return "\n".join(line for line in lines if line not in names)


@pytest.mark.parametrize(("syntax", "photometric", "bits"), EVERY)
def test_frames_are_read_as_they_were_drawn(syntax, photometric, bits):
    smooth = syntax == "jpeg"
    images = np.stack([np.add.outer(np.arange(60), np.arange(72)) + 10 * i for i in range(3)])
    images = images.astype(np.uint8) if smooth else drawn(3, 60, 72)
    if photometric in COLOURS:
        images = painted(images)
    for frames in (images, images[0]):  # a cine, and one frame
        got = read(make_us(frames, syntax=syntax, photometric=photometric, bits=bits))
        wanted = images if frames is images else [frames]
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == np.uint8
            if photometric == "PALETTE COLOR":
                other = np.repeat(other[..., None], 3, axis=-1)
            off = np.abs(one.astype(int) - other)
            assert one.shape == other.shape
            if not smooth and photometric != "YBR_FULL_422":
                assert off.max() <= (1 if photometric.startswith("YBR") else 0)
            elif photometric == "YBR_FULL_422":  # every second column has its neighbour's colour
                assert off.mean() < 3
                assert off.max() < 40
            else:
                assert off.max() <= 8


@pytest.mark.parametrize("syntax", ["explicit", "rle", "lossless"])
def test_planar_colours_are_read_as_they_were_drawn(syntax):
    image = painted(drawn(1)[0])
    assert (read(make_us(image, syntax=syntax, photometric="RGB", planar=1))[0] == image).all()


@pytest.mark.parametrize("how", ["adobe RGB", "adobe YBR", "plain RGB", "plain YBR", "ids RGB"])
def test_colours_of_a_jpeg_are_converted_once(how):
    """Whatever markers say what the stream holds, and with none, the header does."""
    rows, columns = np.mgrid[:64, :80]
    image = np.stack([2 * columns, 3 * rows, 200 - columns], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0, keep_rgb="RGB" in how)
    code = file.getvalue()
    jfif = code.find(b"JFIF")
    if jfif > 0:  # APP0 goes
        code = code[:2] + code[jfif - 2 + int.from_bytes(code[jfif - 2 : jfif]) :]
    if how == "plain RGB":  # the components are numbered, as of YBR
        for kind in (b"\xff\xc0", b"\xff\xda"):
            place = code.find(kind)
            part = code[place : place + 24]
            for number, letter in enumerate(b"RGB", 1):
                part = part.replace(bytes([letter]), bytes([number]), 1)
            code = code[:place] + part + code[place + 24 :]
    if how.startswith("adobe"):
        marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
        code = code[:2] + marker + bytes([how == "adobe YBR"]) + code[2:]
    photometric = "RGB" if "RGB" in how else "YBR_FULL"
    dataset = make_us(image, syntax="jpeg", photometric=photometric)
    dataset.PixelData = encapsulate([code + bytes(len(code) % 2)])
    assert np.abs(read(dataset)[0].astype(int) - image).max() <= 8


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("syntax", ["rle", "jpeg", "lossless"])
def test_frames_in_pieces_are_put_together(syntax, table):
    dataset = make_us(drawn(3), syntax=syntax)
    wanted = read(dataset)
    codes = list(generate_frames(dataset.PixelData, number_of_frames=3))
    pieces = 1 if syntax == "rle" and not table else 3  # without a table RLE has no pieces
    dataset.PixelData = encapsulate(codes, fragments_per_frame=pieces, has_bot=table)
    assert (np.stack(read(dataset)) == wanted).all()


@pytest.mark.parametrize("where", [b"\xff\xc4", b"\xff\xda", b"\xff\xc3"])
def test_a_lossless_stream_with_garbage_between_its_markers_is_refused(where):
    """gdcm would end the process, and this session of tests with it."""
    dataset = make_us(drawn(1)[0], syntax="lossless")
    [code] = generate_frames(dataset.PixelData, number_of_frames=1)
    place = code.index(where)
    dataset.PixelData = encapsulate([code[:place] + b"\xc9\xb4q\xaf&P\xcc^\xf3\x9e" + code[place:]])
    with pytest.raises(dicom.Refused, match="JPEG stream is damaged"):
        read(dataset)


def test_a_black_frame_is_no_bomb():
    black = np.zeros((1080, 1920, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(black).save(file, "JPEG", optimize=True, subsampling=2)
    dataset = make_us(black, syntax="jpeg", photometric="YBR_FULL_422")
    dataset.PixelData = encapsulate([file.getvalue() + bytes(file.tell() % 2)])
    assert black.size > 490 * len(dataset.PixelData)
    assert not read(dataset)[0].any()


def test_comments_in_a_lossless_stream_change_nothing():
    image = painted(drawn(1)[0])
    dataset = make_us(image, syntax="lossless", photometric="RGB")
    [code] = generate_frames(dataset.PixelData, number_of_frames=1)
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"  # says YBR
    comments = adobe + b"\xff\xfe\x00\x06none\xff\xe0\x00\x04ab"
    dataset.PixelData = encapsulate([code[:2] + comments + code[2:]])
    assert (read(dataset)[0] == image).all()


def test_frames_come_one_by_one():
    many = make_us(np.zeros((40, 480, 640), np.uint8), syntax="rle")
    source = dicom.read_file(to_bytes(many))
    tracemalloc.start()
    for frame in dicom.read_frames(source):
        assert frame.shape == (480, 640)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 480 * 640  # and not 40


def test_a_damaged_later_frame_is_refused_in_its_turn():
    images = drawn()
    dataset = make_us(images, syntax="jpeg")
    codes = list(generate_frames(dataset.PixelData, number_of_frames=3))
    codes[2] = codes[2][: len(codes[2]) // 2 * 2 - 100]
    dataset.PixelData = encapsulate(codes)
    got = dicom.read_frames(dicom.read_file(to_bytes(dataset)))
    next(got), next(got)
    with pytest.raises(dicom.Refused, match=r"JPEG stream|cannot be decoded"):
        next(got)


REGIONS = {
    "as it is": ({}, (0.08, 0.05)),
    "reversed": ({"PhysicalDeltaY": -0.008}, (0.08, 0.05)),
    "no length": ({"PhysicalUnitsXDirection": 4}, None),
    "zero": ({"PhysicalDeltaX": 0.0}, None),
    "no number": ({"PhysicalDeltaX": float("nan")}, None),
    "infinite": ({"PhysicalDeltaX": float("inf")}, None),
    "absurd": ({"PhysicalDeltaX": 50.0}, None),
    "flow": ({"RegionDataType": 2}, None),
    "a spectrum": ({"RegionSpatialFormat": 3}, None),
}


@pytest.mark.parametrize("what", REGIONS)
def test_spacing_is_what_the_region_says(what):
    changed, wanted = REGIONS[what]
    region = make_region((0.08, 0.05), 61, 74, **changed)
    dataset = make_us(drawn(1)[0], SequenceOfUltrasoundRegions=Sequence([region]))
    got = dicom.spacing_of(dicom.read_file(to_bytes(dataset)))
    assert got == (pytest.approx(wanted) if wanted else None)


def test_spacing_is_left_out_where_it_is_not_clear():
    def spacing(*regions, **more):
        made = [make_region(each, 61, 74) if isinstance(each, tuple) else each for each in regions]
        dataset = make_us(drawn(1)[0], spacing_mm=None, **more)
        if made:
            dataset.SequenceOfUltrasoundRegions = Sequence(made)
        return dicom.spacing_of(dicom.read_file(to_bytes(dataset)))

    flow = make_region((0.3, 0.3), 61, 74, RegionSpatialFormat=3, RegionDataType=3)
    assert spacing() is None
    assert spacing((0.1, 0.1), (0.1, 0.1)) == pytest.approx((0.1, 0.1))
    assert spacing((0.1, 0.1), (0.1, 0.12)) is None
    assert spacing((0.1, 0.1), flow) == pytest.approx((0.1, 0.1))
    assert spacing(flow, PixelSpacing=[0.1, 0.1]) is None
    assert spacing(PixelSpacing=[0.2, 0.1]) == pytest.approx((0.2, 0.1))
    assert spacing((0.1, 0.1), PixelSpacing=[0.2, 0.1]) is None
    assert spacing((0.2, 0.1), PixelSpacing=[0.2, 0.1]) == pytest.approx((0.2, 0.1))


def expected(predictor, dataset) -> np.ndarray:
    """The masks of the predictor itself, bool (N,H,W)."""
    source = dicom.read_file(to_bytes(dataset))
    return np.stack([predictor.predict(each).mask for each in dicom.read_frames(source)])


@pytest.mark.parametrize("shape", [(61, 74), (64, 80), (33, 31), (1, 1), (7, 300)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_masks_are_the_predictors_to_the_pixel(predictor, shape, count):
    dataset = make_us(drawn(count, *shape))
    seg, _ = dicom.answer(dicom.read_file(to_bytes(dataset)), predictor)
    masks = masks_of(seg).reshape(count, *shape)
    assert (masks == expected(predictor, dataset)).all()
    assert len(seg.PixelData) == (count * shape[0] * shape[1] + 7) // 8 // 2 * 2 + (
        2 if (count * shape[0] * shape[1] + 7) // 8 % 2 else 0
    )


def test_another_library_reads_the_same_masks(predictor):
    """highdicom, by the frames of the source; of the first, the second shows nothing."""
    hd = pytest.importorskip("highdicom")
    images = drawn(5)
    images[1] = 30
    dataset = make_us(images)
    seg, _ = dicom.answer(dicom.read_file(to_bytes(dataset)), predictor)
    read_back = hd.seg.segread(io.BytesIO(to_bytes(seg)))
    got = read_back.get_pixels_by_source_frame(
        source_sop_instance_uid=dataset.SOPInstanceUID, source_frame_numbers=[1, 2, 3, 4, 5]
    )
    wanted = expected(predictor, dataset)
    assert (got[..., 0].astype(bool) == wanted).all()
    assert not wanted[1].any()
    segment = read_back.get_segment_description(1)
    assert segment.segmented_property_type.value == "69748006"
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert read_back.NumberOfFrames == 5
    single = make_us(images[0])
    seg, _ = dicom.answer(dicom.read_file(to_bytes(single)), predictor)
    read_back = hd.seg.segread(io.BytesIO(to_bytes(seg)))
    got = read_back.get_pixels_by_source_instance(source_sop_instance_uids=[single.SOPInstanceUID])
    assert (got[0, ..., 0].astype(bool) == wanted[0]).all()


def test_the_report_holds_what_was_measured(trusting):
    hd = pytest.importorskip("highdicom")
    dataset = make_us(drawn(3), spacing_mm=(0.08, 0.05))
    source = dicom.read_file(to_bytes(dataset))
    seg, sr = dicom.answer(source, trusting)
    read_back = hd.sr.srread(io.BytesIO(to_bytes(sr)))
    groups = read_back.content.get_planar_roi_measurement_groups()
    found = [trusting.predict(each, spacing_mm=(0.08, 0.05)) for each in dicom.read_frames(source)]
    assert len(groups) == len(found) == 3
    for number, (group, each) in enumerate(zip(groups, found, strict=True), 1):
        values = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
        assert values == {
            "Area": (pytest.approx(each.area_mm2), "mm2"),
            "Long axis": (pytest.approx(each.diameters_mm[0]), "mm"),
            "Short axis": (pytest.approx(each.diameters_mm[1]), "mm"),
            "Certainty of Finding": (pytest.approx(100 * each.confidence, rel=1e-6), "%"),
        }
        place = group.referenced_segmentation_frame
        assert place[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert place[0].ReferencedSOPSequence[0].ReferencedFrameNumber == number
        assert place[1].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    [summary] = read_back.content.get_image_measurement_groups()
    [largest] = summary.get_measurements()
    assert largest.value == pytest.approx(max(each.area_mm2 for each in found))
    _, sr = dicom.answer(dicom.read_file(to_bytes(make_us(drawn(1)[0], spacing_mm=None))), trusting)
    read_back = hd.sr.srread(io.BytesIO(to_bytes(sr)))
    [group] = read_back.content.get_planar_roi_measurement_groups()
    units = {m.name.meaning: m.unit.value for m in group.get_measurements()}
    assert units == {
        "Area": "{pixels}", "Long axis": "{pixels}", "Short axis": "{pixels}",
        "Certainty of Finding": "%",
    }  # fmt: skip
    assert not read_back.content.get_image_measurement_groups()


def test_a_refused_frame_is_said_to_be_and_has_no_sizes(trusting):
    some = np.stack([np.zeros((80, 110), np.uint8), drawn(1, 80, 110)[0], drawn(1, 80, 110)[0]])
    some[2, 40:] = 255  # much of it white
    seg, sr = dicom.answer(dicom.read_file(to_bytes(make_us(some, spacing_mm=None))), trusting)
    assert seg.SegmentSequence[0].SegmentLabel == "Thyroid gland (2 of 3 frames refused)"
    texts = [each.value for each in sr.iterall() if each.keyword == "TextValue"]
    assert texts.count("There is no picture in this frame.") == 1
    assert texts.count("Refused: not measured.") == 2
    assert "Thyroid in 1 of 3 frames, 2 refused. Largest in frame 2." in texts
    assert dicom.NOTICE in texts
    found = [trusting.predict(each) for each in some]
    assert (masks_of(seg) == np.stack([each.mask for each in found])).all()
    assert found[2].mask.any()
    numbers = [each.value for each in sr.iterall() if each.keyword == "NumericValue"]
    assert len(numbers) == 5  # the largest area; area, two diameters and confidence of frame 2
    assert numbers[0] == numbers[1] == str(found[1].area_px)
    seg, sr = dicom.answer(dicom.read_file(to_bytes(make_us(some[:1]))), trusting)
    assert not [each for each in sr.iterall() if each.keyword == "NumericValue"]


VALIDATED = [
    (syntax, photometric, count)
    for syntax, photometric, bits in EVERY
    if bits == 8
    for count in (0, 3)
]


@pytest.mark.parametrize(("syntax", "photometric", "count"), VALIDATED)
def test_a_validator_finds_no_fault(predictor, tmp_path, syntax, photometric, count):
    images = drawn(max(count, 1), 60, 72)
    dataset = make_us(images if count else images[0], syntax=syntax, photometric=photometric)
    for made in dicom.answer(dicom.read_file(to_bytes(dataset)), predictor):
        assert validate(made, tmp_path) == ""


@pytest.mark.parametrize("what", ["60 frames", "empty", "no spacing", "16 bit", "1 frame of many"])
def test_a_validator_finds_no_fault_in_odd_ones(predictor, tmp_path, what):
    images = drawn(60 if what == "60 frames" else 1)
    how = {"spacing_mm": None} if what == "no spacing" else {}
    if what == "16 bit":
        how = {"bits": 16}
    if what == "empty":
        images[:] = 0
    for made in dicom.answer(dicom.read_file(to_bytes(make_us(images, **how))), predictor):
        assert validate(made, tmp_path) == ""
        assert made.get("NumberOfFrames", len(images)) == len(images)


def test_a_resent_object_makes_the_same_bytes(predictor, release):
    data = to_bytes(make_us(drawn(3)))
    first = [to_bytes(made) for made in dicom.answer(dicom.read_file(data), predictor)]
    again = Predictor.open(release)
    assert [to_bytes(made) for made in dicom.answer(dicom.read_file(data), again)] == first
    other = dicom.answer(dicom.read_file(data), Predictor.open(release, model="segnet"))
    source = to_bytes(make_us(drawn(3), uid="1.2.3.4"))
    third = dicom.answer(dicom.read_file(source), predictor)
    made = [pydicom.dcmread(io.BytesIO(each)) for each in first] + [*other, *third]
    uids = [each.SOPInstanceUID for each in made]
    assert len(set(uids)) == 6
    assert all(each.is_valid for each in uids)
    assert all(each.SeriesInstanceUID != source for each in made)
    assert len({each.SeriesInstanceUID for each in made}) == 6


def test_a_series_of_frames_makes_one_series_of_each(predictor):
    made = [
        dicom.answer(
            dicom.read_file(to_bytes(make_us(drawn(1)[0], SOPInstanceUID=f"1.2.3.{i}"))), predictor
        )
        for i in range(2)
    ]
    for one, other in zip(*made, strict=True):
        assert one.SeriesInstanceUID == other.SeriesInstanceUID
        assert one.SOPInstanceUID != other.SOPInstanceUID


ODD = {
    "no id": {"PatientID": None},
    "nobody": {"PatientName": None, "PatientBirthDate": None, "PatientSex": None},
    "no study date": {"StudyDate": None, "StudyTime": None},
    "no dates": dict.fromkeys(("StudyDate", "StudyTime", "ContentDate", "ContentTime")),
    "odd dates": {"ContentDate": "2024.02.29", "ContentTime": "99", "StudyDate": "20241399"},
    "latin": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jürgen"},
    "utf-8": {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ωmega^Ünal=山田^太郎"},
    "chinese": {"SpecificCharacterSet": "GB18030", "PatientName": "Wang^XiaoDong=王^小东"},
    "japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    },
    "no charset known": {"SpecificCharacterSet": "ISO_IR 999"},
    "long uid": {"SOPInstanceUID": "1." + "2" * 62, "StudyInstanceUID": "1." + "3" * 62},
    "long values": {"PatientID": "x" * 300, "AccessionNumber": "y" * 90, "StudyID": "z" * 60},
    "several ids": {"PatientID": ["a", "b"]},
    "no number": {"InstanceNumber": None},
    "negative": {"InstanceNumber": -3},
    "no planar": {"PlanarConfiguration": None},
    "number of frames in a single one": {"NumberOfFrames": 1},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ODD)
def test_odd_sources_are_answered(predictor, what):
    given = dict(ODD[what])
    kind = "RGB" if what == "no planar" else "MONOCHROME2"
    dataset = make_us(drawn(1)[0], photometric=kind)
    for keyword, value in given.items():
        if value is None:
            if keyword in dataset:
                del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    dataset.add_new(0x00091010, "LO", "private")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    data = to_bytes(dataset)
    if what == "no planar":
        with pytest.raises(dicom.Refused, match=r"cannot be decoded|PlanarConfiguration"):
            dicom.answer(dicom.read_file(data), predictor)
        return
    for made in dicom.answer(dicom.read_file(data), predictor):
        back = pydicom.dcmread(io.BytesIO(to_bytes(made)))
        for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate"):
            assert (back.get(keyword) or "") == (dataset.get(keyword) or "")
        assert len(back.ContentDate) == 8
        assert (0x0009, 0x1010) not in back
    assert (masks_of(dicom.answer(dicom.read_file(data), predictor)[0])).any()


def test_the_example_of_the_docs_runs(release, tmp_path):
    text = (ROOT / "docs" / "dicom.md").read_text("utf-8")
    code = textwrap.dedent(re.search(r"\n\n((?:    .*\n|\n)+)", text).group(1))
    (tmp_path / "cine.dcm").write_bytes(to_bytes(make_us(drawn(2))))
    (tmp_path / "results" / "demo").mkdir(parents=True)
    shutil.copytree(release, tmp_path / "results" / "demo" / "deploy")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert pydicom.dcmread(tmp_path / "seg.dcm").NumberOfFrames == 2
    assert pydicom.dcmread(tmp_path / "sr.dcm").Modality == "SR"


def changed(**attributes):
    return lambda: to_bytes(make_us(drawn(2), **attributes))


def stretched() -> bytes:
    dataset = make_us(drawn(2), syntax="rle")
    dataset.Rows = dataset.Columns = 7_000
    return to_bytes(dataset)


def endless() -> bytes:
    """A frame of RLE that would unpack to 64 MiB where 4.5 KB are needed."""
    dataset = make_us(drawn(1), syntax="rle")
    head = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    dataset.PixelData = encapsulate([head + b"\x81\0" * 2**19])
    return to_bytes(dataset)


def many() -> bytes:
    """2.4 million empty elements in sequences of undefined length."""
    data = to_bytes(make_us(drawn(1)[0]))
    item = b"\xfe\xff\x00\xe0\0\0\0\0"
    bomb = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + 2_400_000 * item
    place = data.index(b"\x08\x00\x16\x00UI")
    return data[:place] + bomb + b"\xfe\xff\xdd\xe0\0\0\0\0" + data[place:]


def nested() -> bytes:
    data = to_bytes(make_us(drawn(1)[0]))
    place = data.index(b"\x08\x00\x16\x00UI")
    opened = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return data[:place] + 20_000 * opened + data[place:]


def deflated() -> bytes:
    dataset = make_us(drawn(1)[0])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    return to_bytes(dataset)


def misspelt() -> bytes:
    """Latin 1 in what says that it is UTF-8."""
    dataset = make_us(drawn(2), SpecificCharacterSet="ISO_IR 192", PatientID="M@ID")
    return to_bytes(dataset).replace(b"M@ID", b"M\xfcID")


REFUSED = {
    "nothing": (lambda: b"", 0xC000, "no DICOM file"),
    "no DICOM": (lambda: b"\x89PNG" + bytes(500), 0xC000, "no DICOM file"),
    "a preamble alone": (lambda: bytes(128) + b"DICM", 0xC000, "no DICOM file"),
    "CT": (changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), 0x0122, "no ultrasound image"),
    "a class for one": (changed(SOPClassUID=pydicom.uid.UltrasoundImageStorage), 0xA900, "for one"),
    "no UID": (changed(StudyInstanceUID=None), 0xA900, "StudyInstanceUID is missing"),
    "no rows": (changed(Rows=None), 0xA900, "Rows is missing"),
    "0 columns": (changed(Columns=0), 0xA900, "Columns is missing, or no number from 1"),
    "no pixels": (changed(PixelData=None), 0xA900, "no PixelData"),
    "too few pixels": (changed(NumberOfFrames=3), 0xC000, "got 9028 bytes of PixelData"),
    "too many pixels": (changed(NumberOfFrames=1), 0xC000, "got 9028 bytes of PixelData"),
    "too many frames": (changed(NumberOfFrames=2001), 0xA700, "need at most 2000 frames"),
    "a bomb": (changed(Rows=65535, Columns=65535), 0xA700, "64,000,000 pixels each"),
    "a packed bomb": (stretched, 0xC000, "unpacked"),
    "misspelt": (misspelt, 0xC000, "PatientID is not written in the character set"),
    "endless RLE": (endless, 0xA700, "RLE is in pieces, or longer"),
    "signed": (changed(PixelRepresentation=1), 0xA900, "sign 1, need all of 8"),
    "upper bits": (changed(HighBit=6), 0xA900, "need all of 8"),
    "32 bits": (changed(BitsAllocated=32), 0xA900, "need all of 8"),
    "no colour known": (
        changed(PhotometricInterpretation="HSV"),
        0xA900,
        "got 1 samples, need one of MONO",
    ),
    "deflated": (deflated, 0xA900, r"1\.2\.840\.10008\.1\.2\.1\.99 is not read"),
    "millions of items": (many, 0xA700, "too many elements"),
    "nested": (nested, 0xC000, "no DICOM file, or a broken one"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_answered_is_refused_with_its_status(predictor, what):
    make, status, text = REFUSED[what]
    with limited(), pytest.raises(dicom.Refused, match=text) as refused:
        dicom.answer(dicom.read_file(make()), predictor)
    assert refused.value.status == status
    assert "PHANTOM" not in str(refused.value).upper()


def test_a_file_over_the_limit_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "large.dcm"
    path.write_bytes(to_bytes(make_us(drawn(2))))
    assert len(list(dicom.read_frames(dicom.read_file(path)))) == 2
    monkeypatch.setattr(dicom, "MAX_BYTES", 5000)
    with pytest.raises(dicom.Refused, match="has more than") as refused:
        dicom.read_file(path)
    assert refused.value.status == 0xA700
    with pytest.raises(FileNotFoundError):  # which is no fault of an object's
        dicom.read_file(tmp_path / "none.dcm")


def test_what_says_something_else_has_another_uid(predictor):
    """And what says the same has the same, whatever syntax it came in."""

    def uids(image, **attributes):
        source = dicom.read_file(to_bytes(make_us(image, uid="1.2.826.7.1", **attributes)))
        return {each.SOPInstanceUID for each in dicom.answer(source, predictor)}

    one, other = drawn(2)
    assert len(uids(one)) == 2
    assert uids(one) == uids(one, syntax="rle") == uids(one, syntax="lossless")
    assert not uids(one) & uids(other)
    assert not uids(one) & uids(one, PatientID="corrected")
    assert len(uids(one) & uids(one, spacing_mm=(0.5, 0.5))) == 1  # the same mask


def test_a_time_of_the_source_is_taken_as_dicom_writes_it(predictor):
    for written, taken in {
        "10": "10",
        "1030": "1030",
        "103000.5": "103000.5",
        "25": "000000",
    }.items():
        source = dicom.read_file(to_bytes(make_us(drawn(1), ContentTime=written)))
        assert {each.ContentTime for each in dicom.answer(source, predictor)} == {taken}


def test_no_compression_is_invented(predictor):
    source = make_us(drawn(1), LossyImageCompression="01")
    seg, _ = dicom.answer(dicom.read_file(to_bytes(source)), predictor)
    assert seg.LossyImageCompression == "01"
    assert "LossyImageCompressionMethod" not in seg
    source = make_us(drawn(1), syntax="jpeg", LossyImageCompressionRatio=None)
    seg, _ = dicom.answer(dicom.read_file(to_bytes(source)), predictor)
    assert seg.LossyImageCompressionRatio > 1


def test_a_cut_off_file_is_refused_wherever_it_ends(predictor):
    for syntax in ("implicit", "explicit", "rle", "jpeg", "lossless"):
        data = to_bytes(make_us(drawn(2), syntax=syntax))
        for end in np.linspace(0, len(data) - 12, 40).astype(int):
            with pytest.raises(dicom.Refused):
                dicom.answer(dicom.read_file(data[:end]), predictor)


def test_nothing_of_a_patient_is_told(predictor, capfd, caplog):
    dataset = make_us(drawn(2), PatientName="Geheim^Erna", PatientID="GEHEIM-7")
    data = to_bytes(dataset)
    said = []
    with warnings.catch_warnings(record=True) as warned:
        for place in range(200, len(data) - 9000, 7):
            broken = data[:place] + b"\xff" + data[place + 1 :]
            try:
                dicom.answer(dicom.read_file(broken), predictor)
            except dicom.Refused as refused:
                said.append(str(refused))
    said += [caplog.text, *capfd.readouterr(), *(str(each.message) for each in warned)]
    assert len(said) > 20
    assert not any("geheim" in each.lower() for each in said)


def mutate(data: bytes, rng) -> bytes:
    """One of the ways in which a file goes wrong, or is made to."""
    data, kind = bytearray(data), rng.integers(8)
    header = len(data) if rng.random() < 0.3 else min(len(data), 1800)
    if kind == 0:  # flipped bits
        for _ in range(rng.integers(1, 9)):
            data[rng.integers(header)] ^= 1 << rng.integers(8)
    elif kind == 1:
        del data[rng.integers(len(data)) :]
    elif kind == 2:  # a wrong length, perhaps a huge one
        place = int(rng.integers(132, header - 4))
        value = [0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, 12][rng.integers(6)]
        data[place : place + 4] = value.to_bytes(4, "little")
    elif kind == 3:  # another VR
        place = int(rng.integers(132, header - 4))
        names = [b"UN", b"SQ", b"OB", b"US", b"FD", b"PN", b"ZZ", b"UT"]
        found = max(data.find(vr, place, header) for vr in (b"US", b"LO", b"CS", b"UI", b"IS"))
        data[found if found > 0 else place :][:2] = b""
        data[max(found, place) : max(found, place) + 2] = names[rng.integers(len(names))]
    elif kind == 4:  # tags swapped
        one, other = sorted(int(place) for place in rng.integers(132, header - 4, 2))
        data[one : one + 4], data[other : other + 4] = data[other : other + 4], data[one : one + 4]
    elif kind == 5:  # garbage
        place = int(rng.integers(128, header))
        data[place:place] = rng.bytes(int(rng.integers(1, 200)))
    elif kind == 6:  # a part is missing or comes twice
        start, end = sorted(int(place) for place in rng.integers(0, header, 2))
        data[start:end] = data[start:end] * 2 if rng.random() < 0.5 else b""
    else:  # no DICOM at all
        data[128:132] = b"MCID"
    return bytes(data)


def fuzz(predictor, counts, seeds):
    syntaxes, colours = list(SYNTAXES), GRAY + COLOURS
    bases, seen = {}, Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        rng = np.random.default_rng(seed)
        syntax = syntaxes[seed % len(syntaxes)]
        photometric = colours[seed // len(syntaxes) % len(colours)]
        if (syntax, photometric, 8) not in EVERY:
            photometric = "YBR_FULL"
        key = syntax, photometric, int(rng.integers(1, 4))
        if key not in bases:
            bases[key] = to_bytes(
                make_us(drawn(key[2], 40, 48), syntax=syntax, photometric=photometric)
            )
        data = mutate(bases[key], rng)
        before = threading.active_count()
        with limited():
            refused = None
            try:
                source = dicom.read_file(data)
                seg, sr = dicom.answer(source, predictor)
            except dicom.Refused as error:
                refused = error
        if refused:
            assert refused.status in (0xC000, 0xA900, 0x0122, 0xA700)
            assert "phantom" not in str(refused).lower()
            seen["refused"] += 1
            continue
        wanted = [predictor.predict(each).mask for each in dicom.read_frames(source)]
        assert (masks_of(seg).reshape(len(wanted), *wanted[0].shape) == wanted).all(), seed
        back = pydicom.dcmread(io.BytesIO(to_bytes(sr)))
        assert back.ContentSequence
        assert threading.active_count() == before
        seen["answered"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # KiB
    counts["files refused"] += seen["refused"]
    counts["files accepted"] += seen["answered"]
    assert min(seen.values()) > len(seeds) // 10, seen


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_files_are_answered_right_or_refused(predictor, counts):
    fuzz(predictor, counts, range(80))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_500_fuzzed_files_are_answered_right_or_refused(predictor, counts):
    fuzz(predictor, counts, range(1000, 1500))


@pytest.mark.parametrize("wrong", [(0, 12, 198), (1, 12, 0), (8, 0, 0), (1, 0, 16)])
def test_a_lossless_scan_that_gdcm_never_ends_is_refused(wrong):
    data = bytearray(to_bytes(make_us(drawn(1, 24, 32), syntax="lossless")))
    scan = data.rindex(b"\xff\xda")
    end = scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    data[end - 3 : end] = bytes(wrong)
    with pytest.raises(dicom.Refused, match="damaged"):
        list(dicom.read_frames(dicom.read_file(bytes(data))))

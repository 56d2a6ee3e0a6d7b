"""DICOM folders: frames with the masks that lie over them, patients hashed, what cannot be used."""

import sys

import numpy as np
import pytest

pytest.importorskip("pydicom")
pytest.importorskip("gdcm")
from dicoms import drawn, make_us, to_bytes
from PIL import Image
from pydicom import uid as uids
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from thyroid_lib.data import dicom_folder

RNG = np.random.default_rng(5)
CINE, ONE = drawn(4, 30, 37), drawn(1, 25, 44)[0]
MASKS = RNG.random((4, 30, 37)) > 0.6  # 1110 bits a frame: no whole number of bytes


def items(**elements) -> list[Dataset]:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return [dataset]


def make_seg(masks, over, kinds=("Thyroid gland",), segments=None, shared=False):
    """Make a segmentation object: bool (N,H,W), frame i over the (uid, frame) `over[i]`."""
    seg, masks, frames = Dataset(), np.asarray(masks), []
    seg.file_meta = FileMetaDataset()
    seg.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    seg.file_meta.MediaStorageSOPClassUID = seg.SOPClassUID = uids.SegmentationStorage
    seg.file_meta.MediaStorageSOPInstanceUID = seg.SOPInstanceUID = "1.2.3.9"
    code = items(CodeValue="1", CodingSchemeDesignator="99", CodeMeaning="Tissue")
    seg.SegmentSequence = []
    for number, kind in enumerate(kinds, 1):
        about = {"SegmentNumber": number, "SegmentLabel": kind}
        seg.SegmentSequence += items(SegmentedPropertyTypeCodeSequence=code, **about)

    def identity(number):
        return {"SegmentIdentificationSequence": items(ReferencedSegmentNumber=number)}

    for (image, number), segment in zip(over, segments or [1] * len(over), strict=True):
        frame = {} if number is None else {"ReferencedFrameNumber": number + 1}
        sources = items(ReferencedSOPInstanceUID=image, **frame) if image else []
        derived = items(SourceImageSequence=sources)
        frames += items(DerivationImageSequence=derived, **({} if shared else identity(segment)))
    seg.SharedFunctionalGroupsSequence = items(**(identity(1) if shared else {}))
    seg.PerFrameFunctionalGroupsSequence = frames
    seg.NumberOfFrames, (seg.Rows, seg.Columns) = len(masks), masks.shape[1:]
    seg.BitsAllocated, seg.SegmentationType = 1, "BINARY"
    data = np.packbits(masks.ravel(), bitorder="little").tobytes()
    seg.add_new("PixelData", "OB", data + bytes(len(data) % 2))
    return seg


def write(folder, **objects):
    """Write objects by name, "a.dcm" as a_dcm, "a" as a; pictures as arrays, a_png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        file = folder / name.replace("_dcm", ".dcm").replace("_png", ".png")
        if isinstance(content, np.ndarray):
            Image.fromarray(content.astype(np.uint8) * 255).save(file)
        else:
            file.write_bytes(content if isinstance(content, bytes) else to_bytes(content))
    return folder


def read(table):
    """Return {case_id: (image, mask or None)} of the cases that have no problem."""
    found = {}
    for row in table[table["problem"].isna()].itertuples():
        image = dicom_folder.read_image(*row.image_path.partition("\t")[::2])
        parts = [text.partition("\t")[::2] for text in row.mask_path.split("\n") if text]
        masks = [dicom_folder.read_mask(*part) for part in parts if part[0].endswith("seg.dcm")]
        found[row.case_id] = image, np.any(masks, axis=0) if masks else None
    return found


@pytest.mark.parametrize("syntax", ["explicit", "jpeg", "rle"])
@pytest.mark.parametrize("shared", [True, False])
def test_frames_of_a_cine_and_their_masks(tmp_path, syntax, shared):
    """The segmentation's frames lie in another order than the image's, and one has none."""
    seg = make_seg(MASKS[:3], [("1.2.4", 2), ("1.2.4", 0), ("1.2.4", 3)], shared=shared)
    write(tmp_path, a_dcm=make_us(CINE, uid="1.2.4", syntax=syntax))
    write(tmp_path / "deep" / "er", seg_dcm=seg)
    table = dicom_folder.cases(tmp_path)
    found = read(table)
    assert list(found) == ["a_1", "a_2", "a_3", "a_4"]
    for (image, mask), frame, number in zip(found.values(), CINE, (1, None, 0, 2), strict=True):
        assert np.abs(image.astype(int) - frame).max() <= (40 if syntax == "jpeg" else 0)
        if number is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, MASKS[number])
    assert table.attrs["layout"] == "DICOM: 4 frames in 1 files; 3 frames of segmentations"


def test_frames_are_read_in_any_order(tmp_path):
    file = write(tmp_path, a_dcm=make_us(CINE)) / "a.dcm"
    for number in (2, 0, 0, 3, 1):
        assert (dicom_folder.read_image(file, str(number)) == CINE[number]).all()
    with pytest.raises(ValueError, match=r"'a\.dcm': it has no frame 5"):
        dicom_folder.read_image(file, "4")


def test_patients_are_hashed_and_never_named(tmp_path):
    for name, patient in (("a", "P-17"), ("b", "p-017 "), ("c", "P-18"), ("d", "")):
        write(tmp_path, **{f"{name}_dcm": make_us(ONE, uid=f"1.2.{ord(name)}", PatientID=patient)})
    table = dicom_folder.cases(tmp_path)
    a, b, c, d = table["group"]
    assert a == b != c
    assert d == ""
    assert not {"P-17", "Phantom"} & set(table.to_csv().replace(",", "\n").split("\n"))
    assert dicom_folder.cases(tmp_path)["group"][0] == a
    write(tmp_path, e_dcm=make_us(ONE, uid="9.9", PatientID="P-19"))  # of another study
    assert not {a, c} & set(dicom_folder.cases(tmp_path)["group"])


def test_masks_are_pictures_of_the_same_name(tmp_path):
    write(tmp_path, a_dcm=make_us(ONE, uid="1.2.1"), IM0002=make_us(ONE, uid="1.2.2"))
    write(tmp_path, cine=make_us(CINE, uid="1.2.3"), short=make_us(CINE[:3], uid="1.2.4"))
    write(tmp_path / "masks", A_png=ONE > 90, im0002_png=ONE > 99, cine_png=ONE > 80)
    write(tmp_path / "masks", **{f"cine_{n}_png": mask for n, mask in enumerate(MASKS, 1)})
    write(tmp_path / "masks", **{f"short_{n:03d}_png": mask for n, mask in enumerate(MASKS[:3])})
    table = dicom_folder.cases(tmp_path).set_index("case_id")
    names = {case_id: path.rpartition("/")[2] for case_id, path in table["mask_path"].items()}
    assert names == {
        "a": "A.png", "IM0002": "im0002.png", "cine_1": "cine_1.png", "cine_2": "cine_2.png",
        "cine_3": "cine_3.png", "cine_4": "cine_4.png", "short_1": "short_000.png",
        "short_2": "short_001.png", "short_3": "short_002.png",
    }  # fmt: skip


def test_segments_of_several_kinds_are_levels_with_names(tmp_path):
    over = [("1.2.1", None), ("1.2.1", 0)]
    seg = make_seg(MASKS[:2], over, kinds=("Thyroid gland", "Nodule"), segments=[1, 2])
    write(tmp_path, a_dcm=make_us(CINE[0], uid="1.2.1"), seg_dcm=seg)
    table = dicom_folder.cases(tmp_path)
    assert table.attrs["levels"] == {1: "Tissue: Nodule", 2: "Tissue: Thyroid gland"}
    parts = [text.split("\t") for text in table["mask_path"][0].split("\n")]
    levels = [dicom_folder.read_mask(*part) for part in parts]
    assert sorted(map(np.max, levels)) == [1, 2]
    for mask in levels:
        np.testing.assert_array_equal(mask > 0, MASKS[0 if mask.max() == 2 else 1])


def test_copies_of_images_are_no_masks(tmp_path):
    """A picture in a folder called masks is meant; without any mask it is another layout."""
    write(tmp_path / "dicom", a_dcm=make_us(ONE, uid="1.2.1"))
    write(tmp_path / "png", b_png=ONE > 90)
    assert dicom_folder.cases(tmp_path) is None
    for name in ("png", "Labels"):
        write(tmp_path / name, a_png=ONE > 90)
    assert dicom_folder.cases(tmp_path)["mask_path"].tolist() == [str(tmp_path / "Labels/a.png")]


def test_pictures_beside_images_are_masks_if_their_names_say_so(tmp_path):
    seg = make_seg([MASKS[0]], [("1.2.1", None)])
    write(tmp_path / "my masks", a_dcm=make_us(ONE, uid="1.2.1"), a_png=ONE)
    assert dicom_folder.cases(tmp_path / "my masks") is None
    write(tmp_path / "my masks", seg_dcm=seg, b_dcm=make_us(ONE, uid="1.2.2"), b_seg_png=ONE > 90)
    table = dicom_folder.cases(tmp_path / "my masks").set_index("case_id")
    assert table["mask_path"]["b"].endswith("b_seg.png")
    assert table.attrs["layout"].endswith("1 frames of segmentations; 1 pictures are not read")
    write(tmp_path / "cine", a_dcm=make_us(CINE))
    write(tmp_path / "cine/gt", a_1_png=MASKS[0], a_2_png=MASKS[1])
    with pytest.raises(ValueError, match=r"no DICOM file has all masks among 2 pictures: name"):
        dicom_folder.cases(tmp_path / "cine")


@pytest.mark.parametrize("numbers", [range(5), range(1, 6), range(2, 6), [0, 1, 3, 4]])
def test_numbers_that_may_mean_other_frames_are_not_paired(tmp_path, numbers):
    write(tmp_path, a_dcm=make_us(CINE), b_dcm=make_us(ONE, uid="1.2.3"), b_mask_png=ONE > 90)
    write(tmp_path / "masks", **{f"a_{number}_png": MASKS[0] for number in numbers})
    table = dicom_folder.cases(tmp_path).set_index("case_id")
    assert table["mask_path"][["a_1", "a_2", "a_3", "a_4"]].tolist() == [""] * 4


def test_pictures_of_one_name_belong_to_the_file_beside_them(tmp_path):
    """Never is a mask given to another patient's image."""
    for number in "12":
        image = make_us(ONE, uid=f"1.2.{number}")
        write(tmp_path / f"p{number}", IM_dcm=image)
        write(tmp_path / f"p{number}" / "masks", IM_png=ONE > 90)
    table = dicom_folder.cases(tmp_path)
    for image, mask in zip(table["image_path"], table["mask_path"], strict=True):
        assert mask == image.replace("IM.dcm", "masks/IM.png")
    (tmp_path / "p1" / "masks" / "IM.png").rename(tmp_path / "im.png")  # whose is it?
    assert table["case_id"].is_unique
    assert table["case_id"].str.fullmatch("IM-[0-9a-f]{8}").all()
    masks = dicom_folder.cases(tmp_path).set_index("image_path")["mask_path"]
    assert masks[str(tmp_path / "p1" / "IM.dcm")] == ""
    assert masks[str(tmp_path / "p2" / "IM.dcm")] == str(tmp_path / "p2" / "masks" / "IM.png")


def test_what_lies_over_no_frame_is_counted(tmp_path):
    over = [("9.9.9", 0), ("1.2.1", None), ("", None), ("1.2.1", 9)]
    image = make_us(CINE, uid="1.2.1")
    report = make_us(ONE, uid="1.2.2", Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    write(tmp_path, a_dcm=image, seg_dcm=make_seg(MASKS, over), report_dcm=report)
    table = dicom_folder.cases(tmp_path)
    assert set(table["mask_path"]) == {""}
    assert "4 frames that are not here have segmentations; 1 other objects" in table.attrs["layout"]


@pytest.mark.parametrize("kind", ["compressed", "fractional"])
def test_segmentations_of_other_pixels_are_refused(tmp_path, kind):
    seg = make_seg(MASKS[:1], [("1.2.1", 0)])
    if kind == "compressed":
        seg.file_meta.TransferSyntaxUID = uids.RLELossless
        seg.PixelData = encapsulate([seg.PixelData])
    else:
        seg.BitsAllocated, seg.PixelData = 8, bytes(1110)
    file = write(tmp_path, seg_dcm=seg) / "seg.dcm"
    with pytest.raises(ValueError, match=r"'seg\.dcm': it is compressed or FRACTIONAL: save it"):
        dicom_folder.read_mask(file, "0")


def test_damaged_files(tmp_path):
    good = to_bytes(make_us(ONE, uid="1.2.1"))
    seg = to_bytes(make_seg(MASKS, [("1.2.1", 0)] * 4))
    write(tmp_path, a_dcm=good, b_dcm=good[:132] + b"\xff" * 40, seg_dcm=seg[:-60])
    table = dicom_folder.cases(tmp_path).set_index("case_id")
    reason, detail = table.loc["b", "problem"]
    assert reason == "unreadable image"
    assert "'b.dcm': it is a broken DICOM file" in detail
    path, part = table.loc["a", "mask_path"].split("\t")
    with pytest.raises(ValueError, match=r"'seg\.dcm'.*copy it again"):
        dicom_folder.read_mask(path, part)
    (tmp_path / "a.dcm").write_bytes(good[:-30])
    with pytest.raises(ValueError, match=r"'a\.dcm': the file is cut off"):
        dicom_folder.read_image(tmp_path / "a.dcm", "")


def test_other_folders_are_left_to_other_formats(tmp_path, monkeypatch):
    write(tmp_path, a_png=MASKS[0], b_dcm=b"no DICOM", c=b"")
    assert dicom_folder.cases(tmp_path) is None
    assert dicom_folder.cases(tmp_path / "nowhere") is None
    write(tmp_path, a_dcm=make_us(ONE))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match="pip install pydicom"):
        dicom_folder.cases(tmp_path)

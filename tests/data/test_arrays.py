"""Arrays in npy, npz and HDF5: every picture with its mask and group, or what to do."""

import sys

import numpy as np
import pytest

from thyroid_lib.data import arrays

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 255, (5, 12, 16), np.uint8)
MASKS = (RNG.random((5, 12, 16)) > 0.7) * np.uint8(255)
AXES = [
    ((30, 20, 24), lambda x: x[..., None]),
    ((30, 20, 20), lambda x: x),
    ((4, 15, 12), lambda x: x[:, None]),
    ((4, 15, 12), lambda x: np.stack([x] * 3, 1)),
]
BAD = {  # kind: (the file's arrays, or its bytes; words)
    "no mask": ({"image": IMAGES, "age": np.ones(5)}, r"image \(5, 12, 16\), age \(5,\): name one"),
    "two masks": ({"image": IMAGES, "mask": MASKS, "gt": MASKS}, "name one array image, and one"),
    "classes of images": ({"image": IMAGES, "label": np.ones(5)}, "name one array image"),
    "fewer masks": ({"image": IMAGES, "mask": MASKS[:4]}, "holds 5 images and 4 masks"),
    "groups of others": ({"image": IMAGES, "mask": MASKS, "patient": [1, 2]}, "each of 5 pictures"),
    "last axis": ({"image": IMAGES.T[:12, :12], "mask": MASKS.T[:12, :12]}, r"may be \(N,H,W\)"),
    "as many": (dict.fromkeys(("image", "mask"), np.ones((50, 40, 60))), r"save \(N,H,W,1\)"),
    "five axes": ({"image": IMAGES[None, None], "mask": MASKS[None, None]}, "not that of pictures"),
    "objects": ({"image": np.array([[None] * 3] * 3), "mask": MASKS[0]}, "cannot be read"),
    "cut off": (b"PK\x03\x04" + bytes(90), "cannot be read"),
}


def npz(path, **held):
    np.savez_compressed(path, **held)
    return path


def hdf5(path, **held):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in held.items():
            file[name] = array
    return path


def pictures(table):
    """The table's pictures: {case_id: (image, mask)}."""
    read = {}
    for row in table.itertuples():
        pair = [text.partition("\t")[::2] for text in (row.image_path, row.mask_path)]
        read[row.case_id] = arrays.read_image(*pair[0]), arrays.read_mask(*pair[1], (12, 16))
    return read


def assert_read(table, images=IMAGES, masks=MASKS):
    read = pictures(table)
    assert len(read) == len(images)
    for (image, mask), *expected in zip(read.values(), images, masks, strict=True):
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(mask, expected[1])
        assert (image.dtype, mask.dtype) == (images.dtype, masks.dtype)


def test_the_stanford_cine_clips(tmp_path):
    """Groups are annotations, or patients; cases are frames, in the order of the numbers."""
    annotations, frames = [b"12_", b"12_", b"7_", b"7_", b"7_"], [9, 10, 2, 0, 1]
    held = {"image": IMAGES, "mask": MASKS, "annot_id": annotations, "frame_num": frames}
    patients = {"patient": [b"A", b"A", b"B", b"B", b"A"]}
    for more, named, groups in (
        ({}, "annot_id", ["12_", "12_", "7_", "7_", "7_"]), (patients, "patient", [*"AABAB"]),
    ):  # fmt: skip
        table = arrays.cases(hdf5(tmp_path / "dataset.hdf5", **held, **more))
        assert table["case_id"].tolist() == ["12_09", "12_10", "7_00", "7_01", "7_02"]
        assert table["group"].tolist() == groups
        assert table.attrs["groups"] == f"array {named}"
    assert_read(table, IMAGES[[0, 1, 3, 4, 2]], MASKS[[0, 1, 3, 4, 2]])


def test_a_file_per_patient_and_a_file_per_image(tmp_path):
    for name, part in (("p1", slice(0, 2)), ("p2", slice(2, 5))):
        npz(tmp_path / f"{name}.npz", image=IMAGES[part], label=MASKS[part], age=np.int64(40))
    table = arrays.cases(tmp_path)
    assert table["case_id"].tolist() == ["p1_0", "p1_1", "p2_0", "p2_1", "p2_2"]
    assert table["group"].tolist() == ["p1", "p1", "p2", "p2", "p2"]
    assert_read(table)
    assert table.attrs["groups"] == "one per file"
    assert table.attrs["layout"].endswith("not read: age")
    for name, image, mask in zip("ab", IMAGES, MASKS, strict=False):
        (tmp_path / "one").mkdir(exist_ok=True)
        npz(tmp_path / "one" / f"{name}.npz", image=np.stack([image] * 3, -1), mask=mask)
    table = arrays.cases(tmp_path / "one")
    assert table["case_id"].tolist() == ["a", "b"]
    assert_read(table, IMAGES[:2], MASKS[:2])
    assert table.attrs["groups"] == ""


@pytest.mark.parametrize(("shape", "save"), AXES)
def test_pictures_whose_axes_are_clear(tmp_path, shape, save):
    frames = RNG.integers(0, 255, shape, np.uint8)
    table = arrays.cases(npz(tmp_path / "a.npz", x=save(frames), y=save(frames > 99)))
    assert_read(table, frames, frames > 99)


def test_other_data_beside_arrays_stop_the_study(tmp_path):
    npz(tmp_path / "a.npz", image=IMAGES, mask=MASKS)
    for other in ("more/b.npz", "frames/u.png"):
        (tmp_path / other).parent.mkdir()
        (tmp_path / other).touch()
        with pytest.raises(ValueError, match=r"there are arrays in a and . other files, such as"):
            arrays.cases(tmp_path)


def test_one_picture_in_an_array_of_pictures_and_two_files_of_one_name(tmp_path):
    npz(tmp_path / "a.npz", image=IMAGES[:1], mask=MASKS[0], patient_id="p7")
    hdf5(tmp_path / "a.h5", image=IMAGES[1:3], mask=MASKS[1:3], patient_id="p7")
    table = arrays.cases(tmp_path)
    assert table["case_id"].tolist() == ["a.h5_0", "a.h5_1", "a.npz_0"]
    assert table["group"].tolist() == ["p7"] * 3
    assert_read(table, IMAGES[[1, 2, 0]], MASKS[[1, 2, 0]])


def test_colours_stay_colours_and_a_mask_in_colours_is_refused(tmp_path):
    colours = RNG.integers(0, 255, (5, 12, 16, 3), np.uint8)
    table = arrays.cases(npz(tmp_path / "a.npz", images=colours, masks=MASKS))
    assert_read(table, colours)
    table = arrays.cases(npz(tmp_path / "a.npz", images=IMAGES, masks=colours))
    with pytest.raises(ValueError, match=r"'a\.npz' holds a mask in colours"):
        pictures(table)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_refused_alone_and_set_aside_among_others(tmp_path, kind):
    content, words = BAD[kind]
    file = tmp_path / "bad.npz"
    file.write_bytes(content) if isinstance(content, bytes) else npz(file, **content)
    with pytest.raises(ValueError, match=words):
        arrays.cases(file)
    npz(tmp_path / "good.npz", image=IMAGES, mask=MASKS)
    table = arrays.cases(tmp_path).set_index("case_id")
    assert table.loc["bad", "problem"][0] == "unreadable image"
    assert "bad" in table.loc["bad", "problem"][1]
    assert table["problem"].isna().sum() == 5


def test_pictures_that_cannot_be_read(tmp_path):
    wrong = np.where(IMAGES[0, 0, 0] == IMAGES, np.nan, IMAGES)
    table = arrays.cases(npz(tmp_path / "a.npz", image=wrong, mask=MASKS))
    with pytest.raises(ValueError, match=r"'a\.npz' cannot be read: has levels .* that are no"):
        pictures(table)
    np.save(tmp_path / "b.npy", IMAGES)
    with pytest.raises(ValueError, match="holds 5 pictures, save the one that is meant"):
        arrays.read_image(tmp_path / "b.npy", "")
    with pytest.raises(ValueError, match=r"'b\.npy' cannot be read: index 5"):
        arrays.read_image(tmp_path / "b.npy", "5")


def test_hdf5_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    file = hdf5(tmp_path / "a.hdf5", image=IMAGES, mask=MASKS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match="pip install h5py"):
        arrays.cases(file)


@pytest.mark.parametrize(
    "names", ["images/a.npy masks/a.npy features.npz", "a.png a.npz", "a.npy", "images.npy"]
)
def test_other_layouts_are_left_to_other_formats(tmp_path, names):
    for file in (tmp_path / name for name in names.split()):
        file.parent.mkdir(exist_ok=True)
        np.savez(file, x=IMAGES[0]) if file.suffix == ".npz" else file.write_bytes(b"")
    assert arrays.cases(tmp_path) is None
    assert arrays.cases(tmp_path / "nowhere") is None

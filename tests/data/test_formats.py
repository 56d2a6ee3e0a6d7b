"""Formats of their own, from their files to the store: pixels, groups, or what to do instead."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_arrays import hdf5, npz
from test_ddti import mark
from test_ddti import write as write_ddti
from test_dicom_folder import make_seg, make_us
from test_dicom_folder import write as write_dicom

from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store

HEIGHT, WIDTH, COUNT = 22, 31, 6
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RNG = np.random.default_rng(21)
IMAGES = RNG.integers(1, 255, (COUNT, HEIGHT, WIDTH), np.uint8)
MASKS = np.stack(
    [(ROWS - 11) ** 2 / 4 + (COLUMNS - 12 - n) ** 2 / (9 + n) < 9 for n in range(COUNT)]
)
NODULES = MASKS & (COLUMNS > 14)
NAMES = [f"u{n}" for n in range(COUNT)]
PATIENTS = ["p1", "p1", "p2", "p2", "p2", "p3"]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def pairs(top, image="images/{}.png", mask="masks/{}.png", level=255, masks=MASKS):
    for name, frame, gland in zip(NAMES, IMAGES, masks, strict=True):
        save(top / image.format(name), frame)
        save(top / mask.format(name), gland * np.uint8(level))


def groups_csv(top, names=NAMES):
    lines = [f"{name},{patient}\n" for name, patient in zip(names, PATIENTS, strict=True)]
    (top / "groups.csv").write_text(f"case_id,group\n{''.join(lines)}")


def packed(archive, draw):
    """A drawing in an archive."""

    def make(top):
        (top / "in" / "deep").mkdir(parents=True)
        draw(top / "in" / "deep")
        files = [file for file in (top / "in").rglob("*") if file.is_file()]
        if archive.endswith("zip"):
            with zipfile.ZipFile(top / archive, "w") as packing:
                [packing.write(file, file.relative_to(top / "in")) for file in files]
        else:
            with tarfile.open(top / archive, "w:gz") as packing:
                [packing.add(file, file.relative_to(top / "in")) for file in files]
        return top / archive

    return make


def one_file(write, name, **arrays):
    return lambda top: write(top / name, **arrays)


def stacks(suffix, level):
    """Two cines of three frames."""

    def make(top):
        for name, part in (("k", slice(0, 3)), ("m", slice(3, 6))):
            for kind, frames in (("images", IMAGES), ("masks", MASKS * np.uint8(level))):
                path = top / kind / f"{name}{suffix}"
                if suffix == ".npy":
                    save(path, frames[part])
                    continue
                path.parent.mkdir(exist_ok=True)
                first, *rest = map(Image.fromarray, frames[part])
                first.save(path, save_all=True, append_images=rest)

    return make


def npy_files(top):
    save(top / "imgs.npy", IMAGES)
    save(top / "gt.npy", MASKS.astype(np.int64) * 3)
    groups_csv(top, range(COUNT))


def dicom(kinds=("Thyroid gland",)):
    """Two cines of two patients with one segmentation object over the frames of both."""

    def make(top):
        over = [(f"1.2.{1 + n // 3}", n % 3) for n in range(COUNT)]
        for n, name in ((0, "k_dcm"), (3, "MR-2.113")):
            cine = make_us(IMAGES[n : n + 3], uid=f"1.2.{1 + n // 3}", PatientID=f"Doe {n}")
            write_dicom(top, **{name: cine})
        masks, segments = MASKS, None
        if len(kinds) > 1:
            masks, over = np.concatenate([MASKS, NODULES]), over * 2
            segments = [1] * COUNT + [2] * COUNT
        write_dicom(top, seg_dcm=make_seg(masks, over, kinds, segments))

    return make


def dicom_with_pictures(top):
    for name, frame in zip(NAMES, IMAGES, strict=True):
        write_dicom(top, **{f"{name}_dcm": make_us(frame, uid=f"1.2.{name[1]}")})
        save(top / "masks" / f"{name}.png", MASKS[int(name[1])].astype(np.uint8))


def nnunet(labels, levels, ending=".png"):
    def make(top):
        top = top / "Dataset001_Neck"
        pairs(top, "imagesTr/{}_0000.png", "labelsTr/{}.png", 1, levels)
        about = {"labels": labels, "file_ending": ending, "channel_names": {"0": "US"}}
        (top / "dataset.json").write_text(json.dumps(about))

    return make


def case_table(top):
    pairs(top, "a/{}.png", "b/{}_outline.png", 1)
    lines = [f"a/{n}.png;b/{n}_outline.png;{p}\n" for n, p in zip(NAMES, PATIENTS, strict=True)]
    (top / "cases.csv").write_text(f"image_path;mask_path;patient\n{''.join(lines)}")
    return top / "cases.csv"


def one_hot(top):
    pairs(top, mask="masks/{}.tif")
    for name, gland in zip(NAMES, MASKS, strict=True):
        pages = [Image.fromarray(each * np.uint8(255)) for each in (~gland, gland)]
        pages[0].save(top / "masks" / f"{name}.tif", save_all=True, append_images=pages[1:])


def seven(top):
    (top / "set.7z").write_bytes(b"7z")
    return top / "set.7z"


CLASSES = MASKS.astype(np.uint8) + NODULES
OWN, CINES = [*map(str, range(COUNT))], ["k"] * 3 + ["m"] * 3
K = [f"{name}_{n}" for name in "km" for n in range(3)]
DICOM = [f"{name}_{n}" for name in ("k", "MR-2") for n in (1, 2, 3)]
READ = {  # kind: (drawing, names of the cases, groups)
    "zip": (packed("set.zip", pairs), NAMES, NAMES),
    "tar.gz, masks of 0 and 1": (
        packed("set.tar.gz", lambda top: (pairs(top, "{}.png", "{}_mask.png", 1), groups_csv(top))),
        NAMES, PATIENTS,
    ),
    "npz in a zip": (
        packed("set.zip", one_file(npz, "a.npz", x=IMAGES, y=MASKS)), OWN, OWN,
    ),
    "npz with patients": (
        one_file(npz, "a.npz", image=IMAGES, mask=MASKS * 2, patient_id=PATIENTS), OWN, PATIENTS,
    ),
    "npz of floats": (
        one_file(npz, "a.npz", x=(IMAGES / 255).astype(np.float32), y=MASKS * 1.0), OWN, OWN,
    ),
    "HDF5 of the cine clips": (
        one_file(
            hdf5, "dataset.hdf5", image=IMAGES, mask=MASKS * np.uint8(255),
            annot_id=[f"{patient}_".encode() for patient in PATIENTS], frame_num=range(COUNT),
        ),
        [f"{patient}_{n}" for n, patient in enumerate(PATIENTS)], [f"{p}_" for p in PATIENTS],
    ),
    "HDF5, 12 of 16 bits": (
        one_file(hdf5, "a.h5", images=IMAGES.astype(np.uint16) * 16, masks=MASKS), OWN, OWN,
    ),
    "two npy files with groups.csv": (npy_files, OWN, PATIENTS),
    "an npy file for each": (
        lambda top: pairs(top, "images/{}.npy", "masks/{}.npy", 1), NAMES, NAMES,
    ),
    "TIFF stacks": (stacks(".tif", 255), K, CINES),
    "TIFF stacks of 0 and 1": (stacks(".tiff", 1), K, CINES),
    "GIF stacks": (stacks(".gif", 255), K, CINES),
    "npy stacks": (stacks(".npy", 1), K, CINES),
    "DICOM, one segmentation": (dicom(), DICOM, CINES),
    "DICOM and PNG": (dicom_with_pictures, NAMES, ["one"] * COUNT),
    "nnU-Net": (nnunet({"background": 0, "gland": 1}, MASKS), NAMES, NAMES),
    "case table": (case_table, NAMES, PATIENTS),
}  # fmt: skip
REFUSED = {  # kind: (drawing, words, the choice that mends it, or none)
    "npz of three levels": (
        one_file(npz, "a.npz", x=IMAGES, y=CLASSES), "which of them are gland",
        {"mask_values": "1, 2"},
    ),
    "nnU-Net of three labels": (
        nnunet({"background": 0, "gland": 1, "nodule": 2}, CLASSES),
        r"0 background \(.*, 1 gland \(.*, 2 nodule \(.*which of them are gland",
        {"mask_values": "1, 2"},
    ),
    "nnU-Net of volumes": (nnunet({"gland": 1}, MASKS, ".nii.gz"), "volumes: save their", {}),
    "DICOM of two kinds": (
        dicom(("Thyroid gland", "Nodule")),
        r"1 Tissue: Nodule \(.*2 Tissue: Thyroid gland \(.*which of them are gland",
        {"mask_values": "2"},
    ),
    "a page for each class": (one_hot, "holds 1 pictures, the mask's 2: save one mask", {}),
    "pictures along the last axis": (
        one_file(npz, "a.npz", x=np.moveaxis(IMAGES, 0, 2), y=np.moveaxis(MASKS, 0, 2)),
        r"may be \(H,W,N\) or \(N,H,W\)", {},
    ),
    "7z": (seven, "is no zip or tar archive: unpack it by hand", {}),
}  # fmt: skip


def assert_stored(path, tmp_path, names, groups, **choices):
    seen = look(path, **choices)
    store = build_store(seen.cases, tmp_path / "store", size=32, mend=[], workers=1)
    assert store.quarantine.to_dict("records") == []
    order = np.argsort(names)
    assert store.index["case_id"].tolist() == [names[i] for i in order]
    for row, i in enumerate(order):
        drawn = fit_image(IMAGES[i], 32, "square").astype(int)
        assert np.abs(store.images[row] - drawn).max() <= 1, names[i]
        np.testing.assert_array_equal(store.reference(row), MASKS[i], err_msg=names[i])
    number = {group: place for place, group in enumerate(groups)}
    found = dict(zip(store.index["case_id"], store.index["group"], strict=True))
    shown = [found[name] for name in names]
    assert [shown.index(group) for group in shown] == [groups.index(group) for group in groups]
    assert len(number) == store.index["group"].nunique()
    return seen


@pytest.mark.parametrize("kind", READ)
def test_what_is_drawn_is_in_the_store(tmp_path, kind):
    draw, names, groups = READ[kind]
    (tmp_path / "data").mkdir()
    path = draw(tmp_path / "data")
    path = path if isinstance(path, Path) else tmp_path / "data"
    seen = assert_stored(path, tmp_path, names, groups)
    assert ("own" in seen.seen["groups"]) == (groups in (NAMES, OWN, CINES) and "DICOM" not in kind)
    if "DICOM" in kind:
        assert "Doe" not in seen.cases.to_csv()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_known_is_refused_with_a_way_out(tmp_path, kind):
    draw, words, choices = REFUSED[kind]
    (tmp_path / "data").mkdir()
    path = draw(tmp_path / "data")
    path = path if isinstance(path, Path) else tmp_path / "data"
    with pytest.raises(ValueError, match=words):
        build_store(look(path).cases, tmp_path / "store", size=32, workers=1)
    if choices:
        build_store(look(path, **choices).cases, tmp_path / "store", size=32, mend=[], workers=1)


@pytest.mark.parametrize("seed", range(12))
def test_no_class_is_lost(tmp_path, seed):
    """Pixels of every drawn level are gland in the store, or the level is named in the refusal."""
    rng = np.random.default_rng(seed)
    levels = rng.choice(np.arange(1, 250), 1 + seed % 4, replace=False)
    kinds = ["uint8", "uint16", "int64", "float32"]
    drawn = np.where(MASKS, levels[(ROWS + COLUMNS) % len(levels)], 0).astype(kinds[seed // 3])
    write = [npz, hdf5][seed % 2]
    path = write(tmp_path / ["a.npz", "a.h5"][seed % 2], x=IMAGES, y=drawn)
    if len(levels) == 1:
        store = build_store(look(path).cases, tmp_path / "store", size=32, mend=[], workers=1)
        stored = np.stack([store.reference(i) for i in range(COUNT)])
        np.testing.assert_array_equal(stored, MASKS)
    else:
        with pytest.raises(ValueError, match="which of them are gland") as error:
            look(path)
        for level in levels:
            assert re.search(rf"\b{level}(\.0)? \(", str(error.value))


def test_ddti_to_the_store(tmp_path):
    """Damaged annotations are set aside with their reasons, the rest is read."""
    square = [(2, 1), (6, 1), (6, 4), (2, 4)]
    levels = {"1_1": 10, "1_2": 20, "2_1": 20, "3_1": 30}
    marks = {"n1": [mark(1, square), mark(2, square, cut=-3)], "n2": [mark(1, square)]}
    write_ddti(tmp_path / "data", images=levels, n3=[mark(1)], **marks)
    seen = look(tmp_path / "data")
    store = build_store(seen.cases, tmp_path / "store", size=32, mend=[], workers=1)
    assert store.index[["case_id", "group"]].to_numpy().tolist() == [["1_1", "1+2"], ["2_1", "1+2"]]
    assert store.reference(0).sum() == 20
    reasons = store.quarantine[["case_id", "reason"]].to_numpy().tolist()
    assert reasons == [["1_2", "damaged annotation"], ["3_1", "no region"]]
    assert seen.seen["groups"].startswith("case numbers")


def test_a_changed_part_of_a_file_changes_the_store(tmp_path):
    """The fingerprint holds files and parts."""
    prints = set()
    for masks in (MASKS, MASKS[::-1]):
        path = npz(tmp_path / "a.npz", x=IMAGES, y=masks)
        store = build_store(look(path).cases, tmp_path / "store", size=32, workers=1)
        prints.add(store.fingerprint)
    table = look(path).cases
    table["mask_path"] = table["mask_path"].to_numpy()[::-1]
    prints.add(build_store(table, tmp_path / "other", size=32, workers=1).fingerprint)
    assert len(prints) == 3

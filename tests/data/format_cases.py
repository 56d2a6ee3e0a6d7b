"""Files of formats of their own, each drawn in a few lines.

`READ` and `REFUSED` are the tables for tests/data/test_formats.py and for docs/own-data.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from test_arrays import hdf5, npz
from test_dicom_folder import make_seg, make_us
from test_dicom_folder import write as write_dicom

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
    named = names if isinstance(names, dict) else dict(zip(names, PATIENTS, strict=True))
    lines = [f"{name},{patient}\n" for name, patient in named.items()]
    (top / "groups.csv").write_text(f"case_id,group\n{''.join(lines)}")


def packed(kind, draw):
    """A drawing in an archive."""

    def make(top):
        (top / "in" / "deep").mkdir(parents=True)
        draw(top / "in" / "deep")
        return Path(shutil.make_archive(top / "set", kind, top / "in"))

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


def two_pages(top):
    """Masks of two pages, one for each class."""
    pairs(top, "images/{}.tif", "masks/{}.tif")
    for file in (top / "masks").iterdir():
        page = Image.open(file).copy()
        page.save(file, save_all=True, append_images=[page])


CLASSES = MASKS.astype(np.uint8) + NODULES
OWN, CINES = [*map(str, range(COUNT))], ["k"] * 3 + ["m"] * 3
K = [f"{name}_{n}" for name in "km" for n in range(3)]
DICOM = [f"{name}_{n}" for name in ("k", "MR-2") for n in (1, 2, 3)]
READ = {  # kind: (drawing, names of the cases, groups)
    "zip": (packed("zip", pairs), NAMES, NAMES),
    "tar.gz, masks of 0 and 1": (
        packed("gztar", lambda top: (pairs(top, "{}.png", "{}_mask.png", 1), groups_csv(top))),
        NAMES, PATIENTS,
    ),
    "npz with patients": (
        one_file(npz, "a.npz", image=IMAGES, mask=MASKS * 2, patient_id=PATIENTS), OWN, PATIENTS,
    ),
    "groups.csv beside npz with patients": (
        lambda top: groups_csv(npz(top / "a.npz", x=IMAGES, y=MASKS, group=OWN).parent, OWN),
        OWN, PATIENTS,
    ),
    "groups.csv of the names of npz files": (
        lambda top: [
            npz(top / f"{name}.npz", x=IMAGES[part], y=MASKS[part])
            for name, part in (("k", np.s_[:3]), ("m", np.s_[3:]))
        ] and groups_csv(top, {"k": "p1", "m": "P01"}),
        K, ["one"] * COUNT,
    ),
    "groups.csv beside a zip": (
        lambda top: groups_csv(top, NAMES) or packed("zip", pairs)(top), NAMES, PATIENTS,
    ),
    "HDF5 of the Stanford cine clips": (
        one_file(
            hdf5, "dataset.hdf5", image=IMAGES, mask=MASKS * np.uint8(255),
            annot_id=[f"{patient}_".encode() for patient in PATIENTS], frame_num=range(COUNT),
        ),
        [f"{patient}_{n}" for n, patient in enumerate(PATIENTS)], [f"{p}_" for p in PATIENTS],
    ),
    "HDF5, 12 of 16 bits": (
        one_file(hdf5, "a.h5", images=IMAGES.astype(np.uint16) * 16, masks=MASKS), OWN, OWN,
    ),
    "images.npy and masks.npy with groups.csv": (npy_files, OWN, PATIENTS),
    "TIFF stacks of 0 and 1": (stacks(".tiff", 1), K, CINES),
    "GIF stacks": (stacks(".gif", 255), K, CINES),
    "npy stacks": (stacks(".npy", 1), K, CINES),
    "DICOM cines with a segmentation object": (dicom(), DICOM, CINES),
    "DICOM with PNG masks": (dicom_with_pictures, NAMES, ["one"] * COUNT),
    "nnU-Net": (nnunet({"background": 0, "gland": 1}, MASKS), NAMES, NAMES),
    "CSV of paths (image_path, mask_path, patient)": (case_table, NAMES, PATIENTS),
}  # fmt: skip
REFUSED = {  # kind: (drawing, words, the choice that mends it, or none)
    "npz, masks of three levels": (
        one_file(npz, "a.npz", x=IMAGES, y=CLASSES), "which of them are gland",
        {"mask_values": "1, 2"},
    ),
    "nnU-Net of three labels": (
        nnunet({"background": 0, "gland": 1, "nodule": 2}, CLASSES),
        r"0 background \(.*, 1 gland \(.*, 2 nodule \(.*which of them are gland",
        {"mask_values": "1, 2"},
    ),
    "nnU-Net, the rest of each mask is to be ignored": (
        nnunet({"background": 0, "gland": 1, "ignore": 2}, ~MASKS * np.uint8(2)),
        r"0 background \(.*, 2 ignore \(.*which of them are gland", {"mask_values": "0"},
    ),
    "nnU-Net of volumes": (nnunet({"gland": 1}, MASKS, ".nii.gz"), "volumes: save their", {}),
    "DICOM of two kinds": (
        dicom(("Thyroid gland", "Nodule")),
        r"1 Tissue: Nodule \(.*2 Tissue: Thyroid gland \(.*which of them are gland",
        {"mask_values": "2"},
    ),
    "TIFF masks with a page for each class": (
        two_pages, "the mask's 2: save one mask .* no class or channel as a page", {},
    ),
}  # fmt: skip

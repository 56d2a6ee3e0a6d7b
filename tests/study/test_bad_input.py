"""Bad input: every kind ends in one row of the quarantine or one clear sentence, never in silence.

Each fault is put into a folder of six good cases as the case "x"; the six must still arrive.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data import folder, frames
from thyroid_lib.data.cases import REASONS
from thyroid_lib.data.store import build_store

HEIGHT, WIDTH = 40, 50
GOOD = ["a00", "a01", "a02", "b00", "b01", "b02"]

rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[15:30, 10:35] = 255
EXIF = Image.Exif()
EXIF[0x0112] = 6  # turned by a quarter


def encode(array, form="PNG", mode=None, **options) -> bytes:
    """The bytes of an image file."""
    image = Image.fromarray(np.asarray(array))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def animated(form):
    more = [Image.fromarray(MASK), Image.fromarray(255 - MASK)]
    return encode(IMAGE, form, save_all=True, append_images=more)


def bomb() -> bytes:
    """A PNG of 30000 x 30000 in its header and nothing behind it."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + encode(IMAGE)[33:]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


JPEG, PNG = encode(IMAGE, "JPEG"), encode(IMAGE)
BMP, TIFF = encode(IMAGE, "BMP"), encode(IMAGE, "TIFF", compression="tiff_lzw")
GOOD_MASK = encode(MASK)
THIRTY_TWO_BITS = encode(IMAGE.astype(np.int32) * 1000, "TIFF")

# id: (name and bytes of the image, name and bytes of the mask, reason, part of the detail).
# None in the place of bytes is no file.
QUARANTINED = {
    # the file's content
    "image of zero bytes": ("x.png", b"", GOOD_MASK, "unreadable image", "is empty (0 bytes)"),
    "mask of zero bytes": ("x.png", PNG, b"", "unreadable mask", "is empty (0 bytes)"),
    "jpeg cut in its header": ("x.jpg", JPEG[:100], GOOD_MASK, "unreadable image", "'x.jpg' is"),
    "jpeg cut in the middle": ("x.jpg", JPEG[:1000], GOOD_MASK, "unreadable image", "truncated"),
    "jpeg without its end": ("x.jpg", JPEG[:-2], GOOD_MASK, "unreadable image", "truncated"),
    "jpeg of three bytes": ("x.jpg", JPEG[:3], GOOD_MASK, "unreadable image", "'x.jpg' is"),
    "jpeg with a flipped first byte": (
        "x.jpg", flipped(JPEG, 0), GOOD_MASK, "unreadable image", "is no PNG, JPEG, BMP or TIFF",
    ),
    "png cut in the middle": ("x.png", PNG[:1000], GOOD_MASK, "unreadable image", "is damaged"),
    "png without its end": ("x.png", PNG[:-12], GOOD_MASK, "unreadable image", "is damaged"),
    "png with a flipped header": (
        "x.png", flipped(PNG, 18), GOOD_MASK, "unreadable image", "'x.png' is",
    ),
    "png with a flipped byte": (
        "x.png", flipped(PNG, 900), GOOD_MASK, "unreadable image", "is damaged",
    ),
    "bmp cut": ("x.bmp", BMP[:-100], GOOD_MASK, "unreadable image", "is damaged"),
    "tiff cut": ("x.tif", TIFF[:900], GOOD_MASK, "unreadable image", "'x.tif' is"),
    "mask cut": ("x.png", PNG, GOOD_MASK[:60], "unreadable mask", "'x.png' is damaged"),
    "text named jpg": ("x.jpg", b"hello\n", GOOD_MASK, "unreadable image", "convert it to one"),
    "html named png": (
        "x.png", b"<!doctype html><title>quota</title>", GOOD_MASK, "unreadable image", "is no PNG",
    ),
    "git lfs pointer": (
        "x.png", b"version https://git-lfs\noid sha256:0\n", GOOD_MASK, "unreadable image", "is no",
    ),
    "nothing but zeros": ("x.png", bytes(5000), GOOD_MASK, "unreadable image", "is no PNG"),
    "numpy array named png": (
        "x.png", b"\x93NUMPY\x01\x00v\x00", GOOD_MASK, "unreadable image", "is no PNG",
    ),
    "postscript named png": (
        "x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 40\n", GOOD_MASK,
        "unreadable image", "is no PNG",
    ),
    "webp named png": (
        "x.png", encode(IMAGE, "WEBP"), GOOD_MASK, "unreadable image", "is no PNG",
    ),
    # the right kind of file, and not what is needed
    "animated gif": ("x.png", animated("GIF"), GOOD_MASK, "unreadable image", "holds 3 pictures"),
    "animated png": ("x.png", animated("PNG"), GOOD_MASK, "unreadable image", "holds 3 pictures"),
    "tiff of three pages": (
        "x.tif", animated("TIFF"), GOOD_MASK, "unreadable image", "holds 3 pictures",
    ),
    "mask of three pages": ("x.png", PNG, animated("TIFF"), "unreadable mask", "holds 3 pictures"),
    "bomb": ("x.png", bomb(), GOOD_MASK, "unreadable image", "more than 64 megapixels"),
    "bomb as mask": ("x.png", PNG, bomb(), "unreadable mask", "more than 64 megapixels"),
    "32 bits": ("x.tif", THIRTY_TWO_BITS, GOOD_MASK, "unreadable image", "32-bit gray levels"),
    "floating point": (
        "x.tif", encode(IMAGE / np.float32(255), "TIFF"), GOOD_MASK, "unreadable image", "floating",
    ),
    # image and mask do not go together
    "image of another size": (
        "x.png", encode(IMAGE[:-1]), GOOD_MASK, "size mismatch", "39 x 50 and 40 x 50",
    ),
    "mask of another size": (
        "x.png", PNG, encode(MASK[:, :-1]), "size mismatch", "40 x 50 and 40 x 49",
    ),
    "mask turned": ("x.png", PNG, encode(MASK.T), "size mismatch", "40 x 50 and 50 x 40"),
    "image turned by exif, mask not": (
        "x.jpg", encode(IMAGE, "JPEG", exif=EXIF), GOOD_MASK,
        "size mismatch", "50 x 40 and 40 x 50",
    ),
    "image of one pixel": (
        "x.png", encode(IMAGE[:1, :1]), GOOD_MASK, "size mismatch", "1 x 1 and 40 x 50",
    ),
    "image missing": ("x.png", None, GOOD_MASK, "missing image", "add the image under the mask's"),
    "mask missing": ("x.png", PNG, None, "missing mask", "add the mask under the image's name"),
    # the mask marks nothing, or everything
    "empty mask": ("x.png", PNG, encode(MASK * 0), "empty mask", "the brightest is 0"),
    "mask of 0 and 1": ("x.png", PNG, encode(MASK // 255), "empty mask", "the brightest is 1"),
    "mask just too dark": (
        "x.png", PNG, encode(MASK // 255 * 127), "empty mask", "the brightest is 127",
    ),
    "mask of 16 bits that holds 0 and 255": (
        "x.png", PNG, encode(MASK.astype(np.uint16)), "empty mask", "the brightest is 1",
    ),
    "mask wholly transparent": (
        "x.png", PNG, encode(np.dstack([MASK] * 3 + [MASK * 0])), "empty mask", "brightest is 0",
    ),
    "full mask": ("x.png", PNG, encode(MASK * 0 + 255), "full mask", "every pixel is above 127"),
    "mask just bright enough everywhere": (
        "x.png", PNG, encode(MASK * 0 + 128), "full mask", "every pixel is above 127",
    ),
    "one pixel, marked": (
        "x.png", encode(IMAGE[:1, :1]), encode(MASK[15:16, 10:11]), "full mask", "every pixel",
    ),
    "mask inverted": ("x.png", PNG, encode(255 - MASK), "inverted mask", "whole border is above"),
    "mask of text alone": (
        "x.png", PNG, encode(np.pad(MASK[15:18, 10:13], ((0, 37), (0, 47)))), "empty mask",
        "nothing is left of it after mending: ",
    ),
    # names
    "name with a line break": ("x\ny.png", PNG, GOOD_MASK, "unusable name", "rename it"),
    "name with a tabulator": ("x\ty.png", PNG, GOOD_MASK, "unusable name", "rename it"),
    "name that is no text": (os.fsdecode(b"x\xff.png"), PNG, GOOD_MASK, "unusable name", "no text"),
}  # fmt: skip


def put(path, image_name, image, mask, group="b"):
    """Add the case to images/, masks/ and groups.csv."""
    stem = image_name.rpartition(".")[0]
    for file, content in (("images/" + image_name, image), (f"masks/{stem}.png", mask)):
        if content is not None:
            (path / file).write_bytes(content)
    if stem.isprintable():
        with open(path / "groups.csv", "a", encoding="utf-8") as file:
            file.write(f"{stem},{group}\n")


def build(path):
    return build_store(folder.cases_in(path), path / "store", size=16)


def the_one_row(built):
    """The single row of the quarantine, after a look at the six good neighbours."""
    assert built.index["case_id"].tolist() == GOOD
    assert len(built.quarantine) == 1
    row = built.quarantine.iloc[0]
    assert row["reason"] in REASONS
    for cell in row:
        assert "/" not in cell.replace("images/", "")
        assert "\n" not in cell
        assert "Traceback" not in cell
    return row


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")  # Pillow's own
@pytest.mark.parametrize("fault", QUARANTINED)
def test_a_bad_case_is_set_aside_with_its_reason(small_folder, fault):
    name, image, mask, reason, detail = QUARANTINED[fault]
    put(small_folder, name, image, mask)
    row = the_one_row(build(small_folder))
    assert row["reason"] == reason
    assert detail in row["detail"]
    assert row["case_id"].startswith("x")
    assert row["file"].startswith("x")


def make_folder(path):
    path.mkdir()


def make_loop(path):
    path.symlink_to(path.name)


def make_broken_link(path):
    path.symlink_to("nowhere.png")


def make_pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "detail"),
    [
        (make_folder, "is a folder, give a"),
        (make_loop, "is a broken link"),
        (make_broken_link, "is a broken link"),
        (make_pipe, "is no file"),
    ],
)
@pytest.mark.parametrize("part", ["images", "masks"])
def test_what_is_no_regular_file_is_set_aside(small_folder, make, detail, part):
    put(small_folder, "x.png", PNG, GOOD_MASK)
    (small_folder / part / "x.png").unlink()
    make(small_folder / part / "x.png")
    row = the_one_row(build(small_folder))
    assert row["reason"] == f"unreadable {part[:-1]}"
    assert detail in row["detail"]


def test_a_file_that_may_not_be_read(small_folder, monkeypatch):
    def refuse(path, mode, real=open):  # root may read all, so rights alone would not show it
        if Path(path).name == "x.png":
            raise PermissionError(13, "Permission denied")
        return real(path, mode)

    put(small_folder, "x.png", PNG, GOOD_MASK)
    monkeypatch.setattr(frames, "open", refuse, raising=False)
    row = the_one_row(build(small_folder))
    assert row["reason"] == "unreadable image"
    assert "cannot be opened (Permission denied), check its permissions" in row["detail"]


@pytest.mark.parametrize("group", ["", "   "])
def test_a_case_without_a_group_is_set_aside(small_folder, group):
    put(small_folder, "x.png", PNG, GOOD_MASK, group)
    assert the_one_row(build(small_folder))["reason"] == "no group"


def test_a_case_that_groups_csv_passes_over_is_set_aside(small_folder):
    for part, content in (("images", PNG), ("masks", GOOD_MASK)):
        (small_folder / part / "x.png").write_bytes(content)
    assert the_one_row(build(small_folder))["reason"] == "no group"


@pytest.mark.parametrize(
    ("part", "other"),
    [("images", "x.jpg"), ("masks", "x.bmp"), ("images", "X.png"), ("images", "x.PNG")],
)
def test_a_name_that_occurs_twice_is_set_aside_whole(small_folder, part, other):
    put(small_folder, "x.png", PNG, GOOD_MASK)
    (small_folder / part / other).write_bytes(PNG)
    if not {"x.png", other} <= {file.name for file in (small_folder / part).iterdir()}:
        pytest.skip("this disk does not tell upper from lower case")
    built = build(small_folder)
    assert built.index["case_id"].tolist() == GOOD
    assert built.quarantine["reason"].tolist() == ["duplicate name"] * 2
    assert "2 files have this name" in built.quarantine["detail"].iloc[0]


# --- odd, and good


def colour(array):
    return np.dstack([array] * 3)


ACCEPTED = {  # (name and bytes of the image, bytes of the mask)
    "16 bits": (
        "x.png", encode(IMAGE.astype(np.uint16) * 257), encode(MASK.astype(np.uint16) * 257),
    ),
    "rgb": ("x.png", encode(colour(IMAGE)), encode(colour(MASK))),
    "rgba": ("x.png", encode(colour(IMAGE), mode="RGBA"), encode(colour(MASK), mode="RGBA")),
    "gray with alpha": ("x.png", encode(IMAGE, mode="LA"), encode(MASK, mode="LA")),
    "palette": ("x.png", encode(IMAGE, mode="P"), encode(MASK, mode="P")),
    "one bit": ("x.png", PNG, encode(MASK > 0)),
    "bmp": ("x.bmp", BMP, encode(MASK, "BMP")),
    "tiff": ("x.tiff", TIFF, encode(MASK, "TIFF")),
    "ending in capitals": ("x.PNG", PNG, GOOD_MASK),
    "png named jpg": ("x.jpg", PNG, GOOD_MASK),
    "gif of one picture": ("x.png", encode(IMAGE, "GIF"), GOOD_MASK),
    "turned by exif, both": (
        "x.png", encode(np.rot90(IMAGE), exif=EXIF), encode(np.rot90(MASK), exif=EXIF),
    ),
    "levels near 127": ("x.png", PNG, encode(np.where(MASK > 0, 128, 127).astype(np.uint8))),
    "rubbish behind the end": ("x.png", PNG + b"rubbish", GOOD_MASK),
    "spaces, accents, signs": ("x é (2) 甲状腺 #1%.png", PNG, GOOD_MASK),
    "several dots": ("x.y.z.png", PNG, GOOD_MASK),
    "a name like a number": ("x1e5.png", PNG, GOOD_MASK),
    "a name of 200 letters": ("x" * 200 + ".png", PNG, GOOD_MASK),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_odd_but_legal_input_is_read_right(small_folder, kind):
    name, image, mask = ACCEPTED[kind]
    put(small_folder, name, image, mask)
    built = build(small_folder)
    assert len(built.quarantine) == 0
    assert built.index["case_id"].tolist() == [*GOOD, name.rpartition(".")[0]]
    np.testing.assert_array_equal(built.images[-1], frames.fit_image(IMAGE, 16, "square"))
    np.testing.assert_array_equal(built.reference(6), MASK > 0)


def test_cmyk_is_read_nearly_right(small_folder):
    put(small_folder, "x.tif", encode(colour(IMAGE), "TIFF", mode="CMYK"), GOOD_MASK)
    built = build(small_folder)
    expected = frames.fit_image(IMAGE, 16, "square")
    np.testing.assert_allclose(built.images[-1].astype(int), expected, atol=1)


@pytest.mark.filterwarnings("ignore:images/. passed over", "ignore:masks/. passed over")
def test_other_files_are_passed_over(small_folder):
    (small_folder / "images" / "Thumbs.db").write_bytes(b"x")
    (small_folder / "images" / ".hidden.png").write_bytes(b"x")
    (small_folder / "images" / "._a00.png").write_bytes(b"x")
    (small_folder / "masks" / "notes.txt").write_bytes(b"x")
    (small_folder / "images" / "more").mkdir()
    built = build(small_folder)
    assert (len(built), len(built.quarantine)) == (6, 0)


# --- faults of a whole folder or table: one sentence that names it and says what to do


def remove(path):
    for file in path.iterdir():
        file.unlink()


def no_folder(path):
    path.rename(path.with_name("gone"))


def is_a_file(path):
    path.rename(path.with_name("gone"))
    path.write_text("x")


def no_images(path):
    (path / "images").rename(path / "pictures")


def no_masks(path):
    (path / "masks").rename(path / "labels")


def empty_images(path):
    remove(path / "images")


def empty_masks(path):
    remove(path / "masks")


def images_is_a_file(path):
    remove(path / "images")
    (path / "images").rmdir()
    (path / "images").write_text("x")


def one_folder(path):
    remove(path / "masks")
    (path / "masks").rmdir()
    (path / "masks").symlink_to(path / "images")


def no_name_in_common(path):
    for file in (path / "masks").iterdir():
        file.rename(file.with_name(f"{file.stem}_mask.png"))


def dicom_only(path):
    for file in (path / "images").iterdir():
        file.rename(file.with_suffix(".dcm"))


def groups(text):
    def write(path):
        (path / "groups.csv").write_bytes(text.encode("utf-8") if isinstance(text, str) else text)

    return write


def groups_is_a_folder(path):
    (path / "groups.csv").unlink()
    (path / "groups.csv").mkdir()


def all_masks_empty(path):
    for file in (path / "masks").iterdir():
        file.write_bytes(encode(MASK * 0))


FOLDER_FAULTS = {
    "no folder": (no_folder, "no folder at .*: give one that holds images/ and masks/"),
    "a file, not a folder": (is_a_file, "no folder at"),
    "no images folder": (
        no_images, "must hold the folders images/ and masks/, it holds .*pictures",
    ),
    "no masks folder": (no_masks, "must hold the folders .* it holds .*labels"),
    "images empty": (empty_images, "no image file .* in .*images: it holds nothing"),
    "masks empty": (empty_masks, "no image file .* in .*masks: it holds nothing"),
    "images is a file": (images_is_a_file, "images is no folder: give"),
    "images and masks are one": (one_folder, "images and masks are one folder"),
    "no name in common": (
        no_name_in_common,
        "images/ begins with 'a00.png', masks/ with 'a00_mask.png'; name each mask as its image",
    ),
    "files of another type": (dicom_only, r"no image file \(.png .jpg .*it holds a00.dcm"),
    "groups.csv empty": (groups(""), "groups.csv is no CSV file"),
    "groups.csv is a folder": (groups_is_a_folder, "groups.csv is no CSV file"),
    "groups.csv in utf-16": (
        groups("case_id,group\na00,é".encode("utf-16")), "groups.csv is no CSV file in UTF-8",
    ),
    "groups.csv of binary": (groups(bytes(range(256))), "groups.csv is no CSV|groups.csv lacks"),
    "groups.csv without group": (
        groups("case_id,patient\na00,1\n"), "lacks group: its columns are case_id, patient; needed",
    ),
    "groups.csv without case_id": (groups("file,group\na00,1\n"), "lacks case_id"),
    "groups.csv with semicolons": (groups("case_id;group\na00;1\n"), "separated by a comma"),
    "groups.csv without a header": (groups("a00,a\na01,a\n"), "lacks case_id and group"),
    "groups.csv names a case twice": (
        groups("case_id,group\na00,1\na01,1\na00,2\n"), "names 'a00' more than once, keep one line",
    ),
    "groups.csv with endings": (
        groups("case_id,group\na00.png,1\n"), "names no image that is there.* without its ending",
    ),
    "groups.csv with no lines": (groups("case_id,group\n"), "names no image that is there"),
    "not one usable case": (
        all_masks_empty, "no case can be used, of 6: 6 empty mask; the first: a00",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_bad_folder_is_one_clear_sentence(small_folder, fault):
    damage, message = FOLDER_FAULTS[fault]
    damage(small_folder)
    with pytest.raises(ValueError, match=message) as error:
        build(small_folder)
    assert "\n" not in str(error.value)
    assert type(error.value) is ValueError
    assert not (small_folder / "store" / "store.json").exists()


def test_there_are_enough_kinds():
    assert len(QUARANTINED) + len(FOLDER_FAULTS) >= 40

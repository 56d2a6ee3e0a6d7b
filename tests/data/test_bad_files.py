"""Bad pictures, pairs and folders: tables of faults for every reader, and short fuzz tests.

A fault ends in one row of the quarantine or in one sentence, which names the file, says what was
found and what to do. A file that is accepted is read right.
"""

import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import attempt, damaged, limited
from PIL import Image

from thyroid_lib.data import frames
from thyroid_lib.data.cases import make_table, name_key
from thyroid_lib.data.groups import assign_groups
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged files
HEIGHT, WIDTH = 191, 265
y, x = np.mgrid[:HEIGHT, :WIDTH]
noise = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH))
IMAGE = (120 + 80 * np.sin(x / 15) * np.cos(y / 12) + noise).clip(0, 255).astype(np.uint8)
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[60:120, 60:160] = 255
TURNED = Image.Exif()
TURNED[0x0112] = 6  # shown turned clockwise


def encode(array, form="PNG", mode=None, **options) -> bytes:
    image = Image.fromarray(np.asarray(array))
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def colour(array) -> np.ndarray:
    return np.dstack([array] * 3)


def several(form: str) -> bytes:
    more = [Image.fromarray(MASK), Image.fromarray(255 - MASK)]
    return encode(IMAGE, form, save_all=True, append_images=more)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def bombs() -> dict[str, bytes]:
    """Small files that would unpack, or be worked on, without end."""
    wide = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    bmp, jpeg, gif = bytearray(BMP), bytearray(JPEG), encode(IMAGE[:9, :9], "GIF")
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    return {
        "png header": PNG[:8] + wide + PNG[33:],
        "png text": PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 1)) + PNG[33:],
        "bmp header": bytes(bmp),
        "jpeg header": bytes(jpeg),
        "gif header": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
    }


PNG, JPEG = encode(IMAGE), encode(IMAGE, "JPEG")
BMP, TIFF = encode(IMAGE, "BMP"), encode(IMAGE, "TIFF", compression="tiff_lzw")
DEEP = (PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(2 * (1 + 3 * 6)))) + chunk(b"IEND", b""))  # fmt: skip
# kind: (bytes, or what makes a file system entry at a path; words of the message)
BAD_PICTURES = {
    "no bytes": (b"", "is empty (0 bytes), copy it again"),
    "jpeg cut in the middle": (JPEG[:3000], "is damaged (image file is truncated"),
    "jpeg with a flipped first byte": (flipped(JPEG, 0), "is no PNG, JPEG, BMP or TIFF"),
    "png without its end": (PNG[:-12], "is damaged"),
    "png with a flipped byte": (flipped(PNG, 900), "is damaged"),
    "bmp cut": (BMP[:-100], "is damaged"),
    "html": (b"<!doctype html><title>quota</title>", "is no PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 40\n", "is no PNG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "convert it to one"),
    "animated gif": (several("GIF"), "holds 3 pictures, save the one that is meant"),
    "tiff of three pages": (several("TIFF"), "holds 3 pictures"),
    "32 bits": (encode(IMAGE.astype(np.int32) * 1000, "TIFF"), "32-bit gray levels"),
    "floating point": (encode(IMAGE / np.float32(255), "TIFF"), "floating-point gray levels"),
    "colours of 16 bits": (DEEP, "has colours of 16 bits, save gray levels or colours of 8"),
    **{f"bomb: {name}": (content, "") for name, content in bombs().items()},
    "a folder": (lambda path: path.mkdir(), "is no file, give a PNG"),
    "a broken link": (lambda path: path.symlink_to("nowhere.png"), "is no file"),
}


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content(path) if callable(content) else path.write_bytes(content)
    return path


def check_message(said: str, name: str, words: str = "") -> None:
    assert said.startswith(repr(name)), said
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_refused(tmp_path, kind):
    content, words = BAD_PICTURES[kind]
    with limited(), pytest.raises(ValueError, match="x y") as error:
        frames.read_gray(put(tmp_path / "x y.png", content))
    check_message(str(error.value), "x y.png", words)


def test_a_picture_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, mode):  # root may read all, so rights alone would not show it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(frames, "open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"'x' cannot be opened \(Permission .*check its p"):
        frames.read_gray(put(tmp_path / "x", PNG))


GOOD = encode(MASK)
# name of the image: (image, mask, reason, words); None is no file; without a reason both are read
# as IMAGE and MASK
PAIRS = {
    "image cut.png": (PNG[:-12], GOOD, "unreadable image", "'image cut.png' is damaged"),
    "mask empty.png": (PNG, b"", "unreadable mask", "'mask empty.png' is empty (0 bytes)"),
    "other size.png": (PNG, encode(MASK[:, 1:]), "size mismatch", "and 191 x 264 (height"),
    "image turned.png": (
        encode(IMAGE, exif=TURNED), GOOD, "size mismatch", "265 x 191 and 191 x 265",
    ),
    "no image.png": (None, GOOD, "missing image", "add the image under the mask's"),
    "no mask.png": (PNG, None, "missing mask", "add the mask under the image's name"),
    "empty.png": (PNG, encode(MASK * 0), "empty mask", "no pixel has a level above 127"),
    "text alone.png": (
        PNG, encode(np.pad(MASK[60:63, 60:63], ((0, 188), (0, 262)))), "empty mask",
        "nothing is left of it after mending: 9 px of text",
    ),
    "full.png": (PNG, encode(MASK * 0 + 255), "full mask", "every pixel has a level above"),
    "inverted.png": (PNG, encode(255 - MASK), "inverted mask", "whole border has a level"),
    "x\ny.png": (PNG, GOOD, "unusable name", "rename it"),
    os.fsdecode(b"x\xff.png"): (PNG, GOOD, "unusable name", "no text"),
    "twin.png": (PNG, GOOD, "duplicate name", "2 files have this name, keep one"),
    "twin.jpg": (PNG, None, "duplicate name", "2 files have this name, keep one"),
    "Case.png": (PNG, GOOD, "duplicate name", "2 files have this name"),
    "case.png": (PNG, None, "duplicate name", "2 files have this name"),
    "\u00e9.png": (PNG, GOOD, "duplicate name", "2 files have this name"),
    "e\u0301.png": (PNG, None, "duplicate name", "2 files have this name"),
    "stranger.png": (PNG, GOOD, "no group", "name it in groups.csv"),
    "rgba.png": (encode(colour(IMAGE), mode="RGBA"), encode(MASK, mode="P"), "", ""),
    "one bit.bmp": (BMP, encode(MASK > 0), "", ""),
    "gif named.jpg": (encode(IMAGE, "GIF"), GOOD, "", ""),
    "turned.png": (
        encode(np.rot90(IMAGE), exif=TURNED), encode(np.rot90(MASK), exif=TURNED), "", "",
    ),
    "x é (2).y 甲状腺 #1%,;'=.png": (PNG, GOOD, "", ""),
    "1e5.png": (PNG, GOOD, "", ""),
}  # fmt: skip


def test_each_bad_pair_is_set_aside_and_odd_ones_are_read_right(tmp_path):
    expected, good, lines = {}, [], ["case_id,group"]
    for name, (image, mask, reason, words) in PAIRS.items():
        stem = name.rpartition(".")[0]
        if (tmp_path / "images" / name).exists():  # a disk that does not tell them apart
            continue
        for part, file, content in (("images", name, image), ("masks", f"{stem}.png", mask)):
            if content is not None:
                put(tmp_path / part / file, content)
        if reason:
            expected[repr(name)[1:-1]] = reason, words
        else:
            good.append(stem)
        if "name" not in reason and stem != "stranger":
            lines.append(f'"{stem}",g')
    (tmp_path / "groups.csv").write_text("\n".join(lines), "utf-8")
    for other in ("images/Thumbs.db", "images/.hidden.png", "masks/notes.txt"):
        put(tmp_path / other, b"x")
    with limited():
        built = build_store(look(tmp_path).cases, tmp_path / "store", size=16)
    rows = {row.file: row for row in built.quarantine.itertuples()}
    assert rows.keys() == expected.keys()
    for file, (reason, words) in expected.items():
        assert rows[file].reason == reason, file
        assert words in rows[file].detail
        assert len(rows[file].detail.splitlines()) == 1
    assert sorted(built.index["case_id"]) == sorted(good)
    square = frames.fit_image(IMAGE, 16, "square")
    for row in range(len(built)):
        np.testing.assert_array_equal(built.images[row], square)
        np.testing.assert_array_equal(built.reference(row), MASK > 0)


BAD_FOLDERS = {  # kind: (path, content, words); no content removes it
    "no folder": (".", None, "no folder at .*: give one that holds images and masks"),
    "nothing": (".", Path.mkdir, r"no image file \(.png .jpg .*: it holds nothing"),
    "no usable case": ("images/*", PNG, "no case can be used, of 6: 6 size mismatch; .*: a00"),
}  # fmt: skip
BAD_GROUPS = {
    "empty": ("", r"first line of groups.csv is \[\]: need two or"),
    "a folder": (Path.mkdir, "groups.csv is no table in CSV"),
    "a case twice": ("case_id,group\na00,1\na00,2\n", "names 'a00' twice, with '1' and '2': keep"),
    "no lines": ("case_id,group\n", "names no image that is there"),
    "a comma too many": ("case_id,group\na00,S, J\n", "groups.csv, line 'a00,S,J': too many"),
    "a quote too many": ('case_id,group\na00,"1\nb00,2"\n', r"'a00,1\\nb00,2': it holds a"),
    "a quote without end": ('case_id,group\n"a00,1\n', "no table .*unexpected end of data"),
}  # fmt: skip
BAD_FOLDERS |= {f"groups: {kind}": ("groups.csv", *each) for kind, each in BAD_GROUPS.items()}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_one_clear_sentence(small_folder, tmp_path, kind):
    pattern, content, words = BAD_FOLDERS[kind]
    for path in list(small_folder.glob(pattern)) if "*" in pattern else [small_folder / pattern]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is not None:
            put(path, content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=words) as error:
        build_store(look(small_folder).cases, tmp_path / "store", size=16)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "store" / "store.json").exists()


SMALL = IMAGE[:23, :37]
PICTURES = {
    **{f"png {mode}": encode(SMALL, mode=mode) for mode in ("L", "1", "P", "LA", "RGB", "RGBA")},
    "png 16 bits": encode(SMALL * np.uint16(257)),
    "png turned": encode(SMALL, exif=TURNED),
    "jpeg": encode(SMALL, "JPEG", exif=TURNED),
    "jpeg cmyk": encode(colour(SMALL), "JPEG", mode="CMYK"),
    "jpeg progressive": encode(SMALL, "JPEG", progressive=True),
    "bmp": encode(SMALL, "BMP"), "gif": encode(SMALL, "GIF"),
    "tiff 16 bits": encode(SMALL * np.uint16(257), "TIFF"),
    **{f"tiff {how}": encode(SMALL, "TIFF", compression=how) for how in (None, "tiff_lzw", "jpeg")},
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_picture_is_refused_or_read_right(tmp_path, counts, name):
    sound = frames.read_gray(put(tmp_path / "x y.img", PICTURES[name]))
    for how, content in damaged(len(name), PICTURES[name], 6):
        path = put(tmp_path / "x y.img", content)
        gray, said = attempt(counts, frames.read_gray, path)
        if said is not None:
            check_message(said, "x y.img")
            continue
        assert (gray.dtype, gray.ndim) == (np.uint8, 2), how
        # only a PNG has checksums; what any picture lacks is found
        if name.startswith("png") or how in ("cut", "rubbish behind"):
            np.testing.assert_array_equal(gray, sound, err_msg=how)


def test_a_damaged_groups_csv_moves_no_other_line(tmp_path, counts):
    names = [f"p{number:02d}" for number in range(12)]
    cases = make_table([(name, str(tmp_path / f"{name}.png"), "", "", "d") for name in names])
    sound = [f"sweep {i // 3}, left" for i in range(12)]
    lines = (f'{name},"{group}"\n' for name, group in zip(names, sound, strict=True))
    for how, broken in damaged(7, "".join(["case_id,group\n", *lines]).encode(), 20):
        path = put(tmp_path / "groups.csv", broken)
        found, said = attempt(counts, lambda path=path: assign_groups(cases, tmp_path, [path]))
        if said is not None:
            assert "groups.csv" in said
        elif how in ("cut", "flip"):  # one line, or two that it joins, may be other ones
            got = zip(map(name_key, found[0]), sound, strict=True)
            assert sum(one not in (other, "") for one, other in got) <= 2, how

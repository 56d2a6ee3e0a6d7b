"""Fuzz: thousands of damaged files, each refused in one sentence or read right.

Every draw comes from a fixed seed; `conftest` prints the counts at the end of the session. A file
that is accepted must be right, which is: as an untouched one is decoded, where that can be told
(PNG, zip, a store: checksums; any picture that is cut short); else of the size that its own header
says. A bit that flips in a JPEG, BMP or TIFF may go unseen: they hold no checksum.
"""

import io
import json
import os
import shutil
import signal
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzzing import attempt, limited
from PIL import Image

from thyroid_lib.data import folder, frames, tg3k
from thyroid_lib.data.cases import REASONS, name_key
from thyroid_lib.data.store import FILES, build_store, open_store

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that ends a hang"),
    pytest.mark.filterwarnings("ignore"),  # Pillow's own, of what it meets in damaged files
]

FILES_OF = {  # the tests take their numbers from here
    "damaged pictures": 1350, "raw bits": 80, "known pictures": 300, "rotated": 24, "bombs": 11,
    "pairs in folders": 480, "zips": 240, "groups": 250, "splits": 120, "stores": 180,
}  # fmt: skip


def is_sentence(said: str, about: str) -> bool:
    """Whether a refusal is one line, names its file and says a few words."""
    return len(said.splitlines()) == 1 and about in said and len(said.split()) > 4


# --- damage


def flip(rng, content):
    place = int(rng.integers(len(content)))
    return (
        content[:place] + bytes([content[place] ^ 1 << int(rng.integers(8))]) + content[place + 1 :]
    )


def flip_in_header(rng, content):
    return flip(rng, content[:64]) + content[64:]


def flip_many(rng, content):
    for _ in range(int(rng.integers(2, 20))):
        content = flip(rng, content)
    return content


def cut(rng, content):
    return content[: int(rng.integers(len(content)))]


def cut_end(rng, content):
    return content[: -int(rng.integers(1, 16))]


def _slice(rng, content):
    start = int(rng.integers(len(content)))
    return start, start + int(rng.integers(1, 200))


def blank(rng, content):
    start, end = _slice(rng, content)
    return content[:start] + bytes(len(content[start:end])) + content[end:]


def drop(rng, content):
    start, end = _slice(rng, content)
    return content[:start] + content[end:]


def repeat(rng, content):
    start, end = _slice(rng, content)
    return content[:end] + content[start:]


def insert(rng, content):
    start, _ = _slice(rng, content)
    return content[:start] + rng.bytes(int(rng.integers(1, 50))) + content[start:]


def rubbish_behind(rng, content):
    return content + rng.bytes(int(rng.integers(1, 500)))


CUTS = (cut, cut_end)
DAMAGE = (
    flip, flip_in_header, flip_many, *CUTS, blank, drop, repeat, insert, rubbish_behind,
)  # fmt: skip


# --- pictures


def encode(array, form="PNG", mode=None, **options) -> bytes:
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def picture(rng, height=23, width=37):
    """Smooth, with a little noise: a JPEG of it is no larger than it is."""
    y, x = np.mgrid[:height, :width]
    wave = 120 + 90 * np.sin(x / 5 + rng.uniform(0, 6)) * np.cos(y / 4 + rng.uniform(0, 6))
    return (wave + rng.normal(0, 4, wave.shape)).clip(0, 255).astype(np.uint8)


GRAY = picture(np.random.default_rng(0))
TURNED = Image.Exif()
TURNED[0x0112] = 6
PICTURES = {
    "png": encode(GRAY),
    "png 1 bit": encode(GRAY > 127),
    "png palette": encode(GRAY, mode="P"),
    "png rgb": encode(np.dstack([GRAY] * 3)),
    "png rgba": encode(np.dstack([GRAY] * 4)),
    "png gray alpha": encode(GRAY, mode="LA"),
    "png 16 bits": encode(GRAY.astype(np.uint16) * 257),
    "png turned": encode(GRAY, exif=TURNED),
    "png with text": encode(GRAY, dpi=(96, 96), icc_profile=b"profile" * 20),
    "png of one pixel": encode(GRAY[:1, :1]),
    "jpeg": encode(GRAY, "JPEG"),
    "jpeg rgb": encode(np.dstack([GRAY] * 3), "JPEG"),
    "jpeg cmyk": encode(np.dstack([GRAY] * 3), "JPEG", mode="CMYK"),
    "jpeg progressive": encode(GRAY, "JPEG", progressive=True),
    "jpeg turned": encode(GRAY, "JPEG", exif=TURNED),
    "jpeg of one pixel": encode(GRAY[:1, :1], "JPEG"),
    "bmp": encode(GRAY, "BMP"),
    "bmp rgb": encode(np.dstack([GRAY] * 3), "BMP"),
    "gif": encode(GRAY, "GIF"),
    "tiff": encode(GRAY, "TIFF"),
    "tiff rgb": encode(np.dstack([GRAY] * 3), "TIFF"),
    "tiff cmyk": encode(np.dstack([GRAY] * 3), "TIFF", mode="CMYK"),
    "tiff 16 bits": encode(GRAY.astype(np.uint16) * 257, "TIFF"),
    "tiff lzw": encode(GRAY, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encode(GRAY, "TIFF", compression="tiff_deflate"),
    "tiff packbits": encode(GRAY, "TIFF", compression="packbits"),
    "tiff jpeg": encode(GRAY, "TIFF", compression="jpeg"),
}
RAW = {"bmp": 1, "tiff": 1}  # whose pixels lie in the file as they are, so many bytes each


def header_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) as a JPEG's or BMP's own header says it; None for other formats."""
    if content[:2] == b"BM":
        width, height = struct.unpack_from("<ii", content, 18)
        return abs(height), width
    place = 2
    while content[:2] == b"\xff\xd8" and place + 9 < len(content):
        if content[place] != 0xFF or content[place + 1] in (0, 0xFF):
            place += 1
            continue
        if 0xC0 <= content[place + 1] <= 0xCF and content[place + 1] not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", content, place + 5)
        place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    return None


def test_a_damaged_picture_is_refused_or_read_right(tmp_path, counts):
    rng = np.random.default_rng(1)
    sound = {}
    for name, content in PICTURES.items():
        (tmp_path / "x y.img").write_bytes(content)
        sound[name] = frames.read_gray(tmp_path / "x y.img")
    names = list(PICTURES)
    for number in range(FILES_OF["damaged pictures"]):
        name = names[number % len(names)]
        how = DAMAGE[number // len(names) % len(DAMAGE)]
        content = how(rng, PICTURES[name])
        (tmp_path / "x y.img").write_bytes(content)
        gray, said = attempt(counts, "files", frames.read_gray, tmp_path / "x y.img")
        what = f"{name}, {how.__name__}, number {number}"
        if said is not None:
            assert is_sentence(said, "'x y.img' "), (what, said)
            assert content != PICTURES[name], what
            continue
        assert gray.dtype == np.uint8, what
        assert gray.ndim == 2, what
        assert 0 < gray.size <= frames.MAX_PIXELS, what
        if name.startswith("png") or how in (*CUTS, rubbish_behind):
            np.testing.assert_array_equal(gray, sound[name], err_msg=what)
        size = header_size(content)
        if size and content[:2] == b"BM":
            assert gray.shape == size, what
        elif size:
            assert gray.shape in (size, size[::-1]), what  # turned, perhaps


@pytest.mark.parametrize("name", RAW)
def test_one_bit_of_a_raw_picture_is_one_pixel(tmp_path, counts, name):
    content = PICTURES[name]
    start = len(content) - (-(-GRAY.shape[1] // 4) * 4 if name == "bmp" else GRAY.shape[1]) * 10
    rng = np.random.default_rng(2)
    for place in rng.integers(start, len(content), FILES_OF["raw bits"] // len(RAW)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "x").write_bytes(damaged)
        gray, said = attempt(counts, "files", frames.read_gray, tmp_path / "x")
        assert said is None
        assert (gray != GRAY).sum() <= 1


# kind of PNG: colour type, bits a sample, samples a pixel
PNG_KINDS = [
    *((0, bits, 1) for bits in (1, 2, 4, 8, 16)), *((3, bits, 1) for bits in (1, 2, 4, 8)),
    (2, 8, 3), (2, 16, 3), (4, 8, 2), (4, 16, 2), (6, 8, 4), (6, 16, 4),
]  # fmt: skip


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(samples, kind, bits, more=b"", *, interlaced=False) -> bytes:
    """A PNG of samples (H,W,C), without any help of Pillow; `more` are chunks before the data."""
    height, width, _ = samples.shape
    steps = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row, first column, and how far it is to the next
        steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                 (0, 1, 2, 2), (1, 0, 2, 1)]  # fmt: skip
    lines = b""
    for row, column, down, right in steps:
        part = samples[row::down, column::right]
        for line in part if part.size else ():
            text = "".join(f"{value:0{bits}b}" for value in line.ravel())
            text += "0" * (-len(text) % 8)
            lines += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, int(interlaced))
    data = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data


def draw_png(rng, number):
    """A PNG of any kind, and the gray levels (H,W) that it must be read as, to within 1."""
    kind, bits, channels = PNG_KINDS[number % len(PNG_KINDS)]
    height, width = (int(side) for side in rng.integers(1, 20, 2))
    most = 2**bits - 1
    samples = rng.integers(0, most + 1, (height, width, channels))
    more, alpha = b"", np.ones((height, width))
    if kind == 3:
        palette = rng.integers(0, 256, (most + 1, 3))
        more = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if number % 2:
            clear = rng.integers(0, 256, most + 1)
            more += chunk(b"tRNS", clear.astype(np.uint8).tobytes())
            alpha = clear[samples[..., 0]] / 255
        colour = palette[samples[..., 0]] / 255
    else:
        colour = samples / most
        if kind in (4, 6):
            alpha, colour = colour[..., -1], colour[..., :-1]
        elif number % 2 and (kind, bits) != (2, 16):  # that one is refused
            clear = samples[0, 0]
            more = chunk(b"tRNS", struct.pack(f">{channels}H", *clear))
            alpha = (samples != clear).any(axis=2)
    luma = colour @ [0.299, 0.587, 0.114] if colour.shape[2] == 3 else colour[..., 0]
    return png(samples, kind, bits, more, interlaced=bool(number // 2 % 2)), 255 * luma * alpha


def test_pictures_of_every_kind_have_the_gray_levels_that_they_hold(tmp_path, counts):
    rng = np.random.default_rng(3)
    for number in range(FILES_OF["known pictures"]):
        content, gray = draw_png(rng, number)
        (tmp_path / "x.png").write_bytes(content)
        read, said = attempt(counts, "files", frames.read_gray, tmp_path / "x.png")
        assert said is None, (number, said)
        np.testing.assert_allclose(read, gray, atol=1.6, err_msg=str(number))
        mask = frames.read_mask(tmp_path / "x.png")
        np.testing.assert_array_equal(mask, read > 127)
        clear = np.abs(gray - 127.5) > 2
        np.testing.assert_array_equal(mask[clear], (gray > 127)[clear])


TURNS = {  # EXIF orientation: how the stored picture is turned to be seen upright
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a),
}  # fmt: skip


def test_every_rotation_is_applied_in_every_format(tmp_path, counts):
    assert len(TURNS) * 3 == FILES_OF["rotated"]
    for form, tolerance in (("PNG", 0), ("TIFF", 0), ("JPEG", 12)):
        for turn, upright in TURNS.items():
            exif = Image.Exif()
            exif[0x0112] = turn
            (tmp_path / "x").write_bytes(encode(GRAY, form, exif=exif))
            gray, said = attempt(counts, "files", frames.read_gray, tmp_path / "x")
            assert said is None
            np.testing.assert_allclose(gray.astype(int), upright(GRAY), atol=tolerance)


def bombs():
    """Small files that would unpack, or be worked on, without end."""
    wide = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    yield "png header", PICTURES["png"][:8] + chunk(b"IHDR", wide) + PICTURES["png"][33:]
    black = io.BytesIO()
    Image.new("1", (9000, 9000)).save(black, "PNG")
    yield "png of black", black.getvalue()
    long = zlib.compress(bytes(100_000_000), 1)
    start, end = PICTURES["png"][:33], PICTURES["png"][33:]
    yield "png text", start + chunk(b"zTXt", b"a\0\0" + long) + end
    yield "png profile", start + chunk(b"iCCP", b"a\0\0" + long) + end
    yield "png data", start + chunk(b"IDAT", long) + chunk(b"IEND", b"")
    bmp = bytearray(PICTURES["bmp"])
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    yield "bmp header", bytes(bmp)
    jpeg = bytearray(PICTURES["jpeg"])
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 65_000, 65_000)
    yield "jpeg header", bytes(jpeg)
    scans = io.BytesIO()
    Image.new("L", (4000, 4000)).save(scans, "JPEG", progressive=True)
    *first, last = scans.getvalue().split(b"\xff\xda")
    yield "jpeg scans", b"\xff\xda".join([*first, *[last[:-2]] * 20_000, last])
    gif = PICTURES["gif"]
    place = gif.index(b",")
    yield "gif frames", gif[:place] + gif[place:-1] * 20_000 + b";"
    yield "gif header", gif[:6] + b"\xff\xff\xff\xff" + gif[10:place] + gif[place:]
    tiff = bytearray(PICTURES["tiff"])
    offset = struct.unpack_from("<I", tiff, 4)[0]
    count = struct.unpack_from("<H", tiff, offset)[0]
    after = offset + 2 + 12 * count
    tiff[after : after + 4] = struct.pack("<I", offset)  # the next picture is this one
    yield "tiff loop", bytes(tiff)


def test_bombs_neither_hang_nor_unpack(tmp_path, counts):
    made = dict(bombs())
    assert len(made) == FILES_OF["bombs"]
    for name, content in made.items():
        (tmp_path / "x").write_bytes(content)
        gray, said = attempt(counts, "files", frames.read_gray, tmp_path / "x")
        if said is None:  # what is too long stands beside the picture
            assert name in ("png data", "tiff loop", "png text", "png profile"), name
            assert gray.shape == GRAY.shape
        else:
            assert is_sentence(said, "'x' "), (name, said)


# --- folders


MASK = np.zeros((23, 37), np.uint8)
MASK[6:16, 8:30] = 255
# what a mask may be: the reason for which it is set aside, or None
MASKS = {
    "good": (encode(MASK), None),
    "16 bits": (encode(MASK.astype(np.uint16) * 257), None),
    "jpeg": (encode(MASK, "JPEG", quality=95), None),
    "one bit": (encode(MASK > 0), None),
    "palette": (encode(MASK, mode="P"), None),
    "several grays": (encode(np.where(MASK > 0, 128 + GRAY // 2, GRAY // 3)), None),
    "empty": (encode(MASK * 0), "empty mask"),
    "0 and 1": (encode(MASK // 255), "empty mask"),
    "full": (encode(MASK * 0 + 200), "full mask"),
    "inverted": (encode(255 - MASK), "inverted mask"),
    "smaller": (encode(MASK[1:]), "size mismatch"),
    "turned": (encode(MASK.T), "size mismatch"),
    "nothing": (b"", "unreadable mask"),
    "text": (b"no picture", "unreadable mask"),
}


def odd_stem(rng, number):
    """A name, and whether it is of no use as a name; the number keeps names apart."""
    letters = [
        "a b",
        "ä",
        "甲状腺",
        "x.y",
        "#%1&",
        "'\"",
        "=cmd",
        "-x",
        "1e5",
        "\u200b",
        "😀",
        "é,;",
    ]
    stem = f"{letters[int(rng.integers(len(letters)))]}{number:03d}"
    if number % 17 == 0:
        return stem + "\n" + "x", True
    if number % 19 == 0:
        return os.fsdecode(stem.encode() + b"\xff"), True
    return stem, False


def draw_pair(rng, number, path):
    """Put a pair into images/ and masks/; return its stem, and what may become of it.

    That is a set of reasons, with None in it for a case that may be stored.
    """
    stem, unusable = odd_stem(rng, number)
    image, mask = path / "images" / f"{stem}.png", path / "masks" / f"{stem}.png"
    content, reason = MASKS[list(MASKS)[number // 2 % len(MASKS)] if number % 2 else "good"]
    mask.write_bytes(content)
    image.write_bytes(PICTURES["png"])
    may = {reason}
    event = int(rng.integers(12))
    if event == 0:
        image.unlink()
        may = {"missing image"}
    elif event == 1:
        mask.unlink()
        may = {"missing mask"}
    elif event in (2, 3, 4):
        image.unlink()
        if event == 2:
            image.symlink_to(image.name)  # a link to itself
        elif event == 3:
            image.mkdir()
        else:
            os.mkfifo(image)  # to open it would wait forever
        may = {"unreadable image"}
    elif event in (5, 6):
        image.write_bytes(DAMAGE[number % len(DAMAGE)](rng, PICTURES["png"]))
        may = {"unreadable image", reason}  # rubbish behind the end does no harm
    return stem, {"unusable name"} if unusable else may


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("seed", range(4))
def test_each_pair_of_a_folder_is_stored_right_or_set_aside_with_a_reason(tmp_path, counts, seed):
    rng = np.random.default_rng([4, seed])
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    expected = dict(
        draw_pair(rng, number, tmp_path) for number in range(FILES_OF["pairs in folders"] // 4)
    )
    # the same name in another letter case, in another form of its accents, of another type
    for name, other in (("Twin.png", "twin.png"), ("é.png", "e\u0301.png"), ("w.png", "w.jpg")):
        for part, content in (("images", PICTURES["png"]), ("masks", MASKS["good"][0])):
            (tmp_path / part / name).write_bytes(content)
        (tmp_path / "images" / other).write_bytes(PICTURES["png"])
    there = {f"{part}/{n}" for part in ("images", "masks") for n in os.listdir(tmp_path / part)}
    with limited():
        cases = folder.cases_in(tmp_path)
        built = build_store(cases, tmp_path / "store", size=16, workers=1)
    paths = filter(None, [*cases["image_path"], *cases["mask_path"]])
    assert {os.path.relpath(path, tmp_path) for path in paths} == there  # nothing is passed over
    assert len(cases) == len(built.index) + len(built.quarantine)
    counts["files accepted"] += len(built.index)
    counts["files refused"] += len(built.quarantine)
    assert set(built.quarantine["reason"]) <= set(REASONS)
    assert all(len(detail.splitlines()) == 1 for detail in built.quarantine["detail"])
    keys = Counter(name_key(Path(file).stem) for file in there if file.startswith("images"))
    reasons = Counter(built.quarantine["reason"])
    assert reasons["duplicate name"] == sum(count for count in keys.values() if count > 1)
    assert reasons["unusable name"] == sum(may == {"unusable name"} for may in expected.values())
    stored = dict(zip(built.index["case_id"], range(len(built)), strict=True))
    set_aside = dict(zip(built.quarantine["case_id"], built.quarantine["reason"], strict=True))
    gray = frames.fit_image(GRAY, 16, "square")
    for stem, may in expected.items():
        if may == {"unusable name"}:
            continue  # counted above: the quarantine spells it otherwise
        assert (None if stem in stored else set_aside.get(stem, "lost")) in may, stem
        if stem in stored:
            np.testing.assert_array_equal(built.images[stored[stem]], gray)
            np.testing.assert_array_equal(built.reference(stored[stem]), MASK > 0)


# --- tables and archives


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A small TG3K: two frames with masks and the split."""
    path = tmp_path_factory.mktemp("release") / "tg3k"
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (path / part).mkdir(parents=True)
        for frame in ("0000", "0001"):
            shape = tg3k.RUNS[0].height, tg3k.RUNS[0].width
            (path / part / f"{frame}.jpg").write_bytes(encode(np.zeros(shape, np.uint8), "JPEG"))
    split = {"train": list(range(3226)), "val": list(range(3226, 3585))}
    (path / tg3k.SPLIT).write_text(json.dumps(split))
    return path


EVIL = (
    "../out/thyroid-image/0002.jpg", "/thyroid-image/0002.jpg", "C:\\thyroid-image\\0002.jpg",
    "..\\thyroid-image\\0002.jpg", "tg3k/../../thyroid-image/0002.jpg", "//x/thyroid-mask/0.jpg",
    "tg3k/thyroid-image/../../../x", "tg3k/thyroid-image/0001.JPG", "tg3k/./thyroid-image/0001.jpg",
)  # fmt: skip


def draw_zip(rng, number, release, path):
    """Write an archive, damaged or evil; return whether it must be refused."""
    method = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)[number % 3]
    evil = number % 4 == 0
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(release.rglob("*.*")):
            archive.write(file, f"tg3k/{file.relative_to(release)}")
        archive.writestr("tg3k/readme.txt", "more")
        if evil and number % 8:
            archive.writestr(EVIL[number // 8 % len(EVIL)], b"evil")
        elif evil:
            link = zipfile.ZipInfo("tg3k/thyroid-image/0002.jpg")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    if not evil:
        how = (*DAMAGE, flip_at_end, flip_at_end)[number % (len(DAMAGE) + 2)]
        path.write_bytes(how(rng, path.read_bytes()))
    return evil


def flip_at_end(rng, content):
    """In the list of contents."""
    return content[:-700] + flip(rng, content[-700:])


def test_a_damaged_or_evil_archive_is_refused_or_unpacked_whole(tmp_path, release, counts):
    rng = np.random.default_rng(5)
    whole = {str(f.relative_to(release)): f.read_bytes() for f in release.rglob("*.*")}
    for number in range(FILES_OF["zips"]):
        home = tmp_path / "a" / "b" / str(number)
        home.mkdir(parents=True)
        evil = draw_zip(rng, number, release, home / "set.zip")
        found, said = attempt(counts, "files", tg3k.locate, home / "set.zip")
        left = {path.name for path in home.iterdir()} - {"set.zip"}
        if said is not None:
            assert is_sentence(said, "set.zip"), (number, said)
            assert not left, (number, said)
        else:
            assert not evil, number
            assert len(left) == 1
            got = {str(f.relative_to(found)): f.read_bytes() for f in found.rglob("*.*")}
            assert got == whole, number
        shutil.rmtree(home)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]  # nothing outside


def test_a_damaged_split_is_refused_or_the_same(tmp_path, release, counts):
    copy_of = tmp_path / "tg3k"
    shutil.copytree(release, copy_of)
    sound, content = tg3k.official_split(copy_of), (copy_of / tg3k.SPLIT).read_bytes()
    rng = np.random.default_rng(6)
    for number in range(FILES_OF["splits"]):
        damaged = DAMAGE[number % len(DAMAGE)](rng, content)
        (copy_of / tg3k.SPLIT).write_bytes(damaged)
        split, said = attempt(counts, "files", tg3k.official_split, copy_of)
        if said is None:
            assert split == sound, number
        else:
            assert is_sentence(said, tg3k.SPLIT), said


GROUP_IDS = [f"p{number:02d}" for number in range(12)]


def test_a_damaged_groups_csv_moves_no_other_line(tmp_path, counts):
    rng = np.random.default_rng(7)
    lines = [
        "case_id,group",
        *(f'{name},"sweep {i // 3}, left"' for i, name in enumerate(GROUP_IDS)),
    ]
    content = ("\n".join(lines) + "\n").encode()
    known = {name_key(name) for name in GROUP_IDS}
    (tmp_path / "groups.csv").write_bytes(content)
    sound = folder._read_groups(tmp_path / "groups.csv", known)
    assert sound["p11"] == "sweep 3, left"
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    for number in range(FILES_OF["groups"]):
        how = (flip, flip, cut, insert, flip_many)[number % 5]
        damaged = how(rng, content)
        (tmp_path / "groups.csv").write_bytes(damaged)
        got, said = attempt(counts, "files", folder._read_groups, tmp_path / "groups.csv", known)
        if said is not None:
            assert is_sentence(said, "groups.csv"), (number, said)
            continue
        assert all(len(f"{name}{group}".splitlines()) <= 1 for name, group in got.items()), number
        if how is flip:
            place = next(i for i, (a, b) in enumerate(zip(content, damaged, strict=True)) if a != b)
            line = int(np.searchsorted(starts, place, side="right")) - 1
            near = {line, line + 1 if content[place] == 10 else line}  # its end joins two lines
            same = [n for i, n in enumerate(GROUP_IDS, 1) if i not in near]
            assert {n: got.get(n) for n in same} == {n: sound[n] for n in same}, (number, line)
        if how is cut:  # what is left of the file is as it was, but for its last line
            full = [n for i, n in enumerate(GROUP_IDS, 1) if starts[i + 1] <= len(damaged)]
            assert {n: got.get(n) for n in full} == {n: sound[n] for n in full}, number


def test_a_damaged_store_is_refused(tmp_path, tiny_store, counts):
    rng = np.random.default_rng(8)
    sound = {name: (tiny_store.folder / name).read_bytes() for name in (*FILES, "store.json")}
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    for number in range(FILES_OF["stores"]):
        name = list(sound)[number % len(sound)]
        how = DAMAGE[number // len(sound) % len(DAMAGE)]
        damaged = how(rng, sound[name])
        (tmp_path / name).write_bytes(damaged)
        opened, said = attempt(counts, "files", lambda: open_store(tmp_path, verify=True))
        (tmp_path / name).write_bytes(sound[name])
        what = f"{name}, {how.__name__}, number {number}"
        if said is not None:
            assert is_sentence(said, str(tmp_path)), (what, said)
            continue
        if name == "store.json":  # spaces between what it says do not count
            damaged, sound_one = json.loads(damaged), json.loads(sound[name])
        else:
            sound_one = sound[name]
        assert damaged == sound_one, what
        np.testing.assert_array_equal(opened.images, tiny_store.images)
        np.testing.assert_array_equal(opened.masks, tiny_store.masks)
        assert opened.index.equals(tiny_store.index), what


def test_there_are_enough():
    assert sum(FILES_OF.values()) >= 2000

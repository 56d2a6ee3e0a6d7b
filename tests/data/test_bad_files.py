"""Bad files: one table of faults for every reader, and short fuzz tests.

A fault ends in one row of the quarantine or in one sentence, which names the file, says what was
found and what to do. A file that is accepted is read right.
"""

import io
import json
import os
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzzing import attempt, limited
from PIL import Image

from thyroid_lib.data import frames, tg3k
from thyroid_lib.data.cases import make_table, name_key
from thyroid_lib.data.groups import assign_groups
from thyroid_lib.data.look import look
from thyroid_lib.data.store import FILES, build_store, open_store
from thyroid_lib.deploy.predictor import read_picture

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's own, of damaged files
HEIGHT, WIDTH = tg3k.SWEEPS["run01"]
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
    "animated webp": (several("WEBP"), "holds 3 pictures"),
    "animated gif": (several("GIF"), "holds 3 pictures, save the one that is meant"),
    "animated png": (several("PNG"), "holds 3 pictures"),
    "tiff of three pages": (several("TIFF"), "holds 3 pictures"),
    "32 bits": (encode(IMAGE.astype(np.int32) * 1000, "TIFF"), "32-bit gray levels"),
    "floating point": (encode(IMAGE / np.float32(255), "TIFF"), "floating-point gray levels"),
    **{f"bomb: {name}": (content, "") for name, content in bombs().items()},
    "a folder": (lambda path: path.mkdir(), "is no file, give a PNG"),
    "a broken link": (lambda path: path.symlink_to("nowhere.png"), "is no file"),
}


def put(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content(path) if callable(content) else path.write_bytes(content)
    return path


def check_message(said: str, name: str, words: str) -> None:
    assert said.startswith(repr(name)), said
    assert words in said
    assert len(said.splitlines()) == 1
    assert len(said.split()) > 4


@pytest.mark.parametrize("read", [frames.read_gray, read_picture])
@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_a_bad_picture_is_refused_by_every_reader_of_one(tmp_path, read, kind):
    content, words = BAD_PICTURES[kind]
    with limited(), pytest.raises(ValueError, match="x y") as error:
        read(put(tmp_path / "x y.png", content))
    check_message(str(error.value), "x y.png", words)


def test_a_picture_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, mode):  # root may read all, so rights alone would not show it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(frames, "open", refuse, raising=False)
    with pytest.raises(
        ValueError, match=r"'x' cannot be opened \(Permission denied\), check its p"
    ):
        frames.read_gray(put(tmp_path / "x", PNG))


@pytest.mark.parametrize("part", ["images", "masks"])
def test_bad_pictures_of_a_source_are_set_aside_and_the_others_stored(tmp_path, part):
    # a whole source may have levels of any depth, and a folder of that name is no file
    other = "32 bits", "floating point", "a folder"
    bad = {kind: each for kind, each in BAD_PICTURES.items() if kind not in other}
    for number, (content, _) in enumerate([(PNG, ""), *bad.values()]):
        for each, good in (("images", PNG), ("masks", encode(MASK))):
            spoiled = number and each == part
            put(tmp_path / each / f"{number:04d}.png", content if spoiled else good)
    with limited():
        built = build_store(look(tmp_path).cases, tmp_path / "store", size=16)
    assert built.index["case_id"].tolist() == ["0000"]
    assert built.quarantine["reason"].unique().tolist() == [f"unreadable {part[:-1]}"]
    rows = built.quarantine.itertuples()
    for row, (_, words) in zip(rows, bad.values(), strict=True):
        check_message(row.detail, row.file, words)


# kind: (image, mask, reason, words); None is no file
BAD_PAIRS = {
    "mask of another size": (PNG, encode(MASK[:, 1:]), "size mismatch", "and 191 x 264 (height"),
    "image turned by exif, mask not": (
        encode(IMAGE, exif=TURNED), encode(MASK), "size mismatch", "265 x 191 and 191",
    ),
    "image missing": (None, encode(MASK), "missing image", "add the image under the mask's"),
    "mask missing": (PNG, None, "missing mask", "add the mask under the image's name"),
    "mask empty": (PNG, encode(MASK * 0), "empty mask", "no pixel has a level above 127"),
    "mask of text alone": (
        PNG, encode(np.pad(MASK[60:63, 60:63], ((0, 188), (0, 262)))), "empty mask",
        "nothing is left of it after mending: 9 px of text",
    ),
    "mask full": (PNG, encode(MASK * 0 + 255), "full mask", "every pixel has a level above"),
    "mask inverted": (PNG, encode(255 - MASK), "inverted mask", "whole border has a level"),
}  # fmt: skip
BAD_NAMES = {  # kind: (name, other file of that name, reason, words)
    "line break": ("x\ny.png", None, "unusable name", "rename it"),
    "no text": (os.fsdecode(b"x\xff.png"), None, "unusable name", "no text"),
    "two types": ("twin.png", "twin.jpg", "duplicate name", "2 files have this name, keep one"),
    "letter case": ("Case.png", "case.png", "duplicate name", "2 files have this name"),
    "accents": ("\u00e9.png", "e\u0301.png", "duplicate name", "2 files have this name"),
    "not in groups.csv": ("stranger.png", None, "no group", "name it in groups.csv"),
}
# kind: (name, image, mask); all are the same picture and mask
ODD_AND_GOOD = {
    "16 bits": ("16.png", encode(IMAGE * np.uint16(257)), encode(MASK * np.uint16(257))),
    "rgba": ("a.png", encode(colour(IMAGE), mode="RGBA"), encode(colour(MASK), mode="RGBA")),
    "palette": ("p.png", encode(IMAGE, mode="P"), encode(MASK, mode="P")),
    "one bit": ("1.png", PNG, encode(MASK > 0)),
    "bmp": ("bmp.bmp", BMP, encode(MASK, "BMP")),
    "tiff": ("tiff.tiff", TIFF, encode(MASK, "TIFF")),
    "png named jpg": ("named.jpg", PNG, encode(MASK)),
    "gif of one picture": ("gif.png", encode(IMAGE, "GIF"), encode(MASK)),
    "turned by exif, both": (
        "exif.png", encode(np.rot90(IMAGE), exif=TURNED), encode(np.rot90(MASK), exif=TURNED),
    ),
    "spaces, accents, signs": ("x é (2).y 甲状腺 #1%,;'=.png", PNG, encode(MASK)),
    "a name like a number": ("1e5.png", PNG, encode(MASK)),
}  # fmt: skip


def test_each_bad_pair_is_set_aside_and_odd_ones_are_read_right(tmp_path):
    expected, good, grouped = {}, [], []
    for kind, (image, mask, *row) in BAD_PAIRS.items():
        for part, content in (("images", image), ("masks", mask)):
            if content is not None:
                put(tmp_path / part / f"{kind}.png", content)
        expected[f"{kind}.png"] = row
        grouped.append(kind)
    for name, other, *row in BAD_NAMES.values():
        put(tmp_path / "images" / name, PNG)
        put(tmp_path / "masks" / name, encode(MASK))
        expected[repr(name)[1:-1]] = row
        if other and not (tmp_path / "images" / other).exists():  # a disk that tells them apart
            put(tmp_path / "images" / other, PNG)
            expected[other] = row
    for name, image, mask in ODD_AND_GOOD.values():
        put(tmp_path / "images" / name, image)
        put(tmp_path / "masks" / f"{name.rpartition('.')[0]}.png", mask)
        good.append(name.rpartition(".")[0])
    lines = [f'"{stem}",g' for stem in (*grouped, *good)]
    (tmp_path / "groups.csv").write_text("\n".join(["case_id,group", *lines]), "utf-8")
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


# --- faults of a whole source: one sentence


def change(path: str, content):
    """Return what replaces a file or folder: by bytes, text, another kind of entry, or None."""

    def damage(top: Path) -> None:
        place = top / path
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        if content is not None:
            put(place, content.encode() if isinstance(content, str) else content)

    return damage


def rename(part: str, new: str):
    def damage(top: Path) -> None:
        for file in (top / part).iterdir():
            file.rename(file.with_name(new.format(file.stem)))

    return damage


def groups(content):
    return change("groups.csv", content)


BAD_FOLDERS = {
    "no folder": (change(".", None), "no folder at .*: give one that holds images and masks"),
    "no images": (
        change("images", None), r"no masks found among 6 image files in masks.*set masks to"
    ),
    "masks empty": (change("masks", Path.mkdir), "no masks found among 6 image files in images/"),
    "nothing": (change(".", Path.mkdir), r"no image file \(.png .jpg .*: it holds nothing"),
    "no name in common": (
        lambda top: [f.rename(f.with_name(f"x{f.stem[1:]}y{i}.png"))
                     for i, f in enumerate(sorted((top / "masks").iterdir()))],
        "images/ begins with 'a00.png', masks/ begins with 'x00y0.png'; name each mask as its",
    ),
    "other types": (rename("images", "{}.mha"), r"no masks found .*in masks/"),
    "groups.csv empty": (groups(""), r"groups.csv needs a first line of two .* it has \[\]"),
    "groups.csv is a folder": (groups(Path.mkdir), "groups.csv is no table in CSV"),
    "groups.csv names others": (groups("case_id,group\nx,1"), "names no image that is there, in 1"),
    "no group column": (
        groups("case_id,age,sex\na00,1,f\n"), "no column group, its .* age, sex; set groups to one"
    ),
    "two group columns": (groups("case_id,group,group\na00,1,2\n"), "different column names"),
    "a case in two groups": (groups("case_id,group\na00,1\na00,2\n"), "names 'a00' more than once"),
    "no lines": (groups("case_id,group\n"), "names no image that is there"),
    "a comma too many": (groups("case_id,group\na00,S, J\n"), "line of 'a00' has more fields than"),
    "a quote too many": (groups('case_id,group\na00,"1\nb00,2"\n'), r"line break .*1\\nb00,2"),
    "a quote without end": (groups('case_id,group\n"a00,1\n'), "no table .*unexpected end of data"),
    "no usable case": (
        lambda top: [file.write_bytes(encode(MASK * 0)) for file in (top / "masks").iterdir()],
        "no case can be used, of 6: 6 size mismatch; the first: a00",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_bad_folder_is_one_clear_sentence(small_folder, tmp_path, kind):
    damage, words = BAD_FOLDERS[kind]
    damage(small_folder)
    with pytest.raises(ValueError, match=words) as error:
        build_store(look(small_folder).cases, tmp_path / "store", size=16)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "store" / "store.json").exists()


SPLIT = {"train": list(range(3226)), "val": list(range(3226, 3585))}


def split_of(train, val) -> str:
    return json.dumps({"train": list(train), "val": list(val)})


BAD_SPLITS = {
    "empty": "", "a list": "[]", "one side": '{"train": [1]}',
    "digits of a text": split_of("0123456789", range(10, 3585)),
    "a fraction": split_of([0.5, *range(1, 3000)], range(3000, 3585)),
    "a frame on both sides": split_of(range(3000), range(2999, 3585)),
    "a frame missing": split_of(range(3000), range(3001, 3585)),
    "brackets in brackets": "[" * 100_000,
    "a folder": Path.mkdir,
}  # fmt: skip


@pytest.fixture
def release(tmp_path) -> Path:
    """A small TG3K: two frames with masks, and the split."""
    path = tmp_path / "tg3k"
    for part, array in ((tg3k.IMAGES, IMAGE), (tg3k.MASKS, MASK)):
        for frame in ("0000", "0001"):
            put(path / part / f"{frame}.jpg", encode(array, "JPEG"))
    (path / tg3k.SPLIT).write_text(json.dumps(SPLIT))
    return path


@pytest.mark.parametrize("kind", BAD_SPLITS)
def test_a_bad_official_split_is_refused(release, kind):
    change(tg3k.SPLIT, BAD_SPLITS[kind])(release)
    with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged: needed are two lists"):
        tg3k.cases(release)


def zip_of(path: Path, release: Path, *more, method=zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # two entries of one name
        for file in sorted(release.rglob("*.*")):
            archive.write(file, f"tg3k/{file.relative_to(release)}")
        for each in more:
            archive.writestr(each, b"/etc/passwd")
    return path


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*.*") if f.is_file()}


OTHERS = "../other.txt", "../../thyroid-image/2.jpg", "tn3k/0.jpg", "__MACOSX/thyroid-mask/._0.jpg"


def test_other_entries_of_an_archive_stay_in_it_and_none_lands_outside(tmp_path, release):
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    assert files_of(tg3k.locate(zip_of(home / "set.zip", release, *OTHERS))) == files_of(release)
    tg3k.locate(zip_of(home / "set.zip", release, "/thyroid-image/0002.jpg", "/x.txt"))
    assert len(list(home.iterdir())) == 3
    assert list((tmp_path / "a").iterdir()) == [home]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: flipped(content, 300), r"cannot be unpacked.*Bad CRC.*file id"),
        (lambda content: content[:5000], r"cannot be unpacked.*not a zip file"),
        (lambda _: b"PK\x05\x06" + bytes(18), r"holds no file .*but nothing.*file id"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, release, damage, words):
    archive = zip_of(tmp_path / "set.zip", release)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=words):
        tg3k.locate(archive)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip", "tg3k"]


BAD_STORES = {
    "array empty": ("masks.npy", lambda _: b""),
    "array of another size": ("masks.npy", lambda c: c.replace(b"(24, 32", b"(32, 24")),
    "table without its last line": ("index.csv", lambda c: c[: c[:-1].rindex(b"\n") + 1]),
    "record of another form": ("store.json", lambda _: b"[]"),
    "record no json": ("store.json", lambda _: b"{"),
    "settings changed": ("store.json", lambda content: content.replace(b"32", b"64")),
    **{f"bit flipped in {n}": (n, lambda c: c[:-2] + bytes([c[-2] ^ 1]) + c[-1:]) for n in FILES},
}


@pytest.mark.parametrize("kind", BAD_STORES)
def test_a_bad_store_is_refused_and_built_again(tiny_store, tmp_path, kind, capsys):
    shutil.copytree(tiny_store.folder.parent, tmp_path, dirs_exist_ok=True)
    name, damage = BAD_STORES[kind]
    sound = (tmp_path / "store" / name).read_bytes()
    (tmp_path / "store" / name).write_bytes(damage(sound))
    with pytest.raises(ValueError, match=r"the store at .* is damaged \(.+\): delete it and build"):
        open_store(tmp_path / "store")
    build_store(look(tmp_path / "data").cases, tmp_path / "store", size=32)
    assert (tmp_path / "store" / name).read_bytes() == sound
    assert "in store: it is built again" in capsys.readouterr().err


# --- fuzz: random damage from fixed seeds


def flip(rng, content):
    place = int(rng.integers(len(content)))
    bit = content[place] ^ 1 << int(rng.integers(8))
    return content[:place] + bytes([bit]) + content[place + 1 :]


def cut(rng, content):
    return content[: int(rng.integers(len(content)))]


def replace(rng, content):
    """Blank, drop or repeat a slice, or put rubbish into its place."""
    start = int(rng.integers(len(content)))
    end = start + int(rng.integers(1, 200))
    part = content[start:end]
    new = (bytes(len(part)), b"", part * 2, rng.bytes(20))[int(rng.integers(4))]
    return content[:start] + new + content[end:]


def rubbish_behind(rng, content):
    return content + rng.bytes(int(rng.integers(1, 500)))


DAMAGE = (flip, cut, replace, rubbish_behind)
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


def damaged(seed: int, content: bytes, rounds: int):
    """Yield a kind of damage's name and the damaged content, each kind so many times."""
    rng = np.random.default_rng(seed)
    for number in range(rounds * len(DAMAGE)):
        how = DAMAGE[number % len(DAMAGE)]
        yield how.__name__, how(rng, content)


@pytest.mark.parametrize("name", PICTURES)
def test_a_damaged_picture_is_refused_or_read_right(tmp_path, counts, name):
    sound = frames.read_gray(put(tmp_path / "x y.img", PICTURES[name]))
    for how, content in damaged(len(name), PICTURES[name], 6):
        path = put(tmp_path / "x y.img", content)
        gray, said = attempt(counts, "files", frames.read_gray, path)
        if said is not None:
            check_message(said, "x y.img", "")
            continue
        assert gray.dtype == np.uint8, how
        assert gray.ndim == 2, how
        # only a PNG has checksums; what any picture lacks is found
        if name.startswith("png") or how in ("cut", "rubbish_behind"):
            np.testing.assert_array_equal(gray, sound, err_msg=how)


def test_a_damaged_archive_is_refused_or_unpacked(tmp_path, release, counts):
    whole = zip_of(tmp_path / "whole.zip", release, method=zipfile.ZIP_DEFLATED).read_bytes()
    in_list = [(how, whole[:-700] + tail) for how, tail in damaged(9, whole[-700:], 6)]
    for how, content in [*damaged(8, whole, 6), *in_list]:
        archive = put(tmp_path / "home" / "set.zip", content)
        found, said = attempt(counts, "files", tg3k.locate, archive)
        if said is None:  # a frame whose name was hit lacks its partner, which the store says
            assert files_of(found).items() <= files_of(release).items(), how
        else:
            assert len(said.splitlines()) == 1
            assert "set.zip" in said
            assert list((tmp_path / "home").iterdir()) == [archive], how
        shutil.rmtree(tmp_path / "home")


def test_a_damaged_split_is_refused_or_the_same(release, counts):
    sound, content = tg3k.official_split(release), (release / tg3k.SPLIT).read_bytes()
    for how, broken in damaged(6, content, 8):
        (release / tg3k.SPLIT).write_bytes(broken)
        split, said = attempt(counts, "files", tg3k.official_split, release)
        assert split == sound if said is None else tg3k.SPLIT in said, how


def test_a_damaged_groups_csv_moves_no_other_line(tmp_path, counts):
    names = [f"p{number:02d}" for number in range(12)]
    lines = ["case_id,group", *(f'{n},"sweep {i // 3}, left"' for i, n in enumerate(names))]
    content = ("\n".join(lines) + "\n").encode()
    rows = [(name, str(tmp_path / f"{name}.png"), "", "", "d") for name in names]
    cases, path = make_table(rows), put(tmp_path / "groups.csv", content)

    def read():
        return assign_groups(cases, tmp_path, [path])[0]

    sound = read()
    for how, broken in damaged(7, content, 20):
        put(path, broken)
        got, said = attempt(counts, "files", read)
        if said is not None:
            assert "groups.csv" in said
            assert len(said.splitlines()) == 1, how
        elif how in ("cut", "flip"):  # one line, or two that it joins, may be other ones
            other = [
                each
                for each in zip(got, sound, strict=True)
                if name_key(each[0]) not in ("", each[1])
            ]
            assert len(other) <= 2, how


def test_a_damaged_store_is_refused(tmp_path, tiny_store, counts):
    shutil.copytree(tiny_store.folder, tmp_path, dirs_exist_ok=True)
    for name in (*FILES, "store.json"):
        sound = (tmp_path / name).read_bytes()
        for how, broken in damaged(8, sound, 3):
            (tmp_path / name).write_bytes(broken)
            opened, said = attempt(counts, "files", open_store, tmp_path)
            if said is not None:
                assert "is damaged (" in said, how
                assert len(said.splitlines()) == 1
            elif name == "store.json":  # spaces between its values do not count
                assert json.loads(broken) == json.loads(sound), how
            else:
                assert broken == sound, how
                np.testing.assert_array_equal(opened.images, tiny_store.images)
        (tmp_path / name).write_bytes(sound)

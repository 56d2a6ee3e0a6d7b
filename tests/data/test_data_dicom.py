"""Reading of DICOM ultrasound: pixels as drawn, spacing, and refusals with a status code."""

import io
import resource
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from dicoms import EVERY, drawn, make_region, make_us, mutate, painted, to_bytes
from fuzzing import limited
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence

from thyroid_lib.data import dicom

GARBAGE, FATAL_MARKERS = b"\xc9\xb4q\xaf&P\xcc^\xf3\x9e", (b"\xff\xc4", b"\xff\xda", b"\xff\xc3")
ENDLESS_SCANS = (0, 12, 198), (1, 12, 0), (8, 0, 0), (1, 0, 16)
ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x01"  # a comment that says YBR
RAMP = np.arange(256) * 257  # 0 to 65535, no entry the same with its bytes swapped
HALVES = [0, 1, 0, 1, 127, 127 * 257, 0, 128, *RAMP[128:]]
JUMP = [0, 2, 0, 257, 1, 126, 127 * 257, 1, 64, 190 * 257, 2, 1, 8, 0, 1, 65, 0]
BAD_PALETTES = {
    "too short": ("", RAMP[:100], 256, 16),
    "segments too short": ("Segmented", [0, 1, 0, 1, 100, 65535], 256, 16),
    "a line without a start": ("Segmented", [1, 255, 65535], 256, 16),
    "an unknown segment": ("Segmented", [0, 1, 0, 7, 255, 65535], 256, 16),
    "a jump within itself": ("Segmented", [0, 1, 0, 2, 65535, 3, 0, 0], 256, 16),
    "empty segments without end": ("Segmented", [0, 1, 0, *[2, 65535, 3, 0] * 9000], 0, 16),
}
FLOW = {"RegionSpatialFormat": 3, "RegionDataType": 3}
A, B, C, ANISOTROPIC = (0.1, 0.1), (0.1, 0.12), (0.2, 0.1), (0.08, 0.05)
SPACINGS = {  # regions as (spacing, changes); PixelSpacing; result
    "reversed": ([(ANISOTROPIC, {"PhysicalDeltaY": -0.008})], None, ANISOTROPIC),
    "no length": ([(A, {"PhysicalUnitsXDirection": 4})], None, None),
    "zero": ([(A, {"PhysicalDeltaX": 0.0})], None, None),
    "no number": ([(A, {"PhysicalDeltaX": float("nan")})], None, None),
    "absurd": ([(A, {"PhysicalDeltaX": 50.0})], None, None),
    "a pixel beyond the edge": ([(A, {"RegionLocationMaxX1": 74})], None, A),
    "of a picture that was cut since": ([(A, {"RegionLocationMaxY1": 90})], None, None),
    "flow": ([(A, {"RegionDataType": 2})], None, None),
    "nothing": ([], None, None),
    "two that agree": ([(A, {}), (A, {})], None, A),
    "two that differ": ([(A, {}), (B, {})], None, None),
    "tissue and flow": ([(A, {}), (C, FLOW)], None, A),
    "flow and PixelSpacing": ([(C, FLOW)], A, None),
    "PixelSpacing alone": ([], C, C),
    "PixelSpacing that contradicts": ([(A, {})], C, None),
}
PALETTES = {  # plain or segmented words, entries, bits of an entry, gray of the levels 0-255
    "16 bits": ("", RAMP, 256, 16, range(256)),
    "8 bits, two in a word": ("", np.arange(256, dtype=np.uint8).view("<u2"), 256, 8, range(256)),
    "8 bits, one in a word": ("", np.arange(256), 256, 8, range(256)),
    "declared as 16 bits, of 8": ("", np.arange(256), 256, 16, range(256)),
    "fewer entries than levels": ("", RAMP[:100], 100, 16, np.minimum(range(256), 99)),
    "a line": ("Segmented", [0, 1, 0, 1, 255, 65535], 256, 16, range(256)),
    "a line, then entries": ("Segmented", HALVES, 256, 16, range(256)),
    "a line of 8 bits": ("Segmented", [0x100, 0x100, 0xFFFF], 256, 8, range(256)),
    "lines that go on beyond its size": (
        "Segmented", [0, 1, 0, *[1, 65535, 9] * 9000], 256, 16, [0] * 256,
    ),
    # up to 127, on to 190, the first line once more (back to 127), then down
    "a jump": (
        "Segmented", JUMP, 383, 16,
        [*range(128), *(127 + 63 / 64 * np.arange(1, 65)), *(190 - np.arange(1, 65) / 2)],
    ),
}  # fmt: skip


def read(dataset) -> list:
    return list(dicom.read_frames(dicom.read_file(to_bytes(dataset))))


def with_codes(dataset, *codes: bytes, **how):
    dataset.PixelData = encapsulate([code + bytes(len(code) % 2) for code in codes], **how)
    return dataset


def codes_of(dataset, count: int = 1) -> list[bytes]:
    return list(generate_frames(dataset.PixelData, number_of_frames=count))


@pytest.mark.parametrize(("syntax", "photometric", "bits"), EVERY)
def test_frames_are_read_as_they_were_drawn(syntax, photometric, bits):
    smooth = syntax in ("jpeg", "extended", "j2k lossy")
    subsampled = photometric == "YBR_FULL_422"
    images = np.stack([np.add.outer(np.arange(60), np.arange(72)) + 10 * i for i in range(3)])
    images = images.astype(np.uint8) if smooth else drawn(3, 60, 72)
    if photometric.startswith(("RGB", "YBR")):
        images = painted(images)
    for frames in (images, images[0]):  # a cine, and one frame
        got = read(make_us(frames, syntax=syntax, photometric=photometric, bits=bits))
        expected = images if frames is images else images[:1]
        if photometric == "PALETTE COLOR":
            expected = np.repeat(expected[..., None], 3, axis=-1)
        assert {each.dtype for each in got} == {np.dtype(np.uint8)}
        off = np.abs(np.stack(got).astype(int) - expected)  # of equal shapes
        assert off.shape == expected.shape
        lossless = 1 if photometric.startswith("YBR") else 0
        assert off.max() <= (40 if subsampled else 8 if smooth else lossless)
        assert off.mean() < 3


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("keep_rgb", [True, False])
def test_colours_of_a_jpeg_are_converted_once(photometric, keep_rgb):
    """Markers in the stream decide, not the header."""
    rows, columns = np.mgrid[:64, :80]
    image = np.stack([2 * columns, 3 * rows, 200 - columns], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0, keep_rgb=keep_rgb)
    dataset = make_us(image, syntax="jpeg", photometric=photometric)
    with_codes(dataset, file.getvalue())
    assert np.abs(read(dataset)[0].astype(int) - image).max() <= 8


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("syntax", ["rle", "jpeg", "lossless"])
def test_frames_in_fragments_are_joined(syntax, table):
    dataset = make_us(drawn(3), syntax=syntax)
    expected = read(dataset)
    fragments = 1 if syntax == "rle" and not table else 3  # without a table RLE has no fragments
    with_codes(dataset, *codes_of(dataset, 3), fragments_per_frame=fragments, has_bot=table)
    assert (np.stack(read(dataset)) == expected).all()


def change_scan(code: bytes, *values: int) -> bytes:
    """Change the last three values of a JPEG stream's start of scan."""
    scan = code.rindex(b"\xff\xda")
    end = scan + 2 + int.from_bytes(code[scan + 2 : scan + 4], "big")
    return code[: end - 3] + bytes(values) + code[end:]


def test_lossless_streams_that_gdcm_does_not_survive_are_refused_and_comments_are_not():
    image = painted(drawn(1)[0])
    dataset = make_us(image, syntax="lossless", photometric="RGB")
    [code] = codes_of(dataset)
    assert (read(with_codes(dataset, code[:2] + ADOBE + code[2:]))[0] == image).all()
    damaged = [code.replace(marker, GARBAGE + marker, 1) for marker in FATAL_MARKERS]  # ends gdcm
    for bad in damaged + [change_scan(code, *values) for values in ENDLESS_SCANS]:
        with pytest.raises(dicom.Refused, match="JPEG stream is damaged"):
            read(with_codes(dataset, bad))


def test_without_a_decoder_a_frame_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr(get_decoder(uid.JPEGLosslessSV1), "_available", {})
    with pytest.raises(dicom.Refused, match="JPEG Lossless needs a decoder: `pip install python-g"):
        read(make_us(drawn(1)[0], syntax="lossless"))


def with_palette(prefix: str, words, entries: int, bits: int, first: int = 0, **how):
    """Make a frame of the levels 0 to 255, with a palette."""
    dataset = make_us(
        np.arange(256, dtype=np.uint8).reshape(16, 16), photometric="PALETTE COLOR", **how
    )
    order = ">" if how.get("syntax") == "big" else "<"
    for colour in ("Red", "Green", "Blue"):
        del dataset[f"{colour}PaletteColorLookupTableData"]
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [entries, first, bits])
        data = np.asarray(words).astype(f"{order}u2").tobytes()
        setattr(dataset, f"{prefix}{colour}PaletteColorLookupTableData", data)
    return dataset


@pytest.mark.parametrize("syntax", ["implicit", "big", "j2k"])
@pytest.mark.parametrize("case", PALETTES)
def test_palettes_are_applied(case, syntax):
    prefix, words, entries, bits, gray = PALETTES[case]
    with limited():
        got = read(with_palette(prefix, words, entries, bits, syntax=syntax))[0]
    assert np.abs(got[..., 0].ravel() - np.array(gray)).max() <= (1 if case == "a jump" else 0)
    assert (got == got[..., :1]).all()


def test_a_palette_stands_for_wide_levels_from_its_first_on():
    levels = np.array([999, 1000, 1001, 60000], "<u2").tobytes()
    how = {"Rows": 1, "Columns": 4, "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}
    dataset = with_palette("", [10, 20, 30], 3, 8, first=1000, PixelData=levels, **how)
    assert read(dataset)[0][0, :, 0].tolist() == [10, 10, 20, 30]


@pytest.mark.parametrize("case", BAD_PALETTES)
def test_damaged_palettes_are_refused(case):
    prefix, words, entries, bits = BAD_PALETTES[case]
    dataset = with_palette(prefix, words, entries, bits)
    with limited(), pytest.raises(dicom.Refused, match="palette"):
        read(dataset)


def test_jpeg_2000_is_read_without_its_boxes_and_refused_where_it_does_not_fit():
    image = painted(drawn(1)[0])
    boxed = io.BytesIO()
    Image.fromarray(image).save(boxed, "JPEG2000", irreversible=False)
    dataset = make_us(image, syntax="j2k", photometric="YBR_RCT")
    [code] = codes_of(dataset)
    assert (read(with_codes(dataset, boxed.getvalue()))[0] == image).all()
    for how in ({"codeblock_size": (4, 4)}, {"precinct_size": (32, 32)}, {"tile_size": (8, 8)}):
        file = io.BytesIO()  # of which a short stream may take gigabytes
        Image.fromarray(image).save(file, "JPEG2000", irreversible=False, **how)
        with pytest.raises(dicom.Refused, match=r"too small|does not fit"):
            read(with_codes(dataset, file.getvalue()))
    start = code.index(b"\xff\x90")  # a part of a tile that holds nothing, and data of no part
    part = code[start : start + 6] + (14).to_bytes(4, "big") + code[start + 10 : start + 12]
    with limited(), pytest.raises(dicom.Refused):
        read(with_codes(dataset, code[:start] + part + b"\xff\x93" * 9 + b"\xff\xd9"))
    for at, value in ((8, 9999), (12, 60), (24, 0)):  # width, height, width of a tile
        damaged = code[:at] + value.to_bytes(4, "big") + code[at + 4 :]
        with limited(), pytest.raises(dicom.Refused, match="does not fit"):
            read(with_codes(dataset, damaged))


def test_frames_are_decoded_one_by_one():
    source = dicom.read_file(to_bytes(make_us(np.zeros((40, 480, 640), np.uint8), syntax="rle")))
    tracemalloc.start()
    for frame in dicom.read_frames(source):
        assert frame.shape == (480, 640)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 480 * 640  # and not 40


@pytest.mark.parametrize("case", SPACINGS)
def test_spacing_is_given_where_it_is_unambiguous(case):
    regions, pixel_spacing, expected = SPACINGS[case]
    regions = [make_region(spacing, 61, 74, **changes) for spacing, changes in regions]
    fields = {"SequenceOfUltrasoundRegions": Sequence(regions) if regions else None}
    if pixel_spacing:
        fields["PixelSpacing"] = list(pixel_spacing)
    got = dicom.spacing_of(dicom.read_file(to_bytes(make_us(drawn(1)[0], **fields))))
    assert got == (pytest.approx(expected) if expected else None)


def changed(**attributes):
    return lambda: to_bytes(make_us(drawn(2), **attributes))


def inserted(content: bytes):
    """Elements in front of the SOP class."""
    data = to_bytes(make_us(drawn(1)[0]))
    start = data.index(b"\x08\x00\x16\x00UI")
    return lambda: data[:start] + content + data[start:]


SEQUENCE = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff"
ITEMS = SEQUENCE + 2_400_000 * b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
NESTED = 20_000 * (SEQUENCE + b"\xfe\xff\x00\xe0\xff\xff\xff\xff")
RLE_HEAD = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
UTF8 = {"SpecificCharacterSet": "ISO_IR 192", "PatientID": "M@ID"}
BOMB = {"Rows": 65535, "Columns": 65535}
REFUSED = {
    "no DICOM": (lambda: b"\x89PNG" + bytes(500), 0xC000, "no DICOM file"),
    "a preamble alone": (lambda: bytes(128) + b"DICM", 0xC000, "no DICOM file"),
    "CT": (changed(SOPClassUID="1.2.840.10008.5.1.4.1.1.2"), 0x0122, "no ultrasound image"),
    "a class for one": (changed(SOPClassUID=uid.UltrasoundImageStorage), 0xA900, "for one"),
    "no UID": (changed(StudyInstanceUID=None), 0xA900, "StudyInstanceUID is missing"),
    "0 columns": (changed(Columns=0), 0xA900, "Columns is missing, or no number from 1"),
    "no pixels": (changed(PixelData=None), 0xA900, "no PixelData"),
    "too few pixels": (changed(NumberOfFrames=3), 0xC000, "got 9028 bytes of PixelData"),
    "too many frames": (changed(NumberOfFrames=2001), 0xA700, "need at most 2000 frames"),
    "a bomb": (changed(**BOMB), 0xA700, "64,000,000 pixels each"),
    "a packed bomb": (changed(syntax="rle", Rows=7000, Columns=7000), 0xC000, "unpacked"),
    "signed": (changed(PixelRepresentation=1), 0xA900, "need all of 8"),
    "upper bits": (changed(HighBit=6), 0xA900, "need all of 8"),
    "32 bits": (changed(BitsAllocated=32), 0xA900, "need all of 8"),
    "colours of another syntax": (
        lambda: to_bytes(make_us(painted(drawn(1)[0]), photometric="YBR_RCT")), 0xA900, "no such",
    ),
    "JPEG-LS": (
        lambda: changed()().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.80"[:20]),
        0xA900, "is not read: send it in another",
    ),
    "unknown colours": (changed(PhotometricInterpretation="HSV"), 0xA900, "need one of MONO"),
    # Latin 1 in what is declared as UTF-8
    "charset": (lambda: changed(**UTF8)().replace(b"M@", b"M\xfc"), 0xC000, "PatientID does not"),
    # a frame of RLE that would unpack to 64 MiB where 4.5 KB are needed
    "endless RLE": (
        lambda: to_bytes(with_codes(make_us(drawn(1), syntax="rle"), RLE_HEAD + b"\x81\0" * 2**19)),
        0xA700, "RLE is in pieces, or longer",
    ),
    "millions of items": (inserted(ITEMS), 0xA700, "too many elements"),
    "nested": (inserted(NESTED), 0xC000, "no DICOM file, or a broken one"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_reason_and_have_a_status(case):
    make, status, text = REFUSED[case]
    with limited(), pytest.raises(dicom.Refused, match=text) as refused:
        list(dicom.read_frames(dicom.read_file(make())))
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
    with pytest.raises(FileNotFoundError):  # no fault of the object
        dicom.read_file(tmp_path / "none.dcm")


def test_a_file_is_refused_wherever_it_is_cut_off():
    for syntax in ("implicit", "explicit", "rle", "jpeg", "lossless", "extended", "j2k"):
        data = to_bytes(make_us(drawn(2), syntax=syntax))
        for end in np.linspace(0, len(data) - 12, 40).astype(int):
            with pytest.raises(dicom.Refused):
                list(dicom.read_frames(dicom.read_file(data[:end])))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "seeds", [range(80), pytest.param(range(1000, 1500), marks=pytest.mark.slow)], ids=["80", "500"]
)
def test_mutated_files_are_read_or_refused(counts, seeds):
    kinds, bases, seen = [kind for kind in EVERY if kind[2] == 8], {}, Counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        rng = np.random.default_rng(seed)
        syntax, photometric, _ = kinds[seed % len(kinds)]
        key = syntax, photometric, int(rng.integers(1, 4))
        if key not in bases:
            frames = drawn(key[2], 40, 48)
            bases[key] = to_bytes(make_us(frames, syntax=syntax, photometric=photometric))
        refused = None
        with limited():
            try:
                source = dicom.read_file(mutate(bases[key], rng))
                shapes = [frame.shape[:2] for frame in dicom.read_frames(source)]
            except dicom.Refused as error:
                refused = error
        if refused:
            assert refused.status in (0xC000, 0xA900, 0x0122, 0xA700)
            assert "phantom" not in str(refused).lower()
        else:
            count = int(source.get("NumberOfFrames") or 1)
            assert shapes == [(source.Rows, source.Columns)] * count
        seen["files refused" if refused else "files accepted"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # KiB
    counts.update(seen)
    assert min(seen.values()) > len(seeds) // 10, seen

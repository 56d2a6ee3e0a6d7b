"""Reading, mending, fitting and restoring frames, with answers that one can draw."""

import struct

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import frames

STEPS = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (8, 1))  # (8,25), gray 0, 10, 20 …
DEEP = STEPS.astype(np.int64) * 257  # the same in 16 bits
TURNS = {  # EXIF orientation: how the stored picture is turned to be seen upright
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a),
}  # fmt: skip
GLAND = (15, 60, 30, 80)
LETTERS = (2, 6, 3, 7), (2, 6, 10, 14)  # 16 px each
AT_CORNERS = (1, 2, 1, 3), (2, 3, 3, 4), (3, 4, 4, 6)
BIG_SPECK, SPECK = (90, 94, 10, 20), (80, 83, 10, 23)  # 40 and 39 px
BAY, BIG_HOLE, HOLE = (15, 17, 40, 41), (40, 44, 40, 50), (30, 33, 40, 53)


def tiff(width, height, content, **tags):
    """The bytes of an uncompressed TIFF; tags as t258=16, for what Pillow does not write."""
    tags = {"t256": width, "t257": height, "t258": 8, "t259": 1, "t262": 1, "t277": 1} | tags
    tags = {"t278": height, "t279": len(content)} | tags | {"t273": 0}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHII", int(tag[1:]), 4, 1, start if tag == "t273" else tags[tag])
        for tag in sorted(tags)
    ]
    ends = struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + ends + content


def test_16_bits_and_colour_modes_become_gray(tmp_path):
    rgb = Image.fromarray(STEPS).convert("RGB")
    for image, name, within in (
        *((Image.fromarray(DEEP.astype(kind)), "x.tif", 0) for kind in ("<u2", ">u2", "<i4")),
        (rgb.convert("CMYK"), "x.tif", 1),
        (rgb.convert("YCbCr"), "x.tif", 1),
        (rgb.convert("CMYK"), "x.jpg", 9),
    ):
        image.save(tmp_path / name, quality=98) if "j" in name else image.save(tmp_path / name)
        gray = frames.read_gray(tmp_path / name).astype(int)
        np.testing.assert_allclose(gray, STEPS, atol=within)


def test_tiff_whose_0_is_white_or_of_12_bits(tmp_path):
    for content, tags, levels in (
        (bytes([255, 55]), {}, [0, 200]),
        (struct.pack("<HH", 65535, 0), {"t258": 16}, [0, 255]),
        (bytes([0xFF, 0xF8, 0x00]), {"t258": 12, "t262": 1}, [255, 128]),
    ):
        (tmp_path / "a.tif").write_bytes(tiff(2, 1, content, **{"t262": 0} | tags))
        assert frames.read_gray(tmp_path / "a.tif").tolist() == [levels]
    (tmp_path / "a.tif").write_bytes(tiff(2, 1, b"\0\xf0", t262=1, t339=2))
    with pytest.raises(ValueError, match="has gray levels with a sign, save levels from 0 up"):
        frames.read_gray(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_a_png_of_any_kind_has_the_gray_levels_that_it_holds(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "x.png")
    *colour, alpha = np.moveaxis(np.asarray(image.convert("RGBA")) / 255, 2, 0)
    gray = 255 * np.tensordot([0.299, 0.587, 0.114], colour, 1) * alpha
    np.testing.assert_allclose(frames.read_gray(tmp_path / "x.png"), gray, atol=2.1)


@pytest.mark.parametrize("turn", TURNS)
def test_every_rotation_is_applied_in_every_format(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for form, levels in (("PNG", STEPS), ("PNG", DEEP), ("TIFF", STEPS), ("JPEG", STEPS)):
        levels = levels.astype(np.uint16 if levels is DEEP else np.uint8)
        Image.fromarray(levels).save(tmp_path / "x", form, exif=exif, quality=98)
        gray = frames.read_gray(tmp_path / "x").astype(int)
        np.testing.assert_allclose(gray, TURNS[turn](STEPS), atol=4 if form == "JPEG" else 0)


def draw(*boxes, hole=()):
    """A mask of 100 x 100 px of boxes (top, bottom, left, right), less those of `hole`."""
    mask = np.zeros((100, 100), bool)
    for value, parts in ((True, boxes), (False, hole)):
        for top, bottom, left, right in parts:
            mask[top:bottom, left:right] = value
    return mask


@pytest.mark.parametrize(
    ("rule", "mask", "mended", "counts"),
    [
        ("text", draw(GLAND, *LETTERS), draw(GLAND), (2, 32)),
        ("text", draw(*AT_CORNERS), draw(), (1, 5)),  # they touch: one component
        ("text", draw((0, 10, 0, 7)), draw(), (1, 70)),  # to the last row of the top tenth
        ("text", draw((0, 11, 0, 7)), draw((0, 11, 0, 7)), (0, 0)),  # one row further
        ("text", draw((0, 3, 13, 20)), draw(), (1, 21)),  # to the last column of the left fifth
        ("text", draw((0, 3, 14, 21)), draw((0, 3, 14, 21)), (0, 0)),  # one column further
        ("text", draw((0, 4, 0, 20)), draw((0, 4, 0, 20)), (0, 0)),  # 80 px
        ("text", draw((0, 4, 0, 19)), draw(), (1, 76)),
        ("specks", draw(GLAND, BIG_SPECK, SPECK), draw(GLAND, BIG_SPECK), (1, 39)),
        (
            "holes", draw(GLAND, hole=(BAY, BIG_HOLE, HOLE)), draw(GLAND, hole=(BAY, BIG_HOLE)),
            (1, 39),
        ),
    ],
)  # fmt: skip
def test_each_rule_takes_what_is_small_and_leaves_the_gland(rule, mask, mended, counts):
    before = mask.copy()
    found, *found_counts = frames.MENDS[rule](mask)
    np.testing.assert_array_equal(found, mended)
    assert tuple(found_counts) == counts
    assert (mask == before).all()  # the argument is left alone


def test_only_the_rules_that_are_asked_for_mend_and_each_is_counted():
    mask = draw(GLAND, LETTERS[0], (80, 81, 80, 81), hole=[(40, 41, 40, 41)])
    everything, counts = frames.mend_mask(mask, ("holes", "text", "specks"))
    assert counts == {"text": (1, 16), "specks": (1, 1), "holes": (1, 1)}
    np.testing.assert_array_equal(everything, draw(GLAND))
    same, counts = frames.mend_mask(mask, ())
    assert (same == mask).all()
    assert set(counts.values()) == {(0, 0)}


def test_every_real_mask_with_text_is_mended_and_no_gland_is_touched(shared_data):
    paths = sorted((shared_data / "tg3k-sample" / "thyroid-mask").iterdir())
    assert len(paths) == 581  # run 14, the only one without text, is not among them
    for path in paths:
        mask = frames.read_gray(path) > 127
        mended, components, pixels = frames.mend_text(mask)
        _, count = ndimage.label(mask & ~mended, structure=np.ones((3, 3)))
        assert 1 <= components == count, path.name
        assert pixels == (mask & ~mended).sum() < 100
        assert not (mended & ~mask).any()
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        gland = (np.bincount(labels.ravel()) >= 300)[labels] & mask
        assert mended[gland].all()


def test_letterbox_is_centred_and_padded_with_0():
    for height, width, box in (
        (50, 100, (16, 0, 32, 64)),  # wide
        (100, 50, (0, 16, 64, 32)),  # tall
        (64, 64, (0, 0, 64, 64)),
        (33, 100, (21, 0, 21, 64)),  # odd: 21 rows, 21 above, 22 below
        (1, 1000, (31, 0, 1, 64)),  # never less than a row
    ):
        top, left, rows, columns = box
        fitted = frames.fit_image(np.full((height, width), 200, np.uint8), 64, "letterbox")
        expected = np.zeros((64, 64), np.uint8)
        expected[top : top + rows, left : left + columns] = 200
        np.testing.assert_array_equal(fitted, expected)
        prob = expected.astype(np.float32) / 200  # nor does its border bleed into what is restored
        assert (frames.restore_prob(prob, height, width, "letterbox") == 1).all()


def test_shrinking_averages_and_a_small_mask_is_what_covers_more_than_half():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_allclose(frames.fit_image(stripes, 16, "square")[:, 2:-2], 100, atol=1)
    # four rows become one; bilinear weights are 5, 7, 7 and 5 of 24
    assert frames.fit_mask(np.array([[0], [1], [1], [0]]) > 0, 1, "square").item() == 1
    assert frames.fit_mask(np.array([[1], [0], [0], [1]]) > 0, 1, "square").item() == 0


@pytest.mark.parametrize("resize", frames.RESIZES)
@pytest.mark.parametrize("shape", [(191, 265), (265, 191), (300, 41), (16, 9)])
def test_restore_undoes_fit(shape, resize):
    y, x = np.mgrid[: shape[0], : shape[1]]
    smooth = 0.5 + 0.4 * np.sin(2 * y / shape[0]) * np.cos(2 * x / shape[1])  # in [0,1]
    fitted = frames.fit_image(np.rint(smooth * 255).astype(np.uint8), 128, resize)
    restored = frames.restore_prob(fitted.astype(np.float32) / 255, *shape, resize)
    assert (restored.shape, restored.dtype) == (shape, np.float32)
    np.testing.assert_allclose(restored, smooth, atol=0.03)

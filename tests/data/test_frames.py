"""Reading, mending, fitting and restoring frames, with answers that one can draw."""

import struct

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import frames

STEPS = np.tile(np.arange(0, 250, 10, dtype=np.uint8), (8, 1))  # (8,25), gray 0, 10, 20 …


def smooth(height, width):
    """A smooth map in [0,1], float32 (H,W)."""
    y, x = np.mgrid[:height, :width]
    return (0.5 + 0.4 * np.sin(2 * y / height) * np.cos(2 * x / width)).astype(np.float32)


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


# --- reading


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_colour_modes_become_gray(tmp_path, mode):
    Image.fromarray(STEPS).convert("RGB").convert(mode).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as back:
        assert back.mode == mode
    np.testing.assert_allclose(frames.read_gray(tmp_path / "a.tif"), STEPS, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_a_png_of_any_kind_has_the_gray_levels_that_it_holds(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 4), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "x.png")
    *colour, alpha = np.moveaxis(np.asarray(image.convert("RGBA")) / 255, 2, 0)
    gray = 255 * np.tensordot([0.299, 0.587, 0.114], colour, 1) * alpha
    np.testing.assert_allclose(frames.read_gray(tmp_path / "x.png"), gray, atol=2.1)


TURNS = {  # EXIF orientation: how the stored picture is turned to be seen upright
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T,
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("form", ["PNG", "PNG of 16 bits", "TIFF", "JPEG"])
def test_every_rotation_is_applied_in_every_format(tmp_path, form, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    levels = STEPS * np.uint16(257) if "16" in form else STEPS
    Image.fromarray(levels).save(tmp_path / "x", form.split()[0], exif=exif, quality=98)
    gray = frames.read_gray(tmp_path / "x").astype(int)
    np.testing.assert_allclose(gray, TURNS[turn](STEPS), atol=4 if form == "JPEG" else 0)


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (16, 16), (120, 120, 120)).convert("CMYK").save(tmp_path / "a.jpg")
    np.testing.assert_allclose(frames.read_gray(tmp_path / "a.jpg"), 120, atol=3)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bits_are_scaled_to_8(tmp_path, dtype):
    Image.fromarray((STEPS.astype(np.int64) * 257).astype(dtype)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(frames.read_gray(tmp_path / "a.tif"), STEPS)


def test_tiff_whose_0_is_white_or_of_12_bits(tmp_path):
    for content, tags, levels in (
        (bytes([255, 55]), {}, [0, 200]),
        (struct.pack("<HH", 65535, 0), {"t258": 16}, [0, 255]),
        (bytes([0xFF, 0xF8, 0x00]), {"t258": 12, "t262": 1}, [255, 128]),
    ):
        (tmp_path / "a.tif").write_bytes(tiff(2, 1, content, **{"t262": 0} | tags))
        assert frames.read_gray(tmp_path / "a.tif").tolist() == [levels]


def test_text_goes_and_the_gland_stays():
    mask = np.zeros((100, 100), bool)
    mask[2:6, 3:7] = True  # a letter
    mask[2:6, 10:14] = True  # another
    mask[8:60, 30:80] = True  # the gland
    mended, components, pixels = frames.mend_text(mask)
    assert (components, pixels) == (2, 32)
    assert mended.sum() == 52 * 50
    assert mask.sum() == 52 * 50 + 32  # the argument is left alone


@pytest.mark.parametrize(
    ("box", "dropped"),
    [
        ((0, 10, 0, 7), True),  # 70 px up to the last row of the top tenth
        ((0, 11, 0, 7), False),  # one row further
        ((0, 3, 13, 20), True),  # up to the last column of the left fifth
        ((0, 3, 14, 21), False),  # one column further
        ((0, 4, 0, 20), False),  # 80 px
        ((0, 79 // 20 + 1, 0, 19), True),  # 76 px
    ],
)
def test_where_text_ends_and_gland_begins(box, dropped):
    mask = np.zeros((100, 100), bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    assert frames.mend_text(mask)[1] == dropped


def test_letters_that_touch_at_a_corner_are_one_component():
    mask = np.zeros((100, 100), bool)
    mask[1:4, 1:6] = [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]
    assert frames.mend_text(mask)[1:] == (1, 5)


def test_every_real_mask_with_text_is_mended_and_no_gland_is_touched(shared_data):
    paths = sorted((shared_data / "tg3k-sample" / "thyroid-mask").iterdir())
    assert len(paths) == 581  # run 14, the only one without text, is not among them
    for path in paths:
        mask = frames.read_mask(path)
        mended, components, pixels = frames.mend_text(mask)
        _, count = ndimage.label(mask & ~mended, structure=np.ones((3, 3)))
        assert 1 <= components == count, path.name
        assert pixels == (mask & ~mended).sum() < 100
        assert not (mended & ~mask).any()
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        gland = (np.bincount(labels.ravel()) >= 300)[labels] & mask
        assert mended[gland].all()


def test_specks_go_wherever_they_lie():
    mask = np.zeros((100, 100), bool)
    mask[20:60, 30:80] = True
    mask[80:83, 10:23] = True  # 39 px
    mask[90:94, 10:20] = True  # 40 px
    mended, components, pixels = frames.mend_specks(mask)
    assert (components, pixels) == (1, 39)
    assert mended.sum() == mask.sum() - 39


def test_holes_are_filled_and_bays_are_not():
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    mask[15:18, 15:28] = False  # 39 px, enclosed
    mask[22:26, 12:22] = False  # 40 px: a hole that is meant
    mask[10:12, 12] = False  # open to the outside
    mended, components, pixels = frames.mend_holes(mask)
    assert (components, pixels) == (1, 39)
    assert mended[16, 20]
    assert not mended[23, 15]
    assert not mended[10, 12]


def test_only_the_rules_that_are_asked_for_mend_and_each_is_counted():
    mask = np.zeros((100, 100), bool)
    mask[30:60, 30:80] = True
    mask[1:4, 1:6] = True  # text
    mask[80, 80] = True  # a speck
    mask[40, 40] = False  # a hole
    everything, counts = frames.mend_mask(mask, ("holes", "text", "specks"))
    assert counts == {"text": (1, 15), "specks": (1, 1), "holes": (1, 1)}
    assert everything.sum() == 30 * 50
    same, counts = frames.mend_mask(mask, ())
    assert (same == mask).all()
    assert set(counts.values()) == {(0, 0)}
    with pytest.raises(ValueError, match="got dust, need any of text, specks, holes"):
        frames.mend_mask(mask, ("text", "dust"))


# --- fitting and restoring


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (50, 100, (16, 0, 32, 64)),  # wide
        (100, 50, (0, 16, 64, 32)),  # tall
        (64, 64, (0, 0, 64, 64)),
        (33, 100, (21, 0, 21, 64)),  # odd: 21 rows, 21 above, 22 below
        (1, 1000, (31, 0, 1, 64)),  # never less than a row
    ],
)
def test_letterbox_is_centred_and_padded_with_0(height, width, box):
    top, left, rows, columns = box
    fitted = frames.fit_image(np.full((height, width), 200, np.uint8), 64, "letterbox")
    expected = np.zeros((64, 64), np.uint8)
    expected[top : top + rows, left : left + columns] = 200
    np.testing.assert_array_equal(fitted, expected)


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    fitted = frames.fit_image(stripes, 16, "square")
    np.testing.assert_allclose(fitted[:, 2:-2], 100, atol=1)


@pytest.mark.parametrize("resize", frames.RESIZES)
@pytest.mark.parametrize("shape", [(191, 265), (265, 191), (300, 41), (16, 9)])
def test_restore_undoes_fit(shape, resize):
    map_ = smooth(*shape)
    fitted = frames.fit_image(np.rint(map_ * 255).astype(np.uint8), 128, resize)
    restored = frames.restore_prob(fitted.astype(np.float32) / 255, *shape, resize)
    assert restored.shape == shape
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, map_, atol=0.03)


def test_a_small_mask_is_what_covers_more_than_half():
    # four rows become one; bilinear weights are 5, 7, 7 and 5 of 24
    assert frames.fit_mask(np.array([[0], [1], [1], [0]]) > 0, 1, "square").item() == 1
    assert frames.fit_mask(np.array([[1], [0], [0], [1]]) > 0, 1, "square").item() == 0


def test_the_border_of_a_letterbox_does_not_bleed_into_the_frame():
    prob = np.zeros((64, 64), np.float32)
    prob[16:48] = 1  # the content of a frame twice as wide as high
    assert (frames.restore_prob(prob, 50, 100, "letterbox") == 1).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"resize: got 'crop', need one of square, letterbox"):
        frames.fit_image(STEPS, 8, "crop")
    with pytest.raises(ValueError, match=r"prob: got shape \(2, 3\), need one square map"):
        frames.restore_prob(np.zeros((2, 3), np.float32), 4, 4, "square")

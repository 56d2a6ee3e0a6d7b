"""Near-copies: planted ones are found, whatever was changed; frames of other sweeps are not."""

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

import measure_copies as planted  # tools/measure_copies.py
from thyroid_lib.audit import copies
from thyroid_lib.audit.content import scan_region
from thyroid_lib.audit.copies import NEAR_COPY, closest, describe, pair_correlation
from thyroid_lib.data import phantom
from thyroid_lib.data.frames import fit_image, read_gray

SIZE = 128
KINDS = [name for name in planted.CHANGES if "bar" in name or "up to" in name]


@pytest.fixture(scope="module")
def necks():
    """The first frames of 36 sweeps, (36,128,128): other people, other scanner settings."""
    frames = [phantom.make_sweep(sweep=i, frames=1)["images"][0] for i in range(36)]
    return np.stack([fit_image(image, SIZE, "square") for image in frames])


@pytest.fixture(scope="module")
def real(shared_data):
    images, groups = planted.real_frames(shared_data)
    return planted.make_pool(images[::3], groups[::3])


@pytest.fixture(scope="module")
def phantoms():
    return planted.make_pool(*planted.phantom_frames(sweeps=40, each=2))


def speckle(height, width):
    return np.random.default_rng(1).integers(60, 200, (height, width)).astype(np.uint8)


def region(image):
    """Top, bottom, left and right of the scan that is found."""
    rows, columns = np.nonzero(scan_region(ndimage.gaussian_filter(image.astype(np.float32), 1.5)))
    return rows.min(), rows.max(), columns.min(), columns.max()


@pytest.mark.parametrize("bar", [0, 90, 255])
def test_bars_text_and_scales_are_no_content(bar):
    frame = Image.new("L", (512, 384))
    frame.paste(Image.fromarray(speckle(240, 320)), (80, 40))
    draw = ImageDraw.Draw(frame)
    draw.text((120, 312), "THYROID LEFT", fill=255)
    draw.rectangle((24, 120, 34, 240), fill=200)  # a gray scale
    for y in range(40, 280, 40):
        draw.line((402, y, 424, y), fill=255, width=2)  # a ruler
    frame = frame.reduce(4)
    np.testing.assert_allclose(region(np.asarray(frame)), (10, 69, 20, 99), atol=5)
    barred = np.pad(np.asarray(frame), ((0, 0), (40, 0)), constant_values=bar)
    np.testing.assert_allclose(region(barred), (10, 69, 60, 139), atol=5)


def test_dark_parts_inside_the_scan_are_content_and_blank_frames_have_none():
    scan = speckle(80, 100)
    scan[30:60, 40:70] = 0  # a cyst
    assert scan_region(ndimage.gaussian_filter(scan.astype(np.float32), 1.5))[45, 55]
    for level in (0, 255):
        assert not scan_region(np.full((64, 64), level, np.float32)).any()
    maps = describe([np.zeros((40, 60), np.uint8), np.full((3, 500), 9, np.uint8)])
    assert not maps.view.any()


@pytest.mark.study
@pytest.mark.parametrize("change", planted.CHANGES)
def test_planted_copies_are_found_among_phantoms(phantoms, change):
    recall, precision, exact = planted.measure(phantoms, change, count=24, seed=3)
    assert recall >= 0.9
    assert precision >= 0.95
    assert exact >= 0.5  # else it is the sweep's other frame


@pytest.mark.parametrize("change", KINDS)
def test_planted_copies_are_found_among_real_frames(real, change):
    recall, precision, exact = planted.measure(real, change, count=50, seed=4)
    print(f"{change}: recall {recall:.2f}, precision {precision:.2f}, very frame {exact:.2f}")
    assert recall >= 0.9
    assert precision >= 0.95
    assert exact >= 0.7  # a neighbour in the sweep may be as near as the source itself


def test_the_table_of_the_docs_holds_what_is_promised():
    text = planted.PAGE.read_text("utf-8").split("<!-- copies -->")[1]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d. |]+) \|$", text, flags=re.M))
    assert list(rows) == list(planted.CHANGES), "run python tools/measure_copies.py"
    figures = np.array([row.split(" | ") for row in rows.values()], float)
    assert figures[:, ::2].min() >= 0.9  # recall
    assert figures[:, 1::2].min() >= 0.95  # precision


def test_only_like_scans_of_ddti_are_flagged(shared_data):
    """Every scan has the scanner's overlay; the pairs were looked at, one by one."""
    paths = sorted((shared_data / "ddti-sample").glob("*.jpg"))
    if not paths:
        pytest.skip("no DDTI in the shared data")
    alike = {"106_2 106_3", "234_2 234_3", "62_2 62_3", "64_2 64_3"}  # one gland, one view
    same = {"150_1 233_2", "1_1 1_2", "213_1 213_2", "230_1 230_2", "92_3 92_4"}  # byte by byte
    wanted = {name for pair in alike | same for name in pair.split()}
    rest = [path for path in paths if path.stem not in wanted][::3]
    names = [path.stem for path in paths if path.stem in wanted or path in rest]
    maps = describe([read_gray(shared_data / "ddti-sample" / f"{name}.jpg") for name in names])
    rows, case = np.arange(len(names)), [name.split("_")[0] for name in names]
    found = closest(maps, maps, apart=(rows, rows))
    flagged = np.flatnonzero(found["correlation"] >= copies.near_copy_threshold(maps, case))
    pairs = {" ".join(sorted((names[row], names[found["row"][row]]))) for row in flagged}
    assert same <= pairs <= same | alike


@pytest.mark.parametrize("mirror", [1, -1])
def test_turn_scale_shift_and_mirroring_are_told(necks, mirror):
    changed = [planted.turn(necks[5], 11, 0.9), planted.turn(necks[6], -6, 1.1)]
    changed = np.stack([*changed, np.roll(necks[7], (4, -6), (0, 1))])
    found = closest(describe(changed[:, :, ::mirror]), describe(necks))
    assert found["row"].tolist() == [5, 6, 7]
    assert (found["mirrored"] == (mirror < 0)).all()
    np.testing.assert_allclose(found["turn"], [11, -6, 0], atol=1)
    np.testing.assert_allclose(found["scale"], [0.9, 1.1, 1], atol=0.02)
    off = found[["shift_y", "shift_x"]].to_numpy() * SIZE - [[0, 0], [0, 0], [4, -6]]
    assert (np.abs(off) < [[2], [2], [0.5]]).all()


def test_frames_that_were_stretched_are_compared_at_their_own_shape():
    wide = [phantom.make_sweep(sweep=i, frames=1)["images"][0][:120, :240] for i in range(12)]
    frames = [planted.turn(wide[0], 14), *wide]
    squares = np.stack([fit_image(image, SIZE, "square") for image in frames])
    maps = describe(squares, np.array([image.shape for image in frames]))
    found = closest(maps.take([0]), maps.take(range(1, 13)))
    assert found["row"].tolist() == [0]
    assert found["correlation"][0] > 0.9
    assert found["turn"][0] == pytest.approx(14, abs=1)


def test_correlation_is_that_of_the_definition(necks):
    """Beside the sums taken one by one: best correlation of the middle over all small shifts."""
    fine = describe(necks[:2]).fine
    (one, other), best = fine.astype(np.float64), -1.0
    middle = one[4:-4, 4:-4].ravel()
    for y in range(9):
        for x in range(9):
            window = other[y : y + 56, x : x + 56].ravel()
            best = max(best, np.corrcoef(middle, window)[0, 1])
    assert pair_correlation(fine[::-1], 1)[1] == pytest.approx(best, abs=1e-3)
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 2, (1, 900))
    a, b = rng.normal(size=(2, 1, 900)) + rng.normal(size=900)
    by_hand = np.corrcoef(a[weight > 0], b[weight > 0])[0, 1]
    assert copies._correlate(a, b, weight)[0] == pytest.approx(by_hand, abs=1e-3)


def test_copies_within_a_set_are_found_mirrored_ones_too(necks):
    images = [*necks[:4], necks[2], necks[0, :, ::-1], necks[4] * 0, necks[4] * 0]
    maps, rows = describe(images), np.arange(len(images))
    found = closest(maps, maps, apart=(rows, rows))
    copied = np.where(found["correlation"] >= NEAR_COPY, found["row"], -1)
    assert copied.tolist() == [5, -1, 4, -1, 2, 0, -1, -1]  # black ones are none
    squeezed = describe([image[::2, : 100 + row] for row, image in enumerate(images)])
    assert closest(squeezed, squeezed, apart=(rows, rows))["row"][2:5:2].tolist() == [4, 2]


def test_frames_of_equal_value_are_not_compared(necks):
    maps = describe(necks[[0, 0, 1]])
    rows = closest(maps, maps, apart=(["a", "a", "b"], ["a", "a", "b"]))["row"]
    assert rows.tolist() in ([2, 2, 0], [2, 2, 1])
    alone = closest(maps, maps, apart=(["a"] * 3, ["a"] * 3))
    assert alone["row"].tolist() == [-1] * 3
    assert (alone["correlation"] == -1).all()


@pytest.mark.study
def test_the_threshold_comes_from_the_groups(necks):
    maps, groups = describe(necks), np.arange(36) // 2
    derived = copies.near_copy_threshold(maps, groups)
    found = closest(maps, maps, apart=(groups, groups))["correlation"]
    assert found.max() < derived < 0.85
    with_copies = describe([*necks, necks[3]])  # one sweep under two names
    assert copies.near_copy_threshold(with_copies, [*groups, 99]) == pytest.approx(derived, abs=0.1)
    for unknown in (np.arange(36), np.zeros(36)):
        assert copies.near_copy_threshold(maps, unknown) == NEAR_COPY
    few = copies.near_copy_threshold(maps.take(range(4)), [0, 0, 1, 1])
    assert few == pytest.approx(NEAR_COPY, abs=0.02)  # two groups say little

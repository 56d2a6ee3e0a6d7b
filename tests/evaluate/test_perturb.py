import numpy as np
import pytest

from thyroid_lib.evaluate.perturb import PERTURBATIONS, SPECKLE, rescale, undo


def flat(level: int) -> np.ndarray:
    return np.full((64, 64), level, np.uint8)


@pytest.mark.parametrize(
    ("name", "levels"),
    [  # of black, a dark one, the middle, a bright one and white
        ("gain_down", (0, 0, 74, 174, 230)),  # 6 of 60 dB are 25.5 levels
        ("gain_up", (0, 46, 126, 226, 255)),
        ("gamma_dark", (0, 7, 70, 182, 255)),
        ("gamma_bright", (0, 41, 130, 214, 255)),
    ],
)
def test_gray_levels_by_hand(name, levels):
    found = [int(PERTURBATIONS[name](flat(x), "a").max()) for x in (0, 20, 100, 200, 255)]
    assert found == pytest.approx(levels, abs=1)


def test_every_perturbation_keeps_type_and_shape_and_is_not_too_strong():
    rng = np.random.default_rng(0)
    square = np.kron(rng.integers(40, 200, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    before = square.copy()
    for name, perturb in PERTURBATIONS.items():
        changed = perturb(square, "case")
        assert (changed.dtype, changed.shape) == (np.uint8, square.shape)
        assert not np.array_equal(changed, square), name
        assert np.array_equal(perturb(square, "case"), changed)
        assert np.abs(undo(name, changed.astype(float)) - square)[8:-8, 8:-8].mean() < 30, name
    assert np.array_equal(square, before)


def test_speckle_is_drawn_by_the_name_and_a_share_of_the_level():
    speckle = PERTURBATIONS["speckle"]
    noise = speckle(flat(100), "a").astype(float)
    assert noise.std() == pytest.approx(100 * SPECKLE, rel=0.05)
    assert not np.array_equal(noise, speckle(flat(100), "b"))
    assert not speckle(flat(0), "a").any()


def test_an_edge_is_blurred_by_half_a_pixel_at_64():
    edge = flat(0)
    edge[32:] = 200
    blurred = PERTURBATIONS["blur"](edge, "a")[30:34, 10]
    shares = [0.0, 0.107, 0.893, 1.0]  # of a Gaussian sampled at whole pixels: exp(-2) either side
    assert blurred == pytest.approx([200 * share for share in shares], abs=1)


@pytest.mark.parametrize(("name", "side"), [("shrunk", 26), ("enlarged", 40)])
def test_a_square_about_the_centre_is_scaled_and_brought_back(name, side):
    square = flat(0)
    square[16:48, 16:48] = 255  # a side of 32
    scaled = PERTURBATIONS[name](square, "a")
    assert np.sqrt((scaled / 255).sum()) == pytest.approx(side, abs=0.5)
    assert np.abs(scaled.astype(int) - scaled[::-1, ::-1].T).max() <= 1
    back = undo(name, scaled.astype(np.float32) / 255)
    assert back.dtype == np.float32
    assert np.count_nonzero((back > 0.5) != (square > 0)) <= 4
    assert np.array_equal(rescale(square, 1.0), square)

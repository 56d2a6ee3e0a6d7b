import numpy as np
import pytest

from thyroid_lib.evaluate.postprocess import POSTPROCESSES, drop_small_parts, largest_parts


def draw(text: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in line] for line in text.split()])


BEFORE = draw("###.##. #.#.##. ###.... ......#")  # a ring of 8, a block of 4 and a single pixel


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("largest", "###.... #.#.... ###.... ......."),
        ("two_largest", "###.##. #.#.##. ###.... ......."),
        ("filled", "###.##. ###.##. ###.... ......#"),
        ("no_small", "###.##. #.#.##. ###.... ......#"),  # no pixel is below 0.2 % of 28
    ],
)
def test_masks_drawn_by_hand(name, after):
    assert np.array_equal(POSTPROCESSES[name](BEFORE), draw(after))
    nothing, everything = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert not POSTPROCESSES[name](nothing).any()
    assert POSTPROCESSES[name](everything).all()


def test_a_part_is_small_by_its_share_of_the_frame():
    assert np.array_equal(drop_small_parts(BEFORE, 4 / 28), largest_parts(BEFORE, 2))
    assert np.array_equal(drop_small_parts(BEFORE, 5 / 28), largest_parts(BEFORE))
    assert not drop_small_parts(BEFORE, 9 / 28).any()


def test_a_diagonal_joins_a_part_and_does_not_open_a_hole():
    diamond = draw(".#. #.# .#.")
    assert np.array_equal(largest_parts(diamond), diamond)
    assert POSTPROCESSES["filled"](diamond)[1, 1]

import numpy as np

from thyroid_lib.evaluate.diameters import diameters


def test_diameters_of_shapes_drawn_by_hand():
    mask = np.zeros((40, 60), bool)
    assert diameters(mask) == (0, 0)
    mask[20, 10] = True
    assert diameters(mask) == (0, 0)
    mask[20, 10:31] = True
    assert diameters(mask, (1, 0.5)) == (10, 0)
    mask[10, 20] = mask[11:20, 20] = True
    assert diameters(mask) == (20, 10)
    mask[30:34, 50:54] = True  # a smaller part, which is not measured
    assert diameters(mask) == (20, 10)

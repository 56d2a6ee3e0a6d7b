"""From logits to probabilities and a label map, by values drawn by hand."""

import numpy as np
import pytest
from scipy import special

from thyroid_lib.data import frames, label_maps


def test_the_probabilities_of_logits_by_hand():
    logits = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))[..., None, None]  # (1,3,1,1)
    prob = label_maps.class_probs(logits + 7)
    assert prob.dtype == np.float32
    np.testing.assert_allclose(prob[0, :, 0, 0], (0.5, 0.3), rtol=1e-6)
    huge = np.array([[1e4, -1e4, 1e4]], np.float32)[..., None, None]  # exp would overflow
    np.testing.assert_allclose(label_maps.class_probs(huge)[0, :, 0, 0], (0, 0.5))


@pytest.mark.parametrize(("threshold", "labels"), [(0.5, [0, 0, 2, 1]), (0.3, [0, 1, 2, 1])])
def test_a_pixel_is_foreground_by_the_sum_and_of_its_most_probable_class(threshold, labels):
    """0.2 + 0.2 is foreground at 0.3 alone; of equals the first; 0.5 is not above 0.5."""
    prob = np.array([[[0.1, 0.25, 0.3, 0.4]], [[0.1, 0.25, 0.4, 0.4]]], np.float32)
    assert label_maps.to_labels(prob, threshold).tolist() == [labels]


def test_maps_at_native_size_and_one_class_as_before():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, 4, 16, 16)).astype(np.float32)
    for resize in frames.RESIZES:
        how = {"resize": resize, "threshold": 0.5}
        prob, labels = label_maps.restore_labels(label_maps.class_probs(logits)[0], 20, 33, **how)
        assert (prob.shape, labels.shape, labels.dtype) == ((3, 20, 33), (20, 33), np.uint8)
        background = frames.restore_prob(special.softmax(logits, 1)[0, 0], 20, 33, resize)
        clear = np.abs(background - 0.5) > 1e-5
        assert np.array_equal((labels > 0)[clear], (background < 0.5)[clear])
        assert np.array_equal(
            label_maps.class_masks(labels, 3).argmax(0) + 1, np.maximum(labels, 1)
        )
        single = logits[:, :1]
        [prob], labels = label_maps.restore_labels(label_maps.class_probs(single)[0], 20, 33, **how)
        before = frames.restore_mask(special.expit(single[0, 0]), 20, 33, **how)
        assert prob.tobytes() == before[0].tobytes()
        assert np.array_equal(labels > 0, before[1])

"""Losses by hand: one class as before, sets of classes, what was not outlined, soft Dice."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from thyroid_lib.data.classes import UNKNOWN
from thyroid_lib.train.loss import cross_entropy, possible_classes, soft_dice_loss, to_mask

CLASSES = ["gland", "nodule"]
LABELS = np.array([[[0, 1], [2, UNKNOWN]]], np.uint8)  # one frame of four pixels


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [
        # bit 0 background, bit 1 gland, bit 2 nodule
        ([True, True], [[0b001, 0b010], [0b100, 0b110]]),
        # nodules not outlined: they are part of what is called gland
        ([True, False], [[0b001, 0b010], [0b100, 0b110]]),
        # gland not outlined: background may be gland; a nodule is one
        ([False, True], [[0b011, 0b010], [0b100, 0b110]]),
    ],
)
def test_each_pixel_may_be_what_its_annotation_leaves_open(annotated, expected):
    found = possible_classes(LABELS, np.array([annotated]), CLASSES)
    assert found.tolist() == [expected]
    assert possible_classes(LABELS, np.array([annotated]), ["low", "high"])[0, 0, 1] == 0b010


def test_a_case_has_its_own_annotation_and_eight_classes_are_too_many():
    both = possible_classes(
        np.concatenate([LABELS, LABELS]), np.array([[1, 1], [1, 0]]) > 0, CLASSES
    )
    assert both[:, 0].tolist() == [[1, 2], [1, 2]]
    nodules = possible_classes(LABELS, np.array([[False, True]]), CLASSES)
    assert nodules[0, 0].tolist() == [3, 2]
    with pytest.raises(ValueError, match="classes: got 8, need at most 7"):
        possible_classes(LABELS, np.ones((1, 8), bool), list("abcdefgh"))


def test_one_class_is_binary_cross_entropy_to_the_bit():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 4, 4, generator=draw)
    mask = to_mask(torch.randint(0, 2, (3, 4, 4), generator=draw).byte(), 1)
    assert torch.equal(cross_entropy(logits, mask), binary_cross_entropy_with_logits(logits, mask))
    each = cross_entropy(logits, mask, each=True)
    assert each.shape == (3,)
    assert float(each.mean()) == pytest.approx(float(cross_entropy(logits, mask)))


def test_a_pixel_costs_the_logarithm_of_its_sets_probability():
    logits = torch.tensor([1.0, 2.0, 3.0]).log().view(1, 3, 1, 1).expand(1, 3, 1, 4)  # 1/6 1/3 1/2
    sets = torch.tensor([[[0b001, 0b010, 0b110, 0b111]]], dtype=torch.uint8)
    loss = cross_entropy(logits, to_mask(sets, 3))
    assert float(loss) == pytest.approx(-math.log(1 / 6 * 1 / 3 * 5 / 6 * 1) / 4)
    # augmentation moved the frame's border in: no plane is left there, which is background
    nothing = cross_entropy(logits, torch.zeros(1, 3, 1, 4))
    assert float(nothing) == pytest.approx(-math.log(1 / 6))


def test_a_frame_of_nodule_is_no_answer_to_a_gland_without_nodules_outlined():
    sets = possible_classes(np.array([[[0, 1]]], np.uint8), np.array([[True, False]]), CLASSES)
    nodule = 20.0 * torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    right = 20.0 * torch.tensor([[1.0, 0, 0], [0, 1, 0]]).T.view(1, 3, 1, 2)
    mask = to_mask(torch.from_numpy(sets), 3)
    assert cross_entropy(nodule, mask) > 10 > 0.1 > cross_entropy(right, mask)


def test_what_may_be_anything_has_no_gradient():
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    sets = torch.full((1, 2, 2), 0b111, dtype=torch.uint8)
    sets[0, 0, 0] = 0b010
    cross_entropy(logits, to_mask(sets, 3)).backward()
    moved = logits.grad.abs().sum(1)[0] > 1e-7
    assert moved.tolist() == [[True, False], [False, False]]
    assert logits.grad.isfinite().all()


def test_soft_dice_counts_certain_pixels_of_each_class():
    sure = 50.0 * torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])  # of four pixels
    logits = sure.T.view(1, 3, 1, 4)
    sets = torch.tensor([[[0b001, 0b010, 0b010, 0b100]]], dtype=torch.uint8)
    assert float(soft_dice_loss(logits, to_mask(sets, 3))) == pytest.approx(0, abs=1e-6)
    sets[0, 0, 1], sets[0, 0, 3] = 0b110, 0b010  # one of any class, one of the wrong class
    # gland: predicted 1 certain pixel, of 2: 1 - 3/4; nodule: predicted 1, none there: 1 - 1/2
    assert float(soft_dice_loss(logits, to_mask(sets, 3))) == pytest.approx((1 / 4 + 1 / 2) / 2)

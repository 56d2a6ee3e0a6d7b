"""Scores of label maps by hand: per class, the mean over those there, kinds that nobody knows."""

import numpy as np
import pytest

from thyroid_lib.data.classes import UNKNOWN
from thyroid_lib.evaluate.class_scores import find_lesions, mean_dice, score_classes, split_classes
from thyroid_lib.evaluate.scores import score_map, score_maps

CLASSES, BOTH = ["gland", "nodule"], np.array([True, True])


def rows(*lines: str) -> np.ndarray:
    """A label map by hand; ? is foreground of a kind that is not known."""
    return np.array([[UNKNOWN if x == "?" else int(x) for x in line] for line in lines], np.uint8)


REF = rows("011100", "012100", "011100", "000000")
PRED = rows("011100", "011200", "011100", "000022")


def test_each_class_is_a_mask_and_the_case_is_their_mean():
    masks = split_classes(PRED, REF, CLASSES, BOTH)
    case, each = score_classes(masks, tolerance_px=1.0)
    gland, nodule = each
    assert (gland["class"], nodule["class"]) == tuple(CLASSES)
    assert gland["dice"] == pytest.approx(2 * 7 / (8 + 8))
    assert (nodule["dice"], nodule["missed_parts"], nodule["false_parts"]) == (0, 1, 2)
    assert (nodule["ref_parts"], nodule["ref_px"], nodule["pred_px"]) == (1, 1, 3)
    assert case["dice"] == pytest.approx((7 / 8 + 0) / 2) == mean_dice(masks)
    assert case["false_parts"] == 2  # counts are summed


def test_a_class_that_neither_has_does_not_count():
    only = np.where(REF == 2, 1, REF).astype(np.uint8)
    masks = split_classes(only, only, CLASSES, BOTH)
    case, each = score_classes(masks, 1.0)
    assert (case["dice"], len(each), each[1]["dice"]) == (1.0, 2, 1.0)
    empty = split_classes(0 * REF, 0 * REF, CLASSES, BOTH)
    assert (score_classes(empty, 1.0)[0]["dice"], mean_dice(empty)) == (1.0, 1.0)


def test_of_a_kind_that_is_not_known_the_foreground_is_scored():
    unknown = np.where(REF > 0, UNKNOWN, 0).astype(np.uint8)
    case, each = score_classes(split_classes(PRED, unknown, CLASSES, BOTH), 1.0)
    assert each == []
    assert case["dice"] == pytest.approx(2 * 9 / (9 + 11))


def test_what_was_not_outlined_is_not_scored_and_lies_in_the_gland():
    masks = split_classes(PRED, np.minimum(REF, 1), CLASSES, np.array([True, False]))
    assert list(masks) == ["gland"]
    assert masks["gland"][0].sum() == 11  # its nodules too
    assert list(split_classes(PRED, REF, CLASSES, np.array([False, True]))) == ["nodule"]


def test_a_lesion_is_found_by_the_share_that_is_covered():
    ref = rows("220022", "220000", "000000", "000000")
    pred = rows("200000", "200000", "000000", "000022")
    found = find_lesions(split_classes(pred, ref, CLASSES, BOTH))
    assert [(row["class"], row["px"], row["covered"]) for row in found] == [
        ("nodule", 4, 0.5), ("nodule", 2, 0.0),
    ]  # fmt: skip


def test_maps_of_classes_and_of_one_class_agree_where_there_is_one():
    """A label map of one of two classes scores as its mask does by itself."""
    draw = np.random.default_rng(0)
    prob = draw.random((8, 8)).astype(np.float32)
    ref = draw.random((20, 30)) > 0.5
    plain, *_ = score_map(prob, ref, resize="square")
    how = {"resize": "square", "classes": CLASSES}
    case, dices, counts, each, lesions = score_map(
        np.stack([prob, 0 * prob]), ref.astype(np.uint8), BOTH, **how
    )
    assert {name: case[name] for name in plain} == pytest.approx(plain)
    assert ([row["class"] for row in each], lesions) == (CLASSES, [])
    assert dices["0.50"] == pytest.approx(case["dice"])
    assert counts[0].sum() == ref.size


def test_tables_have_a_row_per_outlined_class_and_per_lesion():
    import pandas as pd

    index = pd.DataFrame({"case_id": ["1", "2"], "dataset": "d", "group": ["a", "b"]})
    prob = np.stack([np.eye(3)[REF[:4, :4] % 3][..., 1:].transpose(2, 0, 1)] * 2).astype(np.float32)
    refs, annotated = [REF[:4, :4], REF[:4, :4]], np.array([[True, True], [True, False]])
    how = {"resize": "square", "classes": CLASSES, "task": "gland+nodule"}
    batches = [(prob[:1], refs[:1], annotated[:1]), (prob[1:], refs[1:], annotated[1:])]
    found = score_maps(index, batches, **how)
    assert list(found.classes[["case_id", "class"]].itertuples(index=False, name=None)) == [
        ("1", "gland"), ("1", "nodule"), ("2", "gland"),
    ]  # fmt: skip
    assert found.classes["dice"].tolist()[:2] == [1.0, 1.0]
    assert list(found.lesions["class"]) == ["nodule"]  # a gland is none
    # a test set without lesions
    nothing = score_maps(index, [(prob, refs, annotated[[1, 1]])], **how).lesions
    assert list(nothing.columns) == list(found.lesions.columns)
    assert not len(nothing)
    one = score_maps(index, [(prob[:, 0], [ref == 1 for ref in refs])], resize="square")
    assert (one.classes, one.lesions) == (None, None)

"""Figures per class and per lesion, by hand."""

import pandas as pd
import pytest

from thyroid_lib.compare.classes import (
    class_table,
    classes_sentence,
    lesion_table,
    show_classes,
    show_lesions,
)

RUN = {"run_id": "r", "model": "unet", "protocol": "grouped", "fold": 0, "seed": 0}


def case(case_id, group, name, dice, *, ref_px=10, missed=0, false=0, parts=1, **run):
    row = {"case_id": case_id, "group": group, "class": name, "dice": dice, "ref_px": ref_px}
    row |= {"missed_parts": missed, "false_parts": false, "ref_parts": parts, "nsd": dice}
    return RUN | run | row | {"hd95_px": 1.0, "precision": dice, "recall": dice}


ROWS = pd.DataFrame([
    case("1", "a", "low", 0.8),
    case("2", "a", "low", 0.0, ref_px=0, false=2, parts=0),  # none there: its false parts count
    case("3", "b", "low", 0.4, missed=1),
    case("1", "a", "high", 1.0, ref_px=0, parts=0),
    case("2", "a", "high", 0.2),
    case("3", "b", "high", 0.6, parts=2, missed=1),
])  # fmt: skip


def test_dice_of_a_class_is_over_frames_that_have_it():
    table = class_table(ROWS, resamples=200).set_index("class")
    assert table["frames"].tolist() == [2, 2]
    assert table["dice"].tolist() == pytest.approx([(0.8 + 0.4) / 2, (0.2 + 0.6) / 2])
    assert table.loc["low", "false_parts"] == pytest.approx((1 + 0) / 2)  # group a: 0 and 2
    assert table["found"].tolist() == pytest.approx([(1 + 0) / 2, (1 + 0.5) / 2])
    assert table.loc["low", "dice_low"] < 0.6 < table.loc["low", "dice_high"]
    assert table["conditional"].all()  # one seed, one split
    said = classes_sentence(table.reset_index())
    assert said.startswith("On average low is segmented best and high worst; Dice of the two: unet")
    assert "0.600 [" in show_classes(table.reset_index()).iloc[1].to_string()


def test_lesions_are_counted_by_size_whatever_the_number_of_seeds():
    sizes = (5, 10, 20, 40, 80, 160)
    rows = [
        RUN | {"seed": seed, "case_id": str(px), "group": "a", "class": "nodule", "px": px}
        | {"covered": 0.0 if px < 15 else 0.4 if px < 50 else 1.0}
        for seed in (0, 1) for px in sizes
    ]  # fmt: skip
    table = lesion_table(pd.DataFrame(rows)).set_index("size")
    assert list(table.index) == ["small", "middle", "large"]
    assert table["lesions"].tolist() == [2, 2, 2]
    assert table["found"].tolist() == [0.0, 1.0, 1.0]
    assert table["half_covered"].tolist() == [0.0, 0.0, 1.0]
    assert (table.loc["middle", "least_px"], table.loc["middle", "most_px"]) == (20, 40)
    shown = show_lesions(table.reset_index())
    assert shown["unet"].tolist() == ["0.00 of 2", "1.00 of 2", "1.00 of 2"]

import numpy as np
import pandas as pd
import pytest
from whole import DELTA, compared

from thyroid_lib.compare import sentences


def test_the_best_is_named_with_its_interval_and_doubts():
    made = compared()
    said = sentences.best_sentence(made["table"], made["ranks"])
    row = made["table"].iloc[0]
    assert said.startswith(f"Under grouped, {row.model} has the highest Dice, {row.dice:.3f} [")
    assert "† Under random the intervals are conditional on the trained runs" in said
    assert "too narrow" not in said
    few = compared(groups=6)
    assert (
        "Intervals from 6 groups under grouped and 6 groups under random are"
        in sentences.best_sentence(few["table"], few["ranks"])
    )


def test_the_random_split_is_set_against_the_groups():
    table = pd.DataFrame({"protocol": ["grouped", "random"], "model": "unet", "dice": [0.70, 0.90]})
    said = sentences.protocol_sentence(table)
    assert "unet 0.900 against 0.700" in said
    assert "adds 0.200 Dice" in said
    assert "Only one protocol was run (grouped)" in sentences.protocol_sentence(table[:1])


def pair(reading: str, **more) -> pd.DataFrame:
    row = {"protocol": "grouped", "a": "segnet", "b": "unet", "difference": -0.1, "low": -0.2}
    row |= {"high": 0.0, "reading": reading, "smallest_gap": 0.05, "groups": 12, "folds": 3}
    return pd.DataFrame([row | {"seeds": 5, "conditional": False} | more])


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        ("unet higher", "unet lies 0.100 Dice above segnet"),
        ("segnet higher", "segnet lies 0.100 Dice above unet"),
        ("equivalent", "segnet and unet are equivalent (within ±0.005)"),
        ("undecided", "segnet and unet are undecided"),
    ],
)
def test_a_pair_is_read(reading, said):
    assert sentences.difference_sentence(pair(reading), delta=DELTA) == f"Under grouped, {said}."


def test_few_groups_are_said_to_be_few():
    said = sentences.difference_sentence(pair("undecided", groups=2), delta=DELTA)
    assert said.startswith("Under grouped, as far as 2 groups can tell, ")


def test_the_power_is_told_with_the_size_of_the_study():
    said = sentences.power_sentence(pair("undecided"))
    assert "With 12 groups, 3 folds and 5 seeds a gap of 0.050 Dice" in said
    assert "too narrow" not in said
    assert "it takes more" in sentences.power_sentence(pair("undecided", conditional=True))
    assert "it takes more" in sentences.power_sentence(pair("undecided", groups=4))
    assert "no gap can be told" in sentences.power_sentence(pair("undecided", groups=1))
    assert sentences.difference_sentence(pair("")[:0], delta=DELTA).startswith("One model alone")


def test_agreement_with_the_mixed_model_is_counted():
    mixed = pd.DataFrame(
        [{"protocol": "grouped", "a": "segnet", "b": "unet", "low": 0.1, "high": 0.2, "note": "x"}]
    )
    said = sentences.mixed_sentence(pair("undecided"), mixed)
    assert said == "The mixed model agrees on 0 of 1 pairs (note: x)."
    said = sentences.mixed_sentence(pair("segnet higher", low=0.1, high=0.3), mixed.assign(note=""))
    assert said == "The mixed model agrees on 1 of 1 pairs."


def test_groups_leaders_and_the_hardest_are_counted():
    rows = [("unet", "a", 0.9), ("unet", "b", 0.2), ("segnet", "a", 0.8), ("segnet", "b", 0.3)]
    scores = pd.DataFrame(rows, columns=["model", "group", "dice"])
    scores = scores.assign(protocol="grouped", fold=0, seed=0, case_id="1")
    assert sentences.groups_sentence(scores) == (
        "Of 2 groups, segnet leads in 1 and unet leads in 1; the hardest is b, at 0.200 to 0.300 "
        "Dice."
    )


def test_curves_tell_how_far_the_loss_rose_again():
    history = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [0.5, 0.2, 0.3], "model": "unet"})
    history = history.assign(protocol="grouped", run_id="r")
    assert "unet 50 %" in sentences.curves_sentence(history)
    assert "Nothing was held back" in sentences.curves_sentence(history.drop(columns="val_loss"))


def test_failures_name_model_and_group():
    scores = pd.DataFrame(
        {
            "protocol": "grouped", "fold": 0, "seed": 0, "model": ["unet", "unet", "segnet"] * 2,
            "group": ["a", "b", "a", "a", "b", "b"], "case_id": list("123456"), "dice": 0.5,
            "missed_parts": [2, 0, 0, 2, 0, 1], "false_parts": [0, 0, 3, 0, 0, 1],
        }
    )  # fmt: skip
    assert sentences.failures_sentence(scores) == (
        "unet misses most parts (1.00 per frame; in group a 2.00) and segnet invents most parts "
        "(2.00 per frame; in group a 3.00)."
    )


def test_cost_is_told_against_the_cheapest():
    table = pd.DataFrame(
        {
            "protocol": "grouped", "model": ["unet", "segnet"], "dice": [0.8, 0.7],
            "multiply_adds": [30, 20], "parameters": 1,
        }
    )  # fmt: skip
    assert sentences.cost_sentence(table) == (
        "unet asks for 1.50 times the multiply-adds of segnet, the cheapest, and its Dice is 0.100 "
        "higher."
    )
    assert "fewest multiply-adds" in sentences.cost_sentence(table[:1])


def test_selection_tells_tie_chance_and_few_seeds():
    made = compared()
    said = sentences.selection_sentence(made["selected"], made["ranks"])
    assert "out of a tie of resunet, unet" in said
    assert "Dropped: segnet." in said
    assert "Seeds: 3; below 5 the order may be luck" in said
    assert "luck" not in sentences.selection_sentence(
        made["selected"] | {"seeds": 5}, made["ranks"]
    )


def test_every_sentence_is_one_line_without_gaps():
    made = compared()
    said = [
        sentences.best_sentence(made["table"], made["ranks"]),
        sentences.power_sentence(made["differences"]),
        sentences.stability_sentence(made["stability"], seeds=3),
        sentences.threshold_sentence(made["thresholds"]),
        sentences.calibration_sentence(made["table"]),
        sentences.groups_sentence(made["scores"]),
        sentences.curves_sentence(made["histories"]),
        sentences.failures_sentence(made["scores"]),
    ]
    for sentence in said:
        assert sentence.endswith((".", "test."))
        assert "\n" not in sentence
        assert "nan" not in sentence
        assert "  " not in sentence


def test_gaps_in_the_measures_are_passed_over():
    measured = compared()["stability"]
    measured = measured.assign(
        value=np.where(measured["measure"] == "S1", np.nan, measured["value"])
    )
    assert "S1" not in sentences.stability_sentence(measured, seeds=1)


def test_alike_frames_are_counted_within_and_between_sweeps():
    alike = np.array([[1, 0.9, 0.1], [0.9, 1, 0.7], [0.1, 0.7, 1]])
    said = sentences.alikeness_sentence(alike, np.array(["a", "a", "b"]), threshold=0.65)
    assert (
        "Of 1 pair of frames within a sweep, 100 % are near-copies (median correlation 0.90)"
        in said
    )
    assert "of 2 pairs between sweeps, 50 % (median 0.40)" in said


def test_the_exam_and_the_model_are_weighed_against_each_other():
    table = pd.DataFrame({"near": [0.9, 0.8], "far": [0.6, 0.7]}, index=["x", "y"])
    said = sentences.exams_sentence(table)
    assert "x has 0.900 on near and 0.600 on far; y has 0.800 on near and 0.700 on far." in said
    assert "The exam moves Dice by 0.200 on average over the models" in said
    assert "the choice of the model by 0.100 on average over the exams" in said
    mixed = sentences.exams_sentence(table.assign(far=[0.6, 0.95]))
    assert "The exam does not move all models the same way" in mixed
    assert "choice of the model" not in sentences.exams_sentence(table.head(1))

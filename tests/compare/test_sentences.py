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
    assert "fewest multiply-adds" in sentences.cost_sentence(table.assign(multiply_adds=[20, 30]))
    assert sentences.cost_sentence(table[:1]).startswith("unet is the only model")


def test_a_provisional_selection_is_called_so():
    made = compared()
    said = sentences.selection_sentence(made["selected"], made["ranks"])
    assert said.startswith(
        f"Selected, provisional: {made['selected']['best']}, which has the highest mean Dice under "
        "grouped. Selecting by stability needs 5 groups and 5 seeds; this study has 12 groups "
        "and 3 seeds. "
    )
    assert "Dropped: segnet." in said
    assert "of the resamples. Rule: candidates are" in said


def test_a_selection_names_its_candidates_and_what_is_not_separated():
    selected = {
        "model": "b", "protocol": "grouped", "best": "a", "candidates": ["b", "a"],
        "not_separated": ["c"], "dropped": [], "provisional": False, "seeds": 5, "groups": 9,
        "delta": 0.005, "rule": "as declared",
    }  # fmt: skip
    ranks = pd.DataFrame({"protocol": "grouped", "model": list("abc"), "p_selected": [0.3, 0.7, 0]})
    assert sentences.selection_sentence(selected, ranks) == (
        "Selected: b, the first by the rule of the candidates. Within 0.005 Dice of the best mean: "
        "b, a. Not separated from a: c. The rule selects b in 70 % of the resamples. Rule: as "
        "declared."
    )
    said = sentences.selection_sentence(selected | {"candidates": ["b"]}, ranks)
    assert said.startswith("Selected: b, the only model within 0.005 Dice of the best mean. Not")


def all_of(made: dict) -> dict[str, str]:
    """Every sentence of the comparison's notebook, by name."""
    table, ranks, scores = made["table"], made["ranks"], made["scores"]
    part = scores[(scores["fold"] == 0) & (scores["seed"] == 0)]
    picked = part.drop_duplicates("case_id").head(3).assign(rank=["best", "median", "worst"])
    return {
        "best": sentences.best_sentence(table, ranks),
        "protocol": sentences.protocol_sentence(table),
        "difference": sentences.difference_sentence(made["differences"], delta=DELTA),
        "power": sentences.power_sentence(made["differences"]),
        "mixed": sentences.mixed_sentence(made["differences"], made["mixed"]),
        "groups": sentences.groups_sentence(scores),
        "stability": sentences.stability_sentence(made["stability"], seeds=3),
        "thresholds": sentences.threshold_sentence(made["thresholds"]),
        "calibration": sentences.calibration_sentence(table),
        "failures": sentences.failures_sentence(scores),
        "frames": sentences.frames_sentence(picked, part),
        "cost": sentences.cost_sentence(table),
        "selection": sentences.selection_sentence(made["selected"], ranks),
    }


NONSENSE = ("100 % of the resamples", "win 0.000", "nan", "  ", "0 of 0", "(0.00 per", " and .")


def test_one_group_gives_no_nonsense():
    said = all_of(compared(groups=1, folds=1, random=False))
    assert not [(s, n) for s in said.values() for n in NONSENSE if n in s]
    assert "(a single group: no interval)" in said["best"]
    assert "too narrow" not in said["best"]
    assert said["groups"].startswith("There is one group, g00, at ")
    assert "A single group cannot be resampled" in said["selection"]
    assert "this study has 1 group and 3 seeds" in said["selection"]
    assert "a single group gives no interval" in said["difference"]


def test_one_model_gives_no_nonsense():
    said = all_of(compared(models=("unet",), random=False))
    assert not [(s, n) for s in said.values() for n in NONSENSE if n in s]
    assert "unet, the only model, has Dice" in said["best"]
    assert said["selection"] == "Selected: unet, the only model (12 groups and 3 seeds)."
    assert "leads" not in said["groups"]
    assert said["stability"].startswith("Of the only model: S1 (0.")
    assert "best first" not in said["calibration"]
    assert "most parts" not in said["failures"]


def test_models_that_tie_share_the_lead():
    made = compared(models=("unet",), random=False)
    table = pd.concat([made["table"], made["table"].assign(model="segnet")])
    ranks = pd.concat([made["ranks"], made["ranks"].assign(model="segnet")])
    said = sentences.best_sentence(table, ranks)
    assert "Under grouped, unet and segnet share the highest Dice, " in said
    both = pd.concat([made["scores"], made["scores"].assign(model="segnet")])
    assert sentences.groups_sentence(both).startswith("Of 12 groups, models tie in 12; the hardest")


def test_a_threshold_that_wins_nothing_is_not_said_to_win():
    made = compared()
    said = sentences.threshold_sentence(made["thresholds"])
    assert said == (
        "No other threshold than 0.50 wins 0.001 Dice for resunet, segnet and unet; none was "
        "picked on test."
    )
    better = made["thresholds"].copy()
    better.loc[better["model"] == "unet", "0.60"] = better["0.50"] + 0.01
    assert sentences.threshold_sentence(better) == (
        "Another threshold than 0.50 would at best win unet 0.010 Dice at 0.60; no other threshold "
        "than 0.50 wins 0.001 Dice for resunet and segnet; none was picked on test."
    )


def test_a_failure_that_no_model_has_is_said_so():
    scores = compared()["scores"].assign(missed_parts=0)
    assert sentences.failures_sentence(scores).startswith("No model misses a part and ")


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

"""What the readings say, and what they must never say."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from synthetic import complete, study, thresholds_of
from whole import DELTA, compare, compared

from thyroid_lib.compare import sentences
from thyroid_lib.compare.card import model_card


def all_of(made: dict) -> dict[str, str]:
    """Every sentence of the comparison's notebook, by name."""
    table, ranks, scores = made["table"], made["ranks"], made["scores"]
    part = scores[(scores["fold"] == 0) & (scores["seed"] == 0)]
    picked = part.drop_duplicates("case_id").head(3).reset_index(drop=True)
    picked["rank"] = pd.Series(["best", "median", "worst"])
    seeds, say = int(table["seeds"].min()), sentences
    return {
        "runs": say.runs_sentence(made["runs"], origin="results/alone/runs", store="store"),
        "best": say.best_sentence(table, ranks),
        "protocol": say.protocol_sentence(table),
        "difference": say.difference_sentence(made["differences"], delta=DELTA),
        "power": say.power_sentence(made["differences"]),
        "mixed": say.mixed_sentence(made["differences"], made["mixed"]),
        "groups": say.groups_sentence(scores),
        "curves": say.curves_sentence(made["histories"]),
        "stability": say.stability_sentence(made["stability"], seeds=seeds),
        "thresholds": say.threshold_sentence(made["thresholds"]),
        "calibration": say.calibration_sentence(table),
        "failures": say.failures_sentence(scores),
        "frames": say.frames_sentence(picked, part),
        "cost": say.cost_sentence(table),
        "selection": say.selection_sentence(made["selected"], ranks),
    }


NONSENSE = re.compile(
    r"\bnan\b|\binf\b|\n|  | [.,;:]|win \w+ 0\.000|0\.000 higher|gap of 0\.000| 0 of 0|"
    r"\(0\.00 per|: 0\.00 per|falls by 0\.00|\d{4,}\.\d|above segnet by|Of 1 groups|\b1 \w+s\b"
)


@st.composite
def studies(draw):
    """One to four models, one to six groups and seeds; ties, zeros, and no validation."""
    names = ["unet", "segnet", "resunet", "own"][: draw(st.integers(1, 4))]
    groups, seeds = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    folds = draw(st.integers(1, min(2, groups)))
    results = study(dict.fromkeys(names, 0.5), groups=groups, seeds=seeds, folds=folds, frames=2)
    value = st.one_of(st.sampled_from([0.0, 0.5, 0.5002, 0.7, 1.0]), st.floats(0, 1))
    per_group, frames = draw(st.booleans()), results.scores
    keys = frames["model"] + (frames["group"] if per_group else "")
    each = {key: draw(value) for key in sorted(set(keys))}
    scores = complete(frames.assign(dice=keys.map(each)))
    rate = {name: draw(st.sampled_from([0, 0.001, 0.5, 2])) for name in names}
    scores = scores.assign(missed_parts=scores["model"].map(rate))
    histories = results.histories
    if draw(st.booleans()):  # one curve for all: falls of every size, flat ones, losses of zero
        curve = draw(st.lists(value, min_size=15, max_size=15))
        histories = histories.assign(val_dice=np.resize(curve, len(histories)))
        histories["val_loss"] = 1 - histories["val_dice"]
    for column in draw(st.sets(st.sampled_from(["val_loss", "val_dice"]))):
        gone = histories.drop(columns=column)
        histories = gone if draw(st.booleans()) else gone.assign(**{column: np.nan})
    runs = results.runs.assign(multiply_adds=draw(st.sampled_from([1, 10**9])))
    return results._replace(
        runs=runs, histories=histories, scores=scores, thresholds=thresholds_of(scores)
    )


@given(studies())
@settings(max_examples=30, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
def test_no_sentence_says_nonsense_or_contradicts_its_table(results):
    made = compare(results, resamples=20)
    said = all_of(made)
    assert not [(name, text) for name, text in said.items() if NONSENSE.search(text)]
    names = ("selected", "table", "runs", "scores", "differences", "stability", "ranks")
    card = model_card(**{name: made[name] for name in names})
    assert not re.search(r"\bnan\b|\binf\b|\n- ?\n", card)
    assert all(text.endswith(".") for name, text in said.items() if text), said
    table = made["table"]
    dice, one_model = table["dice"].round(3), len(table) == 1
    ties = (dice == dice.max()).sum()
    if table["groups"].iloc[0] == 1:
        assert not [text for text in said.values() if "of the resamples" in text]
        assert "too narrow" not in said["best"]
    assert ("has the highest Dice" in said["best"]) == (ties == 1 and not one_model)
    assert (" leads in " in said["best"]) <= (ties == 1)
    assert ("share the highest" in said["best"]) == (ties > 1)
    for word in ("most", "best first", "Steadiest", "Highest", "equivalent", "undecided"):
        assert not (one_model and [text for text in said.values() if word in text.split(";")[0]])
    parts = made["scores"].groupby("model")["missed_parts"].mean()
    assert ("No part is missed" in said["failures"]) == (parts.max() == 0)
    named = re.search(r"Most parts are missed by (.*?):", said["failures"])
    if named:
        assert set(re.split(", | and ", named[1])) == set(parts.index[parts == parts.max()])
    gains = re.findall(r"(\w+) (\d\.\d+) Dice at", said["thresholds"])
    assert all(float(gain) > 0 for _, gain in gains)
    if "val_dice" in made["histories"]:
        curves = made["histories"].groupby("run_id")["val_dice"]
        deepest = (curves.cummax() - made["histories"]["val_dice"]).max()
        assert ("Validation Dice falls" in said["curves"]) == (deepest >= sentences.DEEP_FALL)


def test_the_best_is_named_with_its_interval_and_doubts():
    made = compared()
    said = sentences.best_sentence(made["table"], made["ranks"])
    row = made["table"].iloc[0]
    assert said.startswith(f"Under grouped, {row.model} has the highest Dice, {row.dice:.3f} [")
    assert "† Under random the intervals are conditional on the trained runs" in said
    few = compared(groups=6)
    assert (
        "Intervals from 6 groups under grouped and 6 groups under random are"
        in sentences.best_sentence(few["table"], few["ranks"])
    )


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        (
            {"grouped": 0.7, "random": 0.9},
            "unet 0.900 against 0.700. The random split changes Dice by +0.200.",
        ),
        ({"grouped": 0.9, "random": 0.7}, "changes Dice by −0.200."),
        ({"grouped": 0.9}, "Protocols: grouped; random and grouped were not both run to compare."),
        (
            {"official": 0.9, "random": 0.9},
            "Protocols: official and random; random and grouped were",
        ),
    ],
)
def test_the_random_split_is_set_against_the_groups(dice, said):
    table = pd.DataFrame({"protocol": dice.keys(), "model": "unet", "dice": dice.values()})
    assert said in sentences.protocol_sentence(table)


def pair(reading: str, **more) -> pd.DataFrame:
    row = {"protocol": "grouped", "a": "segnet", "b": "unet", "difference": -0.1, "low": -0.2}
    row |= {"high": 0.0, "reading": reading, "smallest_gap": 0.05, "groups": 12, "folds": 3}
    return pd.DataFrame([row | {"seeds": 5, "conditional": False} | more])


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            pair("unet higher"),
            "Differences of Dice under grouped: segnet − unet −0.100 (unet higher).",
        ),
        (pair("equivalent"), "segnet − unet −0.100 (equivalent, within ±0.005)."),
        (pair("undecided", groups=2), "under grouped, as far as 2 groups can tell: segnet"),
        (pair("undecided", conditional=True), "under grouped, in the trained runs: segnet"),
        (pair("undecided", groups=1), "a single group gives no interval: all pairs are undecided."),
        (pair("")[:0], "One model alone: there is no difference to read."),
    ],
)
def test_pairs_are_read(pairs, said):
    assert said in sentences.difference_sentence(pairs, delta=DELTA)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "With 12 groups, 3 folds and 5 seeds a gap of 0.050 Dice (by pair) could be seen"),
        ({"conditional": True}, "The true figure is larger"),
        ({"groups": 4}, "The true figure is larger"),
        ({"groups": 1}, "no gap can be told"),
        ({"smallest_gap": 0.0}, "The resamples do not differ"),
    ],
)
def test_the_power_is_given_with_the_size_of_the_study(more, said):
    assert said in sentences.power_sentence(pair("undecided", **more))


def test_agreement_with_the_mixed_model_is_counted():
    mixed = pd.DataFrame(
        [{"protocol": "grouped", "a": "segnet", "b": "unet", "low": 0.1, "high": 0.2, "note": "x"}]
    )
    said = sentences.mixed_sentence(pair("undecided"), mixed)
    assert said == "The mixed model agrees on 0 of 1 pair (note: x)."
    said = sentences.mixed_sentence(pair("segnet higher", low=0.1, high=0.3), mixed.assign(note=""))
    assert said == "The mixed model agrees on 1 of 1 pair."


def scores_of(rows: list[tuple], columns: list[str]) -> pd.DataFrame:
    scores = pd.DataFrame(rows, columns=["model", "group", *columns])
    ids = [str(i) for i in range(len(scores))]
    return scores.assign(protocol="grouped", fold=0, seed=0, case_id=ids)


def test_leaders_of_groups_are_counted_and_ties_named():
    rows = [("unet", "a", 0.9), ("unet", "b", 0.2), ("unet", "c", 0.5)]
    rows += [("segnet", "a", 0.8), ("segnet", "b", 0.3), ("segnet", "c", 0.5)]
    assert sentences.groups_sentence(scores_of(rows, ["dice"])) == (
        "Highest Dice: segnet in 1, segnet = unet in 1 and unet in 1 of 3 groups. Lowest Dice: b, "
        "at 0.200 to 0.300."
    )


def test_failures_name_model_and_group_and_share_ties():
    rows = [("unet", "a", 2, 1), ("unet", "b", 0, 0), ("segnet", "a", 0, 1), ("segnet", "b", 1, 0)]
    scores = scores_of(rows, ["missed_parts", "false_parts"])
    assert sentences.failures_sentence(scores) == (
        "Most parts are missed by unet: 1.00 per frame, in group a 2.00. "
        "Parts are invented by segnet and unet: 0.50 per frame."
    )
    rare = scores.assign(missed_parts=0, false_parts=0.004)
    assert sentences.failures_sentence(rare) == (
        "No part is missed by any model. Hardly a part (less than 0.01 per frame) is invented by "
        "any model."
    )


NO_RISE = "At the last epoch validation loss is at its lowest."
RISE = "Validation loss rises from its lowest to the last epoch: unet 0.20 to 0.30."


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({"val_loss": [0.5, 0.2, 0.3]}, RISE),
        ({"val_loss": [0.5, 0.3, 0.2]}, NO_RISE),
        ({"val_loss": [0.1] * 3, "val_dice": [np.nan] * 3}, NO_RISE),
        (
            {"val_dice": [0.59, 0.05, 0.7]},
            "Validation Dice falls: unet from 0.59 to 0.05 (epochs 1 to 2 of r).",
        ),
        ({"val_dice": [0.5, 0.6, 0.55]}, "No curve of validation Dice falls by 0.1 or more."),
        ({}, "Nothing was held back to watch: only training loss is known."),
    ],
)
def test_curves_are_read_for_falls_of_dice_and_rises_of_loss(curves, said):
    history = pd.DataFrame({"epoch": [1, 2, 3], **curves, "model": "unet"})
    assert sentences.curves_sentence(history.assign(protocol="grouped", run_id="r")) == said


@pytest.mark.parametrize(
    ("dice", "multiply_adds", "said"),
    [
        ((0.8, 0.7), (30, 20), "unet asks for 1.50 times the multiply-adds of segnet, the "
         "cheapest, and its Dice is 0.100 higher."),
        ((0.8, 0.7), (20, 30), "unet is the cheapest, and no model has a higher Dice."),
        ((0.8, 0.8), (30, 20), "segnet is the cheapest, and no model has a higher Dice."),
        ((0.8,), (30,), "unet is the only model: there is no cost to compare."),
    ],
)  # fmt: skip
def test_cost_is_set_against_the_cheapest(dice, multiply_adds, said):
    models = ["unet", "segnet"][: len(dice)]
    table = {"protocol": "grouped", "model": models, "dice": dice, "multiply_adds": multiply_adds}
    assert sentences.cost_sentence(pd.DataFrame(table | {"parameters": 1})) == said


def test_a_provisional_selection_is_called_so():
    made = compared()
    said = sentences.selection_sentence(made["selected"], made["ranks"])
    assert said.startswith(
        f"Selected, provisional: {made['selected']['best']}; no model has a higher mean Dice under "
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
    ranks = pd.DataFrame(
        {"protocol": "grouped", "model": list("abc"), "p_selected": [0.3, 0.999, 0]}
    )
    assert sentences.selection_sentence(selected, ranks) == (
        "Selected: b, the first of the candidates by the rule. Within 0.005 Dice of the best mean: "
        "b, a. Not separated from a: c. The rule selects b in more than 99 % of the resamples. "
        "Rule: as declared."
    )
    said = sentences.selection_sentence(selected | {"candidates": ["b"]}, ranks)
    assert said.startswith("Selected: b, the only model within 0.005 Dice of the best mean. Not")


def test_a_threshold_that_wins_nothing_is_not_said_to_win():
    thresholds = compared()["thresholds"].copy()
    assert sentences.threshold_sentence(thresholds) == (
        "No other threshold than 0.50 wins 0.001 Dice for resunet, segnet and unet. None was "
        "picked on test."
    )
    thresholds.loc[thresholds["model"] == "unet", "0.60"] = thresholds["0.50"] + 0.01
    assert sentences.threshold_sentence(thresholds).startswith(
        "Another threshold than 0.50 would at best win unet 0.010 Dice at 0.60. No other threshold "
    )


def test_the_steadiest_are_named_ties_shared_and_gaps_passed_over():
    measures = ["seed_sd", "epoch_change", "largest_fall", "worst_decile", "threshold_range"]
    measures.append("best_minus_last")
    gap = np.nan
    values = {"unet": [gap, gap, 0, 0.4, gap, gap], "own": [gap, gap, 0, 0.5, gap, gap]}
    table = pd.DataFrame(values, index=measures).rename_axis("measure").reset_index()
    table = table.melt("measure", var_name="model").assign(protocol="grouped")
    assert sentences.stability_sentence(table, seeds=1) == (
        "Steadiest in the trained runs: own and unet by largest_fall (0.000); own by worst_decile "
        "(0.500). Seeds: 1; below 5 no stability between seeds is claimed."
    )


def test_alike_frames_are_counted_within_and_between_sweeps():
    alike = np.array([[1, 0.9, 0.1], [0.9, 1, 0.7], [0.1, 0.7, 1]])
    assert sentences.alikeness_sentence(alike, np.array(["a", "a", "b"]), threshold=0.65) == (
        "Of 1 pair of frames within a sweep, 100 % are near-copies (median correlation 0.90). "
        "Of 2 pairs of frames between sweeps, 50 % are near-copies (median correlation 0.40)."
    )
    single = sentences.alikeness_sentence(alike, np.array(["a", "b", "c"]), threshold=0.65)
    assert single.startswith("Of 3 pairs of frames between sweeps")


def test_the_exam_and_the_model_are_weighed_against_each_other():
    table = pd.DataFrame({"near": [0.9, 0.8], "far": [0.6, 0.7]}, index=["x", "y"])
    said = sentences.exams_sentence(table)
    assert "x has 0.900 on near and 0.600 on far; y has 0.800 on near and 0.700 on far." in said
    assert "The exam moves Dice by 0.200 on average over the models" in said
    assert "the choice of the model by 0.100 on average over the exams" in said
    mixed = sentences.exams_sentence(table.assign(far=[0.6, 0.95]))
    assert "The exam does not move all models the same way" in mixed
    assert "The exam moves no model's Dice" in sentences.exams_sentence(
        table.assign(far=table.near)
    )
    assert "choice of the model" not in sentences.exams_sentence(table.head(1))

"""What the readings say, and what they must never say."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from synthetic import complete, study, thresholds_of
from whole import DELTA, compare, compared

from thyroid_lib.compare import readings
from thyroid_lib.compare.card import model_card
from thyroid_lib.compare.stability import MEASURES

NONSENSE = re.compile(
    r"\bnan\b|\binf\b|\n|  | [.,;:]|win \w+ 0\.000|0\.000 higher|gap of 0\.000| 0 of 0|"
    r"\(0\.00 per|: 0\.00 per|falls by 0\.00|\d{4,}\.\d|above segnet by|Of 1 groups|\b1 \w+s\b"
)


def all_of(made: dict) -> dict[str, str]:
    """Every sentence of the comparison's notebook, by name."""
    table, ranks, scores = made["table"], made["ranks"], made["scores"]
    part = scores[(scores["fold"] == 0) & (scores["seed"] == 0)]
    picked = part.drop_duplicates("case_id").head(3).assign(rank="best")
    seeds, say = int(table["seeds"].min()), readings
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


@st.composite
def studies(draw):
    """One to four models, one to six groups and seeds; ties, zeros, and no validation."""
    names = ["unet", "segnet", "resunet", "own"][: draw(st.integers(1, 4))]
    groups, seeds = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    folds = draw(st.integers(1, min(2, groups)))
    results = study(dict.fromkeys(names, 0.5), groups=groups, seeds=seeds, folds=folds, frames=2)
    value = st.one_of(st.sampled_from([0.0, 0.5, 0.5002, 0.7, 1.0]), st.floats(0, 1))
    keys = results.scores["model"] + (results.scores["group"] if draw(st.booleans()) else "")
    each = {key: draw(value) for key in sorted(set(keys))}
    scores = complete(results.scores.assign(dice=keys.map(each)))
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
    made = {"runs": runs, "histories": histories, "scores": scores}
    return results._replace(**made, thresholds=thresholds_of(scores))


@pytest.mark.study
@given(studies())
@settings(max_examples=30, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
def test_no_sentence_says_nonsense_or_contradicts_its_table(results):
    made = compare(results, resamples=20)
    said, table = all_of(made), made["table"]
    assert not [(name, text) for name, text in said.items() if NONSENSE.search(text)]
    names = ("selected", "table", "runs", "scores", "differences", "stability", "ranks")
    card = model_card(**{name: made[name] for name in names})
    assert not re.search(r"\bnan\b|\binf\b|\n- ?\n", card)
    assert all(text.endswith(".") for text in said.values() if text), said
    dice = table["dice"].round(3)
    ties = (dice == dice.max()).sum()
    if table["groups"].iloc[0] == 1:
        assert not re.search("of the resamples|too narrow", said["best"] + said["selection"])
    only = "the only model, " in said["best"], said["selection"].endswith("the only model.")
    assert only == (len(dice) == 1,) * 2
    assert ("has the highest Dice" in said["best"]) == (ties == 1 < len(dice))
    assert (" leads in " in said["best"]) <= (ties == 1)
    assert ("share the highest" in said["best"]) == (ties > 1)
    parts = made["scores"].groupby("model")["missed_parts"].mean()
    assert ("No part is missed" in said["failures"]) == (parts.max() == 0)
    if named := re.search(r"Most parts are missed by (.*?):", said["failures"]):
        assert set(re.split(", | and ", named[1])) == set(parts.index[parts == parts.max()])
    if "val_dice" in made["histories"]:
        curves = made["histories"].groupby("run_id")["val_dice"]
        deepest = (curves.cummax() - made["histories"]["val_dice"]).max()
        assert ("Validation Dice falls" in said["curves"]) == (deepest >= readings.DEEP_FALL)


def test_the_best_is_named_with_its_interval_and_doubts():
    made = compared(groups=8)
    said, row = readings.best_sentence(made["table"], made["ranks"]), made["table"].iloc[0]
    assert said.startswith(f"Under grouped, {row.model} has the highest Dice, {row.dice:.3f} [")
    assert "† Under random the intervals are conditional on the trained runs" in said
    assert "Intervals from 8 groups under grouped and 8 groups under random are" in said


def pair(reading: str = "", **more) -> pd.DataFrame:
    row = {"protocol": "grouped", "a": "segnet", "b": "unet", "difference": -0.1, "low": -0.2}
    row |= {"high": 0.0, "reading": reading, "smallest_gap": 0.05, "groups": 12, "folds": 3}
    return pd.DataFrame([row | {"seeds": 5, "conditional": False} | more])


def protocols(**dice) -> pd.DataFrame:
    return pd.DataFrame({"protocol": dice.keys(), "model": "unet", "dice": dice.values()})


def curves(**columns) -> pd.DataFrame:
    history = pd.DataFrame({"epoch": [1, 2, 3], **columns, "model": "unet"})
    return history.assign(protocol="grouped", run_id="r")


def costs(dice: tuple, multiply_adds: tuple) -> pd.DataFrame:
    table = pd.DataFrame({"model": ["unet", "segnet"][: len(dice)], "dice": dice})
    return table.assign(protocol="grouped", multiply_adds=multiply_adds, parameters=1)


def groups(**values) -> pd.DataFrame:
    """Scores of unet and segnet on groups a, b …: a column per list of values, unet's first."""
    count = len(next(iter(values.values()))) // 2
    scores = pd.DataFrame({"model": ["unet"] * count + ["segnet"] * count, **values})
    scores = scores.assign(group=[*"abc"[:count]] * 2, case_id=range(len(scores)))
    return scores.assign(protocol="grouped", fold=0, seed=0)


def exams(near: list, far: list) -> pd.DataFrame:
    return pd.DataFrame({"near": near, "far": far}, index=["x", "y"][: len(near)])


def selected(**more) -> tuple[dict, pd.DataFrame]:
    chosen = {
        "model": "b", "protocol": "grouped", "best": "a", "candidates": ["b", "a"], "groups": 9,
        "not_separated": ["c"], "dropped": [], "provisional": False, "seeds": 5, "delta": 0.005,
        "rule": "as declared",
    }  # fmt: skip
    chances = {"protocol": "grouped", "model": list("abc"), "p_selected": [0.3, 0.999, 0]}
    return chosen | more, pd.DataFrame(chances)


def thresholds(gain: float) -> pd.DataFrame:
    table = compared()["thresholds"].copy()
    table.loc[table["model"] == "unet", "0.60"] = table["0.50"] + gain
    return table


MIXED = pair()[["protocol", "a", "b"]].assign(low=0.1, high=0.2, note="x")
STEADY = pd.DataFrame(np.nan, index=list(MEASURES), columns=["unet", "own"])
STEADY.loc["largest_fall"], STEADY.loc["worst_decile"] = 0, (0.4, 0.5)
STEADY = STEADY.rename_axis("measure").reset_index().melt("measure", var_name="model")
ALIKE = np.array([[1, 0.9, 0.1], [0.9, 1, 0.7], [0.1, 0.7, 1]])
FAILED = {"missed_parts": [2, 0, 0, 1], "false_parts": [1, 0, 1, 0]}
SAID = {
    readings.protocol_sentence: [
        (protocols(grouped=0.7, random=0.9),
         "unet 0.900 against 0.700. The random split changes Dice by +0.200."),
        (protocols(official=0.9, random=0.9),
         "Protocols: official and random; random and grouped were not both run to compare."),
    ],
    partial(readings.difference_sentence, delta=DELTA): [
        (pair("unet higher"),
         "Differences of Dice under grouped: segnet − unet −0.100 (unet higher)."),
        (pair("equivalent", groups=2, conditional=True), "as far as 2 groups can tell, in the "
         "trained runs: segnet − unet −0.100 (equivalent, within ±0.005)."),
        (pair("undecided", groups=1), "a single group gives no interval: all pairs are undecided."),
        (pair()[:0], "One model alone: there is no difference to read."),
    ],
    readings.power_sentence: [
        (pair(), "With 12 groups, 3 folds and 5 seeds a gap of 0.050 Dice (by pair) could be seen"),
        (pair(groups=4), "The true figure is larger"),
        (pair(groups=1), "no gap can be told"),
        (pair(smallest_gap=0.0), "The resamples do not differ"),
    ],
    partial(readings.mixed_sentence, mixed=MIXED): [
        (pair(), "The mixed model agrees on 0 of 1 pair (note: x)."),
    ],
    readings.groups_sentence: [
        (groups(dice=[0.9, 0.2, 0.5, 0.8, 0.3, 0.5]),
         "Highest Dice: segnet in 1, segnet = unet in 1 and unet in 1 of 3 groups. Lowest Dice: b, "
         "at 0.200 to 0.300."),
    ],
    partial(readings.alikeness_sentence, groups=np.array(["a", "a", "b"]), threshold=0.65): [
        (ALIKE,
         "Of 1 pair of frames within a sweep, 100 % are near-copies (median correlation 0.90). Of "
         "2 pairs of frames between sweeps, 50 % are near-copies (median correlation 0.40)."),
    ],
    readings.exams_sentence: [
        (exams([0.9, 0.8], [0.6, 0.7]),
         "x has 0.900 on near and 0.600 on far; y has 0.800 on near and 0.700 on far. The exam "
         "moves Dice by 0.200 on average over the models, the choice of the model by 0.100 on "
         "average over the exams."),
        (exams([0.9, 0.8], [0.6, 0.95]), "The exam does not move all models the same way"),
    ],
    readings.curves_sentence: [
        (curves(val_loss=[0.5, 0.2, 0.3]),
         "Validation loss rises from its lowest to the last epoch: unet 0.20 to 0.30."),
        (curves(val_loss=[0.5, 0.3, 0.2]), "At the last epoch validation loss is at its lowest."),
        (curves(val_dice=[0.59, 0.05, 0.7]),
         "Validation Dice falls: unet from 0.59 to 0.05 (epochs 1 to 2 of r)."),
        (curves(val_dice=[0.5, 0.6, 0.55]),
         "No curve of validation Dice falls by 0.1 or more."),
        (curves(), "Nothing was held back to watch under grouped: only training loss is known."),
    ],
    partial(readings.stability_sentence, seeds=1): [
        (STEADY.assign(protocol="grouped"),
         "Steadiest in the trained runs: own and unet by largest_fall (0.000); own by worst_decile "
         "(0.500). Seeds: 1; below 5 no stability between seeds is claimed."),
    ],
    readings.threshold_sentence: [
        (thresholds(0.01),
         "Another threshold than 0.50 would at best win unet 0.010 Dice at 0.60. No other"),
    ],
    readings.failures_sentence: [
        (groups(**FAILED),
         "Most parts are missed by unet: 1.00 per frame, in group a 2.00. "
         "Parts are invented by segnet and unet: 0.50 per frame."),
        (groups(**FAILED).assign(missed_parts=0, false_parts=0.004),
         "No part is missed by any model. Hardly a part (less than 0.01 per frame) is invented by "
         "any model."),
    ],
    readings.cost_sentence: [
        (costs((0.8, 0.7), (30, 20)),
         "unet asks for 1.50 times the multiply-adds of segnet, the cheapest, and its Dice is "
         "0.100 higher."),
        (costs((0.8, 0.8), (30, 20)), "segnet is the cheapest, and no model has a higher Dice."),
    ],
    lambda chosen: readings.selection_sentence(*chosen): [
        (selected(),
         "Selected: b, the first of the candidates by the rule. Within 0.005 Dice of the best "
         "mean: b, a. Not separated from a: c. The rule selects b in more than 99 % of the "
         "resamples. Rule: as declared."),
        (selected(provisional=True, seeds=3, dropped=["d"]),
         "Selected, provisional: b; no model has a higher mean Dice under grouped. Selecting by "
         "stability needs 5 groups and 5 seeds; this study has 9 groups and 3 seeds. Within 0.005 "
         "Dice of the best mean: b, a. Not separated from a: c. Dropped: d."),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "table", "said"), [(say, *case) for say, each in SAID.items() for case in each]
)
def test_a_sentence_says_what_its_table_holds(sentence, table, said):
    assert said in sentence(table)

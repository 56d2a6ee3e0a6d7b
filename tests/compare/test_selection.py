import numpy as np
import pandas as pd
import pytest
from synthetic import shuffled, study

from thyroid_lib.compare.bootstrap import differences
from thyroid_lib.compare.selection import decide, ranks, select
from thyroid_lib.compare.stability import stability
from thyroid_lib.compare.tables import summary


def table_of(dice: dict, *, seeds: int = 5, **multiply_adds) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"protocol": "grouped", "model": model, "dice": value, "seeds": seeds,
             "multiply_adds": multiply_adds.get(model, 10), "parameters": 1000}
            for model, value in dice.items()
        ]
    )  # fmt: skip


def pairs_of(dice: dict, *, half: float) -> pd.DataFrame:
    names = sorted(dice)
    rows = [(a, b, dice[a] - dice[b]) for i, a in enumerate(names) for b in names[i + 1 :]]
    table = pd.DataFrame(rows, columns=["a", "b", "difference"]).assign(protocol="grouped")
    return table.assign(low=table.difference - half, high=table.difference + half)


def stable(s1: dict, s3: dict | None = None) -> pd.DataFrame:
    """S1 with an interval from half to twice of it."""
    rows = [("S1", model, value, value / 2, 2 * value) for model, value in s1.items()]
    rows += [("S3", model, (s3 or {}).get(model, 0.5), 0.4, 0.6) for model in s1]
    table = pd.DataFrame(rows, columns=["measure", "model", "value", "low", "high"])
    return table.assign(protocol="grouped", conditional=False)


DICE = {"unet": 0.80, "segnet": 0.70, "resunet": 0.81}


def test_a_model_is_dropped_only_if_its_interval_lies_wholly_below_minus_delta():
    s1 = {"unet": 0.01, "segnet": 0.001, "resunet": 0.01}
    # segnet − resunet: −0.11; with half 0.10 the interval ends at −0.01, with 0.106 at −0.004
    for half, dropped in ((0.10, ["segnet"]), (0.106, []), (0.104, ["segnet"])):
        chosen = select(table_of(DICE), pairs_of(DICE, half=half), stable(s1), delta=0.005)
        assert chosen["dropped"] == dropped, half
        assert chosen["best"] == "resunet"


def test_the_rest_are_ranked_by_s1():
    s1 = {"unet": 0.001, "segnet": 0.02, "resunet": 0.01}
    chosen = select(table_of(DICE), pairs_of(DICE, half=0.5), stable(s1), delta=0.005)
    assert chosen["model"] == "unet"  # 0.001 … 0.002 lies below 0.005 … 0.02
    assert chosen["tied"] == ["unet"]
    assert chosen["kept"] == ["unet", "resunet", "segnet"]


def test_equal_s1_is_ranked_by_s3():
    s1 = dict.fromkeys(DICE, 0.01)
    s3 = {"unet": 0.2, "segnet": 0.6, "resunet": 0.4}
    chosen = select(table_of(DICE), pairs_of(DICE, half=0.5), stable(s1, s3), delta=0.005)
    assert chosen["kept"] == ["segnet", "resunet", "unet"]


def test_overlapping_s1_is_a_tie_and_goes_to_the_fewest_multiply_adds():
    s1 = {"unet": 0.010, "segnet": 0.012, "resunet": 0.1}
    table = table_of(DICE, unet=9, segnet=7, resunet=1)
    chosen = select(table, pairs_of(DICE, half=0.5), stable(s1), delta=0.005)
    assert chosen["tied"] == ["segnet", "unet"]  # resunet is the cheapest, but less stable
    assert chosen["model"] == "segnet"


def test_a_tie_of_equal_multiply_adds_goes_to_the_fewest_parameters():
    table = table_of(DICE)
    table.loc[table.model == "unet", "parameters"] = 900
    chosen = select(table, pairs_of(DICE, half=0.5), stable(dict.fromkeys(DICE, 0.01)), delta=0.005)
    assert chosen["model"] == "unet"


@pytest.mark.parametrize("s1", [0.001, np.nan])
def test_fewer_than_five_seeds_are_a_tie_whatever_s1_says(s1):
    table = table_of(DICE, seeds=4, unet=9, segnet=1, resunet=5)
    measured = stable({"unet": s1, "segnet": 0.5, "resunet": 0.2})
    chosen = select(table, pairs_of(DICE, half=0.05), measured, delta=0.005)
    assert chosen["dropped"] == ["segnet"]
    assert chosen["tied"] == ["resunet", "unet"]
    assert chosen["model"] == "resunet"


def test_without_an_interval_nothing_is_dropped():
    pairs = pairs_of(DICE, half=0.001).assign(low=np.nan, high=np.nan)
    measured = stable(dict.fromkeys(DICE, np.nan))
    assert select(table_of(DICE, seeds=1), pairs, measured, delta=0.005)["dropped"] == []


def test_one_model_alone_is_selected():
    chosen = select(
        table_of({"unet": 0.8}), pairs_of(DICE, half=1)[:0], stable({"unet": 0.01}), delta=0.005
    )
    assert (chosen["model"], chosen["tied"]) == ("unet", ["unet"])


def whole(results, *, delta=0.005, resamples=500):
    table = summary(results.scores, results.runs, results.calibration, resamples=resamples)
    pairs = differences(results.scores, delta=delta, resamples=resamples)
    measured = stability(results.scores, results.histories, results.thresholds, resamples=resamples)
    chance = ranks(results.scores, results.runs, delta=delta, resamples=resamples)
    return select(table, pairs, measured, delta=delta), chance.set_index("model")


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_clear_winner_wins(seeds):
    """Far better, and the dearest: neither a tie nor its cost may take it from there."""
    chosen, chance = whole(study({"unet": 0.85, "segnet": 0.60, "resunet": 0.70}, seeds=seeds))
    assert chosen["model"] == chosen["best"] == "unet"
    assert chosen["dropped"] == ["resunet", "segnet"]
    assert chance.loc["unet", ["p_best", "p_selected"]].tolist() == [1, 1]
    assert chance.loc["unet", ["rank", "low", "high"]].tolist() == [1, 1, 1]


def test_a_clearly_steadier_model_wins_among_equals():
    results = study(
        {"unet": 0.75, "segnet": 0.75, "resunet": 0.75}, seeds=12, folds=1,
        seed_sd={"unet": 0.001, "segnet": 0.04, "resunet": 0.04}, model_group_sd=0.005, frames=40,
    )  # fmt: skip
    chosen, chance = whole(results)
    assert chosen["dropped"] == []
    assert (chosen["model"], chosen["tied"]) == ("unet", ["unet"])
    assert chance["p_selected"].idxmax() == "unet"


def test_equal_models_are_a_tie_and_the_cheapest_is_taken():
    chosen, chance = whole(study({"unet": 0.75, "segnet": 0.75, "resunet": 0.75}))
    assert chosen["tied"] == ["resunet", "segnet", "unet"]
    assert chosen["model"] == "segnet"  # the fewest multiply-adds of the three
    assert chance["p_selected"].sum() == pytest.approx(1)
    assert chance["p_best"].max() < 0.9


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_order_of_models_runs_and_cases_changes_nothing(seeds):
    results = study(seeds=seeds)
    chosen, chance = whole(results)
    mixed = type(results)(*(shuffled(table, 3) for table in results))
    again, chance_again = whole(mixed)
    assert chosen == again
    pd.testing.assert_frame_equal(chance, chance_again, check_exact=True)


def test_the_rule_within_resamples_is_the_rule_of_the_study():
    """A resample that is the study itself selects what the study selects."""
    dice, s1 = np.array([[0.81, 0.70, 0.80]]), np.array([[0.01, 0.001, 0.012]])
    above = np.full((3, 3), 0.05)
    cheap = np.array([2, 0, 1])
    best, chosen, kept, tied = decide(dice, above, s1, s1 / 2, s1 * 2, cheap, delta=0.005, seeds=5)
    assert (best[0], chosen[0]) == (0, 2)
    assert kept.tolist() == [[True, False, True]]
    assert tied.tolist() == [[True, False, True]]

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import shuffled, study

from thyroid_lib.compare.bootstrap import differences
from thyroid_lib.compare.selection import decide, ranks, select
from thyroid_lib.compare.stability import stability
from thyroid_lib.compare.tables import summary


def table_of(dice: dict, *, seeds: int = 5, groups: int = 5, **multiply_adds) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"protocol": "grouped", "model": model, "dice": value, "seeds": seeds,
             "groups": groups, "multiply_adds": multiply_adds.get(model, 10), "parameters": 1000}
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
    rows = [("seed_sd", model, value, value / 2, 2 * value) for model, value in s1.items()]
    rows += [("worst_decile", model, (s3 or {}).get(model, 0.5), 0.4, 0.6) for model in s1]
    table = pd.DataFrame(rows, columns=["measure", "model", "value", "low", "high"])
    return table.assign(protocol="grouped", conditional=False)


DICE = {"unet": 0.80, "segnet": 0.70, "resunet": 0.81}
CLOSE = {"unet": 0.806, "segnet": 0.809, "resunet": 0.81}  # all within 0.005


def chosen_of(dice, s1, s3=None, *, half=0.5, **sizes) -> dict:
    table = table_of(dice, **sizes)
    return select(table, pairs_of(dice, half=half), stable(s1, s3), delta=0.005)


def test_only_networks_within_delta_of_the_best_mean_are_candidates():
    """segnet is the steadiest and the cheapest by far, and no interval drops it."""
    s1 = {"unet": 0.01, "segnet": 0.001, "resunet": 0.02}
    chosen = chosen_of({"unet": 0.807, "segnet": 0.70, "resunet": 0.81}, s1, segnet=1)
    assert chosen["candidates"] == ["unet", "resunet"]
    assert (chosen["model"], chosen["best"]) == ("unet", "resunet")
    assert (chosen["not_separated"], chosen["dropped"]) == (["segnet"], [])
    assert not chosen["provisional"]


def test_a_model_is_dropped_only_if_its_interval_lies_wholly_below_minus_delta():
    s1 = {"unet": 0.01, "segnet": 0.001, "resunet": 0.01}
    # segnet − resunet: −0.11; with half 0.10 the interval ends at −0.01, with 0.106 at −0.004
    for half, dropped in ((0.10, ["segnet"]), (0.106, []), (0.104, ["segnet"])):
        chosen = chosen_of(DICE, s1, half=half)
        assert chosen["dropped"] == dropped, half
        assert chosen["not_separated"] == sorted({"segnet", "unet"} - set(dropped))
        assert (chosen["model"], chosen["best"]) == ("resunet", "resunet")


def test_candidates_are_ordered_by_s1():
    chosen = chosen_of(CLOSE, {"unet": 0.010, "segnet": 0.012, "resunet": 0.011})
    assert chosen["candidates"] == ["unet", "resunet", "segnet"]


@pytest.mark.parametrize("apart", [0, 1e-9])
def test_equal_s1_is_ordered_by_s3(apart):
    """Spreads that differ by rounding alone are equal."""
    s1 = {"unet": 0.01 - apart, "segnet": 0.01, "resunet": 0.01}
    chosen = chosen_of(CLOSE, s1, {"unet": 0.2, "segnet": 0.6, "resunet": 0.4})
    assert chosen["candidates"] == ["segnet", "resunet", "unet"]


def test_equal_s1_and_s3_are_ordered_by_multiply_adds_then_parameters():
    s1 = dict.fromkeys(CLOSE, 0.01)
    assert chosen_of(CLOSE, s1, unet=9, segnet=7, resunet=8)["model"] == "segnet"
    table = table_of(CLOSE)
    table.loc[table.model == "unet", "parameters"] = 900
    chosen = select(table, pairs_of(CLOSE, half=0.5), stable(s1), delta=0.005)
    assert chosen["model"] == "unet"


@pytest.mark.parametrize("size", [{"seeds": 4}, {"groups": 4}, {"seeds": 1, "groups": 1}])
@pytest.mark.parametrize("s1", [0.001, np.nan])
def test_with_few_seeds_or_groups_the_best_mean_is_selected_provisionally(size, s1):
    chosen = chosen_of(CLOSE, {"unet": s1, "segnet": 0.5, "resunet": 0.2}, unet=1, **size)
    assert (chosen["model"], chosen["best"], chosen["provisional"]) == ("resunet", "resunet", True)
    assert chosen["candidates"] == ["resunet", "segnet", "unet"]
    assert {name: chosen[name] for name in size} == size


def test_equal_means_are_ordered_by_s3_then_cost():
    dice, s1 = {"unet": 0.8, "segnet": 0.8, "resunet": 0.7}, dict.fromkeys(DICE, np.nan)
    chosen = chosen_of(dice, s1, {"unet": 0.6}, seeds=1)
    assert (chosen["model"], chosen["best"]) == ("unet", "unet")
    assert chosen_of(dice, s1, seeds=1, segnet=1)["model"] == "segnet"


def test_without_an_interval_nothing_is_dropped():
    pairs = pairs_of(DICE, half=0.001).assign(low=np.nan, high=np.nan)
    measured = stable(dict.fromkeys(DICE, np.nan))
    chosen = select(table_of(DICE, seeds=1), pairs, measured, delta=0.005)
    assert (chosen["dropped"], chosen["not_separated"]) == ([], ["segnet", "unet"])
    assert chosen["model"] == "resunet"


def test_one_model_alone_is_selected():
    chosen = chosen_of({"unet": 0.8}, {"unet": 0.01})
    assert (chosen["model"], chosen["candidates"]) == ("unet", ["unet"])


share = st.floats(0, 1)


@st.composite
def studies(draw):
    """A table of one to four models with the intervals and measures of its own size; ties occur."""
    names = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "c", "d"]]))
    value = st.one_of(share, st.sampled_from([0.5, 0.503, 0.505, 0.51]))
    dice, s1, s3, cost = (
        {name: draw(each) for name in names}
        for each in (value, st.sampled_from([0.0, 0.01, 0.02]), value, st.integers(1, 3))
    )
    size = {"seeds": draw(st.integers(1, 7)), "groups": draw(st.integers(1, 7))}
    half = draw(share) if size["groups"] > 1 else np.nan
    measured = stable(s1 if size["seeds"] > 1 else dict.fromkeys(names, np.nan), s3)
    return table_of(dice, **size, **cost), pairs_of(dice, half=half), measured


@given(studies(), st.sampled_from([0, 0.005, 0.1]))
def test_no_mean_is_more_than_delta_above_that_of_the_selected_model(made, delta):
    table, pairs, measured = made
    chosen = select(table, pairs, measured, delta=delta)
    dice = table.set_index("model")["dice"]
    assert dice.max() - dice[chosen["model"]] <= delta
    assert dice[chosen["best"]] == dice.max()
    if chosen["provisional"]:
        assert dice[chosen["model"]] == dice.max()
    assert chosen["provisional"] == (table["seeds"].min() < 5 or table["groups"].min() < 5)
    parts = [*chosen["candidates"], *chosen["not_separated"], *chosen["dropped"]]
    assert sorted(parts) == sorted(dice.index)
    assert chosen["candidates"][0] == chosen["model"]


@given(
    st.integers(1, 4).flatmap(
        lambda models: st.lists(
            st.lists(st.tuples(share, share), min_size=models, max_size=models), min_size=1
        )
    ),
    st.booleans(),
)
def test_the_same_holds_in_every_resample(drawn, provisional):
    dice, s1 = np.moveaxis(np.array(drawn), 2, 0)  # (B,M) each
    cost = np.arange(dice.shape[1])
    order, candidates = decide(dice, s1, s1[0], cost, delta=0.005, provisional=provisional)
    chosen = np.take_along_axis(dice, order[:, :1], axis=1)
    assert (dice.max(axis=1, keepdims=True) - chosen <= 0.005).all()
    assert np.take_along_axis(candidates, order[:, :1], axis=1).all()


def whole(results, *, delta=0.005, resamples=500):
    table = summary(results.scores, results.runs, results.calibration, resamples=resamples)
    pairs = differences(results.scores, delta=delta, resamples=resamples)
    measured = stability(results.scores, results.histories, results.thresholds, resamples=resamples)
    chance = ranks(results.scores, results.runs, delta=delta, resamples=resamples)
    return select(table, pairs, measured, delta=delta), chance.set_index("model")


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_clear_winner_wins(seeds):
    """Far better, and the dearest: its cost may not take it from there."""
    chosen, chance = whole(study({"unet": 0.85, "segnet": 0.60, "resunet": 0.70}, seeds=seeds))
    assert chosen["model"] == chosen["best"] == "unet"
    assert chosen["dropped"] == ["resunet", "segnet"]
    assert chosen["provisional"] == (seeds < 5)
    assert chance.loc["unet", ["p_best", "p_selected"]].tolist() == [1, 1]
    assert chance.loc["unet", ["rank", "low", "high"]].tolist() == [1, 1, 1]


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_single_group_selects_the_best_mean_and_claims_no_chance(seeds):
    """Three real sweeps held out as one group once gave the worst: no interval, so all tied."""
    dice = {"unet": 0.80, "segnet": 0.60, "resunet": 0.74}
    chosen, chance = whole(study(dice, groups=1, folds=1, seeds=seeds, model_group_sd=0))
    assert chosen["model"] == chosen["best"] == "unet"
    assert (chosen["provisional"], chosen["groups"]) == (True, 1)
    assert chosen["not_separated"] == ["resunet", "segnet"]
    assert chance[["rank", "low", "high", "p_best", "p_selected"]].isna().all(axis=None)


def test_a_clearly_steadier_model_wins_among_equals():
    results = study(
        {"unet": 0.75, "segnet": 0.75, "resunet": 0.75}, seeds=12, folds=1,
        seed_sd={"unet": 0.001, "segnet": 0.04, "resunet": 0.04}, model_group_sd=0.005, frames=40,
    )  # fmt: skip
    chosen, chance = whole(results, delta=0.03)
    assert chosen["dropped"] == []
    assert chosen["candidates"][0] == "unet"
    assert chance["p_selected"].idxmax() == "unet"


@pytest.mark.parametrize("seeds", [1, 5])
def test_twins_share_the_lead_and_the_cheaper_is_selected(seeds):
    one = study({"unet": 0.75}, seeds=seeds)
    parts = [pd.concat([part, part.assign(model="segnet")], ignore_index=True) for part in one]
    twins = type(one)(*parts)
    cost = twins.runs["model"].map({"unet": 20, "segnet": 10})
    chosen, chance = whole(twins._replace(runs=twins.runs.assign(multiply_adds=cost)))
    assert chosen["candidates"] == ["segnet", "unet"]
    assert chance["p_best"].tolist() == [0.5, 0.5]
    assert chance["p_selected"].to_dict() == {"segnet": 1, "unet": 0}


def test_equal_models_leave_the_choice_open():
    _, chance = whole(study({"unet": 0.75, "segnet": 0.75, "resunet": 0.75}, seeds=5))
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
    """Two studies at once: each is ordered by its own means and spreads."""
    dice = np.array([[0.81, 0.70, 0.807], [0.70, 0.80, 0.79]])
    s1, s3 = np.array([[0.02, 0.001, 0.01], [0.001, 0.5, 0.001]]), np.full(3, 0.5)
    cost = np.array([2, 0, 1])
    order, candidates = decide(dice, s1, s3, cost, delta=0.005, provisional=False)
    assert order[:, 0].tolist() == [2, 1]
    assert candidates.tolist() == [[True, False, True], [False, True, False]]
    order, _ = decide(dice, s1, s3, cost, delta=0.005, provisional=True)
    assert order[:, 0].tolist() == [0, 1]

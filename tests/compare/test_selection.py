"""The rule of selection: tables by hand, properties, and whole studies whose answer is known."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import study
from whole import compare

from thyroid_lib.compare.selection import select

DICE = {"unet": 0.80, "segnet": 0.70, "resunet": 0.81}
CLOSE = {"unet": 0.806, "segnet": 0.809, "resunet": 0.81}  # all within 0.005
FAR = {"unet": 0.807, "segnet": 0.70, "resunet": 0.81}  # segnet is no candidate
EVEN = dict.fromkeys(DICE, 0.01)
FEW = {"unet": 0.001, "segnet": 0.5, "resunet": 0.2}
ORDERED = [
    # segnet is the steadiest and the cheapest by far, and no interval drops it
    (FAR, {"unet": 0.01, "segnet": 0.001, "resunet": 0.02}, {"segnet": 1}, "unet resunet"),
    (CLOSE, {"unet": 0.010, "segnet": 0.012, "resunet": 0.011}, {}, "unet resunet segnet"),
    # equal spreads, also those that differ by rounding alone, are ordered by worst decile
    (CLOSE, EVEN, {"decile": {"segnet": 0.6, "unet": 0.2}}, "segnet resunet unet"),
    (CLOSE, EVEN | {"unet": 0.01 - 1e-9}, {"decile": {"segnet": 0.6}}, "segnet unet resunet"),
    (CLOSE, EVEN, {"unet": 9, "segnet": 7, "resunet": 8}, "segnet resunet unet"),  # by cost
    (CLOSE, EVEN, {}, "segnet unet resunet"),  # equal multiply-adds are ordered by parameters
    # with few seeds or groups the best mean is selected, whatever the spread
    (CLOSE, FEW, {"seeds": 4, "unet": 1}, "resunet segnet unet"),
    (CLOSE, FEW, {"groups": 4, "unet": 1}, "resunet segnet unet"),
    (CLOSE, dict.fromkeys(DICE, np.nan), {"seeds": 1, "groups": 1}, "resunet segnet unet"),
]
share = st.floats(0, 1)


def table_of(dice: dict, *, seeds: int = 5, groups: int = 5, **multiply_adds) -> pd.DataFrame:
    table = pd.DataFrame({"model": dice.keys(), "dice": dice.values(), "protocol": "grouped"})
    parameters, cost = {"segnet": 800, "unet": 900}, dict.fromkeys(dice, 10) | multiply_adds
    table = table.assign(seeds=seeds, groups=groups, multiply_adds=table["model"].map(cost))
    return table.assign(parameters=table["model"].map(parameters).fillna(1000))


def pairs_of(dice: dict, *, half: float) -> pd.DataFrame:
    rows = [(a, b, dice[a] - dice[b]) for a, b in combinations(sorted(dice), 2)]
    table = pd.DataFrame(rows, columns=["a", "b", "difference"]).assign(protocol="grouped")
    return table.assign(low=table.difference - half, high=table.difference + half)


def stable(spread: dict, decile: dict | None = None) -> pd.DataFrame:
    """Spreads between seeds, and worst deciles."""
    rows = [("seed_sd", model, value) for model, value in spread.items()]
    rows += [("worst_decile", model, (decile or {}).get(model, 0.5)) for model in spread]
    table = pd.DataFrame(rows, columns=["measure", "model", "value"])
    return table.assign(protocol="grouped", conditional=False)


def chosen_of(dice, spread, decile=None, half=0.5, **sizes) -> dict:
    table = table_of(dice, **sizes)
    return select(table, pairs_of(dice, half=half), stable(spread, decile), delta=0.005)


@pytest.mark.parametrize(("dice", "spread", "more", "candidates"), ORDERED)
def test_candidates_are_ordered_by_the_rule(dice, spread, more, candidates):
    spread, decile = {name: spread[name] for name in dice}, more.pop("decile", None)
    chosen = chosen_of(dice, spread, decile, **more)
    assert chosen["candidates"] == candidates.split()
    assert chosen["model"] == candidates.split()[0]
    assert chosen["best"] == (chosen["model"] if chosen["provisional"] else max(dice, key=dice.get))
    assert chosen["provisional"] == bool({"seeds", "groups"} & set(more))
    assert (chosen["seeds"], chosen["groups"]) == (more.get("seeds", 5), more.get("groups", 5))


def test_a_model_is_dropped_only_if_its_interval_lies_wholly_below_minus_delta():
    # segnet − resunet: −0.11; with half 0.10 the interval ends at −0.01, with 0.106 at −0.004
    for half, dropped in ((0.10, ["segnet"]), (0.106, []), (0.104, ["segnet"]), (np.nan, [])):
        chosen = chosen_of(DICE, EVEN, half=half)
        assert chosen["dropped"] == dropped, half
        assert chosen["not_separated"] == sorted({"segnet", "unet"} - set(dropped))
        assert (chosen["model"], chosen["best"]) == ("resunet", "resunet")


@st.composite
def studies(draw):
    """A table of one to four models with the intervals and measures of its own size; ties occur."""
    names = draw(st.sampled_from([["a"], ["a", "b"], ["a", "b", "c", "d"]]))
    value = st.one_of(share, st.sampled_from([0.5, 0.503, 0.505, 0.51]))
    dice, spread, decile, cost = (
        {name: draw(each) for name in names}
        for each in (value, st.sampled_from([0.0, 0.01, 0.02]), value, st.integers(1, 3))
    )
    size = {"seeds": draw(st.integers(1, 7)), "groups": draw(st.integers(1, 7))}
    half = draw(share) if size["groups"] > 1 else np.nan
    measured = stable(spread if size["seeds"] > 1 else dict.fromkeys(names, np.nan), decile)
    return table_of(dice, **size, **cost), pairs_of(dice, half=half), measured


@settings(deadline=None)
@given(studies(), st.sampled_from([0, 0.005, 0.1]))
def test_no_mean_is_more_than_delta_above_that_of_the_selected_model(made, delta):
    table, pairs, measured = made
    chosen = select(table, pairs, measured, delta=delta)
    dice = table.set_index("model")["dice"]
    assert dice.max() - dice[chosen["model"]] <= delta
    assert dice[chosen["best"]] == dice.max()
    assert not chosen["provisional"] or dice[chosen["model"]] == dice.max()
    parts = [*chosen["candidates"], *chosen["not_separated"], *chosen["dropped"]]
    assert sorted(parts) == sorted(dice.index)


def whole(results):
    made = compare(results, resamples=500)
    return made["selected"], made["ranks"].set_index("model")


@pytest.mark.parametrize("seeds", [1, 5])
def test_a_clear_winner_wins(seeds):
    """Far better, and the dearest: its cost may not take it from there."""
    chosen, chance = whole(study({"unet": 0.85, "segnet": 0.60, "resunet": 0.70}, seeds=seeds))
    assert chosen["model"] == chosen["best"] == "unet"
    assert chosen["dropped"] == ["resunet", "segnet"]
    assert chosen["provisional"] == (seeds < 5)
    assert set(chance.loc["unet", ["rank", "low", "high", "p_best", "p_selected"]]) == {1}


def test_a_single_group_selects_the_best_mean_and_claims_no_chance():
    """A rule once selected the worst here: without an interval all models tied."""
    dice = {"unet": 0.80, "segnet": 0.60, "resunet": 0.74}
    chosen, chance = whole(study(dice, groups=1, folds=1, seeds=5, model_group_sd=0))
    assert chosen["model"] == chosen["best"] == "unet"
    assert (chosen["provisional"], chosen["groups"]) == (True, 1)
    assert chosen["not_separated"] == ["resunet", "segnet"]
    assert chance[["rank", "low", "high", "p_best", "p_selected"]].isna().all(axis=None)


def test_twins_share_the_lead_and_the_cheaper_is_selected():
    one = study({"unet": 0.75}, seeds=5)
    twins = one._make(pd.concat([part, part.assign(model="segnet")]) for part in one)
    cost = twins.runs["model"].map({"unet": 20, "segnet": 10})
    chosen, chance = whole(twins._replace(runs=twins.runs.assign(multiply_adds=cost)))
    assert chosen["candidates"] == ["segnet", "unet"]
    assert chance["p_best"].tolist() == [0.5, 0.5]
    assert chance["p_selected"].to_dict() == {"segnet": 1, "unet": 0}

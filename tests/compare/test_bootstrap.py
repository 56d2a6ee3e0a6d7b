"""Means, intervals and differences of groups and seeds, by hand and beside a slow bootstrap."""

import numpy as np
import pandas as pd
import pytest
from synthetic import study
from whole import TWO_GROUPS, scores_of

from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import Draws, cube, differences, draw, macro_means

READINGS = {
    "a higher": [(0.01, 0.02), (0.001, 0.02)], "b higher": [(-0.02, -0.01)],
    "equivalent": [(-0.004, 0.004), (0.001, 0.004)],
    "undecided": [(-0.01, 0.004), (np.nan, np.nan)],
}  # fmt: skip


def intervals(scores: pd.DataFrame) -> np.ndarray:
    """Low and high of each model, (2,M)."""
    of = cube(scores, "grouped")
    return bootstrap.bounds(macro_means(of.values, draw(of)), of)


def test_means_are_taken_within_groups_and_a_group_counts_as_often_as_it_is_drawn():
    of = cube(TWO_GROUPS, "grouped")
    np.testing.assert_allclose(of.values, [[[[0.3, 0.9], [0.5, 0.9]]]])  # (M,F,S,G)
    # group a: (0.3 + 0.5) / 2 = 0.4, group b: 0.9; by frame it would be 0.567
    assert bootstrap.macro_estimate(of.values) == pytest.approx([0.65])
    draws = Draws(np.array([[2, 0], [1, 1], [0, 2]]), np.array([[[0, 0]], [[0, 1]], [[1, 1]]]))
    # twice group a under seed 0 twice: 0.3; as it was: 0.65; twice group b: 0.9
    np.testing.assert_allclose(macro_means(of.values, draws)[:, 0], [0.3, 0.65, 0.9])
    np.testing.assert_allclose(bootstrap.macro_by_seed(of.values, draws)[1, 0], [0.6, 0.7])


@pytest.mark.parametrize("design", [{"folds": 12, "seeds": 2}, {"protocol": "random"}])
def test_the_bootstrap_agrees_with_one_written_as_loops(design):
    scores = study(**design).scores
    of = cube(scores, scores["protocol"].iloc[0])
    draws = draw(of, resamples=20)
    slow = np.zeros((20, 3, len(of.seeds)))
    for b, model, place in np.ndindex(slow.shape):
        each = []
        for group in np.repeat(np.arange(12), draws.groups[b]):
            folds = np.flatnonzero(~np.isnan(of.values[model, :, 0, group]))
            seeds = draws.seeds[b, folds, place]
            each.append(of.values[model, folds, seeds, group].mean())
        slow[b, model, place] = np.mean(each)
    np.testing.assert_allclose(bootstrap.macro_by_seed(of.values, draws), slow)
    np.testing.assert_allclose(macro_means(of.values, draws), slow.mean(axis=2))
    assert (draws.seeds[:, 0] != draws.seeds[:, 1]).any()


def test_intervals_have_the_size_that_theory_gives():
    """One seed, many groups: the mean's standard error is SD / √G."""
    dice = np.random.default_rng(0).normal(0.7, 0.1, 200)
    rows = [("unet", 0, f"{g:03}", str(g), x) for g, x in enumerate(dice)]
    low, high = intervals(scores_of(rows))
    sides = [high[0] - dice.mean(), dice.mean() - low[0]]
    assert sides == pytest.approx([1.96 * dice.std() / np.sqrt(200)] * 2, rel=0.05)


def test_what_all_models_share_cancels_in_a_difference():
    """Hard groups are hard for all: estimates vary with the groups, the difference does not."""
    rows = [
        (model, seed, group, group, dice + gain)
        for model, gain in (("unet", 0.0), ("segnet", 0.1))
        for seed in (0, 1)
        for group, dice in zip("abcde", (0.1, 0.3, 0.5, 0.7, 0.85), strict=True)
    ]
    row = differences(scores_of(rows), delta=0.005).iloc[0]
    assert (row.a, row.b) == ("segnet", "unet")
    assert [row.difference, row.low, row.high] == pytest.approx([0.1] * 3)
    assert (np.diff(intervals(scores_of(rows)), axis=0) > 0.3).all()


def test_a_difference_is_read_against_zero_and_delta():
    for reading, each in READINGS.items():
        assert {bootstrap.read_interval(*pair, "a", "b", delta=0.005) for pair in each} == {reading}


def test_p_is_twice_the_share_beyond_zero():
    scores = study().scores
    part = differences(scores, delta=0.005, resamples=999)
    of = cube(scores, "grouped")
    gap = macro_means(of.values, draw(of, resamples=999)) @ [1, 0, -1]
    row = part[(part.a == "resunet") & (part.b == "unet")].iloc[0]
    assert row.p == pytest.approx(2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / 1000)
    assert row.smallest_gap == pytest.approx(2.8016 * gap.std(), rel=1e-4)


def test_small_designs_are_marked_and_have_no_interval_where_nothing_varies():
    for folds, seeds, expected in ((3, 1, True), (1, 3, True), (3, 2, False)):
        of = cube(study(folds=folds, seeds=seeds).scores, "grouped")
        assert of.conditional is expected, (folds, seeds)
    assert np.isnan(intervals(study(groups=1, folds=1).scores)).all()
    assert not len(differences(study({"unet": 0.7}).scores, delta=0.005))


def test_the_grouped_protocol_comes_first():
    order = bootstrap.order_protocols(["random", "own", "official", "grouped"])
    assert order == ["grouped", "official", "random", "own"]


def test_missing_runs_are_named():
    scores = study().scores
    few = scores[(scores.model != "unet") | (scores.seed > 0)]
    with pytest.raises(ValueError, match="every model needs the same folds and seeds"):
        cube(few, "grouped")

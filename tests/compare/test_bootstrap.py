import numpy as np
import pandas as pd
import pytest
from synthetic import shuffled, study

from thyroid_lib.compare.bootstrap import (
    Draws,
    cube,
    differences,
    draw,
    intervals,
    macro_by_seed,
    macro_estimate,
    macro_means,
    order_protocols,
    read_interval,
)


def scores_of(rows: list[tuple], **more) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["model", "seed", "group", "case_id", "dice"])
    return table.assign(protocol="grouped", fold=0).assign(**more)


TWO_GROUPS = scores_of(
    [
        ("unet", 0, "a", "1", 0.2), ("unet", 0, "a", "2", 0.4), ("unet", 0, "b", "3", 0.9),
        ("unet", 1, "a", "1", 0.4), ("unet", 1, "a", "2", 0.6), ("unet", 1, "b", "3", 0.9),
    ]
)  # fmt: skip


def test_means_are_taken_within_groups_and_a_group_counts_as_often_as_it_is_drawn():
    of = cube(TWO_GROUPS, "grouped")
    np.testing.assert_allclose(of.values, [[[[0.3, 0.9], [0.5, 0.9]]]])  # (M,F,S,G)
    # group a: (0.3 + 0.5) / 2 = 0.4, group b: 0.9; by frame it would be 0.567
    assert macro_estimate(of.values) == pytest.approx([0.65])
    draws = Draws(np.array([[2, 0], [1, 1], [0, 2]]), np.array([[[0, 0]], [[0, 1]], [[1, 1]]]))
    # twice group a under seed 0 twice: 0.3; as it was: 0.65; twice group b: 0.9
    np.testing.assert_allclose(macro_means(of.values, draws)[:, 0], [0.3, 0.65, 0.9])
    np.testing.assert_allclose(macro_by_seed(of.values, draws)[1, 0], [0.6, 0.7])


@pytest.mark.parametrize(
    "design", [{"seeds": 2}, {"folds": 12, "seeds": 2}, {"protocol": "random"}]
)
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
    np.testing.assert_allclose(macro_by_seed(of.values, draws), slow)
    np.testing.assert_allclose(macro_means(of.values, draws), slow.mean(axis=2))
    assert len(of.folds) == 1 or (draws.seeds[:, 0] != draws.seeds[:, 1]).any()


def test_intervals_have_the_size_that_theory_gives():
    """One seed, many groups: the mean's standard error is SD / √G."""
    dice = np.random.default_rng(0).normal(0.7, 0.1, 200)
    rows = [("unet", 0, f"{g:03}", str(g), x) for g, x in enumerate(dice)]
    row = intervals(cube(scores_of(rows), "grouped")).iloc[0]
    sides = [row.high - row.estimate, row.estimate - row.low]
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
    known = intervals(cube(scores_of(rows), "grouped"))
    assert (known.high - known.low > 0.3).all()


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [
        (0.01, 0.02, "a higher"), (-0.02, -0.01, "b higher"), (-0.004, 0.004, "equivalent"),
        (0.001, 0.004, "equivalent"), (-0.01, 0.004, "undecided"), (0.001, 0.02, "a higher"),
        (np.nan, np.nan, "undecided"),
    ],
)  # fmt: skip
def test_a_difference_is_read_against_zero_and_delta(low, high, reading):
    assert read_interval(low, high, 0.005, "a", "b") == reading


def test_p_is_twice_the_share_beyond_zero():
    scores = study().scores
    part = differences(scores, delta=0.005, resamples=999)
    of = cube(scores, "grouped")
    gap = macro_means(of.values, draw(of, resamples=999)) @ [1, 0, -1]
    row = part[(part.a == "resunet") & (part.b == "unet")].iloc[0]
    assert row.p == pytest.approx(2 * (1 + min((gap <= 0).sum(), (gap >= 0).sum())) / 1000)
    assert row.smallest_gap == pytest.approx(2.8016 * gap.std(), rel=1e-4)


def test_small_designs_are_marked_and_have_no_interval_where_nothing_varies():
    for folds, seeds, expected in ((3, 1, True), (1, 3, True), (1, 5, True), (3, 2, False)):
        of = cube(study(folds=folds, seeds=seeds).scores, "grouped")
        assert of.conditional is expected, (folds, seeds)
        assert seeds > 1 or (draw(of, resamples=10).seeds == 0).all()
    alone = intervals(cube(study(groups=1, folds=1).scores, "grouped"))
    assert alone[["low", "high"]].isna().all(axis=None)
    assert not len(differences(study({"unet": 0.7}).scores, delta=0.005))


def test_neither_the_order_of_rows_nor_names_change_the_figures():
    scores = study().scores
    first, again = (differences(table, delta=0.01) for table in (scores, shuffled(scores)))
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    names = {"unet": "c", "segnet": "a", "resunet": "b"}
    one, other = (
        intervals(cube(table, "grouped")).set_index("model")["low"]
        for table in (scores, scores.replace({"model": names}))
    )
    np.testing.assert_allclose(one[list(names)], other[list(names.values())], atol=1e-12)


def test_the_grouped_protocol_comes_first():
    assert order_protocols(["random", "own", "official", "grouped"]) == [
        "grouped", "official", "random", "own",
    ]  # fmt: skip


def test_missing_columns_and_runs_are_named():
    scores = study().scores
    with pytest.raises(ValueError, match="lack brier: score the runs again"):
        cube(scores.drop(columns="brier"), "grouped", "brier")
    few = scores[(scores.model != "unet") | (scores.seed > 0)]
    with pytest.raises(ValueError, match="every model needs the same folds and seeds"):
        cube(few, "grouped")

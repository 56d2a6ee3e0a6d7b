"""Measures of stability by hand, their intervals beside theory and beside slow resampling."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import study

from thyroid_lib.compare import stability
from thyroid_lib.compare.bootstrap import cube, draw
from thyroid_lib.compare.stability import MEASURES, OF_CURVES, measure_curve, worst_decile


def measured(results) -> pd.DataFrame:
    tables = results.scores, results.histories, results.thresholds
    return stability.stability(*tables, resamples=200)


def test_seed_sd_is_the_deviation_between_seeds_of_the_group_macro_dice():
    values = np.array([[[0.3, 0.9], [0.5, 0.9]]])  # (F,S,G): seed means 0.6 and 0.7
    assert stability.seed_deviation(values)[0] == pytest.approx(np.std([0.6, 0.7], ddof=1))


@pytest.mark.study
def test_its_interval_is_right_as_often_as_it_says():
    """Chi-square, five seeds: 4·s²/σ² lies between its quantiles."""
    values = np.random.default_rng(0).normal(0.5, 0.01, (20_000, 1, 5, 1))  # (N,F,S,G)
    value, low, high = np.array([stability.seed_deviation(study) for study in values]).T
    np.testing.assert_allclose(low / value, 0.599, atol=0.001)  # tables of chi-square, 4 df
    np.testing.assert_allclose(high / value, 2.874, atol=0.001)
    assert ((low < 0.01) & (high > 0.01)).mean() == pytest.approx(0.95, abs=0.006)


def test_curves_give_change_fall_and_gap():
    # warm-up: the first of five epochs; highest 0.8, falls to 0.5, ends at 0.7
    change, fall, gap = measure_curve(np.array([0.9, 0.6, 0.8, 0.5, 0.7]))
    assert change == pytest.approx(np.std([-0.3, 0.2, -0.3, 0.2], ddof=1))
    assert fall == pytest.approx(0.3)
    assert gap == pytest.approx(0.2)  # 0.9 − 0.7: the best of all epochs
    wild = np.r_[0.0, 0.9, 0.0, 0.9, np.linspace(0.5, 0.7, 11)]
    assert measure_curve(wild)[0] == pytest.approx(0, abs=1e-12)  # the last ten epochs alone


def test_the_worst_decile_counts_a_case_as_often_as_it_is_drawn():
    """Against a plain one, on cases repeated as the resample says."""
    assert worst_decile(np.arange(20)) == 0.5
    assert worst_decile([0.7, 0.3]) == 0.3
    scores = study({"unet": 0.7}, seeds=2, frames=10).scores
    of = cube(scores, "grouped")
    draws = draw(of, resamples=30)
    plain = []
    for b in range(30):
        parts = []
        for group in range(12):
            for seed in draws.seeds[b, group % 3]:
                mine = scores[(scores.group == f"g{group:02}") & (scores.seed == seed)]
                parts += [mine.dice] * draws.groups[b, group]
        plain.append(worst_decile(np.concatenate(parts)))
    value, low, high = stability.worst_decile_interval(scores, of, draws)
    assert value == worst_decile(scores.dice)
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])))


def test_threshold_range_is_taken_from_group_means():
    results = study()  # Dice falls by 0.04 towards both ends
    curves = stability.threshold_curves(results.thresholds, "grouped")
    assert list(curves.index) == [t / 100 for t in range(30, 71, 5)]
    np.testing.assert_allclose(curves.loc[0.5] - curves.loc[0.3], 0.04, atol=1e-3)
    table = measured(results).query("measure == 'threshold_range'")
    np.testing.assert_allclose(table[["value", "low", "high"]], 0.04, atol=1e-3)


def test_measures_of_curves_take_students_t_over_the_runs():
    results = study({"unet": 0.7}, folds=1, seeds=4)
    runs = results.histories.groupby("seed")["val_dice"]
    each = [run.max() - run.iloc[-1] for _, run in runs]
    table = measured(results).set_index("measure")
    assert list(table.index) == list(MEASURES)
    row = table.loc["best_minus_last"]
    mean, half = np.mean(each), stats.t.ppf(0.975, 3) * stats.sem(each)
    found = row[["value", "low", "high"]].tolist()
    assert found == pytest.approx([mean, max(0, mean - half), mean + half])


def test_one_seed_and_no_validation_leave_gaps_and_raise_nothing():
    results = study(seeds=1, folds=1)
    table = measured(results).set_index("measure")
    assert table.loc["seed_sd", ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc["largest_fall", "low"].isna().all()
    bare = results._replace(histories=results.histories.drop(columns="val_dice"))
    table = measured(bare).set_index("measure")
    assert table.loc[list(OF_CURVES), "value"].isna().all()
    assert table.loc[["worst_decile", "threshold_range"], "value"].notna().all()

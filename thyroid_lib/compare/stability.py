"""Is it stable? Five measures, S1 to S5, each with its interval.

Stability is measured on runs that share schedule and epochs; the schedule alone moves S2 threefold.
Changes from epoch to epoch and falls below the best so far (drawdown) follow Chan et al. 2020,
arXiv 1912.05663.
"""

import re

import numpy as np
import pandas as pd
from scipy import stats

from thyroid_lib.compare.bootstrap import (
    TAILS,
    Cube,
    Draws,
    bounds,
    cube,
    draw,
    macro_estimate,
    macro_means,
    order_protocols,
    sort_rows,
)

MEASURES = {
    "S1": "SD of test Dice between seeds",
    "S2 change": "SD of the change of validation Dice from epoch to epoch, last ten epochs",
    "S2 fall": "largest fall of validation Dice below its best so far, after warm-up",
    "S3": "mean Dice of the worst tenth of the test cases",
    "S4": "range of test Dice over thresholds from 0.3 to 0.7",
    "S5": "best minus last validation Dice",
}
LAST_EPOCHS = 10
WARM_UP = 0.2  # share of the epochs that no fall is counted in


def stability(
    scores: pd.DataFrame,
    histories: pd.DataFrame,
    thresholds: pd.DataFrame,
    *,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """Measure S1 to S5, each with its 95 % interval.

    S1 takes its interval from chi-square (resampling five seeds would cover far too rarely), S2 and
    S5 from Student's t over the runs, S3 and S4 from the crossed bootstrap of groups and seeds.

    Args:
        scores: one row per run and test case, see `statistics.cube`.
        histories: one row per run and epoch: val_dice, absent or NaN where nothing was held back.
        thresholds: one row per run and test case, Dice in columns named "0.30" … "0.70".

    Returns:
        One row per protocol, model and key of `MEASURES`: value, low, high, in Dice, NaN where
        there is nothing to measure (one seed, no validation); conditional (see `Cube`).
    """
    rows = []
    for protocol in order_protocols(scores["protocol"]):
        of = cube(scores, protocol)
        draws = draw(of, resamples=resamples)
        steep = threshold_range(thresholds, protocol, draws)
        for i, model in enumerate(of.models):
            mine = (scores["protocol"] == protocol) & (scores["model"] == model)
            ran = (histories["protocol"] == protocol) & (histories["model"] == model)
            measured = {
                "S1": seed_deviation(of.values[i]),
                **_of_histories(histories[ran]),
                "S3": worst_decile_interval(scores[mine], of, draws),
                "S4": tuple(column[i] for column in steep),
            }
            rows += [
                {"protocol": protocol, "model": model, "measure": name,
                 "value": measured[name][0], "low": measured[name][1], "high": measured[name][2],
                 "conditional": of.conditional}
                for name in MEASURES
            ]  # fmt: skip
    return pd.DataFrame(rows)


def seed_deviation(values: np.ndarray) -> tuple[float, float, float]:
    """S1 of one model's (F,S,G) with its chi-square interval: value, low, high."""
    seeds = values.shape[1]
    if seeds == 1:
        return np.nan, np.nan, np.nan
    each = np.nanmean(values, axis=0).mean(axis=1)  # (S,)
    low, high = np.minimum(1, each.std(ddof=1) * chi_factors(seeds))  # Dice reaches no further
    return each.std(ddof=1), low, high


def chi_factors(seeds: int) -> np.ndarray:
    """Return what a standard deviation of so many normal values is multiplied by: low, high."""
    if seeds == 1:
        return np.array([np.nan, np.nan])
    return np.sqrt((seeds - 1) / stats.chi2.ppf(TAILS[::-1], seeds - 1))


def _of_histories(histories: pd.DataFrame) -> dict:
    names = ("S2 change", "S2 fall", "S5")
    if "val_dice" not in histories or histories["val_dice"].isna().all():
        return dict.fromkeys(names, (np.nan,) * 3)
    ordered = histories.sort_values(["fold", "seed", "epoch"])
    each = [of_curve(run["val_dice"].to_numpy()) for _, run in ordered.groupby(["fold", "seed"])]
    return dict(zip(names, map(_t_interval, np.array(each).T), strict=True))


def of_curve(val_dice: np.ndarray) -> tuple[float, float, float]:
    """S2 change, S2 fall and S5 of one run's validation Dice, (epochs,) in order."""
    changes = np.diff(val_dice[-LAST_EPOCHS - 1 :])
    after = val_dice[int(WARM_UP * len(val_dice)) :]
    fall = (np.maximum.accumulate(after) - after).max()
    change = changes.std(ddof=1) if len(changes) > 1 else np.nan
    return change, fall, val_dice.max() - val_dice[-1]


def _t_interval(values: np.ndarray) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], np.nan, np.nan
    half = stats.t.ppf(TAILS[1], len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    low, high = np.clip([values.mean() - half, values.mean() + half], 0, 1)  # as Dice is
    return values.mean(), low, high


def worst_decile(values: np.ndarray) -> float:
    """Mean of the lowest tenth of the values (CVaR10), of at least one."""
    lowest = np.sort(np.asarray(values))[: max(1, len(values) // 10)]
    return float(lowest.mean())


def worst_decile_interval(
    scores: pd.DataFrame, of: Cube, draws: Draws
) -> tuple[float, float, float]:
    """S3 of one model's cases, each counted as often as its group and its run are drawn."""
    rows = sort_rows(scores).sort_values("dice", kind="stable")
    places = [
        np.searchsorted(axis, rows[name])
        for name, axis in (("fold", of.folds), ("seed", of.seeds), ("group", of.groups))
    ]
    shape = of.values.shape[1:]  # (F,S,G)
    cell = np.ravel_multi_index(places, shape)  # (N,)
    sizes = np.bincount(cell, minlength=np.prod(shape))
    runs = (draws.seeds[..., None] == np.arange(len(of.seeds))).sum(axis=2)  # (B,F,S)
    dice, samples = rows["dice"].to_numpy(), []
    for start in range(0, len(runs), 250):  # all resamples of all cases would fill memory
        part = slice(start, start + 250)
        weights = runs[part][..., None] * draws.groups[part][:, None, None]
        weights = weights.reshape(-1, np.prod(shape)).astype(np.int32)  # (b,F·S·G)
        tenth = np.maximum(1, weights @ sizes // 10)[:, None]
        few = 1 + len(cell) // 4  # the lowest are enough, unless a resample lacks most of them
        counts = weights[:, cell[:few]]
        if (counts.sum(axis=1) < tenth[:, 0]).any():
            counts = weights[:, cell]
        upto = counts.cumsum(axis=1)
        taken = np.clip(tenth - (upto - counts), 0, counts)
        samples.append(taken @ dice[: counts.shape[1]] / tenth[:, 0])
    return worst_decile(dice), *map(float, bounds(np.concatenate(samples), of))


def threshold_columns(thresholds: pd.DataFrame) -> list[str]:
    """Return the columns that hold Dice at a threshold, in order."""
    return sorted(name for name in thresholds if re.fullmatch(r"0\.\d+", str(name)))


def threshold_range(
    thresholds: pd.DataFrame, protocol: str, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S4 of every model: value, low, high, (M,) each."""
    cubes = [cube(thresholds, protocol, name) for name in threshold_columns(thresholds)]
    estimate = np.ptp([macro_estimate(of.values) for of in cubes], axis=0)
    samples = np.stack([macro_means(of.values, draws) for of in cubes])  # (T,B,M)
    return estimate, *bounds(np.ptp(samples, axis=0), cubes[0])

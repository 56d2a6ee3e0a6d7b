"""Six measures of stability, each with its interval: between seeds, epochs, cases and thresholds.

Runs share schedule and epochs. Changes from epoch to epoch and falls below the best so far
(drawdown) follow Chan et al. 2020, arXiv 1912.05663.
"""

import numpy as np
import pandas as pd
from scipy import stats

from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import TAILS, Cube, Draws, bounds, cube, macro_estimate
from thyroid_lib.evaluate.scores import THRESHOLDS

MEASURES = {
    "seed_sd": "SD of test Dice between seeds",
    "epoch_change": "SD of the change of validation Dice from epoch to epoch, last ten epochs",
    "largest_fall": "largest fall of validation Dice below its best so far, after warm-up",
    "worst_decile": "mean Dice of the worst tenth of the test cases",
    "threshold_range": "range of test Dice over thresholds from 0.3 to 0.7",
    "best_minus_last": "best minus last validation Dice",
}
OF_CURVES = ("epoch_change", "largest_fall", "best_minus_last")
MORE_IS_BETTER = ("worst_decile",)  # of the others less is better


def stability(scores, histories, thresholds, *, resamples: int = 10_000) -> pd.DataFrame:
    """Measure the stability of every model, with 95 % intervals.

    `seed_sd` takes its interval from chi-square (resampling five seeds covers too rarely), the
    measures of curves from Student's t over the runs, the others from the crossed bootstrap.
    Returns one row per protocol, model and key of `MEASURES`: value, low, high, in Dice, NaN where
    there is nothing to measure (one seed, no validation); conditional (see `Cube`).
    """
    rows = []
    for of in bootstrap.cubes(scores):
        draws = bootstrap.draw(of, resamples=resamples)
        ranges = threshold_ranges(thresholds, of.protocol, draws)
        parts = (table[table["protocol"] == of.protocol] for table in (scores, histories))
        cases, epochs = (dict(list(part.groupby("model"))) for part in parts)
        for i, model in enumerate(of.models):
            measured = measure_curves(epochs.get(model, histories.iloc[:0]))
            one = slice(1) if model in bootstrap.copied_models(scores) else slice(None)
            measured["seed_sd"] = seed_deviation(of.values[i][:, one])
            measured["worst_decile"] = worst_decile_interval(cases[model], of, draws)
            measured["threshold_range"] = ranges.get(model, (np.nan,) * 3)
            row = of.protocol, model
            rows += [(*row, name, *measured[name], of.conditional) for name in MEASURES]
    columns = ["protocol", "model", "measure", "value", "low", "high", "conditional"]
    return bootstrap.mark_groups(pd.DataFrame(rows, columns=columns), scores)


def seed_deviation(values: np.ndarray) -> tuple[float, float, float]:
    """Return `seed_sd` of one model's (F,S,G) with its chi-square interval: value, low, high."""
    seeds = values.shape[1]
    if seeds == 1:
        return (np.nan,) * 3
    deviation = np.nanmean(values, axis=0).mean(axis=1).std(ddof=1)  # of (S,)
    factors = np.sqrt((seeds - 1) / stats.chi2.ppf(TAILS[::-1], seeds - 1))
    return deviation, *np.minimum(1, deviation * factors)  # Dice reaches no further


def measure_curves(histories: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Average the measures of `OF_CURVES` over one model's runs: value, low, high of each."""
    if "val_dice" not in histories or histories["val_dice"].isna().all():
        return dict.fromkeys(OF_CURVES, (np.nan,) * 3)
    runs = histories.sort_values(["fold", "seed", "epoch"]).groupby(["fold", "seed"])["val_dice"]
    each = np.array([measure_curve(curve.to_numpy()) for _, curve in runs])  # (runs,3)
    return dict(zip(OF_CURVES, map(_t_interval, each.T), strict=True))


def measure_curve(val_dice: np.ndarray) -> tuple[float, float, float]:
    """Return the measures of `OF_CURVES` of one run's validation Dice, (epochs,) in order."""
    changes = np.diff(val_dice[-11:])  # of the last ten epochs
    after = val_dice[int(0.2 * len(val_dice)) :]  # the first fifth is warm-up
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
    """Average the lowest tenth of the values (CVaR10), at least one."""
    return float(np.sort(values)[: max(1, len(values) // 10)].mean())


def worst_decile_interval(scores: pd.DataFrame, of: Cube, draws: Draws) -> tuple:
    """Resample `worst_decile` of one model's cases by their groups and runs: value, low, high."""
    axes = {"fold": of.folds, "seed": of.seeds, "group": of.groups}
    places = [np.searchsorted(values, scores[name]) for name, values in axes.items()]
    cell = np.ravel_multi_index(places, of.values.shape[1:])  # (N,)
    runs = (draws.seeds[..., None] == np.arange(len(of.seeds))).sum(axis=2)  # (B,F,S)
    counts = (runs[..., None] * draws.groups[:, None, None]).reshape(len(runs), -1)  # (B,F·S·G)
    dice = scores["dice"].to_numpy()
    samples = [worst_decile(np.repeat(dice, drawn[cell])) for drawn in counts]
    return worst_decile(dice), *map(float, bounds(np.array(samples), of))


def threshold_cubes(thresholds: pd.DataFrame, protocol: str) -> dict[float, Cube]:
    """Return a protocol's cube of Dice at each threshold, in order."""
    return {each: cube(thresholds, protocol, f"{each:.2f}") for each in THRESHOLDS}


def threshold_curves(thresholds: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Return group-macro Dice under a protocol: one row per threshold, one column per model."""
    each = threshold_cubes(thresholds, protocol)
    rows = [macro_estimate(of.values) for of in each.values()]
    return pd.DataFrame(rows, index=[*each], columns=each[0.5].models)


def threshold_ranges(thresholds: pd.DataFrame, protocol: str, draws: Draws) -> dict[str, tuple]:
    """Return `threshold_range` of every model that has probabilities: value, low, high."""
    each = threshold_cubes(thresholds, protocol).values()
    samples = np.stack([bootstrap.macro_means(of.values, draws) for of in each])  # (T,B,M)
    value = np.ptp([macro_estimate(of.values) for of in each], axis=0)
    of = next(iter(each))
    rows = np.transpose([value, *bounds(np.ptp(samples, axis=0), of)])  # (M,3)
    return dict(zip(of.models, rows, strict=True))

"""How sure are we? Intervals, paired differences and power, from a bootstrap of groups and seeds.

A frame is never a unit here: frames of one sweep are near-copies, so every mean is taken within
groups first ("group-macro"). What would differ in another study of this kind are its groups and
its trainings, so both are resampled, crossed (Owen & Eckles, Ann. Appl. Stat. 6 (2012) 895), and
all models meet the same ones in a resample. `docs/statistics.md` says how often the intervals are
right. Everything here is a pure function of tables, which are sorted before anything is drawn: the
order of rows, runs and models changes nothing.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SEEDS_FOR_STABILITY = 5
GROUPS_FOR_SELECTION = 5  # below, a selection is provisional
FEW_GROUPS = 10  # with fewer, intervals are too narrow: see docs/statistics.md
LEVEL = 0.95
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
# Ordered: the protocol that comes first among those run is the one that decides.
PROTOCOLS = ("grouped", "leave-one-group-out", "official", "random")
# A gap of this many standard errors is seen in 80 % of studies, by a two-sided test at 0.05.
SEEN = stats.norm.ppf(TAILS[1]) + stats.norm.ppf(0.8)


@dataclass(frozen=True)
class Cube:
    """One protocol's group means of one metric.

    `values` is (M,F,S,G): model, fold, seed, group, each axis sorted; NaN where a fold does not
    test a group.
    """

    protocol: str
    models: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    values: np.ndarray

    @property
    def conditional(self) -> bool:
        """Whether intervals hold for the trained runs alone, not for trainings to come.

        One seed leaves nothing to resample, and a single split says nothing of other splits.
        """
        return len(self.seeds) == 1 or len(self.folds) == 1


@dataclass(frozen=True)
class Draws:
    """Resamples: `groups` (B,G), how often each is drawn; `seeds` (B,F,S), drawn per fold."""

    groups: np.ndarray
    seeds: np.ndarray


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Put rows in the one order in which sums are taken, so that they agree to the last bit."""
    keys = ["protocol", "model", "fold", "seed", "group", "case_id"]
    return table.sort_values([key for key in keys if key in table], ignore_index=True)


def order_protocols(protocols) -> list[str]:
    """Sort protocols as `PROTOCOLS` has them, others after them by name; the first decides."""
    known = {name: place for place, name in enumerate(PROTOCOLS)}
    return sorted(set(protocols), key=lambda name: (known.get(name, len(known)), name))


def cube(scores: pd.DataFrame, protocol: str, metric: str = "dice") -> Cube:
    """Average cases within groups and lay the means out by model, fold, seed and group.

    Args:
        scores: one row per run and case: protocol, model, fold, seed, group and `metric`.
        protocol: whose rows to take.
        metric: any column with a number per case.

    Raises:
        ValueError: a column is missing, or models that were not run with the same folds and seeds.
    """
    missing = {"protocol", "model", "fold", "seed", "group", metric} - set(scores)
    if missing:
        raise ValueError(f"the scores lack {', '.join(sorted(missing))}: score the runs again")
    part = sort_rows(scores[scores["protocol"] == protocol])
    means = part.groupby(["model", "fold", "seed", "group"])[metric].mean()
    axes = [sorted(part[name].unique()) for name in ("model", "fold", "seed", "group")]
    full = means.reindex(pd.MultiIndex.from_product(axes))
    values = full.to_numpy(float).reshape([len(axis) for axis in axes])  # (M,F,S,G)
    there = ~np.isnan(values)
    if not len(part) or (there != there.any(axis=(0, 2), keepdims=True)).any():
        raise ValueError(
            f"{protocol}: every model needs the same folds and seeds, and a number of {metric} in "
            "each case; train or score the runs that are missing"
        )
    return Cube(protocol, *(tuple(axis) for axis in axes), values)


def draw(of: Cube, *, resamples: int = 10_000, seed: int = 0) -> Draws:
    """Draw groups, and within each fold seeds, with replacement.

    A training's luck is shared by the groups that its fold tests, and no other fold's training has
    it: so each fold draws its own seeds. Where there is one seed the groups alone are drawn.
    """
    _, folds, seeds, groups = of.values.shape
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return Draws(counts, rng.integers(seeds, size=(resamples, folds, seeds)))


def macro_means(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Give the group-macro mean of every resample.

    Args:
        values: (M,F,S,G) as in `Cube`; M may count models, or simulated studies.
        draws: for the same F, S and G.

    Returns:
        (B,M).
    """
    tested = ~np.isnan(values[0, :, 0])  # (F,G)
    fold, group = np.nonzero(tested)  # (P,)
    models, _, seeds, groups = values.shape
    runs = (draws.seeds[..., None] == np.arange(seeds)).sum(axis=2)  # (B,F,S)
    share = 1 / (tested.sum(axis=0)[group, None] * groups * seeds)
    weights = draws.groups[:, group, None] * runs[:, fold] * share  # (B,P,S)
    cells = values[:, fold, :, group].transpose(0, 2, 1)  # (P,S,M)
    return weights.reshape(len(weights), -1) @ cells.reshape(-1, models)


def macro_by_seed(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Give what `macro_means` gives for each drawn seed by itself: (B,M,S), their mean over S."""
    models, folds, seeds, groups = values.shape
    tested = (~np.isnan(values[0, :, 0])).sum(axis=0)  # (G,) folds that test the group
    part = np.nan_to_num(values) / (tested * groups)
    sums = draws.groups @ part.reshape(-1, groups).T  # (B,M·F·S)
    sums = sums.reshape(-1, models, folds, seeds)
    return np.take_along_axis(sums, draws.seeds[:, None], axis=3).sum(axis=2)


def macro_estimate(values: np.ndarray) -> np.ndarray:
    """Average (M,F,S,G) over seeds and folds, then over groups: (M,)."""
    return np.nanmean(values, axis=(1, 2)).mean(axis=1)


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take the 95 % percentile interval along the first axis."""
    low, high = np.quantile(samples, TAILS, axis=0)
    return low, high


def intervals(
    scores: pd.DataFrame, metrics: tuple[str, ...] = ("dice",), *, resamples: int = 10_000
) -> pd.DataFrame:
    """Give every model's group-macro means with their 95 % intervals.

    Returns:
        One row per protocol, model and metric: estimate, low, high (NaN for a single group),
        groups, folds, seeds, conditional (see `Cube.conditional`).
    """
    rows = []
    for protocol, metric in itertools.product(order_protocols(scores["protocol"]), metrics):
        of = cube(scores, protocol, metric)
        low, high = bounds(macro_means(of.values, draw(of, resamples=resamples)), of)
        for i, (model, value) in enumerate(zip(of.models, macro_estimate(of.values), strict=True)):
            rows.append(
                {"protocol": protocol, "model": model, "metric": metric, "estimate": value,
                 "low": low[i], "high": high[i], **_size(of)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def differences(
    scores: pd.DataFrame, *, delta: float, metric: str = "dice", resamples: int = 10_000
) -> pd.DataFrame:
    """Compare models in pairs, each resample meeting both with the same groups and seeds.

    Args:
        scores: see `cube`.
        delta: difference that makes none in practice.

    Returns:
        One row per protocol and pair of models (a before b by name): difference (a − b), low, high
        (95 %), se (the resamples' standard deviation), p (twice the share of resamples beyond
        zero, at most 1), smallest_gap (which 80 % of such studies would see, from se), reading
        ("equivalent": all of the interval within ±delta; "a higher", "b higher": zero outside;
        else "undecided"), groups, folds, seeds, conditional.
    """
    rows = []
    for protocol in order_protocols(scores["protocol"]):
        of = cube(scores, protocol, metric)
        means = macro_means(of.values, draw(of, resamples=resamples))  # (B,M)
        estimate = macro_estimate(of.values)
        for i, j in itertools.combinations(range(len(of.models)), 2):
            gap = means[:, i] - means[:, j]
            low, high = (float(x) for x in bounds(gap, of))
            beyond = 1 + min((gap <= 0).sum(), (gap >= 0).sum())
            rows.append(
                {"protocol": protocol, "a": of.models[i], "b": of.models[j],
                 "difference": estimate[i] - estimate[j], "low": low, "high": high,
                 "se": gap.std(), "p": min(1.0, 2 * beyond / (resamples + 1)),
                 "smallest_gap": SEEN * gap.std(),
                 "reading": _read(low, high, delta, of.models[i], of.models[j]), **_size(of)}
            )  # fmt: skip
    columns = ["difference", "low", "high", "se", "p", "smallest_gap", "reading"]
    sizes = ["groups", "folds", "seeds", "conditional"]
    return pd.DataFrame(rows, columns=["protocol", "a", "b", *columns, *sizes])


def bounds(samples: np.ndarray, of: Cube) -> tuple[np.ndarray, np.ndarray]:
    """Take `interval`, or NaN where there is a single group: resampling it varies nothing."""
    if len(of.groups) == 1:
        return (np.full(samples.shape[1:], np.nan),) * 2
    return interval(samples)


def _size(of: Cube) -> dict:
    sizes = {"groups": len(of.groups), "folds": len(of.folds), "seeds": len(of.seeds)}
    return sizes | {"conditional": of.conditional}


def _read(low: float, high: float, delta: float, a: str, b: str) -> str:
    if low > -delta and high < delta:
        return "equivalent"
    if low > 0 or high < 0:
        return f"{a if low > 0 else b} higher"
    return "undecided"

"""Confidence intervals, paired differences and power, from a bootstrap of groups and seeds.

Frames of one sweep are near-copies, so every mean is taken within groups first ("group-macro").
Groups and trainings are resampled, crossed (Owen & Eckles, Ann. Appl. Stat. 6 (2012) 895); all
models meet the same ones. `docs/statistics.md` says how often the intervals are right.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from thyroid_lib.data.groups import PROPOSED, are_proposed

SEEDS_FOR_STABILITY = 5
GROUPS_FOR_SELECTION = 5  # below, a selection is provisional
TAILS = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # of 95 % intervals
# The first one that was run decides.
PROTOCOLS = ("grouped", "leave-one-group-out", "external", "official", "random")
# A gap of this many standard errors is seen in 80 % of studies, by a two-sided test at 0.05.
SEEN = stats.norm.ppf(TAILS[1]) + stats.norm.ppf(0.8)


class Cube(NamedTuple):
    """One protocol's group means of one metric, (M,F,S,G), axes sorted; NaN where not tested."""

    protocol: str
    models: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    values: np.ndarray

    @property
    def conditional(self) -> bool:
        """Whether one seed or a single split makes intervals hold for the trained runs alone."""
        return len(self.seeds) == 1 or len(self.folds) == 1

    @property
    def size(self) -> dict:
        """Columns of a table's row: groups, folds, seeds and conditional."""
        counts = {name: len(getattr(self, name)) for name in ("groups", "folds", "seeds")}
        return counts | {"conditional": self.conditional}


class Draws(NamedTuple):
    """Resamples: `groups` (B,G), how often each is drawn; `seeds` (B,F,S), drawn per fold."""

    groups: np.ndarray
    seeds: np.ndarray


def sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Put rows in the one order in which sums are taken, so that they agree to the last bit."""
    keys = ["protocol", "model", "fold", "seed", "group", "case_id"]
    return table.sort_values([key for key in keys if key in table], ignore_index=True)


def mark_groups(table: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Add a column that says so to a table whose groups are proposed (`groups: proposed`)."""
    return table.assign(grouping=PROPOSED) if are_proposed(scores) else table


def copied_models(scores: pd.DataFrame) -> list[str]:
    """Return the imported models without all seeds of the study: see `tables.load_runs`."""
    return list(scores["model"][scores["copied"] == 1].unique()) if "copied" in scores else []


def order_protocols(protocols) -> list[str]:
    """Sort protocols as `PROTOCOLS` has them, others after them by name; the first decides."""
    order = [*PROTOCOLS, *sorted(set(protocols) - set(PROTOCOLS))]
    return sorted(set(protocols), key=order.index)


def deciding(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table's rows of the protocol that decides, see `order_protocols`."""
    return table[table["protocol"].isin(order_protocols(table["protocol"])[:1])]


def cube(scores: pd.DataFrame, protocol: str, metric: str = "dice") -> Cube:
    """Average a protocol's cases in groups; ValueError: models differ in folds or seeds."""
    names = ["model", "fold", "seed", "group"]
    part = sort_rows(scores[scores["protocol"] == protocol])
    means = part.groupby(names)[metric].mean()
    axes = [sorted(part[name].unique()) for name in names]
    full = means.reindex(pd.MultiIndex.from_product(axes))
    values = full.to_numpy(float).reshape([len(axis) for axis in axes])  # (M,F,S,G)
    known = ~np.isnan(values)
    if not len(part) or (known != known.any(axis=(0, 2), keepdims=True)).any():
        need = "every model needs the same folds and seeds, and a number in each case"
        raise ValueError(f"{protocol}, {metric}: {need}; train or score the runs that are missing")
    return Cube(protocol, *(tuple(axis) for axis in axes), values)


def cubes(scores: pd.DataFrame) -> list[Cube]:
    """Give every protocol's `cube` of Dice, the deciding one first."""
    return [cube(scores, protocol) for protocol in order_protocols(scores["protocol"])]


def draw(of: Cube, *, resamples: int = 10_000, seed: int = 0) -> Draws:
    """Draw groups, and seeds by fold, as what a training adds is shared by its fold's groups."""
    _, folds, seeds, groups = of.values.shape
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return Draws(counts, rng.integers(seeds, size=(resamples, folds, seeds)))


def macro_means(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Return the group-macro mean of every resample, (B,M), of `values` (M,F,S,G)."""
    tested = ~np.isnan(values[0, :, 0])  # (F,G)
    fold, group = np.nonzero(tested)  # (P,)
    models, _, seeds, groups = values.shape
    runs = (draws.seeds[..., None] == np.arange(seeds)).sum(axis=2)  # (B,F,S)
    share = 1 / (tested.sum(axis=0)[group, None] * groups * draws.seeds.shape[2])
    weights = draws.groups[:, group, None] * runs[:, fold] * share  # (B,P,S)
    cells = values[:, fold, :, group].transpose(0, 2, 1)  # (P,S,M)
    return weights.reshape(len(weights), -1) @ cells.reshape(-1, models)


def macro_by_seed(values: np.ndarray, draws: Draws) -> np.ndarray:
    """Return `macro_means` of each drawn seed by itself, (B,M,S)."""
    each = [Draws(draws.groups, seed[..., None]) for seed in np.moveaxis(draws.seeds, 2, 0)]
    return np.stack([macro_means(values, one) for one in each], axis=2)


def macro_estimate(values: np.ndarray) -> np.ndarray:
    """Average (M,F,S,G) over seeds and folds, then over groups: (M,)."""
    return np.nanmean(values, axis=(1, 2)).mean(axis=1)


def bounds(samples: np.ndarray, of: Cube) -> np.ndarray:
    """Take the 95 % interval along the first axis: low, high; NaN for a single group."""
    return np.quantile(samples, TAILS, axis=0) * (1 if len(of.groups) > 1 else np.nan)


def differences(scores: pd.DataFrame, *, delta: float, resamples: int = 10_000) -> pd.DataFrame:
    """Compare models in pairs (a before b by name), on the same groups and seeds in each resample.

    Returns per protocol and pair: difference (a − b), low, high (95 %), se, p (twice the share of
    resamples beyond zero), smallest_gap (which 80 % of such studies would see), reading, `size`.
    """
    parts = []
    for of in cubes(scores):
        i, j = np.triu_indices(len(of.models), 1)
        estimate = macro_estimate(of.values)
        means = macro_means(of.values, draw(of, resamples=resamples)).T  # (M,B)
        gap = means[i] - means[j]  # (P,B)
        low, high = bounds(gap.T, of)
        se, beyond = gap.std(axis=1), np.minimum((gap <= 0).sum(axis=1), (gap >= 0).sum(axis=1))
        part = {"protocol": of.protocol, "a": np.array(of.models)[i], "b": np.array(of.models)[j]}
        part |= {"difference": estimate[i] - estimate[j], "low": low, "high": high, "se": se}
        part |= {"p": np.minimum(1, 2 * (1 + beyond) / (resamples + 1)), "smallest_gap": SEEN * se}
        pairs = zip(low, high, part["a"], part["b"], strict=True)
        part["reading"] = [read_interval(*pair, delta=delta) for pair in pairs]
        parts.append(pd.DataFrame(part | of.size))
    return mark_groups(pd.concat(parts, ignore_index=True), scores)


def read_interval(low: float, high: float, a: str, b: str, *, delta: float) -> str:
    """Read the interval of a − b: equivalent (within ±delta), a or b higher, else undecided."""
    if low > -delta and high < delta:
        return "equivalent"
    if low > 0 or high < 0:
        return f"{a if low > 0 else b} higher"
    return "undecided"

"""Selection of the model to deploy, by the rule that was declared before training.

Test data select a model here, once, after all were trained. They never select weights, except
under protocol reported.
"""

import numpy as np
import pandas as pd

from thyroid_lib.compare import bootstrap
from thyroid_lib.compare.bootstrap import GROUPS_FOR_SELECTION, SEEDS_FOR_STABILITY
from thyroid_lib.compare.stability import worst_decile
from thyroid_lib.evaluate.imported import is_imported


def decide(dice, seed_sd, decile, cost, *, delta: float, provisional: bool) -> tuple:
    """Order the models of each of B studies by the rule.

    First those within delta of the study's best mean, by seed_sd, to six digits (by Dice if
    provisional), then worst decile, then cost; an unknown one (NaN) comes last. `dice` and
    `seed_sd` are (B,M), `decile` and `cost` (rank) (M,). Returns order, int (B,M), the selected
    first; and candidates, bool (B,M).
    """
    candidates = dice.max(axis=1, keepdims=True) - dice <= delta
    first = -dice if provisional else seed_sd.round(6)
    keys = np.broadcast_arrays(cost, -decile, first, ~candidates)  # the last one sorts first
    return np.lexsort(keys, axis=1), candidates


def _is_provisional(seeds: int, groups: int) -> bool:
    return seeds < SEEDS_FOR_STABILITY or groups < GROUPS_FOR_SELECTION


def _by_cost(table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    each = table.drop_duplicates("model").sort_values(["multiply_adds", "parameters", "model"])
    return sorted(each["model"]), np.argsort(list(each["model"]))


def select(table, differences, stability, *, delta: float) -> dict:
    """Select the model to deploy; the first of `bootstrap.PROTOCOLS` that was run decides.

    `table` is that of `tables.summary`. Returns model, protocol, best (highest mean Dice),
    candidates (in order), not_separated, dropped, provisional, seeds, groups, conditional, delta,
    rule (in words).
    """
    protocol = bootstrap.order_protocols(table["protocol"])[0]
    rivals = table[table["protocol"] == protocol].set_index("model").sort_index()
    models, cost = _by_cost(rivals.reset_index())
    measured = stability[stability["protocol"] == protocol].pivot(index="model", columns="measure")
    spread, decile = (measured["value"][name].to_numpy() for name in ("seed_sd", "worst_decile"))
    trained = rivals[~rivals.index.map(is_imported)]
    # all trained models have the same seeds; an ensemble of them is one
    size = {name: int(trained[name].max()) for name in ("seeds", "groups")}
    dice, provisional = rivals["dice"].to_numpy(float), _is_provisional(**size)
    how = {"delta": delta, "provisional": provisional}
    order, candidates = decide(dice[None], spread[None], decile, cost, **how)
    ranked = [models[i] for i in order[0]]
    first, rest = ranked[: candidates.sum()], sorted(ranked[candidates.sum() :])
    best = first[0] if provisional else models[dice.argmax()]
    pairs = differences[differences["protocol"] == protocol]
    below = {*pairs.a[(pairs.b == best) & (pairs.high < -delta)],
             *pairs.b[(pairs.a == best) & (pairs.low > delta)]}  # fmt: skip
    return {
        "model": first[0], "protocol": protocol, "best": best, "candidates": first,
        "not_separated": [model for model in rest if model not in below],
        "dropped": [model for model in rest if model in below], "provisional": provisional, **size,
        "conditional": bool(measured["conditional"].any(axis=None)), "delta": delta,
        "rule": f"candidates are the models whose mean Dice under {protocol} lies within {delta} "
        "of the best mean; the smallest spread between seeds (seed_sd) is selected, then the best "
        "worst decile, then the fewest multiply-adds, then parameters; with fewer than "
        f"{SEEDS_FOR_STABILITY} seeds or {GROUPS_FOR_SELECTION} groups the best mean is selected "
        "provisionally; another model is dropped only if the 95 % interval of (model − best) lies "
        f"wholly below −{delta}",
    }  # fmt: skip


def ranks(scores, runs, *, delta: float, resamples: int = 10_000) -> pd.DataFrame:
    """Give each model's rank by Dice with its interval, P(best) and P(selected).

    `decide` is applied to each resample's mean Dice and spread between seeds; all else is the
    study's. Returns one row per protocol and model: rank (mean), low, high, p_best (a tie is shared
    out), p_selected; NaN for a single group.
    """
    parts = []
    for of in bootstrap.cubes(scores):
        models, cost = _by_cost(runs[runs["model"].isin(of.models)])
        draws = bootstrap.draw(of, resamples=resamples)
        each = bootstrap.macro_by_seed(of.values, draws)  # (B,M,S)
        dice, provisional = each.mean(axis=2), _is_provisional(len(of.seeds), len(of.groups))
        spread = each.std(axis=2, ddof=1) if len(of.seeds) > 1 else np.zeros_like(dice)
        spread[:, np.isin(of.models, bootstrap.copied_models(scores))] = np.nan  # sorted last
        cases = scores[scores["protocol"] == of.protocol].groupby("model")["dice"]
        decile = cases.agg(worst_decile)[models]
        order, _ = decide(dice, spread, decile, cost, delta=delta, provisional=provisional)
        leads = dice == dice.max(axis=1, keepdims=True)
        rank = 1 + (dice[:, :, None] < dice[:, None]).sum(axis=2)  # (B,M)
        low, high = bootstrap.bounds(rank, of)
        part = pd.DataFrame({"rank": rank.mean(axis=0), "low": low, "high": high})
        part["p_best"] = (leads / leads.sum(axis=1, keepdims=True)).mean(axis=0)  # ties shared
        part["p_selected"] = np.bincount(order[:, 0], minlength=len(models)) / len(order)
        part *= 1 if len(of.groups) > 1 else np.nan
        parts.append(pd.DataFrame({"protocol": of.protocol, "model": models}).join(part))
    return bootstrap.mark_groups(pd.concat(parts, ignore_index=True), scores)

"""Which do we pick? The rule declared before training, and how often it would pick each model.

The rule reads tables and nothing else. Test data never selects weights; it selects between models
here, once, after all of them were trained.
"""

import numpy as np
import pandas as pd

from thyroid_lib.compare.bootstrap import (
    SEEDS_FOR_STABILITY,
    bounds,
    cube,
    draw,
    interval,
    macro_by_seed,
    macro_estimate,
    order_protocols,
)
from thyroid_lib.compare.stability import chi_factors


def decide(dice, above, s1, s1_low, s1_high, cheap, *, delta: float, seeds: int) -> tuple:
    """Apply the declared rule to each of B studies at once.

    Args:
        dice: (B,M).
        above: (M,M), how far the interval of (m − n) reaches above its estimate.
        s1, s1_low, s1_high: (B,M).
        cheap: (M,), the place of each model by cost, 0 the cheapest.
        delta: Dice that makes no difference in practice.
        seeds: per model; below `SEEDS_FOR_STABILITY` nothing is ranked by S1.

    Returns:
        best (B,) and chosen (B,), places of models; kept and tied, bool (B,M).
    """
    every = np.arange(len(dice))
    best = dice.argmax(axis=1)
    high = dice - dice[every, best][:, None] + above[:, best].T  # of (model − best)
    kept = ~(high < -delta)  # without an interval nothing is dropped
    kept[every, best] = True
    tied = kept
    if seeds >= SEEDS_FOR_STABILITY:
        leader = np.where(kept, s1, np.inf).argmin(axis=1)
        tied = kept & ~(s1_low > s1_high[every, leader][:, None])
    return best, np.where(tied, cheap, len(cheap)).argmin(axis=1), kept, tied


def _by_cost(table: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Return the models by name and the place of each by multiply-adds, then parameters."""
    each = table.drop_duplicates("model").sort_values(["multiply_adds", "parameters", "model"])
    order = list(each["model"])
    models = sorted(order)
    return models, np.array([order.index(model) for model in models])


def select(
    table: pd.DataFrame, differences: pd.DataFrame, stability: pd.DataFrame, *, delta: float
) -> dict:
    """Pick the model to deploy by the rule that was declared before training.

    A model is dropped only if the 95 % interval of (model − best) lies wholly below −delta. The
    rest are ranked by S1, then S3. Models whose S1 interval overlaps the first one's are a tie, and
    all are where seeds are fewer than five. A tie goes to the fewest multiply-adds, then the fewest
    parameters. The first protocol of `statistics.PROTOCOLS` that was run decides.

    Args:
        table: what `tables.summary` gives: dice, seeds, multiply_adds, parameters.
        differences, stability: what the functions of these names give.

    Returns:
        model, protocol, best (highest Dice), kept (ranked), dropped, tied (by name), seeds,
        conditional, delta, rule (in words).
    """
    protocol = order_protocols(table["protocol"])[0]
    rivals = table[table["protocol"] == protocol].set_index("model").sort_index()
    models, cheap = _by_cost(rivals.reset_index())
    place = {model: i for i, model in enumerate(models)}
    above = np.zeros((len(models),) * 2)
    for pair in differences[differences["protocol"] == protocol].itertuples():
        above[place[pair.a], place[pair.b]] = pair.high - pair.difference
        above[place[pair.b], place[pair.a]] = pair.difference - pair.low
    measured = stability[stability["protocol"] == protocol]
    s1 = measured[measured["measure"] == "S1"].set_index("model").loc[models]
    s3 = measured[measured["measure"] == "S3"].set_index("model").loc[models, "value"]
    seeds = int(rivals["seeds"].min())
    best, chosen, kept, tied = decide(
        rivals["dice"].to_numpy(float)[None], above,
        *(s1[name].to_numpy(float)[None] for name in ("value", "low", "high")),
        cheap, delta=delta, seeds=seeds,
    )  # fmt: skip
    ranked = sorted(
        (m for m, keep in zip(models, kept[0], strict=True) if keep),
        key=lambda m: (np.nan_to_num(s1.loc[m, "value"]), -s3[m], m),
    )
    return {
        "model": models[chosen[0]], "protocol": protocol, "best": models[best[0]], "kept": ranked,
        "dropped": [m for m in models if m not in ranked],
        "tied": [m for m, tie in zip(models, tied[0], strict=True) if tie],
        "seeds": seeds, "conditional": bool(s1["conditional"].any()), "delta": delta,
        "rule": f"drop a model only if the 95 % interval of (model − best) lies wholly below "
        f"−{delta} Dice under {protocol}; rank the rest by S1, then S3; overlapping S1 intervals, "
        f"or fewer than {SEEDS_FOR_STABILITY} seeds, are a tie, which goes to the fewest "
        "multiply-adds, then parameters",
    }  # fmt: skip


def ranks(
    scores: pd.DataFrame, runs: pd.DataFrame, *, delta: float, resamples: int = 10_000
) -> pd.DataFrame:
    """Give each model's rank by Dice with its interval, P(best) and P(selected).

    The rule is applied inside each resample; there, the interval of a difference reaches as far
    from it as in the study itself.

    Args:
        scores: see `statistics.cube`.
        runs: one row per run: model, multiply_adds, parameters.

    Returns:
        One row per protocol and model: rank (mean), low, high, p_best, p_selected.
    """
    rows = []
    for protocol in order_protocols(scores["protocol"]):
        of = cube(scores, protocol)
        models, cheap = _by_cost(runs[runs["model"].isin(of.models)])
        each = macro_by_seed(of.values, draw(of, resamples=resamples))  # (B,M,S)
        dice, seeds = each.mean(axis=2), len(of.seeds)
        estimate = macro_estimate(of.values)
        gaps = dice[:, :, None] - dice[:, None]  # (B,M,M)
        above = bounds(gaps, of)[1] - (estimate[:, None] - estimate)
        s1 = each.std(axis=2, ddof=1) if seeds > 1 else np.full_like(dice, np.nan)
        low, high = chi_factors(seeds)
        best, chosen, *_ = decide(
            dice, above, s1, s1 * low, s1 * high, cheap, delta=delta, seeds=seeds
        )
        rank = 1 + (gaps < 0).sum(axis=2)  # (B,M)
        first, last = interval(rank)
        for i, model in enumerate(models):
            rows.append(
                {"protocol": protocol, "model": model, "rank": rank[:, i].mean(),
                 "low": first[i], "high": last[i], "p_best": (best == i).mean(),
                 "p_selected": (chosen == i).mean()}
            )  # fmt: skip
    return pd.DataFrame(rows)

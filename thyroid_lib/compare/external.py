"""External test: how much Dice falls on data sets that no network was trained on.

The figure inside is that of the same study's grouped protocol, on unseen groups of the data sets
that were trained on. Groups are resampled on each side by themselves, and seeds within each split,
crossed with groups (see `bootstrap`). The networks inside were trained on fewer groups.
"""

import numpy as np
import pandas as pd

from thyroid_lib.compare import bootstrap
from thyroid_lib.files.text import count_of
from thyroid_lib.settings import FEW_GROUPS

EXTERNAL, INSIDE = "external", ("grouped", "leave-one-group-out")


def external_drop(scores: pd.DataFrame, *, resamples: int = 10_000) -> pd.DataFrame | None:
    """Compare each model's Dice inside and outside; None without runs of protocol external.

    Returns one row per model: protocol (of the figure inside, "" where none was run), inside,
    external, drop (inside − external), low, high (95 %; NaN for a single group on a side), groups
    of each side, seeds, and conditional, as one split is one draw of trainings. ValueError: the two
    sides have different models.
    """
    protocols = set(scores["protocol"])
    if EXTERNAL not in protocols:
        return None
    outside = bootstrap.cube(scores, EXTERNAL)
    estimate = bootstrap.macro_estimate(outside.values)
    table = {"protocol": "", "model": outside.models, "inside": np.nan, "external": estimate}
    table |= dict.fromkeys(("drop", "low", "high"), np.nan) | {"inside_groups": 0}
    if protocol := next((name for name in INSIDE if name in protocols), ""):
        inside = bootstrap.cube(scores, protocol)
        if inside.models != outside.models:
            raise ValueError(f"{protocol} and external need the same models: train missing runs")
        means = [  # (B,M); drawn independently for each side
            bootstrap.macro_means(of.values, bootstrap.draw(of, resamples=resamples, seed=seed))
            for seed, of in enumerate((inside, outside))
        ]
        fewer = min(inside, outside, key=lambda of: len(of.groups))
        low, high = bootstrap.bounds(means[0] - means[1], fewer)
        within = bootstrap.macro_estimate(inside.values)
        table |= {"protocol": protocol, "inside": within, "drop": within - estimate}
        table |= {"low": low, "high": high, "inside_groups": len(inside.groups)}
    size = {"external_groups": len(outside.groups), "seeds": len(outside.seeds)}
    table = pd.DataFrame(table | size | {"conditional": outside.conditional})
    return bootstrap.mark_groups(table, scores)


def external_sentence(table: pd.DataFrame | None) -> str:
    """Say how Dice falls on the external data sets, from `external_drop`; "" for None."""
    if table is None:
        return ""
    size = table.iloc[0]
    told = f"On the external data sets ({count_of(size['external_groups'], 'group')})"
    if pd.isna(size["inside"]):
        each = [f"{row.model} has Dice {row.external:.3f}" for row in table.itertuples()]
        return f"{told} {', '.join(each)}; no grouped runs say what it is inside."
    each = []
    for row in table.itertuples():
        interval = f" [{row.low:z.3f}, {row.high:z.3f}]" if row.low == row.low else ""
        change = f"a drop of {row.drop:z.3f}{interval}".replace("-", "−")
        each.append(f"{row.model} has Dice {row.external:.3f} against {row.inside:.3f}, {change}")
    inside = f"against unseen groups of its own data ({count_of(size['inside_groups'], 'group')})"
    fewest = min(size["inside_groups"], size["external_groups"])
    narrow = " The intervals are too narrow, as groups are few." * bool(1 < fewest < FEW_GROUPS)
    held = " They hold for the trained runs, as the external split is a single one."
    note = held * bool(fewest > 1 and size["conditional"])
    return f"{told} {inside}: {'; '.join(each)}.{narrow}{note}"

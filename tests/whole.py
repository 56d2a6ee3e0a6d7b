"""All tables of the comparison of a simulated study, for the tests that read them."""

from functools import cache

import pandas as pd
from synthetic import study

from thyroid_lib.compare import bootstrap, mixed, selection, stability, tables

DELTA = 0.005


@cache
def compared(
    seeds: int = 3, groups: int = 12, random: bool = True, folds: int = 3, models: tuple = ()
) -> dict:
    """Tables of a study of three models under `grouped` and, with `random`, under that too."""
    means = dict.fromkeys(models, 0.75)
    results = study(means, seeds=seeds, groups=groups, folds=folds)
    if random:
        leaky = study({"unet": 0.9, "segnet": 0.88, "resunet": 0.91}, folds=1, protocol="random",
                      seeds=seeds, groups=groups)  # fmt: skip
        parts = zip(results, leaky, strict=True)
        results = type(results)(*(pd.concat(part, ignore_index=True) for part in parts))
    return compare(results)


def compare(results: tables.Results, *, resamples: int = 300, delta: float = DELTA) -> dict:
    """Every table of the comparison, by name."""
    scores, runs, few = results.scores, results.runs, {"resamples": resamples}
    table = tables.summary(scores, runs, results.calibration, **few)
    differences = bootstrap.differences(scores, delta=delta, **few)
    measured = stability.stability(scores, results.histories, results.thresholds, **few)
    return results._asdict() | {
        "table": table, "differences": differences, "stability": measured,
        "mixed": mixed.mixed_model(scores),
        "ranks": selection.ranks(scores, runs, delta=delta, **few),
        "selected": selection.select(table, differences, measured, delta=delta),
    }  # fmt: skip

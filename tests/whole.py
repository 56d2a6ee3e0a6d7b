"""All tables of the comparison of a simulated study, and what tests of figures share."""

from functools import cache

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from synthetic import complete, study

from thyroid_lib.compare import bootstrap, mixed, selection, stability, tables
from thyroid_lib.plots import common

DELTA = 0.005


@pytest.fixture(autouse=True)
def closed_figures():
    """Draw as the notebooks do; in the modules that import it."""
    common.style()
    yield
    plt.close("all")


def scores_of(rows: list[tuple], *names: str) -> pd.DataFrame:
    """Scores of rows of model, seed, group, case_id and these columns, by default Dice."""
    columns = ["model", "seed", "group", "case_id", *(names or ["dice"])]
    return pd.DataFrame(rows, columns=columns).assign(protocol="grouped", fold=0)


TWO_GROUPS = complete(
    scores_of(
        [
            ("unet", 0, "a", "1", 0.2), ("unet", 0, "a", "2", 0.4), ("unet", 0, "b", "3", 0.9),
            ("unet", 1, "a", "1", 0.4), ("unet", 1, "a", "2", 0.6), ("unet", 1, "b", "3", 0.9),
        ]
    )
)  # fmt: skip


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

"""Coverage of the intervals: docs/statistics.md holds, simulated again with other seeds."""

import importlib.util
import re
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "tools/coverage.py")
coverage = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coverage)

SEED = 2  # the page's is 1
OURS = ["mean covered", "groups × seeds", "it is seen"]


def stated(name: str = "coverage") -> pd.DataFrame:
    """A table of the page, by design."""
    page = (ROOT / "docs" / "statistics.md").read_text("utf-8").split(f"{name} -->")[1]
    lines = re.findall(r"(?m)^\| *(.*?) *\|$", page)
    table = pd.read_csv(StringIO("\n".join(lines)), sep=r"\s*\|\s*", engine="python", comment=":")
    return table.set_index(list(table)[: list(table).index("run SD") + 1])


def name_of(design) -> tuple:
    return design.name, design.groups, design.folds, design.seeds, design.run


@pytest.mark.study
def test_coverage_and_rejections_are_as_stated():
    table = stated()
    for design in coverage.DESIGNS:
        again = coverage.measure(design, studies=4000, seed=SEED, resamples=1000, rivals=False)
        for column in OURS:
            row = table.loc[name_of(design)]
            assert float(again[column]) == pytest.approx(row[column], abs=2), (design, column)


@pytest.mark.study
def test_the_drop_of_an_external_test_is_covered_as_stated():
    for inside, outside in coverage.EXTERNAL:
        again = coverage.measure_drop(inside, outside, studies=4000, seed=SEED)
        row = stated("external").loc[inside.groups, outside.groups, outside.seeds, outside.run]
        assert float(again["drop covered"]) == pytest.approx(row["drop covered"], abs=2)


def test_rejections_of_other_tests_are_as_stated():
    design = coverage.Design("4 folds", 16, 4, 5)
    again = coverage.measure(design, studies=1500, seed=SEED, resamples=500)
    row = stated().loc[name_of(design)]
    for column in ("groups alone", "Wilcoxon, groups", "Wilcoxon, images"):
        assert float(again[column]) == pytest.approx(row[column], abs=4), column


def test_the_simulated_studies_have_the_declared_deviations():
    design = coverage.Design("", 6, 3, 4, 0.1)
    values = coverage.simulate(design, 4000, np.random.default_rng(0))  # (2,N,F,S,G)
    assert values.shape == (2, 4000, 3, 4, 6)
    assert np.isnan(values).mean() == pytest.approx(2 / 3)  # a fold tests two of six groups
    first = values[:, :, 0, :, [0, 3]]  # (G',2,N,S): both groups of fold 0
    assert np.mean(first) == pytest.approx(0, abs=0.01)
    # what two groups of one run share: the run; what two models share: the group
    shared = first - first.mean(axis=3, keepdims=True)
    assert np.mean(shared[0] * shared[1]) == pytest.approx(0.1**2 * 3 / 4, rel=0.05)
    model_a, model_b = np.moveaxis(first.mean(axis=3), 1, 0)
    assert np.mean(model_a * model_b) == pytest.approx(0.080**2, rel=0.1)

import numpy as np
import pytest
from synthetic import study

from thyroid_lib.compare.bootstrap import differences
from thyroid_lib.compare.mixed import mixed_model


@pytest.mark.study
def test_the_mixed_model_agrees_with_the_bootstrap():
    scores = study(seeds=5, groups=15).scores
    mixed, boot = mixed_model(scores), differences(scores, delta=0.005)
    np.testing.assert_allclose(mixed.difference, boot.difference, atol=1e-6)  # balanced
    ratio = (mixed.high - mixed.low) / (boot.high - boot.low)
    assert ratio.between(0.6, 1.6).all()
    assert set(mixed.note) == {""}


@pytest.mark.parametrize(
    "design", [(1, 1, 1), (2, 1, 1), (1, 1, 3), (3, 3, 1), (2, 1, 2), (5, 5, 2)]
)
def test_the_mixed_model_never_raises_on_a_small_study(design):
    groups, folds, seeds = design
    table = mixed_model(study(groups=groups, folds=folds, seeds=seeds, frames=2).scores)
    assert len(table) == 3
    assert (table["note"] != "")[table["low"].isna()].all()

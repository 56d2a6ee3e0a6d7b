"""What weights are worth otherwise, by hand: a gain that is the same everywhere, or is not."""

import numpy as np
import pytest
from synthetic import study
from test_imported_runs import write

from thyroid_lib.compare import tables, variations
from thyroid_lib.compare.bootstrap import cube, macro_estimate


@pytest.fixture(scope="module")
def scores():
    return study({"unet": 0.7, "segnet": 0.6}, folds=2, seeds=2).scores


def varied(scores, **columns):
    return scores[[*variations.tables.RUN, "case_id", "group"]].assign(**columns)


def test_a_change_that_is_the_same_everywhere_has_no_interval_to_speak_of(scores):
    more = varied(scores, largest_dice=scores["dice"] + 0.02, largest_nsd=0.5)
    table = variations.effects(scores, more, resamples=200)
    assert list(table["model"]) == ["segnet", "unet"]
    assert set(table["variation"]) == {"largest"}
    assert table[["difference", "low", "high"]].to_numpy() == pytest.approx(np.full((2, 3), 0.02))
    assert table["nsd"].tolist() == pytest.approx([0.5, 0.5])
    assert table["hd95_px"].isna().all()
    assert table["dice"].tolist() == pytest.approx(
        macro_estimate(cube(scores, "grouped").values) + 0.02
    )


def test_a_change_in_one_group_alone_may_be_no_change_at_all(scores):
    first = scores["group"] == scores["group"].min()
    more = varied(scores, blur_dice=scores["dice"] - 0.3 * first, flip_dice=scores["dice"])
    table = variations.effects(scores, more, resamples=500).set_index(["model", "variation"])
    blurred = table.loc[("unet", "blur")]
    groups = scores["group"].nunique()
    assert blurred["difference"] == pytest.approx(-0.3 / groups)
    assert blurred["low"] < blurred["difference"] < blurred["high"] == 0  # a draw without the group
    assert (table.xs("flip", level=1)[["difference", "low", "high"]] == 0).all(axis=None)
    shown = variations.show_effects(table.reset_index())
    assert list(shown.index) == ["mirror image averaged in (or left out)", "blurred"]
    said = variations.effects_sentence(table.reset_index())
    assert f"blurred costs most: {-0.3 / groups:+.3f}" in said


def test_an_ensemble_answers_once_for_all_seeds_of_the_study(tmp_path):
    """Its run has the smallest seed alone, as it has all members' seeds in it."""
    members, both = study({"unet": 0.7}, folds=2, seeds=2), study({"both": 0.8}, folds=2, seeds=1)
    folders = [*write(members, tmp_path), *write(both, tmp_path, ensemble=["a", "b"])]
    for folder in folders:
        rows = tables.pd.read_csv(folder / "scores.csv")
        more = rows[["case_id", "group"]].assign(largest_dice=rows["dice"])
        more.to_csv(folder / variations.FILE, index=False)
    more = tables.load_optional(folders, variations.FILE)
    table = variations.effects(tables.load_runs(folders).scores, more, resamples=200)
    assert table.set_index("model")["conditional"].to_dict() == {"both": True, "unet": False}
    assert table["difference"].tolist() == pytest.approx([0, 0])


def test_every_variation_of_a_run_has_a_name():
    from thyroid_lib.evaluate.perturb import PERTURBATIONS
    from thyroid_lib.evaluate.postprocess import POSTPROCESSES

    assert set(variations.NAMES) == {"flip", "batch_norm", *POSTPROCESSES, *PERTURBATIONS}

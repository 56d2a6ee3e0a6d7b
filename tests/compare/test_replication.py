"""The steps of the replication, on scores whose Dice one can work out by hand."""

import numpy as np
import pandas as pd
import pytest
from synthetic import shuffled, study
from test_imported_runs import write

from thyroid_lib.compare import replication
from thyroid_lib.compare.replication import STEPS, WITHOUT_RELU, measure_steps
from thyroid_lib.compare.tables import Results

CURVES = replication.reported_curves()


def scores_of(protocol: str, dice: dict[str, float], *, folds: int = 1) -> pd.DataFrame:
    """Two cases in each of four groups; a model's Dice is the same in all but group d: there 0.1.

    At the network's size a case of group d is small, so that a pooled batch all but hides it.
    """
    keys = pd.MultiIndex.from_product(
        [[*dice], [*"abcd"], [*"01"]], names=["model", "group", "case_id"]
    )
    rows, hard = keys.to_frame(index=False), keys.get_level_values("group") == "d"
    rows["square_total"] = np.where(hard, 20, 2000)
    rows["dice"] = np.where(hard, 0.1, rows["model"].map(dice))
    rows["square_both"] = rows["dice"] * rows["square_total"] / 2
    rows["fold"] = rows["group"].map("abcd".index) % folds
    return rows.assign(protocol=protocol, seed=0, case_id=rows["group"] + rows["case_id"])


def ladder() -> dict[str, pd.DataFrame]:
    both = {"unet": 0.9, "segnet_reported": 0.7}
    flawed = scores_of("reported", both | {WITHOUT_RELU: 0.8})
    steps = ("reported", 0.86, 1), ("random", 0.88, 1), ("grouped", 0.6, 2)
    mended = (scores_of(name, both | {"unet": dice}, folds=folds) for name, dice, folds in steps)
    return dict(zip(STEPS, (flawed, flawed, *mended), strict=True))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return measure_steps(ladder(), resamples=500)


def test_each_step_is_measured_and_its_change_beside_it(table):
    assert set(table.model) == {"unet", "segnet_reported"}  # at every step
    pooled = (3 * 2 * 2000 * 0.9 + 2 * 20 * 0.1) / (3 * 2 * 2000 + 2 * 20)
    means = [pooled, *((3 * dice + 0.1) / 4 for dice in (0.9, 0.86, 0.88, 0.6))]
    part = table[table.model == "unet"]
    assert part.dice.tolist() == pytest.approx(means)
    assert part.change.tolist() == pytest.approx([np.nan, *np.diff(means)], nan_ok=True)


def test_a_change_is_paired_so_what_never_changes_has_no_width(table):
    same = table[(table.model == "segnet_reported") & table.step.isin(STEPS[2:])]
    assert (same[["change", "change_low", "change_high"]].abs() < 1e-12).all(axis=None)
    assert (same.low < same.high).all()  # though Dice itself is uncertain: group d may be drawn
    fall = table[(table.model == "unet") & (table.step == STEPS[-1])].iloc[0]
    assert fall.change_high < 0
    mixed = {name: shuffled(part) for name, part in ladder().items()}  # order changes nothing
    pd.testing.assert_frame_equal(table, measure_steps(mixed, resamples=500))


def test_only_groups_that_every_step_tested_are_compared():
    steps = ladder()
    steps[STEPS[-1]] = steps[STEPS[-1]].query("group != 'd'")
    table = measure_steps(steps, resamples=100)
    assert set(table.groups) == {3}
    easy = table[(table.model == "unet") & (table.step == STEPS[1])]
    assert easy.dice.tolist() == pytest.approx([0.9])  # the hard group is gone at every step


def test_the_table_shows_the_reports_own_figures_first(table):
    shown = replication.show_steps(table, CURVES)
    mark = " (epoch picked on test)"  # no table goes without it
    marked = ["the report itself" + mark, *(step + mark for step in STEPS[:2])]
    assert list(shown.index) == [*marked, *STEPS[2:]]
    assert list(shown.columns) == ["unet", "segnet_reported"]
    assert list(shown.iloc[0]) == ["0.977", "0.778"]
    assert shown.loc[STEPS[-1], "unet"].startswith("0.475 (−0.210: −0.2")


def test_the_sentence_names_what_moved_every_network(table):
    text = replication.steps_sentence(table)
    assert "unet 0.897 to 0.475" in text
    assert "whole sweeps held out (1 of 2); with one seed all intervals" in text
    bare = table.assign(change_low=np.nan, change_high=np.nan)  # a single group
    assert replication.steps_sentence(bare).endswith("A single group gives no interval.")


def test_variants_that_were_not_run_as_reported_take_no_part_in_the_steps(tmp_path):
    """Their settings may be others, as here the seeds and the share held back."""
    as_reported, *others = (
        write(study({"unet": 0.7}, folds=1, seeds=1, protocol=protocol), tmp_path)
        for protocol in ("reported", "random", "grouped")
    )
    for run in as_reported:
        (run / "scores_val.csv").write_bytes((run / "scores.csv").read_bytes())
    more = study({"strong": 0.8}, folds=1, seeds=2)
    fair = [*others[0], *others[1], *write(more, tmp_path, val_share=0, varied=["val_share"])]
    steps, _ = replication.load_steps(as_reported, fair)
    assert {name for table in steps.values() for name in table["model"]} == {"unet"}
    with pytest.raises(ValueError, match="no run of protocol random: train them"):
        replication.load_steps(as_reported, others[1])


def results(*, last: float, without: float) -> Results:
    runs = pd.DataFrame({"run_id": [*"swu"], "model": ["segnet_reported", WITHOUT_RELU, "unet"]})
    runs = runs.assign(seed=0, train_foreground=0.25)
    losses = [0.7, last, 0.6, without, 0.3, 0.1]
    histories = pd.DataFrame({"run_id": [*"sswwuu"], "train_loss": losses})
    return Results(runs, histories, *[pd.DataFrame()] * 3)


def test_the_floor_is_that_of_the_training_masks():
    table = replication.floors(results(last=0.53, without=0.2))
    assert list(table.model) == ["segnet_reported", WITHOUT_RELU]
    assert table.floor.tolist() == pytest.approx([0.75 * np.log(2)] * 2)
    assert list(table.below) == [False, True]
    text = replication.floor_sentence(table)
    assert "never fell below its floor of 0.520 and ended 0.010 above" in text
    assert "ended at 0.200, below it" in text
    text = replication.floor_sentence(replication.floors(results(last=0.51, without=0.55)))
    assert "fell below its floor of 0.520 and" in text
    assert text.endswith(", not below it.")
    assert "not among these runs" in replication.floor_sentence(table[:0])


def test_the_reports_own_curves_are_measured_as_far_as_they_go():
    table = replication.reported_stability(CURVES)
    assert list(table.index) == ["U-Net", "SegNet", "Residual U-Net"]
    assert table[["seed_sd", "worst_decile", "threshold_range"]].isna().all(axis=None)
    assert table.loc["U-Net", "largest_fall"] == pytest.approx(0.9756 - 0.8459)
    assert table.loc["U-Net", "best_minus_last"] == 0  # its best epoch was its last
    said = replication.curves_sentence(table)
    assert said.startswith("The largest fall is U-Net's, by 0.130; the calmest curve is Residual")

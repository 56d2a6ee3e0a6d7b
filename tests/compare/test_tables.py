import json

import numpy as np
import pandas as pd
import pytest
from synthetic import calibration_of, complete, shuffled, study, thresholds_of

from thyroid_lib.compare import tables
from thyroid_lib.compare.tables import (
    SHARED,
    calibration_errors,
    cost,
    first_seed,
    load_runs,
    summary,
)


def scores_of(rows: list[tuple]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["model", "seed", "group", "case_id", "dice"])
    return complete(table.assign(protocol="grouped", fold=0))


def runs_of(scores: pd.DataFrame) -> pd.DataFrame:
    runs = scores[["model", "protocol", "fold", "seed"]].drop_duplicates().reset_index(drop=True)
    return runs.assign(parameters=1_000, selection="last", multiply_adds=10)


def summary_of(scores: pd.DataFrame) -> pd.DataFrame:
    return summary(scores, runs_of(scores), calibration_of(scores), resamples=200)


TWO_GROUPS = scores_of(
    [
        ("unet", 0, "a", "1", 0.2), ("unet", 0, "a", "2", 0.4), ("unet", 0, "b", "3", 0.9),
        ("unet", 1, "a", "1", 0.4), ("unet", 1, "a", "2", 0.6), ("unet", 1, "b", "3", 0.9),
    ]
)  # fmt: skip


def test_means_are_taken_within_groups_first():
    row = summary_of(TWO_GROUPS).iloc[0]
    # group a: (0.3 + 0.5) / 2 = 0.4, group b: 0.9; by frame it would be 0.567
    assert row.dice == pytest.approx(0.65)
    assert row.dice_sd_groups == pytest.approx(np.std([0.4, 0.9], ddof=1))
    # seed 0: (0.3 + 0.9) / 2 = 0.6, seed 1: (0.5 + 0.9) / 2 = 0.7
    assert row.dice_sd_seeds == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert (row.groups, row.folds, row.seeds) == (2, 1, 2)
    # parts are missed below Dice 0.5: in group a both frames, then one of two; in b none
    assert row.missed_parts == pytest.approx(0.75 / 2)
    assert row.dice_low <= row.dice <= row.dice_high
    assert row.conditional


def test_calibration_error_is_the_gap_weighed_by_pixels():
    each = calibration_errors(calibration_of(TWO_GROUPS))
    # 90 pixels that are right and 10 that are half too sure
    assert each["ece"].tolist() == pytest.approx([0.05] * 4)
    assert summary_of(TWO_GROUPS)["ece"][0] == pytest.approx(0.05)


def test_groups_weigh_the_same_in_the_calibration_error():
    table = calibration_of(TWO_GROUPS)
    table.loc[(table.group == "a") & (table.bin == 14), "share"] = 0.95  # a is perfect
    table.loc[table.group == "a", "pixels"] *= 100
    row = summary(TWO_GROUPS, runs_of(TWO_GROUPS), table, resamples=50).iloc[0]
    assert row.ece == pytest.approx(0.025)


def test_groups_are_averaged_for_the_table_of_groups():
    table = tables.group_means(TWO_GROUPS)
    assert table["dice"].tolist() == pytest.approx([0.4, 0.9])
    assert table["frames"].tolist() == [2, 1]


def test_the_best_comes_first_within_a_protocol_and_the_deciding_protocol_before():
    grouped, leaky = study(), study({"unet": 0.8, "segnet": 0.9}, protocol="random")
    both = [pd.concat(parts, ignore_index=True) for parts in zip(leaky, grouped, strict=True)]
    table = summary(both[2], both[0], both[4], resamples=50)
    assert table["protocol"].tolist() == ["grouped"] * 3 + ["random"] * 2
    assert table["model"].tolist()[3:] == ["segnet", "unet"]
    assert table["dice"][:3].is_monotonic_decreasing


def test_order_changes_nothing():
    results = study()
    table = summary(results.scores, results.runs, results.calibration, resamples=100)
    again = summary(*(shuffled(results[i]) for i in (2, 0, 4)), resamples=100)
    pd.testing.assert_frame_equal(table, again, check_exact=True)


def test_cost_is_the_median_of_a_models_runs():
    runs = study({"unet": 0.7}, folds=1, seeds=3).runs.assign(train_seconds=[1.0, 5.0, 2.0])
    row = cost(runs).iloc[0]
    assert (row.runs, row.train_seconds) == (3, 2.0)


def test_the_first_seed_has_each_case_once():
    part = first_seed(TWO_GROUPS, "grouped")
    assert part["case_id"].tolist() == ["1", "2", "3"]


def write_run(folder, *, dice=0.5, cases=("1", "2"), drop=(), **changed):
    run_id = folder.name
    model, protocol, fold, seed = run_id.split("-")
    about = {name: 1 for name in SHARED} | {"parameters": 5, "multiply_adds": 7}
    about |= {"train_seconds": 1.0, "images_per_second": 2.0, "peak_memory_mib": 3}
    about |= {"run_id": run_id, "model": model, "protocol": protocol}
    about |= {"fold": int(fold[4:]), "seed": int(seed[4:])} | changed
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(about))
    scores = pd.DataFrame({"case_id": cases, "dataset": "d", "group": "07", "dice": dice})
    scores = complete(scores).drop(columns=list(drop))
    scores.to_csv(folder / "scores.csv", index=False)
    bare = scores[["case_id", "group", "dice"]]
    thresholds_of(bare).to_csv(folder / "thresholds.csv", index=False)
    calibration_of(bare).to_csv(folder / "calibration.csv", index=False)
    pd.DataFrame({"epoch": [1], "train_loss": [0.5]}).to_csv(folder / "history.csv", index=False)
    return folder


def test_runs_are_gathered_with_their_names_whatever_their_order(tmp_path):
    folders = [write_run(tmp_path / f"{m}-grouped-fold0-seed0") for m in ("unet", "segnet")]
    results = load_runs(folders)
    assert list(results.runs.model) == ["segnet", "unet"]
    assert len(results.scores) == len(results.thresholds) == len(results.calibration) == 4
    assert len(results.histories) == 2
    assert set(results.scores.group) == {"07"}  # as text: a group called 07 is not 7
    assert set(results.scores.case_id) == set(results.thresholds.case_id) == {"1", "2"}
    for one, other in zip(results, load_runs(folders[::-1]), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_missing_runs_are_all_named(tmp_path):
    there = write_run(tmp_path / "unet-grouped-fold0-seed0")
    gone = [tmp_path / "segnet-grouped-fold0-seed0", tmp_path / "resunet-grouped-fold0-seed0"]
    with pytest.raises(FileNotFoundError, match=r"2 of 3 runs .*resunet-grouped.*segnet-grouped"):
        load_runs([there, *gone])
    (there / "calibration.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 runs .*calibration\.csv"):
        load_runs([there])
    with pytest.raises(ValueError, match="no run was named"):
        load_runs([])


def test_missing_columns_give_one_clear_error(tmp_path):
    run = write_run(tmp_path / "unet-grouped-fold0-seed0", drop=("brier", "missed_parts"))
    with pytest.raises(ValueError, match=r"scores\.csv lacks brier, missed_parts.*run 3-train"):
        load_runs([run])


@pytest.mark.parametrize("field", ["lr", "data_fingerprint", "threads", "selection"])
def test_runs_of_other_settings_are_named(tmp_path, field):
    folders = [write_run(tmp_path / f"{m}-grouped-fold0-seed0") for m in ("unet", "segnet")]
    folders.append(write_run(tmp_path / "resunet-grouped-fold0-seed0", **{field: 2}))
    with pytest.raises(ValueError, match=f"{field} differs.*resunet-grouped-fold0-seed0 has 2"):
        load_runs(folders)


def test_other_test_cases_and_doubled_runs_are_refused(tmp_path):
    one = write_run(tmp_path / "unet-grouped-fold0-seed0")
    other = write_run(tmp_path / "segnet-grouped-fold0-seed0", cases=("1", "3"))
    with pytest.raises(ValueError, match="tested on different cases"):
        load_runs([one, other])
    with pytest.raises(ValueError, match="given twice: unet-grouped-fold0-seed0"):
        load_runs([one, one])

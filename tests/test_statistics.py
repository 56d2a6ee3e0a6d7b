import json

import numpy as np
import pandas as pd
import pytest

from thyroid_lib import statistics
from thyroid_lib.statistics import SHARED, load_runs, select, show, summary


def scores_of(rows: list[tuple]) -> pd.DataFrame:
    """Rows of (model, seed, group, case_id, dice); the other metrics follow Dice."""
    table = pd.DataFrame(rows, columns=["model", "seed", "group", "case_id", "dice"])
    table = table.assign(protocol="grouped", fold=0)
    for metric in ("nsd", "iou", "hd95_px", "assd_px"):
        table[metric] = table["dice"]
    return table


def runs_of(scores: pd.DataFrame, **adds: int) -> pd.DataFrame:
    runs = scores[["model", "protocol", "fold", "seed"]].drop_duplicates().reset_index(drop=True)
    return runs.assign(
        parameters=1_000, selection="last", multiply_adds=[adds.get(m, 10) for m in runs.model]
    )


TWO_GROUPS = scores_of(
    [
        ("unet", 0, "a", "1", 0.2), ("unet", 0, "a", "2", 0.4), ("unet", 0, "b", "3", 0.9),
        ("unet", 1, "a", "1", 0.4), ("unet", 1, "a", "2", 0.6), ("unet", 1, "b", "3", 0.9),
    ]
)  # fmt: skip


def test_means_are_taken_within_groups_first():
    row = summary(TWO_GROUPS, runs_of(TWO_GROUPS)).iloc[0]
    # group a: (0.3 + 0.5) / 2 = 0.4, group b: 0.9; by frame it would be 0.567
    assert row.dice == pytest.approx(0.65)
    assert row.dice_sd_groups == pytest.approx(np.std([0.4, 0.9], ddof=1))
    # seed 0: (0.3 + 0.9) / 2 = 0.6, seed 1: (0.5 + 0.9) / 2 = 0.7
    assert row.dice_sd_seeds == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert (row.groups, row.seeds) == (2, 2)


def test_worst_decile_is_the_mean_of_the_lowest_tenth():
    assert statistics.worst_decile(pd.Series(np.arange(20))) == 0.5
    assert statistics.worst_decile(pd.Series([0.7, 0.3])) == 0.3


def test_an_epoch_picked_on_test_is_marked_in_the_table():
    runs = runs_of(TWO_GROUPS)
    assert show(summary(TWO_GROUPS, runs))["protocol"][0] == "grouped"
    marked = show(summary(TWO_GROUPS, runs.assign(selection="test")))
    assert "picked on test" in marked["protocol"][0]


def test_one_seed_has_no_spread_and_says_so():
    table = summary(TWO_GROUPS[TWO_GROUPS.seed == 0], runs_of(TWO_GROUPS))
    assert np.isnan(table.dice_sd_seeds[0])
    assert show(table)["SD of seeds"][0] == "–"


def three_models(dices: dict[str, float]) -> pd.DataFrame:
    return scores_of([(m, 0, g, g, d) for m, d in dices.items() for g in "ab"])


def test_a_clear_winner_wins():
    scores = three_models({"unet": 0.8, "segnet": 0.7, "resunet": 0.9})
    chosen = select(summary(scores, runs_of(scores)), delta=0.005)
    assert (chosen["model"], chosen["tied"]) == ("resunet", ["resunet"])


def test_a_tie_is_called_one_and_goes_to_the_cheaper_model():
    scores = three_models({"unet": 0.8, "segnet": 0.7, "resunet": 0.803})
    table = summary(scores, runs_of(scores, unet=5, resunet=9, segnet=1))
    chosen = select(table, delta=0.005)
    assert chosen["model"] == "unet"
    assert chosen["best"] == "resunet"
    assert chosen["tied"] == ["resunet", "unet"]
    assert "out of a tie of resunet, unet" in statistics.selection_sentence(chosen)


def test_few_seeds_are_said_to_be_few():
    chosen = select(summary(TWO_GROUPS, runs_of(TWO_GROUPS)))
    assert chosen["seeds"] == 2
    assert "Seeds: 2; below 5 the order may be luck" in statistics.selection_sentence(chosen)
    assert "luck" not in statistics.selection_sentence(chosen | {"seeds": 5})


def test_the_order_of_rows_changes_nothing():
    scores = three_models({"unet": 0.8, "segnet": 0.7, "resunet": 0.803})
    table = summary(scores, runs_of(scores, unet=5, resunet=9))
    shuffled = scores.sample(frac=1, random_state=1)
    again = summary(shuffled, runs_of(shuffled, unet=5, resunet=9).iloc[::-1])
    pd.testing.assert_frame_equal(table, again, check_exact=False)
    assert select(table) == select(again)


def test_the_grouped_protocol_decides():
    scores = three_models({"unet": 0.8, "segnet": 0.7})
    leaky = three_models({"unet": 0.8, "segnet": 0.99}).assign(protocol="random")
    both = pd.concat([scores, leaky])
    table = summary(both, runs_of(both))
    assert select(table)["model"] == "unet"
    assert "adds 0.145 Dice" in statistics.protocol_sentence(table)


def write_run(folder, *, dice=0.5, cases=("1", "2"), **changed):
    run_id = folder.name
    model, protocol, fold, seed = run_id.split("-")
    about = {name: 1 for name in SHARED} | {"parameters": 5, "multiply_adds": 7}
    about |= {"train_seconds": 1.0, "images_per_second": 2.0, "peak_memory_mib": 3}
    about |= {"run_id": run_id, "model": model, "protocol": protocol}
    about |= {"fold": int(fold[4:]), "seed": int(seed[4:])} | changed
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(about))
    table = pd.DataFrame({"case_id": cases, "dataset": "d", "group": "07", "dice": dice})
    table.to_csv(folder / "scores.csv", index=False)
    pd.DataFrame({"epoch": [1], "train_loss": [0.5]}).to_csv(folder / "history.csv", index=False)
    return folder


def test_runs_are_gathered_with_their_names(tmp_path):
    folders = [write_run(tmp_path / f"{m}-grouped-fold0-seed0") for m in ("unet", "segnet")]
    runs, scores, histories = load_runs(folders)
    assert list(runs.model) == ["unet", "segnet"]
    assert len(scores) == 4
    assert len(histories) == 2
    assert set(scores.group) == {"07"}  # as text: a group called 07 is not 7
    assert set(scores.case_id) == {"1", "2"}


def test_missing_runs_are_all_named(tmp_path):
    there = write_run(tmp_path / "unet-grouped-fold0-seed0")
    gone = [tmp_path / "segnet-grouped-fold0-seed0", tmp_path / "resunet-grouped-fold0-seed0"]
    with pytest.raises(FileNotFoundError, match=r"2 of 3 runs .*segnet-grouped.*resunet-grouped"):
        load_runs([there, *gone])
    with pytest.raises(ValueError, match="no run was named"):
        load_runs([])


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


def test_tables_are_written_and_repeat_to_the_byte(tmp_path):
    folders = [write_run(tmp_path / f"{m}-grouped-fold0-seed0") for m in ("unet", "segnet")]
    runs, scores, _ = load_runs(folders)
    for metric in ("nsd", "iou", "hd95_px", "assd_px"):
        scores[metric] = scores["dice"]
    table = summary(scores, runs)
    for name in ("first", "second"):
        statistics.save_tables(
            tmp_path / name, scores=scores, runs=runs, table=table, selected=select(table)
        )
    written = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert written == ["cost.csv", "groups.csv", "selected.json", "summary.csv", "summary.md"]
    for name in written:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert "| unet" in (tmp_path / "first" / "summary.md").read_text()

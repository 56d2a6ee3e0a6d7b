"""Runs are loaded or refused by name; their summary by hand; tables shown and saved."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import calibration_of, complete, shuffled, study, thresholds_of
from whole import TWO_GROUPS, compare, compared

from thyroid_lib import settings
from thyroid_lib.compare import tables
from thyroid_lib.compare.readings import recipe_sentence
from thyroid_lib.compare.stability import MEASURES
from thyroid_lib.compare.tables import SHARED, find_runs, load_runs, summary
from thyroid_lib.files.fingerprint import file_digest

UNET, SEGNET, RESUNET = (f"{name}-grouped-fold0-seed0" for name in ("unet", "segnet", "resunet"))


def summary_of(calibration: pd.DataFrame) -> pd.Series:
    runs = TWO_GROUPS[["model", "protocol", "fold", "seed"]].drop_duplicates(ignore_index=True)
    runs = runs.assign(parameters=1_000, selection="last", multiply_adds=10)
    return summary(TWO_GROUPS, runs, calibration, resamples=200).iloc[0]


def test_a_row_has_means_and_deviations_of_groups_and_seeds():
    row = summary_of(calibration_of(TWO_GROUPS))
    # group a: (0.3 + 0.5) / 2 = 0.4, group b: 0.9; seed 0: (0.3 + 0.9) / 2 = 0.6, seed 1: 0.7
    values = row[["dice", "dice_sd_groups", "dice_sd_seeds"]].tolist()
    assert values == pytest.approx([0.65, np.std([0.4, 0.9], ddof=1), np.std([0.6, 0.7], ddof=1)])
    # parts are missed below Dice 0.5: in group a both frames, then one of two; in b none
    assert row.missed_parts == pytest.approx(0.75 / 2)
    assert row[["groups", "folds", "seeds", "conditional"]].tolist() == [2, 1, 2, True]


def test_frames_that_an_ensemble_misses_count_once():
    """Its rows are repeated for the seeds that it lacks, see `tables.load_runs`."""
    table = calibration_of(TWO_GROUPS)
    runs = TWO_GROUPS[["model", "protocol", "fold", "seed"]].drop_duplicates(ignore_index=True)
    runs = runs.assign(parameters=1_000, selection="last", multiply_adds=10)
    missed = TWO_GROUPS.assign(dice=0.0)
    row = summary(missed, runs, table, resamples=200).iloc[0]
    assert (row["missed"], row["seeds"]) == (len(missed), 2)
    copied = missed.assign(copied=np.where(missed["seed"] == 1, True, np.nan))
    row = summary(copied, runs, table, resamples=200).iloc[0]
    assert (row["missed"], row["seeds"]) == (len(missed) / 2, 1)


def test_calibration_error_is_the_gap_weighed_by_pixels_and_groups_weigh_the_same():
    table = calibration_of(TWO_GROUPS)  # 90 pixels that are right and 10 that are half too sure
    assert summary_of(table)["ece"] == pytest.approx(0.05)
    table.loc[(table.group == "a") & (table.bin == 14), "share"] = 0.95  # a is perfect
    table.loc[table.group == "a", "pixels"] *= 100
    assert summary_of(table)["ece"] == pytest.approx(0.025)


def test_the_order_of_rows_changes_no_table_and_no_selection():
    results = study(seeds=5)
    first, again = (compare(each) for each in (results, results._make(map(shuffled, results))))
    assert first["selected"] == again["selected"]
    for name in ("table", "differences", "stability", "mixed", "ranks"):
        pd.testing.assert_frame_equal(first[name], again[name], check_exact=True)


def test_cost_is_the_median_of_a_models_runs():
    runs = study({"unet": 0.7}, folds=1, seeds=3).runs.assign(train_seconds=[1.0, 5.0, 2.0])
    assert tables.cost(runs).iloc[0][["runs", "train_seconds"]].tolist() == [3, 2.0]


def test_runs_with_weights_have_each_case_once_per_model(tmp_path):
    scores = study({"unet": 0.7, "segnet": 0.6}, folds=2, seeds=2).scores
    folders = [tmp_path / run for run in scores["run_id"].unique()]

    def found(names) -> pd.DataFrame:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if folder.name in names:
                (folder / "model.pt").touch()
        return tables.answering(scores, folders, "grouped")

    every = found([folder.name for folder in folders])
    assert set(every["seed"]) == {0}
    assert not every.duplicated(["model", "case_id"]).any()
    assert set(every["case_id"]) == set(scores["case_id"])
    later = found([folder.name for folder in folders if folder.name.endswith("seed1")])
    assert set(later["seed"]) == {1}
    one = found(["unet-grouped-fold0-seed0", "segnet-grouped-fold0-seed0",
                 "unet-grouped-fold1-seed0"])  # fmt: skip
    assert set(one["fold"]) == {0}  # the cases that both answer for
    assert found([]).empty


def write_run(folder, *, cases=("1", "2")):
    model, protocol, fold, seed = folder.name.split("-")
    about = {"run_id": folder.name, "model": model, "protocol": protocol}
    about |= {"fold": int(fold[4:]), "seed": int(seed[4:])} | dict.fromkeys(SHARED, 1)
    folder.mkdir(parents=True)
    scores = complete(pd.DataFrame({"case_id": cases, "dataset": "d", "group": "07", "dice": 0.5}))
    bare, history = scores[["case_id", "group", "dice"]], pd.DataFrame({"epoch": [1]})
    made = history, scores, thresholds_of(bare), calibration_of(bare)
    for name, table in zip(tables.NEEDED, made, strict=True):
        table.to_csv(folder / name, index=False)
    about["files"] = {name: file_digest(folder / name) for name in tables.NEEDED}
    (folder / "run.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def folders(tmp_path):
    return [write_run(tmp_path / name) for name in (UNET, SEGNET)]


def test_runs_are_gathered_with_their_names_whatever_their_order(folders):
    results = load_runs(folders)
    assert list(results.runs.model) == ["segnet", "unet"]
    assert [len(table) for table in results] == [2, 2, 4, 4, 4]
    assert set(results.scores.group) == {"07"}  # as text: a group called 07 is not 7
    for one, other in zip(results, load_runs(folders[::-1]), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_runs_that_are_not_named_are_found(tmp_path):
    runs = [write_run(tmp_path / name) for name in (UNET, "unet-reported-fold0-seed0")]
    (tmp_path / SEGNET).mkdir()  # not finished
    for protocols, found in (((), 2), (("random", "grouped"), 1)):
        assert find_runs([], str(tmp_path), protocols=protocols, first="train") == runs[:found]
    assert find_runs(["/some/run"], str(tmp_path), first="")[0].name == "run"
    with pytest.raises(FileNotFoundError, match=r"no finished run of protocol official .*: train"):
        find_runs([], str(tmp_path), protocols=("official",), first="train first")


def edit(folder, **changed) -> None:
    about = json.loads((folder / "run.json").read_text()) | changed
    (folder / "run.json").write_text(json.dumps(about))


def drop_columns(folder) -> None:
    table = pd.read_csv(folder / "scores.csv", dtype=str).drop(columns=["brier", "iou"])
    table.to_csv(folder / "scores.csv", index=False)
    edit(folder, files={})


def test_a_run_that_is_older_than_a_setting_has_its_default(folders, monkeypatch):
    monkeypatch.setitem(settings.DEFAULTS, "decay", 0.5)
    monkeypatch.setattr(tables, "SHARED", (*SHARED, "decay"))
    edit(folders[0], decay=0.5)
    assert load_runs(folders).runs["decay"].tolist() == [0.5, 0.5]
    edit(folders[0], decay=0.1)
    with pytest.raises(ValueError, match="decay differs between runs"):
        load_runs(folders)
    monkeypatch.setattr(settings, "TRAINING", (*settings.TRAINING, "decay"))
    edit(folders[1], imported=True)
    assert tables.read_run(folders[1])["decay"] == "unknown"


def test_settings_that_a_variant_varies_need_to_be_alike_within_it_alone(folders):
    """Two variants of one network: augmentation and lr are the strong one's own, epochs are not."""
    strong = {"model": "unet", "variant": "strong", "varied": ["lr", "augment"], "lr": 2}
    edit(folders[1], **strong, augment={"flip": 0.5, "gamma": 1})
    again = write_run(folders[1].with_name(folders[1].name.replace("seed0", "seed1")))
    edit(again, **strong, augment={"flip": 0.5, "gamma": 1})
    other = write_run(folders[0].with_name(folders[0].name.replace("seed0", "seed1")))
    found = load_runs([*folders, again, other])
    assert sorted(set(found.scores["model"])) == ["strong", "unet"]
    differ, shared = tables.recipes(found.runs)
    assert differ.to_dict("records") == [
        {"model": "strong", "network": "unet", "lr": 2, "augment": "flip 0.5, gamma 1"},
        {"model": "unet", "network": "unet", "lr": 1, "augment": 1},
    ]
    assert (shared["epochs"], "lr" in shared) == (1, False)
    said = recipe_sentence(differ, shared)
    assert "epochs 1" in said
    assert "They may differ in lr and augment" in said  # their network is the same
    bare = differ[["model", "network"]]
    assert recipe_sentence(bare, shared).endswith("Nothing differs.")
    bare = bare.assign(network=["unet", "segnet"])
    assert recipe_sentence(bare, shared).endswith("Only the network differs.")
    plain = found.runs.assign(model=found.runs["network"], varied="")
    assert list(tables.recipes(plain)[0]) == ["model"]  # each is called as its network
    for changed in ({"lr": 3}, {"varied": ["lr"]}, {"augment": {"flip": 0.5}}, {"epochs": 2}):
        edit(again, **strong, augment={"flip": 0.5, "gamma": 1}, epochs=1)
        edit(again, **changed)
        with pytest.raises(ValueError, match="differs between runs"):
            load_runs([*folders, again, other])


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda one, other: one.with_name(RESUNET), FileNotFoundError,
         r"1 of 3 runs have no result: resunet-grouped-fold0-seed0"),
        (lambda one, other: (one / "calibration.csv").unlink(), FileNotFoundError,
         rf"1 of 2 runs have no result: {UNET}; run 3-train"),
        (lambda one, other: (one / "scores.csv").write_text("case_id\n"), ValueError,
         rf"{UNET}/scores\.csv is not the file that was .*run 3-train again"),
        *((lambda one, other, field=field: edit(other, **{field: 2}), ValueError,
           rf"{field} differs between runs: most have 1, but {SEGNET} has 2; train them again")
          for field in ("lr", "data_fingerprint", "training_version", "selection")),
        (lambda one, other: one, ValueError, f"given twice: {UNET}"),
        (lambda one, other: drop_columns(one) or drop_columns(other), ValueError,
         rf"{SEGNET}/scores\.csv has no column iou, brier: the run was scored .*3-train again"),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_named(folders, damage, error, says):
    more = damage(*folders)
    with pytest.raises(error, match=says):
        load_runs([*folders, *([more] if isinstance(more, Path) else [])])


def test_runs_with_other_test_cases_are_refused(tmp_path):
    one, other = write_run(tmp_path / UNET), write_run(tmp_path / SEGNET, cases=("1", "3"))
    with pytest.raises(ValueError, match="tested on different cases"):
        load_runs([one, other])


def test_intervals_are_written_beside_their_estimate():
    table = pd.DataFrame({"x": [0.5, 0.25, np.nan], "l": [0.4, np.nan, np.nan], "h": [0.61, 1, 1]})
    assert tables.with_interval(table, ("x", "l", "h"), 2) == ["0.50 [0.40, 0.61]", "0.25", "–"]
    tiny = pd.DataFrame({"x": [-0.0001], "l": [-0.1], "h": [0.1]})
    assert tables.with_interval(tiny, ("x", "l", "h")) == ["0.000 [-0.100, 0.100]"]


def test_the_tables_shown_mark_what_is_conditional_picked_on_test_or_not_known():
    made, table = compared(), compared()["table"]
    shown = tables.show_summary(table)
    dagger = shown["Dice [95 % interval]"].str.endswith("†")
    assert dagger.tolist() == [False] * 3 + [True] * 3  # three folds; one with three seeds
    marked = tables.show_summary(table.assign(selection="test"))
    assert marked["protocol"].str.contains("picked on test").all()
    assert set(tables.show_summary(compared(seeds=1)["table"])["SD seeds"]) == {"–"}
    assert len(shown.to_markdown(index=False).splitlines()[0]) < 160  # fits on a page
    pairs = tables.show_pairs(made["differences"], made["mixed"])
    assert len(pairs) == 6
    assert set(pairs["reading"]) & {"resunet higher", "unet higher"}
    assert not pairs["p"].isin(["0.00"]).any()
    measures = tables.show_stability(made["stability"])
    assert list(measures) == ["protocol", "model", *MEASURES]
    assert measures["protocol"].tolist() == ["grouped"] * 3 + ["random"] * 3


def test_tables_are_written_and_repeat_to_the_byte(tmp_path):
    names = ("scores", "runs", "table", "selected", "differences", "stability", "mixed", "ranks")
    parts = {name: compared()[name] for name in names}
    for folder in ("first", "second"):
        tables.save_tables(tmp_path / folder, card="# Model card\n", **parts)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        for folder in ("first", "second")
    )
    assert first == second
    tables_of = ("cost", "differences", "groups", "mixed", "ranks", "stability", "summary")
    more = {"details.md", "model_card.md", "selected.json", "summary.md"}
    assert first.keys() == {f"{name}.csv" for name in tables_of} | more


def test_every_table_says_that_groups_were_proposed(tmp_path):
    results = study(groups=4, seeds=2)
    proposed = (
        part.assign(group=part["group"].str.replace("g", "proposed0")) if "group" in part else part
        for part in results
    )
    made = compare(type(results)(*proposed))
    names = ("scores", "runs", "table", "selected", "differences", "stability", "mixed", "ranks")
    tables.save_tables(tmp_path, card="", **{name: made[name] for name in names})
    for path in tmp_path.glob("*.csv"):
        if path.name != "cost.csv":  # which no group enters
            assert set(pd.read_csv(path)["grouping"]) == {"proposed"}, path.name
    shown = [(tmp_path / f"{name}.md").read_text("utf-8") for name in ("summary", "details")]
    shown += [tables.show_pairs(made["differences"], made["mixed"]).to_string()]
    shown += [tables.show_stability(made["stability"]).to_string()]
    assert all(text.count("grouped (proposed groups)") == 3 for text in shown)

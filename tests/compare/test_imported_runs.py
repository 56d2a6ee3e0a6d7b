"""Imported runs stand beside trained ones: what is unknown of them is shown and ranked so."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from synthetic import study
from whole import closed_figures, compare  # noqa: F401

from thyroid_lib.compare import card, readings, selection, tables
from thyroid_lib.compare.tables import RUN, SHARED, load_runs
from thyroid_lib.plots import compare as figures

NAME = "other (imported)"
TABLES = {"history": 1, "scores": 2, "thresholds": 3, "calibration": 4}  # position in Results


def write(results, top, **changed):
    """Write a study of `synthetic` as folders of runs; returns them."""
    folders = []
    for run in results.runs.to_dict("records"):
        folder = top / run["run_id"]
        folder.mkdir(parents=True)
        about = dict.fromkeys(SHARED, 1) | run | changed
        (folder / "run.json").write_text(json.dumps(about, default=int))
        for name, at in TABLES.items():
            table = results[at][results[at]["run_id"] == run["run_id"]].drop(columns=RUN)
            table.to_csv(folder / f"{name}.csv", index=False)
        folders.append(folder)
    return folders


def imported(top, *, masks=False, seeds=1, **changed):
    """Write runs that were imported: one seed, 0.9 Dice, nothing known of the training."""
    results = study({"other": 0.9}, seeds=seeds)
    unknown = dict.fromkeys((*tables.settings.TRAINING, "training_version"), "unknown")
    nothing = dict.fromkeys(("parameters", "multiply_adds", "train_seconds", "temperature"))
    about = {"model": NAME, "imported": True, "source": "a colleague", "cases": {"test": 24}}
    folders = write(results, top, **unknown | nothing | about | changed)
    for folder in folders:
        empty = ["history", *["thresholds", "calibration"] * masks]
        for path in (folder / f"{name}.csv" for name in empty):
            pd.read_csv(path).iloc[:0].to_csv(path, index=False)
        if masks:
            scores = pd.read_csv(folder / "scores.csv").assign(brier=np.nan)
            scores.to_csv(folder / "scores.csv", index=False)
    return folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write(study(), tmp_path_factory.mktemp("trained"))


@pytest.mark.study
@pytest.mark.parametrize("masks", [False, True])
def test_they_are_ranked_and_shown_and_change_no_other_row(masks, trained, tmp_path):
    alone = compare(load_runs(trained))
    results = load_runs([*trained, *imported(tmp_path, masks=masks)])
    both = compare(results)
    first, rest = both["table"].iloc[0], both["table"].iloc[1:].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, alone["table"], check_dtype=False)
    assert first["model"] == NAME
    assert first["dice"] == pytest.approx(0.9, abs=0.05)
    assert first["dice_low"] < first["dice"] < first["dice_high"]
    assert (first["seeds"], first["conditional"]) == (1, True)
    unknown = ["dice_sd_seeds", "parameters", *["ece", "brier"] * masks]
    assert first[unknown].isna().all()
    assert first[["ece", "brier"]].notna().all() != masks
    measured = both["stability"].set_index(["model", "measure"])["value"][NAME]
    known = {"worst_decile", *["threshold_range"] * (not masks)}
    assert set(measured.dropna().index) == known
    assert both["selected"]["model"] == NAME  # the best by far; the release refuses it
    assert both["selected"]["seeds"] == 3

    shown = tables.show_summary(both["table"]).iloc[0]
    assert (shown["model"], shown["SD seeds"]) == (NAME, "–")
    assert "The cost of imported models is unknown." in readings.cost_sentence(both["table"])
    names = ("table", "differences", "stability", "ranks", "selected", "runs", "scores")
    parts = {name: both[name] for name in names}
    text = card.model_card(**parts)
    for said in (f"Model card: {NAME}", "trained elsewhere", "(a colleague)", "are unknown."):
        assert said in text
    other = {"model": "unet", "seed_sd": 0}
    of_unet = parts | {"selected": both["selected"] | other}
    assert "1,900,000 parameters, 0.00 G" in card.model_card(**of_unet)
    drawn = [figures.estimates(both["table"]), figures.cost(both["table"])]
    drawn += [figures.stability_panel(both["stability"]), figures.groups(results.scores)]
    for fig in (drawn[0], drawn[2], drawn[3]):
        ticks = [t.get_text() for ax in fig.axes for t in (*ax.get_yticklabels(),
                 *ax.get_xticklabels())]  # fmt: skip
        assert NAME in ticks
    drawn = [figures.learning_curves(results.histories), figures.reliability(results.calibration)]
    for fig in (*drawn, figures.threshold_sweep(results.thresholds)):
        fig.canvas.draw()
    tables.save_tables(tmp_path / "out", card=text, mixed=both["mixed"], **parts)
    assert NAME in (tmp_path / "out" / "cost.csv").read_text()


def test_with_all_seeds_their_spread_is_measured(trained, tmp_path):
    results = load_runs([*trained, *imported(tmp_path, seeds=3)])
    assert "copied" not in results.scores
    row = compare(results)["table"].iloc[0]
    assert row["seeds"] == 3
    assert row["dice_sd_seeds"] > 0


def test_of_equal_candidates_one_of_unknown_spread_is_never_the_steadiest():
    how = {"decile": np.array([0.7, 0.6]), "cost": np.array([0, 1]), "delta": 0.005}
    dice, spread = np.array([[0.8, 0.8]]), np.array([[np.nan, 0.3]])
    order, _ = selection.decide(dice, spread, **how, provisional=False)
    assert order.tolist() == [[1, 0]]


def test_what_cannot_be_compared_is_refused(trained, tmp_path):
    for beside, changed, says in (
        (trained, {"data_fingerprint": "0"}, "data_fingerprint differs between runs: .*other-"),
        (trained, {"threshold": 0.4}, "threshold differs between runs"),
        (trained, {"protocol": "random"}, "all runs under random are imported"),
        ([], {}, "all runs under grouped are imported: need at least one trained here"),
    ):
        with pytest.raises(ValueError, match=says):
            load_runs([*beside, *imported(tmp_path / "runs", **changed)])
        shutil.rmtree(tmp_path / "runs")


def test_a_release_refuses_the_selected_one_and_passes_over_others(trained, tmp_path):
    export = pytest.importorskip("thyroid_lib.deploy.export", exc_type=ImportError)
    chosen = {"model": NAME, "protocol": "grouped"}
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "selected.json").write_text(json.dumps(chosen))
    where = {"store": tmp_path, "compare": tmp_path / "compare", "out": tmp_path / "out"}
    with pytest.raises(ValueError, match=r"selected is other \(imported\), whose weights lie"):
        export.release([], **where)
    assert not (tmp_path / "out").exists()
    for folder in trained:
        about = json.loads((folder / "run.json").read_text()) | {"selected_epoch": 15}
        (folder / "run.json").write_text(json.dumps(about))
    runs = [*trained, *imported(tmp_path / "runs")]
    found = export.choose_runs(runs, {"model": "unet", "protocol": "grouped"})
    assert list(found) == ["resunet", "segnet", "unet"]

"""The external figure beside the internal one: by hand, by theory, and on another scanner."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import study
from tiny_study import TINY, copy_project, run_study
from whole import scores_of

from thyroid_lib.compare import tables
from thyroid_lib.compare.external import external_drop, external_sentence
from thyroid_lib.data import phantom
from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.train.run import score_run, train_model

# a deeper image, darker and with more noise and less contrast than any of the usual ranges
OTHER_SCANNER = {
    "depth_mm": (44, 48), "gain_db": (-8, -5), "gamma": (1.7, 2.0), "noise_db": (-36, -32),
    "beam_mm": (0.4, 0.5), "fall_db": (22, 28),
}  # fmt: skip


def both_sides(inside: dict, outside: dict) -> pd.DataFrame:
    """Scores of one case for each (seed, group): Dice; "unet" under grouped and external."""
    parts = []
    for protocol, dices in (("grouped", inside), ("external", outside)):
        rows = [("unet", seed, f"{group}0", group, x) for (seed, group), x in dices.items()]
        parts.append(scores_of(rows).assign(protocol=protocol))
    return pd.concat(parts, ignore_index=True)


def test_the_drop_is_of_group_means_and_both_sides_are_resampled():
    inside = {(0, "a"): 0.9, (0, "b"): 0.8, (1, "a"): 0.9, (1, "b"): 0.8}
    scores = both_sides(inside, {(0, "x"): 0.5, (0, "y"): 0.5, (1, "x"): 0.5, (1, "y"): 0.5})
    [row] = external_drop(scores).itertuples()
    assert (row.protocol, row.model, row.seeds, row.conditional) == ("grouped", "unet", 2, True)
    assert (row.inside, row.external, row.drop) == pytest.approx((0.85, 0.5, 0.35))
    assert (row.low, row.high) == pytest.approx((0.3, 0.4))  # only the groups inside differ
    scores = both_sides(inside, {(0, "x"): 0.2, (0, "y"): 0.2, (1, "x"): 0.6, (1, "y"): 0.6})
    [row] = external_drop(scores).itertuples()
    assert (row.low, row.high) == pytest.approx((0.2, 0.7), abs=0.051)  # now seeds do, too


def test_the_interval_adds_the_variances_of_independent_sides():
    rng = np.random.default_rng(0)
    inside = {(0, f"{i:03}"): x for i, x in enumerate(rng.normal(0.8, 0.05, 100))}
    outside = {(0, f"x{i:03}"): x for i, x in enumerate(rng.normal(0.6, 0.08, 60))}
    [row] = external_drop(both_sides(inside, outside)).itertuples()
    se = np.hypot(np.std([*inside.values()]) / 10, np.std([*outside.values()]) / np.sqrt(60))
    assert (row.high - row.low) / 2 == pytest.approx(1.96 * se, rel=0.05)


def test_what_is_missing_is_said():
    assert external_drop(study().scores) is None
    assert external_sentence(None) == ""
    scores = both_sides({(0, "a"): 0.9, (0, "b"): 0.8}, {(0, "x"): 0.5})
    [row] = external_drop(scores).itertuples()  # a single group outside
    assert (row.drop, np.isnan(row.low)) == (pytest.approx(0.35), True)
    assert external_sentence(external_drop(scores)) == (
        "On the external data sets (1 group) against unseen groups of its own data (2 groups): "
        "unet has Dice 0.500 against 0.850, a drop of 0.350."
    )
    alone = external_drop(scores[scores["protocol"] == "external"])
    assert "no grouped runs say what it is inside" in external_sentence(alone)
    other = scores.assign(model=np.where(scores["protocol"] == "external", "unet", "segnet"))
    with pytest.raises(ValueError, match="grouped and external need the same models"):
        external_drop(other)


@pytest.mark.study
def test_another_scanner_costs_dice(tmp_path, monkeypatch):
    phantom.cases(tmp_path / "home", sweeps=4, frames=4)
    monkeypatch.setattr(phantom, "RANGES", phantom.RANGES | OTHER_SCANNER)
    phantom.cases(tmp_path / "away", sweeps=3, frames=3, seed=5)
    sources = [
        {"dataset": name, "source": "folder", "data": str(tmp_path / name)}
        for name in ("home", "away")
    ]
    store = build_store(load_cases(sources), tmp_path / "store", size=32)
    how = {"model": "unet", "width": 4, "epochs": 15, "batch_size": 4, "lr": 2e-2, "folds": 2}
    how |= {"val_share": 0.0}
    how |= {"threads": 1, "device": "cpu", "precision": "fp32", "external": ["away"]}
    folders = []
    for protocol, fold in (("grouped", 0), ("grouped", 1), ("external", 0)):
        for seed in (0, 1):
            out = tmp_path / "runs" / f"unet-{protocol}-fold{fold}-seed{seed}"
            run = train_model(store, out=out, protocol=protocol, fold=fold, seed=seed, **how)
            tested = score_run(run, store)["dataset"].unique().tolist()
            assert tested == ["away" if protocol == "external" else "home"]
            folders.append(out)
    results = tables.load_runs(folders)
    [row] = external_drop(results.scores).itertuples()
    assert (row.inside_groups, row.external_groups, row.seeds) == (4, 3, 2)
    assert row.low <= row.drop <= row.high
    assert row.drop > 0.05
    about = folders[0] / "run.json"
    about.write_text(about.read_text("utf-8").replace('"external": "away"', '"external": ""'))
    with pytest.raises(ValueError, match="external differs between runs: most have away"):
        tables.load_runs(folders)


@pytest.mark.study
def test_a_study_of_two_data_sets_ends_in_a_report_with_the_drop(tmp_path):
    pytest.importorskip("snakemake")
    names = [{"dataset": "a", "source": "phantom"}, {"dataset": "b", "source": "phantom"}]
    names[1] |= {"phantom_seed": 3, "phantom_sweeps": 2}
    more = {"source": json.dumps(names), "protocols": "[grouped, external]", "folds": 2}
    project = copy_project(tmp_path / "project", TINY | more | {"run_folds": "[0, 1]"})
    path = project / "parameters" / "tiny.yaml"
    path.write_text(path.read_text("utf-8") + "external: [b]\n", "utf-8")
    run_study(project)
    results = Path(project, "results", "tiny")
    [row] = pd.read_csv(results / "compare" / "external.csv").itertuples()
    assert (row.inside_groups, row.external_groups) == (4, 2)
    for page in ("report.html", "notebooks/4-compare.ipynb"):
        assert "On the external data sets (2 groups) against" in (results / page).read_text("utf-8")
    card = (results / "compare" / "model_card.md").read_text("utf-8")
    assert "- Data: a; fingerprint" in card  # b was never trained on
    assert "\n- On the external data sets (2 groups) against" in card
    leaks = pd.read_csv(results / "audit" / "leakage.csv")
    assert leaks.groupby("protocol")["fold"].nunique().to_dict() == {"external": 1, "grouped": 2}

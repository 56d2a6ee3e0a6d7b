"""Committed tables of a run are used again where nothing in its key or its scoring has changed."""

import json
import shutil

import pandas as pd
import pytest
from conftest import SMALL, files_of

from thyroid_lib.compare.readings import runs_sentence
from thyroid_lib.compare.tables import answering, load_runs
from thyroid_lib.evaluate.ensemble import score_ensemble
from thyroid_lib.train import run as run_module
from thyroid_lib.train.run import score_run, train_model

NAMES = ["unet-grouped-fold0-seed0", "unet-grouped-fold0-seed1"]
BOTH = "both-grouped-fold0-seed0"


def train(store, study, name: str, **changed):
    how = SMALL | {"protocol": "grouped", "fold": 0, "seed": int(name[-1]), "epochs": 1} | changed
    return train_model(store, out=study / "runs" / name, **how)


@pytest.fixture(scope="module")
def committed(tiny_store, tmp_path_factory):
    """A project that holds the tables of two runs and of their ensemble, and no weights."""
    top = tmp_path_factory.mktemp("project")
    study, reference = top / "made" / "tiny", top / "results" / "reference" / "tiny"
    for name in NAMES:
        score_run(train(tiny_store, study, name), tiny_store)
    score_ensemble(study / "runs" / BOTH, [study / "runs" / x for x in NAMES], tiny_store)
    shutil.copytree(study, reference, ignore=shutil.ignore_patterns("*.pt"))
    return top


@pytest.fixture
def project(committed, tmp_path, monkeypatch):
    shutil.copytree(committed / "results", tmp_path / "results")
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    return tmp_path


def test_committed_tables_are_taken_and_compared(project, tiny_store, monkeypatch):
    monkeypatch.setattr(run_module, "_train", None)  # which would raise TypeError
    study = project / "elsewhere" / "tiny"
    for name in NAMES:
        run = train(tiny_store, study, name, reuse=True, varied=["lr"])
        scores = score_run(run, tiny_store)
        assert (run.model, len(scores), len(run.history)) == (None, 6, 1)
    score_ensemble(study / "runs" / BOTH, [study / "runs" / x for x in NAMES], tiny_store)
    found = files_of(study / "runs")
    kept = files_of(project / "results" / "reference" / "tiny" / "runs")
    assert {name for name in kept if kept[name] != found.pop(name)} == {
        f"{name}/run.json" for name in (*NAMES, BOTH)
    }
    assert set(found) <= {f"{name}/.lock" for name in (*NAMES, BOTH)}
    about = json.loads((study / "runs" / NAMES[0] / "run.json").read_text())
    assert (about["reused"], about["trained_epochs"], about["varied"]) == ("tiny", 0, ["lr"])
    folders = [study / "runs" / name for name in NAMES]
    results = load_runs(folders)
    assert answering(results.scores, folders, "grouped").empty
    said = runs_sentence(results.runs, origin="here", store="store")
    assert said.endswith("Of 2 the committed tables are used again.")


@pytest.mark.parametrize(
    "changed", [{"lr": 2e-3}, {"threshold": 0.4}, {"flip_test": True}, {"reuse": False}]
)
def test_a_run_of_other_settings_is_trained(project, tiny_store, changed):
    run = train(tiny_store, project / "elsewhere" / "tiny", NAMES[0], **{"reuse": True} | changed)
    assert run.meta["trained_epochs"] == 1


@pytest.mark.parametrize("harm", ["edited", "missing", "older", "no JSON"])
def test_tables_that_are_harmed_or_older_are_not_taken(project, tiny_store, harm):
    folder = project / "results" / "reference" / "tiny" / "runs" / NAMES[0]
    whole = folder.parents[2] / "another"
    shutil.copytree(folder.parents[1], whole)
    if harm == "edited":
        table = pd.read_csv(folder / "scores.csv").assign(dice=1.0)
        table.to_csv(folder / "scores.csv", index=False)
    elif harm == "missing":
        (folder / "variations.csv").unlink()
    else:
        about = json.loads((folder / "run.json").read_text()) | {"rows_version": 0}
        (folder / "run.json").write_text(json.dumps(about) if harm == "older" else "{")
    study = project / "elsewhere" / "tiny"
    assert train(tiny_store, study, NAMES[0], reuse=True).meta["reused"] == "another"
    shutil.rmtree(whole)
    assert train(tiny_store, project / "new", NAMES[0], reuse=True).meta["trained_epochs"] == 1


def test_what_needs_the_weights_says_so(project, tiny_store):
    study = project / "elsewhere" / "tiny"
    run = train(tiny_store, study, NAMES[0], reuse=True)
    said = "committed tables have tolerance_px 2, need 3: set reuse to false"
    with pytest.raises(ValueError, match=said):
        score_run(run, tiny_store, tolerance_px=3)
    with pytest.raises(ValueError, match=f"no weights of {NAMES[0]}.*set reuse to false"):
        score_ensemble(study / "runs" / "one-grouped-fold0-seed0", [run.out], tiny_store)

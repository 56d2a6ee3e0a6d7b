"""The committed results: whole, clean, quoted faithfully, and sensitive to the library's code."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from thyroid_lib.compare import (
    bootstrap,
    classes,
    replication,
    selection,
    stability,
    tables,
    variations,
)
from thyroid_lib.settings import SHARED, list_runs, read_study
from thyroid_lib.study.runner import PINNED

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "reference" / "demo"
REFERENCE = ROOT / "results" / "reference"
REAL = REFERENCE / "tg3k-sample"
STUDIES = {
    "tg3k-sample": "tg3k-sample.yaml", "tg3k-strong": "strong.yaml",
    "tg3k-ablation": "ablation.yaml",
    "ddti-sample": "ddti-sample.yaml", "ddti-tirads": "ddti-tirads.yaml",
}  # fmt: skip
NOTEBOOKS = sorted(DEMO.glob("*.ipynb"))
EDITS = [
    ("evaluate/metrics", '"dice": 2 * both', '"dice": 3 * both'),
    ("models/registry", ".float().div_(255)", ".float().div_(254)"),
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_notebooks_are_whole_and_clean(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.fixture(scope="module", params=STUDIES)
def real(request):
    """A committed study of real frames: its folder, its settings, and its runs."""
    folder, study = (
        REFERENCE / request.param,
        read_study([ROOT / "parameters" / STUDIES[request.param]]),
    )
    wanted = {name for name, run in list_runs(study).items() if run["protocol"] != "reported"}
    names = {path.parent.name for path in folder.glob("runs/*/run.json")}
    others = {name for name in names - wanted if "-reported-" not in name}
    assert names >= wanted
    assert {name.split("-")[0] for name in others} == set(study["ensembles"])
    compared = {name for name in wanted if "_reported" not in name} | others
    return folder, study, tables.load_runs([folder / "runs" / name for name in sorted(compared)])


@pytest.mark.study
def test_the_committed_comparison_follows_from_the_committed_runs(real):
    """Whoever doubts a figure can compute it again from one row per test frame."""
    folder, study, (runs, histories, scores, thresholds, calibration) = real
    how = {"resamples": study["resamples"]}
    table = tables.summary(scores, runs, calibration, **how)
    differences = bootstrap.differences(scores, delta=study["delta"], **how)
    measured = stability.stability(scores, histories, thresholds, **how)
    for made, name, digits in ((table, "summary", 6), (differences, "differences", 4)):
        kept = pd.read_csv(folder / "compare" / f"{name}.csv")
        pd.testing.assert_frame_equal(made, kept, check_dtype=False, atol=0.6 * 10**-digits)
    selected = selection.select(table, differences, measured, delta=study["delta"])
    assert selected == json.loads((folder / "compare" / "selected.json").read_text("utf-8"))


@pytest.mark.study
def test_the_tables_of_classes_lesions_and_variations_follow_too(real):
    folder, study, (runs, _, scores, *_) = real
    folders = [folder / "runs" / name for name in runs["run_id"]]
    how = {"resamples": study["resamples"]}
    made = {
        "classes": lambda rows: classes.class_table(rows, **how),
        "lesions": classes.lesion_table,
        "variations": lambda rows: variations.effects(scores, rows, **how),
    }
    kept = {name: folder / "compare" / f"{name}.csv" for name in made}
    assert kept["lesions"].is_file() == ("nodule" in study["task"])
    assert kept["classes"].is_file() == (len(study["classes"]) > 1)
    for name, path in kept.items():
        if path.is_file():
            table = made[name](tables.load_optional(folders, f"{name}.csv"))
            table, kept_table = table.reset_index(drop=True), pd.read_csv(path)
            pd.testing.assert_frame_equal(table, kept_table, check_dtype=False, atol=6e-5)


def test_the_main_figures_follow_from_the_rows_by_plain_means(real):
    """A second computation that shares no code with the first."""
    folder, _, (runs, *_) = real
    kept = pd.read_csv(folder / "compare" / "summary.csv").set_index(["protocol", "model"])
    rows = []
    for run in runs.itertuples():
        table = pd.read_csv(folder / "runs" / run.run_id / "scores.csv", dtype={"group": str})
        rows.append(table.assign(protocol=run.protocol, model=run.model, seed=run.seed))
    frames = pd.concat(rows)
    for (protocol, model), part in frames.groupby(["protocol", "model"]):
        row = kept.loc[(protocol, model)]
        by_seed = part.groupby(["seed", "group"])[["dice", "nsd", "hd95_px"]].mean()
        means = by_seed.groupby("seed").mean()
        for name in means:
            assert row[name] == pytest.approx(means[name].mean(), abs=2e-5), (protocol, model, name)
        if len(means) > 1:
            assert row["dice_sd_seeds"] == pytest.approx(means["dice"].std(), abs=2e-5)


def test_the_committed_runs_are_those_of_the_committed_parameters(real):
    _, study, (runs, *_) = real
    varied = {name for text in runs["varied"] for name in text.split()}
    for name in set(SHARED) - varied - {"mend", "external", "augment"}:
        assert set(runs[name]) == {study[name]}, name
    for name in ("mend", "external"):
        assert set(runs[name]) == {" ".join(study[name])}


@pytest.mark.study
def test_the_committed_steps_follow_from_the_committed_runs():
    folders = sorted(run.parent for run in REAL.glob("runs/*/run.json"))
    reported = [folder for folder in folders if "-reported-fold" in folder.name]
    steps, flawed = replication.load_steps(reported, [f for f in folders if f not in reported])
    study = read_study([ROOT / "parameters" / "tg3k-sample.yaml"])
    made = replication.measure_steps(steps, resamples=study["resamples"])
    kept = pd.read_csv(REAL / "replication" / "steps.csv")
    pd.testing.assert_frame_equal(made, kept, check_dtype=False, atol=1e-6)
    floors = replication.floors(flawed).set_index("model")
    assert floors["below"][["segnet_reported", replication.WITHOUT_RELU]].tolist() == [False, True]
    assert 0 <= (floors["last"] - floors["floor"])["segnet_reported"] < 0.05


def test_nothing_of_the_real_frames_is_committed():
    for study in (*STUDIES, "ddti-sample", "external-sample"):
        kept = {path.suffix for path in (REFERENCE / study).rglob("*") if path.is_file()}
        assert kept <= {".csv", ".md", ".json", ".txt"}


@pytest.mark.parametrize(("module", "old", "new"), EDITS)
@pytest.mark.study
def test_one_character_of_arithmetic_makes_nbval_fail(tmp_path, module, old, new):
    """Without such a change `make test` validates the same notebooks."""
    for name in ("thyroid_lib", "results/reference/demo"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    code = tmp_path / "thyroid_lib" / f"{module}.py"
    source = code.read_text(encoding="utf-8")
    assert source.count(old) == 1
    code.write_text(source.replace(old, new), encoding="utf-8")
    demo = tmp_path / "results" / "reference" / "demo"
    variables = os.environ | PINNED | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    variables |= {"TQDM_DISABLE": "1", "THYROID_RESULTS": str(tmp_path / "again")}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-x"]
    command += ["-p", "no:cacheprovider", "-o", "addopts=", demo / "1-preprocess.ipynb"]
    command += [next(demo.glob("3-train-segnet-random-*.ipynb"))]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-2000:]
    assert "mismatch" in done.stdout
    assert re.search(r"1 failed, \d\d passed", done.stdout)  # what it does not touch passes

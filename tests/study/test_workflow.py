"""The workflow, tried with a study of one small run: which steps run again, and which do not."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_study
from tiny_study import RESULTS, ROOT, RUN, copy_project, results_of, run_study, snakemake, steps

pytest.importorskip("snakemake")
pytestmark = pytest.mark.study

# The steps that depend on each step, itself among them.
ALL = {"preprocess": 1, "audit": 1, "train": 1, "compare": 1, "report": 1}
AUDIT = {"audit": 1, "report": 1}
TRAIN = {"train": 1, "compare": 1, "report": 1}
COMPARE = {"compare": 1, "report": 1}
REPORT = {"report": 1}
NO_STEP = "parameters/tiny.yaml", "thyroid_lib/settings.py", "thyroid_lib/study/runner.py"
CHANGES = {  # a file that is changed or, of the results, deleted; or a setting
    "thyroid_lib/evaluate/metrics.py": TRAIN,
    "thyroid_lib/study/report.py": REPORT,
    "thyroid_lib/study/report.css": REPORT,
    "notebooks/1-preprocess.ipynb": ALL,
    "notebooks/2-audit.ipynb": AUDIT,
    "notebooks/3-train.ipynb": TRAIN,
    "notebooks/4-compare.ipynb": COMPARE,
    "size=64": ALL,
    "epochs=2": TRAIN,
    "delta=1e-2": COMPARE,
    f"results/tiny/runs/{RUN}/scores.csv": TRAIN,
    f"results/tiny/notebooks/3-train-{RUN}.ipynb": TRAIN,
    "results/tiny/store/images.npy": ALL,
    "results/tiny/compare/summary.csv": COMPARE,
    "results/tiny/report.html": REPORT,
}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project whose study is done; tests leave it as it is."""
    project = copy_project(tmp_path_factory.mktemp("finished"))
    output = run_study(project)
    for line in ("1-preprocess: done in", f"3-train-{RUN}: done in", "4-compare: done in"):
        assert line in output
    return project


@pytest.fixture
def project(finished, tmp_path) -> Path:
    """A copy of the finished project in another folder, as one moves a study to Colab."""
    return shutil.copytree(finished, tmp_path / "copy")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def change(path: Path) -> None:
    """Change the content of a file, but nothing that its program does."""
    if path.suffix == ".ipynb":
        replace(path, '"source": [', '"source": [\n    "\\n",')
    else:
        path.write_text(path.read_text(encoding="utf-8") + "\n# seen\n", encoding="utf-8")


def touch_everything(project: Path) -> None:
    """Give every input a later time than what was made from it."""
    outputs = [RESULTS / name for name in ("report.html", "compare", "notebooks", "runs", "store")]
    sources = [Path(name) for name in ("notebooks", "thyroid_lib", "parameters", "workflow")]
    for age, part in enumerate([*outputs, *sources]):
        for path in [project / part, *(project / part).rglob("*")]:
            if path.is_file():
                os.utime(path, (4e9 + age, 4e9 + age))


@pytest.mark.parametrize("what", CHANGES)
def test_what_depends_on_a_change_runs_again_and_nothing_else(what, project):
    path, options = project / what, ("--config", what)
    if "=" not in what:
        options = ()
        path.unlink() if what.startswith("results/") else change(path)
    assert steps(project, *options) == CHANGES[what]


def test_what_decides_no_result_runs_nothing_again(project):
    for name in NO_STEP:
        change(project / name)
    touch_everything(project)
    assert steps(project) == {}


def test_results_alone_are_the_study(finished, tmp_path):
    """Copied to another project, with other times, and to another folder of results."""
    moved = copy_project(tmp_path)
    shutil.copytree(finished / RESULTS, moved / RESULTS)
    for age, path in enumerate(sorted(moved.rglob("*"), reverse=True)):
        if path.is_file():
            os.utime(path, (1e9 + age, 1e9 + age))
    assert steps(moved) == {}
    # content decides, also where a change is older than what was made before it
    statistics = Path("thyroid_lib", "compare", "bootstrap.py")
    change(moved / statistics)
    os.utime(moved / statistics, (1e8, 1e8))
    assert steps(moved) == COMPARE
    shutil.copy2(finished / statistics, moved / statistics)
    shutil.move(moved / RESULTS, tmp_path / "away" / "tiny")
    assert tiny_study.steps_of(run_study(moved, "-n", THYROID_RESULTS=str(tmp_path / "away"))) == {}


def test_the_same_data_may_have_another_place(project, small_folder, monkeypatch):
    """A path below the project or the home is recorded as every machine would write it."""
    data = shutil.move(small_folder, project / "frames")
    given = ("--until", "preprocess", "--config", "source=folder")
    run_study(project, *given, f"data={data}")
    assert steps(project, *given, "data=frames") == {}
    shutil.move(data, project / "elsewhere")
    assert steps(project, *given, "data=elsewhere") == {"preprocess": 1}


def test_settings_of_the_command_line_are_those_of_the_file(project):
    same = ["epochs=1", "lr=2e-3", "seeds=[0]", "models=[unet]", "data=", "mend=[text]"]
    assert steps(project, "--config", *same, "study=tiny") == {}
    more = {"train": 4, "compare": 1, "report": 1}
    assert steps(project, "--config", "seeds=[0,1]", "models=[unet,segnet]") == more | {"train": 3}
    assert steps(project, "--config", "deploy=true") == {"deploy": 1, "report": 1}
    # frames are split at random in one way only, groups in one per fold
    both = ("protocols=[random,grouped]", "run_folds=[0,1,2,3]")
    assert steps(project, "--config", *both) == more | {"audit": 1}


@pytest.mark.parametrize(("gpus", "threads"), [("-1", 4), ("3,5", 2)])
def test_every_gpu_has_a_run(gpus, threads, tmp_path):
    """All threads are shared by the GPUs' runs: else one run would wait for the other."""
    options = ["-n", "--quiet", "host", "--cores", "4", "--config", "threads=0", "device=auto"]
    output = run_study(copy_project(tmp_path), *options, CUDA_VISIBLE_DEVICES=gpus)
    train = output.split("rule train:")[1].split("rule ")[0]
    assert f"threads: {threads}" in train
    assert f"gpu={int(gpus != '-1')}" in train


def test_a_new_metric_rescores_and_trains_nothing(project):
    """The how-to's own example: docs/new-metric.md, with its diffs applied."""
    text = (ROOT / "docs" / "new-metric.md").read_text(encoding="utf-8")
    for name, block in re.findall(r"```diff\n--- (\S+)\n(.*?)```", text, re.S):
        lines = block.splitlines()
        kept = [[line[1:] for line in lines if line[0] in side] for side in (" -", " +")]
        replace(project / name, *map("\n".join, kept))
    (example,) = re.findall(r"```python\n(.*?)```", text, re.S)
    run = project / RESULTS / "runs" / RUN
    weights, before = (run / "model.pt").read_bytes(), pd.read_csv(run / "scores.csv")
    assert json.loads((run / "run.json").read_text())["trained_epochs"] == 1
    subprocess.run([sys.executable, "-c", example], cwd=project, check=True)
    run_study(project)
    assert json.loads((run / "run.json").read_text())["trained_epochs"] == 0
    assert (run / "model.pt").read_bytes() == weights
    after = pd.read_csv(run / "scores.csv")
    pd.testing.assert_frame_equal(after.drop(columns="area_error"), before)
    larger = after[["pred_px", "ref_px"]].max(axis=1)
    off = (after["pred_px"] - after["ref_px"]).abs() / larger
    assert after["area_error"].tolist() == pytest.approx(off.tolist(), abs=1e-6)
    summary = pd.read_csv(project / RESULTS / "compare" / "summary.csv")
    expected = off.groupby(after["group"]).mean().mean()
    assert summary["area_error"].tolist() == [pytest.approx(expected, abs=1e-5)]
    assert "| area error " in (project / RESULTS / "compare" / "summary.md").read_text("utf-8")
    assert steps(project) == {}


def test_a_run_that_fails_stops_only_what_needs_it(tmp_path):
    project = copy_project(tmp_path)
    # 48 px can be halved four times, as U-Net does, but not five, as SegNet does
    done = snakemake(project, "--config", "size=48", "models=[segnet,unet]")
    failed = RUN.replace("unet", "segnet")
    assert done.returncode == 1
    assert f"error: 3-train-{failed}: In [" in done.stdout + done.stderr
    there = {path.stem for path in (project / RESULTS / "notebooks").iterdir()}
    assert there == {"1-preprocess", "2-audit", f"3-train-{RUN}"}
    page = project / RESULTS / "report.html"
    assert "1 of 5 steps failed, 0 were stopped, 3 are done" in page.read_text("utf-8")
    assert steps(project, "--config", "size=48", "models=[segnet,unet]") == TRAIN
    # mended: only what is missing is done, and the report tells of failures no more
    output = run_study(project, "--config", "size=48", "models=[unet]")
    assert "3-train-unet" not in re.findall(r"(\S+): done in", output)
    assert "not finished" not in page.read_text("utf-8")
    assert steps(project, "--config", "size=48", "models=[unet]") == {}


def test_what_was_damaged_or_deleted_is_named_and_made_again(project):
    flipped = [f"runs/{RUN}/scores.csv", "compare/frames.png", f"runs/{RUN}/model.pt"]
    top, before = project / RESULTS, results_of(project)
    for file in flipped:
        tiny_study.flip(top / file)
    for file in ("compare/summary.csv", "compare/estimates.png"):
        (top / file).unlink()
    damaged = {file: (top / file).read_bytes() for file in flipped[:2]}
    for record in (top / ".snakemake" / "metadata").glob("*"):  # cut off, as power loss does
        record.write_bytes(record.read_bytes()[:100])
    output = run_study(project)
    for file in flipped:
        assert f"note: {file} of tiny is not the file that was written" in output
    for file, content in damaged.items():
        assert (top / f"{file}.damaged").read_bytes() == content
        (top / f"{file}.damaged").unlink()
    assert results_of(project) == before
    assert json.loads((top / "runs" / RUN / "run.json").read_text())["trained_epochs"] == 1
    assert steps(project) == {}


def test_imported_predictions_are_compared_and_scored_again(project):
    """They are listed and, once done, rest; without them the comparison is as before."""
    top, table = project / RESULTS, project / RESULTS / "compare" / "summary.csv"
    before, name = table.read_bytes(), "mine-grouped-fold0-seed0"
    cases = pd.read_csv(top / "store" / "index.csv").set_index("case_id")
    (project / "made").mkdir()
    for case_id in pd.read_csv(top / "runs" / RUN / "scores.csv")["case_id"]:
        mask = np.zeros(cases.loc[case_id, ["height", "width"]].astype(int), np.uint8)
        mask[50:150, 50:150] = 1
        np.save(project / "made" / f"{case_id}.npy", mask)
    words = ["--parameters", "parameters/tiny.yaml", "--name", "mine"]
    subprocess.run(
        [sys.executable, "-m", "thyroid_lib.evaluate.imported", *words, "--predictions", "made"],
        cwd=project, env=tiny_study.environment(project), check=True,
    )  # fmt: skip
    scores = (top / "runs" / name / "scores.csv").read_bytes()
    assert steps(project) == COMPARE | {"imported": 1}
    run_study(project)
    assert steps(project) == {}
    assert (top / "runs" / name / "scores.csv").read_bytes() == scores
    assert "mine (imported)" in table.read_text(encoding="utf-8")
    assert "mine (imported)" in (top / "report.html").read_text(encoding="utf-8")
    code = project / "thyroid_lib" / "evaluate" / "imported.py"
    replace(code, "import argparse", "import argparse\n")
    assert steps(project)["imported"] == 1
    replace(code, "import argparse\n", "import argparse")
    shutil.rmtree(top / "runs" / name)
    run_study(project)
    assert table.read_bytes() == before


def test_a_study_stops_at_the_end_of_its_time(project):
    output = snakemake(project, "--config", "epochs=2", "budget_minutes=0.001")
    assert output.returncode == 1
    assert f"3-train-{RUN}: not begun, as the time budget is used up" in output.stderr
    assert steps(project, "--config", "epochs=2") == TRAIN  # a budget is no setting of the results


def test_a_replication_is_taken_apart_step_by_step(tmp_path):
    """With the results in another folder."""
    project, top = copy_project(tmp_path / "project"), tmp_path / "elsewhere" / "tiny"
    run_study(
        project, "--config", "protocols=[reported,random,grouped]", "selection=val", "folds=2",
        "run_folds=[0,1]", "models=[segnet_reported,segnet_reported_no_relu]",
        THYROID_RESULTS=str(top.parent),
    )  # fmt: skip
    assert not (project / RESULTS).exists()
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in top.glob("runs/*")}
    assert len(runs) == 2 + 1 + 2  # the one without ReLU explains a loss, and is no rival
    for name, about in runs.items():
        reported = about["protocol"] == "reported"
        assert about["selection"] == ("test" if reported else "val"), name
        assert about["mend"] == ("" if reported else "text")
        assert (about["temperature"] is None) == reported
    steps = (top / "replication" / "steps.md").read_text(encoding="utf-8")
    assert "From the first step to the last: segnet_reported" in steps
    summary = (top / "compare" / "summary.md").read_text(encoding="utf-8")
    assert "reported (" not in summary  # which has its own notebook
    assert "5. Replication" in (top / "report.html").read_text(encoding="utf-8")


def make_nbval(project: Path) -> subprocess.CompletedProcess:
    shutil.copy2(ROOT / "Makefile", project)
    words = f"BIN={Path(sys.executable).parent}", "TRAINED=1", "PARAMETERS=parameters/tiny.yaml"
    how = {"cwd": project, "env": tiny_study.environment(project), "text": True}
    return subprocess.run(["make", "READY=", "nbval", *words], capture_output=True, **how)


def test_somebodys_own_executed_study_is_validated(project):
    """Another number in one output is found, and nothing of the study is changed."""
    results = project / RESULTS
    for step in ("2-audit", "4-compare"):
        (results / "notebooks" / f"{step}.ipynb").unlink()
    replace(results / "notebooks" / "1-preprocess.ipynb", "12 of 12 images", "11 of 12 images")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    done = make_nbval(project)
    assert done.returncode == 2
    assert "11 of 12 images" in done.stdout
    assert re.search(r"1 failed, \d+ passed", done.stdout)
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(results / "notebooks")
    assert "make study PARAMETERS=parameters/tiny.yaml first" in make_nbval(project).stderr

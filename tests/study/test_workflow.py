"""The workflow, tried with a study of one small run: which steps run again, and which do not.

The study is run once; each change is made to a copy of it, where Snakemake only lists its steps.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny_study import RESULTS, ROOT, RUN, copy_project, results_of, run_study, snakemake, steps

pytest.importorskip("snakemake")
pytestmark = pytest.mark.study

# The steps that depend on each step, itself among them.
ALL = {"preprocess": 1, "audit": 1, "train": 1, "compare": 1, "report": 1}
AUDIT = {"audit": 1, "report": 1}
TRAIN = {"train": 1, "compare": 1, "report": 1}
COMPARE = {"compare": 1, "report": 1}
REPORT = {"report": 1}


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A project whose study is done; tests leave it as it is."""
    project = copy_project(tmp_path_factory.mktemp("finished") / "")
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


def change(*parts: str):
    """Change the content of a file, but nothing that its program does."""

    def apply(project: Path) -> None:
        path = project.joinpath(*parts)
        if path.suffix == ".ipynb":
            replace(path, '"source": [', '"source": [\n    "\\n",')
        else:
            path.write_text(path.read_text(encoding="utf-8") + "\n# seen\n", encoding="utf-8")

    return apply


def setting(key: str, value: str):
    def apply(project: Path) -> None:
        path = project / "parameters" / "tiny.yaml"
        text = path.read_text(encoding="utf-8")
        changed = re.sub(rf"(?m)^{key}:[^#\n]*", f"{key}: {value}  ", text)
        assert changed != text
        path.write_text(changed, encoding="utf-8")

    return apply


def delete(*parts: str):
    return lambda project: project.joinpath(RESULTS, *parts).unlink()


def touch_everything(project: Path) -> None:
    """Give every input a later time than what was made from it."""
    outputs = [RESULTS / name for name in ("report.html", "compare", "notebooks", "runs", "store")]
    sources = [Path(name) for name in ("notebooks", "thyroid_lib", "parameters", "workflow")]
    for age, part in enumerate([*outputs, *sources]):
        top = project / part
        for path in [top, *top.rglob("*")]:
            if path.is_file():
                os.utime(path, (4e9 + age, 4e9 + age))


def library(name: str):
    return change("thyroid_lib", *name.split("/"))


CHANGES = {
    "nothing": (lambda project: None, {}),
    "every file touched": (touch_everything, {}),
    "comment in the YAML": (change("parameters", "tiny.yaml"), {}),
    "another study's YAML": (change("parameters", "demo.yaml"), {}),
    "runner": (library("study/runner.py"), {}),
    "settings": (library("settings.py"), {}),
    "source code": (library("data/tg3k.py"), ALL),
    "a network": (library("models/segnet.py"), TRAIN),
    "metric code": (library("evaluate/metrics.py"), TRAIN),
    "statistics code": (library("compare/bootstrap.py"), COMPARE),
    "a plot": (library("plots/audit.py"), AUDIT),
    "report code": (library("study/report.py"), REPORT),
    "notebook 1": (change("notebooks", "1-preprocess.ipynb"), ALL),
    "notebook 2": (change("notebooks", "2-audit.ipynb"), AUDIT),
    "notebook 3": (change("notebooks", "3-train.ipynb"), TRAIN),
    "notebook 4": (change("notebooks", "4-compare.ipynb"), COMPARE),
    "size": (setting("size", "64"), ALL),
    "epochs": (setting("epochs", "2"), TRAIN),
    "a second seed": (setting("seeds", "[0, 1]"), TRAIN),
    "delta": (setting("delta", "0.01"), COMPARE),
    "scores deleted": (delete("runs", RUN, "scores.csv"), TRAIN),
    "executed notebook deleted": (delete("notebooks", f"3-train-{RUN}.ipynb"), TRAIN),
    "array deleted": (delete("store", "images.npy"), ALL),
    "summary deleted": (delete("compare", "summary.csv"), COMPARE),
    "report deleted": (delete("report.html"), REPORT),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_depends_on_a_change_runs_again_and_nothing_else(name, project):
    apply, expected = CHANGES[name]
    apply(project)
    assert steps(project) == expected


def test_results_alone_are_the_study(finished, tmp_path):
    """Copied to another project, with other times, and to another folder of results."""
    moved = copy_project(tmp_path / "")
    shutil.copytree(finished / RESULTS, moved / RESULTS)
    for age, path in enumerate(sorted(moved.rglob("*"), reverse=True)):
        if path.is_file():
            os.utime(path, (1e9 + age, 1e9 + age))
    assert steps(moved) == {}
    records = list((moved / RESULTS / ".snakemake" / "metadata").iterdir())
    assert len(records) > 20
    for record in records:  # they name no folder of the machine
        assert str(finished) not in record.read_text(encoding="utf-8")
    # content decides, also where a change is older than what was made before it
    statistics = Path("thyroid_lib", "compare", "bootstrap.py")
    change(*statistics.parts)(moved)
    os.utime(moved / statistics, (1e8, 1e8))
    assert steps(moved) == COMPARE
    shutil.copy2(finished / statistics, moved / statistics)
    shutil.move(moved / RESULTS, tmp_path / "away" / "tiny")
    done = snakemake(moved, "-n", THYROID_RESULTS=str(tmp_path / "away"))
    assert "Nothing to be done" in done.stdout + done.stderr


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
    assert steps(project, "--config", "delta=1e-2") == COMPARE
    more = {"train": 4, "compare": 1, "report": 1}
    assert steps(project, "--config", "seeds=[0,1]", "models=[unet,segnet]") == more | {"train": 3}
    assert steps(project, "--config", "deploy=true") == {"deploy": 1, "report": 1}
    # frames are split at random in one way only, groups in one per fold
    both = ("protocols=[random,grouped]", "run_folds=[0,1,2,3]")
    assert steps(project, "--config", *both) == more | {"audit": 1}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("epoch=3", "epoch: unknown (did you mean epochs?)"),
        ("lr=fast", 'lr: got "fast", need'),
        ("models=unet", "models: got"),
        ("run_folds=[4]", "run_folds"),
        ("source=tg3k data=results/data/none", "data: nothing is at results/data/none"),
    ],
)
def test_wrong_settings_stop_before_any_work(wrong, message, tmp_path):
    project = copy_project(tmp_path)
    done = snakemake(project, "--config", *wrong.split())
    assert done.returncode == 2
    assert f"error in the parameters:\n{message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / RESULTS).exists()


@pytest.mark.parametrize(("gpus", "threads"), [("-1", 4), ("3,5", 2)])
def test_every_gpu_has_a_run(gpus, threads, tmp_path):
    """All threads are shared by the GPUs' runs: else one run would wait for the other."""
    options = ["-n", "--quiet", "host", "--cores", "4", "--config", "threads=0", "device=auto"]
    done = snakemake(copy_project(tmp_path), *options, CUDA_VISIBLE_DEVICES=gpus)
    assert done.returncode == 0, done.stderr
    train = (done.stdout + done.stderr).split("rule train:")[1].split("rule ")[0]
    assert f"threads: {threads}" in train
    assert f"gpu={int(gpus != '-1')}" in train


def test_a_second_study_elsewhere_gives_the_same_bytes(finished, tmp_path):
    second = copy_project(tmp_path)
    run_study(second, THYROID_RESULTS=str(tmp_path / "other"))
    first, other = results_of(finished), results_of(second, Path("other", "tiny"))
    assert len(first) > 12
    assert first.keys() == other.keys()
    assert [name for name in first if first[name] != other[name]] == []
    assert not (second / RESULTS).exists()
    for name, content in first.items():
        assert str(finished).encode() not in content, name


def apply_blocks(project: Path, page: str) -> list[str]:
    """Apply the diffs that a how-to shows; return its Python blocks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```diff\n--- (\S+)\n(.*?)```", text, re.S)
    assert blocks
    for name, block in blocks:
        lines = block.splitlines()
        old = "\n".join(line[1:] for line in lines if line[0] in " -")
        new = "\n".join(line[1:] for line in lines if line[0] in " +")
        assert (project / name).read_text(encoding="utf-8").count(old) == 1
        replace(project / name, old, new)
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_a_new_metric_rescores_and_trains_nothing(project):
    """The how-to's own example: docs/new-metric.md."""
    run = project / RESULTS / "runs" / RUN
    weights, before = (run / "model.pt").read_bytes(), pd.read_csv(run / "scores.csv")
    assert json.loads((run / "run.json").read_text())["trained_epochs"] == 1
    (example,) = apply_blocks(project, "new-metric.md")
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
    table = (project / RESULTS / "compare" / "summary.md").read_text(encoding="utf-8")
    assert f"| {expected:.3f} " in table.splitlines()[2]
    assert "| area error " in table
    assert steps(project) == {}


def test_a_run_that_fails_stops_only_what_needs_it(tmp_path):
    project = copy_project(tmp_path)
    # 48 px can be halved four times, as U-Net does, but not five, as SegNet does
    done = snakemake(project, "--config", "size=48", "models=[segnet,unet]")
    failed = RUN.replace("unet", "segnet")
    top = project / RESULTS
    assert done.returncode == 1
    assert f"error: 3-train-{failed}: In [" in done.stdout + done.stderr
    assert (top / "runs" / RUN / "scores.csv").exists()
    assert (top / "notebooks" / f"3-train-{RUN}.ipynb").exists()
    assert not (top / "notebooks" / f"3-train-{failed}.ipynb").exists()
    assert not (top / "compare").exists() or not any((top / "compare").iterdir())
    log = (top / "logs" / f"3-train-{failed}.ipynb").read_text(encoding="utf-8")
    assert "multiple" in log
    page = (top / "report.html").read_text(encoding="utf-8")
    assert "1 of 5 steps failed, 0 were stopped, 3 are done" in page
    assert f"3-train-{failed}: In [" in page
    assert f'href="logs/3-train-{failed}.ipynb"' in page
    assert "Not done, because they need other steps: 4-compare." in page
    assert "1. Preprocess" in page
    assert steps(project, "--config", "size=48", "models=[segnet,unet]") == TRAIN
    # mended: only what is missing is done, and the report tells of failures no more
    output = run_study(project, "--config", "size=48", "models=[unet]")
    assert "3-train-unet" not in re.findall(r"(\S+): done in", output)
    assert "not finished" not in (top / "report.html").read_text(encoding="utf-8")
    assert steps(project, "--config", "size=48", "models=[unet]") == {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {  # files flipped, files deleted, epochs that are trained again
    "tables": ([f"runs/{RUN}/scores.csv"], ["compare/summary.csv", "compare/estimates.png"], 0),
    "figure and weights": (["compare/frames.png", f"runs/{RUN}/model.pt"], [], 1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_damaged_or_deleted_is_named_and_made_again(name, project):
    flipped, deleted, epochs = DAMAGES[name]
    top, before = project / RESULTS, results_of(project)
    for file in flipped:
        flip(top / file)
    for file in deleted:
        (top / file).unlink()
    damaged = {file: (top / file).read_bytes() for file in flipped}
    for record in (top / ".snakemake" / "metadata").glob("*"):  # cut off, as power loss does
        record.write_bytes(record.read_bytes()[:100])
    output = run_study(project)
    for file in flipped:
        assert f"note: {file} of tiny is not the file that was written" in output
        if not file.endswith(".pt"):
            assert (top / f"{file}.damaged").read_bytes() == damaged[file]
            (top / f"{file}.damaged").unlink()
    assert results_of(project) == before
    about = json.loads((top / "runs" / RUN / "run.json").read_text())
    assert about["trained_epochs"] == epochs
    assert steps(project) == {}


def test_a_study_stops_at_the_end_of_its_time_and_goes_on(project):
    output = snakemake(project, "--config", "epochs=2", "budget_minutes=0.001")
    assert output.returncode == 1
    assert f"3-train-{RUN}: not begun, as the time budget is used up" in output.stderr
    assert steps(project, "--config", "epochs=2") == TRAIN  # a budget is no setting of the results
    run_study(project, "--config", "epochs=2", "budget_minutes=60")
    assert steps(project, "--config", "epochs=2") == {}


def test_a_replication_is_taken_apart_step_by_step(tmp_path):
    project = copy_project(tmp_path)
    run_study(
        project, "--config", "protocols=[reported,random,grouped]", "selection=val", "folds=2",
        "run_folds=[0,1]", "models=[segnet_reported,segnet_reported_no_relu]",
    )  # fmt: skip
    top = project / RESULTS
    runs = {path.name: json.loads((path / "run.json").read_text()) for path in top.glob("runs/*")}
    assert len(runs) == 2 + 1 + 2  # the one without ReLU explains a loss, and is no rival
    for name, about in runs.items():
        reported = about["protocol"] == "reported"
        assert about["selection"] == ("test" if reported else "val"), name
        assert about["mend"] == ("" if reported else "text")
        assert (about["temperature"] is None) == reported
    steps = (top / "replication" / "steps.md").read_text(encoding="utf-8")
    assert "| as reported (epoch picked on test)" in steps
    assert "From the first step to the last: segnet_reported" in steps
    summary = (top / "compare" / "summary.md").read_text(encoding="utf-8")
    assert "reported (" not in summary  # which has its own notebook
    page = (top / "report.html").read_text(encoding="utf-8")
    assert "5. Replication" in page
    assert "2. Audit" in page


def make_nbval(project: Path, *words: str) -> subprocess.CompletedProcess:
    shutil.copy2(ROOT / "Makefile", project)
    command = ["make", f"BIN={Path(sys.executable).parent}", "READY=", *words]
    clean = {name: value for name, value in os.environ.items() if name != "THYROID_RESULTS"}
    return subprocess.run(
        [*command, "nbval", "PARAMETERS=parameters/tiny.yaml", "TRAINED=1"], cwd=project,
        env=clean | {"PYTHONPATH": str(project)}, capture_output=True, text=True,
    )  # fmt: skip


def test_somebodys_own_executed_study_is_validated(project):
    """As it is, it passes and changes nothing; another number in one output is found."""
    results = project / RESULTS
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    done = make_nbval(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed", done.stdout)
    assert {path: path.read_bytes() for path in before} == before
    for step in ("2-audit", "4-compare"):
        (results / "notebooks" / f"{step}.ipynb").unlink()
    replace(results / "notebooks" / "1-preprocess.ipynb", "12 of 12 images", "11 of 12 images")
    done = make_nbval(project)
    assert done.returncode == 2
    assert "11 of 12 images" in done.stdout
    shutil.rmtree(results / "notebooks")
    done = make_nbval(project)
    assert "no executed notebooks in" in done.stderr
    assert "make study PARAMETERS=parameters/tiny.yaml first" in done.stderr

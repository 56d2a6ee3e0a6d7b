"""A study on Kaggle: the folders that are built, and a study that moves to other machines."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from tiny_study import TINY, copy_project, results_of, snakemake, steps

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[2]
import gather  # noqa: E402
import kaggle  # noqa: E402

# Two runs, long enough to be stopped by a time budget.
SETTINGS = TINY | {"models": "[unet, resunet]", "epochs": 200, "batch_size": 2, "resamples": 200}
RUNS = ["unet-grouped-fold0-seed0", "resunet-grouped-fold0-seed0"]


@pytest.fixture
def wheels(tmp_path):
    """No wheels: the environment of the tests has all packages."""
    folder = tmp_path / "no wheels"
    folder.mkdir()
    (folder / "requirements.txt").write_text("snakemake\ntorch>=2.6\n")
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A project's folder without results."""
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_runs_are_packed_longest_first_into_few_sessions():
    minutes = {"a": 50, "b": 120, "c": 30, "d": 70, "e": 20}
    # 120 is longer than a session of 100; 70 and 30 share one, 50 and 20 another
    assert kaggle.pack(minutes, 100) == [["b"], ["d", "c"], ["a", "e"]]
    assert kaggle.pack(minutes, 1000) == [["b", "d", "a", "c", "e"]]
    assert kaggle.pack({}, 100) == []


def demo(**changes) -> dict:
    config = yaml.safe_load((ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8"))
    return config | changes


def test_the_estimate_follows_the_reported_time_and_measured_runs(tmp_path):
    """208 s an epoch at 2,509 frames: 25 epochs are 86.7 minutes, and a fifth more, and two."""
    config = yaml.safe_load((ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8")) | {
        "models": ["resunet_reported"], "width": 0, "size": 256, "epochs": 25,
        "protocols": ["reported"], "seeds": [0],
    }  # fmt: skip
    run, frames = "resunet_reported-reported-fold0-seed0", 2509 / 0.7
    minutes = kaggle.estimate(config, [run], frames, tmp_path)
    assert minutes[run] == pytest.approx(2 + 1.2 * 208 * 25 / 60)
    # a quarter of the pixels is a quarter of the work
    small = kaggle.estimate(config | {"size": 128}, [run], frames, tmp_path)
    assert small[run] - 2 == pytest.approx((minutes[run] - 2) / 4)
    # a finished run replaces the reported time
    about = {
        "model": "resunet_reported", "width": 0, "size": 256, "device": "cuda", "epochs": 10,
        "cases": {"train": 100}, "train_seconds": 50.0,
    }  # fmt: skip
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "run.json").write_text(json.dumps(about))
    measured = kaggle.estimate(config, [run], 1000, tmp_path)
    assert measured[run] == pytest.approx(2 + 1.2 * 0.05 * 700 * 25 / 60)


def test_the_folders_are_as_kaggle_needs_them(elsewhere, wheels, capsys):
    done = elsewhere / "results" / "tg3k" / "notebooks"
    done.mkdir(parents=True)
    (done / "3-train-unet-grouped-fold0-seed0.ipynb").write_text("{}")
    begun = elsewhere / "results" / "tg3k" / "runs" / "segnet-grouped-fold0-seed0"
    begun.mkdir(parents=True)
    (begun / "checkpoint.pt").write_bytes(b"state")
    kernels = kaggle.build(
        ROOT / "parameters" / "tg3k.yaml", owner="me", data="somebody/tg3k-data/3", hours=9,
        out=elsewhere / "kaggle", wheels=wheels,
    )  # fmt: skip
    top = elsewhere / "kaggle" / "tg3k"
    config = yaml.safe_load((top / "tg3k.yaml").read_text(encoding="utf-8"))
    assert config["data"] == "kaggle:somebody/tg3k-data/3"
    listed = [run for runs in kernels for run in runs]
    assert sorted(listed) == sorted(
        run for run in kaggle.list_runs(config) if run != "unet-grouped-fold0-seed0"
    )
    about = json.loads((top / "dataset" / "dataset-metadata.json").read_text())
    assert (about["id"], about["title"]) == ("me/thyroid-tg3k", "thyroid-tg3k")
    taken = top / "dataset" / "results" / "tg3k" / "runs" / begun.name / "checkpoint.pt"
    assert taken.read_bytes() == b"state"
    assert (top / "dataset" / "project" / "parameters" / "tg3k.yaml").is_file()
    assert not list(top.rglob("__pycache__"))
    for number, runs in enumerate(kernels, 1):
        folder = top / f"kernel-{number}"
        about = json.loads((folder / "kernel-metadata.json").read_text())
        assert {
            "id": f"me/thyroid-tg3k-{number}", "title": f"thyroid-tg3k-{number}",
            "enable_gpu": "true", "enable_internet": "false", "machine_shape": "NvidiaTeslaT4",
            "dataset_sources": ["me/thyroid-tg3k", "somebody/tg3k-data"],
        }.items() <= about.items()  # fmt: skip
        notebook = nbformat.read(folder / about["code_file"], as_version=4)
        nbformat.validate(notebook)
        values = settings_of(notebook)
        assert (values["runs"], values["bundle"]) == (runs, "me/thyroid-tg3k")
        assert (values["minutes"], values["keep_store"]) == (60 * 9 - 10, number == 1)
    printed = capsys.readouterr().out
    assert f"kaggle kernels push -p {top}/kernel-1" in printed
    assert "GPU hours in all" in printed


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"hours": 13}, "need 0.5 to 12"),
        ({"frames": -1}, "frames: got -1, need their number"),
        ({"overrides": {"source": "tg3k"}, "data": "me/tg3k/0"}, "which Kaggle cannot see"),
        ({"overrides": {"source": "tg3k"}, "data": "me/tg3k/1; ls"}, "which Kaggle cannot see"),
        ({"overrides": {"source": "tg3k", "data": "kaggle:me/x/0"}}, "which Kaggle cannot see"),
        ({"owner": "a/b"}, "the name in the address of your Kaggle profile"),
        ({"owner": ""}, "the name in the address of your Kaggle profile"),
        ({"overrides": {"source": "tg3k", "data": "here/tg3k"}}, "which Kaggle cannot see"),
        ({"overrides": {"study": "x" * 60}}, "too long for a name on Kaggle"),
        ({"overrides": {"epoch": 3}}, "epoch: unknown"),
    ],
)
def test_values_that_kaggle_does_not_accept_are_errors(elsewhere, wheels, how, message):
    how = {"owner": "me", "out": elsewhere / "kaggle", "wheels": wheels} | how
    with pytest.raises(ValueError, match=re.escape(message)):
        kaggle.build(ROOT / "parameters" / "demo.yaml", **how)
    assert not (elsewhere / "kaggle").exists()


def settings_of(notebook) -> dict:
    (cell,) = (c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))
    values = {}
    exec(cell.source, values)  # noqa: S102, written by papermill
    return {name: value for name, value in values.items() if name != "__builtins__"}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_next_round_leaves_other_files_alone(elsewhere, wheels, capsys):
    how = {"owner": "me", "out": elsewhere / "kaggle", "wheels": wheels}
    demo = ROOT / "parameters" / "demo.yaml"
    kernels = kaggle.build(demo, hours=0.5, frames=3000, **how)
    assert len(kernels) > 1
    top = elsewhere / "kaggle" / "demo"
    printed = capsys.readouterr().out.splitlines()
    assert f"kaggle datasets create -p {top}/dataset --dir-mode zip" in printed
    assert "kaggle datasets status me/thyroid-demo" in printed
    assert "kaggle kernels status me/thyroid-demo-1" in printed
    mine = [top / "output-1" / "results.zip", top / "notes.md", top / "output-2" / "log"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (top / "dataset" / "stale").write_text("of the first round")
    (top / ".new" / "kernel-9").mkdir(parents=True)  # of a process that was killed
    kaggle.build(top / "demo.yaml", hours=12, **how)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert sorted(path.name for path in top.iterdir()) == [
        "dataset", "demo.yaml", "kernel-1", "notes.md", "output-1", "output-2",
    ]  # fmt: skip
    assert not (top / "dataset" / "stale").exists()
    printed = capsys.readouterr().out.splitlines()
    assert f"kaggle datasets version -m again -p {top}/dataset --dir-mode zip" in printed
    assert not any("datasets create" in line for line in printed)


@pytest.mark.parametrize("where", ["subprocess.run", "_write_dataset", "_write_kernel"])
def test_a_round_that_fails_leaves_the_earlier_one(elsewhere, wheels, monkeypatch, capsys, where):
    """Wheels included, whose download says first that it takes long."""
    how = {"owner": "me", "out": elsewhere / "kaggle"}
    kaggle.build(ROOT / "parameters" / "demo.yaml", wheels=wheels, **how)
    (elsewhere / "kaggle" / "wheels").mkdir()
    (elsewhere / "kaggle" / "wheels" / "old.whl").write_text("old")
    before = everything(elsewhere / "kaggle")

    def fail(*_, **__):
        assert where != "subprocess.run" or "downloading wheels" in capsys.readouterr().out
        raise OSError("no network, no disk")

    monkeypatch.setattr(f"kaggle.{where}", fail)
    given = "" if where == "subprocess.run" else wheels
    with pytest.raises(OSError, match="no network"):
        kaggle.build(ROOT / "parameters/demo.yaml", overrides={"epochs": 7}, wheels=given, **how)
    after = everything(elsewhere / "kaggle")
    assert {name: after[name] for name in after if "wheels.new" not in name} == before


def test_a_run_of_other_settings_is_missing(elsewhere, wheels, capsys):
    run = "unet-grouped-fold0-seed0"
    results = elsewhere / "results" / "demo"
    for path, text in (
        (results / "notebooks" / f"3-train-{run}.ipynb", "{}"),
        (results / "runs" / run / "run.json", '{"epochs": 1}'),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    how = {"owner": "me", "out": elsewhere / "kaggle", "wheels": wheels}
    kernels = kaggle.build(ROOT / "parameters" / "demo.yaml", **how)
    assert run in [one for runs in kernels for one in runs]
    assert f"note: {run}: epochs 1, the study has 20" in capsys.readouterr().err
    kernels = kaggle.build(ROOT / "parameters" / "demo.yaml", overrides={"epochs": 1}, **how)
    assert run not in [one for runs in kernels for one in runs]


def test_the_page_has_the_commands_that_are_printed(elsewhere, wheels, capsys, monkeypatch):
    monkeypatch.chdir(elsewhere)
    tg3k = ROOT / "parameters" / "tg3k.yaml"
    kaggle.build(tg3k, owner="me", data="me/data/1", wheels=wheels, hours=12)
    page = (ROOT / "docs" / "kaggle.md").read_text("utf-8").replace("<your name>", "me")
    shown = {line.strip() for line in page.splitlines() if line.startswith("    kaggle ")}
    printed = capsys.readouterr().out.splitlines()
    first = [
        line for line in printed
        if line.startswith("kaggle ") and not re.search(r"(kernel|output|tg3k)-([2-9]|1\d)", line)
    ]  # fmt: skip
    again = "kaggle datasets version -m again -p kaggle/tg3k/dataset --dir-mode zip"
    assert shown == {*first, again}


def copy_study(source: Path, target: Path) -> None:
    """Copy results with other times, as a browser, a zip or a network drive does."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        if path.is_file():
            age = random.Random(str(path)).uniform(0, 1e6)  # noqa: S311
            os.utime(path, (time.time() - age,) * 2)


def run_kernel(folder: Path, dataset: Path, root: Path, minutes: float) -> Path:
    """Execute a built notebook with `root` in place of Kaggle's disk; return its output."""
    mounted = root / "kaggle" / "input" / dataset.name
    shutil.copytree(dataset / "dataset", mounted)
    (root / "kaggle" / "working").mkdir(parents=True)
    (root / "tmp").mkdir()
    about = json.loads((folder / "kernel-metadata.json").read_text())
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("THYROID", "PYTHONPATH"))}
    command = [sys.executable, "-m", "papermill", "-k", "python3", folder / about["code_file"]]
    settings = settings_of(nbformat.read(folder / about["code_file"], as_version=4))
    command += [root / "out.ipynb", "-y", json.dumps(settings | {"minutes": minutes})]
    done = subprocess.run(
        command, cwd=root / "kaggle" / "working", capture_output=True, text=True, timeout=500,
        env=clean | {
            "THYROID_PLATFORM_ROOT": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "PIP_NO_INDEX": "1", "JUPYTER_PREFER_ENV_PATH": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "kaggle" / "working"


@pytest.mark.study
def test_a_study_moves_from_kaggle_to_colab_to_here(tmp_path, wheels, monkeypatch):
    """Begin on Kaggle, gather, continue on Colab, finish here; compare with an undisturbed run."""
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    copy_project(undisturbed, SETTINGS)
    began = time.time()
    done = snakemake(undisturbed)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = undisturbed / "results" / "tiny" / "runs"
    ended = max((runs / run / "model.pt").stat().st_mtime for run in RUNS) - began
    took = min(json.loads((runs / run / "run.json").read_text())["train_seconds"] for run in RUNS)

    here = tmp_path / "here"
    here.mkdir()
    copy_project(here, SETTINGS)
    monkeypatch.setenv("THYROID_ROOT", str(here))
    monkeypatch.delenv("THYROID_RESULTS", raising=False)
    dataset = here / "kaggle" / "tiny"
    settings = here / "parameters" / "tiny.yaml"
    kernels = kaggle.build(settings, owner="me", out=here / "kaggle", wheels=wheels)
    assert [sorted(runs) for runs in kernels] == [sorted(RUNS)]
    shutil.move(dataset, dataset.with_name("thyroid-tiny"))
    dataset = dataset.with_name("thyroid-tiny")
    # The budget is to end in the middle of a training; a busy machine needs another one.
    budget, top = (ended - took / 2) / 60, here / "results" / "tiny"
    for attempt in range(4):
        root = tmp_path / f"kaggle-{attempt}"
        output = run_kernel(dataset / "kernel-1", dataset, root, budget)
        begun = {path.parent.name for path in output.glob("results/tiny/runs/*/checkpoint.pt")}
        if begun:
            break
        complete = list(output.glob("results/tiny/notebooks/3-train*"))
        budget *= 0.8 if complete else 1.3
    assert begun, "the budget never ended within a training"
    lines = gather.gather(settings, [output])
    for run in begun:
        assert f"{run} goes on after" in lines
    assert top.joinpath("store", "images.npy").is_file()

    colab = tmp_path / "content" / "a project"
    colab.mkdir(parents=True)
    copy_project(colab, SETTINGS)
    copy_study(here / "results", colab / "results")
    first = sorted(begun)[0]
    target = f"notebooks/3-train-{first}.ipynb"
    done = snakemake(colab, "--cores", "2", target, THYROID_ROOT=str(colab))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1-preprocess: done" not in done.stdout + done.stderr
    about = json.loads((colab / f"results/tiny/runs/{first}/run.json").read_text())
    assert about["trained_epochs"] < SETTINGS["epochs"]  # it went on
    monkeypatch.undo()

    last = tmp_path / "last"
    last.mkdir()
    copy_project(last, SETTINGS)
    copy_study(colab / "results", last / "results")
    planned = steps(last)
    assert "preprocess" not in planned
    assert planned.get("train", 0) == len(RUNS) - len(
        list(last.glob("results/tiny/notebooks/3-train*"))
    )
    done = snakemake(last)
    assert done.returncode == 0, done.stderr[-3000:]
    assert steps(last) == {}
    expected, found = results_of(undisturbed, Path("results/tiny")), results_of(last)
    assert expected.keys() == found.keys()
    different = [name for name in expected if expected[name] != found[name]]
    assert different == []
    assert json.loads((last / f"results/tiny/runs/{first}/run.json").read_text()) == about

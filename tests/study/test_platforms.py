"""Set-up on Colab, Kaggle and a local machine: detection, installation, notes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from thyroid_lib.files.writing import write_file
from thyroid_lib.study import platforms, second_copy
from thyroid_lib.train import device

UNUSABLE = "Tesla P100 is here, but torch cannot"
NOTES = [
    ("colab", "", ("T4 GPU); a CPU is enough", "they end with this session. To keep them, r")),
    ("kaggle", UNUSABLE, (f"{UNUSABLE}. Trainings will u", "they stay with the notebook's v")),
]
NAMED = {"colab": "COLAB_RELEASE_TAG", "kaggle": "KAGGLE_KERNEL_RUN_TYPE"}
NEEDS = (
    "numpy>=1.26", "scipy>=1.11", "papermill>=2.6", "old>=3",
    'snakemake; extra == "study"', 'onnx>=1.17; extra == "deploy"',
)  # fmt: skip


@pytest.fixture(autouse=True)
def local_machine(monkeypatch, tmp_path):
    """No platform's variables are set; the platforms' folders lie below tmp_path."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "THYROID_COPY", "THYROID_ROOT",
                 "THYROID_RESULTS", "THYROID_WORKFLOW_PID", "THYROID_KEEPS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THYROID_PLATFORM_ROOT", str(tmp_path))
    monkeypatch.setattr(second_copy, "_copies", None)
    monkeypatch.setattr(second_copy.writing, "written", [])


def test_a_local_machine_prints_nothing_and_loads_no_torch():
    code = "from thyroid_lib.study import platforms; platforms.start()\n"
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(("platform", "problem", "notes"), NOTES)
def test_start_notes_the_gpu_and_how_results_survive(platform, problem, notes, monkeypatch, capsys):
    monkeypatch.setenv(NAMED[platform], "x")
    monkeypatch.setattr(device, "gpu_problem", lambda: problem)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    platforms.start()
    printed = capsys.readouterr().err
    assert [note for note in notes if note not in printed] == []
    monkeypatch.setenv("THYROID_WORKFLOW_PID", "1")  # otherwise once per run of a study
    platforms.start()
    assert capsys.readouterr().err == ""


def test_a_mounted_drive_holds_copies_and_an_earlier_session(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(NAMED["colab"], "x")
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "content"))
    monkeypatch.setattr(device, "gpu_problem", lambda: "")
    drive = tmp_path / "content/drive/MyDrive"
    write_file(drive / "thyroid/results/alone/run/history.csv", "epoch\n1\n")
    platforms.start()
    assert "every 10 minutes, and come back in the next session" in capsys.readouterr().err
    assert (tmp_path / "content/results/alone/run/history.csv").exists()


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A pip that changes these packages; returns them, and the words that it was given."""
    folder = tmp_path / "site"
    words: list[str] = []

    def put(name: str, version: str, *needs: str) -> None:
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
        (about / "METADATA").write_text("\n".join(lines) + "\n\n", "utf-8")
        url = (tmp_path / "wheels" / "a.whl").as_uri()
        (about / "direct_url.json").write_text(json.dumps({"url": url}), "utf-8")

    def pip(code: int = 0, **changes: str):
        def run(command, **_):
            pins = next(word for word in command if word.startswith("--constraint="))
            words.extend([*command, *Path(pins.partition("=")[2]).read_text("utf-8").split()])
            for name, version in changes.items():
                put(name, version)
            return subprocess.CompletedProcess(command, code, "", "no such thing")

        monkeypatch.setattr(platforms.subprocess, "run", run)

    monkeypatch.setattr(sys, "path", [str(folder)])
    put("torch", "2.11.0+cu128")
    put("NumPy", "2.1.3")
    return SimpleNamespace(put=put, pip=pip, words=words, wheels=tmp_path / "wheels")


def test_missing_packages_are_installed_with_the_installed_ones_as_constraints(
    installed, monkeypatch
):
    monkeypatch.setenv(NAMED["colab"], "x")
    installed.pip(papermill="2.7.0")
    assert platforms.install_missing() == []  # a copy of the files, without metadata
    installed.put("thyroid-lib", "1", *NEEDS)
    installed.put("scipy", "1.17.0rc1")
    installed.put("old", "3.1")
    assert platforms.install_missing() == ["papermill>=2.6"]
    assert {"papermill>=2.6", "torch==2.11.0+cu128", "numpy==2.1.3"} <= set(installed.words)
    assert {f"--find-links={installed.wheels}", "--only-binary=:all:"} <= set(installed.words)
    assert platforms.install_missing() == []
    installed.pip(onnx="1.20")
    assert platforms.install_missing("deploy") == ["onnx>=1.17"]  # by 6-deploy
    monkeypatch.delenv(NAMED["colab"])  # on one's own machine a sentence says what to install
    assert platforms.install_missing("deploy") == []


def test_a_failure_of_pip_is_an_error(installed, monkeypatch):
    monkeypatch.setenv(NAMED["kaggle"], "x")
    installed.put("thyroid-lib", "1", "old>=3")
    installed.put("old", "2.9")
    installed.pip(code=1)
    with pytest.raises(RuntimeError, match=r"could not add old>=3 beside .*\n.*no such thing"):
        platforms.install_missing()

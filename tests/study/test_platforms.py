"""Set-up on Colab, Kaggle and a local machine: detection, installation, notes."""

import importlib.metadata
import subprocess
import sys
from email.message import Message

import pytest
import torch

from thyroid_lib.study import platforms, second_copy
from thyroid_lib.train import device


@pytest.fixture(autouse=True)
def local_machine(monkeypatch, tmp_path):
    """No platform's variables are set; the platforms' folders lie below tmp_path."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "THYROID_COPY", "THYROID_ROOT",
                 "THYROID_RESULTS", "THYROID_WORKFLOW_PID", "THYROID_KEEPS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THYROID_PLATFORM_ROOT", str(tmp_path))
    monkeypatch.setattr(second_copy, "_copies", None)
    monkeypatch.setattr(second_copy.writing, "written", [])


def on(monkeypatch, platform: str) -> None:
    names = {"kaggle": "KAGGLE_KERNEL_RUN_TYPE", "colab": "COLAB_RELEASE_TAG"}
    monkeypatch.setenv(names[platform], "x")


def test_kaggle_is_recognised_although_its_image_is_colabs(monkeypatch):
    assert platforms.where() == "local"
    on(monkeypatch, "colab")
    assert platforms.where() == "colab"
    on(monkeypatch, "kaggle")
    assert platforms.where() == "kaggle"


def test_a_local_machine_prints_nothing_and_loads_no_torch():
    code = "from thyroid_lib.study import platforms; platforms.start()\n"
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("platform", "gpu", "survival"),
    [
        ("colab", "T4 GPU); a CPU is enough", "they end with this session. To keep them, run"),
        ("kaggle", "GPU T4 x2); a CPU is enough", "they stay with the notebook's version"),
    ],
)
def test_start_notes_the_gpu_and_how_results_survive(platform, gpu, survival, monkeypatch, capsys):
    on(monkeypatch, platform)
    monkeypatch.setattr(device, "gpu_problem", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    platforms.start()
    notes = capsys.readouterr().err
    assert gpu in notes
    assert survival in notes
    monkeypatch.setenv("THYROID_WORKFLOW_PID", "1")  # otherwise once per run of a study
    platforms.start()
    assert capsys.readouterr().err == ""


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch, capsys):
    on(monkeypatch, "kaggle")
    monkeypatch.setattr(device, "gpu_problem", lambda: "Tesla P100 is here, but torch cannot")
    platforms.start()
    note = "Tesla P100 is here, but torch cannot. Trainings will use the CPU"
    assert note in capsys.readouterr().err


def test_a_mounted_drive_holds_copies_and_an_earlier_session(monkeypatch, tmp_path, capsys):
    on(monkeypatch, "colab")
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "content"))
    monkeypatch.setattr(device, "gpu_problem", lambda: "")
    kept = tmp_path / "content/drive/MyDrive/thyroid/results/alone/run/history.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("epoch\n1\n", "utf-8")
    platforms.start()
    notes = capsys.readouterr().err
    assert "1 files of an earlier session are back" in notes
    assert "after every epoch, and come back in the next session" in notes
    back = tmp_path / "content/results/alone/run/history.csv"
    assert back.read_text("utf-8") == "epoch\n1\n"


class Installed(importlib.metadata.Distribution):
    """A package of this name and version that needs these."""

    def __init__(self, name: str, version: str, needs: tuple[str, ...] = (), url: str = ""):
        self.about, self.needs, self.url = Message(), list(needs), url
        self.about["Name"], self.about["Version"] = name, version

    metadata = property(lambda self: self.about)
    version = property(lambda self: self.about["Version"])
    requires = property(lambda self: self.needs)

    def read_text(self, filename):
        return f'{{"url": "{self.url}"}}' if self.url and filename == "direct_url.json" else None

    def locate_file(self, path):
        raise NotImplementedError


@pytest.fixture
def installed(monkeypatch):
    """Let only these packages be installed."""
    there: dict[str, Installed] = {}

    def find(name):
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "distribution", find)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: find(name).requires)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: find(name).version)

    def put(*packages: Installed) -> None:
        there.update({package.about["Name"]: package for package in packages})

    return put


def test_missing_packages_are_the_requirements_that_none_meets(installed):
    assert platforms.missing_packages() == []  # a copy of the files, without metadata
    needs = (
        "numpy>=1.26",
        "scipy>=1.11",
        "papermill>=2.6",
        "old>=3",
        'snakemake; extra == "study"',
    )
    installed(
        Installed("thyroid-lib", "1", needs), Installed("numpy", "2.1.3"),
        Installed("scipy", "1.17.0rc1"), Installed("old", "2.9"),
    )  # fmt: skip
    assert platforms.missing_packages() == ["papermill>=2.6", "old>=3"]


@pytest.fixture
def fake_pip(monkeypatch, installed, tmp_path):
    """A pip that records its arguments; `after` is what it lists after an installation."""
    wheel = tmp_path / "wheels" / "thyroid_lib-1-py3-none-any.whl"
    wheel.parent.mkdir()
    installed(Installed("thyroid-lib", "1", ("papermill>=2.6",), url=wheel.as_uri()))
    script = tmp_path / "pip.py"

    def make(after: str, code: int = 0) -> list:
        script.write_text(
            "import sys, pathlib\n"
            f"log = pathlib.Path({str(tmp_path / 'asked')!r})\n"
            "if 'list' in sys.argv:\n"
            f"    print({after!r} if log.exists() else 'torch==2.11.0+cu128\\nnumpy==2.1.3')\n"
            "else:\n"
            "    pins = [w.split('=', 1)[1] for w in sys.argv if w.startswith('--constraint')]\n"
            "    log.write_text('\\n'.join(sys.argv) + '\\n' + open(pins[0]).read())\n"
            "    print('no such thing', file=sys.stderr)\n"
            f"    sys.exit({code})\n",
            "utf-8",
        )
        run = platforms.subprocess.run
        monkeypatch.setattr(
            platforms.subprocess, "run",
            lambda words, **how: run([sys.executable, script, *words[3:]], **how),
        )  # fmt: skip
        return lambda: (tmp_path / "asked").read_text("utf-8").splitlines()

    return make


def test_missing_packages_are_installed_with_the_installed_ones_as_constraints(fake_pip, tmp_path):
    asked = fake_pip("torch==2.11.0+cu128\nnumpy==2.1.3\npapermill==2.7.0")
    assert platforms.install_missing() == ["papermill>=2.6"]
    assert {"papermill>=2.6", "torch==2.11.0+cu128", "numpy==2.1.3"} <= set(asked())
    assert f"--find-links={tmp_path / 'wheels'}" in asked()


def test_a_replaced_torch_is_an_error(fake_pip):
    fake_pip("torch==2.12.0\nnumpy==2.1.3\npapermill==2.7.0")
    with pytest.raises(RuntimeError, match=r"pip replaced torch==2\.11\.0\+cu128: restart"):
        platforms.install_missing()


def test_a_failure_of_pip_is_an_error(fake_pip):
    fake_pip("", code=1)
    with pytest.raises(RuntimeError, match=r"could not add papermill>=2\.6 .*\n.*no such thing"):
        platforms.install_missing()

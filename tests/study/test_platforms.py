"""Where the library finds itself, what it adds there, and what it says of GPU and results."""

import importlib.metadata
import subprocess
import sys
from email.message import Message

import pytest
import torch

from thyroid_lib.study import platforms, second_copy
from thyroid_lib.train import device


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """A machine of one's own, whatever the tests run on; platforms' folders below tmp_path."""
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "THYROID_COPY", "THYROID_ROOT",
                 "THYROID_RESULTS", "THYROID_WORKFLOW_PID", "THYROID_KEEPS"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("THYROID_PLATFORM_ROOT", str(tmp_path))
    monkeypatch.setattr(second_copy, "_copies", None)
    monkeypatch.setattr(second_copy.thyroid_lib, "written", [])


def on(monkeypatch, platform: str) -> None:
    names = {"kaggle": "KAGGLE_KERNEL_RUN_TYPE", "colab": "COLAB_RELEASE_TAG"}
    monkeypatch.setenv(names[platform], "x")


def test_kaggle_goes_before_colab_whose_image_it_is_made_of(monkeypatch):
    assert platforms.where() == "local"
    on(monkeypatch, "colab")
    assert platforms.where() == "colab"
    on(monkeypatch, "kaggle")
    assert platforms.where() == "kaggle"


def test_at_home_nothing_is_said_and_torch_is_not_loaded(capfd):
    code = "from thyroid_lib.study import platforms; platforms.start()\n"
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("platform", "gpu", "survival"),
    [
        ("colab", "T4 GPU); the CPU does", "they end with this session. To keep them, run"),
        ("kaggle", "GPU T4 x2); the CPU does", "they stay with the notebook's version"),
    ],
)
def test_it_says_what_there_is_and_how_results_survive(
    platform, gpu, survival, monkeypatch, capsys
):
    on(monkeypatch, platform)
    monkeypatch.setattr(device, "gpu_problem", lambda: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    platforms.start()
    told = capsys.readouterr().err
    assert gpu in told
    assert survival in told
    monkeypatch.setenv("THYROID_WORKFLOW_PID", "1")  # the workflow's notebooks: not once per run
    platforms.start()
    assert capsys.readouterr().err == ""


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch, capsys):
    on(monkeypatch, "kaggle")
    monkeypatch.setattr(device, "gpu_problem", lambda: "Tesla P100 is here, but torch cannot")
    platforms.start()
    told = capsys.readouterr().err
    assert "Tesla P100 is here, but torch cannot. Trainings will use the CPU" in told


def test_a_mounted_drive_gets_copies_and_gives_them_back(monkeypatch, tmp_path, capsys):
    on(monkeypatch, "colab")
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "content"))
    monkeypatch.setattr(device, "gpu_problem", lambda: "")
    kept = tmp_path / "content/drive/MyDrive/thyroid/results/alone/run/history.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("epoch\n1\n", "utf-8")
    platforms.start()
    told = capsys.readouterr().err
    assert "1 files of an earlier session are back" in told
    assert "after every epoch, and come back in the next session" in told
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


def test_what_is_missing_is_what_no_package_meets(installed):
    assert platforms.missing_packages() == []  # a copy of the files, of which nothing is known
    needs = (
        "numpy>=1.26",
        "scipy>=1.11",
        "papermill>=2.6",
        "old>=3",
        'snakemake>=9; extra == "study"',
    )
    installed(
        Installed("thyroid-lib", "1", needs), Installed("numpy", "2.1.3"),
        Installed("scipy", "1.17.0rc1"), Installed("old", "2.9"),
    )  # fmt: skip
    assert platforms.missing_packages() == ["papermill>=2.6", "old>=3"]


@pytest.fixture
def fake_pip(monkeypatch, installed, tmp_path):
    """A pip that writes down what it is asked; `replaces` stands in for what it did."""
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


def test_what_is_missing_is_added_with_all_that_is_there_as_constraints(fake_pip, tmp_path):
    asked = fake_pip("torch==2.11.0+cu128\nnumpy==2.1.3\npapermill==2.7.0")
    assert platforms.install_missing() == ["papermill>=2.6"]
    assert {"papermill>=2.6", "torch==2.11.0+cu128", "numpy==2.1.3"} <= set(asked())
    assert f"--find-links={tmp_path / 'wheels'}" in asked()


def test_a_replaced_torch_is_no_success(fake_pip):
    fake_pip("torch==2.12.0\nnumpy==2.1.3\npapermill==2.7.0")
    with pytest.raises(RuntimeError, match=r"pip replaced torch==2\.11\.0\+cu128: restart"):
        platforms.install_missing()


def test_what_cannot_be_added_is_said(fake_pip):
    fake_pip("", code=1)
    with pytest.raises(RuntimeError, match=r"could not add papermill>=2\.6 .*\n.*no such thing"):
        platforms.install_missing()

"""A network of one's own: the how-to's example in a study, and what a wrong file is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL
from PIL import Image
from tiny_study import copy_project, run_study, steps

from thyroid_lib import models
from thyroid_lib.deploy import predict_folder
from thyroid_lib.evaluate import predict
from thyroid_lib.models import user_networks
from thyroid_lib.study.parameters import check_networks
from thyroid_lib.train.run import score_run, train_model

ROOT = Path(__file__).parents[2]
EXAMPLE = re.search(
    r"```python\n(.*?)```", (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8"), re.S
)[1]
FAULTS = {  # kind: (what stands in the example, what stands there instead, words of the message)
    "divides wrongly": ("factor=4", "factor=2", "forward gives", "need logit"),
    "probabilities": ("up(x))", "up(x)).sigmoid()", "in 0 to 1 alone", "need logits, not prob"),
    "channels": ("(2 * w, w)", "(3 * w, w)", "line 24: RuntimeError", "new-model.md"),
    "no divisor": ("divisor =", "nothing =", "divisor must be a whole number", "got"),
    "unseeded": (
        "half = width, ", "self.s, half = width, nn.Parameter(torch.ones(1)), ",
        "the seed does not set s:", "reset_parameters",
    ),
    "looks into numbers": ("self.down(images)", "images.sum().item()", "line 21: Runtime", "meta"),
    "name unknown": ("nn.MaxPool2d(2)", "maxpool", "line 12: NameError", "(in_channels,"),
    "cannot be imported": ("import nn", "import n", "line 2: ImportError", "can be imported"),
    "ends Python": ("import torch\n", "raise SystemExit(0)\n", "SystemExit: 0", "can be imported"),
    "other arguments": (
        "in_channels=1, out_channels=1, width=64", "width",
        "TypeError", "need Dilated(in_channels, out_channels, width)",
    ),
    "not derived": ("(Network)", "(nn.Module)", "Network: none", "need one"),
    "two": ("class D", "class A(Network):\n    pass\nclass D", "Network: A, Dilated", "need one"),
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A project elsewhere whose architectures/ has the how-to's example; writes further files."""
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    (tmp_path / "architectures").mkdir()

    def write(name: str, text: str = EXAMPLE) -> Path:
        path = tmp_path / "architectures" / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return path

    write("dilated")
    return write


def changed(old: str, new: str) -> str:
    assert EXAMPLE.count(old), old
    return EXAMPLE.replace(old, new, 1)


@pytest.mark.study
def test_the_example_is_in_the_comparison(tmp_path):
    """By one file and one word of the parameters; an edit trains its runs anew and no others."""
    project = copy_project(tmp_path)
    file = project / "architectures" / "dilated.py"
    file.parent.mkdir()
    file.write_text(EXAMPLE, encoding="utf-8")
    both = ("--config", "models=[unet,dilated]")
    output = run_study(project, *both)
    assert "3-train-dilated-grouped-fold0-seed0: done" in output
    top = project / "results" / "tiny"
    summary = pd.read_csv(top / "compare" / "summary.csv")
    assert sorted(summary["model"]) == ["dilated", "unet"]
    assert "dilated" in (top / "report.html").read_text("utf-8")
    file.write_text(changed("(1, 2, 4, 8)", "(1, 2, 4)"), encoding="utf-8")
    assert steps(project, *both) == {"train": 1, "compare": 1, "report": 1}
    assert steps(project) == {"compare": 1, "report": 1}  # without it: two in one table before


@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_does_not_fit_is_refused_with_line_and_need(fault, own, capsys):
    old, new, *said = FAULTS[fault]
    own("faulty", changed(old, new))
    assert user_networks.main(["faulty", "--width", "4", "--size", "32"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: architectures/faulty.py")
    assert all(part in line for part in said), line


UNREAD = {  # kind: (name, text, words)
    "syntax": ("faulty", changed("divisor = 4", "def x(:"), "faulty.py, line 8: invalid syntax"),
    "no text": ("faulty", "\udcff", "can't decode"),
    "empty": ("faulty", "", "no class in it, need one derived from Network"),
    "a file beside it": ("faulty", "import torch, blocks\n", "imports blocks"),
    "a library's name": ("unet", EXAMPLE, "has the name of a network of the library"),
    "a replication's name": ("unet_reported", EXAMPLE, "_reported marks"),
}


@pytest.mark.study
@pytest.mark.parametrize("fault", UNREAD)
def test_what_shows_without_running_it_stops_the_study_at_its_start(fault, own):
    name, text, said = UNREAD[fault]
    own(name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"^models: architectures/") as refused:
        check_networks(["segnet", name])
    assert said in str(refused.value)
    with pytest.raises(ValueError, match=re.escape(said)):
        models.build_model(name, width=4)
    check_networks(["segnet", "dilated"])  # which do not name it


def test_names_are_read_without_torch(own):
    with pytest.raises(ValueError, match=r"models: dilatet: unknown .*did you mean dilated"):
        check_networks(["dilatet"])
    code = "import sys; from thyroid_lib.study.parameters import check_networks; "
    code += "check_networks(['dilated']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_the_file_is_read_anew_each_time(own):
    """Not from bytecode, which a quick edit of the same length would leave as it is."""
    path = own("quick")
    before = path.stat()
    assert len(models.build_model("quick", width=2).far) == 4
    own("quick", changed("(1, 2, 4, 8)", "(1, 2, 448)"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(models.build_model("quick", width=2).far) == 3
    assert not (path.parent / "__pycache__").exists()


@pytest.mark.study
def test_a_run_predicts_and_is_trained_anew_when_its_file_changes(
    own, tiny_store, tmp_path, monkeypatch
):
    def train(model: str) -> int:
        run = train_model(tiny_store, out=tmp_path / "runs" / model, **SMALL | {"model": model})
        score_run(run, tiny_store)
        return run.meta["trained_epochs"]

    assert [train("dilated"), train("unet")] == [3, 3]
    assert [train("dilated"), train("unet")] == [0, 0]
    own("dilated", EXAMPLE + "# seen\n")
    assert [train("dilated"), train("unet")] == [0, 0]
    (tmp_path / "in").mkdir()
    Image.fromarray(np.asarray(tiny_store.images[0])).save(tmp_path / "in" / "a.png")
    path = tmp_path / "runs" / "dilated" / "model.pt"
    command = ["--model", path, "--images", tmp_path / "in", "--out", tmp_path / "o"]
    monkeypatch.setattr(sys, "argv", ["predict_folder", *map(str, command)])
    assert predict_folder.main() == 0
    assert list((tmp_path / "o").rglob("a*.png"))
    file = own("dilated", changed("(1, 2, 4, 8)", "(1, 2, 4)"))
    with pytest.raises(ValueError, match=r"trained with another architectures/dilated\.py"):
        predict.load_model(path)
    assert [train("dilated"), train("unet")] == [3, 0]
    own("dilated", changed("import torch\n", "import numpy, torch\n"))
    assert user_networks.packages("dilated") == {"numpy": np.__version__}
    file.unlink()
    with pytest.raises(ValueError, match=r"unknown model 'dilated'.*write architectures/dilated"):
        predict.load_model(path)

"""A network of one's own: the how-to's example in a study, and what a wrong file is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_study import copy_project, run_study, steps

from thyroid_lib import models
from thyroid_lib.deploy import predict_folder
from thyroid_lib.evaluate import predict
from thyroid_lib.models import checkpoint, user_networks
from thyroid_lib.study.ready import check_networks
from thyroid_lib.train.run import score_run, train_model

ROOT = Path(__file__).parents[2]
EXAMPLE = re.search(
    r"```python\n(.*?)```", (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8"), re.S
)[1]


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


def test_the_example_is_short_and_in_style():
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 20
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--stdin-filename", "x.py", "-"],
        cwd=ROOT, input=EXAMPLE, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


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
    # by hand, width 4: 3x3 of 1-4 and 4-8, four of 8-8, 8-4, 1x1 of 4-1, biases, three norms
    convs = (9 + 1) * 4 + (36 + 1) * 8 + 4 * (72 + 1) * 8 + (72 + 1) * 4 + (4 + 1)
    assert summary.set_index("model").loc["dilated", "parameters"] == convs + 2 * (4 + 8 + 4)
    assert "dilated" in set(pd.read_csv(top / "compare" / "groups.csv")["model"])
    assert "dilated" in (top / "report.html").read_text("utf-8")
    assert steps(project, *both) == {}
    file.write_text(changed("(1, 2, 4, 8)", "(1, 2, 4)"), encoding="utf-8")
    assert steps(project, *both) == {"train": 1, "compare": 1, "report": 1}
    assert steps(project) == {"compare": 1, "report": 1}  # without it: two in one table before


FAULTS = {
    "divides wrongly": (changed("scale_factor=4", "scale_factor=2"), "forward gives", "need logit"),
    "probabilities": (changed("self.head(self.up(x))", "self.head(self.up(x)).sigmoid()"),
                      "in 0 to 1 alone", "need logits, not probabilities"),
    "channels": (changed("conv_bn_relu(2 * w, w)", "conv_bn_relu(3 * w, w)"),
                 "line 24: RuntimeError", "new-model.md"),
    "no divisor": (changed("divisor = 4", "nothing = 4"), "divisor must be a whole number", "got"),
    "unseeded": (changed("half = width, ", "self.s, half = width, nn.Parameter(torch.ones(1)), "),
                 "the seed does not set s:", "reset_parameters"),
    "looks into numbers": (changed("x = self.down(images)", "x = images.sum().item()"),
                           "line 21: RuntimeError", "meta"),
    "name unknown": (changed("nn.MaxPool2d(2)", "maxpool"), "line 12: NameError", "(in_channels,"),
    "cannot be imported": (changed("from torch import nn", "from torch import n"),
                           "line 2: ImportError", "need a file that can be imported"),
    "ends Python": (EXAMPLE + "raise SystemExit(0)\n", "SystemExit: 0", "can be imported"),
    "other arguments": (changed("in_channels=1, out_channels=1, width=64", "width"),
                        "TypeError", "need Dilated(in_channels, out_channels, width)"),
    "not derived": (changed("(Network)", "(nn.Module)"), "Network: none", "need one"),
    "two": (EXAMPLE + "\n\nclass Two(Dilated):\n    pass\n", "Network: Dilated, Two", "need one"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_does_not_fit_is_told_with_line_and_need(fault, own):
    text, *said = FAULTS[fault]
    own("faulty", text)
    with pytest.raises(ValueError, match=r"^architectures/faulty\.py") as told:
        user_networks.check(models.build_model("faulty", width=4), "faulty", 32)
    assert all(part in str(told.value) for part in said), str(told.value)
    assert "\n" not in str(told.value)
    assert user_networks.main(["faulty", "--width", "4", "--size", "32"]) == 2


UNREAD = {
    "syntax": (changed("divisor = 4", "def x(:"), "line 8: invalid syntax"),
    "no text": ("\udcff", "need a text"),
    "empty": ("", "no class in it, need one derived from Network"),
    "a file beside it": (changed("import torch\n", "import torch, blocks\n"), "imports blocks"),
    "relative": (changed("import torch\n", "from . import blocks\n"), "need"),
    "the folder itself": (
        changed("import torch\n", "import architectures.x\n"),
        "imports architectures,",
    ),
}


@pytest.mark.study
@pytest.mark.parametrize("fault", UNREAD)
def test_what_shows_without_running_it_stops_the_study_at_its_start(fault, own):
    text, said = UNREAD[fault]
    own("faulty").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"^models: architectures/faulty\.py") as told:
        check_networks(["unet", "faulty"])
    assert said in str(told.value), str(told.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unet", "has the name of a network of the library"),
        ("Big", "a name needs a-z first"),
        ("a-b", "a name needs a-z first"),
        ("unet_reported", "_reported marks"),
        ("a" * 41, "40 at most"),
    ],
)
def test_names_that_would_be_mistaken_are_refused(name, said, own):
    own(name)
    with pytest.raises(ValueError, match="models: ") as told:
        check_networks(["segnet", name])
    assert said in str(told.value)
    with pytest.raises(ValueError, match=said):
        models.build_model(name, width=4)
    check_networks(["segnet", "dilated"])  # which do not name it
    with pytest.raises(ValueError, match=r"models: dilatet: unknown .*: unet, segnet") as told:
        check_networks(["dilatet"])
    assert "did you mean dilated?" in str(told.value)
    assert "or a file architectures/dilatet.py (docs/new-model.md" in str(told.value)


def test_names_are_read_without_torch(own):
    code = (
        "import sys; from thyroid_lib.study.ready import check_networks; "
        "check_networks(['dilated']); "
        "sys.exit('torch' in sys.modules)"
    )
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


SMALL = {"width": 4, "epochs": 2, "batch_size": 4, "lr": 2e-3, "threads": 1, "device": "cpu",
         "folds": 4, "precision": "fp32"}  # fmt: skip


@pytest.mark.study
def test_a_run_is_trained_anew_when_its_file_changes(own, tiny_store, tmp_path):
    def train(model: str) -> int:
        run = train_model(tiny_store, out=tmp_path / "runs" / model, model=model, **SMALL)
        score_run(run, tiny_store)
        return run.meta["trained_epochs"]

    assert [train("dilated"), train("unet")] == [2, 2]
    assert [train("dilated"), train("unet")] == [0, 0]
    assert user_networks.packages("dilated") == {}
    own("dilated", EXAMPLE + "# seen\n")
    assert [train("dilated"), train("unet")] == [0, 0]
    own("dilated", changed("(1, 2, 4, 8)", "(1, 2, 4)"))
    assert [train("dilated"), train("unet")] == [2, 0]
    own("dilated", changed("import torch\n", "import numpy, torch\n"))
    assert user_networks.packages("dilated") == {"numpy": np.__version__}
    assert user_networks.fingerprint("unet") == ""


def test_a_network_that_draws_goes_on_to_the_same_bytes(own, tiny_store, tmp_path, monkeypatch):
    """Dropout draws anew after a stop; what it draws belongs to the step."""
    own("dropping", EXAMPLE.replace("self.up(x)", "torch.dropout(self.up(x), 0.5, self.training)"))
    through = train_model(tiny_store, out=tmp_path / "through", model="dropping", **SMALL)
    save = checkpoint.keep

    def keep_once(folder, state):
        save(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(checkpoint, "keep", keep_once)
        with pytest.raises(KeyboardInterrupt):
            train_model(tiny_store, out=tmp_path / "stopped", model="dropping", **SMALL)
    torch.rand(7)
    resumed = train_model(tiny_store, out=tmp_path / "stopped", model="dropping", **SMALL)
    assert resumed.meta["trained_epochs"] == 1
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_trained_model_predicts_and_asks_for_its_file(own, tiny_store, tmp_path, monkeypatch):
    run = train_model(tiny_store, out=tmp_path / "run", model="dilated", **SMALL)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.asarray(tiny_store.images[0])).save(tmp_path / "in" / "a.png")
    path = run.out / "model.pt"
    command = ["--model", path, "--images", tmp_path / "in", "--out", tmp_path / "o"]
    monkeypatch.setattr(sys, "argv", ["predict_folder", *map(str, command)])
    assert predict_folder.main() == 0
    assert list((tmp_path / "o").rglob("a*.png"))
    file = own("dilated", changed("(1, 2, 4, 8)", "(1, 2, 4)"))
    with pytest.raises(ValueError, match=r"trained with another architectures/dilated\.py"):
        predict.load_model(path)
    file.unlink()
    with pytest.raises(
        ValueError, match=r"unknown model 'dilated'.*write architectures/dilated\.py"
    ):
        predict.load_model(path)

"""No input file is ever run as code: each payload, first run on purpose, leaves no marker."""

import io
import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store, open_store
from thyroid_lib.evaluate.predict import load_model
from thyroid_lib.models import checkpoint
from thyroid_lib.settings import read_study
from thyroid_lib.study.parameters import parameter_defaults
from thyroid_lib.study.runner import BAD_PARAMETERS, run_notebook

ROOT = Path(__file__).parents[2]
POSTSCRIPT = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 50 40
({marker}) (w) file closefile
showpage
%%EOF
"""
LOADS = {  # calls that can run what they read; more are found by ruff's rules S
    r"\btorch\.load\((?![^)]*weights_only=True)": 'torch.load(path, map_location="cpu")',
    r"\ballow_pickle=True": "np.load(path, allow_pickle=True)",
    r"\b(?:joblib|dill)\b": "joblib.load(path)",
    r"\bImage\.open\((?!.*formats=)": "Image.open(path)",
}
CODE = [
    path for name in ("thyroid_lib", "notebooks", "workflow") for path in (ROOT / name).rglob("*")
    if path.suffix in (".py", ".ipynb", ".smk") or path.name == "Snakefile"
]  # fmt: skip


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """The path that payloads create; it must not exist after the test."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def try_out(marker: Path, load) -> None:
    """Run a payload on purpose, by a function that runs what it reads."""
    with suppress(Exception):
        load()
    marker.rmdir()  # raises if there is none


@pytest.mark.parametrize("form", ["alone", "torch's zip"])
def test_a_pickle_as_checkpoint_or_model_is_refused(form, marker, tmp_path, capsys):
    content, buffer = pickle.dumps(payload := Payload(marker)), io.BytesIO()
    if form != "alone":
        torch.save({"key": "k", "weights": payload, "meta": {}}, buffer)
        content = buffer.getvalue()
    try_out(marker, lambda: torch.load(io.BytesIO(content), weights_only=False))
    for name in ("model.pt", "checkpoint.pt", "checkpoint-previous.pt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt .* is not a model of this project|damaged"):
        load_model(tmp_path / "model.pt")
    assert checkpoint.resume(tmp_path, key="k") is None
    assert re.search("checkpoint.pt of .* passed over", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["images", "masks", "reference"])
def test_an_array_of_objects_in_a_store_is_refused(name, marker, small_folder, tmp_path):
    build_store(look(small_folder).cases, tmp_path / "store", size=16)
    path = tmp_path / "store" / f"{name}.npy"
    np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    try_out(marker, lambda: np.load(path, allow_pickle=True))
    for content in (path.read_bytes(), pickle.dumps(Payload(marker))):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"the store at .* is damaged .*delete it and build"):
            open_store(tmp_path / "store")


def test_yaml_that_creates_objects_is_refused(marker, tmp_path):
    path, value = tmp_path / "study.yaml", f"!!python/object/apply:os.mkdir ['{marker}']"
    path.write_text(f"study: {value}\n")
    try_out(marker, lambda: yaml.load(path.read_text(), yaml.UnsafeLoader))  # noqa: S506
    with pytest.raises(ValueError, match=r"^study\.yaml, line 1: could not determine a const"):
        read_study([path])
    given = {"epochs": value}
    with pytest.raises(ValueError, match="epochs: got"):
        read_study([ROOT / "parameters" / "demo.yaml"], overrides=given)


def test_postscript_is_no_image(marker, small_folder, monkeypatch):
    """Pillow hands PostScript to Ghostscript, a program of its own."""
    ran = []
    draw = lambda *_, **__: ran.append(1) or Image.new("L", (50, 40)).im  # noqa: E731
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", draw)
    names = ("a00.png", "a01.png")
    for name in names:
        (small_folder / "images" / name).write_text(POSTSCRIPT.format(marker=marker))
    with Image.open(small_folder / "images" / name) as image:  # as anybody opens it
        image.load()
    built = build_store(look(small_folder).cases, small_folder / "store", size=16)
    assert built.quarantine["reason"].tolist() == ["unreadable image"] * 2
    assert ran == [1]


def test_a_parameters_cell_is_parsed_and_not_run(marker, tmp_path, capsys):
    source, path = f"a = __import__('os').mkdir({str(marker)!r})", tmp_path / "x.ipynb"
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [source]}
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ValueError, match="each line `name = value`"):
        parameter_defaults(path)
    assert run_notebook(path, tmp_path / "out.ipynb", {}) == BAD_PARAMETERS
    assert "tagged `parameters`" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", LOADS)
def test_no_function_that_runs_what_it_reads_is_called(pattern):
    assert re.search(pattern, LOADS[pattern])
    assert [path.name for path in CODE if re.search(pattern, path.read_text("utf-8"))] == []

"""No input file is ever run as code, whatever it holds; each is refused with a message.

Every payload here creates a marker when it is run. Each is first run on purpose, so that a test
whose payload has no effect fails.
"""

import io
import json
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path

import nbformat
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


def torch_bytes(value, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


PICKLES = {
    "alone": pickle.dumps,
    "torch's zip": lambda payload: torch_bytes({"key": "k", "weights": payload, "meta": {}}),
    "torch's old form": lambda payload: torch_bytes(payload, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("form", PICKLES)
def test_a_pickle_as_checkpoint_or_model_is_refused(form, marker, tmp_path, capsys):
    content = PICKLES[form](Payload(marker))
    try_out(marker, lambda: torch.load(io.BytesIO(content), weights_only=False))
    for name in ("model.pt", "checkpoint.pt", "checkpoint-previous.pt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt .* is not a model of this project|damaged"):
        load_model(tmp_path / "model.pt")
    assert checkpoint.resume(tmp_path, key="k") is None
    assert re.search("checkpoint.pt of .* passed over", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:.*[Tt]orch[Ss.]")  # torch's own, on such archives
def test_a_jit_archive_as_model_is_refused(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="is not a model of this project"):
        load_model(tmp_path / "model.pt")


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


@pytest.mark.parametrize("tag", ["apply:os.mkdir", "new:os.mkdir"])
def test_yaml_that_creates_objects_is_refused(tag, marker, tmp_path):
    path = tmp_path / "study.yaml"
    text = f"study: !!python/object/{tag} ['{marker}']\n"
    path.write_text(text)
    if tag.startswith("apply"):
        try_out(marker, lambda: yaml.load(text, yaml.UnsafeLoader))  # noqa: S506
    with pytest.raises(ValueError, match=r"^study\.yaml, line 1: write plain values"):
        read_study([path])
    given = {"epochs": f"!!python/object/{tag} ['{marker}']"}
    with pytest.raises(ValueError, match="epochs: got"):
        read_study([ROOT / "parameters" / "demo.yaml"], overrides=given)


POSTSCRIPT = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 50 40
({marker}) (w) file closefile
showpage
%%EOF
"""


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
    assert all("is no PNG, JPEG, BMP or TIFF image" in text for text in built.quarantine["detail"])
    assert ran == [1]


@pytest.mark.parametrize("value", ["__import__('os').mkdir({marker!r})", "f'{{1+1}}'", "open('x')"])
def test_a_parameters_cell_is_parsed_and_not_run(value, marker, tmp_path, capsys):
    source = f"a = {value.format(marker=str(marker))}"
    path = tmp_path / "x.ipynb"
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [source]}
    path.write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(ValueError, match="each line `name = value`"):
        parameter_defaults(path)
    assert run_notebook(path, tmp_path / "out.ipynb", {}) == BAD_PARAMETERS
    assert "tagged `parameters`" in capsys.readouterr().err


@pytest.mark.study
def test_a_parameter_is_a_literal_in_the_notebook(marker, tmp_path):
    """papermill writes the text itself into the notebook, whatever it would do as code."""
    text = f"\"); __import__('os').mkdir('{marker}'); (\" \\\" \\\\ ''' \"\"\" \n$HOME {{x}}"
    cells = [
        nbformat.v4.new_code_cell("a = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"assert a == {text!r}"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    assert run_notebook(tmp_path / "x.ipynb", tmp_path / "out.ipynb", {"a": text}) == 0


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


@pytest.mark.parametrize("pattern", LOADS)
def test_no_function_that_runs_what_it_reads_is_called(pattern):
    assert re.search(pattern, LOADS[pattern])
    hits = (
        (path.name, hit[0])
        for path in CODE
        for hit in re.finditer(pattern, path.read_text("utf-8"))
    )
    assert list(hits) == []

"""3-train's own cells: which store it opens, where runs go, that all settings are passed on."""

import shutil
from pathlib import Path

import nbformat
import pytest

from thyroid_lib.files.paths import project_path
from thyroid_lib.train import recipe
from thyroid_lib.train.run import train_model

NOTEBOOK = nbformat.read(Path(__file__).parents[2] / "notebooks" / "3-train.ipynb", as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells}
FOLDERS = [
    ("all", {"out": "results/x"}, "results/x/{}-grouped-fold0-seed0"),
    ("unet", {}, "results/alone/runs/{}-grouped-fold0-seed0"),
    ("unet", {"out": "results/x/mine"}, "results/x/mine"),
]


def run_cells(*names: str, **parameters) -> dict:
    space = {}
    for name in ("parameters", "imports", *names):
        exec(CELLS[name], space)  # noqa: S102
        space |= parameters
    return space


@pytest.mark.study
def test_it_trains_on_what_1_preprocess_made_or_else_on_phantoms_beside(
    tiny_store, tmp_path, monkeypatch
):
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    phantoms = run_cells("data")
    assert phantoms["data"].folder == project_path("results/alone/store-phantom")
    assert not project_path("results/alone/store").exists()
    own = shutil.copytree(tiny_store.folder, project_path("results/alone/store"))
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    assert run_cells("data")["data"].fingerprint == tiny_store.fingerprint
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    with pytest.raises(FileNotFoundError, match="build it"):  # what is named must be there
        run_cells("data", store="results/mine/store")


@pytest.mark.study
@pytest.mark.parametrize(("model", "out", "folder"), FOLDERS)
def test_each_run_has_its_folder(tiny_store, tmp_path, monkeypatch, model, out, folder):
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path))
    given = {"model": model, "store": str(tiny_store.folder), "width": 2, **out}
    space = run_cells("data", "network", "split", "batch", **given)
    names = ["unet", "segnet", "resunet"] if model == "all" else [model]
    folders = [project_path(folder.format(name)) for name in names]
    assert list(space["outs"].values()) == folders
    assert (folders[0] / "batch.png").exists()


def test_every_setting_of_a_training_is_a_parameter():
    assert train_model.__kwdefaults__.keys() | recipe.RECIPE.keys() <= run_cells().keys()

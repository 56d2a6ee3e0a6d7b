"""Own data are never replaced by the notebooks' own lines, run one after the other as they are."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import files_of, write_folder

from thyroid_lib.data import store
from thyroid_lib.deploy.export import example
from thyroid_lib.files.paths import project_path
from thyroid_lib.study.parameters import parameter_defaults

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
WRITES = r"^built = build_store\(cases, project_path\(store\).*$"
CHOOSES = r"^\w+ = open_store\(project_path\(store\)\) if store else default_store\(.*\)$"
HOLDS = "results/alone/store: 12 cases, 3 groups, 256 x 256 px, source folder"


def run_line(notebook: str, pattern: str, cases=None) -> store.Store:
    """Run the line of a notebook that fits, with the defaults of its parameters."""
    path = NOTEBOOKS / f"{notebook}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (line,) = re.findall(f"(?m){pattern}", code)
    names = {"cases": cases, "how": {}, "project_path": project_path} | parameter_defaults(path)
    names |= {n: getattr(store, n) for n in ("build_store", "default_store", "open_store")}
    exec(line, names)  # noqa: S102, a notebook's own line
    return names[line.partition(" = ")[0]]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """1-preprocess has run on a folder of 12 cases; nothing else was changed."""
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    folder = write_folder(tmp_path / "mine", groups=3, frames=4, height=40, width=50)
    cases = store.load_cases("folder", folder)
    assert len(run_line("1-preprocess", WRITES, cases)) == 12
    return SimpleNamespace(cases=cases, folder=project_path("results/alone/store"))


@pytest.fixture
def phantoms(own):
    return store.load_cases("phantom", folder=project_path("results/drawn"), sweeps=2, frames=2)


@pytest.mark.parametrize("notebook", ["2-audit", "3-train", "4-compare", "6-deploy"])
def test_the_next_notebook_takes_up_what_1_preprocess_wrote_and_says_what_it_is(
    own, notebook, capsys
):
    before = files_of(own.folder)
    capsys.readouterr()
    assert run_line(notebook, CHOOSES, own.cases).folder == own.folder
    assert capsys.readouterr().out.splitlines() == [HOLDS]
    assert files_of(own.folder) == before


def test_phantoms_never_replace_it_and_a_sentence_says_so(own, phantoms, capsys):
    before = files_of(own.folder)
    with pytest.raises(ValueError, match=r"holds another store \(12 cases.* another folder"):
        run_line("1-preprocess", WRITES, phantoms)
    audited = run_line("2-audit", CHOOSES, phantoms)  # its source is still phantom
    assert audited.folder.name == "store-phantom"
    assert "is not used: it holds 12 cases" in capsys.readouterr().out
    assert files_of(own.folder) == before


def test_a_release_is_shown_on_a_case_of_its_own_source(own, phantoms):
    val = own.cases.assign(model="unet", dice=0.5)
    released = SimpleNamespace(val=val, about={"selected": "unet"})
    assert example(released, own.cases)[1].shape == (40, 50)
    with pytest.raises(ValueError, match=r"none of the 4 cases .*: set source and data as in 1-pr"):
        example(released, phantoms)

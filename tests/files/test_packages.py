"""Optional packages: where one is missing, each notebook and command says what to install."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from thyroid_lib.files.writing import write_file

ROOT = Path(__file__).parents[2]


MODULES = {"deploy.export": "onnx", "deploy.app": "streamlit"}  # of 6-deploy, of the page
COMMANDS = {  # command: a package that it needs
    "thyroid_lib.deploy.export --study x --out y": "onnxscript",
    "thyroid_lib.deploy.export --study x --out z": "onnx",
    "thyroid_lib.deploy.node study": "highdicom",
    "thyroid_lib.deploy.predict_folder --model {top}/m.onnx --images x --out y": "onnxruntime",
    "thyroid_lib.study.report {top}/study": "nbconvert",
    "thyroid_lib.study.runner notebook notebooks/0-quickstart.ipynb {top}/out.ipynb": "nbconvert",
}


@pytest.mark.parametrize(("module", "package"), MODULES.items())
def test_modules_for_which_a_package_is_missing_say_so(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"thyroid_lib.{module}", raising=False)
    with pytest.raises(ImportError, match=f"{package} not installed: `pip install {package}`"):
        importlib.import_module(f"thyroid_lib.{module}")


@pytest.mark.study
@pytest.mark.parametrize(("command", "package"), COMMANDS.items())
def test_commands_for_which_a_package_is_missing_say_so_in_one_line(command, package, tmp_path):
    """The package is hidden as Python itself hides one: None in sys.modules."""
    write_file(tmp_path / "study/notebooks/4-compare.ipynb", "{}")
    write_file(tmp_path / "m.onnx", "")
    module, *words = command.format(top=tmp_path).split()
    code = f"import sys, runpy; sys.modules[{package!r}] = None; sys.argv[1:] = {words}; "
    code += f"runpy.run_module({module!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"{package} not installed: `pip install {package}`" in done.stderr
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1

"""A study makes no connection, and its results hold no name, path or secret of its user.

One small study and one notebook that fails serve all tests here. Each of their Python processes
begins with `sitecustomize`, which records and refuses connections.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import write_folder
from tiny_study import RESULTS, ROOT, RUN, copy_project, run_study

from thyroid_lib.study.runner import hide_places

pytestmark = pytest.mark.study
UNREACHABLE = "192.0.2.1"  # reserved for documentation
RECORD = """
import os, socket, sys

own = {None, "", "localhost", socket.gethostname()}

def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else ""  # a text: a socket of this machine
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0].decode() if isinstance(args[0], bytes) else args[0]
    else:
        return
    if host not in own and not host.startswith("127.") and host != "::1":
        with open(os.environ["TEST_CONNECTIONS"], "a") as file:
            file.write(f"{host} asked by {sys.argv}\\n")
        raise ConnectionRefusedError(f"no network for {host}")

sys.addaudithook(watch)
open(os.environ["TEST_CONNECTIONS"] + f".{os.getpid()}", "w").close()  # one per process
"""
NAMES = "GITHUB_TOKEN HF_TOKEN AWS_SECRET_ACCESS_KEY KAGGLE_KEY DB_PASSWORD SSH_AUTH_SOCK"
SECRETS = {name: f"s3cr3t-{number}-of-jane" for number, name in enumerate(NAMES.split())}
FAILS = """
import pandas, socket
try:
    socket.create_connection(("{nobody}", 9), timeout=1)
except OSError as error:
    print("refused:", error)
pandas.read_csv("{home}/none.csv")
"""


class Study:
    """Jane's project with a finished study and a notebook that failed."""

    def __init__(self, top: Path):
        self.home, self.connections = top / "home-of-jane-doe", top / "connections"
        self.project = copy_project(top / "project-of-jane-doe")
        self.results = self.project / RESULTS
        (top / "watch").mkdir()
        (top / "watch" / "sitecustomize.py").write_text(RECORD, encoding="utf-8")
        data = write_folder(self.home / "data", groups=4, frames=3, height=40, width=50)
        environment = SECRETS | {
            "HOME": str(self.home), "USER": "user-jane-doe", "LOGNAME": "user-jane-doe",
            "PYTHONPATH": os.pathsep.join([str(top / "watch"), str(self.project)]),
            "TEST_CONNECTIONS": str(self.connections),
        }  # fmt: skip
        run_study(self.project, "--config", "source=folder", f"data={data}", **environment)
        self.asked = self.read_connections()
        cell = nbformat.v4.new_code_cell(FAILS.format(nobody=UNREACHABLE, home=self.home))
        first = nbformat.v4.new_code_cell("a = 0", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[first, cell]), self.project / "fails.ipynb")
        command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", "fails.ipynb"]
        command += [RESULTS / "notebooks/fails.ipynb", "--log", RESULTS / "logs/fails.ipynb"]
        clean = {name: value for name, value in os.environ.items() if name != "THYROID_RESULTS"}
        self.failed = subprocess.run(command, cwd=self.project, env=clean | environment)

    def read_connections(self) -> str:
        return self.connections.read_text("utf-8") if self.connections.exists() else ""


@pytest.fixture(scope="module")
def jane(tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("jane"))


def test_a_study_makes_no_connection(jane):
    assert jane.asked == ""
    watched = list(jane.connections.parent.glob("connections.*"))
    assert len(watched) >= 9  # Snakemake, four runners with a kernel each, the report's
    # one of a notebook's kernel would be seen
    assert jane.failed.returncode == 3
    assert f"{UNREACHABLE} asked by " in jane.read_connections()


def test_results_hold_nothing_of_their_user(jane):
    own = [jane.home, jane.project, jane.project.parent, sys.prefix, sys.base_prefix, ROOT]
    words = {*map(str, own), *SECRETS.values(), socket.gethostname()} - {"/usr", "/usr/local"}
    words = {"jane", *(word for word in words if len(word) > 3)}  # in every name above
    files = {path: path.read_bytes() for path in jane.results.rglob("*") if path.is_file()}
    assert [(f, word) for f, text in files.items() for word in words if word.encode() in text] == []
    kept = {f"runs/{RUN}/model.pt", f"logs/3-train-{RUN}.ipynb", "logs/fails.failed.txt"}
    assert {jane.results / name for name in kept} <= set(files)
    assert '"data": "~/data"' in (jane.results / "logs/1-preprocess.ipynb").read_text("utf-8")


def test_folders_are_replaced_by_short_names(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    monkeypatch.setenv("THYROID_ROOT", "/home/jane/study")
    monkeypatch.setenv("THYROID_RESULTS", "/scratch/out")
    monkeypatch.setattr("tempfile.tempdir", "/scratch/tmp")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    for text, hidden in (
        ("/home/jane/study/results", "./results"),
        ("at /home/jane/study.", "at .."),
        ("\\u001b[32m/home/jane/study/a.py:1\\n/home/jane/b", "\\u001b[32m./a.py:1\\n~/b"),
        ("/home/jane", "~"),
        ("/home/janet /home/jane.doe /home/jane-2", "/home/janet /home/jane.doe /home/jane-2"),
        ("/scratch/out/demo/x.csv", "results/demo/x.csv"),
        ("/scratch/tmp/ipykernel_1/2.py", "$TMPDIR/ipykernel_1/2.py"),
        ("/opt/env/lib/x.py", "python/lib/x.py"),
        ('{"a": "/home/jane/caf\\u00e9/x"}', '{"a": "python/x"}'),
        ("/mnt/home/jane/x /srv-/home/jane", "/mnt/home/jane/x /srv-/home/jane"),
        ("a\\n/home/jane/x \\u001b[0;32m/home/jane", "a\\n~/x \\u001b[0;32m~"),
    ):
        monkeypatch.setattr(sys, "prefix", "/home/jane/café" if "caf" in text else "/opt/env")
        assert hide_places(text) == hidden

"""A start of the workflow: its environment, its lock, and signals before and during its steps."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from thyroid_lib.study import checksums

pytest.importorskip("snakemake_interface_logger_plugins")

from thyroid_lib.study import session

CHANGED = ("PYTHONPATH", "THYROID_DEADLINE", "THYROID_NOTEBOOKS", "THYROID_PYTHON")
WORKFLOW = """
import subprocess, sys, time
from pathlib import Path
from thyroid_lib.study.session import Session
session = Session(Path(sys.argv[1]))
session.open("results/demo")
if sys.argv[2] == "running":
    session.on_start()
    step = subprocess.Popen(["sleep", "600"])
try:
    print("ready", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    step.wait()
    session.on_error([])
    sys.exit(1)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a session on a project below tmp_path, with these arguments of the command line."""
    for name in (*CHANGED, "THYROID_RESULTS", "THYROID_WORKFLOW_PID", "THYROID_COPY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(session.Session, "_listen", lambda self: None)

    def begin(*arguments):
        monkeypatch.setattr(sys, "argv", ["snakemake", *arguments])
        return session.Session(tmp_path)

    yield begin
    logging.getLogger("snakemake.logging").filters.clear()


def test_steps_find_this_machine_in_their_environment(start, tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_RESULTS", "away")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'mine'}")
    assert start().open("results/demo", 5) == tmp_path / "away" / "demo"
    start()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(tmp_path), str(tmp_path / "mine")]
    assert Path(os.environ["THYROID_NOTEBOOKS"]) == tmp_path / "notebooks"
    assert float(os.environ["THYROID_DEADLINE"]) > 0


def test_only_one_start_runs_steps_and_all_may_look(start, tmp_path, capsys):
    first = start()
    study = first.open("results/demo")
    first.on_start()
    second = start("--cores", "2")
    assert second.open("results/demo") == study
    with pytest.raises(SystemExit, match="2"):
        second.on_start()
    said = f"error: demo: another start of this study is at work (process {os.getpid()})"
    assert said in capsys.readouterr().err
    for look in ("-n", "-np", "--dry-run", "--dryrun"):
        looking = start(look)
        assert (looking.open("results/demo"), looking.lock) == (study, None)


@pytest.mark.parametrize(("state", "code"), [("starting", 128 + signal.SIGTERM), ("running", 1)])
def test_a_signal_ends_it_and_its_steps(tmp_path, state, code):
    command = [sys.executable, "-c", WORKFLOW, str(tmp_path), state]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[1]
    assert (process.returncode, said) == (code, f"{session.STOPPED}\n")
    checksums.claim(tmp_path / "results" / "demo").close()  # its lock is free

"""The runner: a notebook is done only if all of it ran, and looks the same whoever ran it."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import nbformat
import pytest
from tiny_study import wait_until

from thyroid_lib.files import locks
from thyroid_lib.study import parameters, runner

pytestmark = pytest.mark.study

ROOT = Path(__file__).parents[2]
PARAMETERS = 'name = "a"  # a text\ncount = 1\nrate = 0.5\nflag = True\nseeds = [0]'
WRONG = {  # of a notebook with names of its own
    "coutn: unknown (did you mean count?); there are: name, count": {"coutn": 2},
    'rate: got "1e-3", need a valid number: write 0.001 (see its default)': {"rate": "1e-3"},
}
CELL = '{"metadata": {"tags": ["parameters"]}, "source": "a = b"}'
NO_NOTEBOOK = [
    "# no", '{"cells": 3}', "[" * 100_000, '{"cells": []}', f'{{"cells": [{CELL}]}}',
    f'{{"cells": [{CELL.replace("b", "1")}, {CELL.replace("b", "1")}]}}',
]  # fmt: skip
ENDS = {
    "an error": ("raise KeyError('gone')", 3, "In [3] KeyError: 'gone'"),
    "exit with success": ("import sys; sys.exit(0)", 4, "only 3 of 4 cells ran"),
    "a dead kernel": ("import os; os.kill(os.getpid(), 9)", 4, "the kernel died"),
}
# What a user's environment may hold, and a notebook that would show each of it.
FOREIGN = {
    "MPLBACKEND": "Agg", "MPLCONFIGDIR": "{0}", "MATPLOTLIBRC": "{0}/matplotlibrc",
    "PYTHONSTARTUP": "{0}/startup.py", "IPYTHONDIR": "{0}/ipython", "PYTHONWARNINGS": "error",
    "PYTHONOPTIMIZE": "1", "JUPYTER_PATH": "{0}/jupyter", "LC_ALL": "C", "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "3",
}  # fmt: skip
SHOWS = """
import locale, shutil, time, warnings
import matplotlib.pyplot as plt
for n in range(3):
    print(n, flush=True)
    time.sleep(0.1 * count)
print("started" in globals(), shutil.get_terminal_size().columns, locale.getpreferredencoding())
with warnings.catch_warnings(record=True) as seen:
    warnings.warn("as an error it would end the cell")
try:
    assert count == 0
except AssertionError:
    print("asserted")
plt.plot([0, 1]);
"""
SLEEPS = "import os, time\nopen(name, 'w').write(str(os.getpid()))\ntime.sleep(1000)"
TRAINS = """
import os, time
from thyroid_lib.files.stopping import Stopped, stop_requests
with stop_requests() as stop_reason:
    open(name, "w").write(str(os.getpid()))
    while not stop_reason():
        time.sleep(0.05)
raise Stopped(f"run: stopped, as {stop_reason()}")
"""


def write_notebook(path: Path, *cells: str, ids: bool = True) -> Path:
    """A notebook with the parameters above and these code cells."""
    made = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *cells)]
    made[0].metadata["tags"] = ["parameters"]
    content = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=made)))
    if not ids:  # as Colab saves them
        content["nbformat_minor"] = 4
        for cell in content["cells"]:
            del cell["id"]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def command(*words) -> list[str]:
    return [sys.executable, "-m", "thyroid_lib.study.runner", *map(str, words)]


def run_module(*words, **variables) -> subprocess.CompletedProcess:
    env = os.environ | variables
    return subprocess.run(command(*words), cwd=ROOT, env=env, capture_output=True, text=True)


def test_wrong_parameters_stop_before_any_work(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", "1 / 0")
    for message, given in WRONG.items():
        assert runner.run_notebook(notebook, tmp_path / "out.ipynb", given) == runner.BAD_PARAMETERS
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [notebook]
    parameters.check({"rate": 1}, parameters.parameter_defaults(notebook))


@pytest.mark.parametrize("address", ["s3://bucket/out.ipynb", "gs://mine/n.ipynb"])
def test_addresses_are_no_files(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    for paths in ((ROOT / "notebooks/1-preprocess.ipynb", address), (address, "out.ipynb")):
        assert runner.run_notebook(*paths, {}) == runner.BAD_PARAMETERS
        assert f"{address}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_no_object_and_files_that_are_no_notebook_are_refused(tmp_path):
    for given in ("{'seed': 1}", "[1]", "", "x" * 5000, '{"a": ' * 5000):
        with pytest.raises(ValueError, match=r"^--parameters: got .*need a JSON object") as caught:
            parameters.read_parameters(given)
        assert len(str(caught.value)) < 200
    path = tmp_path / "n.ipynb"
    for text in (None, *NO_NOTEBOOK):
        if text:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"n\.ipynb: .*one cell tagged .param") as caught:
            parameters.parameter_defaults(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("end", ENDS)
def test_a_notebook_that_stops_half_way_is_not_done(end, tmp_path, capsys):
    cell, code, message = ENDS[end]
    notebook = write_notebook(tmp_path / "n.ipynb", cell, "count", "")
    out, log = tmp_path / "out.ipynb", tmp_path / "out.failed.ipynb"
    out.write_text("the last good one", encoding="utf-8")
    assert runner.run_notebook(notebook, out, {"count": 2}) == code
    said = capsys.readouterr().err
    assert said.startswith("error: out: ")
    assert message in said
    assert str(log) in said
    assert out.read_text(encoding="utf-8") == "the last good one"
    assert "count = 2" in log.read_text(encoding="utf-8")


def test_two_executions_give_the_same_bytes_in_any_environment(tmp_path):
    for name, text in (
        ("startup.py", "started = 1"), ("ipython/profile_default/startup/a.py", "started = 1"),
        ("matplotlibrc", "figure.figsize: 1, 1"), ("jupyter/kernels/python3/kernel.json", "{}"),
    ):  # fmt: skip
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(text)
    foreign = {name: value.format(tmp_path / "home") for name, value in FOREIGN.items()}
    notebook = write_notebook(tmp_path / "n.ipynb", SHOWS, "name, rate", ids=False)
    outs = [tmp_path / "one" / "out.ipynb", tmp_path / "two" / "out.ipynb"]
    for out, variables in zip(outs, ({}, foreign), strict=True):
        given = "--parameters", '{"name": "b", "rate": 2}'
        done = run_module("notebook", notebook, out, *given, **variables)
        assert (done.returncode, done.stderr, done.stdout[:13]) == (0, "", "out: done in ")
        assert list(out.parent.iterdir()) == [out]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    cells = nbformat.read(outs[0], as_version=4).cells
    assert [cell.id for cell in cells] == ["cell-0", "injected-parameters", "cell-2", "cell-3"]
    text, figure = cells[2].outputs[0].text, cells[2].outputs[-1]
    assert text.startswith("0\n1\n2\nFalse 80 ")
    assert text.lower().endswith("utf-8\nasserted\n")
    assert "image/png" in figure.data
    assert cells[3].outputs[0].data["text/plain"] == "('b', 2)"
    assert str(tmp_path) not in outs[0].read_text(encoding="utf-8")


def test_env_prints_what_a_studys_notebooks_run_under():
    words = run_module("env", "parameters/demo.yaml").stdout.split()
    assert {"MPLBACKEND", "OMP_NUM_THREADS=1", "ATEN_CPU_CAPABILITY=avx2"} <= set(words)
    assert run_module("check", "parameters/tg3k.yaml").stdout == "ok: study tg3k\n"
    assert run_module("check", "pyproject.toml").returncode == runner.BAD_PARAMETERS


def test_kernel_log_variables_and_notes(tmp_path, capsys):
    """Notes are for the terminal, not for the notebook; the log has times, the result has none."""
    text = (
        "import os, sys; from thyroid_lib.files.writing import print_note\n"
        "assert (sys.executable, os.environ['ATEN_CPU_CAPABILITY']) == (name, 'avx2')\n"
        "print_note('a broken file is passed over'); print('kept', file=sys.stderr)\n"
        "print(os.getcwd())"
    )
    notebook = write_notebook(tmp_path / "n.ipynb", text)
    log, out = tmp_path / "logs" / "n.ipynb", tmp_path / "out.ipynb"
    given = {"parameters": {"name": sys.executable}, "log": log, "pin": True}
    assert runner.run_notebook(notebook, out, **given) == runner.DONE
    assert "note: out: a broken file is passed over\n" in capsys.readouterr().err
    for path, timed in ((log, True), (out, False)):
        text = path.read_text(encoding="utf-8")
        assert ("duration" in text) == ("note: a broken" in text) == timed
        assert "kept\\n" in text
        assert str(ROOT) not in text


def test_two_processes_never_make_one_notebook_at_once(tmp_path):
    notebook, out = write_notebook(tmp_path / "n.ipynb", "count"), tmp_path / "out.ipynb"
    held = locks.claim_path(out, "first")
    how = {"cwd": ROOT, "text": True, "stderr": subprocess.PIPE}
    with subprocess.Popen(command("notebook", notebook, out), **how) as second:
        assert second.stderr.readline().startswith("note: out: ")
        assert not out.exists()
        held.close()
    assert (second.returncode, out.exists()) == (0, True)


def start(tmp_path, source: str, **variables) -> tuple[subprocess.Popen, Path]:
    """A notebook under way in another process; the file holds its kernel's process id."""
    notebook, mark = write_notebook(tmp_path / "n.ipynb", source), tmp_path / "mark"
    words = ["notebook", notebook, tmp_path / "out.ipynb", "--log", tmp_path / "log.ipynb"]
    process = subprocess.Popen(
        command(*words, "--parameters", json.dumps({"name": str(mark)})), cwd=ROOT,
        env=os.environ | variables, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: mark.exists() and mark.read_text(), "the kernel is at work")
    return process, mark


@pytest.mark.parametrize(
    ("source", "number"),
    [(SLEEPS, signal.SIGTERM), (TRAINS, signal.SIGINT)],
    ids=["sleeps", "trains"],
)
def test_a_signal_ends_runner_and_kernel(source, number, tmp_path):
    process, mark = start(tmp_path, source)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # as a workflow does after a terminal's Ctrl-C
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + number
    wait_until(lambda: not Path("/proc", mark.read_text()).exists(), "the kernel ends")
    assert not (tmp_path / "out.ipynb").exists()
    if source is TRAINS:
        assert "stopped: out: run: stopped, as it was" in said
        assert "stopped, as it was" in (tmp_path / "log.failed.txt").read_text()


def test_a_notebook_ends_with_the_workflow_that_started_it(tmp_path):
    workflow = subprocess.Popen(["sleep", "1000"])
    process, _ = start(tmp_path, TRAINS, THYROID_WORKFLOW_PID=str(workflow.pid))
    workflow.kill()  # and not waited for: a zombie is dead, too
    process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    workflow.wait()


def test_out_of_time_it_is_not_begun_or_stops(tmp_path, monkeypatch, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINS)
    for seconds, words in ((-1, "not begun, as the time"), (5, "its time budget is used up")):
        monkeypatch.setenv("THYROID_DEADLINE", str(time.time() + seconds))
        given = {"name": str(tmp_path / "mark")}
        assert runner.run_notebook(notebook, tmp_path / "out.ipynb", given) == runner.OUT_OF_TIME
        assert words in capsys.readouterr().err


def test_checksums_and_reasons_come_and_go(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", "assert count > 1")
    sums, log = tmp_path / "checksums" / "n.sha256", tmp_path / "n.ipynb.log.ipynb"
    out, reason = tmp_path / "notebooks" / "n.ipynb", log.with_suffix(".failed.txt")
    reason.write_text("of an earlier start")
    how = {"log": log, "checksums": sums, "writes": [out]}
    assert runner.run_notebook(notebook, out, {"count": 2}, **how) == runner.DONE
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert sums.read_text() == f"{digest}  notebooks/n.ipynb\n"
    assert not reason.exists()
    assert runner.run_notebook(notebook, out, {"count": 1}, **how) == runner.CELL_RAISED
    assert not sums.exists()
    assert "AssertionError" in reason.read_text()


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("papermill.execute_notebook", full)
    notebook = write_notebook(tmp_path / "n.ipynb", "count")
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == runner.INCOMPLETE
    assert "error: out: the disk is full: free some space" in capsys.readouterr().err


def test_a_kernel_that_does_not_start_is_started_once_more(tmp_path, monkeypatch, capsys):
    """Two that start at one moment may have drawn the same port; nothing has run by then."""
    import papermill

    execute = Mock(wraps=papermill.execute_notebook)
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    notebook = write_notebook(tmp_path / "n.ipynb", "1")
    for count, code in ((1, runner.DONE), (2, runner.INCOMPLETE)):
        execute.side_effect = [RuntimeError("no answer")] * count + [DEFAULT]
        assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == code
        said = capsys.readouterr().err
        assert "its kernel did not start (no answer): once more" in said
        assert ("the kernel died" in said) == (code == runner.INCOMPLETE)

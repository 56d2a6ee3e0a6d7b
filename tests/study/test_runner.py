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

import nbformat
import pytest
from tiny_study import wait_until

from thyroid_lib.files import locks
from thyroid_lib.study import parameters, runner

pytestmark = pytest.mark.study

ROOT = Path(__file__).parents[2]
PARAMETERS = 'name = "a"  # a text\ncount = 1\nrate = 0.5\nflag = True\nseeds = [0]'


def write_notebook(path: Path, *cells: str, ids: bool = True, times: int = 1) -> Path:
    """A notebook with the parameters above and these code cells."""
    new, tag = nbformat.v4.new_code_cell, {"tags": ["parameters"]}
    tagged = [new(PARAMETERS, id=f"p{n}", metadata=tag) for n in range(times)]
    own = [new(source, id=f"c{n}") for n, source in enumerate(cells)]
    content = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=tagged + own)))
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


WRONG = {  # of a notebook with names of its own
    "coutn: unknown (did you mean count?); there are: name, count": {"coutn": 2},
    "name: got 1, need a valid string": {"name": 1},
    'rate: got "1e-3", need a valid number: write 0.001 (see its default)': {"rate": "1e-3"},
    "flag: got 0, need a valid boolean": {"flag": 0},
    "seeds: got 0, need a valid list": {"seeds": 0},
}


def test_wrong_parameters_stop_before_any_work(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", "1 / 0")
    for message, given in WRONG.items():
        assert runner.run_notebook(notebook, tmp_path / "out.ipynb", given) == runner.BAD_PARAMETERS
        assert message in capsys.readouterr().err
    twice = write_notebook(tmp_path / "twice.ipynb", times=2)
    for path, out, words in (
        (twice, "out.ipynb", "one cell tagged `parameters`, each line `name = value`: 2 cells"),
        (notebook, "s3://bucket/o.ipynb", "got s3://bucket/o.ipynb, need a path on this machine"),
    ):
        assert runner.run_notebook(path, out, {"count": 2}) == runner.BAD_PARAMETERS
        assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [notebook, twice]
    parameters.check({"rate": 1}, parameters.parameter_defaults(notebook))


NO_OBJECT = {  # what --parameters was given -> what its one line says
    "{'seed': 1}": "Expecting property name", "[1]": "no object", "": "need a JSON object",
    "x" * 5000: "Expecting value", '{"a": ' * 5000: "recursion",
}  # fmt: skip


def test_parameters_that_are_no_object_are_refused():
    for given, words in NO_OBJECT.items():
        with pytest.raises(ValueError, match=rf"^--parameters: got .*{words}") as caught:
            parameters.read_parameters(given)
        assert len(str(caught.value).splitlines()) == 1


TAGGED = '{"cells": [{"metadata": {"tags": ["parameters"]}%s}]}'
NO_NOTEBOOK = [
    "# no", '{"cells": 3}', "[" * 100_000, '{"cells": [{"metadata": {"tags": null}}]}',
    '{"cells": []}', TAGGED % "", TAGGED % ', "source": "a = b"', TAGGED % ', "source": "a ="',
]  # fmt: skip


def test_what_is_no_notebook_is_refused(tmp_path):
    for text in (*NO_NOTEBOOK, None):
        path = tmp_path / "n.ipynb"
        path.unlink(missing_ok=True) if text is None else path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"n\.ipynb: .*one cell tagged .param") as caught:
            parameters.parameter_defaults(path)
        assert len(str(caught.value).splitlines()) == 1


ENDS = {
    "an error": ("raise KeyError('gone')", 3, "In [3] KeyError: 'gone'"),
    "exit with success": ("import sys; sys.exit(0)", 4, "only 3 of 4 cells ran"),
    "a dead kernel": ("import os; os.kill(os.getpid(), 9)", 4, "the kernel died"),
}


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
    assert len(said.splitlines()) < 14
    assert out.read_text(encoding="utf-8") == "the last good one"
    assert "count = 2" in log.read_text(encoding="utf-8")


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


def test_two_executions_give_the_same_bytes_in_any_environment(tmp_path):
    for name, text in {
        "startup.py": "started = 1", "ipython/profile_default/startup/a.py": "started = 1",
        "matplotlibrc": "figure.figsize: 1, 1",
        "jupyter/kernels/python3/kernel.json": '{"argv": ["false"], "display_name": "x"}',
    }.items():  # fmt: skip
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text(text)
    foreign = {name: value.format(tmp_path / "home") for name, value in FOREIGN.items()}
    notebook = write_notebook(tmp_path / "n.ipynb", SHOWS, "name, rate", ids=False)
    outs = [tmp_path / "one" / "out.ipynb", tmp_path / "two" / "out.ipynb"]
    for out, variables in zip(outs, ({}, foreign), strict=True):
        given = "--parameters", '{"name": "b", "rate": 2}'
        done = run_module("notebook", notebook, out, *given, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("out: done in ")
        assert list(out.parent.iterdir()) == [out]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    cells = nbformat.read(outs[0], as_version=4).cells
    assert [cell.id for cell in cells] == ["cell-0", "injected-parameters", "cell-2", "cell-3"]
    assert cells[0].metadata == {"tags": ["parameters"]}
    text, figure = cells[2].outputs[0].text, cells[2].outputs[-1]
    assert text.startswith("0\n1\n2\nFalse 80 ")
    assert text.lower().endswith("utf-8\nasserted\n")
    assert "image/png" in figure.data
    assert cells[3].outputs[0].data["text/plain"] == "('b', 2)"
    assert str(tmp_path) not in outs[0].read_text(encoding="utf-8")


def test_env_prints_what_a_studys_notebooks_run_under():
    words = run_module("env", "parameters/demo.yaml").stdout.split()
    code = "import os; print(os.environ.get('MPLBACKEND'), os.environ['OMP_NUM_THREADS'])"
    done = subprocess.run(
        ["env", *words, sys.executable, "-c", code], env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "None 1\n"
    assert "ATEN_CPU_CAPABILITY=avx2" in words
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
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    second = subprocess.Popen(command("notebook", notebook, out), cwd=ROOT, text=True, **pipes)
    assert second.stderr.readline().startswith("note: out: ")
    assert second.poll() is None
    assert not out.exists()
    held.close()
    assert "out: done in" in second.communicate(timeout=300)[0]
    assert out.exists()


# --- stopped, failed, and what is left then

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
    def full(*args, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    notebook = write_notebook(tmp_path / "n.ipynb", "count")
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == runner.INCOMPLETE
    assert "error: out: the disk is full: free some space" in capsys.readouterr().err


def test_a_kernel_that_does_not_start_is_started_once_more(tmp_path, monkeypatch, capsys):
    """Two that start at one moment may have drawn the same port; nothing has run by then."""
    import papermill

    execute, failures = papermill.execute_notebook, []

    def start(*words, **how):
        if failures:
            raise failures.pop()
        return execute(*words, **how)

    monkeypatch.setattr(papermill, "execute_notebook", start)
    notebook = write_notebook(tmp_path / "n.ipynb", "1")
    for count, code in ((1, runner.DONE), (2, runner.INCOMPLETE)):
        failures += [RuntimeError("Kernel didn't respond in 60 seconds")] * count
        assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == code
        said = capsys.readouterr().err
        assert "its kernel did not start (Kernel didn't respond in 60 seconds): once more" in said
        assert ("the kernel died" in said) == (code == runner.INCOMPLETE)

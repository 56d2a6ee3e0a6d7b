"""Settings are checked before any work, and a notebook is done only if all of it ran."""

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from thyroid_lib import locks, runner, study

ROOT = Path(__file__).parent.parent
DEMO = (ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8")


def set_key(key: str, value: str) -> str:
    """The demo's YAML with another value."""
    lines = [f"{key}: {value}" if x.startswith(f"{key}:") else x for x in DEMO.splitlines()]
    assert lines != DEMO.splitlines()
    return "\n".join(lines) + "\n"


# what was done to the demo's file -> what the one line of the error must say
FAULTS = {
    "unknown key": (DEMO + "epoch: 3\n", ["epoch: unknown", "did you mean epochs?"]),
    "foreign key": (DEMO + "colour: red\n", ["colour: unknown", "there are: study, source"]),
    "missing key": (DEMO.replace("\nlr:", "\n#lr:"), ["lr: is missing"]),
    "key twice": (DEMO + "lr: 1.0e-2\n", ["study.yaml, line", "lr twice"]),
    "no mapping": ("- epochs\n- 3\n", ["study.yaml", "`key: value`"]),
    "empty file": ("# nothing\n", ["study.yaml", "`key: value`"]),
    "broken yaml": (set_key("seeds", "[0, 1"), ["study.yaml, line"]),
    "tab": (DEMO + "\tlr: 1.0\n", ["study.yaml, line"]),
    "no value": (set_key("epochs", ""), ["epochs: got nothing, need a whole number"]),
    "text for a number": (set_key("lr", "1e-3"), ["lr: got the text", "write 1.0e-3"]),
    "unsigned exponent": (set_key("delta", "5.0e3"), ["delta: got the text", "write 5.0e+3"]),
    "quoted number": (set_key("epochs", '"8"'), ["epochs: got the text", "a whole number"]),
    "fraction of an epoch": (set_key("epochs", "8.5"), ["epochs: got 8.5, need a whole number"]),
    "truth for a number": (set_key("threads", "yes"), ["threads: got true, need a whole"]),
    "number for a truth": (
        set_key("phantom_text", "1"),
        ["phantom_text: got 1, need true or false"],
    ),
    "infinite": (set_key("lr", ".inf"), ["lr: got inf, need a finite number"]),
    "not a number": (set_key("lr", ".nan"), ["lr: got nan, need a finite number"]),
    "negative rate": (set_key("lr", "-1.0e-3"), ["lr: got -0.001, need above 0"]),
    "no epochs": (set_key("epochs", "0"), ["epochs: got 0, need 1 or more"]),
    "no batch": (set_key("batch_size", "0"), ["batch_size: got 0, need 1 or more"]),
    "tiny size": (set_key("size", "8"), ["size: got 8, need 16 to 4096"]),
    "one fold": (set_key("folds", "1"), ["folds: got 1, need 2 or more"]),
    "fold beyond the last": (set_key("run_folds", "[4]"), ["run_folds", "has only 0 to 3"]),
    "fold twice": (set_key("run_folds", "[0, 0]"), ["run_folds: got [0, 0]", "none twice"]),
    "seed twice": (set_key("seeds", "[1, 1]"), ["seeds: got [1, 1]", "none twice"]),
    "negative seed": (set_key("seeds", "[-1]"), ["seeds: got [-1], need"]),
    "no seed": (set_key("seeds", "[]"), ["seeds: got [], need one or more"]),
    "seed without list": (set_key("seeds", "0"), ["seeds: got 0, need a list such as [0]"]),
    "seed as text": (set_key("seeds", "[zero]"), ["seeds: got the text", "a whole number"]),
    "committed results": (set_key("study", "reference"), ["study: got", "none of reference"]),
    "unknown model": (set_key("models", "[unet, vnet]"), ["models", "unet, segnet, resunet"]),
    "model twice": (set_key("models", "[unet, unet]"), ["models", "none twice"]),
    "unknown protocol": (
        set_key("protocols", "[by_frame]"),
        ["protocols", "random, reported, official"],
    ),
    "unknown source": (set_key("source", "ddti"), ["source", "phantom, tg3k, folder"]),
    "source without data": (set_key("source", "tg3k"), ["data: is empty", "tg3k needs"]),
    "data without source": (set_key("data", "x"), ["data: phantoms take none"]),
    "reported alone": (
        set_key("protocols", "[reported]").replace("selection: last", "selection: val"),
        ['protocols: got ["reported"], but protocol reported needs random and grouped'],
    ),
    "reported with the last epoch": (
        set_key("protocols", "[reported, random, grouped]"),
        ['selection: got "last", but protocol reported needs val beside'],
    ),
    "reported beside augmentation": (
        set_key("protocols", "[reported, random, grouped]")
        .replace("selection: last", "selection: val")
        .replace("augment: none", "augment: standard"),
        ['augment: got "standard", but protocol reported needs none beside'],
    ),
    "unknown augmentation": (set_key("augment", "blur"), ["augment", "one of none, standard"]),
    "unknown precision": (set_key("precision", "half"), ["precision", "auto, fp32, bf16, fp16"]),
    "unknown selection": (set_key("selection", "best"), ["selection", "one of last, val"]),
    "half for validation": (set_key("val_share", "0.5"), ["val_share", "below 0.5"]),
    "unknown device": (set_key("device", "gpu"), ["device", "auto, cpu, cuda, mps"]),
    "name with a slash": (set_key("study", "a/b"), ["study", "a-z, 0-9"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_of_a_study_is_one_clear_line(fault, tmp_path):
    text, parts = FAULTS[fault]
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"\w") as caught:
        study.read_study([tmp_path / "study.yaml"])
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message


def test_all_faults_are_told_at_once(tmp_path):
    (tmp_path / "study.yaml").write_text(set_key("lr", "0") + "epoch: 3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"(?s)epoch: unknown.*lr: got 0"):
        study.read_study([tmp_path / "study.yaml"])


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: cannot be read"):
        study.read_study([tmp_path / "none.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"study: \xe4\n")
    with pytest.raises(ValueError, match=r"latin\.yaml: cannot be read"):
        study.read_study([tmp_path / "latin.yaml"])


def test_the_command_lines_types_are_the_files():
    # as snakemake --config lr=1e-3 seeds=[0,1] mend=[] data= models=[unet] study=7 gives it
    given = {"lr": 0.001, "seeds": ["0", "1"], "mend": "[]", "data": None}
    given |= {"models": ["unet"], "study": 7}
    config = study.read_study([ROOT / "parameters" / "demo.yaml"], given)
    assert config["seeds"] == [0, 1]
    assert config["mend"] == []
    assert (config["data"], config["study"], config["models"]) == ("", "7", ["unet"])
    with pytest.raises(ValueError, match="models: got"):
        study.read_study([ROOT / "parameters" / "demo.yaml"], {"models": "unet"})


def test_choices_are_those_of_the_library():
    from thyroid_lib import frames, models, splits

    assert study.keys_of("models", "MODELS") == list(models.MODELS)
    assert study.keys_of("splits", "PROTOCOLS") == list(splits.PROTOCOLS)
    assert study.keys_of("frames", "MENDS") == list(frames.MENDS)
    assert tuple(study.LEAKY) == splits.LEAKY


def test_data_is_told_by_names_and_sizes(tmp_path):
    assert study.list_data("") == ""
    with pytest.raises(ValueError, match="data: nothing is at"):
        study.list_data(str(tmp_path / "none"))
    (tmp_path / "a.png").write_bytes(b"12")
    before = study.list_data(str(tmp_path))
    os.utime(tmp_path / "a.png", (1, 1))
    assert study.list_data(str(tmp_path)) == before
    (tmp_path / "b.png").write_bytes(b"1")
    assert study.list_data(str(tmp_path)) != before


def test_the_command_checks_files():
    good = run_module("check", ROOT / "parameters" / "tg3k.yaml")
    assert (good.returncode, good.stdout) == (0, "ok: study tg3k\n")
    bad = run_module("check", ROOT / "pyproject.toml")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: pyproject.toml")


# Notebooks


def run_module(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "thyroid_lib.runner", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


PARAMETERS = 'name = "a"  # a text\ncount = 1\nrate = 0.5\nflag = True\nseeds = [0]\nwords = []'


def write_notebook(path: Path, *cells: str, ids: bool = True) -> Path:
    """A notebook with the parameters above and these code cells."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, id=f"c{n}") for n, source in enumerate(cells, 1)]
    )
    tagged = nbformat.v4.new_code_cell(PARAMETERS, id="c0", metadata={"tags": ["parameters"]})
    notebook.cells.insert(0, tagged)
    content = json.loads(nbformat.writes(notebook))
    if not ids:  # as Colab saves them
        content["nbformat_minor"] = 4
        for cell in content["cells"]:
            del cell["id"]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


WRONG = {
    "unknown": ({"coutn": 2}, "coutn: unknown (did you mean count?); there are: name, count"),
    "text": ({"name": 1}, "name: got 1, need a text"),
    "whole number": ({"count": 1.0}, "count: got 1.0, need a whole number"),
    "truth for a number": ({"count": True}, "count: got true, need a whole number"),
    "text for a number": ({"rate": "1e-3"}, 'rate: got the text "1e-3", need a number: write'),
    "truth": ({"flag": 0}, "flag: got 0, need true or false"),
    "list": ({"seeds": 0}, "seeds: got 0, need a list such as [0]"),
    "list of numbers": ({"seeds": [0, "1"]}, 'seeds: got the text "1", need a whole number'),
    "list of texts": ({"words": [1]}, "words: got 1, need a text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_parameters_stop_before_any_work(wrong, tmp_path, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", "1 / 0")
    parameters, message = WRONG[wrong]
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", parameters) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [notebook]


@pytest.mark.parametrize("text", ["[1]", "{1}", "none.json"])
def test_parameters_that_are_no_object_are_told(text, tmp_path):
    given = tmp_path / "p.json"
    given.write_text(text, encoding="utf-8")
    given = text if text.endswith(".json") else given
    done = run_module("notebook", "n.ipynb", tmp_path / "out.ipynb", "--parameters", given)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_left_out_and_whole_valued_parameters_are_fine(tmp_path):
    defaults = runner.parameter_defaults(write_notebook(tmp_path / "n.ipynb"))
    assert defaults["seeds"] == [0]
    runner.check_parameters({}, defaults)
    runner.check_parameters({"rate": 1, "words": ["a"]}, defaults)


def test_what_is_no_notebook_is_told(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        runner.parameter_defaults(tmp_path / "none.ipynb")
    (tmp_path / "text.ipynb").write_text("# no", encoding="utf-8")
    with pytest.raises(ValueError, match="is no notebook"):
        runner.parameter_defaults(tmp_path / "text.ipynb")
    (tmp_path / "bare.ipynb").write_text('{"cells": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="no cell has the tag `parameters`"):
        runner.parameter_defaults(tmp_path / "bare.ipynb")
    odd = write_notebook(tmp_path / "odd.ipynb")
    odd.write_text(odd.read_text().replace("count = 1", "count = name"), encoding="utf-8")
    with pytest.raises(ValueError, match="`count = name` in the parameters cell"):
        runner.parameter_defaults(odd)


ENDS = {
    "an error": ("raise KeyError('gone')", 3, "In [3] KeyError: 'gone'"),
    "exit with success": ("import sys; sys.exit(0)", 4, "only 3 of 4 cells ran"),
    "exit with failure": ("import sys; sys.exit(1)", 3, "SystemExit: 1"),
    "a dead kernel": ("import os; os.kill(os.getpid(), 9)", 4, "the kernel died"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_notebook_that_stops_half_way_is_not_done(end, tmp_path):
    cell, code, message = ENDS[end]
    notebook = write_notebook(tmp_path / "n.ipynb", cell, "count", "")
    out = tmp_path / "out.ipynb"
    out.write_text("the last good one", encoding="utf-8")
    done = run_module("notebook", notebook, out, "--parameters", '{"count": 2}')
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: out: ")
    assert len(done.stderr.splitlines()) < 14
    assert out.read_text(encoding="utf-8") == "the last good one"
    failed = nbformat.read(tmp_path / "out.failed.ipynb", as_version=4)
    assert any("count = 2" in each.source for each in failed.cells)
    assert str(tmp_path / "out.failed.ipynb") in done.stderr


@pytest.mark.parametrize("ids", [True, False])
def test_two_executions_give_the_same_bytes(ids, tmp_path):
    show = "import time\nfor n in range(4):\n    print(n, flush=True)\n    time.sleep(0.1 * count)"
    notebook = write_notebook(tmp_path / "n.ipynb", show, "name, rate", ids=ids)
    (tmp_path / "p.json").write_text('{"name": "b", "rate": 2}', encoding="utf-8")
    outs = [tmp_path / "one" / "out.ipynb", tmp_path / "two" / "out.ipynb"]
    for out in outs:
        done = run_module("notebook", notebook, out, "--parameters", tmp_path / "p.json")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("out: done in ")
        assert list(out.parent.iterdir()) == [out]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    executed = nbformat.read(outs[0], as_version=4)
    assert executed.cells[1].id == "injected-parameters"
    assert executed.cells[0].metadata == {"tags": ["parameters"]}
    assert executed.cells[2].outputs[0].text == "0\n1\n2\n3\n"
    assert executed.cells[3].outputs[0].data["text/plain"] == "('b', 2)"
    assert str(tmp_path) not in outs[0].read_text(encoding="utf-8")


def test_kernel_log_and_variables(tmp_path):
    text = (
        "import os, sys\n"
        "assert sys.executable == name\n"
        "assert os.environ['ATEN_CPU_CAPABILITY'] == 'avx2'\n"
        "print(os.getcwd())"
    )
    notebook = write_notebook(tmp_path / "n.ipynb", text)
    given = json.dumps({"name": sys.executable})
    log = tmp_path / "logs" / "n.ipynb"
    where = (tmp_path / "out.ipynb", "--parameters", given, "--log", log, "--pin-instructions")
    done = run_module("notebook", notebook, *where)
    assert done.returncode == 0, done.stderr
    assert f"shows a path of this machine: {ROOT}" in done.stderr
    assert "duration" in log.read_text(encoding="utf-8")
    assert "duration" not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


def test_ending_the_runner_ends_the_kernel(tmp_path):
    text = "import os, time\nopen(name, 'w').write(str(os.getpid()))\ntime.sleep(100)"
    notebook = write_notebook(tmp_path / "n.ipynb", text)
    given = json.dumps({"name": str(tmp_path / "pid")})
    command = [sys.executable, "-m", "thyroid_lib.runner", "notebook", notebook]
    process = subprocess.Popen([*command, tmp_path / "out.ipynb", "--parameters", given], cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=90) == 128 + signal.SIGTERM
    wait_for(lambda: not Path("/proc", (tmp_path / "pid").read_text()).exists())
    assert not (tmp_path / "out.ipynb").exists()


def test_two_processes_never_make_one_notebook_at_once(tmp_path, monkeypatch):
    notebook, out = write_notebook(tmp_path / "n.ipynb", "count"), tmp_path / "out.ipynb"
    held = locks.claim_path(out, "first")
    command = [sys.executable, "-m", "thyroid_lib.runner", "notebook", notebook, out]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    second = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    said = second.stderr.readline()
    assert said == "note: out: another process is at it; waiting for its end …\n"
    assert second.poll() is None
    assert not out.exists()
    held.close()
    assert "out: done in" in second.communicate(timeout=60)[0]
    assert out.exists()


def wait_for(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def test_importing_it_is_light():
    code = (
        "import sys, thyroid_lib.runner\n"
        "heavy = {'torch', 'pandas', 'numpy', 'papermill', 'nbformat'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("models: 2020-01-01", "models: got"),
        ("pin_instructions: !!bool abc", "demo.yaml"),
        ("augment: 2020-99-99", "demo.yaml"),
        ("lr: !!float abc", "demo.yaml"),
        ("size: 20000", "size: got 20000, need 16 to 4096"),
    ],
)
def test_values_that_yaml_or_the_store_cannot_hold_are_refused(tmp_path, line, said):
    key = line.split(":")[0]
    text = (ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8")
    (tmp_path / "demo.yaml").write_text(re.sub(rf"(?m)^{key}:.*$", line, text), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)):
        study.read_study([tmp_path / "demo.yaml"])


# --- stopped, failed, and what is left then

TRAINING = """
import time
from thyroid_lib.stopping import Stopped, told_to_stop
open(name, "w").write("at it")
with told_to_stop() as why:
    while not why():
        time.sleep(0.05)
raise Stopped(f"run: stopped, as {why()}")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_stop_ends_by_itself(number, tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINING)
    given = json.dumps({"name": str(tmp_path / "mark")})
    command = [sys.executable, "-m", "thyroid_lib.runner", "notebook", notebook]
    command += [tmp_path / "out.ipynb", "--parameters", given, "--log", tmp_path / "log.ipynb"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "mark").exists)
    began = time.monotonic()
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # as a workflow does after a terminal's Ctrl-C
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < runner.PATIENCE
    assert process.returncode == 128 + number
    assert "error: out: run: stopped, as SIGINT came" in said
    assert "stopped, as SIGINT came" in (tmp_path / "log.failed.txt").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_ends_with_the_workflow_that_started_it(tmp_path):
    workflow = subprocess.Popen(["sleep", "100"])
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINING)
    given = json.dumps({"name": str(tmp_path / "mark")})
    command = [sys.executable, "-m", "thyroid_lib.runner", "notebook", notebook]
    command += [tmp_path / "out.ipynb", "--parameters", given]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"THYROID_WORKFLOW_PID": str(workflow.pid)}
    )
    wait_for((tmp_path / "mark").exists)
    workflow.kill()  # and not waited for: a zombie is dead, too
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    workflow.wait()


def test_out_of_time_it_is_not_begun_or_stops(tmp_path, monkeypatch, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINING)
    given = {"name": str(tmp_path / "mark")}
    monkeypatch.setenv("THYROID_DEADLINE", str(time.time() - 1))
    code = runner.run_notebook(notebook, tmp_path / "out.ipynb", given)
    assert code == runner.OUT_OF_TIME
    assert "not started, as the time budget is used up" in capsys.readouterr().err
    monkeypatch.setenv("THYROID_DEADLINE", str(time.time() + 3))
    code = runner.run_notebook(notebook, tmp_path / "out.ipynb", given)
    assert code == runner.OUT_OF_TIME
    assert "stopped, as its time budget is used up" in capsys.readouterr().err


def test_what_was_told_is_for_the_terminal_and_not_for_the_notebook(tmp_path, capsys):
    text = (
        "import sys; from thyroid_lib import tell\n"
        "tell('a broken file is passed over'); print('kept', file=sys.stderr); print(count)"
    )
    notebook = write_notebook(tmp_path / "n.ipynb", text)
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == 0
    assert "note: out: a broken file is passed over\n" in capsys.readouterr().err
    tidied = (tmp_path / "out.ipynb").read_text()
    assert "passed over\\n" not in tidied
    assert "kept\\n" in tidied


def test_checksums_and_reasons_come_and_go(tmp_path):
    (tmp_path / "notebooks").mkdir()
    notebook = write_notebook(tmp_path / "n.ipynb", "assert count > 1")
    sums, log = tmp_path / "checksums" / "n.sha256", tmp_path / "logs" / "n.ipynb"
    out = tmp_path / "notebooks" / "n.ipynb"
    how = {"log": log, "checksums": sums, "writes": [out]}
    assert runner.run_notebook(notebook, out, {"count": 2}, **how) == 0
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert sums.read_text() == f"{digest}  notebooks/n.ipynb\n"
    assert runner.run_notebook(notebook, out, {"count": 1}, **how) == runner.CELL_RAISED
    assert not sums.exists()
    assert "AssertionError" in log.with_suffix(".failed.txt").read_text()
    assert runner.run_notebook(notebook, out, {"count": 2}, **how) == 0
    assert not log.with_suffix(".failed.txt").exists()


def test_a_disk_that_takes_no_more_is_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    def full(*args, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    notebook = write_notebook(tmp_path / "n.ipynb", "count")
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == runner.INCOMPLETE
    assert "error: out: the disk is full: free some space" in capsys.readouterr().err

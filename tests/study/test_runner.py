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

from thyroid_lib import settings as study
from thyroid_lib.files import locks
from thyroid_lib.study import runner

ROOT = Path(__file__).parents[2]
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
    "negative rate": (set_key("lr", "-1.0e-3"), ["lr: got -0.001, need 1e-12 to 10"]),
    "no epochs": (set_key("epochs", "0"), ["epochs: got 0, need 1 to 100000"]),
    "no batch": (set_key("batch_size", "0"), ["batch_size: got 0, need 1 to 65536"]),
    "tiny size": (set_key("size", "8"), ["size: got 8, need 16 to 4096"]),
    "one fold": (set_key("folds", "1"), ["folds: got 1, need 2 to 10000"]),
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
    "name too long for a folder": (set_key("study", "a" * 101), ["study: got", "100 at most"]),
    "name that is a date": (
        set_key("study", "2026-01-15"),
        ['study: got "2026-01-15", need a text: put it in quotes'],
    ),
    "minutes and seconds": (set_key("epochs", "1:30"), ["study.yaml, line", "1:30: write a plain"]),
    "sixtieths of a rate": (set_key("lr", "1:30.5"), ["study.yaml, line", "1:30.5: write a plain"]),
    "leading 0": (set_key("epochs", "010"), ["study.yaml, line", "010: write a plain number"]),
    "tagged leading 0": (set_key("epochs", "!!int '010'"), ["study.yaml, line", "010: write a"]),
    "tagged nothing": (set_key("epochs", "!!int ''"), ["study.yaml, line", '"" is no int']),
    "tagged text": (set_key("pin_instructions", "!!bool abc"), ["line", '"abc" is no bool']),
    "a list that holds itself": (
        set_key("models", "&a [*a]"),
        ["study.yaml, line", "*a is an alias: write the value itself"],
    ),
    "an alias": (
        set_key("seeds", "&a [0]").replace("run_folds: [0]", "run_folds: *a"),
        ["study.yaml, line", "*a is an alias"],
    ),
    "a merge": (DEMO + "<<: {lr: 1.0}\n", ["study.yaml, line", "<< merges mappings"]),
    "a mapping with a date as key": (
        set_key("models", "{2026-01-15: 1}"),
        ["models: got dict that cannot be shown, need a list"],
    ),
    "brackets in brackets": (set_key("models", "[" * 2000), ["study.yaml: brackets in brackets"]),
    "a character that YAML refuses": (DEMO + "# \x01\n", ["study.yaml: unacceptable character"]),
    "key of two lines": (DEMO + '"a\\nb": 1\n', ['"a\\nb": unknown']),
    "key that is no text": (DEMO + "1: 1\n", ["1: unknown; there are: study"]),
    "a text with NUL": (set_key("data", '"a\\0b"'), ["data: got", "need a text without NUL"]),
    "half a letter": (set_key("data", '"\\ud800"'), ["data: got", "need a text without NUL"]),
    "a whole number that no float holds": (
        set_key("lr", "1" + "0" * 400),
        ["lr: got 1000", "…, need a finite number"],
    ),
    "a number that no int is read from": (set_key("epochs", "9" * 5000), ["line", "is no int"]),
    "more runs than can be planned": (
        set_key("seeds", str(list(range(2000)))),
        ["seeds: 2000 of them, 3 models and 2 splits make 12000 runs, need 2000 or fewer"],
    ),
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


LIMITS = {  # key: the lowest and the highest that is allowed, and a step beyond each
    "phantom_sweeps": ((0, 1), (100, 101)),
    "phantom_frames": ((0, 1), (1000, 1001)),
    "phantom_seed": ((-1, 0), (2**32 - 1, 2**32)),
    "size": ((15, 16), (4096, 4097)),
    "width": ((-1, 0), (512, 513)),
    "folds": ((1, 2), (10_000, 10_001)),
    "seeds": (([-1], [0]), ([2**32 - 1], [2**32])),
    "epochs": ((0, 1), (100_000, 100_001)),
    "batch_size": ((0, 1), (65_536, 65_537)),
    "lr": ((1e-13, 1e-12), (1e12, 1.1e12)),
    "threshold": ((0, 0.01), (0.99, 1)),
    "tolerance_px": ((0, 1e-6), (4096, 4096.5)),
    "delta": ((-0.1, 0), (1, 1.1)),
    "resamples": ((99, 100), (100_000, 100_001)),
    "threads": ((-1, 0), (1024, 1025)),
}


@pytest.mark.parametrize("key", LIMITS)
def test_numbers_have_limits(key):
    (below, least), (most, above) = LIMITS[key]
    demo = study.read_study([ROOT / "parameters" / "demo.yaml"])
    for allowed in (least, most):
        study.check_study(demo | {key: allowed})
    for refused in (below, above):
        with pytest.raises(ValueError, match=re.escape(f"{key}: got {refused}, need ")):
            study.check_study(demo | {key: refused})


def test_the_largest_seed_and_the_last_epoch_fit_what_training_makes_of_them():
    torch = pytest.importorskip("torch")
    seed, epochs = study.MOST_SEED, 100_000
    source = (ROOT / "thyroid_lib" / "train.py").read_text(encoding="utf-8")
    made = re.findall(r"manual_seed\((?!zlib)(.*)\)", source)  # crc32 has 32 bits
    assert len(made) == 2
    for formula in made:
        for values in ({"seed": seed, "epoch": epochs}, {"seed": 0, "epoch": epochs}):
            torch.Generator().manual_seed(eval(formula, values))  # noqa: S307, of our own code


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


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("epochs", "1:30", '^epochs: got the text "1:30", need a whole number'),
        ("seeds", ["0", "010"], '^seeds: got the text "010", need a whole number'),
        ("epochs", "[0", r'^epochs: got the text "\[0", need a whole'),
        ("seeds", "[0", r'^seeds: got "\[0", need a list'),
        ("epochs", "\x07", r'^epochs: got the text "\\u0007", need a whole'),
        ("augment", ["a"], r'^augment: got \["a"\], need a text'),
        ("study", 1.5, "^study: got 1.5, need a text: put it in quotes"),  # may have been 1.50
        (
            "data",
            10**30,
            "^data: got 1000000000000000000000000000000, need a text: put it in quotes",
        ),
        ("study", True, "^study: got true, need a text: put it in quotes"),
        ("seeds", [["0"]], r'^seeds: got \["0"\], need a whole number'),
        ("lr", float("nan"), "^lr: got nan, need a finite number"),
        ("a\nb", 1, r'^"a\\nb": unknown'),
    ],
)
def test_a_value_of_the_command_line_that_is_wrong_is_named(key, value, said):
    with pytest.raises(ValueError, match=said) as caught:
        study.read_study([ROOT / "parameters" / "demo.yaml"], {key: value})
    assert len(str(caught.value).splitlines()) == 1


def test_a_message_shows_any_value_on_one_short_line():
    itself, many = [], ["x"] * 10
    itself.append(itself)
    for _ in range(7):
        many = [many] * 10  # hundred million texts, and no memory
    for value in (itself, many, "x" * 10**6, 16**5000, {1: 2}, {(1, 2): 3}, "a\nb", {1}, None):
        text = study.show(value)
        assert 0 < len(text) <= 101
        assert text.isprintable()


def test_choices_are_those_of_the_library():
    from thyroid_lib import models
    from thyroid_lib.data import frames, splits
    from thyroid_lib.train import augment
    from thyroid_lib.train import recipe as train

    assert study.keys_of("train/recipe", "SELECTIONS") == list(train.SELECTIONS)
    assert study.keys_of("train/augment", "AUGMENTS") == list(augment.AUGMENTS)

    assert study.keys_of("models/registry", "MODELS") == list(models.MODELS)
    assert study.keys_of("data/splits", "PROTOCOLS") == list(splits.PROTOCOLS)
    assert study.keys_of("data/frames", "MENDS") == list(frames.MENDS)
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


def test_data_of_any_name_is_listed_or_refused(tmp_path):
    (tmp_path / os.fsdecode(b"x\xff.png")).write_bytes(b"1")  # the store sets it aside
    (tmp_path / "loop").symlink_to("loop")
    assert len(study.list_data(str(tmp_path))) == 64
    for data in ("x" * 5000, "~nobody-of-this-name/x", str(tmp_path / "loop"), "a\nb"):
        with pytest.raises(ValueError, match=r"^data: nothing is at ") as caught:
            study.list_data(data)
        assert len(str(caught.value).splitlines()) == 1


def test_the_command_checks_files():
    good = run_module("check", ROOT / "parameters" / "tg3k.yaml")
    assert (good.returncode, good.stdout) == (0, "ok: study tg3k\n")
    bad = run_module("check", ROOT / "pyproject.toml")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: pyproject.toml")


# Notebooks


def run_module(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "thyroid_lib.study.runner", *map(str, arguments)]
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


# what `--parameters` was given -> what the one line of the error says after the option's name
NO_OBJECT = {
    "{1}": '"{1}": Expecting property name',
    "{'seed': 1}": "Expecting property name",
    "[1]": "got [1]; need a JSON object such as",
    "none.json": '"none.json": No such file or directory; need a JSON object',
    "seed=1": '"seed=1": No such file',
    "": "need a JSON object",
    "a\0b": "need a JSON object",
    "x" * 5000: "File name too long",
    '{"seed": 1, "seed": 2}': "seed twice; need",
    '{"a": ' * 5000: "maximum recursion depth",
}


@pytest.mark.parametrize("given", NO_OBJECT, ids=range(len(NO_OBJECT)))
def test_parameters_that_are_no_object_are_told(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["runner", "notebook", "n.ipynb", "out.ipynb", "--parameters", given]
    )
    assert runner.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --parameters: ")
    assert NO_OBJECT[given] in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("content", [b"[1]", b"{1}", b"", b"\xff\xfe{}", b'{"a": 1}}'])
def test_a_parameters_file_that_holds_no_object_is_told(content, tmp_path):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"--parameters: .*need a JSON object such as") as caught:
        study.read_parameters(str(tmp_path / "p.json"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_parameters_file_may_begin_with_a_mark_of_its_byte_order(tmp_path):
    (tmp_path / "p.json").write_text('{"seed": 1}', encoding="utf-8-sig")
    assert study.read_parameters(str(tmp_path / "p.json")) == {"seed": 1}


TRAIN = runner.parameter_defaults(ROOT / "notebooks" / "3-train.ipynb")
NO_TRAINING = {  # given to 3-train -> the one line of the error
    "precision": ({"precision": "half"}, 'precision: got "half", need one of auto, fp32'),
    "augment": ({"augment": "x"}, 'augment: got "x", need one of none, standard'),
    "protocol": ({"protocol": "by_frame"}, 'protocol: got "by_frame", need one of random'),
    "model": ({"model": "vnet"}, 'model: got "vnet", need one of unet, segnet'),
    "selection": ({"selection": "best"}, 'selection: got "best", need one of last, val, test'),
    "device": ({"device": "gpu"}, 'device: got "gpu", need one of auto, cpu'),
    "fold below 0": ({"fold": -1}, "fold: got -1, need 0 to 9999"),
    "fold beyond": ({"fold": 4}, "fold: got 4, but folds: 4 has only 0 to 3"),
    "folds below fold": ({"fold": 3, "folds": 3}, "fold: got 3, but folds: 3 has only 0 to 2"),
    "second official split": ({"protocol": "official", "fold": 1}, "fold: got 1, the official"),
    "seed": ({"seed": 2**32}, "seed: got 4294967296, need 0 to 4294967295"),
    "val_share": ({"val_share": 0.5}, "val_share: got 0.5, need 0 or more and below 0.5"),
    "val without val": (
        {"selection": "val", "val_share": 0.0},
        'val_share: got 0, but selection "val" needs it above 0',
    ),
    "test alone": (
        {"selection": "test"},
        'selection: got "test", but protocol grouped needs last or val: only reported may',
    ),
    "reported alone": (
        {"protocol": "reported"},
        'selection: got "last", but protocol reported needs test',
    ),
    "nowhere": ({"out": ""}, 'out: got "", need a folder'),
    "epochs": ({"epochs": 0}, "epochs: got 0, need 1 to 100000"),
}


@pytest.mark.parametrize("wrong", NO_TRAINING)
def test_values_that_no_training_takes_stop_before_any_work(wrong):
    parameters, message = NO_TRAINING[wrong]
    with pytest.raises(ValueError, match="^" + re.escape(message)) as caught:
        runner.check_parameters(parameters, TRAIN)
    assert len(str(caught.value).splitlines()) == 1


def test_values_that_training_takes():
    for fine in (
        {}, {"protocol": "reported", "selection": "test"}, {"val_share": 0}, {"fold": 3},
        {"protocol": "random", "fold": 7}, {"protocol": "official"}, {"seed": 2**32 - 1},
    ):  # fmt: skip
        runner.check_parameters(fine, TRAIN)


def test_a_source_needs_its_data_in_a_notebook_too():
    defaults = runner.parameter_defaults(ROOT / "notebooks" / "1-preprocess.ipynb")
    with pytest.raises(ValueError, match=r"^data: is empty, source tg3k needs its folder"):
        runner.check_parameters({"source": "tg3k"}, defaults)
    with pytest.raises(ValueError, match=r"^data: phantoms take none"):
        runner.check_parameters({"data": "x"}, defaults)
    runner.check_parameters({"source": "folder", "data": "x"}, defaults)


def test_every_notebooks_own_defaults_are_allowed():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        defaults = runner.parameter_defaults(notebook)
        runner.check_parameters(defaults, defaults)


def test_a_strangers_notebook_may_use_the_names_otherwise(tmp_path):
    defaults = {"size": "large", "seeds": ["a"], "device": 3, "nothing": None}
    runner.check_parameters({"size": "huge", "seeds": ["b"], "device": 4, "nothing": [1]}, defaults)


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
    for text in ('{"cells": 3}', '{"cells": [1]}', '{"cells": {"a": 1}}', "[" * 100_000,
                 '{"cells": [{"metadata": []}]}', '{"cells": [{"metadata": {"tags": null}}]}',
                 '{"cells": [{"metadata": {"tags": ["parameters"]}}]}',
                 '{"cells": [{"metadata": {"tags": ["parameters"]}, "source": 7}]}'):  # fmt: skip
        (tmp_path / "text.ipynb").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is no notebook"):
            runner.parameter_defaults(tmp_path / "text.ipynb")
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
    command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", notebook]
    process = subprocess.Popen([*command, tmp_path / "out.ipynb", "--parameters", given], cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=90) == 128 + signal.SIGTERM
    wait_for(lambda: not Path("/proc", (tmp_path / "pid").read_text()).exists())
    assert not (tmp_path / "out.ipynb").exists()


def test_two_processes_never_make_one_notebook_at_once(tmp_path, monkeypatch):
    notebook, out = write_notebook(tmp_path / "n.ipynb", "count"), tmp_path / "out.ipynb"
    held = locks.claim_path(out, "first")
    command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", notebook, out]
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
        "import sys, thyroid_lib.study.runner\n"
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
from thyroid_lib.files.stopping import Stopped, stop_requests
with stop_requests() as why:
    open(name, "w").write("at it")
    while not why():
        time.sleep(0.05)
raise Stopped(f"run: stopped, as {why()}")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_told_to_stop_ends_by_itself(number, tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINING)
    given = json.dumps({"name": str(tmp_path / "mark")})
    command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", notebook]
    command += [tmp_path / "out.ipynb", "--parameters", given, "--log", tmp_path / "log.ipynb"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "mark").exists)
    began = time.monotonic()
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # as a workflow does after a terminal's Ctrl-C
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < runner.PATIENCE
    assert process.returncode == 128 + number
    assert "stopped: out: run: stopped, as it was told to" in said
    assert "stopped, as it was told to" in (tmp_path / "log.failed.txt").read_text()
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_ends_with_the_workflow_that_started_it(tmp_path):
    workflow = subprocess.Popen(["sleep", "100"])
    notebook = write_notebook(tmp_path / "n.ipynb", TRAINING)
    given = json.dumps({"name": str(tmp_path / "mark")})
    command = [sys.executable, "-m", "thyroid_lib.study.runner", "notebook", notebook]
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
    assert "stopped: out: not begun, as the time budget is used up" in capsys.readouterr().err
    monkeypatch.setenv("THYROID_DEADLINE", str(time.time() + 3))
    code = runner.run_notebook(notebook, tmp_path / "out.ipynb", given)
    assert code == runner.OUT_OF_TIME
    assert "stopped, as its time budget is used up" in capsys.readouterr().err


def test_what_was_told_is_for_the_terminal_and_not_for_the_notebook(tmp_path, capsys):
    text = (
        "import sys; from thyroid_lib.files.writing import print_note\n"
        "print_note('a broken file is passed over'); print('kept', file=sys.stderr); print(count)"
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


@pytest.mark.parametrize(("failures", "code"), [(1, runner.DONE), (2, runner.INCOMPLETE)])
def test_a_kernel_that_does_not_start_is_started_once_more(
    failures, code, tmp_path, monkeypatch, capsys
):
    """Two that start at one moment may have drawn the same port; nothing has run by then."""
    import papermill

    execute, calls = papermill.execute_notebook, []

    def start(*words, **how):
        calls.append(words)
        if len(calls) <= failures:
            raise RuntimeError("Kernel didn't respond in 60 seconds")
        return execute(*words, **how)

    monkeypatch.setattr(papermill, "execute_notebook", start)
    notebook = write_notebook(tmp_path / "n.ipynb", "1")
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", {}) == code
    assert len(calls) == 2
    told = capsys.readouterr().err
    assert "its kernel did not start (Kernel didn't respond in 60 seconds): once more" in told
    assert ("the kernel died" in told) == (code == runner.INCOMPLETE)
    assert (tmp_path / "out.ipynb").exists() == (code == runner.DONE)

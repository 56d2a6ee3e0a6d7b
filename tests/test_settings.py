"""Settings: one table of bad values for every way in, and the one class that all of them read."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from thyroid_lib import settings
from thyroid_lib.study import parameters, ready, runner

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "parameters" / "demo.yaml"
STUDY = settings.read_study([DEMO])
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
DEFAULTS = {name: parameters.parameter_defaults(path) for name, path in NOTEBOOKS.items()}
DEEP: list = [0]
DEEP.append(DEEP)

# key, value, the words that its line of the message must have
BAD = [
    ("epoch", 3, "epoch: unknown (did you mean epochs?); there are: "),
    ("colour", "red", "colour: unknown; there are: "),
    ("a\nb", 1, '"a\\nb": unknown'),
    ("epochs", None, "epochs: got null, need a whole number, 1 to 100000"),
    ("epochs", "8 passes", 'epochs: got "8 passes", need a whole number'),
    ("epochs", 8.5, "epochs: got 8.5, need a whole number"),
    ("epochs", [8], "epochs: got [8], need a whole number"),
    ("threads", True, "threads: got true, need a whole number"),
    ("phantom_text", 1, "phantom_text: got 1, need true or false"),
    ("tensorboard", "maybe", 'tensorboard: got "maybe", need true or false'),
    ("lr", "fast", 'lr: got "fast", need a number, at least 1e-12'),
    ("lr", math.nan, "lr: got NaN, need a number"),
    ("lr", math.inf, "lr: got Infinity, need a number"),
    ("lr", 10**400, "lr: got 1000"),
    ("data", "a\0b", 'data: got "a\\u0000b", need a text without NUL'),
    ("data", "\ud800", 'data: got "\\ud800", need a text without'),
    ("out", "", 'out: got "", need a folder'),
    ("study", "a/b", 'study: got "a/b", need a-z, 0-9'),
    ("study", "a" * 101, "100 at most"),
    ("study", "reference", "study: reference is taken"),
    ("source", "ddti", 'source: got "ddti", need one of phantom, tg3k, folder'),
    ("resize", "round", "resize: got"),
    ("mend", ["text", "text"], 'mend: got ["text", "text"], need a list of 0 or more, none twice'),
    ("models", [], "models: got [], need a list of 1 or more"),
    ("models", ["unet", "unet"], "none twice"),
    ("models", ["Unet 2"], 'models: got ["Unet 2"], need a list'),
    ("model", "2cool", 'model: got "2cool", need a name: a-z first'),
    ("protocols", ["by_frame"], "each one of random, reported, official, grouped"),
    ("protocol", "by_frame", 'protocol: got "by_frame", need one of random'),
    ("run_folds", [4], "run_folds: got [4], but folds: 4 has only 0 to 3"),
    ("run_folds", [0, 0], "run_folds: got [0, 0], need"),
    ("fold", -1, "fold: got -1, need a whole number, 0 to 9999"),
    ("seeds", 0, "seeds: got 0, need a list of 1 or more"),
    ("seeds", [[0]], "seeds: got [[0]], need a list"),
    ("seeds", DEEP, "seeds: got list that cannot be shown, need a list"),
    ("seeds", list(range(2000)), "seeds: 2000 of them, 3 models and 2 splits make 12000 runs"),
    ("seed", 2**32, "seed: got 4294967296, need a whole number, 0 to 4294967295"),
    ("selection", "best", 'selection: got "best", need one of last, val'),
    ("augment", "blur", 'augment: got "blur", need one of none, standard'),
    ("precision", "half", 'precision: got "half", need one of auto, fp32, bf16, fp16'),
    ("device", "gpu", 'device: got "gpu", need one of auto, cpu, cuda, mps'),
    ("val_share", 0.5, "val_share: got 0.5, need a number"),
]
LIMITS = {  # a step below the range, its least, its most, a step above
    "phantom_sweeps": (0, 1, 100, 101), "phantom_frames": (0, 1, 1000, 1001),
    "phantom_seed": (-1, 0, 2**32 - 1, 2**32), "size": (15, 16, 4096, 4097),
    "width": (-1, 0, 512, 513), "folds": (1, 2, 10_000, 10_001), "epochs": (0, 1, 10**5, 10**5 + 1),
    "batch_size": (0, 1, 65_536, 65_537), "lr": (1e-13, 1e-12, 1e12, 1.1e12),
    "threshold": (0, 0.01, 0.99, 1), "tolerance_px": (0, 1e-6, 4096, 4096.5),
    "delta": (-0.1, 0, 1, 1.1), "resamples": (99, 100, 100_000, 100_001),
    "threads": (-1, 0, 1024, 1025), "budget_minutes": (-1, 0, 100_000, 100_001),
}  # fmt: skip
BAD += [(k, limits[side], f"{k}: got {limits[side]}, need") for k, limits in LIMITS.items()
        for side in (0, 3)]  # fmt: skip
TOGETHER = [  # settings of a study or a notebook, each allowed, that do not go together
    ({"source": "tg3k"}, "data: is empty, source tg3k needs its folder"),
    ({"data": "x"}, "data: phantoms take none"),
    ({"source": "folder", "data": "auto"}, "data: auto finds TG3K's release"),
    ({"source": "tg3k", "data": "kaggle:a/b"}, "need kaggle:owner/slug/version"),
]
RANDOM = {"protocols": ["reported", "random", "grouped"]}
OF_STUDY = [
    ({"protocols": ["reported"], "selection": "val"}, "protocol reported needs random and grouped"),
    (RANDOM, "reported needs val beside"),
    (RANDOM | {"selection": "val", "mend": []}, "mend: got [], but protocol reported needs text"),
    (RANDOM | {"selection": "val", "augment": "standard"}, "protocol reported needs none beside"),
]
OF_NOTEBOOK = [
    ({"fold": 4}, "fold: got 4, but folds: 4 has only 0 to 3"),
    ({"protocol": "official", "fold": 1}, "fold: got 1, the official split is one"),
    ({"selection": "test"}, "protocol grouped needs last or val: only reported may take test"),
    ({"protocol": "reported"}, "protocol reported needs test"),
    ({"selection": "val", "val_share": 0.0}, 'selection "val" needs it above 0'),
    ({"phantom_sweeps": 90, "unseen_sweeps": 11}, "unseen_sweeps: with phantom_sweeps 101"),
]


def by_file(values, tmp_path, **_):
    lines = [x for x in DEMO.read_text("utf-8").splitlines() if x.split(":")[0] not in values]
    for key, value in values.items():
        text = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
        lines.append(f"{json.dumps(key)}: {text}")
    (tmp_path / "study.yaml").write_text("\n".join(lines), "utf-8")
    settings.read_study([tmp_path / "study.yaml"])


def by_command_line(values, **_):
    settings.read_study([DEMO], values)


def notebook_of(values) -> str | None:
    """The notebook that takes these keys, 3-train for those that nobody knows."""
    known = {key for key in values if key in settings.Parameters.model_fields}
    names = sorted(DEFAULTS, key=lambda name: name != "3-train")
    return next((name for name in names if known <= DEFAULTS[name].keys()), None)


def by_runner(values, tmp_path, capsys, **_):
    notebook = NOTEBOOKS[notebook_of(values)]
    out = tmp_path / "out.ipynb"
    assert runner.run_notebook(notebook, out, values) == runner.BAD_PARAMETERS
    assert not list(tmp_path.iterdir())
    raise ValueError(capsys.readouterr().err.removeprefix(f"error: {notebook.name}: ").strip())


def by_kernel(values, monkeypatch, edited=False, **_):
    """As papermill leaves a kernel: the parameters cell has run, and one that it injected."""
    import IPython

    notebook = notebook_of(values)
    cells = json.loads(NOTEBOOKS[notebook].read_text("utf-8"))["cells"]
    own = next("".join(c["source"]) for c in cells if c["id"] == "parameters")
    injected = "# Parameters\n" + "".join(f"{key} = 0\n" for key in values)
    ran = ["", own] if edited else ["", own, injected]
    space = DEFAULTS[notebook] | values | {"In": [*ran, "platforms.start()"]}
    shell = SimpleNamespace(user_ns=space, transform_cell=str)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    parameters.check_cells()


def by_browser(values, **how):
    """The parameters cell, edited by hand."""
    by_kernel(values, edited=True, **how)


def takes(way, key, value) -> bool:
    if way in (by_runner, by_kernel, by_browser):
        known = key in settings.Parameters.model_fields or way is not by_browser
        return known and key.isprintable() and notebook_of({key: value}) is not None
    only_notebooks = key in settings.Parameters.model_fields.keys() - settings.Study.model_fields
    # a file refuses the others by line, not by key
    return not only_notebooks and (way is by_command_line or value not in (DEEP, "\ud800"))


@pytest.mark.parametrize("way", [by_file, by_command_line, by_runner, by_kernel, by_browser])
def test_bad_values_are_refused_by_name_whichever_way_they_come(way, tmp_path, capsys, monkeypatch):
    rows = [({key: value}, words) for key, value, words in BAD if takes(way, key, value)]
    rows += TOGETHER + (OF_STUDY if way in (by_file, by_command_line) else OF_NOTEBOOK)
    for values, words in rows:
        with pytest.raises(ValueError, match=r"\w") as caught:
            way(values, tmp_path=tmp_path, capsys=capsys, monkeypatch=monkeypatch)
        message = str(caught.value)
        assert words in message, (values, message)
        assert len(message.splitlines()) == 1, message
        assert message.isprintable()
        assert len(message) < 900
        (tmp_path / "study.yaml").unlink(missing_ok=True)
    assert len(rows) > 50


def test_all_problems_come_at_once_and_a_workflow_does_not_start(tmp_path):
    pytest.importorskip("snakemake")
    last = {key: (value, words) for key, value, words in BAD if key in settings.Study.model_fields}
    del last["study"], last["seeds"], last["run_folds"]
    last["models"] = (["Unet 2"], 'models: got ["Unet 2"]')
    last["data"] = ("a\0b", "data: got")
    text = re.sub(r"(?m)^lr:.*$", "", DEMO.read_text("utf-8"))
    for key, (value, _) in last.items():
        text = re.sub(rf"(?m)^{key}:.*$", "", text) + f"{key}: {json.dumps(value)}\n"
    (tmp_path / "bad.yaml").write_text(text, "utf-8")
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", tmp_path / "bad.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    for _, words in last.values():
        assert words in done.stderr
    check = [sys.executable, "-m", "thyroid_lib.study.runner", "check", tmp_path / "bad.yaml"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, len(last))


PAPERMILL = [
    (["-p", "epoch", "3"], "epoch: unknown (did you mean epochs?)"),
    (["-p", "tensorboard", "false"], 'tensorboard: got "false", need true or false'),
    (["-y", "lr: 1e-3"], 'lr: got "1e-3", need a number, at least 1e-12 and at most 1e+12: write'),
]


@pytest.mark.parametrize(("given", "words"), PAPERMILL)
def test_plain_papermill_refuses_before_any_work(given, words, tmp_path):
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", NOTEBOOKS["3-train"], out, *given]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"THYROID_RESULTS": str(tmp_path / "results")},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"ValueError: {words}" in done.stderr
    assert list(tmp_path.iterdir()) == [out]


FILES = {  # what is done to the demo's text -> the words of the one line
    "+lr: 1.0e-2": ["study.yaml, line", 'duplicate key "lr"'],
    "=- epochs\n- 3": ["study.yaml: need lines of `key: value`"],
    "=# nothing": ["study.yaml: need lines of `key: value`"],
    "seeds=[0, 1": ["study.yaml, line"],
    "+\tlr: 1.0": ["study.yaml, line"],
    "+1: 1": ["1: unknown; there are: study"],
    "lr=": ["lr: got null"],
    "lr=.nan": ["lr: got NaN, need"],
    "epochs=1:30": ['epochs: got "1:30", need a whole number'],
    'epochs="8"': ['epochs: got "8", need a whole number, 1 to 100000: write 8'],
    "threads=yes": ['threads: got "yes", need a whole number'],
    "study=2026-01-15": ['study: got "2026-01-15", need', ': write "2026-01-15"'],
    "study=2026-99-99": ["study.yaml: month must be"],
    "epochs=!!int ''": ["study.yaml, line", "write plain values"],
    "models=&a [*a]": ["study.yaml, line", "write plain values"],
    "+<<: {lr: 1.0}": ["study.yaml, line", "write plain values"],
    "=%YAML 1.1\n---\nlr: 010": ["study.yaml, line", "write plain values"],
    "models={2026-01-15: 1}": ["models: got dict that cannot be shown, need a list"],
    "+# \x01": ["study.yaml: special characters are not allowed"],
    "epochs=" + "9" * 5000: ["study.yaml: ", "digits"],
    "models=" + "[" * 400 + "]" * 400: ["models: got [[[", "need a list"],
    'data="\\ud800"': ['data: got "\\ud800", need a text'],
    "-lr": ["lr: is missing, need a number"],
}


@pytest.mark.parametrize("fault", FILES, ids=range(len(FILES)))
def test_each_fault_of_a_file_is_one_line(fault, tmp_path):
    text, (key, sep, value) = DEMO.read_text("utf-8"), fault.partition("=")
    if fault[0] in "+=":
        text = text * (fault[0] == "+") + fault[1:] + "\n"
    else:
        new = f"{key}: {value}" if sep else "# gone"
        text = re.sub(rf"(?m)^{key.lstrip('-')}:.*$", lambda _: new, text)
    (tmp_path / "study.yaml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"\w") as caught:
        settings.read_study([tmp_path / "study.yaml"])
    message = str(caught.value)
    assert all(words in message for words in FILES[fault]), message
    assert len(message.splitlines()) == 1


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: cannot be read"):
        settings.read_study([tmp_path / "none.yaml"])
    (tmp_path / "latin.yaml").write_bytes(b"study: \xe4\n")
    with pytest.raises(ValueError, match=r"latin\.yaml: cannot be read"):
        settings.read_study([tmp_path / "latin.yaml"])


def test_yaml_is_read_as_it_is_meant(tmp_path):
    numbers = {"lr": {"1e-3": 1e-3, "1": 1.0}, "epochs": {"010": 10, "0x10": 16, "1_000": 1000}}
    for key, texts in numbers.items():
        for text, meant in texts.items():
            file = tmp_path / "study.yaml"
            file.write_text(
                re.sub(rf"(?m)^{key}:.*$", f"{key}: {text}", DEMO.read_text("utf-8")), "utf-8"
            )
            value = settings.read_study([file])[key]
            assert (value, type(value)) == (meant, type(meant))


def test_a_command_lines_types_become_those_of_the_file():
    # as snakemake --config lr=1e-3 seeds=[0,1] mend=[] data= models=[unet] study=7 gives them
    given = {"lr": 0.001, "seeds": ["0", "1"], "mend": "[]", "data": None, "models": ["unet"]}
    config = settings.read_study([DEMO], given | {"study": 7, "budget_minutes": 3})
    assert (config["seeds"], config["mend"], config["data"]) == ([0, 1], [], "")
    assert (config["study"], config["models"], config["budget_minutes"]) == ("7", ["unet"], 3.0)
    for key, value in (("study", 1.5), ("study", True), ("models", "unet")):  # 1.5 may be 1.50
        with pytest.raises(ValueError, match=f"^{key}: got"):
            settings.read_study([DEMO], {key: value})


def test_limits_and_right_parameters_are_allowed():
    for key, (_, least, most, _) in LIMITS.items():
        for value in (least, most):
            settings.check_study(STUDY | {key: value})
    for fine in (
        {}, {"protocol": "reported", "selection": "test"}, {"val_share": 0}, {"fold": 3},
        {"protocol": "random", "fold": 7}, {"protocol": "official"}, {"seed": 2**32 - 1}, {"lr": 1},
    ):  # fmt: skip
        parameters.check(fine, DEFAULTS["3-train"])
    for defaults in DEFAULTS.values():
        parameters.check(defaults, defaults)


def test_the_wings_have_the_choices_that_settings_name():
    from thyroid_lib.data import frames, locate, splits
    from thyroid_lib.models import MODELS, registry
    from thyroid_lib.train import augment, recipe

    assert tuple(MODELS) == settings.NETWORKS
    assert tuple(splits.PROTOCOLS) == settings.PROTOCOLS
    assert tuple(splits.LEAKY) == settings.LEAKY
    assert tuple(frames.MENDS) == settings.MENDS
    assert tuple(augment.AUGMENTS) == settings.AUGMENTS
    assert tuple(recipe.SELECTIONS) == settings.SELECTIONS
    assert tuple(registry.PRECISIONS) == settings.PRECISIONS
    assert locate.DATASET.pattern == settings.KAGGLE.pattern


def test_every_notebook_and_study_explains_a_key_in_the_words_of_the_class():
    fields = settings.Parameters.model_fields
    for path in NOTEBOOKS.values():
        cells = json.loads(path.read_text("utf-8"))["cells"]
        lines = next("".join(c["source"]) for c in cells if c["id"] == "parameters").splitlines()
        assert lines[0].startswith(f"{parameters.HEAD} of ")
        for line in lines[1:]:
            name, comment = re.fullmatch(r"(\w+) = .+?  # (.+)", line).groups()
            assert comment.startswith(fields[name].description), line
    for path in (ROOT / "parameters").glob("*.yaml"):
        for name, comment in re.findall(r"(?m)^(\w+): .*?  # (.+)$", path.read_text("utf-8")):
            assert comment.startswith(fields[name].description), (path.name, name)


def test_a_step_takes_its_keys_of_the_study():
    train = settings.step_settings(STUDY, "train", selection="test", model="unet")
    assert train["selection"] == "test"
    assert train.keys() <= DEFAULTS["3-train"].keys()
    for step, notebook in zip(
        ("preprocess", "audit", "compare", "replication", "deploy"), list(DEFAULTS)[1:3]
        + list(DEFAULTS)[4:], strict=True,
    ):  # fmt: skip
        taken = settings.step_settings(STUDY, step)
        assert taken
        assert taken.keys() <= DEFAULTS[notebook].keys(), step
    assert settings.read_study([DEMO], None) == STUDY
    with pytest.raises(ValueError, match='step: got "trian"'):
        settings.step_settings(STUDY, "trian")
    assert {"lr", "width"} <= set(settings.TRAINING) <= set(settings.SHARED) >= {"size", "folds"}


def test_runs_are_listed_in_order():
    runs = settings.list_runs(STUDY | {"models": ["unet", "segnet"], "seeds": [0, 1]})
    assert list(runs)[:3] == [
        "unet-random-fold0-seed0", "segnet-random-fold0-seed0", "unet-random-fold0-seed1"
    ]  # fmt: skip
    assert len(runs) == 8


def test_networks_must_exist():
    ready.check_networks(["unet", "resunet_reported"])
    with pytest.raises(ValueError, match=r"unett: unknown \(did you mean unet\?\).*architectures"):
        ready.check_networks(["unett"])


def test_data_are_known_by_names_and_sizes(tmp_path):
    assert ready.list_data("") == ready.list_data("auto") == ""
    (tmp_path / "loop").symlink_to("loop")
    before = ready.list_data(str(tmp_path))
    (tmp_path / "x\udcff.png").write_bytes(b"1")  # no text: the store sets it aside
    assert len(ready.list_data(str(tmp_path))) == 64 != before
    for data in ("x" * 5000, "~nobody-of-this-name/x", str(tmp_path / "loop"), "a\nb"):
        with pytest.raises(ValueError, match=r"^data: nothing is at ") as caught:
            ready.list_data(data)
        assert len(str(caught.value).splitlines()) == 1


def test_importing_settings_is_light():
    code = (
        "import sys, thyroid_lib.settings; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_odd_settings_are_refused_by_key_or_can_be_used():
    pytest.importorskip("hypothesis")
    from hypothesis import given
    from hypothesis import settings as how
    from hypothesis import strategies as st

    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
    value = st.recursive(leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(leaf, x))
    names = st.sampled_from([*settings.Study.model_fields, "epoch", "", "x" * 3000]) | leaf

    @how(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(st.dictionaries(names, value, min_size=1, max_size=3), st.booleans())
    def try_each(changes, by_command_line):
        try:
            if by_command_line:
                config = settings.read_study([DEMO], changes)
            else:
                config = settings.check_study(STUDY | changes)
        except ValueError as error:
            for line in str(error).split("\n"):
                assert line.isprintable()
                assert re.search(": (got|unknown|is|phantoms)", line), line
        else:
            assert json.loads(json.dumps(config, allow_nan=False)) == config
            assert [type(config[key]) for key in STUDY] == [type(each) for each in STUDY.values()]

    try_each()


EDITS = {  # one more training setting: file -> pattern of a line, and what follows it
    "thyroid_lib/settings.py": (
        r"\n    lr: .*",
        '\n    weight_decay: _number(ge=0, le=1) = _recipe("weight decay of Adam", default=0.0)',
    ),
    "notebooks/3-train.ipynb": (
        r'\n +"lr = [^\n]*',
        '\n    "weight_decay = 0.0  # weight decay of Adam\\n",',
    ),
    "thyroid_lib/train/recipe.py": (r"\n    lr: float[^\n]*", "\n    weight_decay: float = 0.0,"),
    "thyroid_lib/train/recipe.py ": (r"Adam\([^\n]*?lr=lr,", " weight_decay=weight_decay,"),
}


@pytest.mark.slow
def test_one_more_training_setting_takes_four_edits(tmp_path):
    from thyroid_lib.train import recipe

    if not hasattr(recipe, "RECIPE"):
        pytest.skip("the recipe does not list its settings")
    for part in ("notebooks", "parameters", "thyroid_lib", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, tmp_path / part)
    for name, (line, more) in EDITS.items():
        file = tmp_path / name.strip()
        text, found = re.subn(
            line, lambda hit, m=more: hit[0] + m, file.read_text("utf-8"), count=1
        )
        assert found == 1, name
        ast.parse(text) if name.strip().endswith(".py") else json.loads(text)
        file.write_text(text, "utf-8")
    code = (
        "import json, sys\n"
        "from thyroid_lib import settings\n"
        "from thyroid_lib.study import runner\n"
        "tiny = {'weight_decay': 0.25, 'epochs': 1, 'width': 2, 'folds': 2, 'models': ['unet']}\n"
        "study = settings.read_study(['parameters/demo.yaml'], tiny)\n"
        "given = settings.step_settings(study, 'train', model='unet', out='results/t/run')\n"
        "sys.exit(runner.run_notebook('notebooks/3-train.ipynb', 'out.ipynb', given))\n"
    )
    clean = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "results/t/run/run.json").read_text("utf-8"))
    assert about["weight_decay"] == 0.25

"""Settings: one table of bad values for every way in, and the one class that all of them read."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_study import copy_project

from thyroid_lib import settings
from thyroid_lib.study import parameters, runner

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "parameters" / "demo.yaml"
TEXT = DEMO.read_text("utf-8")
STUDY = settings.read_study([DEMO])
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
DEFAULTS = {name: parameters.parameter_defaults(path) for name, path in NOTEBOOKS.items()}
PARAMETER_CELLS = {
    name: "".join(cell["source"])
    for name, path in NOTEBOOKS.items()
    for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["id"] == "parameters"
}  # fmt: skip
KNOWN, KEYS = settings.Parameters.model_fields, settings.Study.model_fields

# key, value, the words that its line of the message must have
BAD = [
    ("epoch", 3, "epoch: unknown (did you mean epochs?); there are: "),
    ("a\nb", 1, '"a\\nb": unknown'),
    ("epochs", "8 passes", 'epochs: got "8 passes", need a valid integer (passes over'),
    ("epochs", 8.5, "epochs: got 8.5, need a valid integer"),
    ("threads", True, "threads: got true, need a valid integer"),
    ("lr", "fast", 'lr: got "fast", need a valid number'),
    ("lr", math.nan, "lr: got NaN, need a finite number (learning"),
    ("lr", 10**400, "lr: got 1000"),
    ("data", "a\0b", 'data: got "a\\u0000b", need a text without NUL'),
    ("out", "", 'out: got "", need a folder'),
    ("study", "a/b", 'study: got "a/b", need a-z, 0-9'),
    ("study", "reference", "study: reference is taken"),
    ("source", "ddti", "source: got \"ddti\", need 'phantom', 'tg3k' or 'folder'"),
    ("mend", ["text", "text"], 'mend: got ["text", "text"], no value may stand twice'),
    ("model", "2cool", 'model: got "2cool", need a-z first'),
    ("run_folds", [4], "run_folds: got [4], but folds: 4 has only 0 to 3"),
    ("classes", {"Low risk": "1", "high": "2"}, "need 2 to 7, named by a-z, 0-9 and _"),
    ("classes", {"gland": ["1"], "nodule": ["2", "3"]}, "need 2 to 7, named by"),
    ("classes", {"background": "0", "nodule": "1"}, "need 2 to 7, named by"),
    ("classes", dict.fromkeys("abcdefgh", "1"), "need 2 to 7, named by"),
    ("seeds", 0, "seeds: got 0, need a valid list"),
    ("seeds", [[0]], "seeds: got [[0]], need a valid integer"),
    ("seed", 2**32, "seed: got 4294967296, need less than 4294967296"),
]
LIMITS = {  # a step below the range, its least, its most, a step above
    "phantom_seed": (-1, 0, 2**32 - 1, 2**32), "size": (15, 16, 4096, 4097),
    "folds": (1, 2, 999, 1000), "lr": (1e-13, 1e-12, 1e12, 1.1e12), "delta": (-0.1, 0, 1, 1.1),
    "threshold": (0, 0.01, 0.99, 1), "budget_minutes": (-1, 0, 100_000, 100_001),
}  # fmt: skip
BAD += [(k, v[side], f"{k}: got {v[side]}, need") for k, v in LIMITS.items() for side in (0, 3)]
TOGETHER = [  # settings of a study or a notebook, each allowed, that do not go together
    ({"source": "tg3k"}, "data: is empty, source tg3k needs its folder"),
    ({"data": "x"}, "data: phantoms take none"),
    ({"source": "folder", "data": "auto"}, "data: auto finds TG3K's release"),
]
ENTRY = {"dataset": "a", "source": "folder", "data": "x"}
TOGETHER += [
    ({"source": []}, "source: got [], the list is empty"),
    ({"source": [3]}, "entry 1: need a mapping: {dataset: a, source: folder, data: path/to/a}"),
    ({"source": [ENTRY | {"group": "x"}]}, "entry 1: group: unknown (did you mean groups?)"),
    ({"source": [ENTRY, {"source": "phantom"}]}, "entry 2: dataset: is missing"),
    ({"source": [ENTRY | {"dataset": "B 2"}]}, 'entry 1: dataset: got "B 2", need a-z, 0-9'),
    ({"source": [ENTRY | {"source": "tg3k", "data": ""}]}, "entry 1: data: is empty, source tg3k"),
    ({"source": [ENTRY, ENTRY]}, "several entries have dataset: a, need one each"),
    ({"source": [ENTRY], "data": "x"}, "data: is one of each entry of source, write it there"),
    ({"source": [ENTRY], "masks": "x"}, "masks: is one of each entry of source, write it there"),
]
RANDOM = {"protocols": ["reported", "random", "grouped"]}
OUTSIDE = {"source": [ENTRY], "protocols": ["external"]}
OF_STUDY = [
    ({"protocols": ["reported"], "selection": "val"}, "protocol reported needs random and grouped"),
    (RANDOM, "reported needs val beside"),
    ({"protocols": ["external"]}, "external: is empty, protocol external needs data sets"),
    ({"external": ["b"]}, 'external: got ["b"], but protocols has no external to test them'),
    (OUTSIDE | {"external": ["c"]}, 'external: got ["c"], the data sets are a'),
    (OUTSIDE | {"external": ["a"]}, 'external: got ["a"], none is left to train on'),
    (RANDOM | {"selection": "val", "mend": []}, "mend: got [], but protocol reported needs text"),
    (RANDOM | {"selection": "val", "augment": "standard"}, "protocol reported needs none beside"),
]
STRONG = {"model": "unet", "lr": 1e-3, "augment": {"flip": 0.5, "gamma": 1}, "val_share": 0}
OF_STUDY += [  # of variants
    ({"models": []}, "models: is empty, and so is variants: need one network or more"),
    ({"variants": {"a-b": STRONG}}, "variants: got {", "a-b: need a-z first, then a-z, 0-9 and _"),
    ({"variants": ["a"]}, 'got ["a"], need a mapping: {name: {model: unet, lr: 1.0e-3}}'),
    ({"variants": {"a": 3}}, 'got {"a": 3}, a: need a mapping: {model: unet, lr: 1.0e-3}'),
    ({"variants": {"a": {"lr": 1}}}, "a: model: is missing (network to train)"),
    ({"variants": {"a": STRONG | {"epoch": 3}}}, "a: epoch: unknown (did you mean epochs?)"),
    ({"variants": {"a": STRONG | {"threads": 2}}}, "a: threads: unknown"),
    ({"variants": {"a": STRONG | {"augment": {"flipp": 1}}}}, "need none or standard, or prob"),
    ({"variants": {"a": STRONG | {"augment": {"flip": 1.1}}}}, "a: augment: got "),
    ({"variants": {"unet": STRONG}}, "variants: unet: the name stands twice, rename one"),
    ({"variants": {"a": STRONG | {"selection": "val"}}}, "selection val needs a val_share above 0"),
    ({"variants": {"a": STRONG | {"protocols": ["official"]}}}, "the study have no official"),
    ({"ensembles": {"all": ["unet", "b"]}}, "ensembles: all: no variant b, there are unet, segnet"),
    ({"variants": {"a": {"model": "unet", "pretrained": "imagenet"}}}, "unet has no encoder: need"),
    ({"ensembles": {"unet": ["unet"]}}, "unet: the name stands twice"),
    (
        {
            "variants": {"a": {"model": "unet", "protocols": ["random"]}},
            "ensembles": {"e": ["a", "unet"]},
        },
        "ensembles: e: its variants run under different protocols, need equal ones",
    ),
    ({"ensembles": {"E-1": ["unet"]}}, 'got {"E-1": ["unet"]}, need {name: [variants]}, each once'),
    ({"ensembles": {"e": "unet"}}, "need {name: [variants]}"),
    (
        RANDOM | {"selection": "val", "variants": {"a": {"model": "unet", "lr": 1}}},
        "a: protocol reported takes the study's recipe alone, not lr: give it protocols without",
    ),
    (
        RANDOM
        | {"selection": "val", "variants": {"a": {"model": "unet", "protocols": ["reported"]}}},
        "variants: a: protocol reported needs random and grouped beside",
    ),
]
OF_STUDY = [(values, words) for values, *each in OF_STUDY for words in each]
OF_NOTEBOOK = [
    ({"models": []}, "models: got [], list should have at least 1 item"),
    ({"selection": "test"}, "protocol grouped needs last or val: only reported may take test"),
    ({"protocol": "reported"}, "protocol reported needs test"),
]
FILES = {  # what is done to the demo's text -> the words of the one line
    "+lr: 1.0e-2": r"study\.yaml, line \d+: .*duplicate key .lr",
    "=- epochs\n- 3": r"study\.yaml: need lines of `key: value`",
    "=# nothing": r"study\.yaml: need lines of `key: value`",
    "seeds=[0, 1": r"study\.yaml, line",
    "+1: 1": r"1: unknown; there are: study",
    "lr=": r"lr: got null",
    'epochs="8"': r'epochs: got "8", need a valid integer: write 8',
    "study=2026-99-99": r"study\.yaml: month must be",
    "models=&a [*a]": r"models: got ",
    "models={2026-01-15: 1}": r"models: got \{.*\}, need a valid list",
    "+# \x01": r"study\.yaml: .*special characters are not allowed",
    "epochs=" + "9" * 5000: r"study\.yaml: .*digits",
    'data="\\ud800"': r'data: got "\\ud800", need a text',
    "-lr": r"lr: is missing \(learning rate",
}
# One more training setting, in the words of docs/changing.md: a file, a line, what follows it.
EDITS = [
    ("thyroid_lib/settings.py", r"\n    lr: .*",
     'smoothing: number(ge=0, lt=1) = _recipe("doubt of masks, in the loss", default=0.0)'),
    ("notebooks/3-train.ipynb", r'\n +"lr = [^\n]*',
     "smoothing = 0.0  # doubt of masks, in the loss"),
    ("thyroid_lib/train/recipe.py", r"\n    lr: float[^\n]*", "smoothing: float = 0.0,"),
    ("thyroid_lib/train/recipe.py", r"\n    def step[^\n]*\n[^\n]*",
     "    mask = mask * (1 - smoothing) + smoothing / 2"),
]  # fmt: skip
TRAIN = """
import sys
from pathlib import Path
from thyroid_lib import settings
from thyroid_lib.compare.tables import load_runs
from thyroid_lib.study import runner
more = dict(word.split("=") for word in sys.argv[2:])
tiny = {"epochs": 1, "width": 2, "folds": 2, "models": ["unet"]} | more
study = settings.read_study(["parameters/demo.yaml"], tiny)
given = settings.step_settings(study, "train", model="unet", out="results/t/run")
for committed in Path(sys.argv[1]).glob("*/runs"):
    assert len(load_runs([run for run in committed.iterdir() if "-reported-" not in run.name]).runs)
sys.exit(runner.run_notebook("notebooks/3-train.ipynb", "out.ipynb", given))
"""


def by_file(values, tmp_path, **_):
    lines = [line for line in TEXT.splitlines() if line.split(":")[0] not in values]
    for key, value in values.items():
        text = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
        lines.append(f"{json.dumps(key)}: {text}")
    (tmp_path / "study.yaml").write_text("\n".join(lines), "utf-8")
    settings.read_study([tmp_path / "study.yaml"])


def by_command_line(values, **_):
    settings.read_study([DEMO], values)


def notebook_of(values) -> str | None:
    """The notebook that takes these keys, 3-train for those that nobody knows."""
    names = sorted(DEFAULTS, key=lambda name: name != "3-train")
    return next((name for name in names if values.keys() & KNOWN <= DEFAULTS[name].keys()), None)


def by_runner(values, tmp_path, capsys, **_):
    notebook = NOTEBOOKS[notebook_of(values)]
    assert runner.run_notebook(notebook, tmp_path / "out.ipynb", values) == runner.BAD_PARAMETERS
    raise ValueError(capsys.readouterr().err.removeprefix(f"error: {notebook.name}: ").strip())


def by_kernel(values, monkeypatch, injected=True, **_):
    """As papermill leaves a kernel: the parameters cell has run, and one that it injected."""
    import IPython

    notebook = notebook_of(values)
    ran = ["", PARAMETER_CELLS[notebook]]
    if injected:
        ran.append("# Parameters\n" + "".join(f"{key} = 0\n" for key in values))
    space = DEFAULTS[notebook] | values | {"In": [*ran, "platforms.start()"]}
    shell = SimpleNamespace(user_ns=space, transform_cell=str)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    parameters.check_cells()


def by_browser(values, **how):
    """The parameters cell, edited by hand."""
    by_kernel(values, injected=False, **how)


def takes(way, key) -> bool:
    if way in (by_file, by_command_line):
        return key in KEYS or key not in KNOWN
    known = key in KNOWN or way is not by_browser
    return known and key.isprintable() and notebook_of({key: 0}) is not None


@pytest.mark.parametrize("way", [by_file, by_command_line, by_runner, by_kernel, by_browser])
def test_bad_values_are_refused_by_name_whichever_way_they_come(way, tmp_path, capsys, monkeypatch):
    rows = [({key: value}, words) for key, value, words in BAD if takes(way, key)]
    rows += TOGETHER + (OF_STUDY if way in (by_file, by_command_line) else OF_NOTEBOOK)
    for values, words in rows:
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            way(values, tmp_path=tmp_path, capsys=capsys, monkeypatch=monkeypatch)
        assert str(caught.value).isprintable()  # one line
    assert len(rows) > 20


@pytest.mark.study
def test_all_problems_come_at_once_and_a_workflow_does_not_start(tmp_path):
    pytest.importorskip("snakemake")
    last = {key: (value, words) for key, value, words in BAD if key in KEYS}
    del last["study"], last["run_folds"]
    text = re.sub(r"(?m)^lr:.*$", "", TEXT)
    for key, (value, _) in last.items():
        text = re.sub(rf"(?m)^{key}:.*$", "", text) + f"{key}: {json.dumps(value)}\n"
    (tmp_path / "bad.yaml").write_text(text, "utf-8")
    for command in (["snakemake", "-n", "--configfile"], ["thyroid_lib.study.runner", "check"]):
        words = [sys.executable, "-m", *command, tmp_path / "bad.yaml"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        assert all(words in done.stderr for _, words in last.values())


def test_a_missing_file_of_weights_is_named_before_any_work():
    own = {"model": "resunet:tf_efficientnet_lite0", "pretrained": "none.pt"}
    config = settings.check_study(STUDY | {"variants": {"lite0": own}})
    with pytest.raises(ValueError, match=r"variants: lite0: pretrained: there is no file none\.pt"):
        parameters.check_variants(config)
    parameters.check_variants(settings.check_study(STUDY))


@pytest.mark.study
def test_plain_papermill_refuses_before_any_work(tmp_path):
    command = [sys.executable, "-m", "papermill", NOTEBOOKS["3-train"], out := tmp_path / "o.ipynb"]
    command += ["-p", "epoch", "3", "-y", "lr: 1e-3"]
    env = os.environ | {"THYROID_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert "ValueError: epoch: unknown (did you mean epochs?)" in done.stderr
    assert 'lr: got "1e-3", need a valid number: write 0.001' in done.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_each_fault_of_a_file_is_one_line(tmp_path):
    path = tmp_path / "study.yaml"
    for fault, words in FILES.items():
        text, (key, sep, value) = TEXT, fault.partition("=")
        if fault[0] in "+=":
            text = text * (fault[0] == "+") + fault[1:] + "\n"
        else:
            new = f"{key}: {value}" if sep else "# gone"
            text = re.sub(rf"(?m)^{key.lstrip('-')}:.*$", lambda _, new=new: new, text)
        path.write_text(text, "utf-8")
        with pytest.raises(ValueError, match=f"^{words}") as caught:
            settings.read_study([path])
        assert len(str(caught.value).splitlines()) == 1, fault
    path.write_bytes(b"study: \xe4\n")
    for unread in (path, tmp_path / "none.yaml"):
        with pytest.raises(ValueError, match=rf"^{unread.stem}\.yaml: cannot be read"):
            settings.read_study([unread])


def test_yaml_is_read_as_it_is_meant(tmp_path):
    for key, text, meant in (
        ("lr", "1e-3", 1e-3), ("lr", "1", 1.0), ("epochs", "010", 10), ("epochs", "0x10", 16),
        ("epochs", "1_000", 1000), ("study", "2026-01-15", "2026-01-15"), ("study", "7", "7"),
    ):  # fmt: skip
        file = tmp_path / "study.yaml"
        file.write_text(re.sub(rf"(?m)^{key}:.*$", f"{key}: {text}", TEXT), "utf-8")
        value = settings.read_study([file])[key]
        assert (value, type(value)) == (meant, type(meant))


def test_a_command_lines_types_become_those_of_the_file():
    # as snakemake --config lr=1e-3 seeds=[0,1] mend=[] data= models=[unet] study=7 gives them
    given = {"lr": 0.001, "seeds": ["0", "1"], "mend": "[]", "data": None, "models": ["unet"]}
    config = settings.read_study([DEMO], given | {"study": 7, "budget_minutes": "3"})
    assert (config["seeds"], config["mend"], config["data"]) == ([0, 1], [], "")
    assert (config["study"], config["models"], config["budget_minutes"]) == ("7", ["unet"], 3.0)
    for key, value in (("study", 1.5), ("study", True), ("models", "unet")):  # 1.5 may be 1.50
        with pytest.raises(ValueError, match=f"^{key}: got"):
            settings.read_study([DEMO], {key: value})


def test_words_of_a_command_line_are_yaml_or_texts():
    words = ["lr=1e-3", "mend=[]", "masks=*_mask*.png", "data=", "groups=a:b=c"]
    read = {"lr": 0.001, "mend": [], "masks": "*_mask*.png", "data": None, "groups": "a:b=c"}
    assert settings.read_words(words) == read
    with pytest.raises(ValueError, match='--set: got "epochs", need key=value'):
        settings.read_words(["epochs"])


def test_limits_and_right_parameters_are_allowed():
    for key, (_, least, most, _) in LIMITS.items():
        for value in (least, most):
            settings.check_study(STUDY | {key: value})
    for fine in ({"protocol": "reported", "selection": "test"}, {"val_share": 0}, {"lr": 1}):
        parameters.check(fine, DEFAULTS["3-train"])
    for defaults in DEFAULTS.values():
        parameters.check({}, defaults)


def test_a_source_may_be_a_list_whose_entries_keep_what_they_name():
    entries = [ENTRY, {"dataset": "b", "source": "phantom", "phantom_seed": 3}]
    right = {"source": entries, "protocols": ["grouped", "external"], "external": ["b"]}
    config = settings.check_study(STUDY | right)
    assert config["source"] == entries
    assert config == settings.check_study(config)  # as a notebook checks it again
    runs = settings.list_runs(config | {"models": ["unet"], "seeds": [0], "run_folds": [0, 1]})
    assert list(runs) == [
        f"unet-{x}-seed0" for x in ("grouped-fold0", "grouped-fold1", "external-fold0")
    ]


def test_variants_run_with_their_own_settings_and_protocols():
    own = {"strong": STRONG, "fair": {"model": "resunet:a.b", "protocols": ["grouped"]}}
    config = settings.check_study(
        STUDY | {"models": ["resunet:A.b"], "variants": own, "seeds": [7]}
    )
    runs = settings.list_runs(config | {"run_folds": [0], "protocols": ["random", "grouped"]})
    where = {"protocol": "grouped", "fold": 0, "seed": 7}
    varied = {"variant": "strong", "varied": ["augment", "lr", "val_share"]}
    assert runs["strong-grouped-fold0-seed7"] == STRONG | varied | where
    plain = {"model": "resunet:a.b", "variant": "fair", "varied": []}
    assert runs["fair-grouped-fold0-seed7"] == plain | where
    assert "fair-random-fold0-seed7" not in runs
    assert runs["resunet_a_b-random-fold0-seed7"]["model"] == "resunet:A.b"
    given = settings.step_settings(config, "train", **runs["strong-grouped-fold0-seed7"])
    assert (given["lr"], given["epochs"], given["val_share"]) == (1e-3, STUDY["epochs"], 0)


def test_the_wings_have_the_choices_that_settings_name():
    from thyroid_lib.data import frames, splits
    from thyroid_lib.models import MODELS, registry

    assert tuple(MODELS) == settings.NETWORKS
    assert tuple(splits.PROTOCOLS) == settings.PROTOCOLS
    assert tuple(splits.LEAKY) == settings.LEAKY
    assert tuple(frames.MENDS) == settings.MENDS
    assert tuple(registry.PRECISIONS) == settings.PRECISIONS


def test_every_notebook_and_study_explains_a_key_in_the_words_of_the_class():
    lines = []
    for cell in PARAMETER_CELLS.values():
        head, *own = cell.split("\n")
        assert head.startswith(f"{parameters.HEAD} of ")
        form = r"# @markdown (.+)\n(\w+) = .+?  # @param (?:\{type:\"\w+\"\}|\[.+\])"  # of Colab
        forms, plain = re.findall(form, cell), re.findall(r"(?m)^(\w+) = .+?  # ([^@].+)$", cell)
        assert 2 * len(forms) + len(plain) == len(own)
        lines += [(name, comment) for comment, name in forms] + plain
    for path in (ROOT / "parameters").glob("*.yaml"):
        lines += re.findall(r"(?m)^(\w+): .*?  # (.+)$", path.read_text("utf-8"))
    for name, comment in lines:
        assert comment.startswith(KNOWN[name].description), name


def test_a_step_takes_its_keys_of_the_study():
    train = settings.step_settings(STUDY, "train", selection="test", model="unet")
    assert train["selection"] == "test"
    steps = "preprocess", "audit", "train", "compare", "replication", "deploy"
    notebooks = [name for name in DEFAULTS if name[0] in "123456"]
    for step, notebook in zip(steps, notebooks, strict=True):
        taken = settings.step_settings(STUDY, step).keys()
        assert set() < taken <= DEFAULTS[notebook].keys(), step
    assert {"lr", "width"} <= set(settings.TRAINING) <= set(settings.SHARED) >= {"size", "folds"}


def test_runs_are_listed_in_order_and_networks_must_exist():
    runs = list(settings.list_runs(STUDY | {"models": ["unet", "segnet"]}))
    order = "unet-random-fold0-seed0", "segnet-random-fold0-seed0", "unet-random-fold0-seed1"
    assert (tuple(runs[:3]), len(runs)) == (order, 8)
    with pytest.raises(ValueError, match=r"unett: unknown \(did you mean unet\?\).*architectures"):
        parameters.check_networks(["unett"])


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nbformat", None)
    settings.check_packages("deploy", False, "nbformat")
    with pytest.raises(ValueError, match="deploy: nbformat not installed: `pip install nbformat`"):
        settings.check_packages("deploy", True, "json", "nbformat")


def test_data_are_known_by_names_and_sizes(tmp_path):
    assert parameters.list_data("") == parameters.list_data("auto") == ""
    (tmp_path / "loop").symlink_to("loop")
    before = parameters.list_data(str(tmp_path))
    (tmp_path / "x\udcff.png").write_bytes(b"1")  # no text: the store sets it aside
    assert parameters.list_data(str(tmp_path)) != before
    for data in ("x" * 5000, "~nobody-of-this-name/x", str(tmp_path / "loop"), "a\nb"):
        with pytest.raises(ValueError, match=r"^data: nothing is at "):
            parameters.list_data(data)


def test_importing_settings_and_runner_is_light():
    heavy = {"torch", "pandas", "numpy", "papermill", "nbformat"}
    code = f"import sys, thyroid_lib.study.runner; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.study
def test_odd_settings_are_refused_by_key_or_can_be_used():
    pytest.importorskip("hypothesis")
    from hypothesis import given
    from hypothesis import settings as how
    from hypothesis import strategies as st

    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
    value = st.recursive(leaf, lambda x: st.lists(x, max_size=3) | st.dictionaries(leaf, x))
    names = st.sampled_from([*KEYS, "x" * 3000]) | leaf

    @how(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(st.dictionaries(names, value, min_size=1, max_size=3))
    def try_each(changes):
        for files, values in (([DEMO], changes), ([], STUDY | changes)):
            try:
                config = settings.read_study(files, values)
            except ValueError as error:
                for line in str(error).split("\n"):
                    assert line.isprintable()
                    assert re.search(": (got|unknown|is|phantoms|Field)", line), line
            else:
                assert json.loads(json.dumps(config, allow_nan=False)) == config
                assert [type(config[key]) for key in STUDY] == list(map(type, STUDY.values()))

    try_each()


@pytest.mark.slow
def test_one_more_training_setting_takes_four_edits(tmp_path):
    """Runs that are older have its default: they are compared, and none is trained again."""
    text = (ROOT / "docs" / "changing.md").read_text("utf-8")
    assert re.findall("`((?:smoothing|mask =)[^`]+)`", text) == [more.strip() for *_, more in EDITS]
    copy_project(tmp_path)
    clean = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}

    def train(*more: str) -> dict:
        command = [sys.executable, "-c", TRAIN, ROOT / "results" / "reference", *more]
        subprocess.run(command, cwd=tmp_path, env=clean, check=True)
        return json.loads((tmp_path / "results/t/run/run.json").read_text("utf-8"))

    assert train()["trained_epochs"] == 1
    for name, line, more in EDITS:
        text = (tmp_path / name).read_text("utf-8")
        more = json.dumps(more + "\n") + "," if name.endswith(".ipynb") else more
        text = re.sub(line, lambda hit, more=more: f"{hit[0]}\n    {more}", text, count=1)
        (tmp_path / name).write_text(text, "utf-8")
    trained = [train(), train("smoothing=0.25")]
    assert [(run["smoothing"], run["trained_epochs"]) for run in trained] == [(0, 0), (0.25, 1)]


def test_notebooks_that_read_masks_take_classes():
    for name, defaults in DEFAULTS.items():
        assert ("mask_values" in defaults) == ({"task", "classes"} <= set(defaults)), name


def test_no_notebook_scores_a_network_of_all_groups():
    given, defaults = {"protocol": "all"}, {"selection": "last", "tolerance_px": 2.0}
    with pytest.raises(ValueError, match="protocol: all tests no case: need one that does"):
        settings.check_parameters(given, defaults | {"protocol": "grouped"})

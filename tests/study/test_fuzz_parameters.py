"""Fuzz: odd settings by every way in, each refused by its name or fit to be used.

A study as a dict and as YAML, `--config` of Snakemake, a notebook's parameters and the text of
`--parameters`. The draws are the same on every machine; `conftest` prints the counts.
"""

import copy
import datetime
import io
import json
import math
import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fuzzing import attempt, limited

from thyroid_lib import settings as study
from thyroid_lib.data import frames, splits
from thyroid_lib.study import runner

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="no timer that ends a hang"
)

ROOT = Path(__file__).parents[2]
SETS_OF = {"studies": 300, "yaml": 250, "notebooks": 300, "texts": 150, "--config": 200}  # drawn
# without its comments, on which YAML spends most of the time
DEMO = re.sub(
    "(?m)^#.*\n|  #.*", "", (ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8")
)
STUDY = study.read_study([ROOT / "parameters" / "demo.yaml"])
ITSELF: list = [0]
ITSELF.append(ITSELF)
MANY: list = ["x"] * 10
for _ in range(7):
    MANY = [MANY] * 10  # hundred million texts, and no memory
ODD_VALUES = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**25, 10**400,
    16**5000, -(10**400), 0.0, -0.0, 0.5, 1.0, 1e-4, 1e-13, 5e-324, 1e308, math.inf, -math.inf,
    math.nan, "", "0", "1e-3", "unet", "grouped", "reported", "test", "a\nb", "a\0b", "\ud800",
    "甲状腺", "x" * 5000, "../..", "~nobody", "'", "{", [], [[]], [0], [1, 0], [0, 0], ["unet"],
    ["text"], ["unet", 1], [None], [math.nan], [2**64], [-1], list(range(3000)),
    ["random", "grouped"], ["reported"], ["reported", "random", "grouped"], ITSELF, MANY, {},
    {"a": 1}, {1: 2}, {(1, 2): 3}, (1, 2), {1}, b"x", datetime.date(2026, 1, 15), object(),
]  # fmt: skip
odd = (
    st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text() | st.lists(st.integers())
)
FITTING = {  # what may be right, and what lies just beyond
    "study": ["a", "a" * 100, "a" * 101], "source": ["phantom", "tg3k", "folder"],
    "data": ["", "x", "ä b"], "phantom_sweeps": [1, 100, 101], "phantom_frames": [1, 1000, 1001],
    "phantom_seed": [0, 2**32 - 1, 2**32], "size": [16, 4096, 15], "width": [0, 512, 513],
    "mend": [[], ["text"], ["holes", "specks"], ["text", "text"]],
    "folds": [2, 4, 10_000, 10_001], "run_folds": [[0], [3], [0, 1, 2, 3], [4]],
    "val_share": [1e-3, 0.4, 0, 0.5], "epochs": [1, 10**5, 0],
    "seeds": [[0], [2**32 - 1], list(range(1500)), list(range(1700))],
    "batch_size": [1, 65_536, 65_537], "lr": [1, 1e-12, 10, 11], "threshold": [0.1, 0.9, 1],
    "tolerance_px": [1, 1e-3, 0], "delta": [0, 1, 2], "resamples": [100, 100_000, 99],
    "threads": [0, 1024, 1025], "device": ["cpu", "cuda", "gpu"],
    "precision": ["fp32", "bf16", "half"], "augment": ["none", "standard", "blur"],
    "protocol": list(splits.PROTOCOLS), "selection": ["last", "val", "test"],
    "fold": [0, 1, 3, 4], "seed": [0, 7, 2**32 - 1, 2**32],
    "protocols": [["random"], ["grouped", "official"]], "phantom_text": [True, False],
    "pin_instructions": [True, False], "resize": ["letterbox"],
    "models": [["unet"], ["resunet", "segnet"]], "out": ["x"], "store": ["x"],
    "runs": [["x"]], "budget_minutes": [0, 0.5, 600], "tensorboard": [True, False],
    "deploy": [True, False],
    "unseen_sweeps": [1, 92, 93, 99, 100],
}  # fmt: skip


def odd_or_fitting(key):
    return odd | st.sampled_from(FITTING[key]) if key in FITTING else odd


KEYS = sorted(study.SCHEMA)
ODD_KEYS = ["epoch", "", "a\nb", "x" * 3000, "甲状腺", 1, None, math.nan, (1, 2), "<<"]


def names_of(keys):
    """How a message may begin: a key as it is, or in the words of JSON where that is no line."""
    return tuple(f"{study._named(key)}: " for key in keys)


def check_refusal(said, keys):
    """Each line begins with what it is about, and says what is needed or what there is."""
    for line in said.split("\n"):
        assert line.isprintable(), line
        assert line.startswith(names_of(keys)), line
        assert re.search("need|missing|unknown|write|phantoms take none|has only", line), line
        assert len(line) < 600, line


def check_usable(config):
    """What is accepted is of its example's type, finite and of a size that can be worked with."""
    assert config.keys() == study.SCHEMA.keys()
    for key, (example, *_) in study.SCHEMA.items():
        check_value(config[key], example)
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert max(config["run_folds"]) < config["folds"]
    each = sum(1 if p in splits.LEAKY else len(config["run_folds"]) for p in config["protocols"])
    assert 0 < len(config["models"]) * each * len(config["seeds"]) <= 10_000
    for seed in config["seeds"]:
        check_seed(seed, config["epochs"])
    np.random.default_rng([config["phantom_seed"], 0])
    assert config["phantom_sweeps"] * config["phantom_frames"] <= 100_000
    assert config["size"] ** 2 <= frames.MAX_PIXELS
    assert np.float32(config["lr"]) > 0
    assert config["resamples"] * 64 * 8 < 2**30  # bytes, of 64 groups
    assert max(config["width"], config["threads"]) <= 4096
    assert max(config["batch_size"], config["folds"]) < 2**31
    assert len(config["study"]) < 200


def check_value(value, example):
    if isinstance(example, list):
        assert type(value) is list
        for each in value:
            check_value(each, example[0])
        return
    assert type(value) is type(example) or (type(value), type(example)) == (int, float)
    if isinstance(value, str):
        value.encode()
        assert "\0" not in value
    elif isinstance(example, float):
        assert math.isfinite(float(value))


def check_seed(seed, epochs):
    """As `train.fit` makes generators of it; test_runner has the formulas from its source."""
    import torch

    for epoch in (1, epochs):
        torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        torch.Generator().manual_seed((seed + 1) * 1_000_033 - epoch)


def judge(counts, work, keys):
    """Run the check of one set of parameters; return what it gives, None where it refuses."""
    result, said = attempt(counts, "sets", work)
    if said is not None:
        check_refusal(said, keys)
    return result


def fuzz(kind, strategy, singles):
    """Run the function below on each single oddity, then on draws of several.

    The draws are the same on every machine.
    """

    def run(test):
        for single in singles:
            test(single)
        settings(
            max_examples=SETS_OF[kind], derandomize=True, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )(given(strategy)(test))()  # fmt: skip

    return run


@st.composite
def studies(draw):
    """A valid study with one to three settings that are odd, too many or gone."""
    config = copy.deepcopy(STUDY)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(KEYS))
        what = draw(st.integers(0, 9))
        if what == 0:
            config.pop(key, None)
        elif what == 1:
            config[draw(st.sampled_from(ODD_KEYS))] = draw(odd)
        else:
            config[key] = draw(odd_or_fitting(key))
    return config


def test_an_odd_study_is_refused_by_its_keys_or_can_be_used(counts):
    singles = [
        STUDY | {key: value} for key in KEYS for value in [*ODD_VALUES, *FITTING.get(key, [])]
    ]
    singles += [STUDY | {key: 1} for key in ODD_KEYS]

    @fuzz("studies", studies(), singles)
    def _(config):
        if judge(counts, lambda: study.check_study(config) or config, [*KEYS, *config]) is not None:
            check_usable(config)

    assert min(counts["sets accepted"], counts["sets refused"]) > 20


ODD_YAML = [
    "1:30", "-1:30", "1:30.5", "010", "0o10", "08", "0x10", "0b11", "1_000", "+5", "5.", ".5",
    "1e-3", "1.0e-3", "1.0E-3", ".inf", "-.INF", ".nan", "~", "null", "", "yes", "no", "on",
    "off", "y", "True", "2026-01-15", "2026-99-99", "2026-01-15 10:00:00", "12:30:45",
    "!!int 010", "!!int ''", "!!int x", "!!float x", "!!float 3", "!!float ''", "!!bool x",
    "!!str 7", "!!binary aGk=", "!!binary é", "!!timestamp x", "!!set {a}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!null x", "!!seq x", "!!map x", "!!python/object/apply:os.getcwd []",
    "!!python/tuple [1]", "!x y", "&a [*a]", "*a", "&a 3", "&a [&b [*a, *b]]", "[0, 1", "[0, 1]]",
    "{a: 1}", "{[1]: 2}", "{a: 1, a: 2}", "? [1]", "- 1", "[,]", "[0, 010]", "[0, 1:30]", "[1_0]",
    "[[0]]", "[unet, 1]", "'", '"', '"\\0"', '"\\ud800"', '"a\\nb"', "|\n  a\n  b", ">-\n  3",
    "@x", "`x`", "%x", "\t3", "3 # c", "#", "\x07", "é", "甲状腺", "\u2028", "9" * 30, "9" * 5000,
    "0x" + "f" * 5000, "1" + "0" * 400 + ".0", "[" * 900, "[" * 40 + "]" * 40,
    "[" + "0, " * 900 + "0]", "x" * 3000, "unet", "[unet]", "[unet, segnet]", "3", "0.5", "[3]",
    "tg3k",
]  # fmt: skip
ODD_LINES = [
    "epochs: 3", "lr: 1.0e-3", '"lr": 1.0e-3', "? lr\n: 1", "<<: {lr: 1.0}", "<<: *a",
    "a: &a {b: *a}", "---", "...", "--- {}", "%YAML 1.1", "1: 2", "~: 1", "[a]: 1", "{a: b}: 1",
    "!!binary bHI=: 1", "2026-01-15: 1", "- 1", "x", "\tlr: 1", "  lr: 1", "\ufeffa: 1",
    "a: &a [x, x]\nb: &b [*a, *a]",
]  # fmt: skip


def set_line(lines, key, text):
    return [f"{key}: {text}" if line.startswith(f"{key}:") else line for line in lines]


def single_yaml_texts():
    """As `yaml_texts`, with one oddity: each under a key of each type, and each line."""
    lines = DEMO.splitlines()
    for text in ODD_YAML:
        for key in ("epochs", "lr", "seeds", "data"):
            yield "\n".join(set_line(lines, key, text)) + "\n", {key: text}
    for text in ODD_LINES:
        yield f"{DEMO}{text}\n", {}
        yield f"{text}\n{DEMO}", {}


@st.composite
def yaml_texts(draw):
    """The demo's file with two or three values, or lines, that YAML reads in its own way."""
    lines, changed = DEMO.splitlines(), {}
    for _ in range(draw(st.integers(2, 3))):
        if draw(st.integers(0, 5)) == 0:
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(ODD_LINES)))
            continue
        key = draw(st.sampled_from(KEYS))
        fitting = [json.dumps(value) for value in FITTING.get(key, [])]
        text = draw(st.sampled_from(ODD_YAML) | st.sampled_from([*fitting, "3"]))
        lines = set_line(lines, key, text)
        changed[key] = text
    return "\n".join(lines) + "\n", changed


def as_read(text):
    """A number as whoever writes it means it, which is as Python reads it; else None."""
    for read in (int, float, lambda digits: int(digits, 0)):
        try:
            return read(text.removeprefix("!!float ").removeprefix("&a ").split(" #")[0])
        except ValueError:
            continue
    return None


def test_odd_yaml_is_refused_by_line_or_key_or_read_as_meant(tmp_path, counts):
    file, numbers = tmp_path / "odd.yaml", Counter()
    begins = (*names_of(KEYS), "odd.yaml: ", "odd.yaml, line ")

    @fuzz("yaml", yaml_texts(), single_yaml_texts())
    def _(drawn):
        text, changed = drawn
        file.write_text(text, encoding="utf-8")
        config, said = attempt(counts, "sets", study.read_study, [file])
        for line in said.split("\n") if said is not None else ():
            assert line.startswith(begins) or ": unknown; there are: " in line, line
            assert line.isprintable(), line
            assert len(line) < 600, line
        if said is not None:
            return
        check_usable(config)
        names = Counter(re.findall(r'(?m)^(?:\? )?"?([a-z_]+)"?(?=:|$)', text))
        assert max(names.values()) == 1, names
        for key, written in changed.items():
            if type(config[key]) in (int, float):
                assert config[key] == as_read(written), (key, written)
                numbers[written] += 1

    assert len(numbers) > 5
    assert min(counts["sets accepted"], counts["sets refused"]) > 20


NOTEBOOKS = {
    path.stem: runner.parameter_defaults(path)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}


@st.composite
def notebook_parameters(draw):
    name = draw(st.sampled_from([name for name in NOTEBOOKS if NOTEBOOKS[name]]))
    given = {}
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(sorted(NOTEBOOKS[name])))
        given[key] = draw(odd_or_fitting(key))
    if draw(st.integers(0, 9)) == 0:
        given[str(draw(st.sampled_from(ODD_KEYS)))] = draw(odd)
    return name, given


def check_runnable(values, defaults):
    """What a notebook accepts can be injected, and what it would refuse itself is not in it."""
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    for key, value in values.items():
        if isinstance(value, str):
            value.encode()
            assert "\0" not in value
        assert type(value) is type(defaults[key]) or isinstance(defaults[key], float)
    if "model" in values:
        assert values["model"] in study.keys_of("models/registry", "MODELS")
        assert min(values["epochs"], values["batch_size"], values["lr"]) > 0
        assert values["selection"] in ("last", "val", "test")
        assert (values["selection"] == "test") == (values["protocol"] == "reported")
        assert values["precision"] in ("auto", *study.keys_of("models/registry", "PRECISIONS"))
        assert 0 <= values["val_share"] < 0.5
        assert values["fold"] >= 0
        assert values["protocol"] in splits.LEAKY or values["fold"] < values["folds"]
        check_seed(values["seed"], values["epochs"])
    if "source" in values:
        assert bool(values["data"]) == (values["source"] != "phantom")


def test_odd_parameters_of_a_notebook_are_refused_by_name_or_can_be_used(counts):
    singles = [
        (name, {key: value})
        for name, defaults in NOTEBOOKS.items()
        for key in defaults
        for value in [*ODD_VALUES, *FITTING.get(key, [])]
    ]

    @fuzz("notebooks", notebook_parameters(), singles)
    def _(drawn):
        name, given = drawn
        defaults = NOTEBOOKS[name]
        check = lambda: runner.check_parameters(given, defaults) or given  # noqa: E731
        if judge(counts, check, [*defaults, *given]) is not None:
            check_runnable(defaults | given, defaults)

    assert min(counts["sets accepted"], counts["sets refused"]) > 20


ODD_JSON = [
    "", "{", "}", "[]", "[1]", "null", "7", '"x"', "nan", "{}", '{"seed": 1}',
    '{"seed": 1, "seed": 2}', '{"seed": NaN}', '{"lr": NaN}', '{"lr": Infinity}', '{"lr": 1e400}',
    '{"seed": 1}}', "{'seed': 1}", '{"seed": 01}', '{"seed": ' + "9" * 5000 + "}",
    '{"out": "\\ud800"}', '{"out": "a\\u0000b"}', "[" * 9000, '{"a": ' * 9000, "none.json",
    "seed=1", "a\0b", "x" * 5000, "/", ".", "\n", '\ufeff{"seed": 1}', '{"model": "vnet"}',
    '{"epochs": 1.0}', '{"epochs": "3"}', '{"": 1}', '{"a\\nb": 1}', '{"seed": null}',
    '{"threads": 2}', '{"fold": -1}', '{"protocol": "official"}', '{"val_share": 0}', " {} ",
    '{"seed":1,}',
]  # fmt: skip


@st.composite
def json_texts(draw):
    """JSON as it may be typed: whole, or with a piece gone or doubled."""
    text = draw(st.sampled_from(ODD_JSON))
    if len(text) < 100 and draw(st.booleans()):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        text = draw(st.sampled_from([text[:start] + text[end:], text[:end] + text[start:]]))
    return text


@pytest.fixture
def as_it_was():
    """Leave environment and signal handlers, which the runner sets, as they were."""
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_odd_texts_of_the_option_end_with_code_2_and_a_sentence(
    tmp_path, monkeypatch, counts, as_it_was
):
    monkeypatch.chdir(tmp_path)  # where no file has such a name
    monkeypatch.setattr(runner, "_execute", lambda *_, **__: (runner.CELL_RAISED, "not run"))
    command = ["runner", "notebook", str(ROOT / "notebooks" / "3-train.ipynb"), "out.ipynb"]

    @fuzz("texts", json_texts(), ODD_JSON)
    def _(text):
        told = io.StringIO()
        with monkeypatch.context() as patch, limited():
            patch.setattr(sys, "stderr", told)
            patch.setattr(sys, "argv", [*command, f"--parameters={text}"])
            code = runner.main()
        told = told.getvalue()
        assert code in (runner.BAD_PARAMETERS, runner.CELL_RAISED), told
        if code == runner.CELL_RAISED:
            counts["sets accepted"] += 1
            names = json.loads(text)
            assert all(text.count(f'"{name}"') == 1 for name in names), text
            return
        counts["sets refused"] += 1
        assert told.startswith(("error: --parameters: ", "error: 3-train.ipynb: ")), told
        for line in told.removeprefix("error: ").removeprefix("3-train.ipynb: ").splitlines():
            assert re.match("--parameters: |\\w+: got|.*: unknown", line), line
        assert not list(tmp_path.iterdir())

    assert min(counts["sets accepted"], counts["sets refused"]) > 10


def snakemake_reads(text):
    """A value of `--config`, by Snakemake's own parser where it is installed."""
    try:
        from snakemake.cli import parse_config
    except ImportError:
        return text
    return next(iter(parse_config([f"key={text}"]).values()))


@st.composite
def overrides(draw):
    """One to three settings of `--config`, as Snakemake's Python or its command line gives them."""
    typed = st.sampled_from([text for text in ODD_YAML if len(text) < 500])
    keys = st.sampled_from([*KEYS, *KEYS, "epoch", "a.b", "x" * 300])
    given = {}
    for _ in range(draw(st.integers(1, 3))):
        try:
            key = draw(keys)
            given[key] = draw(odd_or_fitting(key) | typed.map(snakemake_reads))
        except (ValueError, AssertionError):
            continue  # Snakemake has refused it
    return given


def test_odd_values_of_snakemakes_config_are_refused_by_key_or_can_be_used(tmp_path, counts):
    demo = tmp_path / "demo.yaml"
    demo.write_text(DEMO, encoding="utf-8")

    singles = [{key: value} for key in ("epochs", "lr", "seeds", "data") for value in ODD_VALUES]
    singles += [{key: text} for key in ("epochs", "seeds") for text in ODD_YAML]

    @fuzz("--config", overrides(), singles)
    def _(given):
        config = judge(counts, lambda: study.read_study([demo], given), [*KEYS, *given])
        if config is not None:
            check_usable(config)

    assert min(counts["sets accepted"], counts["sets refused"]) > 20


def test_there_are_enough():
    assert sum(SETS_OF.values()) >= 500

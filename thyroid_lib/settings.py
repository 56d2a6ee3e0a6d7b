"""Settings of a study: names, types, ranges, units and help, checked before any work.

    python -m thyroid_lib.study.runner check parameters/demo.yaml

`Study` has one field per key of parameters/*.yaml, and `Parameters` adds what a notebook takes: one
network, one fold, folders. Workflow, runner, notebooks, `run.json`, tables and model card take
names, units and help from these fields. Importing this module loads no torch: it takes 0.1 s.
"""

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

# Choices that several wings know; tests/test_settings.py holds the wings to them.
NETWORKS = (
    "unet", "segnet", "resunet", "segnet_reported", "resunet_reported", "segnet_reported_no_relu",
)  # fmt: skip
PROTOCOLS = ("random", "reported", "official", "grouped", "leave-one-group-out")
LEAKY = ("random", "reported", "official")  # a group may stand on two sides of the split
MENDS = ("text", "specks", "holes")
AUGMENTS = ("none", "standard")
SELECTIONS = ("last", "val", "test")
PRECISIONS = ("fp32", "bf16", "fp16")
KAGGLE = re.compile(r"kaggle:([\w-]+)/([\w-]+)/(\d+)")
MOST_SEED = 2**32 - 1  # training multiplies it by a million, and torch takes 64 bits
MOST_FOLDS = 10_000
MOST_RUNS = 2_000  # one job each; all run names are arguments of one command


class Need(str):
    """What a field needs, in the words of an error message."""


def _whole(least: int, most: int):
    return Annotated[int, Field(ge=least, le=most), Need(f"a whole number, {least} to {most}")]


def _number(**bounds: float):
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    need = " and ".join(f"{words[name]} {bound:g}" for name, bound in bounds.items())
    return Annotated[float, Field(**bounds), Need(f"a number, {need}")]


def _choice(*names: str):
    return Annotated[Literal[names], Need(f"one of {', '.join(names)}")]


def _text(need: str = "a text without NUL and half letters", pattern: str = r"^[^\x00]*$"):
    return Annotated[str, Field(pattern=pattern), Need(need)]


def _several(item, least: int = 1):
    need = f"a list of {least} or more, none twice, each {item.__metadata__[-1]}"
    return Annotated[list[item], Field(min_length=least), AfterValidator(_unique), Need(need)]


def _unique(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError
    return values


Flag = Annotated[bool, Need("true or false (in Python and for papermill True or False)")]
Name = _text("a-z, 0-9, - and _ only, 100 at most", r"^[a-z0-9][a-z0-9_-]{0,99}$")
Network = _text("a name: a-z first, then a-z, 0-9 and _, 40 at most", r"^[a-z][a-z0-9_]{0,39}$")
Folder, Folders = _text("a folder", r"^[^\x00]+$"), _several(_text("a folder"), 0)
Protocol, Fold, Seed = _choice(*PROTOCOLS), _whole(0, MOST_FOLDS - 1), _whole(0, MOST_SEED)


def _key(help: str, steps: str = "", unit: str = "", role: str = "", **other):
    """Return a field: its help, the steps whose notebooks take it from the study, unit and role.

    Role "training": `run.json` names it, another value is another training. "shared": compared runs
    agree in it, as in those of training. other: default=… of a key that a file may leave out.
    """
    about = {"steps": steps.split(), "unit": unit, "role": role}
    return Field(description=help, json_schema_extra=about, **other)


_data = partial(_key, steps="preprocess audit deploy")
_store = partial(_key, steps="preprocess", role="shared")
_recipe = partial(_key, steps="train", role="training")
_score = partial(_key, steps="train", role="shared")
HELD_BACK = "share of the training frames held back for validation"
KEPT = "epoch whose weights are kept: last, or best on val"


class Study(BaseModel):
    """The keys of a study's YAML; upper bounds are far above any use and stop slips of the pen."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    study: Name = _key("folder of the results: results/<study>")
    source: _choice("phantom", "tg3k", "folder") = _data("phantom (drawn here), tg3k or folder")
    data: _text() = _data("folder, zip, kaggle:owner/slug/version, auto (TG3K); '' for phantoms")
    phantom_sweeps: _whole(1, 100) = _data("sweeps to draw")
    phantom_frames: _whole(1, 1000) = _data("frames per sweep")
    phantom_seed: Seed = _data("seed of the drawing")
    phantom_text: Flag = _data("burn text into frames and masks, as TG3K has it")
    size: _whole(16, 4096) = _store("px, side of the squares that the networks see", unit="px")
    resize: _choice("square", "letterbox") = _store(
        "square (as reported) or letterbox (aspect kept)"
    )
    mend: _several(_choice(*MENDS), 0) = _store("rules that mend masks: text, specks, holes")
    models: _several(Network) = _key("networks to train")
    width: _whole(0, 512) = _recipe("base channels; 0 for each paper's own")
    protocols: _several(Protocol) = _key(
        "how cases are split: grouped, random, official, …", "audit"
    )
    folds: _whole(2, MOST_FOLDS) = _score(
        "parts that the groups are dealt into", steps="audit train"
    )
    run_folds: _several(Fold) = _key("which of the parts are tested, each in runs of its own")
    val_share: _number(gt=0, lt=0.5) = _score(HELD_BACK, steps="audit train")
    seeds: _several(Seed) = _key("seeds of weights, order of batches and augmentation")
    epochs: _whole(1, 100_000) = _recipe("passes over the training frames")
    batch_size: _whole(1, 65_536) = _recipe("frames per step")
    lr: _number(ge=1e-12, le=1e12) = _recipe("learning rate of Adam, constant")
    selection: _choice("last", "val") = _recipe(KEPT)
    augment: _choice(*AUGMENTS) = _recipe(
        "none (as reported) or standard (mirror, affine, gain, …)"
    )
    threshold: _number(gt=0, lt=1) = _score("a pixel is thyroid if its probability is above")
    tolerance_px: _number(gt=0, le=4096) = _score(
        "px, tolerance of the normalised surface Dice", unit="px"
    )
    delta: _number(ge=0, le=1) = _key("Dice that makes no difference in practice", "compare")
    resamples: _whole(100, 100_000) = _key(
        "resamples of groups and seeds, for every interval", steps="compare replication"
    )
    threads: _whole(0, 1024) = _recipe(
        "CPU threads, 0 for all; another number gives other last bits", steps="train deploy"
    )
    device: _choice("auto", "cpu", "cuda", "mps") = _recipe("auto, cpu, cuda or mps")
    precision: _choice("auto", *PRECISIONS) = _recipe("auto (what is fast), fp32, bf16 or fp16")
    pin_instructions: Flag = _key("AVX2 on every x86-64 processor, for the same bits on each")
    budget_minutes: _number(ge=0, le=100_000) = _key(
        "minutes until training stops, to go on at the next start; 0: never", unit="min"
    )
    tensorboard: Flag = _key("also write event files; no result depends on them", "train")
    deploy: Flag = _key("also export the models for use without torch")


class Parameters(Study):
    """What the notebooks take: a study's keys, one value where it lists several, and folders."""

    model: Network = _key("network to train")
    protocol: Protocol = _key("how cases are split: grouped, random, official, …")
    fold: Fold = _key("which part is the test set")
    seed: Seed = _key("seed of weights, order of batches and augmentation")
    val_share: _number(ge=0, lt=0.5) = _key(HELD_BACK)
    selection: _choice(*SELECTIONS) = _key(KEPT)
    unseen_sweeps: _whole(1, 99) = _key("sweeps that the networks never see, for the second exam")
    phantom_folder: Folder = _key("folder of the drawn frames")
    store: _text() = _key("folder of the store")
    store_reported: _text() = _key("folder of a second store with nothing mended")
    runs: Folders = _key("folders of the runs")
    reported: Folders = _key("runs with all flaws")
    fair: Folders = _key("runs of other protocols")
    compare: Folder = _key("folder of the comparison")
    out: Folder = _key("folder of the results")
    figures: Folder = _key("folder of the figures")


ROLES = {name: field.json_schema_extra["role"] for name, field in Study.model_fields.items()}
TRAINING = tuple(name for name, role in ROLES.items() if role == "training")
SHARED = tuple(name for name, role in ROLES.items() if role)
TAKEN = ("reference", "data", "alone", "quickstart")  # folders of results/ with another use


def check_study(config: dict) -> dict:
    """Return a study's settings as plain values, those with a default included.

    Raises:
        ValueError: unknown, missing, mistyped or impossible settings; all of them, one per line.
    """
    return _check(Study, config)


def check_parameters(given: dict, defaults: dict) -> dict:
    """Return a notebook's parameters; what is left out keeps its default.

    A name that no study and no notebook of the library has needs the type of its default.

    Raises:
        ValueError: as `check_study`.
    """
    fields = {}
    for name, value in defaults.items():
        like = Annotated[type(value), Need(f"a value such as {show(value)}")]
        known = Parameters.model_fields.get(name)
        fields[name] = (known.rebuild_annotation() if known else like, ...)
    model = pydantic.create_model("Notebook", __config__=Study.model_config, **fields)
    return _check(model, defaults | given)


def _check(model: type[BaseModel], values: dict) -> dict:
    fields, checked = model.model_fields, {}
    problems = [unknown(name, fields) for name in values if name not in fields]
    known = {name: value for name, value in values.items() if name in fields}
    try:
        checked = model.model_validate(known).model_dump()
    except ValidationError as error:
        for name in dict.fromkeys(each["loc"][0] for each in error.errors(include_input=False)):
            need = next(each for each in fields[name].metadata if isinstance(each, Need))
            got = f"got {show(known[name])}" if name in known else "is missing"
            meant = [x for x in _readings(known.get(name)) if _fits(fields[name], x)]
            hint = f": write {show(meant[0])}" if name in known and meant else ""
            problems.append(f"{name}: {got}, need {need}{hint}")
    if problems := problems or _clashes(checked):
        raise ValueError("\n".join(problems))
    return checked


def _fits(field: FieldInfo, value) -> bool:
    try:
        TypeAdapter(field.rebuild_annotation(), config=Study.model_config).validate_python(value)
    except ValidationError:
        return False
    return True


def _readings(value) -> Iterator:
    """Give what a value may mean whose type is not that of YAML 1.2.

    Snakemake's `--config` gives [0,1] as texts and an empty value as None, PyYAML gives 1e-3 as a
    text. A whole number may be a name; 1.50 may not, as its last digit is lost.
    """
    with suppress(ValueError):
        if value is None:
            yield ""
        elif isinstance(value, str):
            yield read_yaml(value)
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            yield [read_yaml(each) for each in value]
        elif not isinstance(value, bool | float | list | dict | set | tuple):
            yield str(value)


def _clashes(v: dict) -> list[str]:
    """List what several settings, each allowed by itself, must not be together."""
    rules: dict[str, bool] = {}  # message: whether it holds
    if {"source", "data"} <= v.keys():
        source, data = v["source"], v["data"]
        need = f"source {source} needs its folder (or zip)"
        version = "kaggle:owner/slug/version, the version a number"
        rules |= {
            f"data: is empty, {need}": source != "phantom" and not data,
            "data: phantoms take none, leave it '' or set source": source == "phantom" and data,
            f"data: auto finds TG3K's release, {need}": data == "auto" and source == "folder",
            f"data: got {show(data)}, need {version}": data[:7] == "kaggle:"
            and not KAGGLE.fullmatch(data),
        }
    if "unseen_sweeps" in v:
        sweeps = v.get("phantom_sweeps", 0) + v["unseen_sweeps"]
        rules[f"unseen_sweeps: with phantom_sweeps {sweeps}, need 100 or fewer"] = sweeps > 100
    if {"protocol", "fold", "folds", "selection", "val_share"} <= v.keys():
        protocol, fold, folds, kept = v["protocol"], v["fold"], v["folds"], v["selection"]
        reported = protocol == "reported"
        need = "test" if reported else "last or val: only reported may take test"
        but = f"but folds: {folds} has only 0 to {folds - 1}"
        rules |= {
            f"fold: got {fold}, the official split is one: need 0": protocol == "official" and fold,
            f"fold: got {fold}, {but}": protocol not in LEAKY and fold >= folds,
            f"selection: got {show(kept)}, but protocol {protocol} needs {need}": reported
            != (kept == "test"),
            'val_share: got 0, but selection "val" needs it above 0': kept == "val"
            and not v["val_share"],
        }
    if "run_folds" in v:
        folds, run, protocols = v["folds"], v["run_folds"], v["protocols"]
        splits = sum(1 if each in LEAKY else len(run) for each in protocols)
        runs = len(v["models"]) * splits * len(v["seeds"])
        product = f"{len(v['seeds'])} of them, {len(v['models'])} models and {splits} splits"
        but = f"but folds: {folds} has only 0 to {folds - 1}"
        rules |= {
            f"study: {v['study']} is taken: need none of {', '.join(TAKEN)}": v["study"] in TAKEN,
            f"run_folds: got {show(run)}, {but}": max(run) >= folds,
            f"seeds: {product} make {runs} runs, need {MOST_RUNS} or fewer": runs > MOST_RUNS,
        }
        beside = {
            "protocols": ("random and grouped", {"random", "grouped"} <= set(protocols)),
            "selection": ("val", v["selection"] == "val"),
            "mend": ("text", "text" in v["mend"]),
            "augment": ("none", v["augment"] == "none"),
        }
        for key, (need, holds) in beside.items() if "reported" in protocols else ():
            rules[
                f"{key}: got {show(v[key])}, but protocol reported needs {need} beside"
            ] = not holds
    return [message for message, holds in rules.items() if holds]


def list_runs(config: dict) -> dict[str, dict]:
    """Return a study's runs, run_id: model, protocol, fold and seed, in the order of its settings.

    Args:
        config: settings that `check_study` has passed.
    """
    return {
        f"{model}-{protocol}-fold{fold}-seed{seed}": {
            "model": model, "protocol": protocol, "fold": fold, "seed": seed
        }
        for protocol in config["protocols"]
        for fold in ([0] if protocol in LEAKY else config["run_folds"])
        for seed in config["seeds"]
        for model in config["models"]
        # it explains a loss and does not compete
        if protocol == "reported" or model != "segnet_reported_no_relu"
    }  # fmt: skip


def step_settings(config: dict, step: str, **others) -> dict:
    """Return the parameters of a step's notebook: its keys of the study, and `others`, which win.

    Args:
        config: settings that `check_study` has passed.
        step: "preprocess", "audit", "train", "compare", "replication" or "deploy".
    """
    fields = Study.model_fields.items()
    names = [name for name, field in fields if step in field.json_schema_extra["steps"]]
    if not names:
        raise ValueError(f"step: got {show(step)}, which no key of a study names")
    return {name: config[name] for name in names} | others


def read_study(files: Iterable[str | Path], overrides: Mapping | Iterable | None = ()) -> dict:
    """Read and check a study: YAML files, later ones win, then what a command line overrides.

    Args:
        overrides: key and value, as Snakemake's `--config` reads them.

    Raises:
        ValueError: a file is missing or no YAML mapping, or settings are wrong.
    """
    config = {}
    for file in map(Path, files):
        name = printable(file.name)
        try:
            content = read_yaml(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: cannot be read: {error}") from None
        except ValueError as error:
            raise ValueError(f"{name}{error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{name}: need lines of `key: value`, as in parameters/demo.yaml")
        config |= content
    for key, value in dict(overrides or ()).items():
        field, readings = Study.model_fields.get(key), (value, *_readings(value))
        config[key] = next((each for each in readings if field and _fits(field, each)), value)
    return check_study(config)


def read_yaml(text: str):
    """Read YAML 1.2 without aliases, merges and tags: settings need none, and a few can do harm.

    Raises:
        ValueError: begins with ", line n: " or ": ".
    """
    from ruamel.yaml import YAML, YAMLError  # not there yet when a notebook installs the library

    yaml, line = YAML(typ="safe", pure=True), None
    try:
        for event in yaml.parse(text):
            odd = [getattr(event, name, None) for name in ("anchor", "tag", "version")]
            if any(odd) or getattr(event, "value", None) == "<<":
                line = event.start_mark.line
                raise ValueError("write plain values, without &, *, !, << and %YAML")
        return yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", line)
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        where = "" if line is None else f", line {line + 1}"
        raise ValueError(f"{where}: {' '.join(str(said).split())}") from None


def show(value) -> str:
    """Return any value on one line and not long, in JSON's words: for messages."""
    try:  # bit by bit: a list may hold itself, or a billion texts
        text = "".join(itertools.islice(json.JSONEncoder(default=str).iterencode(value), 101))
    except (TypeError, ValueError):  # of keys, of a number of 5000 digits
        text = f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else f"{text[:100]}…"


def printable(name) -> str:
    """Return a key's or a file's name as it is, if it is one line that is not long."""
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100
    return name if plain else show(name)


def unknown(name, choices: Iterable[str]) -> str:
    """Say that there is no such name, which one may have been meant, and what there is."""
    choices = list(choices)
    close = difflib.get_close_matches(str(name)[:100], choices, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{printable(name)}: unknown{meant}; there are: {', '.join(choices)}"

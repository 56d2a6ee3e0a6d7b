"""What a study's YAML may say: one table of keys, checked strictly before any work.

    python -m thyroid_lib.study.runner check parameters/demo.yaml

Importing this module loads no torch: the workflow reads it at every start.
"""

import ast
import datetime
import difflib
import hashlib
import importlib.util
import itertools
import json
import os
import re
import sys
from pathlib import Path

import yaml

from thyroid_lib.data.locate import DATASET, asks_network
from thyroid_lib.files.writing import project_path
from thyroid_lib.models import user_networks


def keys_of(module: str, name: str) -> list[str]:
    """Return a module's plain dict's keys (or tuple), read from its source: imports take long."""
    tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
            return [ast.literal_eval(key) for key in keys]
    raise RuntimeError(f"thyroid_lib/{module}.py assigns no plain dict or tuple to {name}")


def _between(least: float, most: float) -> tuple:
    return f"{least} to {most}", lambda value: least <= value <= most


def _one_of(*choices: str) -> tuple:
    return f"one of {', '.join(choices)}", choices.__contains__


def _some_of(*choices: str) -> tuple:
    need = f"one or more of {', '.join(choices)}, none twice"
    return need, lambda value: value and set(value) <= set(choices) and _unique(value)


def _any_of(*choices: str) -> tuple:
    need = f"any of {', '.join(choices)}, none twice"
    return need, lambda value: set(value) <= set(choices) and _unique(value)


def _some_between(least: int, most: int) -> tuple:
    need = f"one or more of {least} to {most}, none twice"
    return need, lambda v: v and min(v) >= least and max(v) <= most and _unique(v)


def _unique(values: list) -> bool:
    return len(set(values)) == len(values)


LEAKY = keys_of("data/splits", "LEAKY")
NETWORKS = keys_of("models/registry", "MODELS")  # of the library; `architectures` has one's own
MOST_SEED = 2**32 - 1  # training takes it times a million, and torch no more than 64 bits
MOST_FOLDS = 10_000
MOST_RUNS = 2_000  # one job each; the names of all are one argument of the comparison's command
ANY = "", lambda value: True

# A study's keys, the same in every file: an example, which gives the type, and what is allowed.
# Upper bounds are far above any use: they stop a slip of the pen before it fills memory or a week.
SCHEMA = {
    "study": (
        "demo",
        "a-z, 0-9, - and _ only, 100 at most, none of reference, data, alone, quickstart (taken)",
        re.compile(r"(?!(reference|data|alone|quickstart)$)[a-z0-9][a-z0-9_-]{0,99}").fullmatch,
    ),
    "source": ("phantom", *_one_of("phantom", "tg3k", "folder")),
    "data": ("", *ANY),
    "phantom_sweeps": (8, *_between(1, 100)),
    "phantom_frames": (12, *_between(1, 1000)),
    "phantom_seed": (0, *_between(0, MOST_SEED)),
    "phantom_text": (True, *ANY),
    "size": (256, *_between(16, 4096)),
    "resize": ("square", *_one_of("square", "letterbox")),
    "mend": (["text"], *_any_of(*keys_of("data/frames", "MENDS"))),
    "models": (["unet"], "one or more networks, none twice", lambda v: v and _unique(v)),
    "width": (0, *_between(0, 512)),
    "protocols": (["grouped"], *_some_of(*keys_of("data/splits", "PROTOCOLS"))),
    "folds": (4, *_between(2, MOST_FOLDS)),
    "run_folds": ([0], *_some_between(0, MOST_FOLDS - 1)),
    "val_share": (0.15, "above 0 and below 0.5", lambda value: 0 < value < 0.5),
    "seeds": ([0], *_some_between(0, MOST_SEED)),
    "epochs": (25, *_between(1, 100_000)),
    "batch_size": (16, *_between(1, 65_536)),
    "lr": (1e-4, *_between(1e-12, 1e12)),
    "selection": ("last", *_one_of("last", "val")),
    "augment": ("none", *_one_of(*keys_of("train/augment", "AUGMENTS"))),
    "threshold": (0.5, "above 0 and below 1", lambda value: 0 < value < 1),
    "tolerance_px": (2.0, "above 0, at most 4096", lambda value: 0 < value <= 4096),
    "delta": (0.005, *_between(0, 1)),
    "resamples": (10_000, *_between(100, 100_000)),
    "threads": (1, *_between(0, 1024)),
    "device": ("auto", *_one_of("auto", "cpu", "cuda", "mps")),
    "precision": ("auto", *_one_of("auto", *keys_of("models/registry", "PRECISIONS"))),
    "pin_instructions": (False, *ANY),
    "budget_minutes": (0.0, "0 (no limit) to 100000", lambda value: 0 <= value <= 100_000),
    "tensorboard": (False, *ANY),
    "deploy": (False, *ANY),
}
# What a notebook takes one of, beyond that, or more freely.
NOTEBOOK = SCHEMA | {
    "model": ("unet", *ANY),
    "protocol": ("grouped", *_one_of(*keys_of("data/splits", "PROTOCOLS"))),
    "fold": (0, *_between(0, MOST_FOLDS - 1)),
    "seed": (0, *_between(0, MOST_SEED)),
    "val_share": (0.15, "0 or more and below 0.5", lambda value: 0 <= value < 0.5),
    "selection": ("last", *_one_of(*keys_of("train/recipe", "SELECTIONS"))),
    "phantom_folder": ("", "a folder", bool),
    "unseen_sweeps": (6, *_between(1, 99)),
    "out": ("", "a folder", bool),
}


def check_study(config: dict) -> None:
    """Hold a study's settings against `SCHEMA`.

    Raises:
        ValueError: unknown, missing, mistyped or impossible settings; all of them, one a line.
    """
    problems = [unknown(key, SCHEMA) for key in config if key not in SCHEMA]
    problems += [f"{key}: is missing" for key in SCHEMA if key not in config]
    for key, (example, *_) in SCHEMA.items():
        if key in config and (
            wrong := mistyped(config[key], example) or misfit(key, config[key], SCHEMA)
        ):
            problems.append(f"{key}: {wrong}")
    if not problems:
        problems += _source_problems(config)
        if max(config["run_folds"]) >= config["folds"]:
            problems.append(
                f"run_folds: got {show(config['run_folds'])}, but folds: {config['folds']} has "
                f"only 0 to {config['folds'] - 1}"
            )
        splits = sum(1 if p in LEAKY else len(config["run_folds"]) for p in config["protocols"])
        runs = len(config["models"]) * splits * len(config["seeds"])
        if runs > MOST_RUNS:
            problems.append(
                f"seeds: {len(config['seeds'])} of them, {len(config['models'])} models and "
                f"{splits} splits make {runs} runs, need {MOST_RUNS} or fewer"
            )
        if "reported" in (protocols := config["protocols"]):
            beside = {
                "protocols": ("random and grouped", {"random", "grouped"} <= set(protocols)),
                "selection": ("val", config["selection"] == "val"),
                "mend": ("text", "text" in config["mend"]),
                "augment": ("none", config["augment"] == "none"),
            }
            problems += [
                f"{key}: got {show(config[key])}, but protocol reported needs {need} beside"
                for key, (need, holds) in beside.items()
                if not holds
            ]
    if problems:
        raise ValueError("\n".join(problems))


def misfit(name: str, value, table: dict = NOTEBOOK) -> str:
    """Say what a setting, or a notebook's parameter, must be, if its value is not; else "".

    A name that no notebook of the study has may hold anything, and so may one of another type.
    """
    example, need, allows = table.get(name, (None, *ANY))
    if name not in table or mistyped(value, example):
        return ""
    if not allows(value):
        return f"got {show(value)}, need {need}"
    networks = {"model": [value], "models": value}.get(name, [])
    return next(filter(None, map(_network_problem, networks)), "")


def _network_problem(name: str) -> str:
    """Say what is wrong with a network's name, or with the file that defines it; "" if nothing."""
    own = user_networks.files()
    if name in NETWORKS and name in own:
        return f"architectures/{name}.py has the name of a network of the library: need another"
    if name in NETWORKS:
        return ""
    if name in own:
        return user_networks.problem(name)
    choices = [*NETWORKS, *own]
    fits = user_networks.NAME.fullmatch(name)
    added = f", or a file architectures/{name}.py ({user_networks.HELP})" if fits else ""
    return f"got {show(name)}, need one of {', '.join(choices)}{_meant(name, choices)}{added}"


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
        # it explains a loss, and is no rival
        if protocol == "reported" or model != "segnet_reported_no_relu"
    }  # fmt: skip


def clashes(values: dict) -> list[str]:
    """List which of a notebook's parameters, all of them allowed, do not go together."""
    problems = _source_problems(values) if {"source", "data"} <= values.keys() else []
    sweeps = values.get("phantom_sweeps", 0) + values.get("unseen_sweeps", 0)
    if "unseen_sweeps" in values and sweeps > 100:
        problems.append(f"unseen_sweeps: with phantom_sweeps they are {sweeps}, need 100 or fewer")
    if not {"protocol", "fold", "folds", "selection", "val_share"} <= values.keys():
        return problems
    protocol, fold, folds = values["protocol"], values["fold"], values["folds"]
    if protocol == "official" and fold:
        problems.append(f"fold: got {fold}, the official split is one: need 0")
    if protocol not in LEAKY and fold >= folds:
        problems.append(f"fold: got {fold}, but folds: {folds} has only 0 to {folds - 1}")
    if (values["selection"] == "test") != (protocol == "reported"):
        problems.append(
            f"selection: got {show(values['selection'])}, but protocol {protocol} needs "
            f"{'test' if protocol == 'reported' else 'last or val: only reported may take test'}"
        )
    if values["selection"] == "val" and not values["val_share"]:
        problems.append('val_share: got 0, but selection "val" needs it above 0')
    return problems


def _source_problems(values: dict) -> list[str]:
    source, data = values["source"], values["data"]
    if source != "phantom" and not data:
        return [f"data: is empty, source {source} needs its folder (or zip)"]
    if source == "phantom" and data:
        return ["data: phantoms take none, set source to tg3k or folder or leave it ''"]
    if data == "auto" and source != "tg3k":
        return [f"data: auto finds TG3K's release, source {source} needs its folder (or zip)"]
    if data.startswith("kaggle:") and not DATASET.fullmatch(data):
        return [f"data: got {show(data)}, need kaggle:owner/slug/version, the version a number"]
    return []


def show(value) -> str:
    """Return any value on one line and not long, in JSON's words: for messages."""
    try:  # bit by bit: a list may hold itself, or a billion texts
        text = "".join(itertools.islice(json.JSONEncoder(default=str).iterencode(value), 101))
    except (TypeError, ValueError):  # of keys, of a number of 5000 digits
        text = f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= 100 else f"{text[:100]}…"


def mistyped(value, example) -> str:
    """Say what is wrong with the value's type, the example's being right; "" if nothing is."""
    if isinstance(example, list):
        if not isinstance(value, list):
            return f"got {show(value)}, need a list such as {show(example or ['…'])}"
        wrong = (mistyped(each, example[0] if example else "") for each in value)
        return next((text for text in wrong if text), "")
    if type(value) is type(example) or (type(value) is int and type(example) is float):
        if isinstance(example, float) and not abs(value) <= sys.float_info.max:
            got = value if isinstance(value, float) else show(value)
            return f"got {got}, need a finite number"
        if isinstance(value, str) and not _is_text(value):
            return f"got {show(value)}, need a text without NUL and half letters"
        return ""
    kind = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    hint = ""
    if example is None:  # it says nothing of the type
        return ""
    if isinstance(value, str) and isinstance(example, float):
        number = re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?\d+)", value)
        if number:  # YAML 1.1 takes for a number only what has a point and a signed exponent
            whole, part, exponent = number.groups()
            hint = f": write {whole}{part or '.0'}e{int(exponent):+d}"
    if isinstance(example, str) and isinstance(value, int | float | datetime.date):
        hint = ": put it in quotes"  # an identifier of digits, a date
    got = "nothing" if value is None else show(value)
    got = f"the text {got}" if isinstance(value, str) else got
    need = kind.get(type(example)) or f"a {type(example).__name__}"
    return f"got {got}, need {need}{hint}"


def _is_text(value: str) -> bool:
    """Whether a file can hold it, and a path: no NUL, no surrogate."""
    return "\0" not in value and not re.search("[\ud800-\udfff]", value)


def unknown(name, choices) -> str:
    """Say that there is no such name, which one may have been meant, and what there is."""
    return f"{_named(name)}: unknown{_meant(name, choices)}; there are: {', '.join(choices)}"


def _meant(name, choices) -> str:
    close = difflib.get_close_matches(str(name)[:100], choices, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _named(name) -> str:
    """Return a key's or a file's name as it is, if it is one line that is not long."""
    plain = isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100
    return name if plain else show(name)


class _StrictLoader(yaml.SafeLoader):
    """YAML as people read it: what PyYAML would take otherwise, and in silence, is refused.

    That is: the last of two equal keys wins, 1:30 is 90 and 010 is 8. Aliases and merges are
    refused with it: settings need none, and a few lines of them hold themselves or a billion texts.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            self._refuse(event, f"*{event.anchor} is an alias: write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                self._refuse(key, f"{_named(name)} twice")
            if key.tag == "tag:yaml.org,2002:merge":
                self._refuse(key, "<< merges mappings: write the keys themselves")
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and re.fullmatch(r".*:.*|[-+]?0[0-9_]+", str(node.value)):
            text = _named(node.value)
            self._refuse(node, f"{text}: write a plain number without : and leading 0, or quote it")
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception:  # PyYAML raises half a dozen kinds, of !!bool abc, !!int '', 2020-99-99
            self._refuse(node, f"{show(str(node.value))} is no {kind}")

    def _refuse(self, where, problem: str) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _yaml_problem(error: Exception) -> str:
    """Say in one line what is wrong with a YAML text."""
    if isinstance(error, RecursionError):
        return "brackets in brackets, too many of them"
    return _one_line(getattr(error, "problem", None) or error)


def _one_line(error) -> str:
    return " ".join(str(error).split())


def read_study(files, overrides: dict | None = None) -> dict:
    """Read and check a study: YAML files, later ones win, then Snakemake's `--config`.

    Raises:
        ValueError: a file is missing or no YAML mapping, or settings are wrong.
    """
    config = {}
    for file in map(Path, files):
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)  # noqa: S506, it is safe
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{_named(file.name)}: cannot be read: {_one_line(error)}") from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ValueError(f"{_named(file.name)}{where}: {_yaml_problem(error)}") from None
        if not isinstance(content, dict):
            raise ValueError(
                f"{_named(file.name)}: need lines of `key: value`, as in parameters/demo.yaml"
            )
        config |= content
    for key, value in (overrides or {}).items():
        config[key] = _from_command_line(value, SCHEMA.get(key, ("",))[0])
    check_study(config)
    return config


def read_parameters(given: str) -> dict:
    """Read what `--parameters` of a notebook was given: a JSON object, or a file that holds one.

    Raises:
        ValueError: neither; one line that names the option.
    """
    need = 'need a JSON object such as {"seed": 1}, or a file that holds one'
    text = given
    try:
        if not given.lstrip().startswith(("{", "[")):
            text = Path(given).read_text(encoding="utf-8-sig")
        parameters = json.loads(text, object_pairs_hook=_each_once)
    except OSError as error:
        why = f"{show(given)}: {error.strerror}"
        raise ValueError(f"--parameters: {why}; {need}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--parameters: {show(given)}: {_one_line(error)}; {need}") from None
    if not isinstance(parameters, dict):
        raise ValueError(f"--parameters: got {show(parameters)}; {need}")
    return parameters


def _each_once(pairs: list[tuple]) -> dict:
    """Make a JSON object, of which Python would let the last of two equal names win in silence."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"{_named(twice)} twice")
    return content


def _from_command_line(value, example):
    """Undo what Snakemake's `--config` does to types: [0,1] comes as texts, data= as None.

    It reads 7 as a number and 1.50, too, whose last digit is lost: that one must be quoted.
    """
    if isinstance(example, list) and isinstance(value, list):
        # what lies deeper is no setting, and stays what it is
        return [each if isinstance(each, list) else _from_command_line(each, example[0])
                for each in value]  # fmt: skip
    if isinstance(example, str):
        number = type(value) is int and abs(value) < 10**18  # beyond, no name or path
        return "" if value is None else str(value) if number else value
    try:
        return yaml.load(value, _StrictLoader) if isinstance(value, str) else value  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return value  # a text where none is wanted: its key will say so


def check_deploy(wanted: bool) -> None:
    """Raise ValueError if a release is wanted and there is nothing to export it with."""
    need = ("onnx", "onnxruntime", "onnxscript")
    if missing := [name for name in need if wanted and not importlib.util.find_spec(name)]:
        raise ValueError(
            f"deploy: {', '.join(missing)} not installed: `pip install {' '.join(missing)}`, or "
            "set deploy to false"
        )


def list_data(data: str) -> str:
    """Return a SHA-256 over names and sizes of the files under a source, "" for none.

    Data that may be fetched are the same wherever they lie: "" for those, too.

    Raises:
        ValueError: nothing is there.
    """
    if not data or asks_network(data):
        return ""
    try:
        top = project_path(data)
    except RuntimeError:  # of ~somebody whom this machine does not know
        top = Path(data)
    if not os.path.exists(top):  # unlike Path's it does not mind a name that is too long
        raise ValueError(
            f"data: nothing is at {_named(data)} (a relative path hangs off the project)"
        )
    files = [top] if top.is_file() else [p for p in top.rglob("*") if p.is_file()]
    sizes = sorted(f"{file.relative_to(top)} {file.stat().st_size}" for file in files)
    # names may hold bytes that are no text
    return hashlib.sha256(os.fsencode("\n".join(sizes))).hexdigest()

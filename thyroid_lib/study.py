"""What a study's YAML may say: one table of keys, checked strictly before any work.

    python -m thyroid_lib.runner check parameters/demo.yaml

Importing this module loads no torch: the workflow reads it at every start.
"""

import ast
import difflib
import hashlib
import json
import math
import re
from pathlib import Path

import yaml

from thyroid_lib import place


def keys_of(module: str, name: str) -> list[str]:
    """Return a module's plain dict's keys (or tuple), read from its source: imports take long."""
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
            return [ast.literal_eval(key) for key in keys]
    raise RuntimeError(f"thyroid_lib/{module}.py assigns no plain dict or tuple to {name}")


def _at_least(least: int) -> tuple:
    return f"{least} or more", lambda value: value >= least


def _one_of(*choices: str) -> tuple:
    return f"one of {', '.join(choices)}", choices.__contains__


def _some_of(*choices: str) -> tuple:
    need = f"one or more of {', '.join(choices)}, none twice"
    return need, lambda value: value and set(value) <= set(choices) and _unique(value)


def _any_of(*choices: str) -> tuple:
    need = f"any of {', '.join(choices)}, none twice"
    return need, lambda value: set(value) <= set(choices) and _unique(value)


def _unique(values: list) -> bool:
    return len(set(values)) == len(values)


LEAKY = keys_of("splits", "LEAKY")
ABOVE_ZERO = "above 0", lambda value: value > 0
SEEDS = "one or more of 0, 1, 2, …, none twice", lambda v: v and min(v) >= 0 and _unique(v)
ANY = "", lambda value: True

# A study's keys, the same in every file: an example, which gives the type, and what is allowed.
SCHEMA = {
    "study": (
        "demo",
        "a-z, 0-9, - and _ only, and none of reference, data, alone (other things lie there)",
        re.compile(r"(?!(reference|data|alone)$)[a-z0-9][a-z0-9_-]*").fullmatch,
    ),
    "source": ("phantom", *_one_of("phantom", "tg3k", "folder")),
    "data": ("", *ANY),
    "phantom_sweeps": (8, *_at_least(1)),
    "phantom_frames": (12, *_at_least(1)),
    "phantom_seed": (0, *_at_least(0)),
    "phantom_text": (True, *ANY),
    "size": (256, "16 to 4096", lambda value: 16 <= value <= 4096),
    "resize": ("square", *_one_of("square", "letterbox")),
    "mend": (["text"], *_any_of(*keys_of("frames", "MENDS"))),
    "models": (["unet"], *_some_of(*keys_of("models", "MODELS"))),
    "width": (0, *_at_least(0)),
    "protocols": (["grouped"], *_some_of(*keys_of("splits", "PROTOCOLS"))),
    "folds": (4, *_at_least(2)),
    "run_folds": ([0], *SEEDS),
    "val_share": (0.15, "above 0 and below 0.5", lambda value: 0 < value < 0.5),
    "seeds": ([0], *SEEDS),
    "epochs": (25, *_at_least(1)),
    "batch_size": (16, *_at_least(1)),
    "lr": (1e-4, *ABOVE_ZERO),
    "selection": ("last", *_one_of("last", "val")),
    "augment": ("none", *_one_of(*keys_of("augment", "AUGMENTS"))),
    "threshold": (0.5, "above 0 and below 1", lambda value: 0 < value < 1),
    "tolerance_px": (2.0, *ABOVE_ZERO),
    "delta": (0.005, "0 or more", lambda value: value >= 0),
    "resamples": (10_000, *_at_least(100)),
    "threads": (1, *_at_least(0)),
    "device": ("auto", *_one_of("auto", "cpu", "cuda", "mps")),
    "precision": ("auto", *_one_of("auto", *keys_of("models", "PRECISIONS"))),
    "pin_instructions": (False, *ANY),
    "budget_minutes": (0.0, "0 (no limit) or more", lambda value: value >= 0),
}


def check_study(config: dict) -> None:
    """Hold a study's settings against `SCHEMA`.

    Raises:
        ValueError: unknown, missing, mistyped or impossible settings; all of them, one a line.
    """
    problems = [unknown(key, SCHEMA) for key in config if key not in SCHEMA]
    problems += [f"{key}: is missing" for key in SCHEMA if key not in config]
    for key, (example, need, allows) in SCHEMA.items():
        if key not in config:
            continue
        wrong = mistyped(config[key], example)
        if not wrong and not allows(config[key]):
            wrong = f"got {json.dumps(config[key])}, need {need}"
        if wrong:
            problems.append(f"{key}: {wrong}")
    if not problems:
        if config["source"] != "phantom" and not config["data"]:
            problems.append(f"data: is empty, source {config['source']} needs its folder (or zip)")
        if config["source"] == "phantom" and config["data"]:
            problems.append("data: phantoms take none, set source to tg3k or folder or leave it ''")
        if max(config["run_folds"]) >= config["folds"]:
            problems.append(
                f"run_folds: got {config['run_folds']}, but folds: {config['folds']} has only "
                f"0 to {config['folds'] - 1}"
            )
        if "reported" in (protocols := config["protocols"]):
            beside = {
                "protocols": ("random and grouped", {"random", "grouped"} <= set(protocols)),
                "selection": ("val", config["selection"] == "val"),
                "mend": ("text", "text" in config["mend"]),
                "augment": ("none", config["augment"] == "none"),
            }
            problems += [
                f"{key}: got {json.dumps(config[key])}, but protocol reported needs {need} beside"
                for key, (need, holds) in beside.items()
                if not holds
            ]
    if problems:
        raise ValueError("\n".join(problems))


def mistyped(value, example) -> str:
    """Say what is wrong with the value's type, the example's being right; "" if nothing is."""
    if isinstance(example, list):
        if not isinstance(value, list):
            got = json.dumps(value, default=str)
            return f"got {got}, need a list such as {json.dumps(example or ['…'])}"
        wrong = [mistyped(each, example[0] if example else "") for each in value]
        return next((text for text in wrong if text), "")
    if type(value) is type(example) or (type(value) is int and type(example) is float):
        infinite = isinstance(value, float) and not math.isfinite(value)
        return f"got {value}, need a finite number" if infinite else ""
    kind = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    hint = ""
    if isinstance(value, str) and isinstance(example, float):
        number = re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?\d+)", value)
        if number:  # YAML 1.1 takes for a number only what has a point and a signed exponent
            whole, part, exponent = number.groups()
            hint = f": write {whole}{part or '.0'}e{int(exponent):+d}"
    got = "nothing" if value is None else json.dumps(value, default=str)
    got = f"the text {got}" if isinstance(value, str) else got
    return f"got {got}, need {kind[type(example)]}{hint}"


def unknown(name: str, choices) -> str:
    """Say that there is no such name, which one may have been meant, and what there is."""
    close = difflib.get_close_matches(str(name), choices, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{name}: unknown{meant}; there are: {', '.join(choices)}"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML lets the last of two equal keys win in silence; a study must not."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name} twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_study(files, overrides: dict | None = None) -> dict:
    """Read and check a study: YAML files, later ones win, then Snakemake's `--config`.

    Raises:
        ValueError: a file is missing or no YAML mapping, or settings are wrong.
    """
    config = {}
    for file in map(Path, files):
        try:
            content = yaml.load(file.read_text(encoding="utf-8"), _StrictLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file.name}: cannot be read: {error}") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            text = getattr(error, "problem", None) or error
            raise ValueError(f"{file.name}{where}: {text}") from None
        except (KeyError, ValueError, RecursionError) as error:  # of values that YAML cannot hold
            raise ValueError(f"{file.name}: is no plain YAML of settings: {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"{file.name}: need lines of `key: value`, as in parameters/demo.yaml")
        config |= content
    for key, value in (overrides or {}).items():
        config[key] = _from_command_line(value, SCHEMA.get(key, ("",))[0])
    check_study(config)
    return config


def _from_command_line(value, example):
    """Undo what Snakemake's `--config` does to types: [0,1] comes as texts, data= as None."""
    if isinstance(example, list) and isinstance(value, list):
        return [_from_command_line(each, example[0]) for each in value]
    if isinstance(example, str):
        return "" if value is None else value if isinstance(value, str) else str(value)
    return yaml.safe_load(value) if isinstance(value, str) else value


def list_data(data: str) -> str:
    """Return a SHA-256 over names and sizes of the files under a source, "" for none.

    Raises:
        ValueError: nothing is there.
    """
    if not data:
        return ""
    top = place(data)
    if not top.exists():
        raise ValueError(f"data: nothing is at {data} (a relative path hangs off the project)")
    files = [top] if top.is_file() else [p for p in top.rglob("*") if p.is_file()]
    sizes = sorted(f"{file.relative_to(top)} {file.stat().st_size}" for file in files)
    return hashlib.sha256("\n".join(sizes).encode()).hexdigest()

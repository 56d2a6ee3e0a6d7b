"""Checks before any work: a notebook's parameters, and a study's networks, data and packages.

The runner checks what it is given before it starts a kernel. In a kernel of plain papermill or of a
browser, `platforms.start` in the set-up cell calls `check_cells`, which reads the cells that ran.
"""

import ast
import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from thyroid_lib.data.locate import asks_network
from thyroid_lib.files.paths import project_path
from thyroid_lib.models import encoder_names, pretrained, user_networks
from thyroid_lib.settings import (
    NETWORKS,
    check_parameters,
    list_variants,
    printable,
    show,
    unknown,
)

HEAD = "# Parameters"  # papermill's first line of the cell that it injects; ours goes on with "of"


def parameter_defaults(notebook: str | Path) -> dict:
    """Read names and defaults from the notebook's cell that is tagged `parameters`.

    ValueError: no such notebook, not one such cell, or a line that is no `name = literal`.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        (tagged,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", []))
        lines = ast.parse("".join(tagged["source"])).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except Exception as error:  # any file may be given
        need = "need a notebook with one cell tagged `parameters`, each line `name = value`"
        raise ValueError(f"{notebook}: {need}: {' '.join(str(error).split())[:200]}") from None


def read_parameters(given: str) -> dict:
    """Read the JSON object that `--parameters` was given; ValueError, one line, if it is none."""
    with suppress(ValueError, RecursionError):
        if isinstance(parameters := json.loads(given), dict):
            return parameters
    raise ValueError(f'--parameters: got {show(given)}, need a JSON object such as {{"seed": 1}}')


def check(given: dict, defaults: dict) -> None:
    """Check parameters, and that their networks exist; see `settings.check_parameters`."""
    values = check_parameters(given, defaults)
    check_networks(values.get("models", []))
    # all: the three papers' networks, in 3-train
    check_networks([values["model"]] if values.get("model", "all") != "all" else [], "model")


def check_cells() -> None:
    """Check the parameters of the notebook that runs in this kernel; raises as `check`.

    Names come from the last parameters cell that ran and from what papermill injected after it,
    values are those in effect. nbval keeps no history of cells, so that nothing is checked there.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    own, injected = [], []
    for source in shell.user_ns.get("In", []) if shell else ():
        if not source.startswith((f"{HEAD} of", f"{HEAD}\n")):
            continue
        nodes = ast.walk(ast.parse(shell.transform_cell(source)))
        names = [x.id for x in nodes if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)]
        own, injected = (own, injected + names) if source[len(HEAD)] == "\n" else (names, [])
    values = {name: shell.user_ns[name] for name in own + injected}
    check(values, {name: values[name] for name in own})


def check_networks(names: list[str], key: str = "models") -> None:
    """Raise ValueError unless each network is of the library, a package, or a file that fits."""
    own = user_networks.files()
    problems = []
    for name in names:
        if name in NETWORKS and name in own:
            file = f"architectures/{name}.py"
            problems.append(f"{file} has the name of a network of the library: rename the file")
        elif name in own:
            problems.append(user_networks.problem(name))
        elif ":" in name:
            problems.append(encoder_names.problem(name))
        elif name not in NETWORKS:
            file = f"or a file architectures/{name}.py ({user_networks.HELP})"
            problems.append(f"{unknown(name, [*NETWORKS, encoder_names.FORMS, *own])}, {file}")
    if problems := [f"{key}: {problem}" for problem in problems if problem]:
        raise ValueError("\n".join(problems))


def check_variants(config: dict) -> None:
    """Raise ValueError unless networks and files of weights of a study's variants are there."""
    variants = list_variants(config)
    check_networks([own["model"] for own in variants.values()])
    for name, own in variants.items():
        if (source := (config | own)["pretrained"]) not in ("none", "imagenet"):
            try:
                pretrained.locate(own["model"], source)
            except ValueError as error:
                raise ValueError(f"variants: {name}: {error}") from None


def list_data(data: str) -> str:
    """Return a SHA-256 over names and sizes of a source's files; ValueError if nothing is there.

    "" without a source, and for data that may be fetched, which are the same on every machine.
    """
    if not data or asks_network(data):
        return ""
    top = project_path(data)
    if not os.path.exists(top):  # unlike Path's it takes a name that is too long
        where = "(a relative path starts at the project)"
        raise ValueError(f"data: nothing is at {printable(data)} {where}")
    files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    sizes = sorted(f"{file.relative_to(top)} {file.stat().st_size}" for file in files)
    # names may hold bytes that are no text
    return hashlib.sha256(os.fsencode("\n".join(sizes))).hexdigest()

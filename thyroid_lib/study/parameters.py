"""Parameters of a notebook: its tagged cell read, values checked before the notebook does any work.

The runner checks what it is given before it starts a kernel. In a kernel of plain papermill or of a
browser, `platforms.start` in the set-up cell calls `check_cells`, which reads the cells that ran.
"""

import ast
import json
import sys
from pathlib import Path

from thyroid_lib.settings import check_parameters, show
from thyroid_lib.study.ready import check_networks

HEAD = "# Parameters"  # papermill's first line of the cell that it injects; ours goes on with "of"


def parameter_defaults(notebook: str | Path) -> dict:
    """Read names and defaults from the notebook's cell that is tagged `parameters`.

    ValueError: no such notebook, not one such cell, or a line that is no `name = literal`.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        if len(tagged) != 1:
            raise ValueError(f"{len(tagged)} cells have that tag")
        lines = ast.parse("".join(tagged[0]["source"])).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except Exception as error:  # any file may be given
        need = "need a notebook with one cell tagged `parameters`, each line `name = value`"
        raise ValueError(f"{notebook}: {need}: {' '.join(str(error).split())[:200]}") from None


def read_parameters(given: str) -> dict:
    """Read what `--parameters` was given: a JSON object, or a file of one; else ValueError."""
    try:
        if not given.lstrip().startswith(("{", "[")):
            given = Path(given).read_text(encoding="utf-8-sig")
        parameters = json.loads(given)
        if not isinstance(parameters, dict):
            raise ValueError("no object")
        return parameters
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or error
        need = 'need a JSON object such as {"seed": 1}, or a file that holds one'
        raise ValueError(f"--parameters: got {show(given)}: {said}; {need}") from None


def check(given: dict, defaults: dict) -> None:
    """Check parameters, and that their networks exist; see `settings.check_parameters`."""
    values = check_parameters(given, defaults)
    check_networks(values.get("models", []))
    # all: the three papers' networks, in 3-train
    check_networks([values["model"]] if values.get("model", "all") != "all" else [], "model")


def check_cells() -> None:
    """Check the parameters of the notebook that runs in this kernel, as the runner does.

    Names come from the last parameters cell that ran and from what papermill injected after it;
    values are those in effect, so that a cell edited by hand is checked, too. nbval keeps no
    history of cells: its notebooks were checked when they were executed. Raises as `check`.
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

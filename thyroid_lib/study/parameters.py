"""Parameters of a notebook: its tagged cell read, values checked before the notebook does any work.

The runner checks what it is given before it starts a kernel. In a kernel of plain papermill or of a
browser, `platforms.start` in the set-up cell calls `check_cells`, which reads the cells that ran.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from thyroid_lib.settings import check_parameters, printable, show
from thyroid_lib.study.ready import check_networks

HEAD = "# Parameters"  # papermill's first line of the cell that it injects; ours goes on with "of"

ALL = "all"  # as `model` of 3-train: the three papers' networks


def parameter_defaults(notebook: str | Path) -> dict:
    """Read names and defaults from the notebook's cell that is tagged `parameters`.

    Raises:
        ValueError: no such notebook, not one such cell, or a line that is no `name = literal`.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [
            "".join(cell["source"])
            for cell in cells
            if "parameters" in cell.get("metadata", {}).get("tags", [])
        ]
        if len(tagged) != 1:
            raise ValueError(f"{len(tagged)} cells have that tag")
        lines = ast.parse(tagged[0]).body
        targets = [getattr(line, "target", None) or line.targets[0] for line in lines]  # x: T = …
        values = [ast.literal_eval(line.value) for line in lines]
        return dict(zip([target.id for target in targets], values, strict=True))
    except OSError as error:
        raise ValueError(f"{notebook}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError,
            MemoryError) as error:  # fmt: skip
        need = "need a notebook with one cell tagged `parameters`, each line `name = value`"
        raise ValueError(f"{notebook}: {need}: {' '.join(str(error).split())[:200]}") from None


def read_parameters(given: str) -> dict:
    """Read what `--parameters` was given: a JSON object, or a file that holds one.

    Raises:
        ValueError: neither; one line that names the option.
    """
    try:
        if not given.lstrip().startswith(("{", "[")):
            given = Path(given).read_text(encoding="utf-8-sig")
        parameters = json.loads(given, object_pairs_hook=_each_once)
        if not isinstance(parameters, dict):
            raise ValueError("no object")
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())
        need = 'need a JSON object such as {"seed": 1}, or a file that holds one'
        raise ValueError(f"--parameters: got {show(given)}: {said}; {need}") from None
    return parameters


def _each_once(pairs: list[tuple]) -> dict:
    """Make a JSON object; of two equal names Python would keep the last in silence."""
    content: dict = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{printable(name)} twice")
        content[name] = value
    return content


def check(given: dict, defaults: dict) -> None:
    """Check parameters, and that their networks exist; see `settings.check_parameters`."""
    values = check_parameters(given, defaults)
    check_networks(values.get("models", []))
    check_networks([values["model"]] if values.get("model", ALL) != ALL else [], "model")


def check_cells() -> None:
    """Check the parameters of the notebook that runs in this kernel, as the runner does.

    Names come from the last parameters cell that ran and from what papermill injected after it;
    values are those in effect, so that a cell edited by hand is checked, too. nbval keeps no
    history of cells: its notebooks were checked when they were executed.

    Raises:
        ValueError: as `check`.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    own, injected = [], []
    for source in shell.user_ns.get("In", []) if shell else ():
        if source.startswith(f"{HEAD} of"):
            own, injected = list(_assigned(shell.transform_cell(source))), []
        elif source.startswith(f"{HEAD}\n"):
            injected += _assigned(shell.transform_cell(source))
    values = {name: shell.user_ns[name] for name in own + injected}
    check(values, {name: values[name] for name in own})


def _assigned(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id

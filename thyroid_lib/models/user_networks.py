"""Networks of one's own: `architectures/<name>.py` below the project's root, one network a file.

    python -m thyroid_lib.models.user_networks           # the names that a study may use
    python -m thyroid_lib.models.user_networks dilated   # try architectures/dilated.py first

The file defines one class derived from `models.Network`, and `models: [unet, dilated]` in a study's
parameters compares it with the others; docs/new-model.md has an example. It is code that somebody
wrote and named: it is run by those studies alone that name it, and no file that a study reads is.

Importing this module loads no torch: the workflow reads the names at every start.
"""

import argparse
import ast
import importlib.util
import re
import sys
import traceback
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path

from thyroid_lib.files.fingerprint import code_fingerprint
from thyroid_lib.files.writing import project_path

FOLDER = "architectures"
HELP = "docs/new-model.md has an example"
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
WITH_TORCH = {"torch", "thyroid_lib"}  # the key of a training holds torch's version …
IN_KEY = {"models"}  # … and the training version covers this wing
TRIES = 5  # of initial weights, until a network that gives no logit outside 0 to 1 is refused


def files() -> dict[str, Path]:
    """Return the networks' files by name, sorted; what begins with _ or . is none."""
    found = sorted(project_path(FOLDER).glob("*.py"))
    return {path.stem: path for path in found if path.stem[0] not in "._" and path.is_file()}


def problem(name: str) -> str:
    """Say what is wrong with the file of this name, as far as it shows without running it.

    Returns:
        One line that names the file, its line and what is needed; "" if nothing is wrong.
    """
    if not NAME.fullmatch(name):
        return f"{FOLDER}/{name[:50]}.py: a name needs a-z first, then a-z, 0-9 and _, 40 at most"
    if "_reported" in name:
        return f"{FOLDER}/{name}.py: _reported marks networks of the replication: need another name"
    try:
        tree = ast.parse(files()[name].read_text(encoding="utf-8-sig"))
        packages(name)
    except SyntaxError as error:
        return f"{FOLDER}/{name}.py, line {error.lineno}: {error.msg}: need Python; {HELP}"
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        said = " ".join(str(error).split())[:200]
        return said if said.startswith(FOLDER) else f"{FOLDER}/{name}.py: need a text: {said}"
    if not any(isinstance(node, ast.ClassDef) for node in tree.body):
        return f"{FOLDER}/{name}.py: no class in it, need one derived from Network; {HELP}"
    return ""


def packages(name: str) -> dict[str, str]:
    """Return the versions of what a network's file imports beside torch: they, too, make it.

    Raises:
        ValueError: it imports what is not installed, such as another file of the project: only the
            one file's code decides whether its runs are trained anew.
    """
    imported = {}
    path = f"{FOLDER}/{name}.py"
    for node in ast.walk(ast.parse(files()[name].read_text(encoding="utf-8-sig"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "thyroid_lib":
            imported |= {f"thyroid_lib.{alias.name}": node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported["." * node.level + (node.module or "")] = node.lineno
    for module, line in imported.items():
        top, _, inside = module.partition(".")
        if top == "thyroid_lib" and inside.partition(".")[0] not in IN_KEY:
            raise ValueError(
                f"{path}, line {line}: imports {module}: need thyroid_lib.models alone of it, as "
                "an edit of another module would not train the network anew"
            )
    lines = {module.partition(".")[0]: line for module, line in imported.items()}
    lines = {top: n for top, n in lines.items() if top not in WITH_TORCH | sys.stdlib_module_names}
    known = metadata.packages_distributions() if lines else {}
    for top, line in lines.items():
        if top not in known:
            raise ValueError(
                f"{path}, line {line}: imports {top or 'a file beside it'}, which is "
                "no installed package: install it, or write what is needed into this one file"
            )
    return {top: metadata.version(known[top][0]) for top in sorted(lines)}


def fingerprint(name: str) -> str:
    """Return a SHA-256 over what a network's file does; "" for a network of the library."""
    path = files().get(name)
    return code_fingerprint(path) if path else ""


def build(name: str, in_channels: int = 1, out_channels: int = 1, width: int | None = None):
    """Build a network of the library or of one's own by name; `models.initialise` sets its weights.

    Args:
        width: the number of base channels; None or 0 means the papers' 64.

    Returns:
        A `models.Network`.

    Raises:
        ValueError: no such network, two of that name, a file that defines none (file, line and
            what is needed are named), or a width or channel count below 1.
    """
    from thyroid_lib.models import MODELS, PAPER_WIDTH, build_model

    own = files()
    if name in MODELS and name in own:
        raise ValueError(
            f"{FOLDER}/{name}.py has the name of a network of the library: give it another"
        )
    if name in MODELS:
        return build_model(name, in_channels, out_channels, width)
    if name not in own:
        raise ValueError(
            f"unknown model {name!r}; choose one of {', '.join([*MODELS, *own])}, or write "
            f"{FOLDER}/{name}.py ({HELP})"
        )
    if width is None or (width == 0 and not isinstance(width, bool)):
        width = PAPER_WIDTH
    network = load(name)
    try:
        return network(in_channels, out_channels, width)
    except (Exception, SystemExit) as error:
        raise _told(error, name, f"{network.__name__}(in_channels, out_channels, width)") from error


def load(name: str) -> type:
    """Run a network's file and return the one class in it that is derived from `models.Network`.

    Raises:
        ValueError: it cannot be run, or defines none or several; names the file and the line.
    """
    from thyroid_lib.models import Network

    if wrong := problem(name):
        raise ValueError(wrong)
    full = f"{FOLDER}.{name}"
    loader = _Unkept(full, str(files()[name]))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(full, loader))
    sys.modules[full] = module  # where a dataclass, say, looks for it
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _told(error, name, "a file that can be imported") from error
    classes = {id(each): each for each in vars(module).values() if isinstance(each, type)}
    found = [c for c in classes.values() if issubclass(c, Network) and c.__module__ == full]
    if len(found) != 1:
        got = ", ".join(each.__name__ for each in found) or "none"
        raise ValueError(
            f"{FOLDER}/{name}.py: classes derived from thyroid_lib.models.Network: {got}; need one "
            f"(its parts derive from torch's nn.Module); {HELP}"
        )
    return found[0]


class _Unkept(SourceFileLoader):
    """Compile the text as it is now: bytecode beside it may be of an older one."""

    def path_stats(self, path):
        raise OSError


def check(net, name: str, size: int) -> None:
    """Hold a network of one's own against what the study takes for granted, before any work.

    Args:
        net: as built; its weights are set anew.
        size: side of the images, in pixels.

    Raises:
        ValueError: names the file, its line where there is one, and what is needed.
    """
    import torch

    from thyroid_lib.models import at_least_one, initialise, multiply_adds

    where = f"{FOLDER}/{name}.py"
    try:
        at_least_one("divisor", getattr(net, "divisor", None))
    except ValueError as error:
        raise ValueError(f"{where}: {error}: H and W must be multiples of it") from None
    net.check(torch.empty(1, net.in_channels, size, size, device="meta"))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))
    try:
        initialise(net, seed=0)
        unset = [key for key, value in net.named_parameters() if not value.isfinite().all()]
        if unset:
            raise ValueError(
                f"{where}: the seed does not set {', '.join(unset[:5])}: give the class that makes "
                "it a method reset_parameters(self), as most of torch's own layers have (around "
                "nn.MultiheadAttention: one that calls its _reset_parameters)"
            )
        multiply_adds(net, size)  # on shapes alone: it may not look into the numbers
        side = net.divisor * -(-32 // net.divisor)
        draw = torch.Generator().manual_seed(0)
        image = torch.rand(2, net.in_channels, side, side, generator=draw)
        tries = []
        with torch.no_grad():
            for seed in range(TRIES):
                initialise(net, seed)
                tries.append(net.eval()(image))
    except ValueError as error:
        raise error if str(error).startswith(FOLDER) else _told(error, name) from error
    except Exception as error:
        raise _told(error, name) from error
    expected = (2, net.out_channels, side, side)
    shapes = [tuple(getattr(each, "shape", ())) for each in tries]
    if shapes[0] != expected:
        got = shapes[0] or type(tries[0]).__name__
        raise ValueError(
            f"{where}: for images {tuple(image.shape)} forward gives {got}, need logits {expected}"
        )
    if all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in tries):
        raise ValueError(
            f"{where}: all that forward gives lies in 0 to 1: need logits, not probabilities; "
            "leave out the sigmoid, the study has it"
        )


def _told(error: Exception, name: str, need: str = "") -> ValueError:
    """Return the error with the last line of the network's file that led to it."""
    path = str(files()[name])
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f"{FOLDER}/{name}.py" + (f", line {lines[-1]}" if lines else "")
    said = " ".join(str(error).split())[:300]
    return ValueError(
        f"{where}: {type(error).__name__}: {said}"
        + (f"; need {need}" if need else "")
        + f"; {HELP}"
    )


def main(arguments: list[str] | None = None) -> int:
    """List the networks, or try one of one's own; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib.models.user_networks")
    parser.add_argument("name", nargs="?", help=f"of {FOLDER}/<name>.py; without it: the names")
    parser.add_argument("--size", type=int, help="side of the images, in pixels")
    parser.add_argument(
        "--width", type=int, default=64, help="base channels (64, as in the papers)"
    )
    asked = parser.parse_args(arguments)
    from thyroid_lib.models import MODELS, count_parameters, multiply_adds

    if asked.name is None:
        print("in the library:", ", ".join(MODELS))
        sound = [name for name in files() if name not in MODELS and not problem(name)]
        print(f"in {FOLDER}/:", ", ".join(sound) or "none")
        return 0
    if asked.size is not None and asked.size < 1:
        parser.error(f"--size: got {asked.size}, need 1 or more")
    try:
        net = build(asked.name, width=asked.width)
        size = asked.size or net.divisor * max(1, 256 // net.divisor)
        check(net, asked.name, size)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{asked.name}: ready; {count_parameters(net):,} parameters at width {asked.width}, "
        f"{multiply_adds(net, size) / 1e9:.2f} G multiply-adds for {size}×{size} px, "
        f"heights and widths in multiples of {net.divisor}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Networks of a user: `architectures/<name>.py` in the project's root, one network per file.

    python -m thyroid_lib.models.user_networks dilated --width 8 --size 64  # checks the file

docs/new-model.md has an example. This module does not import torch: see `models`.
"""

import argparse
import ast
import importlib.util
import sys
import traceback
from importlib import metadata
from pathlib import Path

from thyroid_lib.files.fingerprint import code_fingerprint
from thyroid_lib.files.paths import project_path

FOLDER = "architectures"
HELP = "docs/new-model.md has an example"
SEEDS = 5  # initial weights that are tried before outputs within 0 to 1 count as probabilities


def files() -> dict[str, Path]:
    """Return the networks' files by name, sorted; names that begin with _ or . are left out."""
    found = sorted(project_path(FOLDER).glob("*.py"))
    return {path.stem: path for path in found if path.stem[0] not in "._" and path.is_file()}


def fingerprint(name: str) -> str:
    """Return a SHA-256 of the code of a user's network; "" for a network of the library."""
    return code_fingerprint(files()[name]) if name in files() else ""


def problem(name: str) -> str:
    """Say in a line what is wrong with a network's name or file, without running it; else ""."""
    where = f"{FOLDER}/{name}.py"
    if "_reported" in name:
        return f"{where}: _reported marks networks of the replication: need another name"
    try:
        packages(name)
        if any(isinstance(node, ast.ClassDef) for node in _parse(name).body):
            return ""
        return f"{where}: no class in it, need one derived from Network; {HELP}"
    except SyntaxError as error:
        return f"{where}, line {error.lineno}: {error.msg}: need Python; {HELP}"
    except (OSError, ValueError) as error:
        return f"{where}: {error}"


def _parse(name: str) -> ast.Module:
    return ast.parse(files()[name].read_text(encoding="utf-8-sig"))


def packages(name: str) -> dict[str, str]:
    """Return the versions of the packages, other than torch, that a network's file imports.

    ValueError: it imports another file of the project, whose edit would not retrain its runs, or
    what is not installed.
    """
    lines, versions = {}, {}
    for node in ast.walk(_parse(name)):
        if isinstance(node, ast.Import):
            lines |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            inside = [f"{module}.{alias.name}" for alias in node.names]
            lines |= dict.fromkeys(inside if module == "thyroid_lib" else [module], node.lineno)
    for module, line in lines.items():
        top, where = module.partition(".")[0], f"line {line}: imports"
        if top == "thyroid_lib" and module.split(".")[1:2] != ["models"]:
            raise ValueError(f"{where} {module}: of the library need thyroid_lib.models alone")
        if top in {"torch", "thyroid_lib"} | sys.stdlib_module_names:
            continue
        if not (found := metadata.packages_distributions().get(top)):
            what = f"{top or 'a file beside it'}, which is no installed package"
            raise ValueError(f"{where} {what}: install it, or write all into this one file")
        versions[top] = metadata.version(found[0])
    return dict(sorted(versions.items()))


def build(name: str, in_channels: int, out_channels: int, width: int):
    """Run a network's file and build the one class in it that is derived from `models.Network`."""
    from thyroid_lib.models import Network

    if wrong := problem(name):
        raise ValueError(wrong)
    spec = importlib.util.spec_from_file_location(f"{FOLDER}.{name}", files()[name])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    # Cached bytecode would outlive an edit within a second that keeps the file's length.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    need = "a file that can be imported"
    try:
        spec.loader.exec_module(module)
        classes = (each for each in vars(module).values() if isinstance(each, type))
        networks = (each for each in classes if issubclass(each, Network))
        own = {each.__name__: each for each in networks if each.__module__ == spec.name}
        if len(own) == 1:
            need = f"{min(own)}(in_channels, out_channels, width)"
            return own[min(own)](in_channels, out_channels, width)
    except (Exception, SystemExit) as error:
        raise _located(error, name, need) from error
    finally:
        sys.dont_write_bytecode = before
    names = f"classes derived from thyroid_lib.models.Network: {', '.join(sorted(own)) or 'none'}"
    raise ValueError(f"{FOLDER}/{name}.py: {names}; need one; {HELP}")


def check(net, name: str, size: int) -> None:
    """Check a user's network at this size (px) of images; reset its weights. Raises as `build`."""
    try:
        wrong = _misfit(net, size)
    except Exception as error:
        raise _located(error, name) from error
    if wrong:
        raise ValueError(f"{FOLDER}/{name}.py: {wrong}")


def _misfit(net, size: int) -> str:
    import torch

    from thyroid_lib.models import at_least_one, initialise, multiply_adds

    at_least_one("divisor", getattr(net, "divisor", None))
    net.check(torch.empty(1, net.in_channels, size, size, device="meta"))
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    initialise(net, seed=0)
    if unset := [key for key, value in net.named_parameters() if not value.isfinite().all()]:
        need = "give the class that makes it a method reset_parameters(self)"
        return f"the seed does not set {', '.join(unset[:5])}: {need}, as torch's layers have"
    multiply_adds(net, size)  # has shapes alone: fails where forward uses a tensor's values
    side = net.divisor * -(-32 // net.divisor)
    image = torch.rand(2, net.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    expected = 2, net.out_channels, side, side
    for seed in range(SEEDS):
        initialise(net, seed)
        with torch.no_grad():
            logits = net.eval()(image)
        got = tuple(getattr(logits, "shape", ())) or type(logits).__name__
        if got != expected:
            return f"for images {tuple(image.shape)} forward gives {got}, need logits {expected}"
        if logits.min() < 0 or logits.max() > 1:
            return ""
    return "forward gives numbers in 0 to 1 alone: need logits, not probabilities: no sigmoid"


def _located(error: BaseException, name: str, need: str = "") -> ValueError:
    """Return the error as one line, with the last line of the network's file that led to it."""
    path = str(files()[name])
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f"{FOLDER}/{name}.py" + (f", line {lines[-1]}" if lines else "")
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ValueError(f"{where}: {message}{need and f'; need {need}'}; {HELP}")


def main(arguments: list[str] | None = None) -> int:
    """Check a user's network from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m thyroid_lib.models.user_networks")
    parser.add_argument("name", help=f"the network of {FOLDER}/<name>.py")
    parser.add_argument("--size", type=int, default=0, help="side of the images, in pixels")
    parser.add_argument("--width", type=int, default=64, help="base channels (64 in the papers)")
    options = parser.parse_args(arguments)
    from thyroid_lib.models import build_model, count_parameters, multiply_adds

    try:
        net = build_model(options.name, width=options.width)
        size = options.size or net.divisor * max(1, 256 // net.divisor)
        check(net, options.name, size)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.name}: ready; {count_parameters(net):,} parameters at width {options.width}, "
        f"{multiply_adds(net, size) / 1e9:.2f} G multiply-adds for {size}×{size} px, "
        f"heights and widths in multiples of {net.divisor}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a study needs before it starts: its networks, its data and optional packages."""

import hashlib
import importlib.util
import os

from thyroid_lib.data.locate import asks_network
from thyroid_lib.files.paths import project_path
from thyroid_lib.models import user_networks
from thyroid_lib.settings import NETWORKS, printable, unknown


def check_networks(names: list[str], key: str = "models") -> None:
    """Check that each network is the library's, or a user's own file that fits, without running it.

    ValueError: names the network, the file and what is needed.
    """
    own = user_networks.files()
    problems = []
    for name in names:
        if name in NETWORKS and name in own:
            path = f"architectures/{name}.py"
            problems.append(f"{path} has the name of a network of the library: need another")
        elif name in own:
            problems.append(user_networks.problem(name))
        elif name not in NETWORKS:
            file = f"or a file architectures/{name}.py ({user_networks.HELP})"
            problems.append(f"{unknown(name, [*NETWORKS, *own])}, {file}")
    if problems := [f"{key}: {problem}" for problem in problems if problem]:
        raise ValueError("\n".join(problems))


def check_deploy(wanted: bool) -> None:
    """Raise ValueError if models are to be exported and a package for that is missing."""
    need = ("onnx", "onnxruntime", "onnxscript")
    if missing := [name for name in need if wanted and not importlib.util.find_spec(name)]:
        advice = f"`pip install {' '.join(missing)}`, or set deploy to false"
        raise ValueError(f"deploy: {', '.join(missing)} not installed: {advice}")


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

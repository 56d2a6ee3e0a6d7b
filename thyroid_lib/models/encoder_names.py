"""Names of networks on encoders of timm and of networks of segmentation_models.pytorch (smp).

    resunet:<encoder>             the Residual U-Net's decoder on an encoder of timm
    smp:<architecture>:<encoder>  a network of smp; tu-<name> is an encoder of timm

Both packages are in the extra `encoders`; resunet:tf_efficientnet_lite0 needs neither. Names are
read from the packages' files, without torch. docs/encoders.md has more.
"""

import difflib
import re
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from thyroid_lib.files.packages import missing_packages

OWN = "tf_efficientnet_lite0"  # efficientnet.py
FORMS = f"resunet:<encoder>, as resunet:{OWN}, or smp:<architecture>:<encoder>"
LISTED = 20  # names that a message lists at most


def problem(name: str) -> str:
    """Say in a line what is wrong with a network's name that has a colon; "" if nothing is."""
    kind, *parts = name.split(":")
    needed = {"resunet": ["timm"], "smp": ["timm", "segmentation_models_pytorch"]}.get(kind)
    if name == f"resunet:{OWN}":
        return ""
    if not needed or len(parts) != len(needed):
        return f"{name}: unknown; there are {FORMS}"
    if missing := missing_packages("torchvision", *needed):
        meant = difflib.get_close_matches(parts[0].lower(), [OWN], cutoff=0.8)
        hint = f"; resunet:{OWN} needs none of them" * bool(meant)
        return f"{name}: {missing}, or the extra encoders: `pip install .[encoders]`{hint}"
    if kind == "resunet":
        checks = [("encoder", parts[0], timm_names())]
    else:
        encoders = timm_names("tu-") if parts[1].startswith("tu-") else smp_names("encoder")
        checks = [("architecture", parts[0], smp_names("architecture"))]
        checks += [("encoder", parts[1], encoders)]
    return "; ".join(_unknown(name, *each) for each in checks if each[1] not in each[2])


def _unknown(name: str, what: str, part: str, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(part, choices, n=LISTED, cutoff=0.5)
    listed = [*close, *(each for each in choices if each not in close)][:LISTED]
    more = len(choices) - len(listed)
    and_more = f" and {more} more" if more else ""
    return f"{name}: unknown {what} {part}; there are: {', '.join(listed)}{and_more}"


@lru_cache
def _read(package: str, files: str) -> str:
    """Return the text of a package's files, which are not run."""
    folder = Path(find_spec(package).submodule_search_locations[0])
    return "\n".join(file.read_text("utf-8") for file in sorted(folder.glob(files)))


@lru_cache
def timm_names(prefix: str = "") -> tuple[str, ...]:
    """Return the names of timm's models, sorted."""
    found = re.findall(r"^@register_model\ndef (\w+)\(", _read("timm", "models/*.py"), re.M)
    return tuple(prefix + name for name in sorted(found))


@lru_cache
def smp_names(what: str) -> tuple[str, ...]:
    """Return the names of smp's architectures or encoders."""
    files, pattern = {
        "architecture": ("__init__.py", r"^    (\w+),$(?=[^\[]*^\]\nMODEL_ARCHITECTURES_MAPPING)"),
        "encoder": ("encoders/*.py", r'^    "([\w.-]+)": {$'),
    }[what]
    found = re.findall(pattern, _read("segmentation_models_pytorch", files), re.M)
    return tuple(name.lower() for name in found)


def versions(name: str) -> dict[str, str]:
    """Return the versions of the packages that a network's code comes from, by package."""
    names = {"resunet": ["timm"], "smp": ["segmentation-models-pytorch", "timm"]}
    kind = name.partition(":")[0] if ":" in name and name != f"resunet:{OWN}" else ""
    return {each: metadata.version(each) for each in names.get(kind, [])}

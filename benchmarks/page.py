"""The page README.md of this folder, from the files in results/: one part per machine.

Its figures all come from those files; each section writes its own tables and goals.
"""

import importlib
import importlib.metadata
import json
import operator
import os
import platform
import re
import textwrap
from datetime import date
from pathlib import Path

import psutil
import torch

from thyroid_lib.files.parallel import cores
from timing import figure

SECTIONS = {  # name: its title
    "gpu": "On a GPU",
    "training": "Training",
    "networks": "SegNet and Residual U-Net, their layout mended, and compiled",
    "preprocessing": "Preprocessing",
    "scoring": "Scoring",
    "workflow": "The workflow's overhead",
    "scaling": "Time and memory against the number of frames",
    "deploy": "The released networks",
    "costs": "What each network costs",
    "bits": "What is the same to the bit, and how close the rest comes",
}
PACKAGES = (
    "torch", "torchvision", "monai", "segmentation-models-pytorch", "torchmetrics", "pillow",
    "numpy", "scipy", "snakemake",
)  # fmt: skip
SIGNS = {
    ">=": ("at least", operator.ge), ">": ("above", operator.gt),
    "<=": ("at most", operator.le), "<": ("below", operator.lt),
}  # fmt: skip
NO_GPU = "No GPU has been measured yet: `make gpu` does that in 8 minutes."
TOP = """\
# Benchmarks

The speed of this project, against the limit of the machine and against the alternatives: the
reported study's loop written plainly, MONAI, segmentation_models.pytorch (smp), torchmetrics.
`make bench` writes this page from the files in [`results/`](results), one per machine; `make bench
ONLY=training` measures one section and keeps the others. `make gpu` measures a GPU within 8
minutes and installs nothing: where there is no registry, carry the folder that `make gpu-wheels`
fills. The last section is about repeatability: which runs repeat to the bit. `latency.py` is a
separate measurement.

**How it is measured.** All frames are phantoms that this project draws: 3,585, as many as TG3K has,
at its sizes, stored as JPEG. Things that are compared take turns in one process, and each repeat
begins with another of them. A figure is the median over the repeats, in brackets the lowest and the
highest. A ratio is taken within each repeat, so that a slow minute of the machine affects both
sides. Peers are run in their favour ([`peers.py`](peers.py) says how). As documented, they run in
the layout and precision of their examples; at equal layout and precision, in this project's, with
its loss and optimiser. Memory is anonymous memory: pages of files, memory maps among them, are not
counted, because the system can drop them.
"""


def describe() -> dict:
    """This machine, without path, host or user, and a `slug` that names its file of results."""
    file, names = Path("/proc/cpuinfo"), []
    if file.exists():
        names = re.findall(r"model name\s*:\s*(.*\S)", file.read_text(encoding="utf-8"))
    processor = names[0] if names else platform.processor() or platform.machine()
    about = {
        "processor": processor, "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(), "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30), "system": platform.system(),
    }  # fmt: skip
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30)}
        about |= {"cuda": torch.version.cuda}
    held = about["instructions"] * ("ATEN_CPU_CAPABILITY" in os.environ)  # to fewer than it has
    words = f"{processor} {about['cores']} cores {held} {about.get('gpu', '')}"
    return about | {"slug": re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")}


def circumstances(command: str) -> dict:
    """Date, command and versions of a measurement."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return {"date": date.today().isoformat(), "command": command, "versions": versions}


def render(folder: Path) -> str:
    """The page, from all JSON files of `folder`; the machine measured last comes first."""
    results = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    results.sort(key=lambda r: max(part["date"] for part in r["sections"].values()), reverse=True)
    none = [f"{NO_GPU}\n"] if not any("gpu" in each["machine"] for each in results) else []
    return "\n".join([TOP, *none, *("\n".join(_machine(**result)) for result in results)])


def with_gpus(readme: str, folder: Path) -> str:
    """The project's README with its sentences on GPUs, which come from the files of `make gpu`."""
    files = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("gpu-*.json"))]
    text = " ".join(importlib.import_module("gpu").summary(**file) for file in files) or NO_GPU
    text = textwrap.fill(text, 100)
    before, rest = readme.split("<!-- gpu -->\n")
    return f"{before}<!-- gpu -->\n{text}\n<!-- /gpu -->{rest.split('<!-- /gpu -->')[1]}"


def _machine(machine: dict, sections: dict) -> list[str]:
    versions = [section["versions"] for section in sections.values()]
    usual = max(reversed(versions), key=versions.count)  # of most sections
    title, gpu = machine["processor"], ""
    if machine.get("slug", "").endswith("avx2"):
        title += ", held to AVX2"
    if "gpu" in machine:
        title = f"{machine['gpu']}, {title}"
        gpu = f"; one GPU of {machine['gpu_memory_gib']} GiB, CUDA {machine['cuda']}"
    lines = [
        f"## {title}\n\n{machine['cores']} cores ({machine['instructions']}), "
        f"{machine['memory_gib']} GiB of memory, {machine['system']}; PyTorch on "
        f"{machine['threads']} threads{gpu}. {_versions(usual)}.\n"
    ]
    for name in (name for name in SECTIONS if name in sections):
        section, found = importlib.import_module(name), sections[name]
        lines += [f"### {SECTIONS[name]}\n\n{section.show(found['result'])}\n"]
        goals = [judge(*goal) for goal in section.goals(found["result"], "gpu" in machine)]
        lines += ["Goals:", "", *goals, ""] if goals else []
        minutes = f"{found['seconds'] / 60:.0f} min" if found["seconds"] >= 60 else "under a minute"
        other = "" if found["versions"] == usual else f"; with {_versions(found['versions'])}"
        quick = "; tiny sizes: it runs, no more is shown" * ("--quick" in found["command"])
        lines += [f"*{found['date']}, `{found['command']}`, {minutes}{quick}{other}.*", ""]
    return lines


def judge(sentence: str, sign: str, limit: float, value: float | None) -> str:
    """One line of the page: whether a goal is met."""
    words, holds = SIGNS[sign]
    need = f"{sentence}, {words} {limit:g}"
    if value is None:
        return f"- not measured: {need}."
    return f"- {'met' if holds(value, limit) else '**not met**'}: {need}; reached {figure(value)}."


def _versions(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)

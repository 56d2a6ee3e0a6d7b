"""README.md of this folder, written from the files in results/: one part per machine.

Nothing in it is typed by hand but the sentences here; each section says its own tables.
"""

import importlib
import json
from pathlib import Path

SECTIONS = {  # name: its title
    "limit": "The limit of the machine",
    "training": "Training",
    "fullsize": "The three full-size models",
    "preprocessing": "Preprocessing",
    "scoring": "Scoring",
    "workflow": "The workflow's overhead",
    "scaling": "Time and memory against the number of frames",
    "cost": "A training step against size and width",
    "deploy": "The released networks",
    "bits": "What is the same to the bit, and how close the rest comes",
}
TOP = """\
# Benchmarks

How fast this project is, against the limit of the machine and against what one would use instead:
the reported study's loop written plainly, MONAI, segmentation_models.pytorch (smp), torchmetrics.
This page is made by `make bench` from the files in [`results/`](results), one per machine; a
section alone is `make bench ONLY=training`, and the rest is kept. The last section is no race: it
says which runs repeat to the bit. `audit.py` and `coverage.py` are measurements of their own.

**How it is measured.** All frames are phantoms that this project draws: 3,585, as many as TG3K has,
at its sizes, stored as JPEG. Things that are compared take turns in one process, and each repeat
begins with another of them. A figure is the median over the repeats, in brackets the lowest and the
highest. A ratio is taken within each repeat, so that a slow minute of the machine hits both sides.
Peers are run in their favour where there was a choice: caches are filled and worker processes
started before the clock, and what they print or log is left out. As documented, they run in the
layout and precision of their examples; at equal layout and precision, in this project's, with its
loss and optimiser, so that only their way to the batch and their work per step remain. MONAI's
example is given its CacheDataset, smp's is written without Lightning ([`peers.py`](peers.py) says
what else), both to their advantage. Memory is anonymous memory: pages of files, memory maps among
them, are not in it, since the system takes them back when it needs them.
"""


def render(folder: Path, judge) -> str:
    """The whole page, from every JSON file of `folder`; the machine measured last comes first.

    Args:
        judge: takes a section's name, what it reached and the machine; returns lines that say which
            goals hold.
    """
    results = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    newest = sorted(results, key=_last_date, reverse=True)
    return "\n".join([TOP, *("\n".join(_machine(result, judge)) for result in newest)])


def _last_date(result: dict) -> str:
    return max((section["date"] for section in result["sections"].values()), default="")


def _machine(result: dict, judge) -> list[str]:
    about, sections = result["machine"], result["sections"]
    usual = _usual_versions(sections)
    lines = [f"## {title_of(about)}", "", f"{sentence_of(about)} {versions_of(usual)}.", ""]
    for name, title in SECTIONS.items():
        if found := sections.get(name):
            section = importlib.import_module(name)
            lines += [f"### {title}", "", section.show(found["result"]), ""]
            if goals := judge(name, section.reached(found["result"]), about):
                lines += [*goals, ""]
            lines += [f"*{circumstances_of(found, usual)}*", ""]
    return lines


def _usual_versions(sections: dict) -> dict:
    """What most sections were measured with, the newest of them where there is a draw."""
    newest_first = sorted(sections.values(), key=lambda section: section["date"], reverse=True)
    versions = [section["versions"] for section in newest_first]
    return max(versions, key=versions.count)


def title_of(about: dict) -> str:
    return f"{about['gpu']}, {about['processor']}" if "gpu" in about else about["processor"]


def sentence_of(about: dict) -> str:
    """One sentence about the machine."""
    text = (
        f"{about['cores']} cores ({about['instructions']}), {about['memory_gib']} GiB of memory, "
        f"{about['system']}; PyTorch on {about['threads']} threads"
    )
    if "gpu" in about:
        text += f"; one GPU of {about['gpu_memory_gib']} GiB, CUDA {about['cuda']}"
    return f"{text}."


def versions_of(versions: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def circumstances_of(found: dict, versions: dict) -> str:
    """Date, command and duration; versions where they are not the machine's usual ones."""
    minutes = f"{found['seconds'] / 60:.0f} min" if found["seconds"] >= 60 else "under a minute"
    other = "" if found["versions"] == versions else f"; with {versions_of(found['versions'])}"
    quick = "; tiny sizes: this shows that it runs, not how fast" * ("--quick" in found["command"])
    return f"{found['date']}, `{found['command']}`, {minutes}{quick}{other}."

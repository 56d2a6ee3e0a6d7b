"""What the site shows beside docs/: the executed demo, where it lies, without a copy in git.

A hook of mkdocs, named in mkdocs.yml. Of the trainings one of each model is shown: the held-out
sweeps, first seed.
"""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "results" / "reference" / "demo"
SHOWN = re.compile(r"\d-[a-z]+|3-train-\w+-grouped-fold0-seed0")


def notebooks() -> list[Path]:
    """Return the executed notebooks that are shown, in their order."""
    return [path for path in sorted(DEMO.glob("*.ipynb")) if SHOWN.fullmatch(path.stem)]


def title(path: Path) -> str:
    """Return a notebook's title for the list of pages: "3 train: unet"."""
    words = path.stem.removesuffix("-grouped-fold0-seed0").split("-")
    return " ".join(words[:2]) + (f": {words[2]}" if len(words) > 2 else "")


def on_config(config):
    for section in config.nav:
        if isinstance(section, dict) and "The demo, executed" in section:
            section["The demo, executed"] = [
                {title(path): f"demo/{path.name}"} for path in notebooks()
            ]
    return config


@event_priority(100)  # before mkdocs-jupyter, which takes the notebooks up
def on_files(files, config):
    for path in notebooks():
        name, top = f"demo/{path.name}", str(DEMO.parent)
        files.append(File(name, top, config.site_dir, config.use_directory_urls))
    return files


def on_post_page(output, page, config):
    """Take out what a notebook's page would fetch from elsewhere; nothing here needs it."""
    return re.sub(
        r"<script[^>]*\bsrc=[\"'][^\"']*(?:https?:|none\.js)[^>]*>\s*</script>", "", output
    )

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
    for path in (*notebooks(), *DEMO.glob("frames.png")):
        name = f"demo/{path.name}"
        files.append(File(name, str(DEMO.parent), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let docs/ name what the demo left by its place in the repository, as GitHub needs it."""
    return markdown.replace("../results/reference/demo/", "demo/")


def on_page_context(context, page, config, nav):
    """Leave a notebook the width of the table of contents: its code and tables need it."""
    if page.file.src_uri.startswith("demo/"):
        page.meta["hide"] = ["toc"]
    return context


def on_post_page(output, page, config):
    """Take out what a notebook's page would fetch from elsewhere; nothing here needs it.

    These are scripts with an address, scripts that import one (diagrams, of which there are none),
    and the pictures of the badges, whose words stay.
    """
    output = re.sub(
        r"<script[^>]*\bsrc=[\"'][^\"']*(?:https?:|none\.js)[^>]*>\s*</script>", "", output
    )
    output = re.sub(
        r"<script\b[^>]*>(?:(?!</script>).)*?\bimport\([\"']https?:(?:(?!</script>).)*</script>",
        "",
        output,
        flags=re.S,
    )
    return re.sub(r"<img\b[^>]*\balt=\"(Open in \w+)\"[^>]*>", r"\1", output)

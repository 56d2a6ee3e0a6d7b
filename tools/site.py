"""A hook of mkdocs: it adds the executed demo and its figure to the site, without a copy in git.

mkdocs.yml names this file. Of the trainings, one per network is shown: the first seed on held-out
sweeps.
"""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
SHOWN = re.compile(r"\d-[a-z]+|3-train-\w+-grouped-fold0-seed0")
# Scripts with an address, scripts that import one, and the pictures of badges, whose words stay.
FETCHING = (
    (r"<script[^>]*\bsrc=[\"'][^\"']*(?:https?:|none\.js)[^>]*>\s*</script>", ""),
    (
        r"<script\b[^>]*>(?:(?!</script>).)*?\bimport\([\"']https?:(?:(?!</script>).)*</script>",
        "",
    ),
    (r"<img\b[^>]*\balt=\"(Open in \w+)\"[^>]*>", r"\1"),
)


def notebooks() -> list[Path]:
    """Return the executed notebooks that are shown, in their order."""
    paths = sorted((REFERENCE / "demo").glob("*.ipynb"))
    return [path for path in paths if SHOWN.fullmatch(path.stem)]


def title(path: Path) -> str:
    """Return a notebook's title in the menu, e.g. "3 train: unet"."""
    words = path.stem.removesuffix("-grouped-fold0-seed0").split("-")
    return " ".join(words[:2]) + (f": {words[2]}" if len(words) > 2 else "")


def on_config(config):
    for section in config.nav:
        if isinstance(section, dict) and "The demo, executed" in section:
            section["The demo, executed"] = [
                {title(path): f"demo/{path.name}"} for path in notebooks()
            ]
    return config


@event_priority(100)  # before mkdocs-jupyter, which converts the notebooks
def on_files(files, config):
    for path in (*notebooks(), *REFERENCE.glob("front-page/*.png")):
        name = path.relative_to(REFERENCE).as_posix()
        files.append(File(name, str(REFERENCE), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replace paths in the repository, which GitHub needs, by paths on the site."""
    return markdown.replace("../results/reference/", "")


def on_page_context(context, page, config, nav):
    """Hide the table of contents beside a notebook: code and tables need the width."""
    if page.file.src_uri.startswith("demo/"):
        page.meta["hide"] = ["toc"]
    return context


def on_post_page(output, page, config):
    """Remove everything that a notebook's page would fetch from other machines."""
    for pattern, replacement in FETCHING:
        output = re.sub(pattern, replacement, output, flags=re.S)
    return output

"""The site builds and fetches nothing from elsewhere; links and paths in all documents exist.

What documents say to run: `test_commands.py`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

import map as library_map  # tools/map.py
import own_data  # tools/own_data.py

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?:https?:)?//|mailto:|data:|javascript:")
# what a browser fetches by itself
FETCHED = re.compile(
    r"<(?!a\b)(?![^>]*canonical)\w+\b[^>]*\b(?:src|href)=[\"']((?:https?:)?//[^\"']+)"
    r"|url\(\s*[\"']?((?:https?:)?//)|import\(\s*[\"'](https?:)"
)
PATTERNS = ("*.md", "benchmarks/*.md", "results/**/README.md", "docs/*.md", "notebooks/*.ipynb")
TEXTS = {p.relative_to(ROOT).as_posix(): p for each in PATTERNS for p in sorted(ROOT.glob(each))}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    """The site of a copy of the documents with two broken links, and what mkdocs says."""
    pytest.importorskip("mkdocs_jupyter")
    pytest.importorskip("material")
    project, results = tmp_path_factory.mktemp("docs"), "results/reference"
    for part in ("docs", "mkdocs.yml", "tools/site.py", f"{results}/demo", f"{results}/front-page"):
        (project / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, project / part)
    with open(project / "docs" / "sturdy.md", "a", encoding="utf-8") as file:
        file.write("\n[there](nowhere.md)\n[here](statistics.md#nothing-there)\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # with --quiet it is not
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode != 0
    return project / "site", done.stdout + done.stderr


@pytest.mark.study
def test_a_broken_link_or_anchor_is_an_error_and_there_is_no_other(built):
    warnings = [line for line in built[1].splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2, built[1]
    for link in ("nowhere.md", "statistics.md"):
        assert any("sturdy.md" in line and link in line for line in warnings)


@pytest.mark.study
def test_the_site_shows_the_demo_and_the_front_figure_and_fetches_nothing(built):
    site, _ = built
    texts = {p.relative_to(site).as_posix(): p.read_text("utf-8") for p in site.rglob("*.*ml")}
    texts |= {path.name: path.read_text("utf-8") for path in site.rglob("*.css")}
    assert [(name, hit[0]) for name, text in texts.items() for hit in FETCHED.finditer(text)] == []
    demo = {name: text for name, text in texts.items() if name.startswith("demo/")}
    links = set(re.findall(r'<a\b[^>]* href="([^"]+)"', texts["index.html"]))
    assert links >= set(demo) >= {"demo/0-quickstart.html", "demo/4-compare.html"}
    assert "3 train: segnet" in texts["index.html"]  # and not three of one title
    for name, text in demo.items():
        assert "find_spec" not in text, name  # of the setup
        assert 'class="jp-Cell' in text, name
        assert text.count("<script") > 3, name  # its own stay
        assert re.search("md-sidebar--secondary[^>]* hidden", text), name  # width for the code
    assert "front-page/light.png" in texts["index.html"]
    assert {path.name for path in (site / "front-page").glob("*.png")} >= {"light.png", "dark.png"}


def markdown_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text("utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_blocks(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text)


def anchors_of(text: str) -> set[str]:
    """Headings as GitHub writes their anchors."""
    titles = re.findall(r"(?m)^#+ +(.+?) *$", without_blocks(text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", TEXTS)
def test_what_texts_link_show_and_name_is_there(name):
    """Files are named below the root or, if of the library, below `thyroid_lib`."""
    path, text = TEXTS[name], markdown_of(TEXTS[name])
    plain = re.sub(r"`[^`\n]+`", "`x`", without_blocks(text))
    links = re.findall(r"\]\(([^)\s]+)\)", plain)
    links += re.findall(r"\bsrc(?:set)?=\"([^\"]+)\"", plain)
    for link in (link for link in links if not OUTSIDE.match(link)):
        file, _, anchor = unquote(link).partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(markdown_of(target)), link
    own = re.compile(r"architectures/|(parameters/)?mine\.yaml|out\.ipynb|kaggle/")
    roots = ROOT, ROOT / "thyroid_lib", ROOT / "notebooks", path.parent
    for file in re.findall(r"`([\w./-]+\.(?:py|ya?ml|ipynb|sh|toml|cff))`", text):
        there = any((root / file).exists() for root in roots)
        assert own.match(file) or there or list(ROOT.glob(f"thyroid_lib/*/{file}")), file


def test_every_page_is_reached_from_readme():
    text = (ROOT / "README.md").read_text("utf-8")
    missing = {path.name for path in ROOT.glob("docs/*.md") if f"docs/{path.name}" not in text}
    assert missing <= {"index.md"}


def test_the_data_sets_of_the_tests_are_those_of_the_page():
    assert own_data.PAGE.read_text("utf-8") == own_data.page(), "run python tools/own_data.py"


def test_the_map_lists_the_files_of_the_library():
    text = library_map.PAGE.read_text("utf-8")
    assert text == library_map.with_files(text), "run python tools/map.py"
    assert not re.search(r"(?m)^\| `.*` \|\s*\|", text), "a file without a first line"

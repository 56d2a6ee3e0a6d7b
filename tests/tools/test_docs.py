"""The site builds and fetches nothing from elsewhere; links and paths in all documents exist.

What documents say to run: `test_commands.py`.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import map as library_map  # tools/map.py
import own_data  # tools/own_data.py

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?:https?:)?//|mailto:|data:|javascript:")


def build(project: Path, *parts: str) -> subprocess.CompletedProcess:
    """Build the site of a copy of the documents."""
    pytest.importorskip("mkdocs_jupyter")
    pytest.importorskip("material")
    for part in ("docs", "mkdocs.yml", "tools/site.py", *parts):
        (project / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
        copy(ROOT / part, project / part)
    with open(project / "docs" / "sturdy.md", "a", encoding="utf-8") as file:
        file.write("" if parts else "\n[there](nowhere.md)\n[here](statistics.md#nothing-there)\n")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],  # with --quiet nothing is strict
        cwd=project, capture_output=True, text=True,
    )  # fmt: skip


class Page(HTMLParser):
    """The links of a page, what it fetches by itself, and its anchors."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.fetched, self.anchors, self.images = [], [], set(), 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        self.anchors |= {of[name] for name in ("id", "name") if of.get(name)}
        self.images += tag == "img"
        if tag == "a" and of.get("href"):
            self.links.append(of["href"])
        elif tag == "link" and of.get("rel") != "canonical":
            self.fetched.append(of.get("href"))
        elif of.get("src"):
            self.fetched.append(of["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    project = tmp_path_factory.mktemp("docs")
    done = build(project, "results/reference/demo", "results/reference/front-page")
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "site"


@pytest.mark.study  # builds the site, as do those below that take it
def test_every_link_and_anchor_of_the_site_is_there_and_nothing_comes_from_elsewhere(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 12
    broken, seen = [], 0
    for path, page in pages.items():
        broken += [url for url in page.fetched if url and re.match("(https?:)?//", url)]
        for link in [*page.links, *page.fetched]:
            if not link or OUTSIDE.match(link):
                continue
            parts = urlsplit(link)
            base = site if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = {"", "__comments"} | (pages[target].anchors if target in pages else set())
            seen += 1
            if not target.exists() or unquote(parts.fragment) not in anchors:
                broken.append(f"{path.name}: {link}")
    for path in site.rglob("*.css"):
        broken += re.findall(r"url\(\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8"))
    assert broken == []
    assert seen > 200


@pytest.mark.study
def test_the_executed_demo_is_shown(site):
    stems = [path.stem for path in sorted((site / "demo").glob("*.html"))]
    assert {"1-preprocess", "2-audit", "4-compare"} <= set(stems)
    assert len([stem for stem in stems if stem.startswith("3-train")]) == 3
    assert Page(site / "demo" / "4-compare.html").images > 5
    index = (site / "index.html").read_text(encoding="utf-8")
    assert len(set(re.findall(r"demo/3-train-\w+", index))) == 3
    assert "3 train: segnet" in index  # and not three of one title
    assert {"demo/0-quickstart.html", "demo/4-compare.html"} <= set(Page(site / "index.html").links)
    for path in (site / "demo").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "find_spec" not in text, path  # of the setup
        assert 'class="jp-Cell' in text, path
        assert not re.search(r"import\(\s*[\"']https?:", text), path
        assert re.search("md-sidebar--secondary[^>]* hidden", text), path  # width for the code


@pytest.mark.study
def test_the_first_page_has_a_figure(site):
    assert "front-page/light.png" in Page(site / "index.html").fetched
    for theme in ("light", "dark"):
        kept = ROOT / "results" / "reference" / "front-page" / f"{theme}.png"
        assert (site / "front-page" / f"{theme}.png").read_bytes() == kept.read_bytes()


TAKEN_OUT = {
    '<script src="https://a/b.js"></script>': "",
    "<script>one()</script>": "<script>one()</script>",
    '<script type="module">\nawait import("https://a/b.mjs")\n</script>': "",
    "<script>one()</script><p><script>import('https://a/b')</script>": "<script>one()</script><p>",
    '<a href="https://a"><img alt="Open in Colab" src="https://a/b.svg"/></a>': (
        '<a href="https://a">Open in Colab</a>'
    ),
    '<img alt="chart" src="data:x"/>': '<img alt="chart" src="data:x"/>',
}


def test_what_a_page_would_fetch_from_elsewhere_is_taken_out():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "tools" / "site.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    for before, after in TAKEN_OUT.items():
        assert hook.on_post_page(before, None, None) == after


@pytest.mark.study
def test_broken_links_would_be_found(tmp_path):
    done = build(tmp_path)
    assert done.returncode != 0
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line]
    for link in ("nowhere.md", "statistics.md"):
        assert any("sturdy.md" in line and link in line for line in warnings)


def markdown_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_code(text: str) -> str:
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    return re.sub(r"`[^`\n]+`", "`x`", text)


def anchors_of(text: str) -> set[str]:
    """Headings as GitHub writes their anchors."""
    titles = re.findall(r"(?m)^#+ +(.+?) *$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("results/**/README.md")]
TEXTS += [*ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
by_text = pytest.mark.parametrize(
    "path", sorted(TEXTS), ids=lambda path: path.relative_to(ROOT).as_posix()
)


@by_text
def test_what_texts_link_show_and_name_is_there(path):
    """Files are named below the root or, if of the library, below `thyroid_lib`."""
    text = markdown_of(path)
    plain = without_code(text)
    links = re.findall(r"\]\(([^)\s]+)\)", plain)
    links += re.findall(r"\bsrc(?:set)?=\"([^\"]+)\"", plain)
    for link in links:
        if OUTSIDE.match(link):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(markdown_of(target)), link
    own = re.compile(r"architectures/|(parameters/)?mine\.yaml|out\.ipynb|kaggle/")
    roots = ROOT, ROOT / "thyroid_lib", ROOT / "notebooks", path.parent
    for name in re.findall(r"`([\w./-]+\.(?:py|ya?ml|ipynb|sh|toml|cff))`", text):
        there = any((root / name).exists() for root in roots)
        assert own.match(name) or there or list(ROOT.glob(f"thyroid_lib/*/{name}")), name


def test_every_page_is_reached_from_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in ROOT.glob("docs/*.md") if f"docs/{p.name}" not in text]
    assert set(missing) <= {"index.md"}, missing


def test_the_data_sets_of_the_tests_are_those_of_the_page():
    assert own_data.PAGE.read_text("utf-8") == own_data.page(), "run python tools/own_data.py"


def test_the_map_lists_the_files_of_the_library():
    text = library_map.PAGE.read_text(encoding="utf-8")
    assert text == library_map.with_files(text), "run python tools/map.py"
    undescribed = [line for line in text.splitlines() if re.fullmatch(r"\| `.*` \|\s*\|", line)]
    assert undescribed == []

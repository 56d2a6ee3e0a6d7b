"""The repository's address in pyproject.toml, README, pages and notebooks is the same."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))

import badges  # noqa: E402

PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")


def copy(target: Path) -> Path:
    """README, pyproject.toml, pages and the notebooks, executed ones too."""
    names = ("README.md", "pyproject.toml", "tools/badges.py", "docs/index.md", "docs/colab.md")
    notebooks = *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("results/reference/*/*.ipynb")
    for path in (*(ROOT / name for name in names), *notebooks):
        place = target / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    return target


def run(root: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "tools" / "badges.py", *words]
    return subprocess.run(command, capture_output=True, text=True)


def cells_of(notebook: Path) -> dict[str, str]:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return {cell["id"]: "".join(cell["source"]) for cell in cells[:4]}


@pytest.mark.parametrize("word", ["a/b;touch PWNED", "a/b'; touch PWNED; '", "-a/b"])
def test_make_passes_the_address_on_unchanged(word):
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "badges", f"REPO={word}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout.replace("\\\n", " "))[-2:] == ["--", word]


def test_the_committed_files_are_what_make_badges_writes(tmp_path):
    assert badges.write_all(copy(tmp_path), badges.repository(PYPROJECT)) == []


def test_an_address_reaches_readme_and_every_notebook(tmp_path):
    root = copy(tmp_path)
    done = run(root, "somebody/thyroid-study")
    assert done.returncode == 0, done.stderr
    urls = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert urls == {"Repository": "https://github.com/somebody/thyroid-study"}
    readme = (root / "README.md").read_text("utf-8")
    for text in (
        "https://colab.research.google.com/github/somebody/thyroid-study/blob/main/notebooks/0-quic",
        "git clone https://github.com/somebody/thyroid-study && cd thyroid-study\n",
        'pip install "thyroid-lib @ git+https://github.com/somebody/thyroid-study@main"',
    ):
        assert text in readme
    for path in (*root.glob("notebooks/*.ipynb"), *root.glob("results/reference/*/*.ipynb")):
        name = "3-train" if path.stem.startswith("3-train") else path.stem
        cells = cells_of(path)
        assert f"somebody/thyroid-study/blob/main/notebooks/{name}.ipynb" in cells["title"]
        line = 'repository = "thyroid-lib @ git+https://github.com/somebody/thyroid-study@main"'
        assert line in cells["setup"]
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert "0 files written" in run(root).stdout
    assert "0 files written" in run(root, "somebody/thyroid-study").stdout
    assert {path: path.read_bytes() for path in before} == before


def test_an_address_reaches_the_pages_that_clone(tmp_path):
    root = copy(tmp_path)
    index, colab = root / "docs" / "index.md", root / "docs" / "colab.md"
    before = {page: page.read_text("utf-8") for page in (index, colab)}
    badges.write_all(root, "somebody/first")
    badges.write_all(root, "an-other/second.study")  # replaces the first
    url = "https://github.com/an-other/second.study"
    clone = f"    git clone {url} && cd second.study\n    make quickstart\n"
    assert clone in index.read_text("utf-8")
    assert f"    !git clone {url} thyroid && cd thyroid && make env\n" in colab.read_text("utf-8")
    for page in (index, colab, root / "README.md", root / "notebooks/3-train.ipynb"):
        assert "an-other/second.study" in page.read_text("utf-8")
        assert "somebody/first" not in page.read_text("utf-8")
    badges.write_all(root, "")
    assert {page: page.read_text("utf-8") for page in (index, colab)} == before
    index.write_text(before[index].replace("<!-- clone -->", ""), "utf-8")
    with pytest.raises(ValueError, match="need one line that clones"):
        badges.write_all(root, "somebody/first")


NO_ADDRESSES = [
    "name", "https://github.com/a/b", "a/b/c", "a b/c", "/b", "a/b.git", "a/B.GIT", "a/.", "a/..",
    "../b", "-a/b", "a/-b", "é/b", "a/bé", "a/b\n", "a/b\"", "a/b'", "a/b;ls", "a/", "a/\u212a",
]  # fmt: skip


@pytest.mark.parametrize("repo", ["a/b", "a-1/b.c", "A/.github", "a/b_c-", "a/git", "a/b.gitx"])
def test_valid_addresses(repo):
    assert badges.repository(badges.with_repository(PYPROJECT, repo)) == repo


@pytest.mark.parametrize("repo", NO_ADDRESSES)
def test_invalid_addresses(repo):
    with pytest.raises(ValueError, match="need owner/name"):
        badges.with_repository(PYPROJECT, repo)


def test_an_invalid_address_changes_nothing(tmp_path):
    root = copy(tmp_path)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    done = run(root, "--", "-a/b")
    assert done.returncode == 2
    assert "need owner/name" in done.stderr
    assert {path: path.read_bytes() for path in before} == before

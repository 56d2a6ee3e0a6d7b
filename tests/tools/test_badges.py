"""The repository's address in pyproject.toml, README, pages and notebooks is the same."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import files_of

import badges

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
NO_ADDRESSES = [
    "name", "https://github.com/a/b", "a/b/c", "a b/c", "a/b.git", "a/..", "-a/b", "a/bé", "a/b\n",
    "a/b\"", "a/b;ls",
]  # fmt: skip


@pytest.fixture
def root(tmp_path) -> Path:
    """A copy of README, pyproject.toml, pages and the notebooks, executed ones too."""
    names = ["README.md", "pyproject.toml", "docs/index.md", "docs/colab.md"]
    names += ["tools/badges.py", "tools/marks.py"]
    for path in (*(ROOT / name for name in names), *notebooks(ROOT)):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def notebooks(root: Path) -> list[Path]:
    return [*root.glob("notebooks/*.ipynb"), *root.glob("results/reference/*/*.ipynb")]


def run(root: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, root / "tools" / "badges.py", *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_committed_files_are_what_make_badges_writes(root):
    assert badges.write_all(root, badges.repository(PYPROJECT)) == []


def test_an_address_reaches_readme_and_every_notebook(root):
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
    for path in notebooks(root):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        cells = {cell["id"]: "".join(cell["source"]) for cell in cells}
        name = "3-train" if path.stem.startswith("3-train") else path.stem
        assert f"somebody/thyroid-study/blob/main/notebooks/{name}.ipynb" in cells["title"]
        line = 'library = "thyroid-lib @ git+https://github.com/somebody/thyroid-study@main"'
        assert line in cells["setup"]
    before = files_of(root)
    assert "0 files written" in run(root, "somebody/thyroid-study").stdout
    done = run(root, "--", "-a/b")
    assert (done.returncode, "need owner/name" in done.stderr) == (2, True)
    assert files_of(root) == before


def test_an_address_reaches_the_pages_that_clone(root):
    index, colab = root / "docs" / "index.md", root / "docs" / "colab.md"
    before = {page: page.read_text("utf-8") for page in (index, colab)}
    badges.write_all(root, "an-other/second.study")
    url = "https://github.com/an-other/second.study"
    clone = f"    git clone {url} && cd second.study\n    make quickstart\n"
    assert clone in index.read_text("utf-8")
    assert f"    !git clone {url} thyroid && cd thyroid && make env\n" in colab.read_text("utf-8")
    badges.write_all(root, "")
    assert {page: page.read_text("utf-8") for page in (index, colab)} == before
    index.write_text(before[index].replace("<!-- clone -->", ""), "utf-8")
    with pytest.raises(ValueError, match="need one line that clones"):
        badges.write_all(root, "somebody/first")


def test_addresses():
    for repo in ("a/b", "a-1/b.c", "A/.github", "a/b_c-", "a/git", "a/b.gitx"):
        assert badges.repository(badges.with_repository(PYPROJECT, repo)) == repo
    for repo in NO_ADDRESSES:
        with pytest.raises(ValueError, match="need owner/name"):
            badges.with_repository(PYPROJECT, repo)

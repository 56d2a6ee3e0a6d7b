"""Write the repository's address and the set-up cell into README, pages and notebooks.

    make badges REPO=owner/name    sets it in pyproject.toml, its one place, and writes the rest
    make badges                    only writes the rest anew

README and notebooks open in Colab and Kaggle by a click, and install by one line, once there is an
address; until then they say how to upload. `tests/tools/test_badges.py` keeps all of them in step.
"""

import argparse
import json
import re
import sys
import tomllib
from pathlib import Path

from marks import with_part

ROOT = Path(__file__).resolve().parent.parent
HOST = "https://github.com/"
# As GitHub names accounts and repositories; an ending .git is of a clone's address alone.
ADDRESS = re.compile(
    r"[a-z0-9][a-z0-9-]*/(?!-)(?!\.{1,2}$)(?!.*\.git$)[a-z0-9._-]+", re.ASCII | re.IGNORECASE
)
BRANCH = "main"

# It must work before the library is there. Kaggle's data sets and two folders of Colab's Drive lie
# within four levels; a wheel wins over the repository, as a session may be offline. own-data.ipynb
# carries a wheel (tools/carry.py), which counts where there is nothing else.
SETUP = """\
# @title Set up: the library, this machine and a check of the parameters above
from importlib.util import find_spec

library = {library}
if not find_spec("thyroid_lib"):  # in a clone: make lab
    found = get_ipython().getoutput("find -L . ../input -maxdepth 4 -name 'thyroid_lib-*.whl' 2>&-")
    %pip install -q --no-deps "{[library, *found][-1]}"
from thyroid_lib.study import platforms

platforms.start()"""
CARRIED = 'globals().get("carried", "upload a wheel (make wheel), or run own-data.ipynb first")'
OWN = """\
It reads a folder or zip of frames and masks (or draws phantoms), trains the three networks,
compares them on people whom they never saw, and ends with one zip of tables, figures and weights.
Three edits at most: `data`, and `groups` or `mask_values` if the look at the data asks for them.
"""
TAGS = {"tags": ["setup"], "cellView": "form", "jupyter": {"source_hidden": True}}


def repository(pyproject: str) -> str:
    """Return owner/name from the text of pyproject.toml, "" as long as it is not known."""
    address = tomllib.loads(pyproject)["project"].get("urls", {}).get("Repository", "")
    return address.removeprefix(HOST)


def with_repository(pyproject: str, repo: str) -> str:
    """Return the text of pyproject.toml with this address in it.

    Raises:
        ValueError: it is no owner/name.
    """
    if not ADDRESS.fullmatch(repo):
        raise ValueError(
            f"REPO: got {repo!r}, need owner/name as it stands in the address, without .git"
        )
    urls = f'[project.urls]\nRepository = "{HOST}{repo}"\n\n'
    bare = re.sub(r"\[project\.urls\]\n(?:\w+ = .*\n)*\n", "", pyproject)
    return bare.replace("[project.optional-dependencies]", f"{urls}[project.optional-dependencies]")


def badges(repo: str, notebook: str = "0-quickstart") -> str:
    """Return the two badges that open a notebook, as Markdown; "" without an address."""
    if not repo:
        return ""
    file = f"{repo}/blob/{BRANCH}/notebooks/{notebook}.ipynb"
    colab, kaggle = "https://colab.research.google.com", "https://kaggle.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{file})\n"
        f"[![Open in Kaggle]({kaggle}/static/images/open-in-kaggle.svg)]"
        f"({kaggle}/kernels/welcome?src={HOST}{file})"
    )


def install_line(repo: str) -> str:
    """Return what pip takes, "" without an address."""
    return f"thyroid-lib @ git+{HOST}{repo}@{BRANCH}" if repo else ""


def with_blocks(readme: str, repo: str) -> str:
    """Return the README's text with its blocks for this address."""
    if repo:
        name = repo.partition("/")[2]
        clone = f"    git clone {HOST}{repo} && cd {name}\n"
        how = (
            f"Begin with the notebook from your own data to the result table:\n\n"
            f"{badges(repo, 'own-data')}\n\n{OWN}Its set-up cell installs the library and leaves "
            "the platform's torch and numpy as they are. Elsewhere:\n\n"
            f'    pip install "{install_line(repo)}"\n'
        )
    else:
        clone = "    git clone <this repository> && cd <its folder>\n"
        how = (
            "Begin with `notebooks/own-data.ipynb`: upload it, and nothing else, as it carries the "
            f"library.\n{OWN}Its set-up cell leaves the platform's torch and numpy as they are. "
            "The other notebooks run on the\nsame machine after it, or beside the wheel that "
            "`make wheel` puts into `dist/`: on Colab among\nthe session's files, on Kaggle as a "
            "data set that you attach.\n"
        )
    for name, text in (("badges", badges(repo)), ("clone", clone), ("platforms", how)):
        text += "\n" * bool(text and not text.endswith("\n"))
        readme = with_part(readme, name, text)
    return readme


def with_clone(page: str, repo: str) -> str:
    """Return a page of docs/ with this address where it clones: between its marks, or in a cell."""
    name = repo.partition("/")[2] or "<its folder>"
    ways = (
        (r"(<!-- clone -->\n+)    git clone .*", rf"    git clone {_address(repo)} && cd {name}"),
        (r"(?m)^()    !git clone .*? thyroid &&", rf"    !git clone {_address(repo)} thyroid &&"),
    )
    found = [(re.compile(way), line) for way, line in ways if re.search(way, page)]
    if len(found) != 1 or len(found[0][0].findall(page)) != 1:
        raise ValueError("a page of docs/: need one line that clones")
    return found[0][0].sub(lambda hit: hit[1] + found[0][1], page)


def _address(repo: str) -> str:
    return HOST + repo if repo else "<this repository>"


def with_setup(notebook: dict, source: str, repo: str) -> dict:
    """Return a notebook, or an executed one, with the setup cell and badges for this address.

    Args:
        notebook: as JSON holds it; its first cell is the title.
        source: the name of the notebook in notebooks/, without its ending.
    """
    title, *cells = notebook["cells"]
    text = re.sub(r"\n*\[!\[Open in .*", "", "".join(title["source"]), flags=re.S)
    text += f"\n\n{badges(repo, source)}" if repo else ""
    setup = next((cell for cell in cells if cell.get("id") == "setup"), None)
    cells = [cell for cell in cells if cell is not setup]
    setup = setup or {"cell_type": "code", "execution_count": None, "id": "setup", "outputs": []}
    library = f'"{install_line(repo)}"' if repo else CARRIED
    setup |= {"metadata": TAGS, "source": _lines(SETUP.replace("{library}", library))}
    tagged = [{cell["id"], *cell["metadata"].get("tags", [])} for cell in cells]
    first = {"parameters", "injected-parameters", "library"}  # it checks and installs these
    cells.insert(1 + max(n for n, tags in enumerate(tagged) if tags & first), setup)
    return notebook | {"cells": [title | {"source": _lines(text)}, *cells]}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def write_all(root: Path, repo: str) -> list[Path]:
    """Bring README, docs/ and all notebooks into step; return the files that changed."""
    changed: list[Path] = []
    files = {root / "README.md": lambda text: with_blocks(text, repo)}
    for page in ("index.md", "colab.md"):
        files[root / "docs" / page] = lambda text: with_clone(text, repo)
    for path in (*root.glob("notebooks/*.ipynb"), *root.glob("results/reference/*/*.ipynb")):
        source = "3-train" if path.stem.startswith("3-train-") else path.stem
        files[path] = lambda text, source=source: (
            json.dumps(
                with_setup(json.loads(text), source, repo),
                indent=1,
                sort_keys=True,
                ensure_ascii=False,
            )
            + "\n"
        )
    new = {path: change(path.read_text("utf-8")) for path, change in files.items()}
    for path, text in new.items():
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("repo", nargs="?", help="owner/name; as pyproject.toml has it if left out")
    args = parser.parse_args()
    pyproject = ROOT / "pyproject.toml"
    text = pyproject.read_text("utf-8")
    try:
        text = with_repository(text, args.repo) if args.repo else text
        changed = write_all(ROOT, repository(text))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if text != pyproject.read_text("utf-8"):
        pyproject.write_text(text, "utf-8")
        changed.append(pyproject)
    print(f"{repository(text) or 'no address'}: {len(changed)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

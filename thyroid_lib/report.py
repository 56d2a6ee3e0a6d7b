"""The whole study as one HTML page that needs nothing beside it.

    python -m thyroid_lib.report results/demo

takes the executed notebooks of a study, without their code, the comparison first.
"""

import argparse
import html
import sys
from pathlib import Path

import pandas as pd

from thyroid_lib import no_grammars, write_file

with no_grammars():
    import nbformat
    from nbconvert import HTMLExporter

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1.5rem; }
p, li { max-width: 52rem; }
nav { border-bottom: 1px solid var(--line); padding-bottom: .8rem; }
nav a { margin-right: 1.2em; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
table { border: 0; border-collapse: collapse; font-size: .84rem; display: block;
  margin: .8rem 0 1.4rem; overflow-x: auto; }
th, td { border: 0 solid var(--line); border-bottom-width: 1px; padding: .3em .55em; }
th, td { text-align: right; white-space: nowrap; }
tr:nth-child(even) td { background: var(--soft); }
pre { overflow-x: auto; white-space: pre-wrap; font-size: .85rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .7rem 0; padding: .2rem 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
.anchor-link { display: none; }
"""


SECTIONS = {  # of the page, in its order
    "compare": ("Comparison", "4-compare"),
    "replication": ("Replication", "5-replication"),
    "audit": ("Audit", "2-audit"),
    "data": ("Data", "1-preprocess"),
}


def build_report(study: str | Path, runs: list[str] | None = None) -> Path:
    """Write `report.html` into the study's folder.

    Args:
        runs: the runs to show, by run_id; by default all that were executed.

    Raises:
        FileNotFoundError: the study has no executed comparison yet.
    """
    study = Path(study)
    folder = study / "notebooks"
    if not (folder / "4-compare.ipynb").is_file():
        raise FileNotFoundError(f"{study.name} has no notebooks/4-compare.ipynb: run the study")
    if runs is None:
        executed = [path.stem for path in folder.glob("3-train-*.ipynb")]
        runs = [name.removeprefix("3-train-") for name in executed if "." not in name]
    cost = pd.read_csv(study / "compare" / "cost.csv").to_html(index=False, border=0)
    sections = [
        (name, title, _body(folder / f"{notebook}.ipynb") + cost * (name == "compare"))
        for name, (title, notebook) in SECTIONS.items()
        if (folder / f"{notebook}.ipynb").is_file()
    ]
    details = "".join(
        f"<details><summary>{html.escape(run)}</summary>"
        f"{_body(folder / f'3-train-{run}.ipynb')}</details>"
        for run in sorted(runs)
    )
    sections.append(("runs", f"The {len(runs)} runs", f"<h1>The runs</h1>{details}"))
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    bodies = "".join(f'<section id="{name}">{body}</section>' for name, _, body in sections)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(study.name)}: thyroid segmentation study</title>"
        f"<style>{STYLE}</style><nav><strong>Study “{html.escape(study.name)}”</strong> &ensp; "
        f"{links}</nav>{bodies}<footer><p>Research use, not for diagnosis.</p></footer></html>\n"
    )
    return write_file(study / "report.html", page)


def _body(notebook: Path) -> str:
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True
    )
    return exporter.from_notebook_node(nbformat.read(notebook, as_version=4))[0]


def main() -> int:
    """Build the report of one study from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", help="folder of the study, e.g. results/demo")
    parser.add_argument("--runs", nargs="*", help="run_ids to show; all by default")
    asked = parser.parse_args()
    try:
        build_report(asked.study, asked.runs)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

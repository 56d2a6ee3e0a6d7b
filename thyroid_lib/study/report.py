"""The whole study as one HTML page that needs nothing beside it.

    python -m thyroid_lib.study.report results/demo

takes the executed notebooks of a study, without their code, the comparison first. Of a study that
did not finish it tells which steps are missing, and why.
"""

import argparse
import html
import sys
from pathlib import Path

import pandas as pd

from thyroid_lib.files.writing import no_grammars, write_file
from thyroid_lib.study import checksums
from thyroid_lib.study.checksums import UNFINISHED

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
.failed { border-left: 4px solid #c33; margin: 1rem 0; padding: .1rem 1rem; }
.failed h2 { font-size: 1rem; }
summary { cursor: pointer; padding: .4rem 0; }
.anchor-link { display: none; }
"""


SECTIONS = {  # of the page, in its order
    "compare": ("Comparison", "4-compare"),
    "replication": ("Replication", "5-replication"),
    "deploy": ("Release", "6-deploy"),
    "audit": ("Audit", "2-audit"),
    "data": ("Data", "1-preprocess"),
}


def build_report(
    study: str | Path, runs: list[str] | None = None, steps: list[str] | None = None
) -> Path:
    """Write `report.html` into the study's folder.

    Args:
        runs: the runs to show, by run_id; by default all that were executed.
        steps: all steps that the study has, by their notebooks' names, if some of them failed: the
            report begins with those that are missing, each with its cause and log. What compares
            runs is left out if one is missing, as it is of an earlier time.

    Raises:
        FileNotFoundError: the study has no executed comparison yet, and `steps` were not given.
    """
    study = Path(study)
    folder = study / "notebooks"
    if not (folder / "4-compare.ipynb").is_file() and steps is None:
        raise FileNotFoundError(f"{study.name} has no notebooks/4-compare.ipynb: run the study")
    missing = missing_steps(study, steps or [])
    executed = {path.stem for path in folder.glob("*.ipynb") if "." not in path.stem} - set(missing)
    if runs is None or steps is not None:
        there = {step.removeprefix("3-train-") for step in executed if step.startswith("3-train-")}
        runs = [run for run in runs or there if run in there]
    sections = [] if steps is None else [_unfinished(missing, len(steps))]
    sections += [
        (
            name,
            title,
            _body(folder / f"{notebook}.ipynb") + (_cost(study) if name == "compare" else ""),
        )
        for name, (title, notebook) in SECTIONS.items()
        if notebook in executed
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
    if steps is not None:
        write_file(study / UNFINISHED, "report.html tells of failed steps\n")
    return write_file(study / "report.html", page)


def _cost(study: Path) -> str:
    return pd.read_csv(study / "compare" / "cost.csv").to_html(index=False, border=0)


def missing_steps(study: str | Path, steps: list[str]) -> dict[str, str]:
    """Return the steps that are not done, each with its reason, "" if it only waits for others.

    What compares runs is not done if one of them is missing: it was made at another time.
    """
    study = Path(study)
    missing = [step for step in steps if not (study / "notebooks" / f"{step}.ipynb").is_file()]
    if any(step.startswith(("1-", "3-")) for step in missing):
        missing += [
            step for step in steps if step.startswith(("4-", "5-", "6-")) and step not in missing
        ]
    reasons = dict.fromkeys(missing, "")
    lock = study / ".lock"  # written at the start: an older log tells of an older one
    began = lock.stat().st_mtime if lock.is_file() else 0
    for step in missing:
        reason, log, done = (
            study / place
            for place in (
                f"logs/{step}.failed.txt",
                f"logs/{step}.ipynb",
                f"notebooks/{step}.ipynb",
            )
        )
        if reason.is_file():
            reasons[step] = reason.read_text("utf-8", "replace").strip()
        elif log.is_file() and not done.is_file() and log.stat().st_mtime >= began:
            reasons[step] = f"error: {step}: it ended without a word (killed? out of memory?)"
    return reasons


def _unfinished(missing: dict[str, str], steps: int) -> tuple[str, str, str]:
    """The section of what is missing: name, title, HTML."""
    told = {step: reason for step, reason in missing.items() if reason}
    waiting = [step for step in missing if step not in told]
    stopped = sum(reason.startswith("stopped: ") for reason in told.values())
    failed = len(told) - stopped
    rows = "".join(
        f'<article class="failed"><h2>{html.escape(step)}</h2><pre>{html.escape(reason)}</pre>'
        f'<p>Log: <a href="logs/{html.escape(step)}.ipynb">logs/{html.escape(step)}.ipynb</a></p>'
        "</article>"
        for step, reason in told.items()
    )
    later = f"<p>Not done, as they need others: {', '.join(waiting)}.</p>" * bool(waiting)
    return (
        "unfinished",
        "Not finished",
        f"<h1>This study is not finished</h1><p>{failed} of {steps} steps failed, {stopped} were "
        f"stopped, {steps - len(missing)} are done and shown below. "
        f"{'Mend the cause and start' if failed else 'Start'} the study again: only what is "
        f"missing is done.</p>{rows}{later}",
    )


def _body(notebook: Path) -> str:
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_output_prompt=True, embed_images=True
    )
    return exporter.from_notebook_node(nbformat.read(notebook, as_version=4))[0]


def main() -> int:
    """Build the report of one study from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", help="folder of the study, e.g. results/demo")
    parser.add_argument("--runs", nargs="*", help="run_ids to show; all by default")
    parser.add_argument("--steps", nargs="*", help="all steps of a study of which some failed")
    asked = parser.parse_args()
    try:
        page = build_report(asked.study, asked.runs, asked.steps)
        if asked.steps is None:
            checksums.record(page.parent / "checksums" / "report.sha256", [page])
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason in filter(None, missing_steps(asked.study, asked.steps or []).values()):
        print(reason.splitlines()[0], file=sys.stderr)
    if asked.steps:
        print(f"start again and only what is missing is done; report: {page}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

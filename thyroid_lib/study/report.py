"""`report.html`: a whole study as one page that needs no other file and no network.

    python -m thyroid_lib.study.report results/demo

The page begins with the verdict in three sentences and one figure, or with the steps that are
missing and their reasons. The executed notebooks follow, without their code.
"""

import argparse
import base64
import html
import io
import json
import sys
from pathlib import Path

import matplotlib
import pandas as pd

from thyroid_lib.compare.bootstrap import order_protocols
from thyroid_lib.compare.external import external_sentence
from thyroid_lib.data.groups import groups_note
from thyroid_lib.files.packages import packages
from thyroid_lib.files.writing import write_file
from thyroid_lib.plots.front import TITLES, front_figure, outlined_frame
from thyroid_lib.study.checksums import UNFINISHED, record

SECTIONS = {  # id: (title, notebook), in the order of the page
    "compare": ("Comparison", "4-compare"),
    "replication": ("Replication", "5-replication"),
    "deploy": ("Release", "6-deploy"),
    "audit": ("Audit", "2-audit"),
    "data": ("Data", "1-preprocess"),
}


def build_report(study: Path, steps: list[str] | None = None) -> Path:
    """Write `report.html` into the study's folder: of these `steps`, names of notebooks.

    Missing ones come first. By default it shows all that were executed; FileNotFoundError, if there
    is no comparison among them.
    """
    executed = {path.stem for path in study.glob("notebooks/*.ipynb")}
    if steps is None and "4-compare" not in executed:
        raise FileNotFoundError(f"{study.name} has no notebooks/4-compare.ipynb: run the study")
    missing = missing_steps(study, steps or [])
    executed &= set(steps or executed) - set(missing)
    notebooks = {step: _body(study / "notebooks" / f"{step}.ipynb") for step in sorted(executed)}
    sections = [_unfinished(missing, len(steps))] if missing else []
    if "4-compare" in notebooks:
        cost = pd.read_csv(study / "compare" / "cost.csv")
        notebooks["4-compare"] += cost.to_html(index=False, border=0)
        sections.append(("verdict", "Verdict", _verdict_section(study)))
    for name, (title, step) in SECTIONS.items():
        sections += [(name, title, notebooks[step])] if step in notebooks else []
    trained = {step[8:]: body for step, body in notebooks.items() if step.startswith("3-train-")}
    runs = [f"<details><summary>{run}</summary>{x}</details>" for run, x in trained.items()]
    sections.append(("runs", f"The {len(runs)} runs", f"<h1>The runs</h1>{''.join(runs)}"))
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    bodies = "".join(f'<section id="{name}">{body}</section>' for name, _, body in sections)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{study.name}: thyroid segmentation study</title><style>
{Path(__file__).with_suffix(".css").read_text("utf-8")}</style>
<nav><strong>Study “{study.name}”</strong> &ensp; {links}</nav>
{bodies}<footer><p>Research use, not for diagnosis.</p></footer></html>
"""
    if missing:
        write_file(study / UNFINISHED, "report.html lists failed steps\n")
    path = write_file(study / "report.html", page)
    if not missing:
        (study / UNFINISHED).unlink(missing_ok=True)
    return path


def verdict(summary: pd.DataFrame, selected: dict, *, group: str = "group") -> list[str]:
    """Say in three sentences what a comparison found, by its summary.csv and selected.json.

    `selected` is {} if nothing was selected; `group` is what a group is called: sweep, patient.
    """
    deciding = order_protocols(summary["protocol"])[0]
    table = summary[summary["protocol"] == deciding].set_index("model")
    best = table["dice"].idxmax()
    name = selected.get("model", best)
    dice, low, high = table.loc[name, ["dice", "dice_low", "dice_high"]].astype(float).round(2)
    interval = f" [{low:.2f}, {high:.2f}]" if low <= high else ""  # NaN with a single group
    tested = {"random": "frames drawn at random", "official": "the official test frames"}
    tested["external"] = "data sets that it was not trained on"
    tested = tested.get(deciding, f"{group}s that it was not trained on")
    status = "provisionally selected" if selected.get("provisional") else "selected"
    status = status if selected else "the best by its mean; nothing was selected"
    first = f"{TITLES.get(name, name)} ({status}) has Dice {dice:.2f}{interval} on {tested}."

    second = f"The gap between random frames and unseen {group}s was not measured."
    random = summary[summary["protocol"] == "random"].set_index("model")["dice"]
    if deciding != "random" and name in random:
        gap = round(random[name], 2) - dice  # of the figures that stand here
        more = f"{gap:.2f} more: these have near-copies in the training set"
        change = more if gap > 0.005 else f"{-gap:.2f} less" if gap < -0.005 else "the same"
        second = f"On frames drawn at random it has {random[name]:.2f}, which is {change}."

    others = []
    for words, key in (("not separated from", "not_separated"), ("behind", "dropped")):
        if names := [TITLES.get(each, each) for each in selected.get(key, [])]:
            verb = "is" if len(names) == 1 else "are"
            others.append(f"{', '.join(names)} {verb} {words} {TITLES.get(best, best)}")
    third = "; ".join(others) or "No other network is clearly behind it"
    return [first, second, f"{third if len(table) > 1 else 'No other network was compared'}."]


def _verdict_section(study: Path) -> str:
    summary, chosen = pd.read_csv(study / "compare/summary.csv"), study / "compare/selected.json"
    selected = json.loads(chosen.read_text("utf-8")) if chosen.is_file() else {}
    try:
        frame = outlined_frame(study, summary)
    except (OSError, ValueError):  # the store or the weights are gone since: the chart alone
        frame = None
    matplotlib.use("agg")
    drawn = io.BytesIO()
    front_figure(summary, frame).savefig(drawn, format="png", dpi=160)
    matplotlib.pyplot.close()
    image = "data:image/png;base64," + base64.b64encode(drawn.getvalue()).decode()
    caption = "Dice: mean of the frames of a group (a sweep or a patient), then of the groups."
    if frame:
        caption += f" Outlines: frame {frame['case_id']}, the one with the highest Dice among those"
        caption += " that every network tested both ways, and each network's better seed."
    said, index = verdict(summary, selected), study / "store" / "index.csv"
    if (file := study / "compare/external.csv").is_file():
        said.append(external_sentence(pd.read_csv(file)))
    if index.is_file():
        said.append(groups_note(pd.read_csv(index, dtype=str, na_filter=False)))
    return f"""<h1>Verdict</h1>
<p class="verdict">{html.escape(" ".join(said).strip())}</p>
<img alt="Dice of each network on random frames and on unseen groups" src="{image}">
<p>{html.escape(caption)}</p>"""


def missing_steps(study: Path, steps: list[str]) -> dict[str, str]:
    """Return the steps that are not done, each with its reason; "" if it waits for others."""
    done = {step for step in steps if (study / "notebooks" / f"{step}.ipynb").is_file()}
    # what compares runs shows an earlier state, if one of them is missing
    if any(step.startswith(("1-", "3-")) for step in steps if step not in done):
        done = {step for step in done if not step.startswith(("4-", "5-", "6-"))}
    missing = {step: "" for step in steps if step not in done}
    lock = study / ".lock"  # written at the start: an older log is of an earlier start
    began = lock.stat().st_mtime if lock.is_file() else 0
    for step in missing:
        reason, log = study / f"logs/{step}.failed.txt", study / f"logs/{step}.ipynb"
        if reason.is_file():
            missing[step] = reason.read_text("utf-8", "replace").strip()
        elif log.is_file() and log.stat().st_mtime >= began:
            missing[step] = f"error: {step}: ended without an error message (killed? no memory?)"
    return missing


def _unfinished(missing: dict[str, str], steps: int) -> tuple[str, str, str]:
    """Return the section of the missing steps: id, title, HTML."""
    failures = {step: reason for step, reason in missing.items() if reason}
    waiting = ", ".join(step for step in missing if step not in failures)
    stopped = sum(reason.startswith("stopped: ") for reason in failures.values())
    failed = len(failures) - stopped
    start = "Remove the cause and start" if failed else "Start"
    counts = f"{failed} of {steps} steps failed, {stopped} were stopped, {steps - len(missing)} are"
    body = f"""<h1>This study is not finished</h1>
<p>{counts} done and shown below. {start} the study again: only the missing steps run.</p>"""
    for step, reason in failures.items():
        body += f"""<article class="failed"><h2>{step}</h2><pre>{html.escape(reason)}</pre>
<p>Log: <a href="logs/{step}.ipynb">logs/{step}.ipynb</a></p></article>"""
    if waiting:
        body += f"<p>Not done, because they need other steps: {waiting}.</p>"
    return "unfinished", "Not finished", body


def _body(notebook: Path) -> str:
    # nbformat's schema checker would compile 38 grammars of addresses, which takes a second
    sys.modules.setdefault("rfc3987_syntax", None)
    import nbformat

    with packages("nbconvert"):
        from nbconvert import HTMLExporter

    how = {"exclude_input": True, "exclude_output_prompt": True, "embed_images": True}
    exporter = HTMLExporter(template_name="basic", **how)
    return exporter.from_notebook_node(nbformat.read(notebook, as_version=4))[0]


def main(arguments: list[str] | None = None) -> int:
    """Build the report of one study from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", type=Path, help="folder of the study, e.g. results/demo")
    parser.add_argument("--steps", nargs="+", help="notebooks that the study has; all by default")
    options = parser.parse_args(arguments)
    try:
        page = build_report(options.study, options.steps)
        missing = missing_steps(options.study, options.steps or [])
        if not missing:
            record(page.parent / "checksums" / "report.sha256", [page])
    except (OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for reason in filter(None, missing.values()):
        print(reason.splitlines()[0], file=sys.stderr)
    if missing:
        print(f"start the study again to run the missing steps; report: {page}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

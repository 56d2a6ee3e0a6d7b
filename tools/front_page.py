"""Write the generated parts of README.md and results/README.md from the committed tables.

python tools/front_page.py                        text and figure
python tools/front_page.py --demo results/demo    also the phantom frame, from this demo
"""

import argparse
import json
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from marks import with_part
from thyroid_lib.compare import bootstrap, classes, tables, variations
from thyroid_lib.compare.bootstrap import order_protocols
from thyroid_lib.plots.front import TITLES, front_figure, outlined_frame
from thyroid_lib.study.report import verdict

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path("results/reference")
STUDY = REFERENCE / "tg3k-sample"
FRONT = REFERENCE / "front-page"
FRAME = ROOT / FRONT / "frame.npz"
# parameters/ablation.yaml: the U-Net with all parts of the recipe, and what the others leave out.
WHOLE = "unet_strong"
LEFT_OUT = {
    "no_geometry": "augmentation of geometry", "no_intensities": "augmentation of intensities",
    "no_soft_dice": "soft Dice in the loss", "no_one_cycle": "one-cycle learning rate",
    "no_ema": "averaged weights", "val_kept_out": "training on the validation sweeps",
}  # fmt: skip
ADDED, DELTA = "(added) batch norm of the test sweep *", 0.005
PICTURE = f"""\
<picture>
  <source media="(prefers-color-scheme: dark)" srcset="{FRONT}/dark.png">
  <img alt="Dice of each network on random frames and on unseen sweeps" src="{FRONT}/light.png">
</picture>
"""


def write_frame(demo: Path, path: Path) -> None:
    """Store the outlined frame of a demo: arrays `image`, `reference`, `<network> <kind>`."""
    frame = outlined_frame(demo, pd.read_csv(demo / "compare" / "summary.csv"))
    if frame is None:
        raise ValueError(f"{demo} has no trained runs under two protocols: make demo")
    masks = {f"{m} {kind}": mask for m, of in frame["preds"].items() for kind, mask in of.items()}
    image = np.rint(255 * frame["image"]).astype(np.uint8)
    np.savez_compressed(path, image=image, reference=frame["reference"], **masks)


def read_frame(path: Path) -> dict:
    """Read what `write_frame` stored, as `plots.front.outlined_frame` gives it."""
    with np.load(path, allow_pickle=False) as kept:
        preds = {name.split()[0]: {} for name in kept if " " in name}
        for model, masks in preds.items():
            masks |= {kind: kept[f"{model} {kind}"] for kind in ("random", "unseen")}
        return {"image": kept["image"] / 255, "reference": kept["reference"], "preds": preds}


def front_text() -> str:
    """Return README's first screen below its opening sentence: figure, table and verdict."""
    compare = ROOT / STUDY / "compare"
    summary = pd.read_csv(compare / "summary.csv")
    selected = json.loads((compare / "selected.json").read_text("utf-8"))
    unseen = summary[summary["protocol"] == order_protocols(summary["protocol"])[0]]
    random = summary[summary["protocol"] == "random"].set_index("model")["dice"]
    rows = [
        f"| {TITLES[row.model]} | {row.dice:.3f} [{row.dice_low:.3f}, {row.dice_high:.3f}] "
        f"| {random[row.model]:.3f} |\n"
        for row in unseen.itertuples()
    ]
    sweeps = pd.read_csv(compare / "groups.csv").merge(unseen.iloc[:1], on=["protocol", "model"])
    seeds, (first, second, _) = unseen["seeds"].max(), verdict(summary, selected, group="sweep")
    first = re.sub(r" \[.*?\]", "", first[:-1])  # the interval stands in the table
    return f"""{PICTURE}
*Dice: overlap of outline and reference, 0 to 1. Left: {sweeps["frames"].sum()} real frames of \
{len(sweeps)} sweeps; seeds: {seeds}. Right: a phantom (a frame drawn by this project), by \
networks trained with (blue) and without (orange) its sweep.*

| network | Dice on unseen sweeps [95 % interval] | Dice on random frames |
|:--|:--|:--|
{"".join(rows)}
**{first}; {second[0].lower()}{second[1:]}**
"""


def goal_text(study: Path) -> str:
    """Say which goals of parameters/strong.yaml were reached, and which frames are hard."""
    row = pd.read_csv(study / "compare/summary.csv").set_index("model").loc["resunet_lite0"]
    pairs = pd.read_csv(study / "compare/differences.csv").set_index(["a", "b"])
    low = pairs.loc[("resunet_lite0", "unet"), "low"]
    goals = pd.DataFrame(
        [
            ("Dice", 0.80, row["dice"]),
            ("mean Dice of the worst tenth", 0.37, row["dice_worst_decile"]),
            ("NSD", 0.50, row["nsd"]),
            ("least Dice more than unet, 95 % interval", 0.0, low),
        ],
        columns=["goal for resunet_lite0, declared before the runs", "at least", "measured"],
    )
    goals["reached"] = np.where(goals["measured"] >= goals["at least"], "yes", "no")
    cases = pd.concat(pd.read_csv(x) for x in study.glob("runs/resunet_lite0-*/scores.csv"))
    names = ["below 1,000 px", "1,000 to 2,000 px", "2,000 to 4,000 px", "above 4,000 px"]
    size = pd.cut(cases["ref_px"], [0, 1000, 2000, 4000, np.inf], labels=names)
    sizes = cases.groupby(size.rename("gland in the frame"), observed=True).agg(
        frames=("case_id", "nunique"), Dice=("dice", "mean"), NSD=("nsd", "mean"),
        missed=("dice", lambda dice: 100 * (dice == 0).mean()),
    )  # fmt: skip
    sizes = sizes.rename(columns={"missed": "missed (%)"}).reset_index()
    goals, sizes = (
        x.to_markdown(index=False, floatfmt=of)
        for x, of in ((goals, ("", ".2f", ".3f", "")), (sizes, ("", "", ".3f", ".3f", ".0f")))
    )
    return f"{goals}\n\nIts frames, by the size of the gland in them:\n\n{sizes}"


def ablation_text(study: Path) -> str:
    """Say what each part of the strong recipe is worth: Dice with it minus Dice without it."""
    summary, pairs, changes = (
        pd.read_csv(study / f"compare/{name}.csv")
        for name in ("summary", "differences", "variations")
    )
    dice, rows = summary.set_index("model")["dice"], []
    for model, part in LEFT_OUT.items():
        [pair] = pairs[pairs[["a", "b"]].isin([WHOLE, model]).all(axis=1)].to_dict("records")
        ends = pair["difference"], pair["low"], pair["high"]
        ends = ends if pair["a"] == WHOLE else (-ends[0], -ends[2], -ends[1])
        rows.append((part, dice[model], *ends))
    [norm] = changes.query("model == @WHOLE and variation == 'batch_norm'").to_dict("records")
    rows.append((ADDED, *(norm[name] for name in ("dice", "difference", "low", "high"))))
    table = pd.DataFrame(rows, columns=["left out", "Dice", "worth", "low", "high"])
    table["reading"] = [
        {"a higher": "worth it", "b higher": "harms"}.get(said, said)
        for said in (
            bootstrap.read_interval(row.low, row.high, "a", "b", delta=DELTA)
            for row in table.itertuples()
        )
    ]
    table["worth"] = tables.with_interval(table, ("worth", "low", "high"))
    names = {"worth": "worth of the part [95 % interval]"}
    shown = table.drop(columns=["low", "high"]).rename(columns=names)
    text = shown.to_markdown(index=False, floatfmt=".3f")
    return f"With all parts Dice is {dice[WHOLE]:.3f}.\n\n{text}"


def study_table(study: Path, name: str) -> str:
    """Return a table of a study's comparison as text: "summary", "differences of <model>" …"""
    if name in (texts := {"goal": goal_text, "ablation": ablation_text}):
        return texts[name](study)
    (kind, *of), read = name.split(" of "), lambda file: pd.read_csv(study / f"compare/{file}.csv")
    if kind == "differences":
        pairs, mixed = read("differences"), read("mixed")
        pairs = pairs[(pairs[["a", "b"]] == of[0]).any(axis=1)].reset_index(drop=True)
        shown = tables.show_pairs(pairs, mixed)
    else:
        show = {
            "summary": tables.show_summary, "details": tables.show_details,
            "classes": classes.show_classes, "lesions": classes.show_lesions,
            "variations": variations.show_effects,
        }[kind]  # fmt: skip
        shown = show(read(kind))
        shown = shown if kind in ("summary", "details", "classes") else shown.reset_index()
    return shown.to_markdown(index=False, disable_numparse=True)


def pages() -> dict[Path, str]:
    """Return the text of each page that has generated parts, written anew from the tables."""
    first, results = ROOT / "README.md", ROOT / "results" / "README.md"
    steps = (ROOT / STUDY / "replication" / "steps.md").read_text("utf-8")
    text = with_part(results.read_text("utf-8"), "steps", f"{steps.strip()}\n")
    for mark in re.findall(r"<!-- (?!/)(\S+: .+) -->", text):
        study, name = mark.split(": ")
        text = with_part(text, mark, f"{study_table(ROOT / REFERENCE / study, name)}\n")
    return {first: with_part(first.read_text("utf-8"), "front", front_text()), results: text}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--demo", type=Path, help="folder of an executed demo, e.g. results/demo")
    options = parser.parse_args()
    matplotlib.use("agg")
    try:
        if options.demo:
            write_frame(options.demo, FRAME)
        for path, text in pages().items():
            path.write_text(text, "utf-8")
        summary = pd.read_csv(ROOT / STUDY / "compare" / "summary.csv")
        for theme in ("light", "dark"):
            figure = front_figure(summary, read_frame(FRAME), group="sweep", theme=theme)
            figure.savefig(ROOT / FRONT / f"{theme}.png", dpi=180)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("written: README.md, results/README.md and the figure of the front page")
    return 0


if __name__ == "__main__":
    sys.exit(main())

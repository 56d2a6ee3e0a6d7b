"""The figure that opens README and `report.html`: Dice on random frames against unseen groups."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thyroid_lib.compare.bootstrap import order_protocols
from thyroid_lib.compare.tables import read_run, read_table
from thyroid_lib.data.store import open_store
from thyroid_lib.evaluate.imported import is_imported
from thyroid_lib.evaluate.predict import segment_case
from thyroid_lib.plots.common import REFERENCE, draw_frame, native, outline

TITLES = {"unet": "U-Net", "segnet": "SegNet", "resunet": "Residual U-Net"}
RANDOM, UNSEEN = "#3aa8ff", "#e8590c"
THEMES = {"light": ("white", "#1f2328", "#d0d7de"), "dark": ("#0d1117", "#e6edf3", "#3d444d")}


def outlined_frame(study: str | Path, summary: pd.DataFrame) -> dict | None:
    """Segment one frame with each network, trained on random frames and without the frame's group.

    Of the frames that all these trainings tested, it has the highest mean Dice; of each network the
    better seed is shown. Returns case_id; image, float (H,W) in [0,1]; reference, bool (H,W);
    preds: per network its masks by "random" and "unseen". None if there is no such frame.
    """
    protocols = order_protocols(summary["protocol"])
    kinds = {"random": "random", protocols[0]: "unseen"}
    models = [name for name in dict.fromkeys(summary["model"]) if not is_imported(name)]
    scores = []
    for path in sorted(Path(study).glob("runs/*/run.json")):
        run, weights = read_run(path.parent), path.with_name("model.pt")
        if run["model"] in models and run["protocol"] in kinds and weights.is_file():
            table = read_table(path.parent, run, "scores.csv")
            scores.append(table.assign(kind=kinds[run["protocol"]], run=path.parent))
    if protocols[0] == "random" or "random" not in protocols or not scores:
        return None
    table = pd.concat(scores).set_index(["case_id", "model", "seed", "kind"]).sort_index()
    both = table["dice"].unstack("kind").reindex(columns=kinds.values()).dropna().mean(axis=1)
    better = both.groupby(["case_id", "model"]).max().unstack("model").reindex(columns=models)
    if better.dropna().empty:
        return None
    case_id = better.dropna().mean(axis=1).idxmax()
    store = open_store(Path(study) / "store")
    row, preds = [*store.index["case_id"]].index(case_id), {}
    for model in models:
        runs = table.loc[case_id, model, both[case_id, model].idxmax()]["run"]
        preds[model] = {kind: segment_case(runs[kind], store, case_id) for kind in kinds.values()}
    frame = {"image": native(store, row), "reference": store.reference(row)}
    return {"case_id": case_id, **frame, "preds": preds}


def front_figure(
    summary: pd.DataFrame, frame: dict | None = None, *, group: str = "group", theme: str = "light"
) -> Figure:
    """Draw each network's Dice, from `tables.summary`, beside the `frame` of `outlined_frame`."""
    ground, ink, faint = THEMES[theme]
    deciding = order_protocols(summary["protocol"])[0]
    order = list(summary[summary["protocol"] == deciding]["model"])[::-1]  # the best comes on top
    kinds = {"random": ("random frames", RANDOM, 0.14)}
    if deciding != "random":
        kinds[deciding] = (f"unseen {group}s", UNSEEN, -0.2)
    kinds = {name: look for name, look in kinds.items() if name in set(summary["protocol"])}
    models = [name for name in order[::-1] if name in frame["preds"]][:4] if frame else []
    colours = dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color", "text.color"), ink)
    with plt.rc_context(colours | {"font.size": 10, "axes.edgecolor": faint}):
        fig = plt.figure(figsize=(9.6, 2.4), facecolor=ground, layout="constrained")
        widths = [3.2] + [1.75] * len(models)
        chart, *panels = fig.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        for protocol, (_, colour, shift) in kinds.items():
            for row in summary[summary["protocol"] == protocol].itertuples():
                at = order.index(row.model) + shift
                chart.plot([row.dice_low, row.dice_high], [at, at], color=colour, linewidth=3)
                chart.plot(row.dice, at, "o", color=colour, markersize=8)
                where = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
                chart.annotate(f"{row.dice:.2f}", (row.dice, at), fontsize=9, **where)
        lowest = np.floor(10 * summary[["dice", "dice_low"]].min().min()) / 10
        chart.set_yticks(range(len(order)), [TITLES.get(model, model) for model in order])
        chart.set(xlim=(lowest, 1), ylim=(-0.6, len(order) - 0.2), xlabel="Dice, 95 % interval")
        chart.set_facecolor(ground)
        chart.grid(axis="x", color=faint, linewidth=0.5)
        chart.spines[["top", "right", "left"]].set_visible(False)
        chart.tick_params(length=0)
        for ax, model in zip(panels, models, strict=True):
            draw_frame(ax, frame["image"])
            drawn = frame["reference"], *frame["preds"][model].values()
            for mask, colour in zip(drawn, (REFERENCE, RANDOM, UNSEEN), strict=True):
                outline(ax, mask, colour, 1.6)
            (height, width), (rows, columns) = mask.shape, np.nonzero(frame["reference"])
            margin = max(6, np.ptp(columns) // 8)
            ax.set_xlim(max(0, columns.min() - margin), min(width, columns.max() + margin))
            ax.set_ylim(min(height, rows.max() + margin), max(0, rows.min() - margin))
            ax.set_title(TITLES.get(model, model), color=ink, fontsize=10)
            ax.set_axis_off()
        lines = {name: colour for name, colour, _ in kinds.values()}
        lines |= {"reference": REFERENCE} if models else {}
        handles = [Line2D([], [], color=c, label=name, linewidth=3) for name, c in lines.items()]
        fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return fig

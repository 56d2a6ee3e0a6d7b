"""Figures of the comparison: each function draws one from tables and returns it."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from thyroid_lib.compare.bootstrap import deciding, order_protocols
from thyroid_lib.compare.stability import MEASURES, MORE_IS_BETTER, threshold_curves
from thyroid_lib.compare.tables import group_means
from thyroid_lib.compare.variations import NAMES
from thyroid_lib.data.store import Store
from thyroid_lib.plots import common
from thyroid_lib.plots.common import FAINT, FIGURE_WIDTH, looks, model_legend

LINE = 100  # characters of a tick's or title's size across a figure


def _columns(table: pd.DataFrame, height: float, rows: int = 1, **sharing):
    """Make a column of axes per protocol: figure, axes (rows, P), and (column, part)."""
    parts = {name: table[table["protocol"] == name] for name in order_protocols(table["protocol"])}
    size = FIGURE_WIDTH, height
    fig, axes = plt.subplots(rows, len(parts), figsize=size, squeeze=False, **sharing)
    for ax, (protocol, part) in zip(axes[0], parts.items(), strict=True):
        ax.set_title(protocol + " †" * bool("conditional" in part and part["conditional"].any()))
    columns = axes.T if rows > 1 else axes[0]
    return fig, axes, list(zip(columns, parts.values(), strict=True))


def _bar(ax, value: float, low: float, high: float, look: dict, y: float, *, pale: bool = False):
    """Draw an estimate and its interval at height y; a pale one has a hollow mark."""
    if np.isfinite(low):
        line = {"linewidth": 1 if pale else 2.2, "solid_capstyle": "butt"}
        ax.plot([low, high], [y, y], color=look["color"], **line)
    ring = {"markerfacecolor": "white", "markersize": 5} if pale else {"markeredgecolor": "white"}
    ax.plot(value, y, **{"markersize": 7} | _mark(look) | ring)


def _mark(look: dict) -> dict:
    return {"color": look["color"], "marker": look["marker"], "linestyle": ""}


def _name_rows(ax, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)


def estimates(table: pd.DataFrame) -> Figure:
    """Draw each model's Dice with its interval, one column per protocol, from `summary`."""
    styles = looks(table["model"])
    fig, _, columns = _columns(table, 0.9 + 0.42 * len(styles), sharex=True, sharey=True)
    for ax, part in columns:
        rows = part.set_index("model")[["dice", "dice_low", "dice_high"]]
        for model in sorted(rows.index, key=[*styles].index):
            _bar(ax, *rows.loc[model], styles[model], [*styles].index(model))
        _name_rows(ax, list(styles))
        ax.set_xlabel("Dice, mean of groups, with 95 % interval")
    return fig


def paired_differences(differences: pd.DataFrame, *, delta: float) -> Figure:
    """Draw the difference of each pair with its interval over the band that makes none, ±delta."""
    pairs = list(dict.fromkeys(zip(differences["a"], differences["b"], strict=True)))
    if not pairs:
        fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 0.8))
        ax.set_axis_off()
        ax.text(0.5, 0.5, "one model alone: no pair to compare", ha="center", va="center")
        return fig
    height, plain = 1.1 + 0.42 * len(pairs), {"color": "black", "marker": "o"}
    fig, _, columns = _columns(differences, height, sharex=True, sharey=True)
    for ax, part in columns:
        ax.axvspan(-delta, delta, color="0.75", linewidth=1)
        ax.axvline(0, color="black", linewidth=0.5)
        for row in part.itertuples():
            y = pairs.index((row.a, row.b))
            _bar(ax, row.difference, row.low, row.high, plain, y)
        _name_rows(ax, [f"{a} − {b}" for a, b in pairs])
        ax.set_xlabel(f"difference of Dice, 95 % interval;\nband: ±{delta}")
    return fig


def effects(table: pd.DataFrame) -> Figure:
    """Draw what each change after training does to each model's Dice, from `variations.effects`."""
    part = deciding(table)
    styles, kinds = looks(part["model"]), [x for x in NAMES if x in set(part["variation"])]
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 1.1 + 0.15 * len(kinds) * (1 + len(styles))))
    ax.axvline(0, color="black", linewidth=0.5)
    for row in part.itertuples():
        shift = ([*styles].index(row.model) - (len(styles) - 1) / 2) * 0.8 / len(styles)
        y = kinds.index(row.variation) + shift
        _bar(ax, row.difference, row.low, row.high, styles[row.model], y)
    _name_rows(ax, [NAMES[kind] for kind in kinds])
    mark = " †" * bool(part["conditional"].any())
    ax.set_xlabel(f"change of Dice, 95 % interval, {part['protocol'].iloc[0]}{mark}")
    model_legend(fig, styles)
    return fig


def groups(scores: pd.DataFrame) -> Figure:
    """Draw each group's mean Dice under each model, one group joined by a line, and the means."""
    each = group_means(scores)
    styles = looks(each["model"])
    fig, axes, columns = _columns(each, 3.6, sharey=True)
    point = {"markersize": 5, "alpha": 0.85, "markeredgecolor": "white", "markeredgewidth": 0.5}
    for ax, part in columns:
        wide = part.pivot(index="group", columns="model", values="dice")
        wide = wide[[model for model in styles if model in wide]]
        ax.plot(range(wide.shape[1]), wide.T, color="0.75", linewidth=0.8, zorder=1)
        for x, model in enumerate(wide):
            ax.plot(np.full(len(wide), x), wide[model], **point, **_mark(styles[model]))
            ax.hlines(wide[model].mean(), x - 0.25, x + 0.25, color="black", linewidth=2)
        crowded = max(map(len, wide)) * wide.shape[1] * len(columns) > LINE
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        ax.set_xticks(range(wide.shape[1]), wide.columns, **turned)
        ax.set_xlim(-0.5, wide.shape[1] - 0.5)
    axes[0, 0].set_ylabel("Dice: groups (points), their mean (bar)")
    return fig


def exams(scores: pd.DataFrame) -> Figure:
    """Draw each model's Dice in several exams (a column of `scores`): groups, and their mean."""
    means = scores.groupby(["model", "exam", "group"], sort=False)["dice"].mean().reset_index()
    styles, kinds = looks(means["model"]), list(dict.fromkeys(means["exam"]))
    rows = [(model, exam) for model in styles for exam in kinds]
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 0.8 + 0.45 * len(rows)))
    for y, (model, exam) in enumerate(rows):
        dice = means["dice"][(means["model"] == model) & (means["exam"] == exam)]
        look = _mark(styles[model])
        ax.plot(dice, np.full(len(dice), y), markersize=5, alpha=0.45, markeredgewidth=0, **look)
        ax.plot(dice.mean(), y, markersize=10, markeredgecolor="white", **look)
        above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        ax.annotate(f"{dice.mean():.2f}", (dice.mean(), y), **above)
    paths = means.pivot_table("dice", "exam", "model").loc[kinds, [*styles]]
    for i, (model, path) in enumerate(paths.items()):
        ys = len(kinds) * i + np.arange(len(kinds))
        ax.plot(path, ys, color=styles[model]["color"], linewidth=1.2, zorder=1)
    _name_rows(ax, [f"{model}, {exam}" for model, exam in rows])
    ax.set_xlabel("Dice: groups (small), their mean (large)")
    return fig


def learning_curves(histories: pd.DataFrame, models=()) -> Figure:
    """Draw loss and validation Dice by epoch: the mean of the runs, and their range as a band.

    models: all of the study, for the looks; ensembles and imported ones among them have no history.
    """
    trained = set(histories["model"])
    styles = {name: x for name, x in looks({*trained, *models}).items() if name in trained}
    fig, axes, columns = _columns(histories, 5.0, rows=2, sharex=True, sharey="row")
    for (upper, lower), part in columns:
        for model, runs in part.groupby("model"):
            look = {name: styles[model][name] for name in ("color", "linestyle")}
            band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            train = runs.groupby("epoch")["train_loss"].mean()
            upper.plot(train, linewidth=0.9, alpha=0.7, **look)
            for name, ax in (("val_loss", upper), ("val_dice", lower)):
                if name in runs:
                    seen = runs.groupby("epoch")[name].agg(["mean", "min", "max"]).dropna()
                    ax.plot(seen["mean"], linewidth=1.8, **look)
                    ax.fill_between(seen.index, seen["min"], seen["max"], **band)
        lower.set_xlabel("epoch")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("loss (thin: training)")
    axes[1, 0].set_ylabel("validation Dice")
    model_legend(fig, {name: look | {"marker": ""} for name, look in styles.items()}, lines=True)
    return fig


def stability_panel(stability: pd.DataFrame) -> Figure:
    """Draw the measures of stability with their intervals; filled for the deciding protocol."""
    styles, protocols = looks(stability["model"]), order_protocols(stability["protocol"])
    size = FIGURE_WIDTH, 1.8 + 0.75 * len(styles) * len(protocols) ** 0.5
    fig, axes = plt.subplots(2, 3, figsize=size, sharey=True)
    wide = 36 if max(map(len, styles)) <= LINE // 8 else 24  # long names leave less room
    for ax, (measure, meaning) in zip(axes.flat, MEASURES.items(), strict=True):
        rows = stability[stability["measure"] == measure]
        for row in rows.dropna(subset="value").itertuples():
            shift = protocols.index(row.protocol) * 0.8 / len(protocols)
            y = list(styles).index(row.model) - 0.2 * (len(protocols) > 1) + shift
            _bar(ax, row.value, row.low, row.high, styles[row.model], y, pale=shift > 0)
        if rows["value"].isna().all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center")
        _name_rows(ax, list(styles))
        better = "more is better" if measure in MORE_IS_BETTER else "less is better"
        ax.set_title(textwrap.fill(f"{measure}: {better}", wide), loc="left")
        ax.set_xlabel(textwrap.fill(meaning, wide), fontsize="small")
    if len(protocols) > 1:
        others = ", ".join(protocols[1:])
        fig.suptitle(f"filled: {protocols[0]}; hollow: {others}", fontsize="small")
    return fig


def threshold_sweep(thresholds: pd.DataFrame) -> Figure:
    """Draw Dice, mean of groups, against the threshold."""
    styles = looks(thresholds["model"])
    fig, axes, columns = _columns(thresholds, 3.0, sharey=True)
    for ax, part in columns:
        ax.axvline(0.5, color=FAINT, linewidth=0.8, zorder=0)
        for model, curve in threshold_curves(part, part["protocol"].iloc[0]).items():
            ax.plot(curve, markersize=5, **styles[model])
        ax.set_xlabel("threshold")
    axes[0, 0].set_ylabel("Dice, mean of groups")
    model_legend(fig, styles, lines=True)
    return fig


def reliability(calibration: pd.DataFrame, name: str = "thyroid") -> Figure:
    """Draw the share of thyroid against the probability, by bin, and how many pixels a bin has.

    `name`: what masks show, of `readings.foreground_name`.
    """
    styles = looks(calibration["model"])
    sums = calibration[["mean_prob", "share"]].mul(calibration["pixels"], axis=0)
    table = calibration.assign(prob=sums["mean_prob"], thyroid=sums["share"])
    sharing = {"sharex": True, "sharey": "row", "height_ratios": (3, 1)}
    fig, axes, columns = _columns(table, 4.4, rows=2, **sharing)
    for (upper, lower), part in columns:
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for model, rows in part.groupby("model"):
            bins = rows.groupby("bin")[["pixels", "prob", "thyroid"]].sum()
            prob, share = bins["prob"] / bins["pixels"], bins["thyroid"] / bins["pixels"]
            upper.plot(prob, share, markersize=5, **styles[model])
            percent = 100 * bins["pixels"] / bins["pixels"].sum()
            lower.plot(prob, percent, markersize=4, **styles[model] | {"linewidth": 1})
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        lower.set(yscale="log", xlabel=f"probability of {name}")
        lower.yaxis.set_major_formatter("{x:g}")
        lower.minorticks_off()
    axes[0, 0].set_ylabel(f"share that is {name}")
    axes[1, 0].set_ylabel("pixels (%)")
    perfect = Line2D([], [], color=FAINT, linewidth=0.8, label="perfect")
    model_legend(fig, styles, lines=True, extra=(perfect,))
    return fig


def failures(scores: pd.DataFrame) -> Figure:
    """Draw the parts missed and invented (see `part_errors`) per frame and group, hardest first."""
    part = deciding(scores)
    styles = looks(part["model"])
    order = list(group_means(part).groupby("group")["dice"].mean().sort_values(kind="stable").index)
    fig, axes = plt.subplots(2, 1, figsize=(FIGURE_WIDTH, 4.4), sharex=True)
    names = {"missed_parts": "parts missed", "false_parts": "parts invented"}
    for ax, (column, name) in zip(axes, names.items(), strict=True):
        wide = group_means(part, column).pivot(index="group", columns="model", values=column)
        for i, (model, look) in enumerate(styles.items()):
            x = np.arange(len(order)) + min(0.22, 0.8 / len(styles)) * (i - (len(styles) - 1) / 2)
            heights = wide.loc[order, model]
            ax.vlines(x, 0, heights, color=look["color"], linewidth=1.5)
            ax.plot(x, heights, markersize=5, clip_on=False, **_mark(look))
        most = wide.max(axis=None)
        ax.set_title(name + ": none" * bool(most == 0), loc="left")
        ax.set(ylabel="per frame", ylim=(0, max(0.1, 1.05 * most)))
        ax.grid(axis="y", color="0.9")
    axes[1].set_xticks(range(len(order)), order, rotation=90 if len(order) > 12 else 0)
    axes[1].set_xlabel(f"group, lowest Dice first ({part['protocol'].iloc[0]})")
    model_legend(fig, styles)
    return fig


def same_frames(store: Store, case_ids: list[str], preds: dict[str, list[np.ndarray]]) -> Figure:
    """Draw frames of a store (rows) as every model (columns) segments them: bool (H,W) each."""
    height = 2.2 * min(1.5, 3 / len(preds))
    fig, axes = common.image_axes(len(case_ids) * len(preds), len(preds), height)
    for column, (model, masks) in zip(axes.T, preds.items(), strict=True):
        for ax, case_id, pred in zip(column, case_ids, masks, strict=True):
            title = textwrap.fill(f"{model}, {case_id}", max(8, int(1.4 * LINE) // len(preds)))
            common.draw_case(ax, store, case_id, pred, title)
    common.outline_legend(fig, store)
    return fig


def cost(table: pd.DataFrame) -> Figure:
    """Draw Dice with its interval against multiply-adds; the mark's area is the parameters'."""
    styles = looks(table["model"])
    fig, axes, columns = _columns(table, 3.2, sharex=True, sharey=True)
    known = table.dropna(subset="multiply_adds").drop_duplicates("model").set_index("model")
    for ax, part in columns:
        for row in part.dropna(subset="multiply_adds").itertuples():
            look, giga = styles[row.model], row.multiply_adds / 1e9
            if np.isfinite(row.dice_low):
                ax.vlines(giga, row.dice_low, row.dice_high, color=look["color"], linewidth=1.5)
            area = 30 + 170 * row.parameters / table["parameters"].max()
            ax.scatter(giga, row.dice, s=area, edgecolor="white", zorder=2, **_mark(look))
        ax.set_xlabel("multiply-adds per image (G)")
        ax.margins(x=0.1)
    axes[0, 0].set_ylabel("Dice, mean of groups")
    # variants of one network lie side by side, so names beside the marks would overlap
    sizes = {name: f"{name}, {known['parameters'][name] / 1e6:.2f} M" for name in known.index}
    model_legend(fig, {sizes[name]: x for name, x in styles.items() if name in sizes})
    return fig

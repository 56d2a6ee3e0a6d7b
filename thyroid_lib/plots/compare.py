"""Figures of the comparison: each function draws one from tables and returns it.

Every model has one colour, one marker and one line in all figures, so that they can be told apart
in grey print and by colour-blind readers. Intervals are those of the tables.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from thyroid_lib.compare.bootstrap import order_protocols
from thyroid_lib.compare.stability import MEASURES, MORE_IS_BETTER, threshold_curves
from thyroid_lib.compare.tables import group_means
from thyroid_lib.data.store import Store
from thyroid_lib.plots.common import (
    FIGURE_WIDTH,
    draw_case,
    image_axes,
    looks,
    model_legend,
    outline_legend,
)

BAND, FAINT = "0.75", "0.6"


def _columns(table: pd.DataFrame, height: float, rows: int = 1, **sharing):
    """One column of axes per protocol: the figure, the axes (rows, P) and the protocols' names."""
    protocols = order_protocols(table["protocol"])
    fig, axes = plt.subplots(
        rows, len(protocols), figsize=(FIGURE_WIDTH, height), squeeze=False, **sharing
    )
    for ax, protocol in zip(axes[0], protocols, strict=True):
        ax.set_title(protocol + _dagger(table[table["protocol"] == protocol]))
    return fig, axes, protocols


def _dagger(part: pd.DataFrame) -> str:
    return " †" if "conditional" in part and part["conditional"].any() else ""


def _bar(ax, row, look: dict, y: float, *, names=("value", "low", "high"), pale: bool = False):
    """Draw an estimate and its interval at height y; a pale one has a hollow mark."""
    value, low, high = (getattr(row, name) for name in names)
    if np.isfinite(low):
        ax.plot(
            [low, high], [y, y], color=look["color"], linewidth=1 if pale else 2.2,
            solid_capstyle="butt",
        )  # fmt: skip
    ring = {"markerfacecolor": "white", "markersize": 5} if pale else {"markeredgecolor": "white"}
    ax.plot(value, y, **{"linestyle": "", "markersize": 7} | _mark(look) | ring)


def _mark(look: dict) -> dict:
    return {"color": look["color"], "marker": look["marker"]}


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
    fig, axes, protocols = _columns(table, 0.9 + 0.42 * len(styles), sharex=True, sharey=True)
    for ax, protocol in zip(axes[0], protocols, strict=True):
        part = table[table["protocol"] == protocol].set_index("model")
        for y, (model, look) in enumerate(styles.items()):
            if model in part.index:
                _bar(ax, part.loc[model], look, y, names=("dice", "dice_low", "dice_high"))
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
    height = 1.1 + 0.42 * len(pairs)
    fig, axes, protocols = _columns(differences, height, sharex=True, sharey=True)
    plain = {"color": "black", "marker": "o"}
    for ax, protocol in zip(axes[0], protocols, strict=True):
        ax.axvspan(-delta, delta, color=BAND, linewidth=1)
        ax.axvline(0, color="black", linewidth=0.5)
        for row in differences[differences["protocol"] == protocol].itertuples():
            y = pairs.index((row.a, row.b))
            _bar(ax, row, plain, y, names=("difference", "low", "high"))
        _name_rows(ax, [f"{a} − {b}" for a, b in pairs])
        ax.set_xlabel(f"difference of Dice, 95 % interval; band: ±{delta}")
    return fig


def groups(scores: pd.DataFrame) -> Figure:
    """Draw each group's mean Dice under each model, one group joined by a line, and the means."""
    each = group_means(scores)
    styles = looks(each["model"])
    fig, axes, protocols = _columns(each, 3.6, sharey=True)
    for ax, protocol in zip(axes[0], protocols, strict=True):
        wide = each[each["protocol"] == protocol].pivot(
            index="group", columns="model", values="dice"
        )
        wide = wide[[model for model in styles if model in wide]]
        ax.plot(range(wide.shape[1]), wide.T, color="0.75", linewidth=0.8, zorder=1)
        for x, model in enumerate(wide):
            ax.plot(
                np.full(len(wide), x), wide[model], linestyle="", markersize=5, alpha=0.85,
                markeredgecolor="white", markeredgewidth=0.5, **_mark(styles[model]),
            )  # fmt: skip
            ax.hlines(wide[model].mean(), x - 0.25, x + 0.25, color="black", linewidth=2)
        ax.set_xticks(range(wide.shape[1]), wide.columns)
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
        look = {"linestyle": "", **_mark(styles[model])}
        ax.plot(dice, np.full(len(dice), y), markersize=5, alpha=0.45, markeredgewidth=0, **look)
        ax.plot(dice.mean(), y, markersize=10, markeredgecolor="white", **look)
        ax.annotate(
            f"{dice.mean():.2f}", (dice.mean(), y), xytext=(0, 8), ha="center",
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    for model, look in styles.items():
        path = means[means["model"] == model].groupby("exam", sort=False)["dice"].mean()[kinds]
        ys = [rows.index((model, exam)) for exam in kinds]
        ax.plot(path, ys, color=look["color"], linewidth=1.2, zorder=1)
    _name_rows(ax, [f"{model}, {exam}" for model, exam in rows])
    ax.set_xlabel("Dice: groups (small), their mean (large)")
    return fig


def learning_curves(histories: pd.DataFrame) -> Figure:
    """Draw loss and validation Dice by epoch: the mean of the runs, and their range as a band."""
    styles = looks(histories["model"])
    fig, axes, protocols = _columns(histories, 5.0, rows=2, sharex=True, sharey="row")
    for (upper, lower), protocol in zip(axes.T, protocols, strict=True):
        part = histories[histories["protocol"] == protocol]
        for model, runs in part.groupby("model"):
            look = {name: styles[model][name] for name in ("color", "linestyle")}
            for name, ax in (("train_loss", upper), ("val_loss", upper), ("val_dice", lower)):
                if name not in part:
                    continue
                seen = runs.groupby("epoch")[name].agg(["mean", "min", "max"]).dropna()
                if name == "train_loss":
                    ax.plot(seen["mean"], linewidth=0.9, alpha=0.7, **look)
                    continue
                ax.plot(seen["mean"], linewidth=1.8, **look)
                band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
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
    fig, axes = plt.subplots(
        2, 3, figsize=(FIGURE_WIDTH, 1.8 + 0.75 * len(styles) * len(protocols) ** 0.5), sharey=True
    )
    for ax, (measure, meaning) in zip(axes.flat, MEASURES.items(), strict=True):
        rows = stability[stability["measure"] == measure]
        for row in rows.dropna(subset="value").itertuples():
            shift = protocols.index(row.protocol) * 0.8 / len(protocols)
            y = list(styles).index(row.model) - 0.2 * (len(protocols) > 1) + shift
            _bar(ax, row, styles[row.model], y, pale=shift > 0)
        if rows["value"].isna().all():
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center")
        _name_rows(ax, list(styles))
        better = "more is better" if measure in MORE_IS_BETTER else "less is better"
        ax.set_title(f"{measure}: {better}", loc="left")
        ax.set_xlabel(textwrap.fill(meaning, 36), fontsize="small")
    if len(protocols) > 1:
        others = ", ".join(protocols[1:])
        fig.suptitle(f"filled: {protocols[0]}; hollow: {others}", fontsize="small")
    return fig


def threshold_sweep(thresholds: pd.DataFrame) -> Figure:
    """Draw Dice, mean of groups, against the threshold."""
    styles = looks(thresholds["model"])
    fig, axes, protocols = _columns(thresholds, 3.0, sharey=True)
    for ax, protocol in zip(axes[0], protocols, strict=True):
        ax.axvline(0.5, color=FAINT, linewidth=0.8, zorder=0)
        for model, curve in threshold_curves(thresholds, protocol).items():
            ax.plot(curve, markersize=5, **styles[model])
        ax.set_xlabel("threshold")
    axes[0, 0].set_ylabel("Dice, mean of groups")
    model_legend(fig, styles, lines=True)
    return fig


def reliability(calibration: pd.DataFrame) -> Figure:
    """Draw the share of thyroid against the probability, by bin, and how many pixels a bin has."""
    styles = looks(calibration["model"])
    fig, axes, protocols = _columns(
        calibration, 4.4, rows=2, sharex=True, sharey="row", height_ratios=(3, 1)
    )
    known = calibration.dropna(subset=["mean_prob", "share"])
    known = known.assign(
        prob=known["pixels"] * known["mean_prob"], thyroid=known["pixels"] * known["share"]
    )
    sums = known.groupby(["protocol", "model", "bin"])[["pixels", "prob", "thyroid"]].sum()
    for (upper, lower), protocol in zip(axes.T, protocols, strict=True):
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for model in sums.loc[protocol].index.unique("model"):
            bins = sums.loc[(protocol, model)]
            prob, share = bins["prob"] / bins["pixels"], bins["thyroid"] / bins["pixels"]
            upper.plot(prob, share, markersize=5, **styles[model])
            part = 100 * bins["pixels"] / bins["pixels"].sum()
            lower.plot(prob, part, markersize=4, **styles[model] | {"linewidth": 1})
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        lower.set(yscale="log", xlabel="probability of thyroid")
        lower.yaxis.set_major_formatter("{x:g}")
        lower.minorticks_off()
    axes[0, 0].set_ylabel("share that is thyroid")
    axes[1, 0].set_ylabel("pixels (%)")
    perfect = Line2D([], [], color=FAINT, linewidth=0.8, label="perfect")
    model_legend(fig, styles, lines=True, extra=(perfect,))
    return fig


def failures(scores: pd.DataFrame) -> Figure:
    """Draw the parts missed and invented per frame, group by group, the hardest group first.

    A part is a connected piece of the reference without a predicted pixel, or the reverse. Of the
    deciding protocol.
    """
    part = scores[scores["protocol"] == order_protocols(scores["protocol"])[0]]
    styles = looks(part["model"])
    order = list(group_means(part).groupby("group")["dice"].mean().sort_values(kind="stable").index)
    fig, axes = plt.subplots(2, 1, figsize=(FIGURE_WIDTH, 4.4), sharex=True)
    for ax, (column, name) in zip(
        axes, (("missed_parts", "parts missed"), ("false_parts", "parts invented")), strict=True
    ):
        wide = group_means(part, column).pivot(index="group", columns="model", values=column)
        for i, (model, look) in enumerate(styles.items()):
            x = np.arange(len(order)) + 0.22 * (i - (len(styles) - 1) / 2)
            heights = wide.loc[order, model]
            ax.vlines(x, 0, heights, color=look["color"], linewidth=1.5)
            ax.plot(x, heights, linestyle="", markersize=5, clip_on=False, **_mark(look))
        ax.set_title(name + ": none" * bool(wide.to_numpy().max() == 0), loc="left")
        ax.set(ylabel="per frame", ylim=(0, max(0.1, 1.05 * wide.to_numpy().max())))
        ax.grid(axis="y", color="0.9")
    turned = 90 if len(order) > 12 else 0
    axes[1].set_xticks(range(len(order)), order, rotation=turned)
    axes[1].set_xlabel(f"group, lowest Dice first ({part['protocol'].iloc[0]})")
    model_legend(fig, styles)
    return fig


def same_frames(store: Store, case_ids: list[str], preds: dict[str, list[np.ndarray]]) -> Figure:
    """Draw the same frames of a store (rows) as segmented by every model (columns).

    `preds` has per model the masks, bool (H,W) at native size, in the order of `case_ids`.
    """
    fig, axes = image_axes(len(case_ids) * len(preds), len(preds), 2.2)
    for column, (model, masks) in enumerate(preds.items()):
        for line, (case_id, pred) in enumerate(zip(case_ids, masks, strict=True)):
            draw_case(axes[line, column], store, case_id, pred, f"{model}, {case_id}")
    outline_legend(fig)
    return fig


def cost(table: pd.DataFrame) -> Figure:
    """Draw Dice with its interval against multiply-adds; the mark's area is the parameters'."""
    styles = looks(table["model"])
    fig, axes, protocols = _columns(table, 3.2, sharex=True, sharey=True)
    for ax, protocol in zip(axes[0], protocols, strict=True):
        for row in table[table["protocol"] == protocol].itertuples():
            look, giga = styles[row.model], row.multiply_adds / 1e9
            if np.isfinite(row.dice_low):
                ax.vlines(giga, row.dice_low, row.dice_high, color=look["color"], linewidth=1.5)
            area = 30 + 170 * row.parameters / table["parameters"].max()
            ax.scatter(giga, row.dice, s=area, edgecolor="white", zorder=2, **_mark(look))
            ax.annotate(
                f"{row.model}\n{row.parameters / 1e6:.2f} M", (giga, row.dice), xytext=(11, 0),
                textcoords="offset points", va="center", fontsize="small",
            )  # fmt: skip
        ax.set_xlabel("multiply-adds per image (G)")
        ax.margins(x=0.3)
    axes[0, 0].set_ylabel("Dice, mean of groups")
    return fig

"""Figures of the replication: its steps, the floor of the reported SegNet, the reported curves."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from thyroid_lib.compare.replication import NAMES, WITHOUT_RELU, best_reported
from thyroid_lib.evaluate.scores import BINS
from thyroid_lib.plots.common import FIGURE_WIDTH, GREY, looks


def steps(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Draw Dice by step, from `measure_steps`; hollow marks: the report's own best Dice."""
    names, styles = list(table["step"].unique()), looks(table["model"])
    best = best_reported(curves)
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 4.2))
    shifts = np.linspace(-0.16, 0.16, len(styles))
    for shift, (model, look) in zip(shifts, styles.items(), strict=True):
        part = table[table["model"] == model].set_index("step").loc[names]
        x = np.arange(len(names)) + 1 + shift
        ends = np.stack([part["dice"] - part["low"], part["high"] - part["dice"]]).clip(0)
        sizes = {"markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2.5}
        ax.errorbar(x, part["dice"], yerr=ends, **look, **sizes, label=model)
        if model in best:
            ax.plot(shift, best[model], **look, markerfacecolor="white", markersize=7)
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    ticks = ["the report\nitself", *(textwrap.fill(name, 14) for name in names)]
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set(ylabel="Dice (bar: 95 % interval)", xlabel="each step mends one more flaw")
    fig.legend(loc="outside upper center", ncols=len(styles))
    return fig


def floor(histories, floors, calibration, curves: pd.DataFrame) -> Figure:
    """Draw the loss of the reported SegNet against its floor, and where its probabilities lie."""
    colour = looks(["segnet_reported"])["segnet_reported"]["color"]
    kinds = {
        "segnet_reported": {"label": "as reported", "color": colour, "linestyle": "-"},
        WITHOUT_RELU: {"label": "last ReLU taken out", "color": "black", "linestyle": "--"},
    }
    fig, (left, right) = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 3.4))
    for model, look in kinds.items():
        for number, (_, run) in enumerate(histories[histories["model"] == model].groupby("seed")):
            once = look if number == 0 else look | {"label": None}
            left.plot(run["epoch"], run["train_loss"], linewidth=1.6, **once)
        part = calibration[calibration["model"] == model].groupby("bin")["pixels"].sum()
        share = 100 * part.reindex(range(BINS), fill_value=0) / part.sum()
        right.stairs(share, np.linspace(0, 1, BINS + 1), linewidth=1.6, **look)
    own = curves[curves["model"].map(NAMES) == "segnet_reported"]
    left.plot(own["epoch"], own["train_loss"], color=GREY, linewidth=1, label="the report itself")
    left.axhline(floors["floor"].mean(), color="black", linewidth=1)
    at = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
    where = 0.98, floors["floor"].mean()
    left.annotate("floor of our masks: (1 − f)·ln 2", where, ha="right", va="top", **at)
    left.set(xlabel="epoch", ylabel="training loss (BCE)", ylim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="lower left")
    right.set(xlabel="probability of thyroid", ylabel="test pixels (%)", yscale="log")
    right.set(xlim=(0, 1), ylim=(0.01, 150))
    right.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    right.legend()
    return fig


def reported_curves(curves: pd.DataFrame) -> Figure:
    """Draw the report's own test Dice by epoch, one run a network."""
    styles = looks(NAMES.values())
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 3.2))
    for model, run in curves.groupby("model", sort=False):
        ax.plot(run["epoch"], run["test_dice"], **styles[NAMES[model]], markersize=4, label=model)
    ax.set(xlabel="epoch", ylabel="test Dice, as reported", ylim=(0.4, 1))
    ax.legend(loc="lower right")
    return fig

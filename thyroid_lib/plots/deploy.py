"""Figures and tables of a release, each with a sentence that states its result."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thyroid_lib.compare import card
from thyroid_lib.data.classes import class_colours
from thyroid_lib.evaluate.familiarity import FAR, TOO_FAR
from thyroid_lib.plots import common
from thyroid_lib.plots.common import FAINT

SIDES = ("train", "val", "test")


def released_table(about: dict) -> pd.DataFrame:
    """Return one row per model of release.json: its run, and whether its ONNX agrees with torch."""
    columns, rows = ["model", "run", "frames compared", "agrees with torch", "files"], []
    for name, run in about["runs"].items():
        agrees = "yes" if run["agreement"]["agrees"] else "no"
        files = ", ".join(about["models"][name].values())
        rows.append((name, run["run_id"], run["agreement"]["frames"], agrees, files))
    return pd.DataFrame(rows, columns=columns).set_index("model")


def released_sentence(about: dict) -> str:
    """State how many exports agree with torch, and which model is the default."""
    agree = [run["agreement"]["agrees"] for run in about["runs"].values()]
    agreed = f"{sum(agree)} of {len(agree)} exports agree with torch"
    how = "provisionally selected" if about.get("provisional") else "selected"
    return f"{agreed}; the default model is {about['selected']}, which the comparison {how}."


def int8_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Return the Dice of each group, and its change by int8; see `export.Release`."""
    change = (groups["int8"] - groups["fp32"]).round(3) + 0.0  # + 0.0 turns -0 into 0
    table = {"group": groups["group"], "fp32": groups["fp32"].round(2), "change by int8": change}
    return pd.DataFrame(table).set_index("group")


def int8_sentence(about: dict) -> str:
    """State whether the quantised model is released, and the reason."""
    gate, name = about["runs"][about["selected"]]["int8"], about["selected"]
    more, negation = ("no more", "") if gate["released"] else ("more", "not ")
    frames = "training frames" if "measured_on" in gate else "validation"
    which = (" of every class" if gate["released"] else " of a class") * ("classes" in gate)
    change = f"changes Dice{which} on {frames} by {more} than the allowed {gate['limit']}"
    return f"Quantising {name} {change}, so it is {negation}released."


def confidence(val: pd.DataFrame) -> Figure:
    """Draw measured against expected Dice of each frame of `Release.val`, and after the fit."""
    styles = common.looks(val["model"])
    fig, axes = plt.subplots(1, 2, figsize=(common.FIGURE_WIDTH, 4.2), sharey=True, sharex=True)
    for ax, name in zip(axes, ("expected", "confidence"), strict=True):
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for model, part in val.groupby("model"):
            look = {key: styles[model][key] for key in ("color", "marker")}
            ax.plot(part[name], part["dice"], linestyle="", markersize=4, alpha=0.6, **look)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes[0].set(xlabel="expected Dice, from the probabilities", ylabel="measured Dice")
    axes[1].set(xlabel="confidence, fitted")
    equal = Line2D([], [], color=FAINT, linewidth=0.8, label="equal")
    common.model_legend(fig, styles, extra=(equal,))
    return fig


def confidence_sentence(val: pd.DataFrame, about: dict) -> str:
    """State expected and measured Dice of the selected model, and the error of the fit."""
    name = about["selected"]
    if "confidence" not in about["runs"][name]:
        return f"{name} has no confidence: {card.unfitted_reason(about['runs'][name])}."
    line, part = about["runs"][name]["confidence"], val[val["model"] == name]
    few = " (with one group only the offset is fitted)" * (line["groups"] == 1)
    on = card.fitted_frames(about["runs"][name])
    return (
        f"From its probabilities {name} has an expected Dice of {part['expected'].mean():.2f} on "
        f"{on}; the measured one is {part['dice'].mean():.2f}. After the fit, the mean "
        f"absolute error of the confidence is {line['error']:.2f}{few}."
    )


def distances(found: pd.DataFrame) -> Figure:
    """Draw the distance of each frame from the training frames, see `export.distances`."""
    found = found.assign(side=pd.Categorical(found["side"], SIDES).remove_unused_categories())
    parts = found.groupby(["side", "group"], observed=True)["distance"]
    colours = dict(zip(SIDES, sns.color_palette("colorblind"), strict=False))
    fig, ax = plt.subplots(figsize=(common.FIGURE_WIDTH, 0.7 + 0.28 * len(parts)))
    for row, ((side, _), part) in enumerate(parts):
        shifts = np.linspace(-0.25, 0.25, len(part)) * (len(part) > 1)
        ax.plot(part, row + shifts, "o", markersize=3, alpha=0.6, color=colours[side])
    for limit, word in ((FAR, "warning"), (TOO_FAR, "refused")):
        ax.axvline(limit, color=FAINT, linewidth=0.9, linestyle="--")
        at = {"transform": ax.get_xaxis_transform(), "va": "top"}
        ax.text(limit, 0.99, f" {word}", fontsize=8, color="0.4", **at)
    ax.set_yticks(range(len(parts)), [group for _, group in parts.groups])
    ax.invert_yaxis()
    right = max(1.1 * TOO_FAR, 1.05 * found["distance"].max())
    ax.set(xlim=(0, right), xlabel="distance from the training frames")
    mark = {"marker": "o", "linestyle": ""}
    shown = {side: mark | {"color": colours[side]} for side in found["side"].cat.categories}
    common.model_legend(fig, shown)
    return fig


def distances_sentence(found: pd.DataFrame) -> str:
    """State how many test frames would give a warning, and how many would be refused."""
    test = found[found["side"] == "test"]["distance"]
    far, too_far = (int((test > limit).sum()) for limit in (FAR, TOO_FAR))
    if not len(test):
        return "The store has no test frames for this split."
    known = "validation" if (found["side"] == "val").any() else "training"
    return (
        f"Of {len(test)} test frames {far} would give a warning, being farther than 99 of 100 "
        f"{known} frames; {too_far} of them would be refused."
    )


def answer(image: np.ndarray, found, *, title: str) -> Figure:
    """Draw a frame, uint8 (H,W), with the probability map, mask and doubts of its `Prediction`."""
    height = common.FIGURE_WIDTH / 3 * image.shape[0] / image.shape[1] + 0.6
    fig, axes = common.image_axes(3, 3, height)
    levels = image / 255
    common.draw_frame(axes[0, 0], levels, title)
    known = {"gland": "thyroid"}.get(found.name, found.name)
    common.draw_frame(axes[0, 1], found.prob, f"probability of {known}")
    sure = "not calibrated" if found.confidence is None else f"{found.confidence:.2f}"
    areas = [f"{each.name} {each.area_px} px" for each in found.of_class] or [f"{found.area_px} px"]
    common.draw_frame(axes[0, 2], levels, f"{', '.join(areas)}, confidence {sure}")
    colours = class_colours(len(areas)) if found.of_class else {1: common.PREDICTION}
    for code, each in enumerate(found.classes, 1):
        common.paint(axes[0, 2], each.mask, colours[code], 0.35)
        common.outline(axes[0, 2], each.mask, colours[code])
    if found.of_class:
        named = {each.name: colours[code] for code, each in enumerate(found.classes, 1)}
        common.outline_legend(fig, **named)
    doubts = " ".join(doubt.text for doubt in found.doubts) or "No doubts."
    fig.supxlabel(doubts, fontsize=8, color=common.INK)
    return fig


def answer_sentence(found) -> str:
    """State the doubts about a frame, and whether it is refused."""
    codes = ", ".join(doubt.code for doubt in found.doubts) or "none"
    verdict = "the result would be refused" if found.refused else "the result can be used"
    return f"Doubts about this frame: {codes}; {verdict}."

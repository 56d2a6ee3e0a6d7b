"""Figures and tables of a release, each with the sentence that reads it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thyroid_lib.evaluate.familiarity import FAR, TOO_FAR
from thyroid_lib.plots.common import (
    FIGURE_WIDTH,
    INK,
    PREDICTION,
    draw_frame,
    image_axes,
    looks,
    model_legend,
    outline,
    paint,
)

FAINT = "0.6"
SIDES = ("train", "val", "test")


def released_table(about: dict) -> pd.DataFrame:
    """Return one row per model: the run that is released, and whether ONNX agrees with torch.

    Args:
        about: the release.json of `thyroid_lib.deploy.export`.
    """
    yes = {True: "yes", False: "no"}
    rows = [
        {
            "model": name,
            "run": run["run_id"],
            "frames compared": run["agreement"]["frames"],
            "agrees with torch": yes[run["agreement"]["agrees"]],
            "files": ", ".join(about["models"][name].values()),
        }
        for name, run in about["runs"].items()
    ]
    return pd.DataFrame(rows).set_index("model")


def released_sentence(about: dict) -> str:
    """Read `released_table`."""
    runs = about["runs"].values()
    agree = sum(run["agreement"]["agrees"] for run in runs)
    return (
        f"{agree} of {len(runs)} exports give the masks that torch gives; the release opens with "
        f"{about['selected']}, which the comparison selected"
        f"{' provisionally' * about.get('provisional', False)}."
    )


def int8_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Return Dice by group as it is, and what quantising changes; see `export.Release`."""
    change = (groups["int8"] - groups["fp32"]).round(3) + 0.0  # which makes -0 to 0
    return pd.DataFrame({"fp32": groups["fp32"].round(2), "change by int8": change}).set_axis(
        pd.Index(groups["group"], name="group")
    )


def int8_sentence(about: dict) -> str:
    """Say whether the quantised model is released, and why."""
    gate, name = about["runs"][about["selected"]]["int8"], about["selected"]
    within = "no more" if gate["released"] else "more"
    return (
        f"Quantised, {name} changes Dice on validation by {within} than the {gate['limit']} that "
        f"are allowed, so it is {'' if gate['released'] else 'not '}released."
    )


def confidence(val: pd.DataFrame) -> Figure:
    """Draw the Dice of each validation frame against what was expected, before and after the fit.

    Args:
        val: see `export.Release`.
    """
    styles = looks(val["model"])
    fig, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 4.2), sharey=True, sharex=True)
    names = ("expected", "confidence")
    for ax, name in zip(axes, names, strict=True):
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
        for model, part in val.groupby("model"):
            look = {key: styles[model][key] for key in ("color", "marker")}
            ax.plot(part[name], part["dice"], linestyle="", markersize=4, alpha=0.6, **look)
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.set_aspect("equal")
    axes[0].set(xlabel="Dice that the probabilities promise", ylabel="Dice on validation")
    axes[1].set(xlabel="confidence, fitted")
    promised = Line2D([], [], color=FAINT, linewidth=0.8, label="as promised")
    model_legend(fig, styles, extra=(promised,))
    return fig


def confidence_sentence(val: pd.DataFrame, about: dict) -> str:
    """Read `confidence`, for the selected model."""
    name = about["selected"]
    line, part = about["runs"][name]["confidence"], val[val["model"] == name]
    few = " (one group tells the height of the fit and no more)" * (line["groups"] == 1)
    return (
        f"The probabilities of {name} promise a Dice of {part['expected'].mean():.2f} on "
        f"validation, and {part['dice'].mean():.2f} is kept; fitted, the confidence is off by "
        f"{line['error']:.2f} in the mean{few}."
    )


def distances(found: pd.DataFrame) -> Figure:
    """Draw how far the frames of each group are from the training frames.

    Args:
        found: one row per frame: group, side, distance; see `export.distances`.
    """
    sides = pd.Categorical(found["side"], SIDES)
    parts = found.groupby([sides, "group"], observed=True)["distance"]
    colours = dict(zip(SIDES, sns.color_palette("colorblind"), strict=False))
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 0.7 + 0.28 * len(parts)))
    for place, ((side, _), part) in enumerate(parts):
        shifts = np.linspace(-0.25, 0.25, len(part)) * (len(part) > 1)
        ax.plot(part, place + shifts, "o", markersize=3, alpha=0.6, color=colours[side])
    for limit, word in ((FAR, "warned of"), (TOO_FAR, "refused")):
        ax.axvline(limit, color=FAINT, linewidth=0.9, linestyle="--")
        ax.annotate(
            word, (limit, 1), xycoords=("data", "axes fraction"), xytext=(4, -2), fontsize=8,
            textcoords="offset points", va="top", color="0.4",
        )  # fmt: skip
    ax.set_yticks(range(len(parts)), [group for _, group in parts.groups])
    ax.invert_yaxis()
    ax.set(xlim=(0, max(1.1 * TOO_FAR, 1.05 * found["distance"].max())))
    ax.set(xlabel="distance from the training frames")
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=colours[side], label=side)
        for side in SIDES
        if side in set(found["side"])
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def distances_sentence(found: pd.DataFrame) -> str:
    """Read `distances`."""
    test = found[found["side"] == "test"]["distance"]
    far, too_far = (int((test > limit).sum()) for limit in (FAR, TOO_FAR))
    return (
        f"Of {len(test)} test frames, {far} are further than the validation frames are, and would "
        f"be warned of; {too_far} would be refused."
    )


def answer(image: np.ndarray, found, *, title: str) -> Figure:
    """Draw a frame, its probability map and its mask, with what the predictor says of it.

    Args:
        image: uint8 (H,W).
        found: the `Prediction` of it.
    """
    fig, axes = image_axes(3, 3, FIGURE_WIDTH / 3 * image.shape[0] / image.shape[1] + 0.6)
    levels = image / 255
    draw_frame(axes[0, 0], levels, title)
    draw_frame(axes[0, 1], found.prob, "probability of thyroid")
    sure = "not calibrated" if found.confidence is None else f"{found.confidence:.2f}"
    draw_frame(axes[0, 2], levels, f"{found.area_px} px, confidence {sure}")
    paint(axes[0, 2], found.mask, PREDICTION, 0.35)
    outline(axes[0, 2], found.mask, PREDICTION)
    doubts = " ".join(doubt.text for doubt in found.doubts) or "No doubts."
    fig.supxlabel(doubts, fontsize=8, color=INK)
    return fig


def answer_sentence(found) -> str:
    """Read `answer`."""
    codes = ", ".join(doubt.code for doubt in found.doubts) or "none"
    verdict = "it would be refused" if found.refused else "it is answered"
    return f"Doubts about this frame: {codes}; {verdict}."

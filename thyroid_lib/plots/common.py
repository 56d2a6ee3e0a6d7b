"""Figures of data and of one run, and what all figures share: style, colours and saving."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from thyroid_lib.data import frames
from thyroid_lib.data.cases import read_image, read_levels
from thyroid_lib.data.classes import UNKNOWN, class_colours
from thyroid_lib.data.readings import foreground_name
from thyroid_lib.data.store import Store
from thyroid_lib.files.writing import write_file

REFERENCE, PREDICTION = "#f0c000", "#3aa8ff"
WRONG_CLASS = "#ff4d4d"
GROUND, INK = "#14181c", "#dfe3e8"  # behind frames, and text on it
GREY, FAINT = "0.45", "0.6"
MODEL_ORDER = ("unet", "segnet", "resunet", "segnet_reported", "resunet_reported")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = (0, (2.5, 1.5))  # of predicted classes
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), "-.", (0, (8, 2)))
FIGURE_WIDTH = 9.0  # inches, the width of a notebook's page


def style() -> None:
    """Set the look of all figures and tables; called once at the top of a notebook."""
    pd.set_option("display.max_colwidth", None)  # recipes and runs of variants are long
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.85)
    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 120, "savefig.bbox": "tight",
        "figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": "medium", "legend.frameon": False, "pdf.fonttype": 42,
        "figure.facecolor": "white", "savefig.facecolor": "auto",
    })  # fmt: skip


def looks(models) -> dict[str, dict]:
    """Give each model its colour, marker and line, the same in every study; newcomers follow."""
    palette, models = sns.color_palette("colorblind", 10), set(models)
    names = [*MODEL_ORDER, *sorted(models - set(MODEL_ORDER))]
    return {
        name: {"color": palette[i % 10], "marker": MARKERS[i % 7], "linestyle": LINES[i % 5]}
        for i, name in enumerate(names)
        if name in models
    }


def image_axes(count: int, columns: int, height: float, **ratios) -> tuple[Figure, np.ndarray]:
    rows = -(-count // columns)
    size = FIGURE_WIDTH, height * rows
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, facecolor=GROUND, **ratios)
    for ax in axes.flat:
        ax.set_axis_off()
    return fig, axes


def native(store: Store, row: int) -> np.ndarray:
    """Bring a stored image back to the shape that it had, float32 (H,W) in [0,1]."""
    shape = store.index.iloc[row][["height", "width"]].astype(int)
    image = store.images[row].astype(np.float32) / 255
    return frames.restore_prob(image, *shape, store.settings["resize"])


def source_image(cases: pd.DataFrame, case_id: str) -> np.ndarray:
    """Read a case's image as it was published, (H,W) in [0,1]."""
    return read_image(cases[cases["case_id"] == case_id].iloc[0]) / 255


def outline(ax, mask: np.ndarray, colour: str, width: float = 1.3, style="-") -> None:
    """Outline a mask, or the foreground of a label map, (H,W)."""
    if mask.any():
        # A border of background lets the outline close where the mask touches the frame's edge.
        lines = {"levels": [0.5], "colors": colour, "linewidths": width, "linestyles": [style]}
        ax.contour(np.pad(mask, 1), extent=(-1, mask.shape[1], -1, mask.shape[0]), **lines)


def outline_classes(ax, mask: np.ndarray, colour: str = REFERENCE, style="-") -> None:
    """Outline a mask, bool (H,W), in a colour, or each class of a label map in its own."""
    if mask.dtype == bool:
        outline(ax, mask, colour)
        return
    for code, of_class in class_colours(mask.max(initial=0, where=mask < UNKNOWN)).items():
        outline(ax, mask == code, of_class, style=style)


def draw_frame(ax, image: np.ndarray, title: str = "") -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    ax.set_title(title, fontsize=8, pad=3, color=INK)


def draw_case(ax, store: Store, case_id: str, pred: np.ndarray, title: str) -> None:
    row = [*store.index["case_id"]].index(case_id)
    draw_frame(ax, native(store, row), title)
    outline_classes(ax, store.reference(row))
    outline_classes(ax, pred, PREDICTION, DASHES)


def model_legend(fig: Figure, styles: dict, *, lines: bool = False, extra: tuple = ()) -> None:
    """Say below a figure how each model is drawn, see `looks`; `extra` handles come after."""
    bare = {"markersize": 5} | ({} if lines else {"linestyle": ""})
    handles = [Line2D([], [], label=name, **look | bare) for name, look in styles.items()]
    fig.legend(handles=[*handles, *extra], loc="outside lower center", ncols=7)


def outline_legend(fig: Figure, store: Store | None = None, **colours: str) -> None:
    """Name the outlines below a figure; by default those of reference and prediction.

    Of a store with several classes, name these in their colours too, then `colours` in gray, the
    second of them dashed.
    """
    colours = colours or {"reference": REFERENCE, "prediction": PREDICTION}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    if store and len(store.classes) > 1:
        names = [*store.classes, *["not known"] * (UNKNOWN in store.masks)]
        named = zip(names, class_colours(len(store.classes)).values(), strict=False)
        for handle, style in zip(handles, ("-", DASHES), strict=False):
            handle.set(color=FAINT, linestyle=style)
        handles = [Line2D([], [], color=colour, label=name) for name, colour in named] + handles
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), labelcolor=INK)


def contact_sheet(cases: pd.DataFrame, store: Store, *, groups: int = 16) -> Figure:
    """Draw one source image of each of the first `groups` groups, bare above, outlined below."""
    rows_of = store.index.reset_index(drop=True).groupby("group").indices
    shown = sorted(rows_of)[:groups]
    columns = min(4, len(shown))
    fig, axes = image_axes(2 * columns * -(-len(shown) // columns), columns, 1.75)
    pairs = axes.reshape(-1, 2, columns).swapaxes(1, 2).reshape(-1, 2)
    for group, pair in zip(shown, pairs, strict=False):
        _draw_pair(pair, cases, store, rows_of[group][len(rows_of[group]) // 2], group)
    if len(store.classes) > 1:
        outline_legend(fig, store, reference=REFERENCE)
    return fig


def _draw_pair(pair, cases: pd.DataFrame, store: Store, row: int, title: str) -> None:
    for ax, text in zip(pair, (title, ""), strict=True):
        draw_frame(ax, source_image(cases, store.index["case_id"].iloc[row]), text)
    outline_classes(pair[1], store.reference(row))


def sweep(cases: pd.DataFrame, store: Store, group: str, *, count: int = 4) -> Figure:
    """Draw source images of one group, evenly spaced along it: bare above, outlined below."""
    rows = np.flatnonzero((store.index["group"] == group).to_numpy())
    rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
    shape = store.reference(rows[0]).shape
    height = FIGURE_WIDTH / len(rows) * shape[0] / shape[1] + 0.15
    fig, axes = image_axes(2 * len(rows), len(rows), height)
    for row, pair in zip(rows, axes.T, strict=True):
        _draw_pair(pair, cases, store, row, store.index["case_id"].iloc[row])
    outline_legend(fig, store, **{foreground_name(store): REFERENCE})
    return fig


def sizes_and_areas(index: pd.DataFrame, name: str = "thyroid") -> Figure:
    """Draw the native sizes of the frames (one mark per group and size) and the masks' areas.

    `name`: what masks show, of `readings.foreground_name`.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 3.2))
    sizes = index.groupby(["group", "height", "width"]).size().reset_index(name="frames")
    left.scatter(sizes["width"], sizes["height"], s=40, alpha=0.7, color=GREY)
    left.set(xlabel="width (px)", ylabel="height (px)", title="native size, by group")
    sns.histplot(x=100 * index["foreground"], bins=20, ax=right, color=GREY)
    right.set(xlabel=f"{name}, share of the frame (%)", ylabel="frames", title="mask area")
    return fig


def frames_per_group(index: pd.DataFrame) -> Figure:
    """Draw how many frames each group (sweep or patient) has; of many groups without names."""
    counts = index["group"].value_counts().sort_index()
    fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 2.4))
    if len(counts) <= 40:
        ax.bar(counts.index, counts, color=GREY)
        ax.set_xlabel("group")
        ax.tick_params(axis="x", rotation=90 if len(counts) > 12 else 0)
    else:
        ax.stairs(counts.sort_values(ascending=False), fill=True, color=GREY)
        ax.set_xlabel(f"{len(counts)} groups, the largest first")
    ax.set_ylabel("frames")
    ax.yaxis.get_major_locator().set_params(integer=True)
    return fig


def text_mended(cases: pd.DataFrame, index: pd.DataFrame) -> Figure:
    """Draw masks that held burnt-in text: the text marked above, what is kept below."""
    mended = index[index["text_components"] > 0].drop_duplicates("group")["case_id"][:4]
    if mended.empty:
        fig, ax = plt.subplots(figsize=(FIGURE_WIDTH, 0.4))
        ax.set_axis_off()
        ax.text(0, 0.5, "No mask holds text.", va="center")
        return fig
    rows = cases.drop_duplicates("case_id").set_index("case_id")
    fig, axes = image_axes(2 * len(mended), len(mended), 1.9)
    for case_id, above, below in zip(mended, *axes, strict=False):
        before = read_levels(rows.loc[case_id]) > 127
        after, _, pixels = frames.mend_text(before)
        marked = np.repeat(before[:, :, None], 3, axis=2).astype(float)  # (H,W,3)
        marked[before & ~after] = to_rgb("#ff5c33")
        draw_frame(above, marked, f"{case_id}: {pixels} px of text")
        draw_frame(below, after.astype(float), f"{case_id}: what is kept")
    return fig


def curves(history: pd.DataFrame, loss: str = "bce") -> Figure:
    """Draw loss and Dice against the epoch, for the sides that were watched.

    `loss` is the one that was trained on; on other sides it is the cross-entropy always.
    """
    fig, axes = plt.subplots(1, 2, figsize=(FIGURE_WIDTH, 3.0))
    named = "loss (BCE)" if loss == "bce" else "loss (BCE; train + Dice)"
    colours = {"train": "0.6", "val": "black", "test": REFERENCE}
    for ax, measure, name in zip(axes, ("loss", "dice"), (named, "Dice"), strict=True):
        for side in [side for side in colours if f"{side}_{measure}" in history]:
            values = history[f"{side}_{measure}"]
            ax.plot(history["epoch"], values, marker=".", color=colours[side], label=side)
            ax.legend()
        ax.set(xlabel="epoch", ylabel=name)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[1].set_ylim(0, 1)
    if not axes[1].lines:
        axes[1].text(0.5, 0.5, "no validation cases", ha="center", transform=axes[1].transAxes)
    return fig


def pick_cases(scores: pd.DataFrame, *, each: int = 2) -> pd.DataFrame:
    """Choose the best, median and worst cases of a run by Dice; column `rank` says which."""
    order = scores.sort_values(["dice", "case_id"], ascending=[False, True])
    starts = {"best": 0, "median": (len(order) - each) // 2, "worst": len(order) - each}
    parts = [order.iloc[max(0, at) :][:each].assign(rank=name) for name, at in starts.items()]
    return pd.concat(parts, ignore_index=True)


def overlays(store: Store, picked: pd.DataFrame, preds: list[np.ndarray]) -> Figure:
    """Draw what `pick_cases` gives, a column per rank; `preds`: its masks, bool, or label maps."""
    fig, axes = image_axes(len(picked), 3, 2.3)
    columns, rows = ["best", "median", "worst"], picked.groupby("rank").cumcount()
    for case, row, pred in zip(picked.itertuples(), rows, preds, strict=True):
        title = f"{case.rank}: {case.case_id}, Dice {case.dice:.3f}"
        draw_case(axes[row, columns.index(case.rank)], store, case.case_id, pred, title)
    outline_legend(fig, store)
    return fig


def mistakes(cases: pd.DataFrame, store: Store, picked: pd.DataFrame, preds: list) -> Figure:
    """Draw what `overlays` draws side by side: both outlines above, wrong pixels below."""
    widths = [pred.shape[1] / pred.shape[0] for pred in preds]
    height = FIGURE_WIDTH / sum(widths) + 0.2
    fig, axes = image_axes(2 * len(preds), len(preds), height, width_ratios=widths)
    ids = [*store.index["case_id"]]
    for case, pred, above, below in zip(picked.itertuples(), preds, *axes, strict=True):
        ref = store.reference(ids.index(case.case_id))
        image = source_image(cases, case.case_id)
        draw_frame(above, image, f"{case.rank}: {case.case_id}, Dice {case.dice:.3f}")
        outline_classes(above, ref)
        outline_classes(above, pred, PREDICTION, DASHES)
        draw_frame(below, image)
        paint(below, (ref > 0) & (pred == 0), REFERENCE)
        paint(below, (pred > 0) & (ref == 0), PREDICTION)
        if ref.dtype != bool:
            known = (ref > 0) & (ref != UNKNOWN)
            paint(below, known & (pred > 0) & (ref != pred), WRONG_CLASS)
    names = {"reference; below: missed": REFERENCE, "prediction; below: too much": PREDICTION}
    if len(store.classes) > 1:
        names = {"reference": FAINT, "prediction; below: yellow missed, blue too much": FAINT}
        names |= {"red another class": WRONG_CLASS}
    outline_legend(fig, store, **names)
    return fig


def paint(ax, mask: np.ndarray, colour: str, strength: float = 0.75) -> None:
    """Colour the pixels of a mask, bool (H,W), and let what is below shine through."""
    # bytes, not floats, whose last bits would round the drawn colours now up and now down
    layers = [np.full(mask.shape, round(255 * part)) for part in to_rgb(colour)]
    layers.append(round(255 * strength) * mask)
    ax.imshow(np.dstack(layers).astype(np.uint8), interpolation="nearest")


def save(fig: Figure, path: str | Path) -> None:
    """Write a figure as PNG, and as PDF for print; the same figure gives the same bytes."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:  # as the layout's solver does not always give the same last bits
        ax.set_position([round(edge, 6) for edge in ax.get_position().bounds])
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        drawn = io.BytesIO()
        fig.savefig(drawn, format=kind, metadata=metadata)
        write_file(Path(path).with_suffix(f".{kind}"), drawn.getvalue())


def present(fig: Figure, path: str | Path, reading: str) -> None:
    """Save a figure and show it in a notebook, with its reading, one sentence, below."""
    save(fig, path)
    display(fig)
    plt.close(fig)  # or the notebook would show it a second time
    display(Markdown(reading))

"""Figures of the audit: each function draws one and returns it, none saves or shows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from thyroid_lib.audit import masks
from thyroid_lib.audit.copies import NEAR_COPY
from thyroid_lib.data import frames
from thyroid_lib.data.cases import read_levels
from thyroid_lib.data.store import Store
from thyroid_lib.plots import common

SIDES = {"train": "#c3dcf2", "val": "#e69f00", "test": "#12355b"}  # also differ in lightness
DEFECT = "#ff3b30"
APART, COPIED = "#8fb8de", "#12355b"


def split_map(index: pd.DataFrame, splits: dict[str, np.ndarray], *, groups: int = 24) -> Figure:
    """Draw the side of every case, a row per group; `splits`: sides, (N,), by their title."""
    names = sorted(index["group"].unique())
    shown = names[:groups]
    longest = index["group"].value_counts()[shown].max()
    size = common.FIGURE_WIDTH, 1.0 + 0.24 * len(shown)
    fig, axes = plt.subplots(1, len(splits), figsize=size, sharey=True, squeeze=False)
    for ax, (name, side_of) in zip(axes.flat, splits.items(), strict=True):
        picture = np.ones((len(shown), longest, 3))
        for row, group in enumerate(shown):
            sides = np.asarray(side_of)[(index["group"] == group).to_numpy()]
            picture[row, : len(sides)] = [to_rgb(SIDES.get(side, "white")) for side in sides]
        ax.imshow(picture, aspect="auto", interpolation="nearest")
        ax.hlines(np.arange(len(shown) - 1) + 0.5, -0.5, longest - 0.5, color="white", linewidth=3)
        ax.set(title=name, xlabel="frames, in order", xlim=(-0.5, longest - 0.5))
        ax.set_yticks(range(len(shown)), shown)
        ax.tick_params(length=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        sns.despine(ax=ax, left=True, bottom=True)
    more = f" ({len(shown)} of {len(names)} groups)" * (len(names) > len(shown))
    handles, title = [Patch(color=c, label=side) for side, c in SIDES.items()], "a row is a group"
    fig.legend(handles=handles, title=title + more, loc="outside lower center", ncols=3)
    return fig


def alikeness(alike: np.ndarray, groups: np.ndarray) -> Figure:
    """Draw the correlations of frames, (N,N) of `leakage.alikeness`; `groups`: (N,), in order."""
    size = common.FIGURE_WIDTH, 3.9
    fig, (square, counts) = plt.subplots(1, 2, figsize=size, width_ratios=(1.15, 1))
    shown = square.imshow(alike, cmap="mako", vmin=0, vmax=1, interpolation="nearest")
    fig.colorbar(shown, ax=square, label="correlation", shrink=0.85).outline.set_visible(False)
    names, starts, sizes = np.unique(groups, return_index=True, return_counts=True)
    square.set_yticks(starts + (sizes - 1) / 2, names)
    square.set_xticks(starts + (sizes - 1) / 2, names, rotation=90)
    square.tick_params(length=0)
    sns.despine(ax=square, left=True, bottom=True)
    pairs = np.triu_indices(len(alike), 1)
    same = (groups[:, None] == groups)[pairs]
    for kind, name, colour in ((~same, "two groups", APART), (same, "one group", COPIED)):
        values = alike[pairs][kind]
        weights = np.full(len(values), 100 / max(1, len(values)))
        counts.hist(values, np.linspace(0, 1, 41), weights=weights, color=colour, label=name)
    counts.set(xlabel="correlation of two frames", ylabel="share of these pairs (%)", xlim=(0, 1))
    _mark_threshold(counts, NEAR_COPY, "near-copies →", "right")
    counts.legend(title="two frames of", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return fig


def correlations(table: pd.DataFrame, *, threshold: float = NEAR_COPY) -> Figure:
    """Draw how closely test frames copy a training frame, by protocol, of `leakage.leakage_of`."""
    protocols = table["protocol"].unique()
    size = common.FIGURE_WIDTH, 0.7 + 1.5 * len(protocols)
    fig, axes = plt.subplots(len(protocols), 1, sharex=True, squeeze=False, figsize=size)
    bins = np.linspace(min(0.0, table["correlation"].min()), 1, 51)
    for ax, protocol in zip(axes.flat, protocols, strict=True):
        values = table["correlation"][table["protocol"] == protocol]
        for part, colour in ((values < threshold, APART), (values >= threshold, COPIED)):
            ax.hist(values[part], bins=bins, color=colour, edgecolor="white", linewidth=0.5)
        share = 100 * (values >= threshold).mean()
        ax.set_title(f"{protocol}: {share:.0f} % near-copies", loc="left")
        ax.set(ylabel="test frames", xlim=(bins[0], 1))
        _mark_threshold(ax, threshold, "near-copies from here" * (ax is axes[0, 0]), "left")
    axes[-1, 0].set_xlabel("correlation with the closest training frame")
    return fig


def worst_pairs(store: Store, table: pd.DataFrame, *, count: int = 3) -> Figure:
    """Draw test frames beside the training frames that they copy, and the difference.

    Drawn is the closest pair of each two groups in `table`, of `leakage.leakage`, closest first.
    The difference is taken after shift, turn, scale and mirroring are undone; white is 64 gray
    levels or more.
    """
    order = table.sort_values(["correlation", "case_id"], ascending=[False, True])
    groups = order[["train_group", "group"]].apply(frozenset, axis=1)
    pairs = order[~groups.duplicated()].head(count)
    ids = [*store.index["case_id"]]
    fig, axes = common.image_axes(3 * len(pairs), 3, 2.55)
    for line, pair in zip(axes, pairs.itertuples(), strict=True):
        test, train = ids.index(pair.case_id), ids.index(pair.train_case_id)
        moved = f"shift {pair.shift_y_px:+d}, {pair.shift_x_px:+d} px"
        moved += f", turn {round(pair.turn_deg):+d}°" + ", mirrored" * pair.mirrored
        pictures = {
            f"train: {pair.train_case_id} ({pair.train_group})": common.native(store, train),
            f"test: {pair.case_id} ({pair.group})": common.native(store, test),
            f"correlation {pair.correlation:.3f}, {moved}": _difference(store, test, train, pair),
        }
        for ax, (title, picture) in zip(line, pictures.items(), strict=True):
            common.draw_frame(ax, picture, title)
    return fig


def defect_gallery(cases: pd.DataFrame, store: Store, table: pd.DataFrame) -> Figure:
    """Draw four of each defect in a table of `masks.audit_masks`, in red, the largest first."""
    found = [defect for defect in masks.DEFECTS if (table[defect] > 0).any()]
    fig, axes = common.image_axes(4 * max(1, len(found)), 4, 1.75)
    rows = cases.drop_duplicates("case_id").set_index("case_id")
    for line, defect in zip(axes, found, strict=False):
        if defect in ("out_of_sequence", "jump"):
            _draw_sequence(line, store, table, defect)
            continue
        size = {"area": "foreground", "nearly_black": "brightness"}.get(defect, defect)
        some = table[table[defect] > 0]
        some = some.sort_values([size, "case_id"], ascending=[size != defect, True])
        some = pd.concat([some.drop_duplicates("group"), some]).drop_duplicates("case_id")
        for ax, row in zip(line, some.index, strict=False):
            levels = read_levels(rows.loc[table["case_id"][row]])
            _draw_defect(ax, store, row, defect, levels, table.loc[row])
    if not found:
        axes[0, 0].text(0.5, 0.5, "no defect was found", ha="center", va="center", color=common.INK)
    common.outline_legend(fig, mask=common.REFERENCE, defect=DEFECT)
    return fig


def _mark_threshold(ax, threshold: float, text: str, side: str) -> None:
    ax.axvline(threshold, color="black", linewidth=1, linestyle=(0, (4, 3)))
    at, offset = ("data", "axes fraction"), (-4 if side == "right" else 5, -2)
    where = {"xycoords": at, "xytext": offset, "textcoords": "offset points", "ha": side}
    ax.annotate(text, (threshold, 1), **where, va="top", fontsize=8)


def _difference(store: Store, test: int, train: int, pair) -> np.ndarray:
    """Absolute difference after alignment, (H,W) in [0,1] for 0 to 64 gray levels."""
    image, copied = (store.images[row].astype(np.float32) / 255 for row in (test, train))
    image = image[:, ::-1] if pair.mirrored else image  # the shift is that of the mirrored frame
    height, width = store.index.iloc[test][["height", "width"]].astype(int)
    turn, middle = np.deg2rad(pair.turn_deg), (store.size - 1) / 2
    # from the test frame to the training frame, turned at the frame's own aspect
    aspect = width / height if store.settings["resize"] == "square" else 1
    c, s = np.cos(turn) / pair.scale, np.sin(turn) / pair.scale
    matrix = np.array([[c, -s * aspect], [s / aspect, c]])
    offset = middle - matrix @ (middle + np.array([pair.shift_y_px, pair.shift_x_px]))
    copied = ndimage.affine_transform(copied, matrix, offset, order=1, cval=np.nan)
    difference = np.nan_to_num(np.abs(image - copied))  # 0 where nothing is to compare with
    shown = frames.restore_prob(difference, height, width, store.settings["resize"])
    return np.clip(shown * 255 / 64, 0, 1)


def _draw_defect(ax, store: Store, row: int, defect: str, levels: np.ndarray, found) -> None:
    """One example: the frame with its mask outlined, or the part of it that holds the defect."""
    before = levels > 127
    mask = frames.mend_text(before)[0]
    none = np.zeros_like(mask)
    marked, size = {
        "text": (before & ~mask, f"{found.text_pixels} px"),
        "specks": (masks.speck_map(mask), f"{found.speck_pixels} px"),
        "holes": (masks.hole_map(mask), f"{found.hole_pixels} px"),
        "midtones": (masks.midtone_map(levels), f"{found.midtones} px"),
        "gray_areas": (masks.gray_area_map(levels), f"{found.gray_areas} px"),
        "area": (none, f"{100 * found.foreground:.1f} % of frame"),
        "nearly_black": (none, f"mean {found.brightness:.0f}"),
    }[defect]
    title = f"{defect.replace('_', ' ')}: {found.case_id}, {size}"
    common.draw_frame(ax, common.native(store, row), title)
    if defect != "midtones":  # which lie along the outline
        common.outline(ax, mask, DEFECT if defect == "area" else common.REFERENCE, 1.0)
    if marked.any():
        common.paint(ax, marked, DEFECT, 1.0)
        y, x = (places.mean() for places in np.nonzero(marked))
        height, width = np.array(marked.shape) / 2  # of the frame, half is shown
        left, top = np.clip((x - width / 2, y - height / 2), 0, (width, height))
        ax.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))


def _draw_sequence(line, store: Store, table: pd.DataFrame, defect: str) -> None:
    black = table["nearly_black"] | table["nearly_black"].shift(fill_value=False)
    row = table.assign(black=black)[table[defect]].sort_values(["black", "correlation"]).index[0]
    group = table.index[table["group"] == table["group"][row]]
    names = {-2: "two before", -1: "before", 0: defect.replace("_", " "), 1: "after"}
    for ax, (step, name) in zip(line, names.items(), strict=False):
        if 0 <= (at := group.get_loc(row) + step) < len(group):
            other = group[at]
            common.draw_frame(ax, common.native(store, other), f"{name}: {table['case_id'][other]}")
            common.outline(ax, store.reference(other), common.REFERENCE if step else DEFECT, 1.0)

from types import SimpleNamespace

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from scipy import ndimage
from whole import closed_figures  # noqa: F401

from measure_copies import turn  # tools/measure_copies.py
from thyroid_lib.audit import masks
from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.store import build_store, load_cases
from thyroid_lib.plots import audit as plots_audit

PAIR = {
    "case_id": "a00", "group": "a", "train_case_id": "a01", "train_group": "a",
    "correlation": 0.9, "shift_y_px": 0, "shift_x_px": 0, "mirrored": False,
    "turn_deg": 0, "scale": 1,
}  # fmt: skip


def test_every_frame_has_its_place_and_colour_in_the_map():
    index = pd.DataFrame({"group": ["b", "a", "b", "a", "a"]})
    sides = np.array(["train", "test", "val", "train", "test"])
    left, right = plots_audit.split_map(index, {"one": sides, "two": sides[::-1]}).axes
    assert [left.get_title(), right.get_title()] == ["one", "two"]
    colours = {side: to_rgb(colour) for side, colour in plots_audit.SIDES.items()} | {"": (1, 1, 1)}
    drawn = [["test", "train", "test"], ["train", "val", ""]]  # a, then b, without a third frame
    expected = [[colours[side] for side in row] for row in drawn]
    np.testing.assert_allclose(left.images[0].get_array(), expected)
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    fig = plots_audit.split_map(index, {"one": sides}, groups=1)
    assert fig.legends[0].get_title().get_text() == "a row is a group (1 of 2 groups)"


def test_histograms_share_their_scale_and_count_every_frame():
    table = pd.DataFrame({"protocol": ["r"] * 3 + ["g"] * 2, "correlation": [0.9, 0.8, 0.3, 0, 1]})
    upper, lower = plots_audit.correlations(table).axes
    for ax, count in ((upper, 3), (lower, 2)):
        assert sum(bar.get_height() for bar in ax.patches) == count
    assert upper.get_title(loc="left") == "r: 67 % near-copies"


def test_a_copy_differs_in_nothing_once_it_is_moved_back(tiny_store, monkeypatch):
    images = tiny_store.images.copy()
    images[0] = np.roll(images[1], (2, -3), (0, 1))[:, ::-1]
    monkeypatch.setitem(tiny_store.__dict__, "images", images)
    moved = PAIR | {"shift_y_px": 2, "shift_x_px": -3, "mirrored": True}
    figs = [plots_audit.worst_pairs(tiny_store, pd.DataFrame([pair])) for pair in (PAIR, moved)]
    as_it_is, moved_back = (fig.axes[2].images[0].get_array().mean() for fig in figs)
    assert as_it_is > 0.1 > 0.01 > moved_back
    assert "shift +2, -3 px, turn +0°, mirrored" in figs[1].axes[2].get_title()


def test_a_turned_copy_differs_in_little_once_it_is_turned_back():
    noise = np.random.default_rng(0).uniform(0, 255, (60, 120))
    native = (ndimage.gaussian_filter(noise, 3) * 3 - 255).clip(0, 255).astype(np.uint8)
    images = [fit_image(image, 96, "square") for image in (turn(native, 10, 0.9), native)]
    index = pd.DataFrame({"height": [60, 60], "width": [120, 120]})
    store = SimpleNamespace(images=images, index=index, size=96, settings={"resize": "square"})
    told = {"shift_y_px": 0, "shift_x_px": 0, "mirrored": False}
    naive, turned = (
        plots_audit._difference(store, 0, 1, SimpleNamespace(**told, **how))[15:-15, 30:-30].mean()
        for how in ({"turn_deg": 0, "scale": 1}, {"turn_deg": 10, "scale": 0.9})
    )
    assert turned < naive / 4


def test_the_closest_pair_of_each_two_groups_is_drawn_once(tiny_store):
    rows = [
        PAIR | {"correlation": 0.7},
        PAIR | {"case_id": "b00", "group": "b", "correlation": 0.8},
        PAIR | {"case_id": "a02", "correlation": 0.9},
        # the same two groups the other way round
        PAIR | {"train_case_id": "b00", "train_group": "b", "correlation": 0.6},
    ]
    axes = plots_audit.worst_pairs(tiny_store, pd.DataFrame(rows), count=5).axes
    assert [ax.get_title() for ax in axes[1::3]] == ["test: a02 (a)", "test: b00 (b)"]


def test_each_defect_that_occurs_has_a_row(tmp_path):
    cases = load_cases("phantom", folder=tmp_path / "phantom", sweeps=2, frames=5)
    store = build_store(cases, tmp_path / "store", size=32)
    table = masks.audit_masks(cases, store)
    fig = plots_audit.defect_gallery(cases, store, table)
    assert [ax.get_title().split(":")[0] for ax in fig.axes if ax.images] == ["text"] * 4
    table.loc[3, ["out_of_sequence", "jump", "nearly_black", "area"]] = True
    table.loc[3, ["specks", "holes", "gray_areas", "midtones"]] = 1
    fig = plots_audit.defect_gallery(cases, store, table)
    assert len(fig.axes) == 4 * len(masks.DEFECTS)
    titles = {ax.get_title().split(":")[0] for ax in fig.axes if ax.images}
    assert titles >= {"specks", "holes", "area", "jump", "out of sequence", "before", "after"}

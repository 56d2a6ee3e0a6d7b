import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from whole import closed_figures  # noqa: F401

from thyroid_lib.data.classes import class_colours
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store
from thyroid_lib.plots import common as plots


def shown_images(fig):
    return [ax for ax in fig.axes if ax.images]


def test_a_model_keeps_its_look_in_every_study_and_differs_in_grey():
    looks = plots.looks(["resunet", "unet", "segnet"])
    assert list(looks) == ["unet", "segnet", "resunet"]
    assert plots.looks(["segnet", "my_own"])["segnet"] == looks["segnet"]
    assert len({look["marker"] for look in looks.values()}) == 3


def test_best_median_and_worst_are_picked_in_order_even_of_one_case():
    scores = pd.DataFrame({"case_id": list("abcdefg"), "dice": [0.1, 0.9, 0.5, 0.7, 0.2, 0.6, 0.4]})
    picked = plots.pick_cases(scores, each=1)
    assert list(picked.case_id) == ["b", "c", "a"]
    assert set(plots.pick_cases(scores[:1], each=2).case_id) == {"a"}


def test_outlines_lie_on_the_mask(tiny_store):
    picked, ref = tiny_store.index[:1].assign(dice=1.0, rank="best"), tiny_store.reference(0)
    (ax,) = shown_images(plots.overlays(tiny_store, picked, [ref]))
    drawn = {to_hex(c.get_edgecolor()[0]) for c in ax.collections}
    assert drawn == {plots.REFERENCE, plots.PREDICTION}
    places = np.argwhere(ref)[:, ::-1]  # x, y
    (path,) = ax.collections[0].get_paths()
    np.testing.assert_allclose(path.vertices.min(axis=0), places.min(axis=0) - 0.5, atol=0.01)
    np.testing.assert_allclose(path.vertices.max(axis=0), places.max(axis=0) + 0.5, atol=0.01)
    (ax,) = shown_images(plots.overlays(tiny_store, picked, [np.ones_like(ref)]))
    assert len(ax.collections) == 2  # a prediction of the whole frame is no empty one


def test_figures_are_saved_whole_and_repeat_to_the_byte(tmp_path):
    for name in ("first", "second"):
        fig, ax = plt.subplots()
        ax.plot([0, 1], label="Dice − †")
        ax.legend()
        plots.save(fig, tmp_path / name)
    for kind, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        first, second = ((tmp_path / f"{name}{kind}").read_bytes() for name in ("first", "second"))
        assert first == second
        assert first.startswith(start)


def test_a_figure_is_shown_with_its_reading_below(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    fig, _ = plt.subplots()
    plots.present(fig, tmp_path / "figure", "One sentence.")
    assert [shown[0], shown[1].data] == [fig, "One sentence."]
    assert not plt.fignum_exists(fig.number)  # or a notebook would show it twice


@pytest.fixture
def built(small_folder, tmp_path):
    cases = look(small_folder).cases
    return cases, build_store(cases, tmp_path / "store", size=32)


def test_what_is_missed_is_yellow_and_what_is_too_much_is_blue(built):
    cases, store = built
    ref = store.reference(0)
    pred = np.roll(ref, 3, axis=1)
    picked = store.index[:1].assign(dice=0.8, rank="best")
    _, below = shown_images(plots.mistakes(cases, store, picked, [pred]))
    _, missed, too_much = (image.get_array() / 255 for image in below.images)
    np.testing.assert_array_equal(missed[:, :, 3] > 0, ref & ~pred)
    np.testing.assert_array_equal(too_much[:, :, 3] > 0, pred & ~ref)


def test_every_figure_is_opaque_and_its_writing_stands_out(built):
    """So that it looks alike on a white page and on a dark one."""
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1, 0.5], "val_dice": [0.2, 0.4]})
    curves = plots.curves(history)
    assert [line.get_label() for ax in curves.axes for line in ax.lines] == ["train", "val"]
    for fig in plots.sweep(*built, "a"), plots.contact_sheet(*built), curves:
        *ground, alpha = fig.get_facecolor()
        legends = [text for legend in fig.legends for text in legend.get_texts()]
        inks = [to_rgb(text.get_color()) for text in [*(ax.title for ax in fig.axes), *legends]]
        assert (np.abs(np.subtract(inks, ground)).mean(axis=1) > 0.5).all()
        assert alpha == 1


def test_many_groups_have_no_names_and_the_largest_comes_first():
    index = pd.DataFrame({"group": [f"g{i}" for i in range(60)] + ["g7"] * 4})
    ax = plots.frames_per_group(index).axes[0]
    assert ax.get_xlabel() == "60 groups, the largest first"
    assert ax.patches[0].get_data().values[:2].tolist() == [5, 1]
    few = plots.frames_per_group(index[:3]).axes[0]
    assert [label.get_text() for label in few.get_xticklabels()] == ["g0", "g1", "g2"]


def test_each_class_has_its_colour_and_a_name_in_the_legend(class_store):
    picked = class_store.index[:1].assign(dice=1.0, rank="best")
    ref = class_store.reference(0)
    fig = plots.overlays(class_store, picked, [np.where(ref == 2, 1, ref)])
    (ax,) = shown_images(fig)
    drawn = [to_hex(c.get_edgecolor()[0]) for c in ax.collections]
    gland, nodule, _ = class_colours(2).values()
    assert drawn == [gland, nodule, gland]  # the prediction calls it all gland
    solid, _, dashed = (c.get_linestyle()[0][1] for c in ax.collections)
    assert solid is None
    assert dashed is not None
    lines = {text.get_text(): line for text, line in legend_of(fig)}
    assert [*lines] == ["gland", "nodule", "reference", "prediction"]
    assert [to_hex(lines[name].get_color()) for name in ("gland", "nodule")] == [gland, nodule]
    places = np.argwhere(ref == 2)[:, ::-1]
    (path,) = ax.collections[1].get_paths()
    np.testing.assert_allclose(path.vertices.min(axis=0), places.min(axis=0) - 0.5, atol=0.01)


def legend_of(fig):
    [legend] = fig.legends
    return zip(legend.get_texts(), legend.get_lines(), strict=True)


def test_another_class_is_a_mistake_of_its_own(class_store):
    ref = class_store.reference(0)
    cases = look(class_store.folder.parent / "data", classes={"gland": "1", "nodule": "2"}).cases
    pred = np.where(ref == 2, 1, ref).astype(np.uint8)
    pred[:10] = 2
    fig = plots.mistakes(
        cases, class_store, class_store.index[:1].assign(dice=1.0, rank="best"), [pred]
    )
    _, below = shown_images(fig)
    missed, too_much, other = (image.get_array()[:, :, 3] > 0 for image in below.images[1:])
    assert not missed.any()
    np.testing.assert_array_equal(too_much, (pred > 0) & (ref == 0))
    np.testing.assert_array_equal(other, ref == 2)
    for drawn in plots.sweep(cases, class_store, "a"), plots.contact_sheet(cases, class_store):
        assert "nodule" in [text.get_text() for text, _ in legend_of(drawn)]

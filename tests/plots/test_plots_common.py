import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store
from thyroid_lib.plots import common as plots


@pytest.fixture(autouse=True)
def closed_figures():
    plots.style()
    yield
    plt.close("all")


def shown_images(fig):
    return [ax for ax in fig.axes if ax.images]


def test_a_model_keeps_its_look_in_every_study_and_differs_in_grey():
    looks = plots.looks(["resunet", "unet", "segnet"])
    assert list(looks) == ["unet", "segnet", "resunet"]
    assert plots.looks(["segnet", "my_own"])["segnet"] == looks["segnet"]
    for part in ("color", "marker", "linestyle"):
        assert len({str(look[part]) for look in looks.values()}) == 3


def test_best_median_and_worst_are_picked_in_order_even_of_one_case():
    scores = pd.DataFrame({"case_id": list("abcdefg"), "dice": [0.1, 0.9, 0.5, 0.7, 0.2, 0.6, 0.4]})
    picked = plots.pick_cases(scores, each=1)
    assert list(picked.case_id) == ["b", "c", "a"]
    assert list(picked["rank"]) == ["best", "median", "worst"]
    two = plots.pick_cases(scores, each=2)
    assert list(two.case_id[two["rank"] == "worst"]) == ["e", "a"]
    assert set(plots.pick_cases(scores[:1], each=2).case_id) == {"a"}


def test_outlines_lie_on_the_mask(tiny_store):
    picked = pd.DataFrame({"case_id": [tiny_store.index.case_id[0]], "dice": [1.0]})
    picked["rank"] = "best"
    ref = tiny_store.reference(0)
    fig = plots.overlays(tiny_store, picked, [ref])
    (ax,) = shown_images(fig)
    assert ax.images[0].get_array().shape == ref.shape
    assert "Dice 1.000" in ax.get_title()
    drawn = {to_hex(c.get_edgecolor()[0]) for c in ax.collections}
    assert drawn == {plots.REFERENCE, plots.PREDICTION}
    rows, columns = np.nonzero(ref)
    (path,) = ax.collections[0].get_paths()
    low, high = path.vertices.min(axis=0), path.vertices.max(axis=0)
    np.testing.assert_allclose(low, [columns.min() - 0.5, rows.min() - 0.5], atol=0.01)
    np.testing.assert_allclose(high, [columns.max() + 0.5, rows.max() + 0.5], atol=0.01)


def test_curves_show_what_was_watched():
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1, 0.5], "val_dice": [0.2, 0.4]})
    loss, dice = plots.curves(history).axes
    assert [line.get_label() for line in (*loss.lines, *dice.lines)] == ["train", "val"]


def test_figures_are_saved_whole_and_repeat_to_the_byte(tmp_path):
    for folder in ("first", "second"):
        fig, ax = plt.subplots()
        ax.plot([0, 1], label="Dice − †")
        ax.legend()
        plots.save(fig, tmp_path / folder / "figure")
    for name, start in (("figure.png", b"\x89PNG"), ("figure.pdf", b"%PDF")):
        first, second = ((tmp_path / f / name).read_bytes() for f in ("first", "second"))
        assert first == second
        assert first.startswith(start)


def test_a_figure_is_shown_with_its_reading_below(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    fig, _ = plt.subplots()
    plots.present(fig, tmp_path / "figure", "One sentence.")
    assert [shown[0], shown[1].data] == [fig, "One sentence."]
    assert not plt.fignum_exists(fig.number)  # or a notebook would show it twice


def test_what_is_missed_is_yellow_and_what_is_too_much_is_blue(small_folder, tmp_path):
    cases = look(small_folder).cases
    store = build_store(cases, tmp_path / "store", size=32)
    ref = store.reference(0)
    pred = np.roll(ref, 3, axis=1)
    picked = pd.DataFrame({"case_id": [store.index.case_id[0]], "dice": [0.8], "rank": ["best"]})
    fig = plots.mistakes(cases, store, picked, [pred])
    above, below = shown_images(fig)
    assert len(above.collections) == 2
    _, missed, too_much = (image.get_array() / 255 for image in below.images)
    np.testing.assert_array_equal(missed[:, :, 3] > 0, ref & ~pred)
    np.testing.assert_array_equal(too_much[:, :, 3] > 0, pred & ~ref)
    assert to_hex(missed[0, 0, :3]) == plots.REFERENCE
    assert to_hex(too_much[0, 0, :3]) == plots.PREDICTION


def test_every_figure_is_opaque_and_its_writing_stands_out(small_folder, tmp_path):
    """So that it looks alike on a white page and on a dark one."""
    cases = look(small_folder).cases
    store = build_store(cases, tmp_path / "store", size=32)
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1, 0.5], "val_dice": [0.2, 0.4]})
    drawn = [plots.sweep(cases, store, "a"), plots.contact_sheet(cases, store)]
    for fig in [*drawn, plots.curves(history)]:
        ground = np.array(fig.get_facecolor())
        assert ground[3] == 1
        legends = [text for legend in fig.legends for text in legend.get_texts()]
        for text in [*(ax.title for ax in fig.axes), *legends]:
            assert np.abs(np.array(to_rgb(text.get_color())) - ground[:3]).mean() > 0.5

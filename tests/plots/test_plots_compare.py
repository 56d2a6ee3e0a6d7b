import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from whole import DELTA, closed_figures, compared  # noqa: F401

from thyroid_lib.plots import common as plots
from thyroid_lib.plots import compare as plots_compare

FIGURES = {
    "estimates": lambda made: plots_compare.estimates(made["table"]),
    "differences": lambda made: plots_compare.paired_differences(made["differences"], delta=DELTA),
    "groups": lambda made: plots_compare.groups(made["scores"]),
    "curves": lambda made: plots_compare.learning_curves(made["histories"]),
    "stability": lambda made: plots_compare.stability_panel(made["stability"]),
    "thresholds": lambda made: plots_compare.threshold_sweep(made["thresholds"]),
    "reliability": lambda made: plots_compare.reliability(made["calibration"]),
    "failures": lambda made: plots_compare.failures(made["scores"]),
    "cost": lambda made: plots_compare.cost(made["table"]),
    "no validation": lambda made: plots_compare.learning_curves(
        made["histories"].drop(columns=["val_loss", "val_dice"])
    ),
}


@pytest.mark.study
@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("sizes", [{}, {"seeds": 1, "random": False}, {"groups": 1, "seeds": 1}])
def test_every_figure_can_be_drawn(name, sizes):
    FIGURES[name](compared(**sizes)).draw_without_rendering()


def test_estimates_and_their_intervals_are_drawn_where_they_are():
    made = compared()
    left, right = plots_compare.estimates(made["table"]).axes
    assert (left.get_title(), right.get_title()) == ("grouped", "random †")
    table = made["table"].query("protocol == 'grouped'").set_index("model")
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["unet", "segnet", "resunet"]
    drawn = iter(line.get_xydata().tolist() for line in left.lines)
    for y, model in enumerate(names):
        dice, low, high = table.loc[model, ["dice", "dice_low", "dice_high"]]
        assert [next(drawn), next(drawn)] == [[[low, y], [high, y]], [[dice, y]]]


def test_differences_lie_over_the_band_of_delta():
    ax = plots_compare.paired_differences(compared()["differences"], delta=DELTA).axes[0]
    (band,) = ax.patches
    assert [band.get_x(), band.get_width()] == pytest.approx([-DELTA, 2 * DELTA])
    alone = compared(models=("unet",), random=False)["differences"]
    (ax,) = plots_compare.paired_differences(alone, delta=DELTA).axes
    assert "no pair" in ax.texts[0].get_text()


def test_groups_are_points_joined_by_lines_and_their_mean_a_bar():
    scores = pd.DataFrame({"model": ["unet"] * 3 + ["segnet"] * 3, "group": ["a", "a", "b"] * 2})
    scores = scores.assign(protocol="grouped", seed=0, fold=0, dice=[0.2, 0.4, 0.9, 0.5, 0.5, 0.7])
    (ax,) = plots_compare.groups(scores).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["unet", "segnet"]
    drawn = [line.get_ydata().round(3).tolist() for line in ax.lines]
    assert drawn == [[0.3, 0.5], [0.9, 0.7], [0.3, 0.9], [0.5, 0.7]]  # joined, then the points
    bars = [line.get_segments()[0][0][1] for line in ax.collections]
    np.testing.assert_allclose(bars, [0.6, 0.6])


def test_a_model_has_its_colour_and_the_reliability_diagram_weighs_by_pixels():
    looks = plots.looks(["resunet", "unet", "segnet"])
    for name in ("thresholds", "reliability"):
        lines = FIGURES[name](compared(random=False)).axes[0].lines
        drawn = {to_rgb(line.get_color()): line for line in lines if line.get_marker() != "None"}
        assert drawn.keys() == {look["color"] for look in looks.values()}
    for line in drawn.values():
        np.testing.assert_allclose(line.get_xydata(), [[0.05, 0.05], [0.95, 0.45]])


def test_failures_start_with_the_hardest_group():
    scores = compared()["scores"]
    _, lower = plots_compare.failures(scores).axes
    hardest = scores.query("protocol == 'grouped'").groupby("group")["dice"].mean().idxmin()
    assert lower.get_xticklabels()[0].get_text() == hardest


SIX = "unet", "unet_strong", "resunet_lite0", "resunet_lite0_scratch", "both", "strong_no_dice"


def test_six_variants_can_be_told_apart():
    made = compared(models=SIX, random=False, seeds=1)
    names = plots_compare.groups(made["scores"])
    names.draw_without_rendering()
    ends = [label.get_window_extent().x1 for label in names.axes[0].get_xticklabels()]
    turned = {label.get_rotation() for label in names.axes[0].get_xticklabels()}
    assert turned == {30}
    assert ends == sorted(ends)
    for bars in plots_compare.failures(made["scores"]).axes[0].collections:  # of a group
        xs = [segment[0][0] for segment in bars.get_segments()]
        assert np.abs(xs - np.round(xs)).max() < 0.45
    (legend,) = plots_compare.cost(made["table"]).legends
    assert {text.get_text().partition(",")[0] for text in legend.get_texts()} == {*SIX}


def test_a_model_has_the_same_look_where_an_ensemble_has_no_history():
    made = compared(models=SIX, random=False, seeds=1)
    trained = made["histories"].query("model != 'both'")
    (legend,) = plots_compare.learning_curves(trained, SIX).legends
    looks = plots.looks(SIX)
    drawn = {line.get_label(): line.get_color() for line in legend.get_lines()}
    assert drawn == {name: looks[name]["color"] for name in SIX if name != "both"}

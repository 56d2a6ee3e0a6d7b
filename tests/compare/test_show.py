import numpy as np
import pandas as pd
from whole import compared

from thyroid_lib.compare import show


def test_intervals_are_written_beside_their_estimate():
    table = pd.DataFrame({"x": [0.5, 0.25, np.nan], "l": [0.4, np.nan, np.nan], "h": [0.61, 1, 1]})
    assert show.with_interval(table, ("x", "l", "h"), 2) == ["0.50 [0.40, 0.61]", "0.25", "–"]
    tiny = pd.DataFrame({"x": [-0.0001], "l": [-0.1], "h": [0.1]})
    assert show.with_interval(tiny, ("x", "l", "h")) == ["0.000 [-0.100, 0.100]"]


def test_conditional_intervals_and_epochs_picked_on_test_are_marked():
    table = compared()["table"]
    shown = show.show(table)
    dagger = shown["Dice [95 % interval]"].str.endswith("†")
    assert dagger.tolist() == [False] * 3 + [True] * 3  # three folds; one with three seeds
    assert shown["protocol"].tolist() == ["grouped"] * 3 + ["random"] * 3
    marked = show.show(table.assign(selection="test"))
    assert marked["protocol"].str.contains("picked on test").all()


def test_one_seed_has_no_spread_and_says_so():
    table = compared(seeds=1)["table"]
    assert set(show.show(table)["SD seeds"]) == {"–"}


def test_the_table_is_narrow_enough_for_a_page():
    line = show.show(compared()["table"]).to_markdown(index=False).splitlines()[0]
    assert len(line) < 160


def test_pairs_stand_beside_the_mixed_model():
    made = compared()
    table = show.show_pairs(made["differences"], made["mixed"])
    assert len(table) == 6
    assert set(table["reading"]) & {"resunet higher", "unet higher"}
    assert not table["p"].isin(["0.00"]).any()


def test_stability_has_a_column_per_measure():
    table = show.show_stability(compared()["stability"])
    assert table.columns.tolist()[2:] == ["S1", "S2 change", "S2 fall", "S3", "S4", "S5"]
    assert table["protocol"].tolist() == ["grouped"] * 3 + ["random"] * 3


def test_tables_are_written_and_repeat_to_the_byte(tmp_path):
    made = compared()
    names = ("scores", "runs", "table", "selected", "differences", "stability", "mixed", "ranks")
    for folder in ("first", "second"):
        parts = {name: made[name] for name in names}
        show.save_tables(tmp_path / folder, card="# Model card\n", **parts)
    written = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert written == [
        "cost.csv", "details.md", "differences.csv", "groups.csv", "mixed.csv", "model_card.md",
        "ranks.csv", "selected.json", "stability.csv", "summary.csv", "summary.md",
    ]  # fmt: skip
    for name in written:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert "| unet" in (tmp_path / "first" / "summary.md").read_text()

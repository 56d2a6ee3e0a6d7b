"""README's first screen and results/README.md are those of the committed tables."""

import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import front_page as page  # tools/front_page.py
from thyroid_lib.plots.front import front_figure

ROOT = Path(__file__).parents[2]


def test_the_pages_are_those_of_the_committed_tables():
    for path, text in page.pages().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run python tools/front_page.py"


def test_a_table_of_a_study_is_asked_for_by_name():
    study = ROOT / page.REFERENCE / "tg3k-strong"
    pairs = page.study_table(study, "differences of unet_strong").splitlines()[2:]
    assert len(pairs) == 5
    assert all("unet_strong" in line for line in pairs)
    kept = pd.read_csv(study / "compare" / "differences.csv").set_index(["a", "b"])
    wanted = kept.loc[("resunet_lite0", "unet_strong"), "difference"]
    [line] = [line for line in pairs if "resunet_lite0 − unet_strong" in line]
    assert f"| {wanted:.3f} [" in line
    assert page.study_table(study, "variations").count("\n") == 2 + 13
    with pytest.raises(KeyError):
        page.study_table(study, "nothing")


def test_the_goal_is_read_from_the_tables(tmp_path):
    source = ROOT / page.REFERENCE / "tg3k-strong"
    shutil.copytree(source / "compare", tmp_path / "compare")
    run = tmp_path / "runs" / "resunet_lite0-grouped-fold0-seed0"
    run.mkdir(parents=True)
    cases = {"case_id": ["a", "b", "c"], "ref_px": [900, 950, 5000]}
    cases = pd.DataFrame(cases | {"dice": [0.0, 0.5, 0.9], "nsd": [0.1, 0.3, 0.6]})
    cases.to_csv(run / "scores.csv", index=False)
    table = pd.read_csv(tmp_path / "compare" / "summary.csv").set_index("model")
    table.loc["resunet_lite0", ["dice", "nsd"]] = [0.79, 0.51]
    table.reset_index().to_csv(tmp_path / "compare" / "summary.csv", index=False)
    text = page.goal_text(tmp_path)
    cells = [
        [x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    assert ["Dice", "0.80", "0.790", "no"] in cells
    assert ["NSD", "0.50", "0.510", "yes"] in cells
    assert ["below 1,000 px", "2", "0.250", "0.200", "50"] in cells


def test_the_worth_of_a_part_is_dice_with_it_minus_dice_without(tmp_path):
    """Whichever of the pair is named first, with its interval turned round."""
    (tmp_path / "compare").mkdir()
    models = [page.WHOLE, *page.LEFT_OUT]
    summary = pd.DataFrame({"model": models, "dice": [0.8, *np.linspace(0.7, 0.75, 6)]})
    pairs = [
        {"a": page.WHOLE, "b": model, "difference": 0.05, "low": 0.01, "high": 0.1}
        if model > page.WHOLE
        else {"a": model, "b": page.WHOLE, "difference": -0.05, "low": -0.1, "high": 0.02}
        for model in page.LEFT_OUT
    ]
    norm = {"model": page.WHOLE, "variation": "batch_norm", "dice": 0.801}
    norm |= {"difference": 0.001, "low": -0.004, "high": 0.003}
    others = {"model": "no_ema", "variation": "batch_norm", "dice": 0.1}
    changes = pd.DataFrame([norm, others]).assign(conditional=False)
    named = {"summary": summary, "differences": pd.DataFrame(pairs), "variations": changes}
    for name, table in named.items():
        table.to_csv(tmp_path / "compare" / f"{name}.csv", index=False)
    lines = page.study_table(tmp_path, "ablation").splitlines()
    cells = [[x.strip() for x in line.split("|")[1:-1]] for line in lines if "|" in line][2:]
    assert lines[0] == "With all parts Dice is 0.800."
    assert [row[0] for row in cells] == [*page.LEFT_OUT.values(), page.ADDED]
    worth = {model: row[2:] for model, row in zip(page.LEFT_OUT, cells, strict=False)}
    assert worth["val_kept_out"] == ["0.050 [0.010, 0.100]", "worth it"]
    assert worth["no_ema"] == ["0.050 [-0.020, 0.100]", "undecided"]
    assert cells[-1][1:] == ["0.801", "0.001 [-0.004, 0.003]", "equivalent"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figure_is_that_of_the_committed_tables(theme, tmp_path):
    plt.rcdefaults()  # as in the tool's own process, whatever style other tests have set
    summary = pd.read_csv(ROOT / page.STUDY / "compare" / "summary.csv")
    figure = front_figure(summary, page.read_frame(page.FRAME), group="sweep", theme=theme)
    figure.savefig(tmp_path / "drawn.png", dpi=180)
    plt.close(figure)
    drawn, kept = (
        np.asarray(Image.open(path).convert("RGB"), dtype=float)
        for path in (tmp_path / "drawn.png", ROOT / page.FRONT / f"{theme}.png")
    )
    assert drawn.shape == kept.shape
    assert np.abs(drawn - kept).mean() < 1, "run python tools/front_page.py"


def test_the_first_screen_is_short():
    """A sentence, a figure, a table of one row per network, a verdict and two commands."""
    first = (ROOT / "README.md").read_text("utf-8").partition("## Begin")[0]
    table = [line for line in first.splitlines() if line.startswith("|")]
    networks = pd.read_csv(ROOT / page.STUDY / "compare" / "summary.csv")["model"].nunique()
    assert len(table) == 2 + networks
    assert len(re.sub("<[^>]*>", "", first).split()) < 220  # the words that are seen


def test_what_is_stored_of_a_frame_is_read_back(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    masks = {kind: rng.random((5, 7)) > 0.5 for kind in ("random", "unseen")}
    frame = {"image": np.full((5, 7), 0.2), "reference": masks["random"], "preds": {"mine": masks}}
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "summary.csv").write_text("protocol,model\nrandom,mine\n")
    monkeypatch.setattr(page, "outlined_frame", lambda study, summary: frame)
    page.write_frame(tmp_path, tmp_path / "frame.npz")
    np.testing.assert_equal(page.read_frame(tmp_path / "frame.npz"), frame)

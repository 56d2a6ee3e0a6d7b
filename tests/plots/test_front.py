"""The front page's figure: which frame it shows, and that it can be drawn of every study."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from synthetic import complete

from thyroid_lib.plots import front

KINDS = {"random": "random", "unseen": "grouped"}
SUMMARY = pd.DataFrame({"protocol": ["grouped"] * 2 + ["random"] * 2})
SUMMARY["model"] = ["unet", "mine"] * 2
SUMMARY["dice"] = [0.7, 0.5, 0.9, 0.8]
SUMMARY["dice_low"], SUMMARY["dice_high"] = SUMMARY["dice"] - 0.1, SUMMARY["dice"] + 0.1


def run(study, model: str, protocol: str, seed: int, dice: dict):
    folder = study / "runs" / f"{model}-{protocol}-fold0-seed{seed}"
    folder.mkdir(parents=True)
    about = {"run_id": folder.name, "model": model, "protocol": protocol, "fold": 0, "seed": seed}
    (folder / "run.json").write_text(json.dumps(about))
    scores = complete(pd.DataFrame({"case_id": dice.keys(), "dice": dice.values()}))
    scores.to_csv(folder / "scores.csv", index=False)
    (folder / "model.pt").touch()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Frame a is the best that all tested; b is better, but `mine` never tested it unseen."""
    run(tmp_path, "unet", "random", 0, {"a": 0.8, "b": 0.9, "c": 0.7})
    run(tmp_path, "unet", "grouped", 0, {"a": 0.6, "b": 0.9, "c": 0.5})
    run(tmp_path, "unet", "random", 1, {"a": 0.9, "c": 0.5})
    run(tmp_path, "unet", "grouped", 1, {"a": 0.8, "c": 0.5})
    run(tmp_path, "mine", "random", 0, {"a": 0.7, "b": 0.9, "c": 0.7})
    run(tmp_path, "mine", "grouped", 0, {"a": 0.6, "c": 0.6})
    index = pd.DataFrame({"case_id": ["b", "a"], "height": 20, "width": 30})
    store = SimpleNamespace(
        index=index, images=np.full((2, 16, 16), 51, np.uint8), settings={"resize": "square"},
        reference=lambda row: np.pad(np.ones((8, 10), bool), ((4, 8), (5, 15))),
    )  # fmt: skip
    monkeypatch.setattr(front, "open_store", lambda folder: store)
    monkeypatch.setattr(front, "segment_case", lambda run, store, case: (run.name, case))
    return tmp_path


def test_the_frame_is_the_best_that_every_network_tested_both_ways(study):
    frame = front.outlined_frame(study, SUMMARY)
    assert frame["case_id"] == "a"
    assert frame["image"].shape == frame["reference"].shape == (20, 30)
    assert frame["preds"] == {  # of each network the seed that does better on it
        model: {kind: (f"{model}-{name}-fold0-seed{seed}", "a") for kind, name in KINDS.items()}
        for model, seed in (("unet", 1), ("mine", 0))
    }


def test_without_such_a_frame_there_is_none(study):
    assert front.outlined_frame(study, SUMMARY[:2]) is None  # a protocol lacks
    more = pd.concat([SUMMARY, SUMMARY[:1].assign(model="segnet")])
    assert front.outlined_frame(study, more) is None  # a network
    for path in study.glob("runs/*/model.pt"):  # weights
        path.unlink()
    assert front.outlined_frame(study, SUMMARY) is None


def mask(rows: int) -> np.ndarray:
    return np.arange(20 * 30).reshape(20, 30) < 30 * rows


@pytest.mark.parametrize("theme", front.THEMES)
@pytest.mark.parametrize("part", [slice(None), slice(2), slice(2, 4), slice(1)])
def test_it_is_drawn_of_any_protocols_and_networks(theme, part):
    table = SUMMARY[part]
    if len(table) == 1:  # a single group has no interval
        table = table.assign(dice_low=np.nan, dice_high=np.nan)
    preds = {model: {"random": mask(4), "unseen": mask(0)} for model in table["model"]}
    frame = {"image": np.zeros((20, 30)), "reference": mask(5), "preds": preds}
    both = table["protocol"].nunique() == 2
    fig = front.front_figure(table, frame if both else None, group="patient", theme=theme)
    fig.draw_without_rendering()
    assert len(fig.axes) == (3 if both else 1)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert ("unseen patients" in names, "reference" in names) == (part != slice(2, 4), both)
    shown = {text.get_text() for text in fig.axes[0].texts}
    assert shown == {f"{dice:.2f}" for dice in table["dice"]}
    plt.close(fig)

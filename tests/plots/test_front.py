"""The front page's figure: which frame it shows, and that it can be drawn of every study."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from thyroid_lib.plots import front

SUMMARY = pd.DataFrame(
    [("grouped", "unet", 0.7), ("grouped", "mine", 0.5), ("random", "unet", 0.9),
     ("random", "mine", 0.8)], columns=["protocol", "model", "dice"],
)  # fmt: skip
SUMMARY = SUMMARY.assign(dice_low=SUMMARY["dice"] - 0.1, dice_high=SUMMARY["dice"] + 0.1)
# Frame a is the best that all tested; b is better, but `mine` never tested it unseen.
RUNS = {
    "unet-random-fold0-seed0": {"a": 0.8, "b": 0.9, "c": 0.7},
    "unet-grouped-fold0-seed0": {"a": 0.6, "b": 0.9, "c": 0.5},
    "unet-random-fold0-seed1": {"a": 0.9, "c": 0.5},
    "unet-grouped-fold0-seed1": {"a": 0.8, "c": 0.5},
    "mine-random-fold0-seed0": {"a": 0.7, "b": 0.9, "c": 0.7},
    "mine-grouped-fold0-seed0": {"a": 0.6, "c": 0.6},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    for run_id, dice in RUNS.items():
        (folder := tmp_path / "runs" / run_id).mkdir(parents=True)
        model, protocol, _, seed = run_id.split("-")
        about = {"model": model, "protocol": protocol, "seed": int(seed[4:])}
        (folder / "run.json").write_text(json.dumps(about))
        pd.Series(dice, name="dice").rename_axis("case_id").to_csv(folder / "scores.csv")
        (folder / "model.pt").touch()
    store = SimpleNamespace(
        index=pd.DataFrame({"case_id": ["b", "a"], "height": 20, "width": 30}),
        images=np.full((2, 16, 16), 51, np.uint8), settings={"resize": "square"},
        reference=lambda row: np.pad(np.ones((8, 10), bool), ((4, 8), (5, 15))),
    )  # fmt: skip
    monkeypatch.setattr(front, "open_store", lambda folder: store)
    monkeypatch.setattr(front, "segment_case", lambda run, store, case: (run.name, case))
    return tmp_path


def test_the_frame_is_the_best_that_every_network_tested_both_ways(study):
    frame = front.outlined_frame(study, SUMMARY)
    assert frame["case_id"] == "a"
    assert frame["image"].shape == frame["reference"].shape == (20, 30)
    assert np.allclose(frame["image"], 0.2)
    assert frame["preds"] == {  # of each network the seed that does better on it
        model: {kind: (f"{model}-{protocol}-fold0-seed{seed}", "a")
                for kind, protocol in (("random", "random"), ("unseen", "grouped"))}
        for model, seed in (("unet", 1), ("mine", 0))
    }  # fmt: skip


@pytest.mark.parametrize("lacking", ["model.pt", "run.json"])
def test_without_such_a_frame_there_is_none(study, lacking):
    more = pd.concat([SUMMARY, SUMMARY[:1].assign(model="segnet")])
    assert front.outlined_frame(study, more) is None  # no run of a network
    assert front.outlined_frame(study, SUMMARY[:2]) is None  # one protocol
    for path in study.glob(f"runs/*/{lacking}"):
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
    titles = {"random": "random frames", "grouped": "unseen patients"}
    kinds = [title for name, title in titles.items() if name in set(table["protocol"])]
    assert names == kinds + ["reference"] * both
    shown = {text.get_text() for text in fig.axes[0].texts}
    assert shown == {f"{dice:.2f}" for dice in table["dice"]}
    plt.close(fig)

"""Expected minutes: from steps that take a known time, and from the real recipe."""

import numpy as np

from thyroid_lib.settings import list_runs
from thyroid_lib.train import recipe, timing

PLAN = {"models": ["unet", "segnet"], "protocols": ["grouped", "random"], "run_folds": [0, 1]}
HOW = {"width": 2, "folds": 2, "val_share": 0.3, "device": "cpu", "precision": "fp32"}
RUNS = list_runs(PLAN | {"seeds": [0]}).values()
SETTINGS = {"epochs": 60, "batch_size": 4, "lr": 1e-3, "augment": "none"}


def test_minutes_are_those_of_the_steps_of_all_runs(tiny_store, monkeypatch):
    """Each step takes a second, and the first one, which is left out, a hundred."""

    def steps(net, images, masks, rows, *, epochs, batch_size, **_):
        assert len(rows) == batch_size == 4
        yield from ({"seconds": 99.0 + epoch} for epoch in range(1, epochs + 1))

    def split(index, *, protocol, **_):
        return np.array(["train"] * 8 + ["test"] * (len(index) - 8))

    monkeypatch.setattr(recipe, "fit", steps)
    monkeypatch.setattr(timing, "split_cases", split)
    expected = timing.expected_time(tiny_store, RUNS, **HOW, **SETTINGS).set_index("model")
    assert list(expected.index) == ["unet", "segnet"]
    assert set(expected["runs"]) == {3}  # two parts and the random split
    assert list(expected["ms_per_step"]) == [1000, 1000]
    assert list(expected["minutes"]) == [6, 6]  # three runs of 60 epochs of two steps
    said = timing.minutes_sentence(expected)
    assert said.startswith("6 trainings on cpu in fp32: about 12 min, and scoring")
    short = timing.minutes_sentence(expected.assign(minutes=0.25))
    assert "about 30 s, and" in short


def test_the_recipe_itself_is_timed_and_no_folder_is_written(tiny_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = timing.expected_time(tiny_store, RUNS, **HOW, **SETTINGS)
    assert (expected[["ms_per_step", "minutes"]] > 0).all(axis=None)
    assert not list(tmp_path.iterdir())

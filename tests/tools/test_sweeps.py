"""splits/tg3k.json: what it says of TG3K follows from the frames and from the library."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sweeps as tool  # tools/sweeps.py
from thyroid_lib.data import tg3k
from thyroid_lib.data.splits import split_cases

ROOT = Path(__file__).parents[2]
KNOWN = json.loads((ROOT / "splits" / "tg3k.json").read_text("utf-8"))
SWEEPS = KNOWN["sweeps"]


def folds_of(frames, *, together=()) -> list[list[str]]:
    """Return the sweeps that each of four grouped folds tests."""
    sweep = [
        next(s for s in SWEEPS if SWEEPS[s]["first"] <= f <= SWEEPS[s]["last"]) for f in frames
    ]
    one = {name: f"person{k}" for k, names in enumerate(together) for name in names}
    index = pd.DataFrame({"case_id": [f"{f:04d}" for f in frames], "sweep": sweep})
    index["group"] = [one.get(name, name) for name in sweep]
    sides = [split_cases(index, protocol="grouped", fold=k, folds=4) for k in range(4)]
    return [sorted(set(index.loc[of == "test", "sweep"])) for of in sides]


def test_sweeps_are_those_of_the_library_and_share_no_frame():
    assert [of["last"] for of in SWEEPS.values()] == [*tg3k.LASTS]
    ends = [-1, *tg3k.LASTS[:-1]]
    assert [of["first"] for of in SWEEPS.values()] == [end + 1 for end in ends]
    assert KNOWN["frames"] == tg3k.LASTS[-1] + 1


@pytest.mark.parametrize("part", ["release", "sample"])
def test_folds_are_those_that_a_study_makes(part):
    of = KNOWN if part == "release" else KNOWN["sample"]
    frames = range(KNOWN["frames"]) if part == "release" else of["frames"]
    assert of["folds"] == folds_of(frames)
    together = KNOWN["neighbours_as_one"]
    assert of["folds_of_neighbours_as_one"] == folds_of(frames, together=together)
    assert sorted(name for names in together for name in names) == [*SWEEPS]


def test_sizes_and_odd_frames_are_those_of_the_sample(shared_data):
    cases = tg3k.cases(shared_data / "tg3k-sample")
    assert [int(case) for case in cases["case_id"]] == KNOWN["sample"]["frames"]
    small, black, apart = {}, [], []
    for case in cases.itertuples():
        image = Image.open(case.image_path).convert("L")
        sweep = SWEEPS[case.group]
        assert image.size == (sweep["width"], sweep["height"])
        small[int(case.case_id)] = np.asarray(image.resize((64, 64)), dtype=float)
        if small[int(case.case_id)].mean() < 12:
            black.append(int(case.case_id))
    for _, own in cases.groupby("group")["case_id"]:
        frames = [int(case) for case in own]
        for before, here, after in zip(frames, frames[1:], frames[2:], strict=False):
            one, other, both = (
                np.abs(small[a] - small[b]).mean()
                for a, b in ((before, here), (here, after), (before, after))
            )
            if min(one, other) > 1.5 * both:
                apart.append(here)
    assert (black, apart) == (KNOWN["nearly_black"], KNOWN["out_of_place"])


def test_the_page_has_the_table_of_the_tool(shared_data, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["sweeps.py", str(shared_data / "tg3k-sample")])
    assert tool.main() == 0
    assert capsys.readouterr().out in (ROOT / "docs" / "splits.md").read_text("utf-8")


def test_neighbours_that_are_alike_are_found(tmp_path):
    """Eight sweeps in pairs of one look each: the tool sees that neighbours are alike."""
    rng, rows = np.random.default_rng(0), []
    for sweep in range(8):
        look = np.random.default_rng(sweep // 2).normal(120, 40, (12, 12))
        for frame in range(4):
            level = np.kron(look, np.ones((5, 5))) + rng.normal(0, 3, (60, 60))
            path = tmp_path / f"{sweep}-{frame}.png"
            Image.fromarray(level.clip(5, 255).astype(np.uint8)).save(path)
            rows.append((f"{sweep}{frame}", f"run{sweep + 1:02d}", path))
    cases = pd.DataFrame(rows, columns=["case_id", "group", "image_path"])
    found = tool.compare(cases).set_index("distance of")
    assert found.loc[tool.ANATOMY, "p"] < 0.1
    assert found.loc[tool.ANATOMY, "neighbours"] < found.loc[tool.ANATOMY, "all pairs"]


def test_data_that_is_not_there_is_said(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweeps.py", "nowhere"])
    assert tool.main() == 2
    assert "no TG3K at nowhere" in capsys.readouterr().err

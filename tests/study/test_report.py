"""`report.html`: the page of a study, its verdict, and what it says of an unfinished study."""

import json
import os

import nbformat
import pandas as pd
import pytest

from thyroid_lib.study.checksums import UNFINISHED
from thyroid_lib.study.report import build_report, main, missing_steps, verdict


def summary(*rows) -> pd.DataFrame:
    """A summary table of (protocol, model, dice) rows; intervals ±0.1, none for one group."""
    table = pd.DataFrame(rows, columns=["protocol", "model", "dice"])
    return table.assign(dice_low=table["dice"] - 0.1, dice_high=table["dice"] + 0.1)


STEPS = ["1-preprocess", "3-train-unet-grouped-fold0-seed0", "4-compare"]
BOTH = summary(
    ("grouped", "unet", 0.7), ("grouped", "segnet", 0.5), ("random", "unet", 0.9),
    ("random", "segnet", 0.8),
)  # fmt: skip
UNSEEN = BOTH[:2]


def notebook(*outputs: str):
    cells = [nbformat.v4.new_markdown_cell("# A title")]
    for text in outputs:
        cell = nbformat.v4.new_code_cell("secret_code = 1", execution_count=1)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "mine"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "compare").mkdir()
    (folder / "compare" / "cost.csv").write_text("model,train_seconds\nunet,12.5\n")
    BOTH.to_csv(folder / "compare" / "summary.csv", index=False)
    for name in STEPS:
        nbformat.write(notebook(f"out of {name}"), folder / "notebooks" / f"{name}.ipynb")
    return folder


def page_of(study, *steps) -> str:
    return build_report(study, *steps).read_text(encoding="utf-8")


@pytest.mark.study
def test_one_page_holds_everything_and_asks_for_nothing(study):
    page = page_of(study)
    shown = "<td>12.5</td>", "<summary>unet-grouped-fold0-seed0</summary>", "not for diagnosis"
    assert all(words in page for words in (*(f"out of {name}" for name in STEPS), *shown))
    # no code, no address, no step that was not run
    assert not any(words in page for words in ("secret_code", "http", "Replication"))
    assert page.index("out of 4-compare") < page.index("out of 1-preprocess")
    other = study / "notebooks" / "3-train-old-grouped-fold0-seed0.ipynb"
    nbformat.write(notebook("out of a run that left the grid"), other)
    assert page_of(study, STEPS) == page


def test_a_study_without_comparison_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert "nothing has no notebooks/4-compare.ipynb: run the study" in capsys.readouterr().err


def test_a_study_that_did_not_finish_begins_with_what_is_missing(study, capsys):
    steps = [*STEPS[:2], "3-train-x", "3-train-y"]
    (study / "logs").mkdir()
    reason = "error: 3-train-x: In [5] the <loss> became nan"
    (study / "logs" / "3-train-x.failed.txt").write_text(f"{reason}\n")
    for step in ("3-train-y", "3-train-z"):
        (study / "logs" / f"{step}.ipynb").write_text("{}")
    os.utime(study / "logs" / "3-train-z.ipynb", (1e9, 1e9))  # of an earlier start
    (study / ".lock").touch()
    os.utime(study / ".lock", (1.1e9, 1.1e9))
    missing = missing_steps(study, [*steps, "3-train-z", "4-compare"])
    assert list(missing) == ["3-train-x", "3-train-y", "3-train-z", "4-compare"]
    assert missing["3-train-x"] == reason
    assert "without an error message" in missing["3-train-y"]
    assert missing["3-train-z"] == missing["4-compare"] == ""  # this one is of a time before
    assert main([str(study), "--steps", *steps, "4-compare"]) == 0
    assert f"{reason}\n" in capsys.readouterr().err
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "the &lt;loss&gt; became nan" in page
    assert "2 of 5 steps failed, 0 were stopped, 2 are done" in page
    assert "Verdict" not in page
    assert 'href="logs/3-train-x.ipynb"' in page
    assert (study / UNFINISHED).exists()
    page_of(study)  # whole now
    assert not (study / UNFINISHED).exists()


ONE = summary(("grouped", "mine", 0.7))
CHOSEN = {"model": "unet", "provisional": True, "not_separated": [], "dropped": ["segnet"]}
VERDICTS = {
    "both protocols": (
        BOTH, CHOSEN,
        "U-Net (provisionally selected) has Dice 0.70 [0.60, 0.80] on groups that it was not "
        "trained on. On frames drawn at random it has 0.90, which is 0.20 more: these have "
        "near-copies in the training set. SegNet is behind U-Net.",
    ),
    "no random protocol": (
        UNSEEN, CHOSEN | {"provisional": False, "dropped": [], "not_separated": ["segnet"]},
        "U-Net (selected) has Dice 0.70 [0.60, 0.80] on groups that it was not trained on. The "
        "gap between random frames and unseen groups was not measured. SegNet is not separated "
        "from U-Net.",
    ),
    "random protocol alone, no selection": (
        BOTH[2:], {},
        "U-Net (the best by its mean; nothing was selected) has Dice 0.90 [0.80, 1.00] on "
        "frames drawn at random. The gap between random frames and unseen groups was not measured. "
        "No other network is clearly behind it.",
    ),
    "one network, one group": (
        ONE.assign(dice_low=float("nan"), dice_high=float("nan")), {"model": "mine"},
        "mine (selected) has Dice 0.70 on groups that it was not trained on. The gap between "
        "random frames and unseen groups was not measured. No other network was compared.",
    ),
    "no gap": (
        summary(("grouped", "unet", 0.701), ("random", "unet", 0.699)), {"model": "unet"},
        "U-Net (selected) has Dice 0.70 [0.60, 0.80] on groups that it was not trained on. On "
        "frames drawn at random it has 0.70, which is the same. No other network was compared.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_is_three_sentences_that_hold(case):
    table, selected, said = VERDICTS[case]
    assert " ".join(verdict(table, selected)) == said


def test_the_page_begins_with_the_verdict_and_one_figure(study):
    table, selected, said = VERDICTS["one network, one group"]
    table.to_csv(study / "compare" / "summary.csv", index=False)
    (study / "compare" / "selected.json").write_text(json.dumps(selected))
    page = page_of(study)
    assert page.index(said) < page.index("data:image/png") < page.index("out of 4-compare")
    assert page.count("data:image/png") == 1

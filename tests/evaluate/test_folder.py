"""A trained network scored on any folder: the same figures as in the study, by group."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from thyroid_lib.data.cases import read_pair
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store
from thyroid_lib.deploy.predictor import Predictor
from thyroid_lib.evaluate import __main__ as command
from thyroid_lib.evaluate.folder import ALL, MEASURES, by_group, evaluate_folder
from thyroid_lib.evaluate.metrics import dice
from thyroid_lib.evaluate.predict import score_rows
from thyroid_lib.train.run import train_model


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    how = {"model": "unet", "width": 2, "folds": 4, "epochs": 2, "batch_size": 6, "lr": 1e-2}
    return train_model(tiny_store, out=out, threads=1, device="cpu", precision="fp32", **how)


def test_scores_are_those_of_the_study(run, small_folder, tmp_path):
    store = build_store(look(small_folder).cases, tmp_path / "store", size=32)
    rows = np.arange(len(store))
    expected = score_rows(run.model, store, rows, threshold=0.5, tolerance_px=3.0).cases
    for model in (run.out, run.out / "model.pt"):
        found = evaluate_folder(model, small_folder, tolerance_px=3.0).scores
        assert found["case_id"].tolist() == expected["case_id"].tolist()
        np.testing.assert_allclose(found[[*MEASURES]], expected[[*MEASURES]], atol=1e-5)


def test_images_masks_and_groups_may_lie_anywhere(release, small_folder, tmp_path):
    at_once = evaluate_folder(release, small_folder)
    assert at_once.scores["dice"].min() > 0.9  # what is bright is the gland
    images = tmp_path / "here" / "pictures"
    shutil.move(small_folder / "images", images)
    table = shutil.move(small_folder / "groups.csv", tmp_path / "patients.csv")
    masks = shutil.make_archive(tmp_path / "drawn", "zip", small_folder / "masks")
    how = {"images": images, "masks": masks, "groups": f"{table}:group"}
    for model in (release, release / "unet.onnx"):
        apart = evaluate_folder(model, **how)
        columns = ["case_id", "group", *MEASURES]
        pd.testing.assert_frame_equal(apart.scores[columns], at_once.scores[columns])
    assert apart.groups["group"].tolist() == ["a", "b", ALL]


def test_of_several_classes_the_foreground_is_scored(class_release, small_folder):
    predict, each = Predictor.open(class_release).predict, []
    for case in look(small_folder).cases.itertuples():
        image, mask = read_pair(case)[:2]
        each.append(dice(predict(image).mask, mask))
    assert evaluate_folder(class_release, small_folder).scores["dice"].tolist() == each


def test_masks_may_lie_among_the_images(release, small_folder, tmp_path):
    (tmp_path / "flat" / "inner").mkdir(parents=True)
    for name in ("a00", "a01", "b00"):
        shutil.copy(small_folder / "images" / f"{name}.png", tmp_path / "flat" / f"{name}.png")
        shutil.copy(small_folder / "masks" / f"{name}.png", tmp_path / "flat" / f"{name}_mask.png")
    how = {"images": tmp_path / "flat", "masks": tmp_path / "flat", "groups": "^(.)"}
    assert len(evaluate_folder(release, **how).scores) == 3
    shutil.move(small_folder / "masks", small_folder / "images" / "masks")
    how = {"images": small_folder / "images", "masks": small_folder / "images" / "masks"}
    found = evaluate_folder(release, **how, groups=str(small_folder / "groups.csv"))
    assert found.groups["frames"].tolist() == [3, 3, 6]


def test_groups_count_alike_and_are_what_is_resampled():
    dice = {"a": [0.2, 0.4], "b": [0.9]}
    rows = [{"group": g, **dict.fromkeys(MEASURES, x)} for g, each in dice.items() for x in each]
    table = by_group(pd.DataFrame(rows)).set_index("group")
    assert table["dice"].tolist() == pytest.approx([0.3, 0.9, 0.6])
    assert table["frames"].tolist() == [2, 1, 3]
    # of two groups a quarter of the resamples has the one alone, a quarter the other
    assert table.loc[ALL, ["dice_low", "dice_high"]].tolist() == pytest.approx([0.3, 0.9])
    assert table.loc[["a", "b"], "dice_low"].isna().all()
    assert by_group(pd.DataFrame(rows[:2]))["dice_low"].isna().all()  # a single group
    many = pd.DataFrame([{"group": f"{i:03}", **dict.fromkeys(MEASURES, i % 2)} for i in range(64)])
    total = by_group(many).iloc[-1]
    half = (total["dice_high"] - total["dice_low"]) / 2
    assert half == pytest.approx(1.96 * 0.5 / 8, rel=0.05)


def test_the_command_prints_a_table_and_writes_the_scores(release, small_folder, tmp_path, capsys):
    (small_folder / "masks" / "b02.png").unlink()
    words = ["--model", release, "--data", small_folder, "--threads", 1, "--out", tmp_path / "out"]
    assert command.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    for words in ("groups: 2 groups", "set aside: 1 missing mask (b02.png)", ALL, "too narrow"):
        assert words in said
    scores = pd.read_csv(tmp_path / "out" / "scores.csv", dtype={"case_id": str})
    assert scores["case_id"].tolist() == ["a00", "a01", "a02", "b00", "b01"]
    assert len(pd.read_csv(tmp_path / "out" / "groups.csv")) == 3
    assert len(pd.read_csv(tmp_path / "out" / "quarantine.csv")) == 1


def test_what_cannot_be_is_refused_in_a_sentence(release, small_folder, capsys):
    for words, said in (
        (["--model", "none", "--data", "{data}"], "no model at none"),
        (["--model", "{model}"], "give data, or both images and masks"),
        (["--model", "{model}", "--images", "{data}/images"], "both images and masks"),
        (["--model", "{model}", "--images", "{data}/images", "--masks", "no"], "masks: no folder"),
        (["--model", "{model}", "--data", "{data}", "--groups", "no.csv"], "groups: no file"),
        (["--model", "{model}", "--data", "{data}/none"], "no folder at"),
        (["--model", "{model}", "--data", "{data}/a\tb"], "holds a line break or tab, rename"),
        (["--model", "{model}", "--data", "{data}", "--out", "{data}/groups.csv/x"], "out: got"),
    ):
        filled = [word.format(model=release, data=small_folder) for word in words]
        assert command.main(filled) == 1
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1


@pytest.mark.study
def test_a_release_is_scored_without_torch(release, small_folder):
    code = "import sys; from thyroid_lib.evaluate.__main__ import main; code = main(sys.argv[1:])"
    code += "; sys.exit(code or 'torch' in sys.modules)"
    words = [sys.executable, "-c", code, "--model", release, "--data", small_folder]
    done = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr

from dataclasses import replace

import numpy as np
import pandas as pd
from whole import closed_figures  # noqa: F401

from thyroid_lib.compare import card
from thyroid_lib.data.classes import class_colours
from thyroid_lib.deploy.predictor import Doubt, Prediction
from thyroid_lib.plots import deploy as plots_deploy

RUN = {
    "run_id": "unet-grouped-fold0-seed1", "confidence_low": 0.5,
    "agreement": {"frames": 8, "agrees": True, "pixels": 0.0, "mean_prob": 1e-7},
    "confidence": {"slope": 1.0, "offset": -0.1, "error": 0.05, "groups": 1, "frames": 4},
    "int8": {"released": True, "limit": 0.002, "change": -0.0011, "worst_group": -0.0021},
}  # fmt: skip
ABOUT = {
    "selected": "unet", "protocol": "grouped", "runs": {"unet": RUN},
    "models": {"unet": {"fp32": "unet.onnx", "int8": "unet-int8.onnx"}},
}  # fmt: skip
VAL = pd.DataFrame({"model": "unet", "group": list("aabb"), "expected": [0.9, 0.8, 0.9, 0.8]})
VAL["confidence"] = VAL["dice"] = [0.8, 0.7, 0.8, 0.7]
FOUND = pd.DataFrame(
    {"group": list("abcd"), "side": ["train", "val", "test", "test"], "distance": [0.5, 1, 2, 4]}
)


def prediction(*doubts) -> Prediction:
    mask = np.zeros((20, 30), bool)
    mask[5:15, 5:20] = True
    return Prediction(mask.astype("f4"), mask, 150, (14, 9), None, None, 0.8, 0.4, doubts)


def test_the_marks_of_the_confidence_lie_where_they_are():
    left, right = plots_deploy.confidence(VAL).axes
    assert {tuple(xy) for xy in left.lines[1].get_xydata()} == {(0.9, 0.8), (0.8, 0.7)}
    assert {tuple(xy) for xy in right.lines[1].get_xydata()} == {(0.8, 0.8), (0.7, 0.7)}
    read = plots_deploy.confidence_sentence(VAL, ABOUT)
    assert "expected Dice of 0.85 on validation; the measured one is 0.75" in read
    assert "is 0.05 (with one group only the offset is fitted)" in read


def test_the_groups_stand_by_side_and_the_refused_are_counted():
    (ax,) = plots_deploy.distances(FOUND).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c", "d"]
    read = plots_deploy.distances_sentence(FOUND)
    assert read.startswith("Of 2 test frames 2 would give a warning")
    assert "1 of them would be refused" in read


def test_an_answer_shows_its_doubts():
    found = prediction(Doubt("far", "Unlike the training frames."))
    fig = plots_deploy.answer(np.full((20, 30), 90, np.uint8), found, title="x")
    fig.draw_without_rendering()
    assert fig._supxlabel.get_text() == "Unlike the training frames."
    read = plots_deploy.answer_sentence(found)
    assert read == "Doubts about this frame: far; the result can be used."
    refused = prediction(Doubt("blank", "Nothing.", grave=True))
    assert plots_deploy.answer_sentence(refused).endswith("would be refused.")


def test_an_answer_of_several_classes_names_each_in_its_colour():
    found = prediction()
    parts = replace(found, name="gland"), replace(found, name="nodule", area_px=7)
    fig = plots_deploy.answer(
        np.full((20, 30), 90, np.uint8), replace(found, of_class=parts), title=""
    )
    fig.draw_without_rendering()
    assert fig.axes[2].get_title() == "gland 150 px, nodule 7 px, confidence 0.80"
    named = {text.get_text(): line.get_color() for text, line in zip(
        fig.legends[0].get_texts(), fig.legends[0].get_lines(), strict=True
    )}  # fmt: skip
    assert named == {"gland": class_colours(2)[1], "nodule": class_colours(2)[2]}


def test_what_is_said_without_validation_and_of_classes():
    gate = RUN["int8"] | {"measured_on": "train", "classes": {"gland": 0.001, "nodule": -0.004}}
    run = {key: value for key, value in RUN.items() if key != "confidence"} | {"int8": gate}
    about = ABOUT | {"runs": {"unet": run}}
    said = "Quantising unet changes Dice of every class on training frames by no more than"
    assert plots_deploy.int8_sentence(about).startswith(said)
    assert "has no confidence" in plots_deploy.confidence_sentence(VAL, about)
    assert "of 100 training frames" in plots_deploy.distances_sentence(
        FOUND[FOUND["side"] != "val"]
    )
    text = "on training frames, as none were held back, by -0.0011 (gland +0.0010, nodule -0.0040)"
    assert text in card.released(about)


def test_what_is_said_of_int8():
    for released, negation, bold in ((True, "", ""), (False, "not ", "**not** ")):
        about = ABOUT | {"runs": {"unet": RUN | {"int8": RUN["int8"] | {"released": released}}}}
        assert f"so it is {negation}released" in plots_deploy.int8_sentence(about)
        assert f"int8 of unet is {bold}released: it changes" in card.released(about)


def test_the_table_of_what_is_released():
    row = plots_deploy.released_table(ABOUT).loc["unet"]
    assert row.tolist() == [RUN["run_id"], 8, "yes", "unet.onnx, unet-int8.onnx"]
    assert plots_deploy.released_sentence(ABOUT).startswith("1 of 1 exports")
    assert "run `unet-grouped-fold0-seed1`" in card.released(ABOUT)

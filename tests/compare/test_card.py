import re

import numpy as np
from whole import compared

from thyroid_lib.compare.card import model_card


def card_of(**changed) -> str:
    made = compared() | changed
    names = ("runs", "scores", "differences", "stability", "ranks")
    return model_card(made["selected"], made["table"], **{name: made[name] for name in names})


def test_the_card_has_every_section_and_the_figures_of_the_tables():
    titles = re.findall(r"(?m)^#+ (.*)$", card_of())
    assert titles == [
        "Model card: resunet", "What it is", "What it was trained on", "How it was evaluated",
        "Metrics by protocol", "Stability", "Calibration", "Failure modes", "Known limits",
        "Why this one", "Fingerprints and versions",
    ]  # fmt: skip
    made, card = compared(), card_of()
    row = made["table"].set_index(["protocol", "model"]).loc[("grouped", "resunet")]
    for text in (
        f"{row.dice:.3f} [{row.dice_low:.3f}, {row.dice_high:.3f}]", "by run: 1.25.", "f" * 64,
        "12 groups, 3 trained folds, 3 seeds, 9 runs", "520,000 parameters", "torch 2.13.0",
    ):  # fmt: skip
        assert text in card
    assert "**The selection is provisional**" in card.split("## ")[0]
    assert "provisional**" not in card_of(selected=made["selected"] | {"provisional": False})


def test_limits_are_those_of_the_data_and_weights_picked_on_test_are_called_so():
    card, tg3k = card_of(), card_of(scores=compared()["scores"].assign(dataset="tg3k"))
    for text in (card, tg3k):
        assert "Research use, not for diagnosis" in text
        assert ("phantoms drawn by this project" in text) == (text is card)
        assert ("healthy glands" in text) == (text is tg3k)
    runs = compared()["runs"].assign(selection="test")
    assert "ON THE TEST SET" in card_of(runs=runs)
    assert "by run: none." in card_of(runs=runs.assign(temperature=np.nan))


def test_pretrained_weights_are_named_of_a_run_and_of_an_ensembles_members():
    runs, weights = (
        compared()["runs"],
        [{"name": x, "trained_on": "cats", "licence": "MIT"} for x in "ab"],
    )
    said = [f"{of['name']}, trained on cats, licence MIT" for of in weights]
    one = card_of(runs=runs.assign(pretrained_weights=[weights[0]] * len(runs)))
    assert f"residual units. Its encoder was pretrained: {said[0]}." in one
    members = [{"pretrained_weights": each} for each in (*weights, weights[0])] + [{}]
    several = card_of(runs=runs.assign(members=[members] * len(runs)))
    assert several.count(f"Its encoder was pretrained: {'; '.join(said)}.") == 1
    assert "pretrained" not in card_of()


def test_what_is_segmented_has_its_name():
    runs = compared()["runs"]
    card = card_of(runs=runs.assign(task="nodule"))
    assert "the probability of nodule per pixel" in card
    assert "A frame without a nodule is outside" in card
    assert "gland" not in card
    two = runs.assign(task="gland+nodule", classes=[["gland", "nodule"]] * len(runs))
    assert "the probability of background and of each class, gland, nodule per" in card_of(runs=two)
    assert "the probability of thyroid per pixel" in card_of()

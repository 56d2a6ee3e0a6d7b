"""The sentences of a training's notebook say what the numbers are, and never nonsense."""

import re

import numpy as np
import pandas as pd

from thyroid_lib.train.readings import batch_sentence, curve_sentence, data_sentence


def history(*dice, loss=None):
    epochs = range(1, len(dice) + 1)
    table = pd.DataFrame({"epoch": epochs, "train_loss": loss or [1 / e for e in epochs]})
    return table if dice[0] is None else table.assign(val_dice=dice)


def test_the_curve_is_read():
    for dice, reading in (
        ((0.2, 0.59, 0.3, 0.4, 0.06), "is best in epoch 2 of 5 (0.59), ends at 0.06 and falls by "
         "0.1 or more from one epoch to the next 2 times."),
        ((0.2, 0.5, 0.6), "validation Dice is best at the end, 0.60."),
        ((0.2, 0.6, 0.601), "validation Dice is best at the end, 0.60."),  # as printed
        ((0.4, 0.4), "validation Dice stays at 0.40."),
        ((0.0, 0.001), "validation Dice stays near 0: nothing is found yet."),
        ((0.3, 0.001), "ends near 0 and falls by 0.1 or more from one epoch to the next once."),
        ((None, None), "unet: training loss goes from 1 to 0.5; no validation cases."),
        ((0.3, np.nan), "; no validation cases."),
    ):  # fmt: skip
        assert curve_sentence("unet", history(*dice)).endswith(reading)


def test_any_curve_gives_one_sentence_without_nonsense():
    rng = np.random.default_rng(0)
    for _ in range(500):
        dice = rng.uniform(0, rng.choice([1e-4, 0.01, 1]), rng.integers(1, 30))
        dice = dice.round(rng.choice([1, 9]))
        loss = list(rng.uniform(0, rng.choice([1e-6, 1, 100]), len(dice)))
        said = curve_sentence("net", history(*dice, loss=loss))
        assert said.endswith(".")
        assert not re.search(r"nan|inf|-\d|\b0\.0+\b|  ", re.sub(r" loss .*?;", "", said)), said
        if best := re.search(r"best in epoch (\d+)", said):
            assert dice.max() - dice[int(best[1]) - 1] < 0.01


def test_data_and_batch_are_named(tiny_store):
    assert data_sentence(tiny_store) == "Data: folder, 24 frames of 4 groups, 32×32 px."
    assert batch_sentence("none").endswith("the upper row.")
    assert batch_sentence("standard").endswith("the lower row.")

"""Sentences below the figures of one training: what its data and its learning curve show."""

import numpy as np
import pandas as pd

from thyroid_lib.data.store import Store

FALL = 0.1  # of validation Dice between two epochs: counted as a large one


def data_reading(store: Store) -> str:
    """Say what a store holds: dataset, frames, groups and size."""
    sources = ", ".join(sorted(store.index["dataset"].unique()))
    groups = store.index["group"].nunique()
    return (
        f"Data: {sources}, {len(store)} frames of {groups} "
        f"group{'s' * (groups != 1)}, {store.size}×{store.size} px."
    )


def batch_reading(augment: str) -> str:
    """Say which of the two rows of `plots.train.batch` the network is trained on."""
    row = "lower" if augment == "standard" else "upper"
    return (
        "Above: frames as stored. Below: the same frames as augmentation `standard` changes them, "
        f"masks with them. This training has augment `{augment}`: it shows the {row} row."
    )


def curve_reading(name: str, history: pd.DataFrame) -> str:
    """Say where validation Dice is best, how it ends and how often it falls.

    Args:
        name: of the network or run.
        history: one row per epoch with epoch, train_loss and, where there are validation cases,
            val_dice.
    """
    loss, last = history["train_loss"].to_numpy(), int(history["epoch"].iloc[-1])
    if last == 1:
        learned = f"{name}: one epoch, training loss {loss[0]:.2g}"
    else:
        learned = f"{name}: training loss goes from {loss[0]:.2g} to {loss[-1]:.2g}"
    if "val_dice" not in history or not np.isfinite(history["val_dice"]).all():
        return f"{learned}; no validation cases."
    dice = history["val_dice"].to_numpy().round(2)  # what is said is what is compared
    best = int(dice.argmax())
    if dice[best] == 0:
        return f"{learned}; validation Dice stays near 0: nothing is found yet."
    if last == 1 or dice.min() == dice.max():
        return f"{learned}; validation Dice {'is' if last == 1 else 'stays at'} {dice[-1]:.2f}."
    if dice[-1] == dice[best]:
        end = f"validation Dice is best at the end, {dice[-1]:.2f}"
    else:
        ends = "near 0" if dice[-1] == 0 else f"at {dice[-1]:.2f}"
        epoch = history["epoch"].iloc[best]
        end = f"validation Dice is best in epoch {epoch} of {last} ({dice[best]:.2f}), ends {ends}"
    if falls := int((-np.diff(dice).round(2) >= FALL).sum()):
        times = "once" if falls == 1 else f"{falls} times"
        end += f" and falls by {FALL} or more from one epoch to the next {times}"
    return f"{learned}; {end}."

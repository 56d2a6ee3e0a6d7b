"""Sentences below the figures of one training: what its data and its learning curve show."""

import numpy as np
import pandas as pd

from thyroid_lib.data.store import Store
from thyroid_lib.files.text import count_of

FALL = 0.1  # of validation Dice between two epochs: counted as a large one


def data_sentence(store: Store) -> str:
    """Say what a store holds: dataset, frames, groups and size."""
    sources = ", ".join(sorted(set(store.index["dataset"])))
    held = f"{len(store)} frames of {count_of(store.index['group'].nunique(), 'group')}"
    return f"Data: {sources}, {held}, {store.size}×{store.size} px."


def batch_sentence(augment: str | dict) -> str:
    """Say which of the two rows of `plots.train.batch` the network is trained on."""
    above = "Above: frames as stored. Below: the same frames as augmentation"
    if isinstance(augment, dict):
        kinds = ", ".join(f"{kind} {share:g}" for kind, share in augment.items())
        return f"{above} changes them ({kinds}), masks with them: what this training sees."
    return (
        f"{above} `standard` changes them, masks with them. This training has augment `{augment}`: "
        f"it shows the {'lower' if augment == 'standard' else 'upper'} row."
    )


def cases_sentence(picked: pd.DataFrame, scores: pd.DataFrame) -> str:
    """Say the Dice of the picked ones (best, median, worst) of the cases that were scored."""
    frames = count_of(scores["case_id"].nunique(), "frame")
    groups = count_of(scores["group"].nunique(), "group")
    each = ", ".join(f"{row.rank} {row.dice:.3f}" for row in picked.itertuples())
    return f"Dice of {frames} of {groups}: {each}."


def curve_sentence(name: str, history: pd.DataFrame) -> str:
    """Say where validation Dice is best, how it ends and how often it falls.

    The history has a row per epoch: epoch, train_loss and, with validation cases, val_dice.
    """
    loss, last = history["train_loss"].to_numpy(), int(history["epoch"].iloc[-1])
    learned = f"{name}: training loss goes from {loss[0]:.2g} to {loss[-1]:.2g}"
    if "val_dice" not in history or not np.isfinite(history["val_dice"]).all():
        return f"{learned}; no validation cases."
    dice = history["val_dice"].to_numpy().round(2)  # what is said is what is compared
    best = int(dice.argmax())
    end = f"is best at the end, {dice[-1]:.2f}"
    if dice[best] == 0:
        end = "stays near 0: nothing is found yet"
    elif dice.min() == dice.max():
        end = f"stays at {dice[-1]:.2f}"
    elif dice[-1] < dice[best]:
        ends = f"at {dice[-1]:.2f}" if dice[-1] else "near 0"
        epoch = history["epoch"].iloc[best]
        end = f"is best in epoch {epoch} of {last} ({dice[best]:.2f}), ends {ends}"
    if falls := int((-np.diff(dice).round(2) >= FALL).sum()):
        times = "once" if falls == 1 else f"{falls} times"
        end += f" and falls by {FALL} or more from one epoch to the next {times}"
    return f"{learned}; validation Dice {end}."

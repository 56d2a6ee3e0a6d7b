"""Who is trained on, who is watched, who is tested: one label for each case of a store.

`random` cuts by frame, as the reported study did: frames of one sweep land on both sides, so its
figures say how well a model remembers. `official` is the split that came with the data. `grouped`
and `leave-one-group-out` cut by group (sweep or patient): their figures say how well a model does
on a gland that it has not seen. `reported` is `random` again, for the runs that repeat the
reported study's other flaws too: nothing mended, and the epoch picked on the test set.
"""

import numpy as np
import pandas as pd

TEST_SHARE = 0.3  # of the frames under `random`, as reported
LEAKY = ("random", "reported", "official")  # groups may stand on two sides


def split_cases(
    index: pd.DataFrame,
    *,
    protocol: str,
    fold: int = 0,
    folds: int = 5,
    val_share: float = 0.15,
) -> np.ndarray:
    """Label each row of `index` "train", "val" or "test".

    Args:
        index: the store's cases with columns `case_id` and `group`, and `official` for the
            protocol of that name.
        protocol: a key of `PROTOCOLS`.
        fold: which fold is the test set, 0 … folds − 1. Under `random` it numbers the draw.
        folds: number of test folds under `grouped`; every group is tested in exactly one. Under
            `leave-one-group-out` the number of groups.
        val_share: wanted share of the training frames that are held back to watch, 0 for none;
            whole groups, except under `random`, so the share is met as closely as they allow.

    Returns:
        Array of str, shape (len(index),). The same arguments give the same labels, whatever the
        training seed, so all models and seeds of a fold see the same cases.

    Raises:
        ValueError: unknown protocol, impossible fold, or too few groups or frames.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, need one of {', '.join(PROTOCOLS)}")
    if not 0 <= val_share < 0.5:
        raise ValueError(f"val_share: got {val_share}, need 0 ≤ val_share < 0.5")
    if fold < 0 or (protocol not in LEAKY and fold >= folds):
        raise ValueError(f"fold: got {fold}, need 0 … {folds - 1} for {folds} folds")
    labels = PROTOCOLS[protocol](index, fold, folds, val_share)
    check_split(index, labels, by_group=protocol not in LEAKY)
    return labels


def check_split(index: pd.DataFrame, labels: np.ndarray, *, by_group: bool) -> None:
    """Raise ValueError if a side is empty, or if a group stands on two sides where none may."""
    for side in ("train", "test"):
        if not (labels == side).any():
            raise ValueError(
                f"the {side} set is empty ({len(index)} cases, {index.group.nunique()} groups): "
                "use more cases, fewer folds or a smaller val_share"
            )
    if by_group:
        sides = pd.Series(labels).groupby(index.group.to_numpy()).nunique()
        if shared := sorted(sides.index[sides > 1]):
            raise ValueError(f"groups on more than one side of the split: {', '.join(shared)}")


def count_split(index: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    """Count the frames of each group (rows) on each side (columns), with the totals last."""
    counts = pd.crosstab(index["group"].to_numpy(), labels).reindex(
        columns=["train", "val", "test"], fill_value=0
    )
    counts.loc["all"] = counts.sum()
    return counts.rename_axis(index="group", columns=None)


def _random(index: pd.DataFrame, fold: int, folds: int, val_share: float) -> np.ndarray:
    order = np.random.default_rng(fold).permutation(len(index))
    tests = round(TEST_SHARE * len(index))
    vals = round(val_share * (len(index) - tests))
    labels = np.full(len(index), "train", dtype=object)
    labels[order[:tests]] = "test"
    labels[order[tests : tests + vals]] = "val"
    return labels.astype(str)


def _official(index: pd.DataFrame, fold: int, folds: int, val_share: float) -> np.ndarray:
    side = index["official"].to_numpy().astype(str)
    if fold:
        raise ValueError(f"fold: got {fold}, the official split is one: need 0")
    if not (side == "test").any():
        raise ValueError(
            "this data has no official split (TG3K's stands in its tg3k-trainval.json): choose "
            "random, grouped or leave-one-group-out"
        )
    return _hold_back(index, side == "test", side == "train", fold, val_share)


def _leave_one_group_out(
    index: pd.DataFrame, fold: int, folds: int, val_share: float
) -> np.ndarray:
    groups = sorted(index["group"].unique())
    if folds != len(groups):
        raise ValueError(
            f"folds: got {folds}, leave-one-group-out has one fold per group: set folds to "
            f"{len(groups)}"
        )
    tested = (index["group"] == groups[fold]).to_numpy()
    return _hold_back(index, tested, ~tested, fold, val_share)


def _grouped(index: pd.DataFrame, fold: int, folds: int, val_share: float) -> np.ndarray:
    frames = index.group.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    if len(frames) < folds:
        raise ValueError(
            f"{folds} folds need as many groups, got {len(frames)}: lower `folds` to "
            f"{len(frames)} or fewer"
        )
    # Largest group first into the lightest fold: folds of nearly equal size, the same every time.
    loads = np.zeros(folds, dtype=int)
    fold_of = {}
    for group, count in frames.items():
        fold_of[group] = int(loads.argmin())
        loads[fold_of[group]] += count
    tested = index.group.map(fold_of).to_numpy() == fold
    return _hold_back(index, tested, ~tested, fold, val_share)


def _hold_back(
    index: pd.DataFrame, tested: np.ndarray, trained: np.ndarray, fold: int, val_share: float
) -> np.ndarray:
    """Label frames: what is neither trained nor tested on is left out (""), whole groups watch."""
    group = index["group"].to_numpy()
    frames = pd.Series(group[trained & ~np.isin(group, group[tested])]).value_counts().sort_index()
    held_back = _validation_groups(frames, fold, val_share * trained.sum())
    watched = trained & np.isin(group, held_back)
    return np.select([tested, watched, trained], ["test", "val", "train"], "")


def _validation_groups(frames: pd.Series, fold: int, wanted: float) -> list[str]:
    """Pick whole groups, in an order drawn by fold, as they bring their frames nearer to wanted."""
    picked: list[str] = []
    if wanted == 0 or len(frames) < 2:
        return picked
    for group in np.random.default_rng(fold).permutation(frames.index.to_numpy())[1:]:
        have = frames[picked].sum()
        if abs(have + frames[group] - wanted) < abs(have - wanted):
            picked.append(group)
    # With few large groups every one overshoots: then the smallest is held back.
    return picked or [frames.idxmin()]


PROTOCOLS = {
    "random": _random,
    "reported": _random,
    "official": _official,
    "grouped": _grouped,
    "leave-one-group-out": _leave_one_group_out,
}

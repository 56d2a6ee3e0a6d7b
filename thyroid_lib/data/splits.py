"""Splits: the side of each case of a store, "train", "val" or "test", under a protocol.

`random` cuts by frame, as the reported study did: frames of one sweep land on both sides, so its
figures say how well a model remembers. `reported` is the same draw, for the runs that repeat the
reported study's other flaws too. `official` is the split that came with the data. `grouped` and
`leave-one-group-out` cut by group (sweep or patient). `external` tests whole data sets that were
not trained on; where some are set aside for it, the other protocols use the rest alone.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from thyroid_lib.files.writing import print_note
from thyroid_lib.settings import ALL, LEAKY, ONE_SPLIT, PROTOCOLS, show

# arguments of `split_cases`
SPLIT = ("protocol", "fold", "folds", "val_share", "external", "train_share")
TEST_SHARE = 0.3  # of the frames under `random`, as reported


def split_cases(
    index: pd.DataFrame,
    *,
    protocol: str,
    fold: int = 0,
    folds: int = 5,
    val_share: float = 0.15,
    external: Sequence[str] = (),
    train_share: float = 1.0,
) -> np.ndarray:
    """Give each row of `index` its side: "train", "val", "test", or "" where it is left out.

    `index` has the store's columns `case_id`, `group` and, for that protocol, `official`. Part
    `fold` of `folds` is tested: under `grouped` every group once, under `leave-one-group-out` each
    group by itself; under `random` it numbers the draw. `val_share` of the training frames is held
    back for validation; whole groups, except under `random`, so it is met as closely as they allow.
    `external` names the data sets (column `dataset`) that protocol external alone tests. Of the
    training groups (frames, under `random`) the share `train_share` is used, the first in an order
    drawn by fold, so that a smaller share lies within a larger one. Under `settings.ALL` every case
    is trained on. Returns str (N,), the same for all models and seeds.
    """
    if protocol == ALL:
        return np.full(len(index), "train")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: got {protocol!r}, need one of {', '.join(PROTOCOLS)}")
    if external or protocol == "external":
        held = sorted(set(index["dataset"]))
        if not external or set(external) - {*held} or {*held} == {*external}:
            need = f"need some, not all, of {', '.join(held)}"
            raise ValueError(f"external: got {show([*external])}, {need}")
    if external and protocol != "external":
        used = ~index["dataset"].isin(external).to_numpy()
        sides = np.full(len(index), "", dtype="<U5")
        how = {"protocol": protocol, "fold": fold, "folds": folds, "val_share": val_share}
        sides[used] = split_cases(index[used], **how, train_share=train_share)
        return sides
    if fold < 0 or (protocol not in ONE_SPLIT and fold >= folds):
        raise ValueError(f"fold: got {fold}, need 0 … {folds - 1} for {folds} folds")
    if protocol in ("random", "reported"):
        order = np.random.default_rng(fold).permutation(len(index))
        tests = round(TEST_SHARE * len(order))
        vals = round(val_share * (len(order) - tests))
        sides = np.full(len(order), "train")
        sides[order[:tests]], sides[order[tests : tests + vals]] = "test", "val"
    else:
        tested, trained = _test_and_training(index, protocol, fold, folds, external)
        sides = _hold_back(index["group"].to_numpy(), tested, trained, fold, val_share)
        if protocol == "official" and (index["official"] == "val").any():
            sides = index["official"].to_numpy().astype(str)  # it has a side for validation
    by_frame = protocol in ("random", "reported")
    units = index["case_id" if by_frame else "group"].to_numpy()
    sides = _use_share(units, sides, fold, train_share)
    check_split(index, sides, by_group=protocol not in LEAKY)
    return sides


def check_split(index: pd.DataFrame, sides: np.ndarray, *, by_group: bool) -> None:
    """Raise ValueError if a side is empty, or if a group stands on two sides where none may."""
    for side in ("train", "test"):
        if not (sides == side).any():
            held = f"{len(index)} cases, {index.group.nunique()} groups"
            advice = "use more cases, fewer folds or a smaller val_share"
            raise ValueError(f"the {side} set is empty ({held}): {advice}")
    counts = pd.Series(sides).groupby(index["group"].to_numpy()).nunique()
    if by_group and (shared := sorted(counts.index[counts > 1])):
        raise ValueError(f"groups on more than one side of the split: {', '.join(shared)}")


def count_split(index: pd.DataFrame, sides: np.ndarray) -> pd.DataFrame:
    """Count the frames of each group (rows) on each side (columns), with the totals last."""
    columns = ["train", "val", "test"]
    counts = pd.crosstab(index["group"].to_numpy(), sides).reindex(columns=columns, fill_value=0)
    counts.loc["all"] = counts.sum()
    return counts.rename_axis(index="group", columns=None)


def fit_folds(index: pd.DataFrame, folds: int, run_folds: Sequence[int]) -> tuple[int, list[int]]:
    """Return as many folds as there are groups, if there are fewer, and which of them to run."""
    groups = max(2, index["group"].nunique())
    if groups < folds:
        print_note(f"folds: {groups} and not {folds}, as there are no more groups")
    return min(folds, groups), [fold for fold in run_folds if fold < groups]


def _test_and_training(
    index: pd.DataFrame, protocol: str, fold: int, folds: int, external: Sequence[str]
) -> tuple:
    """Return which cases are tested and which may be trained on: bool (N,) each."""
    frames = index["group"].value_counts().sort_index()  # by group
    count = len(frames)
    if protocol in ("official", "external") and fold:
        raise ValueError(f"fold: got {fold}, the {protocol} split is one: need 0")
    if protocol == "official":
        official = index["official"].to_numpy().astype(str)
        if not (official == "test").any():
            problem = "this data has no official split (TG3K's stands in its tg3k-trainval.json)"
            raise ValueError(f"{problem}: choose random, grouped or leave-one-group-out")
        return official == "test", official == "train"
    if protocol == "external":
        tested = index["dataset"].isin(external).to_numpy()
    elif protocol == "leave-one-group-out":
        if folds != count:
            need = f"{protocol} has one per group: set folds to {count}"
            raise ValueError(f"folds: got {folds}, {need}")
        tested = index["group"].to_numpy() == frames.index[fold]
    else:
        if count < folds:
            lower = "lower `folds`" if count > 1 else "name the `groups`, or take protocol random"
            raise ValueError(f"{folds} folds need as many groups, got {count}: {lower}")
        # largest group first into the lightest fold: folds of nearly equal size, the same always
        loads, fold_of = np.zeros(folds, dtype=int), {}
        for group, size in frames.sort_values(ascending=False, kind="stable").items():
            fold_of[group] = int(loads.argmin())
            loads[fold_of[group]] += size
        tested = index["group"].map(fold_of).to_numpy() == fold
    return tested, ~tested


def _hold_back(group: np.ndarray, tested, trained, fold: int, val_share: float) -> np.ndarray:
    """Hold whole groups back for validation; what is neither trained nor tested on gets "".

    In an order drawn by fold, those that bring the number of frames nearer to the wanted share are
    picked. With few large groups every one overshoots: then the smallest is picked.
    """
    frames = pd.Series(group[trained & ~np.isin(group, group[tested])]).value_counts().sort_index()
    wanted, picked = val_share * trained.sum(), []
    if wanted and len(frames) > 1:
        for name in np.random.default_rng(fold).permutation(frames.index.to_numpy())[1:]:
            have = frames[picked].sum()
            if abs(have + frames[name] - wanted) < abs(have - wanted):
                picked.append(name)
        picked = picked or [frames.idxmin()]
    held_back = trained & np.isin(group, picked)
    return np.select([tested, held_back, trained], ["test", "val", "train"], "")


def _use_share(units: np.ndarray, sides: np.ndarray, fold: int, train_share: float) -> np.ndarray:
    """Keep that share of the units, groups or frames, that are trained on; others get ""."""
    if train_share == 1:
        return sides
    # drawn over all that are not tested: what is held back for validation changes no order
    order = np.random.default_rng(fold).permutation(np.unique(units[sides != "test"]))
    order = order[np.isin(order, units[sides == "train"])]
    used = order[: max(1, round(train_share * len(order)))]
    return np.where((sides == "train") & ~np.isin(units, used), "", sides)

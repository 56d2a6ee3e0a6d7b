"""Leakage audit: are test frames near-copies of training frames? By content, whatever the names."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from thyroid_lib.audit.copies import (
    NEAR_COPY,
    Maps,
    closest,
    describe,
    near_copy_threshold,
    pair_correlation,
)
from thyroid_lib.data.frames import content_box
from thyroid_lib.data.groups import ARE_PROPOSED, PROPOSED, are_proposed, waits
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store

# Of a frame that continues a sweep less is required than of a near-copy: 95 % of the frames that
# NEAR_COPY was chosen on find nothing above this in any other sweep.
SAME_SWEEP = 0.5
IN_ORDER = 0.5  # of the frames that follow another: of real sweeps 96 % do, in chance order 10 %
MEMORY = 5  # frames back that are compared: one that is out of place does not end a sweep


def describe_store(store: Store) -> Maps:
    """Make the maps of a store's frames, without the border that a letterbox adds."""
    if store.settings["resize"] == "square":
        return describe(store.images, store.index[["height", "width"]].to_numpy())
    cut = zip(store.images, content_boxes(store), strict=True)
    return describe([image[y : y + h, x : x + w] for image, (y, x, h, w) in cut])


def content_boxes(store: Store) -> np.ndarray:
    """Return top, left, height and width, (N,4) in px, of each frame in its stored square."""
    how = store.size, store.settings["resize"]
    sides = store.index[["height", "width"]].to_numpy().tolist()
    return np.array([content_box(*side, *how) for side in sides])


def leakage(
    store: Store, sides: np.ndarray, *, threshold: float | None = None, maps: Maps | None = None
) -> pd.DataFrame:
    """Find for each test frame the training frame that it copies best.

    `sides`: (N,), of `splits.split_cases`; `maps`: `describe_store(store)`, if already made;
    `threshold`: of a near-copy, by default what the store's groups give (`near_copy_threshold`).
    Returns one row per test frame, in the store's order: case_id, group, train_case_id,
    train_group, correlation, shift_y_px and shift_x_px (px of the stored frames: how far it lies
    below and right of the training frame), turn_deg and scale (of `closest`), mirrored, threshold,
    near_copy (bool).
    """
    test, train = (np.flatnonzero(sides == side) for side in ("test", "train"))
    maps = maps or describe_store(store)
    threshold = threshold or near_copy_threshold(maps, store.index["group"])
    found = closest(maps.take(test), maps.take(train))
    names = store.index[["case_id", "group"]]
    copied = names.iloc[train[found["row"]]].reset_index(drop=True).add_prefix("train_")
    table = names.iloc[test].reset_index(drop=True).join(copied).join(found[["correlation"]])
    for axis, length in zip("yx", content_boxes(store)[:, 2:].T, strict=True):
        table[f"shift_{axis}_px"] = np.rint(found[f"shift_{axis}"] * length[test]).astype(int)
    table = table.assign(turn_deg=found["turn"].round(1) + 0.0, scale=found["scale"].round(3))
    near_copy = table["correlation"] >= threshold
    return table.assign(mirrored=found["mirrored"], threshold=threshold, near_copy=near_copy)


def leakage_of(store: Store, protocols: Iterable[str], *, folds: int, **how) -> pd.DataFrame:
    """Run `leakage` on every fold (or draw) of protocols; columns protocol and fold come first.

    `how` are other arguments of `splits.split_cases`.
    """
    maps, parts, how = describe_store(store), {}, how | {"folds": folds}
    how_near = {"maps": maps, "threshold": near_copy_threshold(maps, store.index["group"])}
    for protocol in protocols:
        for fold in range(1 if protocol in ("official", "external") else folds):
            sides = split_cases(store.index, protocol=protocol, fold=fold, **how)
            parts[protocol, fold] = leakage(store, sides, **how_near)
    table = pd.concat(parts, names=["protocol", "fold"])
    return table.reset_index(["protocol", "fold"]).reset_index(drop=True)


def leak_share(table: pd.DataFrame) -> pd.DataFrame:
    """Give one row per protocol and fold of `leakage_of`; share of near-copies: 0 to 1."""
    folds = table.groupby(["protocol", "fold"], sort=False)
    shares = folds["near_copy"].agg(test_frames="size", near_copies="sum", share="mean")
    each = folds["correlation"].agg(correlation_median="median", correlation_highest="max")
    return shares.join(each).reset_index()


def alikeness(maps: Maps) -> np.ndarray:
    """Return the correlation of each frame with each other one, small shifts allowed, (N,N)."""
    alike = np.eye(len(maps.fine))
    for back in range(1, len(alike)):
        later = np.arange(back, len(alike))
        alike[later, later - back] = pair_correlation(maps.fine, back)[back:]
    return np.maximum(alike, alike.T)


def leakage_sentence(table: pd.DataFrame) -> str:
    """Say in words what share of each protocol's test frames have a near-copy in training."""
    shares = table.groupby("protocol", sort=False)["near_copy"].mean()
    each = "; ".join(f"{name}: {percent(share)}" for name, share in shares.items())
    made = " Groups were made by this likeness: that none crosses a split shows nothing new."
    made *= are_proposed(table)
    return f"Test frames with a near-copy among the training frames. {each}.{made}"


def split_sentence(index: pd.DataFrame, splits: dict[str, np.ndarray]) -> str:
    """Say in words how many groups each split has on both sides; `splits` are sides by name."""
    group, said = index["group"].to_numpy(), []
    for name, sides in splits.items():
        shared = set(group[sides == "train"]) & set(group[sides == "test"])
        said.append(f"{name}: {len(shared) or 'none'} of {len(set(group))}")
    return f"Groups with frames both to train and to test on. {'; '.join(said)}."


def closest_sentence(table: pd.DataFrame) -> str:
    """Say in words which test frame of `leakage` copies a training frame best."""
    pair = table.loc[table["correlation"].idxmax()]
    groups = "one group" if pair["group"] == pair["train_group"] else "two groups"
    names, value = f"{pair['train_case_id']} and {pair['case_id']}", pair["correlation"]
    return f"The closest pair, {names}, is of {groups}; its correlation is {value:.2f}."


def propose_groups(store: Store) -> np.ndarray:
    """Propose groups (sweeps), str (N,) "proposed001" …, of frames in the order of their names.

    Where some groups wait for it (`groups: proposed`), the others stay; else it is for all frames.
    """
    maps, case_ids = describe_store(store), store.index["case_id"].tolist()
    groups = store.index["group"].to_numpy(object, copy=True)
    waiting = sorted({*groups[waits(store.index)]})
    if not waiting:
        groups[:], waiting = PROPOSED, [PROPOSED]
    in_order = np.array(sorted(range(len(groups)), key=lambda i: _order(case_ids[i])))
    for name in waiting:  # one for each data set
        rows = in_order[groups[in_order] == name]
        groups[rows] = [f"{name}{number + 1:03d}" for number in follow_frames(maps.take(rows))]
    return groups.astype(str)


def _order(name: str) -> list:
    """Return a key that sorts frame2 before frame10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def follow_frames(maps: Maps) -> np.ndarray:
    """Number the parts, int (N,) from 0, that the maps of N frames, in their order, make up.

    A frame joins the part of that of the five before it which it resembles most, else it begins a
    new part; frames without content are one part, and parts that hold near-copies of each other are
    merged. Where few frames resemble one before them, their order says nothing, and near-copies
    alone are joined. A patient may have several parts.
    """
    alike = np.array([pair_correlation(maps.fine, back) for back in range(1, MEMORY + 1)])  # (5,N)
    parts = np.arange(len(maps.fine))
    follows = alike.max(axis=0) >= SAME_SWEEP
    for row in np.flatnonzero(follows) if follows.mean() >= IN_ORDER else ():
        parts[row] = parts[row - 1 - alike[:, row].argmax()]
    parts[~maps.fine.any(axis=(1, 2))] = len(parts)
    copies = range(len(parts))
    while len(copies):  # a merged part may reach what its pieces could not
        found = closest(maps, maps, apart=(parts, parts))
        copies = np.flatnonzero(found["correlation"] >= NEAR_COPY)
        for row in copies:
            one, other = sorted((parts[row], parts[found["row"][row]]))
            parts[parts == other] = one
    return pd.factorize(parts)[0]


def adjusted_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """How far two groupings, (N,) names, agree: 1 in full, about 0 by chance.

    Source: Hubert & Arabie, Journal of Classification 2 (1985) 193.
    """
    table = pd.crosstab(np.asarray(one), np.asarray(other)).to_numpy()
    counts = table, table.sum(axis=1), table.sum(axis=0), np.array([len(one)])
    both, first, second, every = (float((n * (n - 1.0) / 2).sum()) for n in counts)  # pairs
    expected = first * second / every if every else 0.0
    most = (first + second) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def groups_sentence(proposed: np.ndarray, known: np.ndarray) -> str:
    """Say in words how far proposed groups agree with the known ones."""
    if are_proposed(pd.DataFrame({"group": known})):
        return ARE_PROPOSED
    found, agree = len(set(proposed)), adjusted_rand_index(proposed, known)
    said = f"From the frames alone: {found} group{'s' * (found != 1)}"
    index = f"adjusted Rand index {max(agree, 0):.2f} (1: the same groups, 0: chance)"
    other = f"against {len(set(known))} by name; {index}"
    return f"{said}, {'the same as by name' if agree == 1 else other}."


def percent(share: float) -> str:
    """Write a share, 0 % and 100 % only where it is none or all."""
    if 0 < share < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"

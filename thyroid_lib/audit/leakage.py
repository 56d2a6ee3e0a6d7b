"""Leakage audit: are test frames near-copies of training frames? By content, whatever the names.

    table = audit.leakage_of(store, ["random", "grouped"], folds=3)
    print(audit.leakage_sentence(table))

Source: Hubert & Arabie, Journal of Classification 2 (1985) 193, the adjusted Rand index.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from thyroid_lib.audit.copies import NEAR_COPY, Maps, closest, describe, in_px, pair_correlation
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import Store
from thyroid_lib.files.writing import write_table

# That a frame goes on with the sweep is likely beforehand, so less is asked than of a near-copy:
# 95 % of the real frames that NEAR_COPY was chosen on find nothing above this in any other sweep.
SAME_SWEEP = 0.5
MEMORY = 5  # frames back that are looked at: one that is out of place does not end a sweep


def describe_store(store: Store) -> Maps:
    """Make the maps of a store's frames, without the border that a letterbox adds."""
    if store.settings["resize"] == "square":
        return describe(store.images)
    heights, widths = content_sides(store)
    tops, lefts = (store.size - heights) // 2, (store.size - widths) // 2
    cut = zip(store.images, tops, heights, lefts, widths, strict=True)
    return describe([image[y : y + h, x : x + w] for image, y, h, x, w in cut])


def content_sides(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Height and width, (N,) each, that every frame takes up in its stored square, in px."""
    sides = store.index[["height", "width"]] if store.settings["resize"] != "square" else None
    if sides is None:
        return (np.full(len(store.images), store.size),) * 2
    # as `frames.fit_image` rounds them
    taken = np.rint(sides.mul(store.size / sides.max(axis=1), axis=0)).clip(lower=1).astype(int)
    return taken["height"].to_numpy(), taken["width"].to_numpy()


def leakage(
    store: Store,
    labels: np.ndarray,
    *,
    threshold: float = NEAR_COPY,
    maps: Maps | None = None,
) -> pd.DataFrame:
    """Find for each test frame the training frame that it copies best.

    Args:
        store: N frames of any source.
        labels: (N,) of "train", "val", "test", from `splits.split_cases` or anywhere.
        threshold: correlation from which on a test frame is a near-copy.
        maps: `describe_store(store)`, to make them only once for several splits.

    Returns:
        One row per test frame, in the store's order: case_id, group, train_case_id, train_group,
        correlation, shift_y_px and shift_x_px (px of the stored frames, in steps of a 64th of their
        side: how far the test frame lies below and right of the training frame), mirrored,
        near_copy (bool). Validation frames are on neither side.

    Raises:
        ValueError: labels of another length, or no frame to train or to test on.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(store.images),):
        raise ValueError(
            f"labels: got shape {labels.shape}, need one for each of {len(store.images)} frames"
        )
    test, train = (np.flatnonzero(labels == side) for side in ("test", "train"))
    if not len(test) or not len(train):
        raise ValueError(f"got {len(train)} training and {len(test)} test frames: need both")
    maps = maps or describe_store(store)
    found = closest(maps.take(test), maps.take(train))
    names = store.index[["case_id", "group"]]
    copied = names.iloc[train[found["row"]]].reset_index(drop=True).add_prefix("train_")
    sides = (side[test] for side in content_sides(store))
    table = names.iloc[test].reset_index(drop=True).join(copied).join(in_px(found, *sides))
    return table.assign(near_copy=table["correlation"] >= threshold)


def leakage_of(
    store: Store, protocols: Iterable[str], *, folds: int, val_share: float = 0.15
) -> pd.DataFrame:
    """Run `leakage` on every fold (or draw) of protocols; columns protocol and fold come first."""
    maps, parts = describe_store(store), []
    for protocol in protocols:
        for fold in range(1 if protocol == "official" else folds):
            labels = split_cases(
                store.index, protocol=protocol, fold=fold, folds=folds, val_share=val_share
            )
            table = leakage(store, labels, maps=maps)
            table.insert(0, "protocol", protocol)
            table.insert(1, "fold", fold)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def leak_share(table: pd.DataFrame) -> pd.DataFrame:
    """Give one row per protocol and fold of `leakage_of`: frames tested, near-copies, their share.

    Returns:
        protocol, fold, test_frames, near_copies, share (0 to 1), correlation_median and _highest.
    """
    folds = table.groupby(["protocol", "fold"], sort=False)
    return folds.agg(
        test_frames=("near_copy", "size"),
        near_copies=("near_copy", "sum"),
        share=("near_copy", "mean"),
        correlation_median=("correlation", "median"),
        correlation_highest=("correlation", "max"),
    ).reset_index()


def alikeness(maps: Maps) -> np.ndarray:
    """Return the correlation of each frame with each other one, small shifts allowed, (N,N)."""
    count = len(maps.fine)
    alike = np.eye(count)
    for back in range(1, count):
        later = np.arange(back, count)
        alike[later, later - back] = pair_correlation(maps.fine, back)[back:]
    return np.maximum(alike, alike.T)


def leakage_sentence(table: pd.DataFrame) -> str:
    """Say in words what share of each protocol's test frames have a near-copy in training."""
    share = table.groupby("protocol", sort=False)["near_copy"].mean()
    each = "; ".join(f"{name}: {_percent(part)}" for name, part in share.items())
    return f"Test frames with a near-copy among the training frames. {each}."


def shared_groups(index: pd.DataFrame, labels: np.ndarray) -> list[str]:
    """List the groups with frames on both the training and the test side, sorted; from names."""
    labels = np.asarray(labels)
    return sorted(set(index["group"][labels == "train"]) & set(index["group"][labels == "test"]))


def propose_groups(images: np.ndarray, *, maps: Maps | None = None) -> np.ndarray:
    """Propose sweeps for frames that have no groups.

    A frame goes with one of the five before it that it resembles, else it begins a part; parts that
    hold near-copies of each other become one, as no split may part them.

    Args:
        images: uint8 (N,S,S), in the order in which they were taken (or named).
        maps: those of the frames, if they are there already, as from `describe_store`.

    Returns:
        Array of str (N,): "part001", "part002", … in order of appearance. It is a proposal: frames
        of one patient that look different stand in different parts.
    """
    maps = maps or describe(images)
    parts = np.zeros(len(maps.fine), dtype=int)
    alike = np.stack(
        [pair_correlation(maps.fine, back) >= SAME_SWEEP for back in range(1, MEMORY + 1)]
    ).any(axis=0)  # (N,)
    if len(alike):
        parts = np.cumsum(~alike) - 1
    while True:  # a merged part may reach what its pieces could not
        found = closest(maps, maps, apart=(parts, parts))
        copies = np.flatnonzero(found["correlation"] >= NEAR_COPY)
        if not len(copies):
            break
        for row in copies:
            one, other = sorted((parts[row], parts[found["row"][row]]))
            parts[parts == other] = one
    _, first, numbers = np.unique(parts, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.array([f"part{order[number] + 1:03d}" for number in numbers], dtype=str)


def adjusted_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """How far two groupings of the same N cases agree: 1 in full, about 0 by chance.

    Args:
        one, other: (N,) labels, of any kind; only which are equal counts.

    Returns:
        At most 1; 1 where both put every case alone, or all into one group.

    Raises:
        ValueError: of different lengths.
    """
    if len(one) != len(other):
        raise ValueError(f"got {len(one)} and {len(other)} labels: need as many of both")
    table = pd.crosstab(np.asarray(one), np.asarray(other)).to_numpy()
    both, first, second, every = (
        float((counts * (counts - 1.0) / 2).sum())
        for counts in (table, table.sum(axis=1), table.sum(axis=0), np.array([len(one)]))
    )
    expected = first * second / every if every else 0.0
    most = (first + second) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def groups_sentence(proposed: np.ndarray, known: np.ndarray) -> str:
    """Say in words how far proposed groups agree with the known ones."""
    agree = adjusted_rand_index(proposed, known)
    return (
        f"From the frames alone: {len(set(proposed))} groups, against {len(set(known))} by name; "
        f"adjusted Rand index {agree:.2f} (1: the same groups, 0: chance)."
    )


def save_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table of the audit as CSV, with three decimals: more differ between machines."""
    write_table(path, table, digits=3)


def _percent(share: float) -> str:
    if 0 < share < 0.01:
        return "less than 1 %"
    return "more than 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"

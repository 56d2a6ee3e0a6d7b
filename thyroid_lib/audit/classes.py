"""Class audit: how many cases and groups hold each class, in all and on each side of a split."""

import numpy as np
import pandas as pd

from thyroid_lib.data.classes import UNKNOWN
from thyroid_lib.data.store import Store

NOT_KNOWN = "not known"
FEW = 5  # groups; with fewer on a side, a class's scores say little


def classes_held(store: Store) -> pd.DataFrame:
    """Say which classes each case's reference holds, bool, a column each; the last: not known."""
    codes = {name: code for code, name in enumerate(store.classes, 1)} | {NOT_KNOWN: UNKNOWN}
    maps = (store.reference(row) for row in range(len(store)))
    rows = [np.isin([*codes.values()], np.unique(labels)) for labels in maps]
    held = pd.DataFrame(rows, columns=[*codes])
    return held if held[NOT_KNOWN].any() else held.drop(columns=NOT_KNOWN)


def count_by_group(store: Store, held: pd.DataFrame) -> pd.DataFrame:
    """Give one row per group: its cases, and how many of them hold each class of `classes_held`."""
    table = store.index[["group"]].assign(cases=1).join(held.astype(int))
    return table.groupby("group").sum().reset_index()


def count_by_side(store: Store, held: pd.DataFrame, splits: dict[str, np.ndarray]) -> pd.DataFrame:
    """Give one row per split and class: cases and groups, of all and of each side of the split.

    `splits`: sides, (N,), by their name. annotated: cases whose source outlines the class.
    """
    rows, group = [], store.index["group"].to_numpy()
    outlined = dict(zip(store.classes, store.annotated.sum(axis=0), strict=True))
    for split, side_of in splits.items():
        for name in held:
            row = {"split": split, "class": name, "annotated": outlined.get(name, 0)}
            for side in ("train", "val", "test"):
                inside = held[name].to_numpy() & (np.asarray(side_of) == side)
                row |= {f"{side}_cases": inside.sum(), f"{side}_groups": len({*group[inside]})}
            rows.append(row)
    return pd.DataFrame(rows)


def classes_sentence(table: pd.DataFrame) -> str:
    """Say which classes of `count_by_side` few groups train or test."""
    known = table[table["class"] != NOT_KNOWN]
    few = [
        f"{row['class']} ({row['split']}): {row[f'{side}_groups']} to {side} on"
        for row in known.to_dict("records")
        for side in ("train", "test")
        if row[f"{side}_groups"] < FEW
    ]
    said = f"{known['class'].nunique()} classes" if known["class"].nunique() > 1 else "One class"
    each = f"Fewer than {FEW} groups: {'; '.join(few)}" if few else f"Each has {FEW} groups or more"
    return f"{said}. {each}."

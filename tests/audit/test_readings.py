"""Generated sentences of data and audit, by property: never a NaN, a blank or a count of zero."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from thyroid_lib.audit import leakage, masks
from thyroid_lib.data import readings

NONSENSE = re.compile(
    r"\bnan\b|\b0 (cases?|groups?|frames?)\b|\b1 (cases|groups|frames)\b|  |None\b (?!of)|\n"
)
few = settings(deadline=None, max_examples=60)
names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


def check(*said: str) -> None:
    assert not [text for text in said if NONSENSE.search(text) or not text.endswith(".")]


def column(values, count: int):
    return st.lists(values, min_size=count, max_size=count)


@few
@given(names, st.data())
def test_what_is_said_of_a_store(group, data):
    sizes = column(st.integers(1, 4000), len(group))
    index = pd.DataFrame({"group": group, "height": data.draw(sizes), "width": data.draw(sizes)})
    index["case_id"] = [f"case{i}" for i in range(len(group))]
    index["foreground"] = data.draw(column(st.floats(0.0001, 0.99), len(group)))
    reasons = data.draw(st.lists(st.sampled_from(["empty mask", "no group"]), max_size=3))
    mend = data.draw(st.sampled_from([[], ["text"], ["text", "holes"]]))
    changed = dict.fromkeys(("text", "specks", "holes"), data.draw(st.integers(0, len(group))))
    aside = pd.DataFrame({"reason": reasons}, dtype=object)
    store = SimpleNamespace(index=index, quarantine=aside, settings={"mend": mend}, mended=changed)
    stored = readings.stored_sentence(store, len(group) + len(reasons))
    groups = readings.groups_sentence(index)
    check(stored, groups, readings.sizes_sentence(index), readings.mended_sentence(store))
    assert ("one group" in groups) == (len(set(group)) == 1)


@few
@given(names, st.data())
def test_what_is_said_of_a_split(group, data):
    sides = column(st.sampled_from(["train", "val", "test", ""]), len(group))
    index = pd.DataFrame({"group": group})
    check(leakage.split_sentence(index, {name: np.array(data.draw(sides)) for name in "xy"}))
    correlation = data.draw(st.lists(st.floats(-1, 1), min_size=1, max_size=len(group)))
    names = {"protocol": "random", "train_group": "a", "case_id": "q", "train_case_id": "t"}
    table = index[: len(correlation)].assign(**names, correlation=correlation)
    table["near_copy"] = table["correlation"] > 0.65
    check(leakage.leakage_sentence(table), leakage.closest_sentence(table))
    other = data.draw(column(st.sampled_from("abc"), len(group)))
    said = leakage.groups_sentence(np.array(other), np.array(group))
    check(said)
    same = len(set(zip(other, group, strict=True))) == len(set(other)) == len(set(group))
    assert ("the same as by name" in said) == same


@few
@given(st.lists(st.tuples(*[st.integers(0, 2)] * len(masks.DEFECTS)), min_size=1, max_size=5))
def test_what_is_said_of_masks(rows):
    table = pd.DataFrame(rows, columns=list(masks.DEFECTS))
    said = masks.masks_sentence(table)
    check(said)
    odd = table.drop(columns=list(masks.HARMLESS)).any(axis=None)
    assert ("No case has another defect" in said) == (not odd)

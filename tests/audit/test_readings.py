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
    r"\bnan\b|\b0 (cases?|groups?|frames?)\b|\b1 (cases|groups|frames)\b|  |None\b "
)
few = settings(deadline=None, max_examples=60)
names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


def check(said: str) -> None:
    assert not NONSENSE.search(said.replace("None of", "")), said
    assert said.endswith(".")
    assert "\n" not in said


@few
@given(names, st.data())
def test_what_is_said_of_a_store(group, data):
    sizes = st.lists(st.integers(1, 4000), min_size=len(group), max_size=len(group))
    shares = st.lists(st.floats(0.0001, 0.99), min_size=len(group), max_size=len(group))
    index = pd.DataFrame({"group": group, "height": data.draw(sizes), "width": data.draw(sizes)})
    index["foreground"] = data.draw(shares)
    reasons = data.draw(st.lists(st.sampled_from(["empty mask", "no group"]), max_size=3))
    mend = data.draw(st.sampled_from([[], ["text"], ["text", "holes"]]))
    store = SimpleNamespace(
        index=index,
        quarantine=pd.DataFrame({"reason": reasons}, dtype=object), settings={"mend": mend},
        mended=dict.fromkeys(("text", "specks", "holes"), data.draw(st.integers(0, len(group)))),
    )  # fmt: skip
    for said in (readings.sizes_sentence(index), readings.groups_sentence(index),
                 readings.mended_sentence(store),
                 readings.stored_sentence(store, len(group) + len(reasons))):  # fmt: skip
        check(said)
    assert ("one group" in readings.groups_sentence(index)) == (len(set(group)) == 1)


@few
@given(names, st.data())
def test_what_is_said_of_a_split(group, data):
    count = len(group)
    sides = st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=count, max_size=count)
    splits = {
        name: np.array(data.draw(sides)) for name in data.draw(st.sets(st.sampled_from("xy")))
    }
    index = pd.DataFrame({"group": group})
    if splits:
        check(leakage.split_sentence(index, splits))
    rows = st.lists(st.floats(-1, 1), max_size=count)
    correlation = data.draw(rows)
    table = index[: len(correlation)].assign(
        protocol="random", train_group="a", case_id="q", train_case_id="t",
        correlation=correlation, near_copy=np.array(correlation) > 0.65,
    )  # fmt: skip
    check(leakage.leakage_sentence(table))
    check(leakage.closest_sentence(table))
    other = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
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

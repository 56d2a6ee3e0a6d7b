"""Class audit: cases and groups of each class, counted by hand."""

import numpy as np

from thyroid_lib.audit import classes as audit
from thyroid_lib.audit.masks import audit_masks
from thyroid_lib.data.look import look


def test_classes_are_counted_by_group_and_by_side(class_store):
    held = audit.classes_held(class_store)
    assert [*held] == ["gland", "nodule"]
    by_group = audit.count_by_group(class_store, held)
    assert by_group.values.tolist() == [
        ["a", 6, 6, 6],
        ["b", 6, 6, 6],
        ["c", 6, 6, 6],
        ["d", 6, 6, 0],
    ]
    sides = np.repeat(["train", "train", "val", "test"], 6)
    swapped = np.where(sides == "test", "train", np.where(sides == "train", "test", sides))
    table = audit.count_by_side(class_store, held, {"one": sides, "other": swapped})
    sizes = [f"{side}_{what}" for side in ("train", "val", "test") for what in ("cases", "groups")]
    assert table[["split", "class", "annotated", *sizes]].values.tolist() == [
        ["one", "gland", 24, 12, 2, 6, 1, 6, 1],
        ["one", "nodule", 18, 12, 2, 6, 1, 0, 0],
        ["other", "gland", 24, 6, 1, 6, 1, 12, 2],
        ["other", "nodule", 18, 0, 0, 6, 1, 12, 2],
    ]
    said = audit.classes_sentence(table)
    assert said.startswith("2 classes. Fewer than 5 groups: gland (one): 2 to train on; ")
    assert "nodule (one): 0 to test on" in said
    many = table.assign(train_groups=5, test_groups=9)
    assert audit.classes_sentence(many) == "2 classes. Each has 5 groups or more."


def test_one_class_and_nodules_of_an_unknown_kind_are_counted_too(tiny_store, class_store):
    assert [*audit.classes_held(tiny_store)] == ["gland"]
    unknown = class_store.bits.copy()
    unknown[: len(unknown) // 2] = 255  # the first cases: code 3 everywhere
    held = audit.classes_held(type(class_store)(**vars(class_store) | {"bits": unknown}))
    assert held[audit.NOT_KNOWN].tolist()[:3] == [True] * 3
    assert not held[audit.NOT_KNOWN].iloc[-1]


def test_masks_of_classes_are_audited_as_foreground(class_store):
    cases = look(class_store.folder.parent / "data", classes={"gland": "1", "nodule": "2"}).cases
    table = audit_masks(cases, class_store)
    assert np.abs(table["foreground"] - class_store.index["foreground"]).max() < 1e-6
    assert not table[["text", "specks", "holes", "midtones"]].to_numpy().any()

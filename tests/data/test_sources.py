"""Several sources in one study: one case table, one store, whole data sets held out."""

import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from thyroid_lib.data.groups import UNKNOWN, groups_note
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import build_store, load_cases


@pytest.fixture
def two(tmp_path) -> list[dict]:
    """Data sets with equal names of images and groups; the second one's masks hold 1 and 2."""
    for name, height in (("one", 40), ("two", 52)):
        write_folder(tmp_path / name, groups=3, frames=2, height=height, width=60)
    for path in (tmp_path / "two" / "masks").iterdir():
        levels = np.array(Image.open(path)) // 255 + 1
        Image.fromarray(levels.astype(np.uint8)).save(path)
    return [
        {"dataset": "one", "source": "folder", "data": str(tmp_path / "one")},
        {"dataset": "two", "source": "folder", "data": str(tmp_path / "two"), "groups": "^(.)"},
    ]


def test_no_name_of_two_data_sets_collides_and_each_is_read_by_its_own_rule(two, tmp_path, capsys):
    cases = load_cases(two, groups="", masks="")
    assert (len(cases), cases["case_id"].nunique(), cases["group"].nunique()) == (12, 12, 6)
    assert sorted(cases["group"].unique())[::5] == ["one.a", "two.c"]
    assert cases.attrs["seen"]["two: groups"].startswith("3 groups by the pattern")
    assert "data set two" in capsys.readouterr().out
    store = build_store(cases, tmp_path / "store", size=32)
    assert str(store).endswith("source one, two")
    assert len(store.quarantine) == 0
    for entry in two:  # the pixels are those of a study of this source alone
        name, data = entry["dataset"], entry["data"]
        alone = build_store(load_cases("folder", data), tmp_path / name / "alone", size=32)
        rows = np.flatnonzero(store.index["dataset"] == name)
        ids = [f"{name}.{each}" for each in alone.index["case_id"]]
        assert store.index["case_id"].iloc[rows].tolist() == ids
        np.testing.assert_array_equal(store.images[rows], alone.images)
        np.testing.assert_array_equal(store.masks[rows], alone.masks)


def test_sources_of_several_kinds_go_together(two, tmp_path):
    phantoms = [{"dataset": f"p{n}", "source": "phantom", "phantom_seed": n} for n in (0, 1)]
    how = {"folder": tmp_path / "drawn", "sweeps": 2, "frames": 1, "seed": 7, "text": False}
    cases = load_cases([*two, *phantoms], **how)
    store = build_store(cases, tmp_path / "store", size=32)
    assert store.index["dataset"].value_counts().to_dict() == {"one": 6, "two": 6, "p0": 2, "p1": 2}
    first, second = (store.images[store.index["dataset"] == name] for name in ("p0", "p1"))
    assert (first != second).any()
    assert groups_note(store.index) == ""
    cases = load_cases([two[0], two[1] | {"groups": "none"}])  # in one of them
    assert groups_note(cases) == UNKNOWN


def test_external_data_sets_are_tested_whole_and_left_out_of_all_other_protocols(two, tmp_path):
    index = build_store(load_cases(two), tmp_path / "store", size=32).index
    outside, how = (index["dataset"] == "two").to_numpy(), {"folds": 3, "external": ["two"]}
    sides = split_cases(index, protocol="external", **how)
    assert ((sides == "test") == outside).all()
    train, val = (set(index["group"][sides == side]) for side in ("train", "val"))
    assert train | val == {"one.a", "one.b", "one.c"}
    assert len(val) == 1
    alone = index[~outside]
    for protocol in ("grouped", "random", "leave-one-group-out"):
        sides = split_cases(index, protocol=protocol, fold=1, **how)
        assert (sides[outside] == "").all()
        assert (sides[~outside] == split_cases(alone, protocol=protocol, fold=1, folds=3)).all()


def test_external_splits_that_cannot_be_and_a_patient_of_two_data_sets_are_refused(two):
    cases = load_cases(two)
    for external, fold, said in (
        ([], 0, r"external: got \[\], need some, not all, of one, two"),
        (["three"], 0, 'external: got ."three"., need some'),
        (["one", "two"], 0, "need some, not all"),
        (["two"], 1, "the external split is one: need 0"),
    ):
        with pytest.raises(ValueError, match=said):
            split_cases(cases, protocol="external", external=external, fold=fold)
    cases.loc[cases["group"] == "two.a", "group"] = "one.a"
    with pytest.raises(ValueError, match=r"groups on more than one side of the split: one\.a"):
        split_cases(cases, protocol="external", external=["two"])

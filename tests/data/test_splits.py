import numpy as np
import pandas as pd
import pytest

from thyroid_lib.data.splits import check_split, count_split, fit_folds, split_cases


def index_of(sizes: dict[str, int]) -> pd.DataFrame:
    groups = [group for group, count in sizes.items() for _ in range(count)]
    return pd.DataFrame({"case_id": [f"{i:04d}" for i in range(len(groups))], "group": groups})


TWELVE = index_of({f"run{i:02d}": 30 + 5 * i for i in range(12)})


@pytest.mark.parametrize(
    ("groups", "fitted"), [(12, (4, [0, 3])), (4, (4, [0, 3])), (3, (3, [0])), (1, (2, [0]))]
)
def test_there_are_no_more_folds_than_groups_and_two_at_least(groups, fitted, capsys):
    index = index_of({f"p{i}": 5 for i in range(groups)})
    assert fit_folds(index, 4, [0, 3]) == fitted
    assert ("as there are no more groups" in capsys.readouterr().err) == (groups < 4)


def test_random_cuts_by_frame_as_reported():
    full_release = index_of({"run01": 3585})
    sides = split_cases(full_release, protocol="random", val_share=0)
    assert ((sides == "train").sum(), (sides == "test").sum()) == (2509, 1076)
    assert not (sides == "val").any()
    drawn = split_cases(TWELVE, protocol="random")
    assert (split_cases(TWELVE, protocol="reported") == drawn).all()
    assert (split_cases(TWELVE, protocol="random", fold=1) != drawn).any()


def test_official_is_the_datas_own_and_may_leak():
    index = TWELVE.assign(official=np.where(TWELVE.group.isin(["run10", "run11"]), "test", "train"))
    index.loc[index.group == "run09", "official"] = ["test", *["train"] * 74]  # on both sides
    index.loc[:4, "official"] = ""
    sides = split_cases(index, protocol="official")
    assert (sides[:5] == "").all()
    assert ((sides == "test") == (index.official == "test")).all()
    assert set(index.group[sides == "val"]) <= {f"run{i:02d}" for i in range(9)}
    assert {"train", "test"} <= set(sides[index.group == "run09"])
    three = index_of({"a": 1, "b": 1, "c": 1}).assign(official=["train", "val", "test"])
    assert split_cases(three, protocol="official").tolist() == ["train", "val", "test"]
    with pytest.raises(ValueError, match="no official split"):
        split_cases(TWELVE.assign(official=""), protocol="official")
    with pytest.raises(ValueError, match="is one: need 0"):
        split_cases(index, protocol="official", fold=1)


def test_leave_one_group_out_tests_each_group_by_itself():
    for fold in (0, 11):
        sides = split_cases(TWELVE, protocol="leave-one-group-out", fold=fold, folds=12)
        assert set(TWELVE.group[sides == "test"]) == {f"run{fold:02d}"}
        assert not set(TWELVE.group[sides == "val"]) & set(TWELVE.group[sides == "train"])
    with pytest.raises(ValueError, match="set folds to 12"):
        split_cases(TWELVE, protocol="leave-one-group-out", folds=4)


def test_grouped_tests_every_group_once_and_never_shares_one():
    tested = []
    for fold in range(4):
        sides = split_cases(TWELVE, protocol="grouped", fold=fold, folds=4)
        train, val, test = (set(TWELVE.group[sides == s]) for s in ("train", "val", "test"))
        assert val
        assert not train & val
        assert not (train | val) & test
        tested += sorted(test)
        assert abs((sides == "test").mean() - 1 / 4) < 0.05
    assert sorted(tested) == sorted(TWELVE.group.unique())
    shuffled = TWELVE.sample(frac=1, random_state=3)  # nor does the order of rows matter
    again = split_cases(shuffled, protocol="grouped", fold=3, folds=4)
    assert (sides[shuffled.index] == again).all()


def test_validation_share_is_met_as_closely_as_groups_allow():
    for wanted, least, most in ((0.2, 0.1, 0.3), (0, 0, 0)):
        sides = split_cases(TWELVE, protocol="grouped", fold=0, folds=4, val_share=wanted)
        assert least <= (sides == "val").sum() / (sides != "test").sum() <= most


@pytest.mark.parametrize("protocol", ["grouped", "random", "external"])
def test_a_share_of_the_training_side_is_nested_and_moves_no_other_side(protocol):
    index = TWELVE.assign(dataset=["b" if group > "run09" else "a" for group in TWELVE.group])
    unit = "case_id" if protocol == "random" else "group"
    how = {"protocol": protocol, "folds": 4, "external": ["b"] if protocol == "external" else []}
    for val_share in (0, 0.15):
        whole, larger = split_cases(index, **how, val_share=val_share), None
        tested, units = whole == "test", index[unit].to_numpy()
        for share in (1.0, 2 / 3, 1 / 3, 1e-6):
            sides = split_cases(index, **how, val_share=val_share, train_share=share)
            assert ((sides == "test") == tested).all()
            assert ((sides == "val") == (whole == "val")).all()
            used, all_of_them = (set(units[each == "train"]) for each in (sides, whole))
            assert len(used) == max(1, round(share * len(all_of_them)))
            assert not used & set(units[sides == ""])  # a unit is used whole or not at all
            assert larger is None or used <= larger
            larger = used
        assert ((split_cases(index, **how, val_share=0.4) == "test") == tested).all()


def test_the_order_of_training_groups_is_that_of_the_fold_whatever_is_held_back():
    def used(**how) -> set:
        sides = split_cases(TWELVE, protocol="grouped", folds=4, train_share=1 / 3, **how)
        return set(TWELVE.group[sides == "train"])

    first = used(val_share=0)
    free = set(TWELVE.group[split_cases(TWELVE, protocol="grouped", folds=4) == "train"])
    assert len(first) == 3
    assert 0 < len(first & free) < 4
    assert first & free <= used(val_share=0.15) <= free
    assert used(val_share=0, fold=1) != first


def test_impossible_splits_say_what_is_needed():
    for wrong, said in (
        ({"protocol": "by frame"}, "need one of random, reported, official, grouped"),
        ({"protocol": "grouped", "fold": 5, "folds": 5}, r"need 0 … 4"),
        ({"protocol": "grouped", "fold": -1}, "fold: got -1"),
        ({"protocol": "grouped", "folds": 13}, "13 folds need as many groups, got 12"),
    ):
        with pytest.raises(ValueError, match=said):
            split_cases(TWELVE, **wrong)


def test_counts_by_group_and_side():
    table = count_split(index_of({"a": 2, "b": 1}), np.array(["train", "train", "test"]))
    assert table.loc[["a", "all"]].to_numpy().tolist() == [[2, 0, 0], [2, 0, 1]]


def test_overlap_raises_and_names_the_group():
    sides = np.array(["train"] * 3 + ["test"] * 3)
    with pytest.raises(ValueError, match="more than one side of the split: a"):
        check_split(index_of({"a": 4, "b": 2}), sides, by_group=True)
    with pytest.raises(ValueError, match="the test set is empty"):
        check_split(index_of({"a": 6}), np.array(["train"] * 6), by_group=False)

"""Leakage of a split by content, and groups proposed where none are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from thyroid_lib.audit import leakage as audit
from thyroid_lib.audit.copies import describe
from thyroid_lib.data import phantom, tg3k
from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.splits import split_cases
from thyroid_lib.data.store import build_store, load_cases

SQUARE = {"resize": "square"}


@pytest.fixture(scope="module")
def sweeps():
    """Five phantom sweeps of six frames, at 64 px: all that the audit needs of a store."""
    images, names = [], []
    for sweep in range(5):
        made = phantom.make_sweep(sweep=sweep, frames=6)["images"]
        images += [fit_image(image, 64, "square") for image in made]
        names += [(f"s{sweep}f{frame}", f"s{sweep}") for frame in range(6)]
    index = pd.DataFrame(names, columns=["case_id", "group"]).assign(height=64, width=64)
    return SimpleNamespace(images=np.stack(images), index=index, size=64, settings=SQUARE)


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    cases = load_cases("tg3k", shared_data / "tg3k-sample")
    return build_store(cases, tmp_path_factory.mktemp("real"), size=128)


# --- splits


def test_frames_of_one_sweep_leak_and_sweeps_do_not(sweeps):
    index = sweeps.index.assign(official=["train"] * 18 + ["test"] * 12)
    official = SimpleNamespace(**vars(sweeps) | {"index": index})
    once = audit.leakage_of(official, ["official"], folds=3)
    assert once["fold"].unique().tolist() == [0]
    table = audit.leakage_of(sweeps, ["random", "grouped"], folds=3)
    assert table["fold"].unique().tolist() == [0, 1, 2]
    shares = audit.leak_share(table).groupby("protocol")["share"]
    assert shares.min()["random"] == 1
    assert shares.max()["grouped"] == 0
    copied = table[table["near_copy"]]
    assert (copied["group"] == copied["train_group"]).all()
    assert audit.leakage_sentence(table) == (
        "Test frames with a near-copy among the training frames. random: 100 %; grouped: 0 %."
    )


def test_every_test_frame_has_one_row_and_only_training_frames_are_its_copies(sweeps):
    sides = np.array(["train", "val", "test"] * 10)
    table = audit.leakage(sweeps, sides)
    side_of = dict(zip(sweeps.index["case_id"], sides, strict=True))
    assert table["case_id"].tolist() == sweeps.index["case_id"][sides == "test"].tolist()
    assert {side_of[case_id] for case_id in table["train_case_id"]} == {"train"}
    group_of = dict(zip(sweeps.index["case_id"], sweeps.index["group"], strict=True))
    assert (table["train_case_id"].map(group_of) == table["train_group"]).all()


def test_names_do_not_hide_a_copy(sweeps):
    """Frame 2 is planted under another name and group, mirrored and moved, on the other side."""
    images, index = sweeps.images.copy(), sweeps.index.copy()
    images[29] = np.roll(images[2], (3, -2), (0, 1))[:, ::-1]
    sides = np.where(index["group"] == "s4", "test", "train")
    table = audit.leakage(
        SimpleNamespace(images=images, index=index, size=64, settings=SQUARE), sides
    )
    (found,) = table[table["near_copy"]].itertuples()
    assert (found.case_id, found.train_case_id) == ("s4f5", "s0f2")
    assert (found.shift_y_px, found.shift_x_px, found.mirrored) == (3, -2, True)


def test_a_split_without_two_sides_is_refused(sweeps):
    with pytest.raises(ValueError, match=r"got 15 training and 0 test frames: need both"):
        audit.leakage(sweeps, np.array(["train"] * 15 + ["val"] * 15))


def test_the_official_split_has_run_14_on_both_sides(shared_data):
    official = tg3k.official_split(shared_data / "tg3k-sample")
    side_of = dict.fromkeys(official["train"], "train") | dict.fromkeys(official["test"], "test")
    frames = pd.DataFrame({"case_id": [f"{frame:04d}" for frame in range(3585)]})
    frames["group"] = [tg3k.sweep_of(int(case_id)) for case_id in frames["case_id"]]
    frames["official"] = frames["case_id"].map(side_of)
    sides = split_cases(frames, protocol="official")
    assert set(frames["group"][sides == "val"]).isdisjoint(frames["group"][sides == "train"])
    shared = set(frames["group"][sides == "train"]) & set(frames["group"][sides == "test"])
    assert shared == {"run14"}
    said = audit.split_sentence(frames, {"official": sides, "none": np.full(3585, "train")})
    assert said.endswith("official: 1 of 15; none: none of 15.")


def test_real_frames_leak_at_random_and_not_by_group(real):
    table = audit.leakage_of(real, ["random", "grouped"], folds=3)
    shares = audit.leak_share(table)
    print(shares.to_string(), audit.leakage_sentence(table), sep="\n")
    share = shares.set_index(["protocol", "fold"])["share"]
    assert share.loc["random"].min() >= 0.95
    assert share.loc["grouped"].max() <= 0.02


def test_a_letterbox_makes_no_copies_of_frames_of_one_shape(shared_data, tmp_path):
    cases = load_cases("tg3k", shared_data / "tg3k-sample")
    store = build_store(cases, tmp_path / "store", size=128, resize="letterbox")
    table = audit.leakage_of(store, ["random", "grouped"], folds=2)
    assert not table["near_copy"][table["protocol"] == "grouped"].any()
    assert table["near_copy"][table["protocol"] == "random"].mean() >= 0.95


# --- groups


def test_sweeps_are_proposed_in_order(sweeps):
    proposed = audit.propose_groups(describe(sweeps.images))
    assert proposed.tolist() == [f"part00{sweep + 1}" for sweep in range(5) for _ in range(6)]
    known = sweeps.index["group"].to_numpy()
    assert audit.groups_sentence(proposed, known).endswith("5 groups, the same as by name.")
    assert "2 groups, against 5 by name; adj" in audit.groups_sentence(proposed < "part002", known)


def test_a_sweep_that_goes_on_later_is_one_group(sweeps):
    order = [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 3, 4, 5]
    proposed = audit.propose_groups(describe(sweeps.images[order]))
    assert proposed.tolist() == ["part001"] * 3 + ["part002"] * 6 + ["part003"] + ["part001"] * 3


def test_proposed_groups_of_real_frames_agree_with_the_run_table(real):
    proposed = audit.propose_groups(describe(real.images))
    known = real.index["group"].to_numpy()
    print(audit.groups_sentence(proposed, known))
    assert audit.adjusted_rand_index(proposed, known) >= 0.9  # measured: 0.95
    # split by what is proposed, no near-copy is left on the other side
    index = real.index.assign(group=proposed)
    store = SimpleNamespace(images=real.images, index=index, size=real.size, settings=SQUARE)
    maps = describe(real.images)
    for fold in range(3):
        sides = split_cases(index, protocol="grouped", fold=fold, folds=3)
        assert not audit.leakage(store, sides, maps=maps)["near_copy"].any()


def test_adjusted_rand_index_by_hand():
    index = audit.adjusted_rand_index
    assert index(["a", "a", "b", "b"], [7, 7, 1, 1]) == 1  # only which are equal counts
    assert index([1, 1, 1, 1], [1, 1, 1, 1]) == 1
    assert index([1, 2, 3], [1, 2, 3]) == 1
    assert index([1, 1, 1], [1, 2, 3]) == 0
    # a a b b against x y x y: no pair in common, 2 · 2 / 6 expected, 2 at most
    assert index(["a", "a", "b", "b"], ["x", "y", "x", "y"]) == pytest.approx(-0.5)
    # 0 0 1 1 against 0 0 1 2: 1 pair in common, 2 · 1 / 6 expected, 1.5 at most
    assert index([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))

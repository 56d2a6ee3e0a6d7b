"""Leakage of a split by content, and groups proposed where none are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import save_pairs

from thyroid_lib.audit import leakage as audit
from thyroid_lib.audit.copies import describe
from thyroid_lib.data import phantom
from thyroid_lib.data.frames import fit_image
from thyroid_lib.data.groups import ARE_PROPOSED, groups_note
from thyroid_lib.data.store import build_store, load_cases


def store_of(images: np.ndarray, index: pd.DataFrame) -> SimpleNamespace:
    square = {"resize": "square"}
    return SimpleNamespace(images=images, index=index, size=images.shape[1], settings=square)


@pytest.fixture(scope="module")
def sweeps():
    """Five phantom sweeps of six frames, at 64 px: all that the audit needs of a store."""
    made = [phantom.make_sweep(sweep=sweep, frames=6)["images"] for sweep in range(5)]
    images = np.stack([fit_image(image, 64, "square") for sweep in made for image in sweep])
    names = [(f"s{sweep}f{frame}", f"s{sweep}", 64, 64) for sweep in range(5) for frame in range(6)]
    columns = ["case_id", "group", "height", "width"]
    return store_of(images, pd.DataFrame(names, columns=columns))


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    cases = load_cases("tg3k", shared_data / "tg3k-sample")
    return build_store(cases, tmp_path_factory.mktemp("real"), size=128)


@pytest.mark.study
def test_frames_of_one_sweep_leak_and_sweeps_do_not(sweeps):
    index = sweeps.index.assign(official=["train"] * 18 + ["test"] * 12)
    once = audit.leakage_of(store_of(sweeps.images, index), ["official"], folds=3)
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
    cases = sweeps.index.assign(side=["train", "val", "test"] * 10).set_index("case_id")
    table = audit.leakage(sweeps, cases["side"].to_numpy())
    assert table["case_id"].tolist() == cases.index[cases["side"] == "test"].tolist()
    copied = cases.loc[table["train_case_id"]]
    assert set(copied["side"]) == {"train"}
    assert copied["group"].tolist() == table["train_group"].tolist()


def test_names_do_not_hide_a_copy(sweeps):
    """Frame 2 is planted under another name and group, mirrored and moved, on the other side."""
    images, index = sweeps.images.copy(), sweeps.index.copy()
    images[29] = np.roll(images[2], (3, -2), (0, 1))[:, ::-1]
    sides = np.where(index["group"] == "s4", "test", "train")
    table = audit.leakage(store_of(images, index), sides)
    (found,) = table[table["near_copy"]].itertuples()
    assert (found.case_id, found.train_case_id) == ("s4f5", "s0f2")
    assert (found.shift_y_px, found.shift_x_px, found.mirrored) == (3, -2, True)


def test_groups_on_both_sides_are_counted(sweeps):
    both, none = np.tile(["train", "test"], 15), np.full(30, "train")
    said = audit.split_sentence(sweeps.index, {"frames": both, "none": none})
    assert said.endswith("frames: 5 of 5; none: none of 5.")


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
    copies = table.groupby("protocol")["near_copy"]
    assert copies.mean()["random"] >= 0.95 > copies.mean()["grouped"] == 0


@pytest.mark.study
def test_sweeps_are_proposed_in_order_and_one_that_goes_on_later_is_one_group(sweeps):
    proposed = audit.propose_groups(sweeps)
    assert proposed.tolist() == [f"proposed00{sweep + 1}" for sweep in range(5) for _ in range(6)]
    known = sweeps.index["group"].to_numpy()
    assert audit.groups_sentence(proposed, known).endswith("5 groups, the same as by name.")
    said = audit.groups_sentence(proposed < "proposed002", known)
    assert "2 groups, against 5 by name; adj" in said
    order = [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 3, 4, 5]
    parts = audit.follow_frames(describe(sweeps.images[order]))
    assert parts.tolist() == [0] * 3 + [1] * 6 + [2] + [0] * 3


def test_sweeps_in_turn_stay_apart_and_frames_without_content_are_one_group(sweeps):
    order = [sweep * 6 + frame for frame in range(6) for sweep in (3, 0, 4, 1)]
    images = sweeps.images[order].copy()
    images[[5, 6, 17]] = np.array([0, 40, 255])[:, None, None]
    expected = [0, 1, 2, 3] * 6
    for row in (5, 6, 17):
        expected[row] = 4
    assert audit.follow_frames(describe(images)).tolist() == expected


def test_proposed_groups_of_real_frames_agree_with_the_run_table(real):
    proposed = audit.propose_groups(real)
    known = real.index["group"].to_numpy()
    print(audit.groups_sentence(proposed, known))
    assert audit.adjusted_rand_index(proposed, known) >= 0.9  # measured: 0.95
    # split by what is proposed, no near-copy is left on the other side
    store = store_of(real.images, real.index.assign(group=proposed))
    assert not audit.leakage_of(store, ["grouped"], folds=3)["near_copy"].any()


def test_frames_in_chance_order_are_joined_by_near_copies_alone(real):
    order = np.random.default_rng(0).permutation(len(real.images))[:300]
    parts = audit.follow_frames(describe(real.images[order]))
    groups = pd.Series(real.index["group"].to_numpy()[order]).groupby(parts)
    assert groups.nunique().max() == 1  # no sweep is mixed with another
    assert groups.size().max() > 10


@pytest.mark.study
def test_groups_that_wait_are_proposed_in_the_store_and_known_ones_stay(tmp_path, capsys):
    frames = {"lost": 12, "known": 4}  # more than 9: frame10 stands before frame2 in a store
    for name, count in frames.items():
        for sweep in range(2):
            made = phantom.make_sweep(sweep=sweep, frames=count)
            names = [f"p{sweep}_frame{i}" for i in range(count)]
            save_pairs(tmp_path / name, made["images"], made["masks"] * np.uint8(255), names)
    sources = [{"dataset": n, "source": "folder", "data": str(tmp_path / n)} for n in frames]
    sources[0]["groups"], sources[1]["groups"] = "proposed", "^(p[0-9])_"
    cases = load_cases(sources)
    with pytest.raises(ValueError, match="1-preprocess"):
        build_store(cases, tmp_path / "none", size=64)
    how = {"size": 64, "propose": audit.propose_groups}
    built = build_store(cases, tmp_path / "store", **how)
    index = built.index.set_index("case_id")
    assert set(index["group"]) == {"lost.proposed001", "lost.proposed002", "known.p0", "known.p1"}
    for name, count in frames.items():  # each is one of the two drawn sweeps
        sweep = index.filter(like=f"{name}.", axis=0).index.str.extract(r"(p\d)_")[0].to_numpy()
        of = index["group"].filter(like=f"{name}.").groupby(sweep)
        assert of.nunique().tolist() == [1, 1]
        assert of.size().tolist() == [count, count]
    written = (tmp_path / "store" / "index.csv").stat().st_mtime_ns
    again = build_store(cases, tmp_path / "store", **how)
    assert (tmp_path / "store" / "index.csv").stat().st_mtime_ns == written
    assert groups_note(again.index) == ARE_PROPOSED == audit.groups_sentence(index, index["group"])
    shares = audit.leakage_of(built, ["grouped"], folds=2)
    assert audit.leakage_sentence(shares).endswith("none crosses a split shows nothing new.")


def test_adjusted_rand_index_by_hand():
    for one, other, agree in (
        ("aabb", "7711", 1), ("1111", "1111", 1), ("123", "123", 1),  # only which are equal counts
        ("111", "123", 0),
        ("aabb", "xyxy", -0.5),  # no pair in common, 2 · 2 / 6 expected, 2 at most
        ("0011", "0012", (1 - 1 / 3) / (1.5 - 1 / 3)),  # 1 pair, 2 · 1 / 6 expected, 1.5 at most
    ):  # fmt: skip
        assert audit.adjusted_rand_index([*one], [*other]) == pytest.approx(agree)

"""The store: one pass, the same bytes every time, whole or not there."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import files_of, save_pairs, write_folder
from fuzzing import attempt, damaged
from PIL import Image

from thyroid_lib.data import frames, store
from thyroid_lib.data.look import look
from thyroid_lib.data.store import FILES, build_store, default_store, load_cases, open_store


@pytest.fixture
def cases(small_folder):
    return look(small_folder).cases


@pytest.mark.parametrize("resize", frames.RESIZES)
def test_rows_are_the_cases_in_order_and_identifiers_stay_text(cases, tmp_path, resize):
    cases["case_id"] = ["0007", "0008", "1e5", "NA", "None", "true"]
    cases["group"] = ["01", "01", "nan", "null", "2.0", 'x,"y']
    shuffled = cases.sample(frac=1, random_state=0)
    built = build_store(shuffled, tmp_path / "s", size=24, resize=resize)
    assert built.images.shape == built.masks.shape == (len(built), 24, 24) == (6, 24, 24)
    for i, case in enumerate(cases.itertuples()):
        image, mask = map(frames.read_gray, (case.image_path, case.mask_path))
        mask = mask > 127
        np.testing.assert_array_equal(built.images[i], frames.fit_image(image, 24, resize))
        np.testing.assert_array_equal(built.masks[i], frames.fit_mask(mask, 24, resize))
        np.testing.assert_array_equal(built.reference(i), mask)
        row = built.index.iloc[i]
        assert (row.case_id, row.group, row.dataset) == (case.case_id, case.group, "folder")
        assert (row.height, row.width) == (40, 50)
        assert row.foreground == pytest.approx(mask.mean(), abs=5e-7)


def test_text_is_taken_out_and_counted_unless_it_is_to_stay(small_folder, cases, tmp_path):
    for path in (small_folder / "masks").glob("a*.png"):
        mask = np.array(Image.open(path))
        mask[0, 2:6] = 255
        Image.fromarray(mask).save(path)
    assert build_store(cases, tmp_path / "s", size=40, mend=[]).reference(0)[0].sum() == 4
    built = build_store(cases, tmp_path / "s", size=40)
    assert built.index["text_components"].tolist() == [1, 1, 1, 0, 0, 0]
    assert built.index["text_pixels"].tolist() == [4, 4, 4, 0, 0, 0]
    assert not built.reference(0)[0].any()
    assert not built.masks[0][0].any()
    about = json.loads((tmp_path / "s" / "store.json").read_text())
    assert about["counts"]["mended"] == built.mended == {"text": 3, "specks": 0, "holes": 0}


@pytest.mark.parametrize("workers", [1, 3])
def test_odd_sizes_are_packed_end_to_end_and_unusable_cases_leave_no_gap(tmp_path, workers):
    gone, masks, rng = {3, 4, 33, 64}, [], np.random.default_rng(0)
    for i in range(70):
        mask = rng.random((rng.integers(1, 14), rng.integers(3, 16))) > 0.8
        mask.flat[:2] = True, False
        image, levels = np.full(mask.shape, i, np.uint8), mask.astype(np.uint8) * 255
        save_pairs(tmp_path, [image], [levels], [f"{i:02d}"])
        masks.append(mask)
        if i in gone:
            (tmp_path / f"masks/{i:02d}.png").write_bytes(b"damaged")
    cases = load_cases("folder", tmp_path)
    kept = sorted(set(range(70)) - gone)
    built = build_store(cases, tmp_path / "s", size=8, mend=[], workers=workers)
    assert built.index.case_id.tolist() == [f"{i:02d}" for i in kept]
    assert built.quarantine.case_id.tolist() == [f"{i:02d}" for i in sorted(gone)]
    assert built.images[:, 0, 0].tolist() == kept
    for row, i in enumerate(kept):
        assert np.array_equal(built.masks[row], frames.fit_mask(masks[i], 8, "square"))
        assert np.array_equal(built.reference(row), masks[i])
    assert len(built.bits) == sum(-(-masks[i].size // 8) for i in kept)


def test_threads_order_and_place_leave_no_trace(cases, small_folder, tmp_path):
    build_store(cases, tmp_path / "one", size=24, workers=1)
    moved = shutil.copytree(small_folder, tmp_path / "elsewhere" / "data")
    table = look(moved).cases.iloc[::-1]
    build_store(table, tmp_path / "elsewhere" / "store", size=24, workers=5)
    one, other = files_of(tmp_path / "one"), files_of(tmp_path / "elsewhere" / "store")
    assert one == other
    assert sorted(one) == sorted(["store.json", *FILES])
    for content in one.values():
        assert str(tmp_path).encode() not in content


def draw_over(kind: str):
    def change(cases, settings):
        Image.fromarray(np.eye(40, 50, dtype=np.uint8) * 255).save(cases.loc[0, kind])

    return change


CHANGES = {
    "size": lambda cases, settings: settings.update(size=20),
    "resize": lambda cases, settings: settings.update(resize="letterbox"),
    "mend": lambda cases, settings: settings.update(mend=[]),
    "official": lambda cases, settings: cases.__setitem__("official", "train"),
    "group": lambda cases, settings: cases.__setitem__("group", "z"),
    "name": lambda cases, settings: cases.__setitem__("case_id", [*"ABCDE", "b02"]),
    "image": draw_over("image_path"),
    "mask": draw_over("mask_path"),
    "a case less": lambda cases, settings: cases.loc.__setitem__((0, "mask_path"), ""),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_makes_another_store(cases, tmp_path, what):
    settings = {"size": 16, "resize": "square", "mend": ["text"]}
    first = build_store(cases, tmp_path / "s", **settings)
    CHANGES[what](cases, settings)
    second = build_store(cases, tmp_path / "s", **settings)
    assert first.fingerprint != second.fingerprint
    assert second.settings == settings
    assert build_store(cases, tmp_path / "s", **settings).fingerprint == second.fingerprint
    last = frames.read_gray(cases["image_path"].iloc[-1])
    fitted = frames.fit_image(last, settings["size"], settings["resize"])
    np.testing.assert_array_equal(second.images[-1], fitted)


def test_only_what_is_not_up_to_date_is_built_again(cases, tmp_path, monkeypatch):
    build_store(cases, tmp_path / "s", size=16)
    monkeypatch.setattr(store, "_build", None)
    build_store(cases, tmp_path / "s", size=16)
    monkeypatch.setattr(store, "STORE_VERSION", store.STORE_VERSION + 1)
    with pytest.raises(TypeError, match="not callable"):  # changed code makes another store
        build_store(cases, tmp_path / "s", size=16)


@pytest.mark.parametrize("survives", [0, 3, 5])
def test_a_build_that_is_interrupted_leaves_no_store(cases, tmp_path, monkeypatch, survives):
    build_store(cases, tmp_path / "s", size=16)
    calls = []

    def killed(source, target, real=os.replace):
        calls.append(target)
        if len(calls) > survives:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            build_store(cases, tmp_path / "s", size=20)
    assert not (tmp_path / "s" / "store.json").exists()
    with pytest.raises(FileNotFoundError, match=r"an incomplete store at .*store.json"):
        open_store(tmp_path / "s")
    assert not list((tmp_path / "s").glob(f"*.{os.getpid()}.partial"))
    (tmp_path / "s" / "notes.txt").write_text("mine")
    assert build_store(cases, tmp_path / "s", size=20).size == 20
    assert sorted(files_of(tmp_path / "s")) == sorted(["store.json", "notes.txt", *FILES])


def test_two_builders_of_one_store_take_turns(cases, tmp_path):
    whole = files_of(build_store(cases, tmp_path / "one", size=64).folder)
    with ThreadPoolExecutor(2) as pool:
        sizes = (32, 64, 32, 64)
        list(pool.map(lambda size: build_store(cases, tmp_path / "s", size=size), sizes))
    build_store(cases, tmp_path / "s", size=64)
    assert files_of(tmp_path / "s") == whole


@pytest.mark.study
@pytest.mark.skipif(sys.platform != "linux", reason="other systems get threads")
def test_a_build_killed_outright_is_made_anew_whole(tmp_path):
    data, folder_ = tmp_path / "data", tmp_path / "s"
    write_folder(data, groups=4, frames=50, height=60, width=80)
    undisturbed = build_store(look(data).cases, tmp_path / "whole", size=32)
    code = (
        "import sys; from thyroid_lib.data import store; from thyroid_lib.data.look import look\n"
        "cases = look(sys.argv[1]).cases\n"
        "for _ in range(1000): store.build_store(cases, sys.argv[2], size=512, workers=2)"
    )
    for wait in (0.0, 0.1):
        with subprocess.Popen([sys.executable, "-c", code, data, folder_]) as builder:
            while not list(folder_.glob("images.npy*")):
                assert builder.poll() is None
                time.sleep(0.01)
            time.sleep(wait)
            builder.kill()
    built = build_store(look(data).cases, folder_, size=32)
    assert files_of(built.folder) == files_of(undisturbed.folder)


def test_a_damaged_store_is_refused_and_built_again(tiny_store, tmp_path, counts, capsys):
    shutil.copytree(tiny_store.folder.parent, tmp_path, dirs_exist_ok=True)
    cases, top = look(tmp_path / "data").cases, tmp_path / "store"
    sound = files_of(top)
    faults = [
        ("masks.npy", sound["masks.npy"].replace(b"(24, 32", b"(32, 24")),
        ("index.csv", b"".join(sound["index.csv"].splitlines(keepends=True)[:-1])),
        ("store.json", b"[]"),
        ("store.json", sound["store.json"].replace(b"32", b"64")),
        *((name, content[:-2] + b"?" + content[-1:]) for name, content in sound.items()),
    ]
    random = [(name, x) for name, content in sound.items() for _, x in damaged(8, content, 3)]
    for number, (name, broken) in enumerate([*faults, *random]):
        (top / name).write_bytes(broken)
        _, said = attempt(counts, open_store, top)
        if said is None:  # spaces between the values of the record do not count
            same = json.loads if name == "store.json" else bytes
            assert same(broken) == same(sound[name])
        else:
            assert re.match(r"the store at .* is damaged \(.+\): delete it and build", said)
        if number < len(faults):
            assert said is not None
            build_store(cases, top, size=32)
            assert "in store: it is built again" in capsys.readouterr().err
            assert files_of(top) == sound
        (top / name).write_bytes(sound[name])


def test_sources_by_name(small_folder):
    assert len(load_cases("folder", small_folder)) == 6
    drawn = load_cases("phantom", folder=small_folder / "phantom", sweeps=2, frames=1)
    assert drawn["group"].tolist() == ["sweep00", "sweep01"]
    with pytest.raises(ValueError, match="source: got 'tn3k', need one of phantom, tg3k, folder"):
        load_cases("tn3k", small_folder)
    for source, needed in (("tg3k", "data"), ("phantom", "folder")):
        with pytest.raises(ValueError, match=f"source {source} needs {needed}"):
            load_cases(source)


def test_a_store_of_another_source_is_not_overwritten(cases, tmp_path):
    build_store(cases, tmp_path / "s", size=16)
    before = files_of(tmp_path / "s")
    for column in ("dataset", "case_id"):
        others = cases.assign(**{column: "x" + cases[column]})
        with pytest.raises(ValueError, match=r"holds another store \(6 cases, 2 groups, 16 x 16"):
            build_store(others, tmp_path / "s", size=16)
    with pytest.raises(ValueError, match="holds another store"):  # other images of these names
        build_store(cases.assign(image_path=cases["mask_path"]), tmp_path / "s", size=16)
    assert files_of(tmp_path / "s") == before
    assert len(build_store(cases.iloc[1:], tmp_path / "s", size=16)) == 5


def test_the_default_store_is_the_one_that_was_written_last_by_hand(
    cases, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(store, "load_cases", lambda source, *, folder: cases)
    default_store()  # there is none: a small one is built beside its place
    built = build_store(cases, tmp_path / "results" / "alone" / "store", size=16)
    others = cases.assign(dataset="tg3k", case_id="0" + cases["case_id"])
    stores = default_store(), default_store(cases), default_store(others)
    assert [each.folder.name for each in stores] == ["store", "store", "store-tg3k"]
    assert open_store(built.folder).size == 16
    holds, what = "6 cases, 2 groups, {0} x {0} px, source {1}", "results/alone/store"
    assert capsys.readouterr().out.splitlines() == [
        f"{what}-folder: {holds.format(64, 'folder')}",
        *[f"{what}: {holds.format(16, 'folder')}"] * 2,
        f"{what} is not used: it holds {holds.format(16, 'folder')}; for it, set source and data "
        "as there",
        f"{what}-tg3k: {holds.format(64, 'tg3k')}",
    ]

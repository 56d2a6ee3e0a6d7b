"""The phantom: same bytes from the same seed, near-copies in a sweep, masks as TG3K has them."""

import json
import subprocess
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from conftest import files_of
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import frames, phantom

SWEEPS = range(6)
EDGES = np.ones((3, 3))  # components that touch by a corner are one
FIRST = {"sweeps": 2, "frames": 2, "seed": 3, "text": True}


@cache
def drawn(sweep, frames=6, text=True, seed=3):
    return phantom.make_sweep(seed=seed, sweep=sweep, frames=frames, text=text)


def difference(a, b):
    """Mean absolute difference over the part that both frames have."""
    height, width = np.minimum(a.shape, b.shape)
    return np.abs(a[:height, :width].astype(int) - b[:height, :width]).mean()


def components(mask):
    labels, count = ndimage.label(mask, EDGES)
    return [labels == place for place in range(1, count + 1)]


@pytest.mark.study
def test_same_arguments_give_the_same_bytes_in_another_process(tmp_path):
    draw = "from thyroid_lib.data import phantom; phantom.cases({!r}, seed=3, sweeps=2, frames=2)"
    subprocess.run([sys.executable, "-c", draw.format(str(tmp_path / "there"))], check=True)
    phantom.cases(tmp_path / "here", seed=3, sweeps=2, frames=2)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    for part in ("images", "masks"):  # nor does a frame depend on how many are drawn
        np.testing.assert_array_equal(drawn(2, frames=2)[part], drawn(2)[part][:2])


@pytest.mark.study
def test_neighbours_are_near_copies_and_never_the_same_frame():
    seam = drawn(0, phantom.SLAB + 2)["images"][-4:]  # where one slab of scatterers follows another
    for series in [seam, *(drawn(sweep)["images"] for sweep in SWEEPS)]:
        steps = [difference(a, b) for a, b in pairwise(series)]
        assert min(steps) > 0.3
        assert max(steps) < 4
    firsts = [drawn(sweep)["images"][0] for sweep in SWEEPS]
    assert min(difference(a, b) for i, a in enumerate(firsts) for b in firsts[:i]) > 15


def test_gland_is_brighter_than_its_surround_but_overlaps_it():
    contrast = []
    for sweep in SWEEPS:
        image = drawn(sweep, text=False)["images"][0].astype(float)
        mask = drawn(sweep, text=False)["masks"][0]
        near = ndimage.binary_dilation(mask, iterations=12) & ~ndimage.binary_dilation(mask, EDGES)
        contrast.append(image[mask].mean() - image[near].mean())
        assert (image[near] > image[mask].mean()).mean() > 0.02  # no threshold finds the gland
    assert np.mean(contrast) > 15


def test_text_is_all_that_the_mending_rule_takes_out():
    for sweep in SWEEPS:
        plain, burnt = drawn(sweep, text=False), drawn(sweep)
        stamped = burnt["masks"] & ~plain["masks"]
        assert not (plain["masks"] & ~burnt["masks"]).any()
        for mask, text in zip(burnt["masks"], stamped, strict=True):
            small = [part for part in components(mask) if part.sum() < 80]
            assert len(small) >= 3
            rows, columns = np.nonzero(text)  # in the top 7 % x left 14 %, as TG3K's
            assert rows.max() < 0.07 * len(mask)
            assert columns.max() < 0.14 * mask.shape[1]
            assert all(part.sum() >= 300 for part in components(mask) if part.sum() >= 80)
            np.testing.assert_array_equal(np.any(small, axis=0), text)
        assert burnt["images"][stamped].min() > 200
        np.testing.assert_array_equal(burnt["images"][~stamped], plain["images"][~stamped])


@pytest.fixture
def folder(tmp_path):
    phantom.cases(tmp_path / "a", **FIRST)
    return tmp_path / "a"


def test_a_folder_is_drawn_once(folder, monkeypatch):
    names = [f"s0{sweep}f00{frame}" for sweep in (0, 1) for frame in (0, 1)]
    assert sorted(path.stem for path in (folder / "masks").iterdir()) == names
    lines = [f"{name},sweep{name[1:3]}" for name in names]
    assert (folder / "groups.csv").read_text().split() == ["case_id,group", *lines]
    with Image.open(folder / "images" / "s01f001.png") as file:
        np.testing.assert_array_equal(np.asarray(file), drawn(1)["images"][1])
    monkeypatch.setattr(phantom, "make_sweep", None)
    assert phantom.cases(folder, **FIRST)["case_id"].tolist() == names


@pytest.mark.parametrize("change", [{"sweeps": 1}, {"frames": 1}, {"seed": 4}, {"text": False}])
def test_drawn_anew_when_a_setting_changes(folder, tmp_path, change):
    for path in (folder, tmp_path / "b"):
        phantom.cases(path, **FIRST | change)
    assert files_of(folder) == files_of(tmp_path / "b")


def test_drawn_anew_after_another_version_or_an_interruption(folder):
    record, good = folder / "phantom.json", files_of(folder)
    about = json.loads(record.read_text())
    assert about["phantom_version"] == phantom.PHANTOM_VERSION
    stale = json.dumps(about | {"phantom_version": 0})
    for leave in (lambda: record.write_text(stale), record.unlink, lambda: None):
        (folder / "images" / "s00f000.png").unlink()
        leave()
        phantom.cases(folder, **FIRST)
        assert files_of(folder) == good


def test_the_files_of_others_are_spared(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "patient.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"patient\.png"):
        phantom.cases(tmp_path, sweeps=1, frames=1)
    assert (tmp_path / "images" / "patient.png").read_bytes() == b"precious"


@cache
def with_nodules(sweep, seed=0):
    return phantom.make_sweep(seed=seed, sweep=sweep, frames=4, nodules=True)


@pytest.mark.study
def test_nodules_have_the_look_of_their_kind():
    seen = {kind: [] for kind in phantom.KINDS}
    for sweep in range(16):
        drawn_ = with_nodules(sweep)
        image, labels = (drawn_[part][2] for part in ("images", "masks"))
        assert labels.max() <= len(phantom.KINDS) + 1
        around = image[labels == 1].mean()
        for kind in {lesion["kind"] for lesion in drawn_["lesions"]}:
            inside = image[labels == phantom.TISSUES[kind][0]].astype(float)
            if inside.size > 60:
                seen[kind].append((inside.mean() - around, inside.max() - around, inside.mean()))
    mean, brightest, level = (
        {kind: np.mean(found, axis=0)[i] for kind, found in seen.items()} for i in range(3)
    )
    assert level["cystic"] < 0.6 * level["hypoechoic"]
    assert mean["cystic"] < mean["hypoechoic"] - 10 < mean["isoechoic"] - 10
    assert abs(mean["isoechoic"]) < 12 < mean["hyperechoic"]
    assert brightest["calcified"] > 1.3 * brightest["hypoechoic"]  # its dots


@pytest.mark.study
def test_nodules_lie_in_the_gland_and_a_small_square_still_shows_them():
    kinds, found = set(), 0
    for sweep in range(16):
        labels, lesions = (with_nodules(sweep)[part] for part in ("masks", "lesions"))
        kinds |= {lesion["kind"] for lesion in lesions}
        found += bool(lesions)
        for lesion in lesions:
            held = (labels == phantom.TISSUES[lesion["kind"]][0]).any(axis=(1, 2)).sum()
            assert lesion["frames"] <= held
            assert 3 <= lesion["height_mm"] <= 11
        for mask in labels:
            nodule = frames.fit_mask(mask, 64, "square") > 1
            assert not (mask > 1).sum() > 150 or nodule.sum() > 6
            assert (mask > 0).sum() >= 300
    assert kinds == {*phantom.KINDS}
    assert 10 < found < 16  # some glands have none


@pytest.mark.study
def test_a_folder_of_nodules_has_levels_and_a_table(tmp_path):
    how = {"sweeps": 3, "frames": 2, "nodules": True}
    plain = phantom.cases(tmp_path / "p", sweeps=3, frames=2)
    assert "mask_rule" not in plain
    table = phantom.cases(tmp_path / "a", **how)
    assert set(table["mask_rule"]) == {"levels:1,2,3,4,5,6"}
    lesions = pd.read_csv(tmp_path / "a" / "lesions.csv")
    drawn_ = [phantom.make_sweep(sweep=s, frames=2, nodules=True) for s in range(3)]
    assert lesions["kind"].tolist() == [x["kind"] for of in drawn_ for x in of["lesions"]]
    with Image.open(tmp_path / "a" / "masks" / "s02f001.png") as file:
        np.testing.assert_array_equal(np.asarray(file), drawn_[2]["masks"][1])
    before = files_of(tmp_path / "a")
    phantom.cases(tmp_path / "a", sweeps=3, frames=2)  # the same folder without them
    assert {*before} - {*files_of(tmp_path / "a")} == {"lesions.csv"}
    phantom.cases(tmp_path / "a", **how)
    assert files_of(tmp_path / "a") == before


RULES = [  # nodules, task, classes, annotated; the mask rule, the names that are annotated
    (True, "nodule", {}, "", "levels:2,3,4,5,6", ""),
    (True, "", {"gland": "", "nodule": ""}, "", "1=levels:1|2=levels:2,3,4,5,6", ""),
    (True, "", {"cyst": "cystic", "rest": "gland"}, "", "1=levels:5|2=levels:2,3,4,6,1", ""),
    (True, "", {"gland": "", "nodule": ""}, "gland", "1=levels:2,3,4,5,6,1", "gland"),
    (True, "", {"gland": "", "nodule": ""}, "nodule", "2=levels:2,3,4,5,6", "nodule"),
    (True, "", {"bad": "calcified, cystic", "x": "isoechoic"}, "", "1=levels:6,5|2=levels:3", ""),
    (False, "", {"nodule": "", "gland": ""}, "gland", "2=", "gland"),
]  # fmt: skip
NO_RULES = [
    (False, "nodule", {}, "task nodule: phantoms have no nodules, set phantom_nodules"),
    (False, "gland", {"gland": "", "nodule": ""}, "classes: phantoms have no nodules"),
    (True, "gland", {"x": "nodule", "cystic": ""}, "classes: cystic stands in two, need one"),
    (True, "gland", {"gland": "", "x": "bone"}, "x got 'bone', need any of gland, nodule, hypo"),
]


def test_classes_are_tissues(tmp_path):
    for nodules, task, classes, annotated, rule, names in RULES:
        found = phantom._mask_rule(nodules, task or "gland", classes, annotated)
        assert found == (rule, names.split() or [*classes])
    for nodules, task, classes, said in NO_RULES:
        with pytest.raises(ValueError, match=said):
            phantom.cases(tmp_path, sweeps=1, frames=1, nodules=nodules, task=task, classes=classes)

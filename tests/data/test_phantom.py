"""The phantom: same bytes from the same seed, near-copies in a sweep, masks as TG3K has them."""

import json
import subprocess
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from conftest import files_of
from PIL import Image
from scipy import ndimage

from thyroid_lib.data import phantom

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

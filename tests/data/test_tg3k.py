"""The TG3K source: its table of sweeps, the folder or archive it lies in, its official split."""

import json
import os
import sys
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data import tg3k
from thyroid_lib.data.cases import find_problems

# Archives, splits and frames that are damaged or not to be trusted: test_bad_files.py.


def write_release(path, frames=(0, 1, 272, 3584)):
    """A small part of the release under `path`: empty masks of the right sizes, and the split."""
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (path / part).mkdir(parents=True, exist_ok=True)
        for frame in frames:
            levels = np.zeros(tg3k.SWEEPS[tg3k.sweep_of(frame)], np.uint8)
            Image.fromarray(levels).save(path / part / f"{frame:04d}.jpg")
    split = {"train": list(range(3226)), "val": list(range(3226, 3585))}
    (path / tg3k.SPLIT).write_text(json.dumps(split))
    return path


def zip_of(path, release, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(release.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(release)))
    return path


@pytest.mark.parametrize(
    ("frame", "sweep"),
    [
        (0, "run01"),
        (271, "run01"),
        (272, "run02"),
        (3269, "run14"),
        (3584, "run15"),
        (3585, ""),
        (-1, ""),
    ],
)
def test_sweep_of_a_frame(frame, sweep):
    assert tg3k.sweep_of(frame) == sweep


def test_cases_have_the_release_s_names_sweeps_and_sides(tmp_path):
    cases = tg3k.cases(write_release(tmp_path))
    assert cases["case_id"].tolist() == ["0000", "0001", "0272", "3584"]
    assert cases["group"].tolist() == ["run01", "run01", "run02", "run15"]
    assert cases["official"].tolist() == ["train", "train", "train", "test"]
    assert cases["dataset"].unique().tolist() == ["tg3k"]
    assert find_problems(cases) == [None] * 4
    (tmp_path / tg3k.SPLIT).unlink()
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (tmp_path / part / "0001.jpg").rename(tmp_path / part / "00².jpg")  # no frame of it
    (tmp_path / tg3k.IMAGES / "0272.jpg").write_bytes(b"")  # is left to the store
    cases = tg3k.cases(tmp_path)
    assert cases["official"].tolist() == [""] * 4
    assert [(row[0], row[2]) for row in find_problems(cases) if row] == [("00²", "no group")]


def test_frames_of_another_size_are_other_data(tmp_path):
    write_release(tmp_path)
    Image.new("L", (256, 256)).save(tmp_path / tg3k.IMAGES / "0272.jpg")
    with pytest.raises(ValueError, match=r"0272\.jpg is 256 x 256, run02 has 194 x 258") as error:
        tg3k.cases(tmp_path)
    assert 'use source "folder"' in str(error.value)


# --- where it lies


def test_found_in_folders_below(tmp_path):
    write_release(tmp_path / "a/b/c/d")
    (tmp_path / "Thyroid Dataset" / "tn3k" / "trainval-image").mkdir(parents=True)
    assert tg3k.locate(tmp_path) == tmp_path / "a/b/c/d"


@pytest.mark.parametrize("there", [[], ["tn3k", tg3k.IMAGES], ["a/b/c/d/e/tg3k"]])
def test_not_there_says_what_was_found_and_how_to_get_it(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    if "a/b/c/d/e/tg3k" in there:  # deeper than is searched
        write_release(tmp_path / there[0])
    with pytest.raises(ValueError, match="needed are the folders thyroid-image/ and") as error:
        tg3k.locate(tmp_path)
    found = ", ".join(sorted(name.split("/")[0] for name in there)) or "nothing"
    for part in (f"found was {found}", tg3k.DRIVE_ID, "tg3k.download"):
        assert part in str(error.value)


@pytest.mark.parametrize("prefix", ["", "Thyroid Dataset/tg3k/"])
def test_a_zip_is_unpacked_once_beside_itself(tmp_path, prefix):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"), prefix)
    found = tg3k.locate(archive)
    assert found.is_relative_to(tmp_path)
    assert len(list((found / tg3k.IMAGES).iterdir())) == 4
    assert tg3k.official_split(archive)["test"][0] == "3226"
    entries = sorted(path.name for path in tmp_path.iterdir())
    assert len(entries) == 3  # the archive, the release it was made of, what was unpacked
    before = found.stat().st_ino
    assert tg3k.locate(archive).stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == entries


def test_beside_a_zip_that_cannot_be_written_results_data_is_used(tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    archive = zip_of(tmp_path / "input" / "set.zip", write_release(tmp_path / "release"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    assert tg3k.locate(archive).is_relative_to(tmp_path / "results" / "data")
    assert [path.name for path in (tmp_path / "input").iterdir()] == ["set.zip"]


def test_official_split_is_that_of_the_release(tmp_path):
    split = tg3k.official_split(write_release(tmp_path))
    assert {side: len(ids) for side, ids in split.items()} == {"train": 3226, "test": 359}
    assert split["train"][7] == "0007"
    (tmp_path / tg3k.SPLIT).unlink()
    with pytest.raises(ValueError, match=r"no tg3k-trainval\.json beside thyroid-image/"):
        tg3k.official_split(tmp_path)


# --- download, without a network


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A stand-in for gdown that copies a small archive, or raises what it is told to."""
    release = write_release(tmp_path / "remote")
    archive = zip_of(tmp_path / "remote.zip", release, "Thyroid Dataset/tg3k/").read_bytes()
    state = types.SimpleNamespace(fails=None, calls=0)

    def download(*, id, output):
        state.calls += 1
        with open(output, "wb") as file:
            file.write(archive[: 100 if state.fails else None])
        if state.fails:
            raise state.fails
        return output

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    return state


def test_download_once(drive, tmp_path):
    found = tg3k.download(tmp_path / "data")
    assert (found / tg3k.IMAGES / "0000.jpg").is_file()
    assert tg3k.download(tmp_path / "data") == found
    assert drive.calls == 1


def test_a_failed_download_says_how_to_get_it_by_hand(drive, tmp_path, monkeypatch):
    drive.fails = OSError("no route\nto host")
    with pytest.raises(RuntimeError, match=r"download failed \(OSError: no route\): .*file id 1re"):
        tg3k.download(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(RuntimeError, match=r"\(ModuleNotFoundError.*pip install gdown .*get the"):
        tg3k.download(tmp_path / "data")


def test_the_real_sample(shared_data):
    cases = tg3k.cases(shared_data)  # one folder above
    counts = cases["group"].value_counts().sort_index()
    assert counts.to_dict() == {
        "run01": 67, "run02": 45, "run04": 34, "run05": 38, "run06": 40, "run07": 59,
        "run08": 36, "run10": 44, "run11": 44, "run12": 55, "run13": 59, "run15": 60,
    }  # fmt: skip
    assert find_problems(cases) == [None] * 581
    for case in cases.groupby("group").sample(2, random_state=0).itertuples():
        for path in (case.image_path, case.mask_path):
            with Image.open(path) as image:
                assert image.size == tg3k.SWEEPS[case.group][::-1]

"""The TG3K source: sweeps, the folder or archive it lies in, the official split, the download."""

import json
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import files_of
from fuzzing import attempt, damaged
from PIL import Image

from thyroid_lib.data import tg3k
from thyroid_lib.data.cases import find_problems

SPLIT = {"train": [*range(3226)], "val": [*range(3226, 3585)]}
BAD_SPLITS = {
    "empty": "", "a list": "[]", "one side": '{"train": [1]}',
    "a fraction": json.dumps({"train": [0.5, *range(1, 3000)], "val": [*range(3000, 3585)]}),
    "a frame on both sides": json.dumps({"train": [*range(3000)], "val": [*range(2999, 3585)]}),
    "brackets in brackets": "[" * 100_000,
}  # fmt: skip
OTHERS = "../other.txt", "tn3k/0.jpg", "__MACOSX/thyroid-mask/._0.jpg"


def write_release(path):
    """A small part of the release under `path`: empty masks, and the split."""
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (path / part).mkdir(parents=True, exist_ok=True)
        for frame in (0, 1, 271, 272, 3269, 3584):
            Image.fromarray(np.zeros((9, 7), np.uint8)).save(path / part / f"{frame:04d}.jpg")
    (path / tg3k.SPLIT).write_text(json.dumps(SPLIT))
    return path


def zip_of(path, release, *more, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(release.rglob("*.*")):
            archive.write(file, prefix + str(file.relative_to(release)))
        for each in more:
            archive.writestr(each, b"x")
    return path


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def test_cases_have_the_release_s_names_sweeps_and_sides(release):
    cases = tg3k.cases(release)
    assert cases["case_id"].tolist() == ["0000", "0001", "0271", "0272", "3269", "3584"]
    assert cases["group"].tolist() == ["run01"] * 3 + ["run02", "run14", "run15"]
    assert cases["official"].tolist() == ["train"] * 4 + ["test"] * 2
    assert cases["dataset"].unique().tolist() == ["tg3k"]
    assert find_problems(cases) == [None] * 6
    (release / tg3k.SPLIT).unlink()
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (release / part / "0001.jpg").rename(release / part / "00².jpg")  # no frame of it
    (release / tg3k.IMAGES / "0272.jpg").write_bytes(b"")  # is left to the store
    cases = tg3k.cases(release)
    assert cases["official"].tolist() == [""] * 6
    assert [(row[0], row[2]) for row in find_problems(cases) if row] == [("00²", "no group")]


def test_the_real_sample(shared_data):
    cases = tg3k.cases(shared_data)  # one folder above
    counts = cases["group"].value_counts().sort_index()
    assert counts.to_dict() == {
        "run01": 67, "run02": 45, "run04": 34, "run05": 38, "run06": 40, "run07": 59,
        "run08": 36, "run10": 44, "run11": 44, "run12": 55, "run13": 59, "run15": 60,
    }  # fmt: skip
    assert find_problems(cases) == [None] * 581


def test_the_official_split_is_that_of_the_release_or_refused(release, counts):
    file = release / tg3k.SPLIT
    sound = tg3k.official_sides(file)
    assert sound == {f"{n:04d}": "train" if n < 3226 else "test" for n in range(3585)}
    for how, broken in damaged(6, file.read_bytes(), 8):
        file.write_bytes(broken)
        split, said = attempt(counts, tg3k.official_sides, file)
        assert split == sound if said is None else tg3k.SPLIT in said, how
    for content in BAD_SPLITS.values():
        file.write_text(content)
        with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged: needed are two li"):
            tg3k.cases(release)
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged"):
        tg3k.cases(release)


def test_found_in_folders_below_or_it_says_what_was_found_and_how_to_get_it(tmp_path):
    (tmp_path / "Thyroid Dataset" / "tn3k" / tg3k.IMAGES).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"thyroid-mask/, found was Thyroid Dataset; .*file id"):
        tg3k.locate(tmp_path)
    write_release(tmp_path / "a/b/c/d")
    assert tg3k.locate(tmp_path) == tmp_path / "a/b/c/d"


def test_of_an_archive_only_this_data_set_is_unpacked(tmp_path, release):
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    archive = zip_of(home / "set.zip", release, *OTHERS, prefix="Thyroid Dataset/tg3k/")
    assert files_of(tg3k.locate(archive)) == files_of(release)
    assert len(list(home.iterdir())) == 2
    zip_of(archive, release, "../../thyroid-image/2.jpg")
    with pytest.raises(ValueError, match=r"/2\.jpg', which leads outside of it: get the archive"):
        tg3k.locate(archive)
    zip_of(archive, release / tg3k.SPLIT, "tn3k/0.jpg")
    with pytest.raises(ValueError, match=r"holds no file that is needed, but tn3k.*file id"):
        tg3k.locate(archive)


def test_downloaded_once_and_a_failure_says_how_to_get_it_by_hand(tmp_path, release, monkeypatch):
    archive = zip_of(tmp_path / "remote.zip", release, prefix="Thyroid Dataset/tg3k/").read_bytes()
    calls, data = [], tmp_path / "data"

    def download(*, id, output):
        calls.append(id)
        if len(calls) == 1:
            raise OSError("no route\nto host")
        Path(output).write_bytes(archive)
        return output

    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(RuntimeError, match=r"\(ModuleNotFoundError.*pip install gdown .*get the"):
        tg3k.download(data)
    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    with pytest.raises(RuntimeError, match=r"download failed \(OSError: no route\): .*file id 1re"):
        tg3k.download(data)
    assert not list(data.iterdir())
    found = tg3k.download(data)
    assert (found / tg3k.IMAGES / "0000.jpg").is_file()
    assert tg3k.download(data) == found
    assert calls == [tg3k.DRIVE_ID] * 2

"""TG3K: its table of runs, where it may lie, and archives that are not to be trusted."""

import json
import os
import stat
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data import tg3k
from thyroid_lib.data.cases import table_problems


def write_release(path, frames=(0, 1, 272, 3584)):
    """A small part of the release under `path`: empty masks of the right sizes, and the split."""
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (path / part).mkdir(parents=True, exist_ok=True)
        for frame in frames:
            run = next(run for run in tg3k.RUNS if run.first <= frame <= run.last)
            levels = np.zeros((run.height, run.width), np.uint8)
            Image.fromarray(levels).save(path / part / f"{frame:04d}.jpg")
    split = {"train": list(range(3226)), "val": list(range(3226, 3585))}
    (path / tg3k.SPLIT).write_text(json.dumps(split))
    return path


def zip_of(path, release, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(release.rglob("*")):
            archive.write(file, prefix + str(file.relative_to(release)))
    return path


# --- runs


def test_runs_cover_the_release_without_gap_or_overlap():
    assert [run.run for run in tg3k.RUNS] == [f"run{i:02d}" for i in range(1, 16)]
    assert tg3k.RUNS[0].first == 0
    assert tg3k.RUNS[-1].last == 3584
    for before, after in zip(tg3k.RUNS, tg3k.RUNS[1:], strict=False):
        assert after.first == before.last + 1
        assert (after.height, after.width) != (before.height, before.width)


@pytest.mark.parametrize(
    ("frame", "run"),
    [(0, "run01"), (271, "run01"), (272, "run02"), (3584, "run15"), (3585, ""), (-1, "")],
)
def test_run_of_a_frame(frame, run):
    assert tg3k.run_of(frame) == run


def test_cases_have_the_release_s_names_and_runs(tmp_path):
    cases = tg3k.cases(write_release(tmp_path))
    assert cases["case_id"].tolist() == ["0000", "0001", "0272", "3584"]
    assert cases["group"].tolist() == ["run01", "run01", "run02", "run15"]
    assert cases["dataset"].unique().tolist() == ["tg3k"]
    assert len(table_problems(cases)) == 0


@pytest.mark.parametrize("name", ["9999", "extra", "00²"])
def test_a_name_that_is_no_frame_of_the_release_has_no_group(tmp_path, name):
    write_release(tmp_path)
    for part in (tg3k.IMAGES, tg3k.MASKS):
        (tmp_path / part / "0001.jpg").rename(tmp_path / part / f"{name}.jpg")
    problems = table_problems(tg3k.cases(tmp_path))
    assert problems[["case_id", "reason"]].to_numpy().tolist() == [[name, "no group"]]


def test_frames_of_another_size_are_other_data(tmp_path):
    write_release(tmp_path)
    Image.new("L", (256, 256)).save(tmp_path / tg3k.IMAGES / "0272.jpg")
    with pytest.raises(ValueError, match=r"0272\.jpg is 256 x 256, run02 has 194 x 258") as error:
        tg3k.cases(tmp_path)
    assert 'use source "folder"' in str(error.value)


def test_a_damaged_first_frame_is_left_to_the_store(tmp_path):
    write_release(tmp_path)
    (tmp_path / tg3k.IMAGES / "0272.jpg").write_bytes(b"")
    (tmp_path / tg3k.IMAGES / "3584.jpg").unlink()
    assert len(tg3k.cases(tmp_path)) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_first_frame_that_is_a_pipe_or_a_bomb_is_left_to_the_store(tmp_path):
    write_release(tmp_path)
    (tmp_path / tg3k.IMAGES / "0272.jpg").unlink()
    os.mkfifo(tmp_path / tg3k.IMAGES / "0272.jpg")  # to open it would wait forever
    Image.new("1", (30_000, 30_000)).save(tmp_path / tg3k.IMAGES / "3584.jpg", "PNG")
    assert len(tg3k.cases(tmp_path)) == 4


# --- where it lies


@pytest.mark.parametrize("inner", [".", "Thyroid Dataset/tg3k", "a/b/c/d"])
def test_found_in_folders_below(tmp_path, inner):
    write_release(tmp_path / inner)
    (tmp_path / "Thyroid Dataset" / "tn3k" / "trainval-image").mkdir(parents=True)
    assert tg3k.locate(tmp_path) == tmp_path / inner


def test_a_folder_below_at_most_four(tmp_path):
    write_release(tmp_path / "a/b/c/d/e")
    with pytest.raises(ValueError, match="no TG3K in"):
        tg3k.locate(tmp_path)


@pytest.mark.parametrize("there", [[], ["tn3k", "readme.txt"], [tg3k.IMAGES]])
def test_not_there_says_what_was_found_and_how_to_get_it(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="needed are the folders thyroid-image/ and") as error:
        tg3k.locate(tmp_path)
    for part in (*there, "nothing"[: 7 * (not there)], tg3k.DRIVE_ID, "tg3k.download"):
        assert part in str(error.value)


def test_no_such_path(tmp_path):
    with pytest.raises(ValueError, match=r"nothing is there.*file id"):
        tg3k.locate(tmp_path / "none")


# --- archives


@pytest.mark.parametrize("prefix", ["", "Thyroid Dataset/tg3k/", "./tg3k/"])
def test_a_zip_is_unpacked_once_beside_itself(tmp_path, prefix):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"), prefix)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("Thyroid Dataset/tn3k/test-image/0000.jpg", b"other data")
        more.writestr(f"__MACOSX/tg3k/{tg3k.IMAGES}/._0000.jpg", b"rubbish")
        more.writestr(f"{tg3k.IMAGES}/.DS_Store", b"rubbish")
    found = tg3k.locate(archive)
    assert found.is_relative_to(tmp_path)
    assert len(list((found / tg3k.IMAGES).iterdir())) == 4
    assert tg3k.official_split(archive)["test"][0] == "3226"
    assert not list(tmp_path.rglob("tn3k"))
    entries = sorted(path.name for path in tmp_path.iterdir())
    assert len(entries) == 3  # the archive, the release it was made of, what was unpacked
    before = found.stat().st_ino
    assert tg3k.locate(archive).stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == entries


def test_another_archive_of_that_name_is_unpacked_anew(tmp_path):
    first = tg3k.locate(zip_of(tmp_path / "set.zip", write_release(tmp_path / "one")))
    other = zip_of(tmp_path / "set.zip", write_release(tmp_path / "two", frames=(5, 6)))
    second = tg3k.locate(other)
    assert first != second
    assert sorted(path.name for path in (second / tg3k.IMAGES).iterdir()) == [
        "0005.jpg",
        "0006.jpg",
    ]


def test_beside_a_zip_that_cannot_be_written_results_data_is_used(tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    archive = zip_of(tmp_path / "input" / "set.zip", write_release(tmp_path / "release"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "results"))
    assert tg3k.locate(archive).is_relative_to(tmp_path / "results" / "data")
    assert [path.name for path in (tmp_path / "input").iterdir()] == ["set.zip"]


def evil(name, link=False):
    entry = zipfile.ZipInfo(name)
    if link:
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        evil("../thyroid-image/0000.jpg"),
        evil("tg3k/../../thyroid-image/0000.jpg"),
        evil("/thyroid-image/0000.jpg"),
        evil("..\\thyroid-image\\0000.jpg"),
        evil("C:/thyroid-image/0000.jpg"),
        evil("thyroid-image/0000.jpg", link=True),
        evil("elsewhere/../../other.txt"),
    ],
    ids=lambda entry: entry.filename,
)
def test_an_entry_that_points_out_of_the_archive(tmp_path, entry):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"))
    with warnings.catch_warnings(), zipfile.ZipFile(archive, "a") as more:
        warnings.simplefilter("ignore")  # two entries of one name
        more.writestr(entry, b"/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"set\.zip is not to be trusted: its entry"):
        tg3k.locate(archive)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_would_fill_the_disk(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"))
    monkeypatch.setattr(tg3k, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more than"):
        tg3k.locate(archive)


def test_a_cut_archive_leaves_nothing(tmp_path):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"))
    content = bytearray(archive.read_bytes())
    content[300] ^= 255  # inside the first frame: its checksum fails
    archive.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"cannot be unpacked.*Bad CRC.*file id"):
        tg3k.locate(archive)
    assert sorted(tmp_path.rglob("*")) == before
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot be unpacked.*not a zip file"):
        tg3k.locate(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_compressed_data_is_told(tmp_path, method):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w", method) as made:
        made.writestr(f"tg3k/{tg3k.IMAGES}/0000.jpg", bytes(range(256)) * 40)
    content = archive.read_bytes()
    start = 30 + len(f"tg3k/{tg3k.IMAGES}/0000.jpg")
    for place in range(start + 10, start + 60, 5):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        with pytest.raises(
            ValueError, match=r"set\.zip cannot be unpacked \(.+\): get the archive"
        ):
            tg3k.locate(archive)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("./0000.JPG", b"other", r"not to be trusted: it holds 'thyroid-image/0000\.jpg' mo"),
        (f"{'9' * 300}.jpg", b"", r"cannot be unpacked \(.*File name too long"),
    ],
    ids=["twice", "too long for the disk"],
)
def test_an_entry_whose_name_cannot_be_is_told(tmp_path, name, content, said):
    archive = zip_of(tmp_path / "set.zip", write_release(tmp_path / "release"))
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(f"{tg3k.IMAGES}/{name}", content)
    with pytest.raises(ValueError, match=said):
        tg3k.locate(archive)


def test_a_home_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="nothing is there"):
        tg3k.locate("~nobody-of-this-name/tg3k")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("holiday/beach.jpg", b"")
    with pytest.raises(ValueError, match=r"no TG3K in set.zip.*thyroid-image"):
        tg3k.locate(tmp_path / "set.zip")


# --- the official split


def test_official_split_is_that_of_the_release(tmp_path):
    split = tg3k.official_split(write_release(tmp_path))
    assert {side: len(ids) for side, ids in split.items()} == {"train": 3226, "test": 359}
    assert split["train"][7] == "0007"


def halves(train, val):
    return json.dumps({"train": train, "val": val})


ALL = list(range(3585))
DAMAGED_SPLITS = {
    "empty": "",
    "a list": "[]",
    "one side": '{"train": [1]}',
    "a text": '{"train": ["x"], "val": [1]}',
    "digits of a text": halves("0123456789", ALL[10:]),
    "a fraction": halves([0.5, *ALL[1:3000]], ALL[3000:]),
    "infinite": halves([float("inf"), *ALL[1:3000]], ALL[3000:]),
    "true": halves([0, True, *ALL[2:3000]], ALL[3000:]),
    "a frame on both sides": halves(ALL[:3000], ALL[2999:]),
    "a frame missing": halves(ALL[:3000], ALL[3001:]),
    "a frame beyond": halves([*ALL[:3000], 3585], ALL[3000:]),
    "brackets in brackets": "[" * 100_000,
}


@pytest.mark.parametrize("kind", DAMAGED_SPLITS)
def test_a_damaged_official_split(tmp_path, kind):
    (write_release(tmp_path) / tg3k.SPLIT).write_text(DAMAGED_SPLITS[kind])
    with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged: needed are two lists"):
        tg3k.official_split(tmp_path)


def test_an_official_split_that_is_no_file(tmp_path):
    split = write_release(tmp_path) / tg3k.SPLIT
    split.unlink()
    split.symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged"):
        tg3k.cases(tmp_path)
    split.unlink()
    split.mkdir()
    with pytest.raises(ValueError, match=r"tg3k-trainval\.json is damaged"):
        tg3k.cases(tmp_path)


def test_no_official_split(tmp_path):
    (write_release(tmp_path) / tg3k.SPLIT).unlink()
    with pytest.raises(ValueError, match=r"no tg3k-trainval\.json beside thyroid-image/"):
        tg3k.official_split(tmp_path)


# --- download, without a network


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A stand-in for gdown that copies a small archive, or raises what it is told to."""
    archive = zip_of(
        tmp_path / "remote.zip", write_release(tmp_path / "remote"), "Thyroid Dataset/tg3k/"
    )
    state = types.SimpleNamespace(fails=None, calls=0)

    def download(*, id, output):
        state.calls += 1
        with open(output, "wb") as file:
            file.write(archive.read_bytes()[: 100 if state.fails else None])
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


def test_a_failed_download_says_how_to_get_it_by_hand(drive, tmp_path):
    drive.fails = OSError("no route\nto host")
    with pytest.raises(RuntimeError, match=r"download failed \(OSError: no route\): .*file id 1re"):
        tg3k.download(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_no_gdown(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(RuntimeError, match="gdown is not installed: pip install gdown, or get the"):
        tg3k.download(tmp_path / "data")


# --- real frames


def test_the_real_sample(shared_data):
    cases = tg3k.cases(shared_data)  # one folder above
    counts = cases["group"].value_counts().sort_index()
    assert counts.to_dict() == {
        "run01": 67, "run02": 45, "run04": 34, "run05": 38, "run06": 40, "run07": 59,
        "run08": 36, "run10": 44, "run11": 44, "run12": 55, "run13": 59, "run15": 60,
    }  # fmt: skip
    assert len(table_problems(cases)) == 0
    for case in cases.groupby("group").sample(2, random_state=0).itertuples():
        run = next(run for run in tg3k.RUNS if run.run == case.group)
        for path in (case.image_path, case.mask_path):
            with Image.open(path) as image:
                assert image.size == (run.width, run.height)
    split = tg3k.official_split(shared_data)
    assert set(cases["case_id"]) <= set(split["train"]) | set(split["test"])

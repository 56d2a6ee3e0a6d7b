"""Data under one name wherever they lie: paths, Kaggle's folders, Colab's Drive, fetched ones."""

import sys
import types
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_tg3k import write_release, zip_of

from thyroid_lib.data import tg3k
from thyroid_lib.data.locate import data_name, find_data


@pytest.fixture(autouse=True)
def root(monkeypatch, tmp_path) -> Path:
    """A platform's root, with the project in its working folder and nothing to be fetched."""
    monkeypatch.setenv("THYROID_PLATFORM_ROOT", str(tmp_path))
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "kaggle/working"))
    monkeypatch.delenv("THYROID_RESULTS", raising=False)
    monkeypatch.setattr(tg3k, "download", Mock(side_effect=RuntimeError("downloaded")))
    return tmp_path


def test_a_path_hangs_off_the_project_and_no_data_are_none(root):
    assert find_data("mine") == root / "kaggle/working/mine"
    assert find_data("/else/where") == Path("/else/where")
    assert find_data("") is None


@pytest.mark.parametrize("mount", ["kaggle/input/tg3k", "kaggle/input/datasets/somebody/tg3k"])
def test_an_attached_data_set_is_found_in_either_mount(mount, root):
    (root / mount).mkdir(parents=True)
    assert find_data("kaggle:somebody/tg3k/2") == root / mount


def test_a_data_set_that_is_not_attached_is_fetched_in_its_version(monkeypatch, root):
    fetch = types.SimpleNamespace(dataset_download=lambda name: root / name)
    monkeypatch.setitem(sys.modules, "kagglehub", fetch)
    assert find_data("kaggle:somebody/tg3k/2") == root / "somebody/tg3k/versions/2"
    fetch.dataset_download = Mock(side_effect=ConnectionError("no network\nin detail"))
    with pytest.raises(RuntimeError, match=r"\(ConnectionError: no network\): .*attach the data"):
        find_data("kaggle:somebody/tg3k/2")
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(RuntimeError, match=r"pip install kagglehub if .*attach the data set"):
        find_data("kaggle:somebody/tg3k/2")


@pytest.mark.parametrize("data", ["kaggle:somebody/tg3k", "kaggle:a/b/latest"])
def test_a_data_set_needs_its_version(data):
    with pytest.raises(ValueError, match="need kaggle:owner/slug/version"):
        find_data(data)


@pytest.mark.parametrize("where", ["input", "input/datasets/me", "working", "working/results"])
def test_the_release_is_found_where_it_may_lie(where, root):
    (root / "kaggle/input/another-set").mkdir(parents=True)
    folder = "data/tg3k" if "working" in where else "some-slug/Thyroid Dataset/tg3k"
    release = write_release(root / "kaggle" / where / folder)
    assert find_data("auto") == release


def test_the_drive_is_looked_through_last_and_its_zip_is_copied_first(root):
    drive = root / "content/drive/MyDrive"
    drive.mkdir(parents=True)
    zip_of(drive / "TG3K release.zip", write_release(root / "somewhere"), prefix="tg3k/")
    found = find_data("auto")
    assert found == root / "kaggle/working/results/data/TG3K release.zip"
    assert found.read_bytes() == (drive / "TG3K release.zip").read_bytes()
    assert tg3k.locate(found).name == "tg3k"
    assert [path.name for path in drive.iterdir()] == ["TG3K release.zip"]  # nothing unpacked there


def test_only_what_is_nowhere_is_fetched(root, capsys):
    with pytest.raises(RuntimeError, match="downloaded"):
        find_data("auto")
    assert "it is fetched from its public folder, about 395 MB" in capsys.readouterr().err


def test_what_is_made_of_data_goes_to_a_folder_of_their_name():
    names = {"": "phantom", "auto": "auto", "a/b/": "b"}
    names |= {"/content/drive/MyDrive/My set.zip": "My-set", "patients v1.2": "patients-v1.2"}
    names |= {"study.2023.tar.gz": "study.2023", "..": Path.cwd().parent.name}
    names |= {"kaggle:somebody/tg3k/2": "somebody-tg3k-2"}
    assert {data: data_name(data) for data in names} == names

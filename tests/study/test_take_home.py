"""The zip of a notebook's results, its download on Colab and its link elsewhere."""

import json
import sys
import zipfile
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import pytest

from thyroid_lib.files.writing import write_file
from thyroid_lib.study import take_home

KEPT = {"compare/summary.csv", "runs/a/model.pt", "look.png"}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "mine"
    for name in ("compare/summary.csv", "runs/a/model.pt", "runs/a/checkpoint.pt", "look.png",
                 "runs/old/model.pt", "store/images.npy", "phantom/images/a.png",
                 "x.7.partial"):  # fmt: skip
        write_file(folder / name, name)
    return folder


@pytest.fixture
def colab(monkeypatch):
    """Google's package, as far as it is used; returns what it was called with."""
    calls, package, inner = [], ModuleType("google"), ModuleType("google.colab")
    inner.files = SimpleNamespace(download=calls.append)
    shown = {"ipynb": {"cells": [], "metadata": {"colab": {}}}}
    inner._message = SimpleNamespace(blocking_request=lambda name, **_: shown)
    package.colab = inner
    monkeypatch.setitem(sys.modules, "google", package)
    monkeypatch.setitem(sys.modules, "google.colab", inner)
    return calls


def names(path) -> set[str]:
    with zipfile.ZipFile(path) as packed:
        return set(packed.namelist())


def test_the_zip_holds_tables_figures_and_weights_and_no_frames(results, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    for _ in range(2):  # a second one does not hold the first
        path = take_home.pack(results, ["a"])
        assert (path, names(path)) == (results / "mine.zip", KEPT)
    monkeypatch.setenv("JPY_SESSION_NAME", str(results.parent / "my.ipynb"))
    assert names(take_home.pack(results, ["a"])) == KEPT  # not saved yet
    (results.parent / "my.ipynb").write_text("{}", "utf-8")
    assert names(take_home.pack(results, ["a"])) == KEPT | {"notebook.ipynb"}
    monkeypatch.chdir(results.parent)
    assert "href='mine/mine.zip'" in take_home.offer(path)._repr_html_()


def test_on_colab_the_page_is_packed_and_the_browser_downloads(results, colab):
    path = take_home.pack(results, ["a"])
    with zipfile.ZipFile(path) as packed:
        assert json.loads(packed.read("notebook.ipynb"))["metadata"] == {"colab": {}}
    take_home.offer(path)
    assert colab == [str(path)]


def test_a_full_disk_leaves_the_last_zip(results, monkeypatch):
    before = take_home.pack(results, ["a"]).read_bytes()
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        take_home.pack(results, ["a"])
    assert (results / "mine.zip").read_bytes() == before
    assert len(list(results.glob("*.partial"))) == 1  # another process's

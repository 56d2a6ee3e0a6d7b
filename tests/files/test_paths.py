"""Paths of the parameters mean the same on every machine."""

from pathlib import Path

import pytest

from thyroid_lib.files.paths import portable_path, project_path


@pytest.mark.parametrize(
    ("path", "whole", "portable"),
    [
        ("data/x", "/project/data/x", "data/x"),
        ("results/x", "/away/x", "results/x"),
        ("/project/data/x", "/project/data/x", "data/x"),
        ("/project/results/x", "/project/results/x", "/project/results/x"),
        ("/away/x", "/away/x", "results/x"),
        ("~/x", "/home/me/x", "~/x"),
        ("/home/me/x", "/home/me/x", "~/x"),
        ("/home/me", "/home/me", "~"),
        ("/home/meg/x", "/home/meg/x", "/home/meg/x"),
        ("", "/project", ""),
    ],
)
def test_paths_of_this_machine_and_of_every_machine(monkeypatch, path, whole, portable):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("THYROID_ROOT", "/project")
    monkeypatch.setenv("THYROID_RESULTS", "/away")
    assert project_path(path) == Path(whole)
    assert portable_path(path) == portable


@pytest.mark.parametrize("name", ["auto", "kaggle:owner/slug/1"])
def test_names_of_data_stay(name):
    assert portable_path(name) == name

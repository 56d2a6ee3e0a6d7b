"""Paths of the parameters mean the same on every machine."""

from pathlib import Path

from thyroid_lib.files.paths import portable_path, project_path


def test_paths_of_this_machine_and_of_every_machine(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("THYROID_ROOT", "/project")
    monkeypatch.setenv("THYROID_RESULTS", "/away")
    for path, whole, portable in (
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
    ):
        assert project_path(path) == Path(whole)
        assert portable_path(path) == portable
    for name in ("auto", "kaggle:owner/slug/1"):  # of data
        assert portable_path(name) == name

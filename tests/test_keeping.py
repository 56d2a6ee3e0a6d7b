"""Copies of results on a second folder, which may drop, come back, or be full of an old session."""

import os
import subprocess
import sys
import threading

import nbformat
import pytest

import thyroid_lib
from thyroid_lib import checkpoint, keeping, remove_file, write_file
from thyroid_lib.keeping import Copies, bring_back, keep_copies


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "here"))
    monkeypatch.setattr(keeping, "_copies", None)
    monkeypatch.setattr(thyroid_lib, "written", [])
    return tmp_path


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_below_results_has_a_copy(project):
    copies = keep_copies(project / "drive")
    write_file(project / "here/study/runs/a/history.csv", "epoch\n")
    write_file(project / "elsewhere.csv", "none of it")
    assert copies.wait(10)
    assert names(project / "drive") == ["results/study/runs/a/history.csv"]
    write_file(project / "here/study/runs/a/history.csv", "epoch\n1\n")
    assert copies.wait(10)
    copy = project / "drive/results/study/runs/a/history.csv"
    assert copy.read_text("utf-8") == "epoch\n1\n"
    remove_file(project / "here/study/runs/a/history.csv")
    assert copies.wait(10)
    assert names(project / "drive") == []


def test_a_training_that_is_over_leaves_no_checkpoint_there(project):
    copies = keep_copies(project / "drive")
    run = project / "here/study/runs/a"
    for epoch in range(3):
        checkpoint.keep(run, {"key": "k", "epoch": epoch})
        assert copies.wait(10)
    kept = project / "drive/results/study/runs/a/checkpoint.pt"
    assert checkpoint.read(kept)["epoch"] == 2
    checkpoint.forget(run)
    assert copies.wait(10)
    assert names(project / "drive") == []


def test_a_drive_that_drops_is_told_once_and_caught_up_with(project, capsys):
    copies = keep_copies(project / "drive")
    (project / "drive/results").rmdir()
    (project / "drive").rmdir()
    (project / "drive").write_text("no folder any more", "utf-8")
    for name in ("a.csv", "b.csv"):
        write_file(project / "here" / name, name)
    assert not copies.wait(10)
    told = capsys.readouterr().err
    assert told.count("work goes on here, and it is tried again with the next file") == 1
    (project / "drive").unlink()
    write_file(project / "here" / "c.csv", "c.csv")
    assert copies.wait(10)
    assert names(project / "drive/results") == ["a.csv", "b.csv", "c.csv"]
    assert "they come through again" in capsys.readouterr().err


def test_a_drive_that_hangs_holds_nothing_up(project, monkeypatch, capsys):
    go_on = threading.Event()
    copy = keeping._copy
    monkeypatch.setattr(keeping, "_copy", lambda *words: go_on.wait(30) and copy(*words))
    copies = keep_copies(project / "drive")
    write_file(project / "here/a.csv", "a")  # returns
    assert not copies.wait(0.1)
    assert "are not done after 0 s" in capsys.readouterr().err
    go_on.set()
    assert copies.wait(10)
    assert names(project / "drive/results") == ["a.csv"]


def test_an_earlier_session_comes_back_and_overwrites_nothing(project, capsys):
    for name in ("study/runs/a/model.pt", "study/runs/b/model.pt", "study/runs/b/x.7.partial"):
        write_file(project / "drive/results" / name, "there")
    write_file(project / "here/study/runs/a/history.csv", "here")
    assert bring_back(project / "drive") == 1
    assert names(project / "here") == ["study/runs/a/history.csv", "study/runs/b/model.pt"]
    assert (
        f"1 files of an earlier session are back from {project / 'drive'}"
        in capsys.readouterr().err
    )
    assert bring_back(project / "drive") == 0


def test_half_a_folder_does_not_come_back(project, monkeypatch):
    for name in ("a.csv", "b.csv", "deep/c.csv"):
        write_file(project / "drive/results/study" / name, name)
    copy = keeping._copy

    def drop(path, target):
        if path.name == "b.csv":
            raise OSError(107, "Transport endpoint is not connected")
        copy(path, target)

    monkeypatch.setattr(keeping, "_copy", drop)
    with pytest.raises(OSError, match="not connected"):
        bring_back(project / "drive")
    assert names(project / "here") == []
    monkeypatch.setattr(keeping, "_copy", copy)
    assert bring_back(project / "drive") == 3
    assert names(project / "here") == ["study/a.csv", "study/b.csv", "study/deep/c.csv"]


def test_a_second_call_keeps_what_is_under_way(project):
    assert keep_copies(project / "drive") is keep_copies(project / "drive")
    other = keep_copies(project / "other")
    write_file(project / "here/a.csv", "a")
    assert other.wait(10)
    assert names(project / "drive") == []
    assert names(project / "other/results") == ["a.csv"]


def test_what_is_no_result_has_no_copy(project):
    assert keeping.target_of(project / "x.csv", "drive") is None
    assert Copies(project / "drive").wait(1)


def test_the_runners_notebooks_and_the_kernels_files_have_copies(project):
    """Two processes: the runner writes the executed notebook, its kernel whatever the cells do."""
    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_code_cell("out = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from thyroid_lib import place, platforms, write_file"),
        nbformat.v4.new_code_cell("platforms.start()\nwrite_file(place(out) / 'a.csv', 'a');"),
    ]
    nbformat.write(nb, project / "n.ipynb")
    words = [
        "notebook",
        "n.ipynb",
        "here/alone/n.ipynb",
        "--parameters",
        '{"out": "results/alone"}',
    ]
    done = subprocess.run(
        [sys.executable, "-m", "thyroid_lib.runner", *words], cwd=project, capture_output=True,
        text=True, env=os.environ | {"THYROID_COPY": str(project / "drive")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names(project / "drive/results") == ["alone/a.csv", "alone/n.ipynb"]

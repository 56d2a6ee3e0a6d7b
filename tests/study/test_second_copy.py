"""Copies of results on a second folder, which may drop, come back, or be full of an old session."""

import os
import shutil
import subprocess
import sys
import threading
import time

import nbformat
import pytest

import thyroid_lib
from thyroid_lib.files.writing import remove_file, write_file
from thyroid_lib.models import checkpoint
from thyroid_lib.study import checksums, second_copy
from thyroid_lib.study.second_copy import bring_back, keep_chosen, keep_copies


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path):
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "here"))
    for name in ("THYROID_COPY", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    new_session(monkeypatch)
    return tmp_path


def new_session(monkeypatch) -> None:
    monkeypatch.delenv("THYROID_KEEPS", raising=False)
    monkeypatch.setattr(second_copy, "_copies", None)
    monkeypatch.setattr(thyroid_lib, "written", [])


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_written_below_results_has_a_copy(project):
    copies = keep_copies(project / "drive")
    write_file(project / "here/study/runs/a/history.csv", "epoch\n")
    write_file(project / "elsewhere.csv", "none of it")
    assert copies.wait(10)
    assert names(project / "drive") == ["results/study/runs/a/history.csv"]
    write_file(project / "here/study/runs/a/history.csv", "hcope\n")  # as long, in the same second
    assert copies.wait(10)
    copy = project / "drive/results/study/runs/a/history.csv"
    assert copy.read_text("utf-8") == "hcope\n"
    remove_file(project / "here/study/runs/a/history.csv")
    assert copies.wait(10)
    assert names(project / "drive") == []


def test_the_newest_checkpoint_is_never_missing_there(project, monkeypatch):
    """Not in the moment in which it is renamed either; it goes when the training is over."""
    copies = keep_copies(project / "drive")
    run = project / "here/study/runs/a"
    kept = project / "drive/results/study/runs/a/checkpoint.pt"
    for epoch in range(3):
        checkpoint.keep(run, {"key": "k", "epoch": epoch})
        assert copies.wait(10)
        os.replace(run / "checkpoint.pt", run / "checkpoint-previous.pt")
        assert copies.wait(10)
        assert checkpoint.read(kept)["epoch"] == epoch
        os.replace(run / "checkpoint-previous.pt", run / "checkpoint.pt")
    assert names(project / "drive") == ["results/study/runs/a/checkpoint.pt"]
    checkpoint.forget(run)
    assert copies.wait(10)
    assert names(project / "drive") == []


def test_a_drive_that_drops_is_told_once_and_caught_up_with(project, capsys):
    copies = keep_copies(project / "drive")
    shutil.move(project / "drive", project / "away")
    for name in ("a.csv", "b.csv"):
        write_file(project / "here" / name, name)
        assert not copies.wait(10)
    assert not (project / "drive").exists()  # nothing is made below a mount point that is bare
    told = capsys.readouterr().err
    assert told.count("work goes on here, and it is tried again") == 1
    assert "not all results have a copy" in told
    shutil.move(project / "away", project / "drive")
    write_file(project / "here" / "c.csv", "c.csv")
    assert copies.wait(10)
    assert names(project / "drive/results") == ["a.csv", "b.csv", "c.csv"]
    assert "they come through again" in capsys.readouterr().err


def test_one_file_that_cannot_be_copied_holds_up_no_other(project, capsys):
    copies = keep_copies(project / "drive")
    (project / "drive/results/b.csv").mkdir()
    for name in ("a.csv", "b.csv", "c.csv"):
        write_file(project / "here" / name, name)
    assert not copies.wait(10)
    assert names(project / "drive/results") == ["a.csv", "c.csv"]


def test_a_drive_that_hangs_holds_nothing_up(project, monkeypatch, capsys):
    go_on = threading.Event()
    copy = second_copy._copy
    monkeypatch.setattr(second_copy, "_copy", lambda *words: go_on.wait(30) and copy(*words))
    copies = keep_copies(project / "drive")
    write_file(project / "here/a.csv", "a")  # returns
    assert not copies.wait(0.1)
    assert "are not done after 0 s" in capsys.readouterr().err
    go_on.set()
    assert copies.wait(10)
    assert names(project / "drive/results") == ["a.csv"]


def test_what_was_made_before_has_a_copy_too(project, monkeypatch):
    """The Drive is mounted late, or was away at the end of the session before."""
    write_file(project / "here/study/runs/a/model.pt", "weights")
    write_file(project / "here/study/compare/summary.md", "table")
    assert keep_copies(project / "drive").wait(10)
    assert names(project / "drive/results") == names(project / "here")


def test_weights_of_another_training_are_put_aside(project, monkeypatch, capsys):
    """Begun anew without the Drive, and the Drive mounted then: what lies there came further."""
    write_file(project / "drive/results/study/runs/a/checkpoint.pt", "epoch 20")
    time.sleep(0.01)
    write_file(project / "here/study/runs/a/checkpoint.pt", "epoch 2")
    assert keep_copies(project / "drive").wait(10)
    there = project / "drive/results/study/runs/a"
    assert (there / "checkpoint.pt").read_text("utf-8") == "epoch 2"
    assert (there / "checkpoint.pt.earlier").read_text("utf-8") == "epoch 20"
    assert "has another checkpoint.pt of a: it stays there as .earlier" in capsys.readouterr().err


def test_what_can_be_made_again_stays_out(project):
    for name in ("s/store/images.npy", "s/store/store.json", "s/phantom/phantom.json",
                 "s/phantom/images/a.png", "data/tg3k.zip", "s/audit/labels.csv"):  # fmt: skip
        write_file(project / "here" / name, name)
    assert keep_copies(project / "drive").wait(10)
    assert names(project / "drive/results") == ["s/audit/labels.csv"]


def test_an_earlier_session_comes_back_and_overwrites_nothing(project, capsys):
    for name in ("study/runs/a/model.pt", "study/runs/b/model.pt", "study/runs/b/x.7.partial"):
        write_file(project / "drive/results" / name, "there")
    write_file(project / "here/study/runs/a/history.csv", "here")
    assert bring_back(project / "drive") == 1
    assert names(project / "here") == ["study/runs/a/history.csv", "study/runs/b/model.pt"]
    told = capsys.readouterr().err
    assert f"1 files of an earlier session are back from {project / 'drive'}" in told
    assert bring_back(project / "drive") == 0


def test_half_a_folder_does_not_come_back(project, monkeypatch, capsys):
    for name in ("a.csv", "b.csv", "deep/c.csv"):
        write_file(project / "drive/results/study" / name, name)
    copy = second_copy._copy

    def drop(path, target):
        if path.name == "b.csv":
            raise OSError(107, "Transport endpoint is not connected")
        copy(path, target)

    monkeypatch.setattr(second_copy, "_copy", drop)
    assert bring_back(project / "drive") == 1
    assert names(project / "here") == ["study/deep/c.csv"]
    assert "could not be brought back: Transport endpoint" in capsys.readouterr().err
    shutil.rmtree(project / "here")
    monkeypatch.setattr(second_copy, "_copy", copy)
    assert bring_back(project / "drive") == 3
    assert names(project / "here") == ["study/a.csv", "study/b.csv", "study/deep/c.csv"]


def test_a_kill_while_files_come_back_leaves_nothing_in_the_way(project):
    """What lies half there is taken away by the next start: of the workflow, or of this."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = project / f"here/study/runs/a.{dead.pid}.partial"
    write_file(left / "model.pt", "half")
    write_file(project / "drive/results/study/runs/a/model.pt", "whole")
    assert bring_back(project / "drive") == 1
    assert names(project / "here") == ["study/runs/a/model.pt"]
    write_file(left / "model.pt", "half")
    assert checksums.mend(project / "here/study") == []
    assert names(project / "here") == ["study/runs/a/model.pt"]


def test_results_that_lie_in_the_folder_itself_need_no_copy(project, monkeypatch):
    monkeypatch.setenv("THYROID_RESULTS", str(project / "drive/results"))
    assert keep_copies(project / "drive") is None
    write_file(project / "drive/results/a.csv", "a")
    assert names(project / "drive") == ["results/a.csv"]


def test_a_folder_that_cannot_be_used_stops_nothing(project, monkeypatch, capsys):
    (project / "taken").write_text("a file", "utf-8")
    monkeypatch.setenv("THYROID_COPY", str(project / "taken"))
    assert keep_chosen() is None
    told = capsys.readouterr().err
    assert "no copies of the results will be kept in" in told
    assert "a file lies where a folder is needed" in told


def test_half_made_copies_of_a_session_that_is_gone_are_taken_away(project):
    for name in ("old.7.partial", "new.8.partial"):
        write_file(project / "drive/results/study" / name, "half")
    os.utime(project / "drive/results/study/old.7.partial", (1, 1))
    keep_copies(project / "drive")
    assert names(project / "drive") == ["results/study/new.8.partial"]


def test_the_runners_notebooks_and_the_kernels_files_have_copies(project):
    """Two processes: the runner writes the executed notebook, its kernel whatever the cells do."""
    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_code_cell("out = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from thyroid_lib.files.writing import project_path, write_file\n"
            "from thyroid_lib.study import platforms"
        ),
        nbformat.v4.new_code_cell(
            "platforms.start()\nwrite_file(project_path(out) / 'a.csv', 'a');"
        ),
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
        [sys.executable, "-m", "thyroid_lib.study.runner", *words], cwd=project,
        capture_output=True, text=True, env=os.environ | {"THYROID_COPY": str(project / "drive")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names(project / "drive/results") == ["alone/a.csv", "alone/n.ipynb"]

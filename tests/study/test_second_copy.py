"""Copies of results in a second folder, which may vanish, return, or hold an earlier session."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import pytest

from thyroid_lib.files import writing
from thyroid_lib.files.writing import remove_file, write_file
from thyroid_lib.models import checkpoint
from thyroid_lib.study import second_copy
from thyroid_lib.study.second_copy import bring_back, keep_chosen

PATIENCE = 60  # seconds, on a busy machine
CELLS = (
    "# Parameters of a test\nout = ''",
    "from thyroid_lib.study import platforms; platforms.start()\n"
    "from thyroid_lib.files import paths, writing\n"
    "writing.write_file(paths.project_path(out) / 'a.csv', 'a');",
)


@pytest.fixture(autouse=True)
def project(monkeypatch, tmp_path):
    """A new session, whose results lie in `here`; no platform's variables are set."""
    monkeypatch.setenv("THYROID_RESULTS", str(tmp_path / "here"))
    for name in ("THYROID_COPY", "THYROID_KEEPS", "COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(second_copy, "_copies", None)
    monkeypatch.setattr(writing, "written", [])
    return tmp_path


def keep_copies(folder) -> second_copy.Copies | None:
    os.environ["THYROID_COPY"] = str(folder)
    return keep_chosen()


def write(folder, *names: str, text: str = "") -> None:
    for name in names:
        write_file(folder / name, text or name)


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_written_below_results_is_copied_and_its_removal_too(project):
    copies = keep_copies(project / "drive")
    write_file(project / "here/study/runs/a/history.csv", "epoch\n")
    write_file(project / "elsewhere.csv", "none of it")
    assert copies.wait(PATIENCE)
    write_file(project / "here/study/runs/a/history.csv", "hcope\n")  # as long, in the same second
    assert copies.wait(PATIENCE)
    assert names(project / "drive") == ["results/study/runs/a/history.csv"]
    copy = project / "drive/results/study/runs/a/history.csv"
    assert copy.read_text("utf-8") == "hcope\n"
    remove_file(project / "here/study/runs/a/history.csv")
    assert copies.wait(PATIENCE)
    assert names(project / "drive") == []


def test_the_newest_checkpoint_is_never_missing_there(project):
    """Not while it is renamed either."""
    copies = keep_copies(project / "drive")
    run = project / "here/study/runs/a"
    kept = project / "drive/results/study/runs/a/checkpoint.pt"
    for epoch in range(3):
        checkpoint.keep(run, {"key": "k", "epoch": epoch})
        assert copies.wait(PATIENCE)
        os.replace(run / "checkpoint.pt", run / "checkpoint-previous.pt")
        assert copies.wait(PATIENCE)
        assert checkpoint.read(kept)["epoch"] == epoch
        os.replace(run / "checkpoint-previous.pt", run / "checkpoint.pt")
    assert names(project / "drive") == ["results/study/runs/a/checkpoint.pt"]


def test_a_long_training_leaves_a_drive_s_bin_empty_and_copies_few_checkpoints(
    project, monkeypatch
):
    """A Drive moves what is removed or replaced there to its bin, where it counts as used."""
    drive, in_bin, size = project / "drive", [], 100_000
    replace, unlink = os.replace, os.unlink

    def lose(path) -> None:
        if drive in Path(path).parents and os.path.isfile(path):
            in_bin.append(os.path.getsize(path))

    monkeypatch.setattr(os, "replace", lambda old, new: (lose(new), replace(old, new)))
    monkeypatch.setattr(os, "unlink", lambda path: (lose(path), unlink(path)))
    copies, run, taken = keep_copies(drive), project / "here/study/runs/a", []
    kept = drive / "results/study/runs/a/checkpoint.pt"
    for epoch in range(25):
        checkpoint.keep(run, {"key": "k", "epoch": epoch, "weights": "x" * size})
        assert copies.refresh().wait(PATIENCE)
        taken.append(checkpoint.read(kept)["epoch"])
        if epoch in (9, 19):
            os.utime(kept, (1, 1))  # ten minutes pass
    assert taken == [0] * 10 + [10] * 10 + [20] * 5
    assert copies.wait(PATIENCE)  # the session ends
    assert checkpoint.read(kept)["epoch"] == 24
    checkpoint.save(run / "model.pt", {"key": "k"})
    checkpoint.forget(run)
    assert copies.wait(PATIENCE)
    assert names(drive) == ["results/study/runs/a/model.pt"]
    assert sum(in_bin) == 0 < len(in_bin)


@pytest.mark.parametrize("killed", [False, True])
def test_a_copy_that_cannot_be_replaced_stays(project, monkeypatch, killed):
    """The Drive vanishes, or the process is killed, between the two renames."""
    copies, replace = keep_copies(project / "drive"), os.replace
    kept = project / "drive/results/a.csv"
    write(project / "here", "a.csv", text="old")
    assert copies.wait(PATIENCE)

    def fail(old, new):
        if str(new) == str(kept) and (killed or "copy" in str(old)):
            raise OSError(107, "Transport endpoint is not connected")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fail)
    write(project / "here", "a.csv", text="new")
    assert not copies.wait(PATIENCE)
    monkeypatch.setattr(os, "replace", replace)
    second_copy._tidy_up(copies)  # the next session begins
    assert (names(kept.parent), kept.read_text("utf-8")) == (["a.csv"], "old")
    assert copies.wait(PATIENCE)
    assert (names(kept.parent), kept.read_text("utf-8")) == (["a.csv"], "new")


def test_a_drive_that_disconnects_gives_one_note_and_is_updated_later(project, capsys):
    copies = keep_copies(project / "drive")
    shutil.move(project / "drive", project / "away")
    for name in ("a.csv", "b.csv"):
        write(project / "here", name)
        assert not copies.wait(PATIENCE)
    assert not (project / "drive").exists()  # nothing is created below an empty mount point
    notes = capsys.readouterr().err
    assert notes.count("it is tried again") == 1
    assert "not all results have a copy" in notes
    shutil.move(project / "away", project / "drive")
    (project / "drive/results/b.csv").mkdir()  # one file that cannot be copied stops no other
    write(project / "here", "c.csv")
    assert not copies.wait(PATIENCE)
    assert names(project / "drive/results") == ["a.csv", "c.csv"]
    (project / "drive/results/b.csv").rmdir()
    assert copies.wait(PATIENCE)
    assert names(project / "drive/results") == ["a.csv", "b.csv", "c.csv"]
    assert "succeed again" in capsys.readouterr().err


def test_a_drive_that_hangs_stops_nothing(project, monkeypatch, capsys):
    go_on = threading.Event()
    copy = second_copy.copy_whole
    monkeypatch.setattr(second_copy, "copy_whole", lambda *words: go_on.wait(30) and copy(*words))
    copies = keep_copies(project / "drive")
    write(project / "here", "a.csv")  # returns
    assert not copies.wait(0.1)
    assert "not finished after 0 s" in capsys.readouterr().err
    go_on.set()
    assert copies.wait(PATIENCE)
    assert names(project / "drive/results") == ["a.csv"]


def test_what_was_there_before_is_copied_but_not_what_is_quickly_built_again(project):
    write(project / "here", "s/store/images.npy", "s/store/store.json", "s/phantom/phantom.json",
          "s/phantom/images/a.png", "data/tg3k.zip", "s/audit/labels.csv",
          "s/.snakemake/metadata/x", "s/.snakemake/log/y")  # fmt: skip
    write(project / "drive/results/s", "old.7.partial", "new.8.partial", text="half")
    os.utime(project / "drive/results/s/old.7.partial", (1, 1))  # of an earlier session
    assert keep_copies(project / "drive").wait(PATIENCE)
    copied = ["s/.snakemake/metadata/x", "s/audit/labels.csv", "s/new.8.partial"]
    assert names(project / "drive/results") == copied


def test_weights_of_another_training_are_renamed(project, capsys):
    """Training began anew without the Drive; the Drive, mounted later, holds more epochs."""
    write_file(project / "drive/results/study/runs/a/checkpoint.pt", "epoch 20")
    write_file(project / "here/study/runs/a/checkpoint.pt", "epoch 2")
    assert keep_copies(project / "drive").wait(PATIENCE)
    there = project / "drive/results/study/runs/a"
    assert (there / "checkpoint.pt").read_text("utf-8") == "epoch 2"
    assert (there / "checkpoint.pt.earlier").read_text("utf-8") == "epoch 20"
    assert "has another checkpoint.pt of a: it stays there as .earlier" in capsys.readouterr().err


def test_an_earlier_session_is_brought_back_and_overwrites_nothing(project, capsys):
    write(project / "drive/results/study", "a/model.pt", "b/model.pt", "b/x.7.partial")
    write(project / "here/study", "a/history.csv")
    assert (bring_back(project / "drive"), bring_back(project / "drive")) == (1, 0)
    assert names(project / "here/study") == ["a/history.csv", "b/model.pt"]
    assert "1 files of an earlier session are back from" in capsys.readouterr().err


def test_half_a_folder_is_not_brought_back(project, monkeypatch, capsys):
    write(project / "drive/results/study", "a.csv", "b.csv", "deep/c.csv")
    copy = second_copy.copy_whole

    def drop(path, target):
        if path.name == "b.csv":
            raise OSError(107, "Transport endpoint is not connected")
        copy(path, target)

    monkeypatch.setattr(second_copy, "copy_whole", drop)
    assert bring_back(project / "drive") == 1
    assert names(project / "here") == ["study/deep/c.csv"]
    assert "could not be brought back: Transport endpoint" in capsys.readouterr().err


def test_results_themselves_and_a_file_get_no_copies(project, monkeypatch, capsys):
    write(project, "taken")
    assert keep_copies(project / "taken") is None
    assert "taken: a file lies where a folder is needed" in capsys.readouterr().err
    monkeypatch.setenv("THYROID_RESULTS", str(project / "drive/results"))
    assert keep_copies(project / "drive") is None
    write(project / "drive/results", "a.csv")
    assert names(project / "drive") == ["results/a.csv"]


@pytest.mark.study
def test_the_files_of_runner_and_kernel_are_copied(project):
    """Two processes: the runner writes the executed notebook, its kernel the files of the cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "n.ipynb")
    words = "notebook", "n.ipynb", "here/alone/n.ipynb", "--parameters", '{"out": "results/alone"}'
    done = subprocess.run(
        [sys.executable, "-m", "thyroid_lib.study.runner", *words], cwd=project,
        capture_output=True, text=True, env=os.environ | {"THYROID_COPY": str(project / "drive")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names(project / "drive/results") == ["alone/a.csv", "alone/n.ipynb"]

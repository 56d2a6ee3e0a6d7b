"""A study's folder: claimed by one, swept of half-written files, damaged ones put aside."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from thyroid_lib.study import checksums


@pytest.fixture
def study(tmp_path):
    """Two steps, of two files and one, with their checksums."""
    study = tmp_path / "demo"
    for name in ("runs/a b/scores.csv", "runs/a b/run.json", "compare/summary.csv"):
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_text(f"content of {name}\n")
    checksums.record(study / "checksums" / "train.sha256", sorted(study.glob("runs/*/*")))
    checksums.record(study / "checksums" / "compare.sha256", study.glob("compare/*"))
    return study


def test_a_sound_study_is_left_alone(study, capsys):
    assert checksums.mend(study) == []
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_everyone_can_check_them(study):
    command = ["sha256sum", "--check", "--strict", "checksums/train.sha256"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 2)


@pytest.mark.parametrize("damage", [b"", b"content of runs/a b/scores.csw\n", b"longer" * 1000])
def test_what_changed_is_named_and_put_aside(study, damage, capsys):
    scores = study / "runs" / "a b" / "scores.csv"
    scores.write_bytes(damage)
    assert checksums.mend(study) == ["runs/a b/scores.csv"]
    assert capsys.readouterr().err.startswith("note: runs/a b/scores.csv of demo is not the file")
    assert not scores.exists()
    assert (scores.parent / "scores.csv.damaged").read_bytes() == damage
    assert (scores.parent / "run.json").exists()


@pytest.mark.parametrize("instead", ["nothing", "folder", "link"])
def test_a_step_whose_file_is_gone_is_done_again(study, instead):
    path, notebook = study / "compare" / "summary.csv", study / "notebooks" / "compare.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    checksums.record(study / "checksums" / "compare.sha256", [notebook, path])
    path.unlink()
    if instead == "folder":
        (path / "more").mkdir(parents=True)
    elif instead == "link":
        path.symlink_to("/dev/null")
    assert checksums.mend(study) == ([] if instead == "nothing" else ["compare/summary.csv"])
    assert not notebook.exists()
    assert not os.path.lexists(path)


def test_figures_and_weights_are_recorded_beside_the_tables(study, capsys):
    (study / "runs" / "a b" / "model.pt").write_text("weights")
    (study / "runs" / "a b" / "curves.png").write_text("a figure")
    (study / "runs" / "a b" / "model.pt.damaged").write_text("of before")
    record = study / "checksums" / "train.sha256"
    checksums.record(record, [study / "runs" / "a b" / "scores.csv"])
    names = [line.split("  ")[1] for line in record.read_text().splitlines()]
    assert [Path(name).name for name in names] == [
        "curves.png", "model.pt", "run.json", "scores.csv",
    ]  # fmt: skip
    (study / "runs" / "a b" / "model.pt").write_text("other weights")
    assert checksums.mend(study) == []  # they stay: they are checked when they are read
    assert "model.pt of demo is not the file that was written" in capsys.readouterr().err
    assert (study / "runs" / "a b" / "model.pt").exists()


@pytest.mark.parametrize("damage", [lambda t: t[:-7], lambda t: "x" + t, lambda t: ""])
def test_a_damaged_list_of_checksums_has_its_step_done_again(study, damage, capsys):
    record, notebook = study / "checksums" / "train.sha256", study / "notebooks" / "train.ipynb"
    notebook.parent.mkdir()
    notebook.write_text("{}")
    record.write_text(damage(record.read_text()))
    checksums.mend(study)
    assert not record.exists()
    assert not notebook.exists()
    assert "checksums/train.sha256 of demo is damaged" in capsys.readouterr().err
    assert (study / "compare" / "summary.csv").exists()


def test_a_list_cannot_point_out_of_the_study(study, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    record = study / "checksums" / "compare.sha256"
    for name in ("../mine.txt", str(tmp_path / "mine.txt")):
        record.write_text(f"{'0' * 64}  {name}\n")
        checksums.mend(study)
        assert (tmp_path / "mine.txt").read_text() == "mine"


def test_half_written_files_and_a_report_of_failures_go(study):
    partial = study / "runs" / "a b" / "model.pt.123.partial"
    partial.write_text("half")
    (study / "old.partial").write_text("half")
    (study / f"report.html.{os.getpid()}.partial").write_text("half, and somebody is at it")
    for name in ("report.html", checksums.UNFINISHED):
        (study / name).parent.mkdir(exist_ok=True)
        (study / name).write_text("1 of 5 steps failed")
    checksums.mend(study)
    assert not partial.exists()
    assert [path.name for path in study.glob("*.partial")] == [f"report.html.{os.getpid()}.partial"]
    assert not (study / "report.html").exists()
    assert not (study / checksums.UNFINISHED).exists()


def test_one_process_at_a_time(tmp_path):
    claimed = checksums.claim(tmp_path / "demo")
    with pytest.raises(BlockingIOError, match=rf"demo: another start .*process {os.getpid()}"):
        checksums.claim(tmp_path / "demo")
    claimed.close()
    checksums.claim(tmp_path / "demo").close()


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(OSError, match="a file lies where a folder is needed"):
        checksums.claim(tmp_path / "demo")


def test_times_of_the_future_are_set_to_now(study, capsys):
    files = sorted(path for path in study.rglob("*") if path.is_file())
    os.utime(files[0], (4e9, 4e9))
    os.utime(files[1], (1e9, 1e9))
    checksums.settle_times([*files, study / "none.csv"])
    assert abs(files[0].stat().st_mtime - time.time()) < 10
    assert files[1].stat().st_mtime == 1e9
    assert capsys.readouterr().err.startswith("note: 1 files bear times of the future")

"""A study's folder: locked by one workflow, free of half-written files, damaged files put aside."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from thyroid_lib.files.writing import write_file
from thyroid_lib.study import checksums

SCORES = "runs/a b/scores.csv"


@pytest.fixture
def study(tmp_path):
    """Two steps, of two files and one, with notebooks and checksums."""
    study = tmp_path / "demo"
    for name in (SCORES, "runs/a b/run.json", "compare/summary.csv"):
        write_file(study / name, f"content of {name}\n")
    for step, file in (("train", SCORES), ("compare", "compare/summary.csv")):
        notebook = write_file(study / "notebooks" / f"{step}.ipynb", "{}")
        checksums.record(study / "checksums" / f"{step}.sha256", [notebook, study / file])
    return study


def runs_again(study: Path) -> list[str]:
    there = {path.stem for path in study.glob("notebooks/*.ipynb")}
    return sorted({"train", "compare"} - there)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_an_intact_study_is_left_alone_and_everyone_can_check_it(study, capsys):
    assert (checksums.mend(study), runs_again(study), capsys.readouterr().err) == ([], [], "")
    command = ["sha256sum", "--check", "--strict", "checksums/train.sha256"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(": OK")) == (0, 3)


@pytest.mark.parametrize("damage", [b"", b"content of runs/a b/scores.csw\n"])
def test_what_changed_is_named_and_put_aside(study, damage, capsys):
    (study / SCORES).write_bytes(damage)
    assert checksums.mend(study) == [SCORES]
    assert capsys.readouterr().err.startswith(f"note: {SCORES} of demo is not the file")
    assert not (study / SCORES).exists()
    assert (study / f"{SCORES}.damaged").read_bytes() == damage
    assert runs_again(study) == ["train"]


@pytest.mark.parametrize("instead", ["nothing", "folder", "link"])
def test_a_step_whose_file_is_gone_is_done_again(study, instead):
    path = study / "compare" / "summary.csv"
    path.unlink()
    if instead == "folder":
        (path / "more").mkdir(parents=True)
    elif instead == "link":
        path.symlink_to("/dev/null")
    assert checksums.mend(study) == ([] if instead == "nothing" else ["compare/summary.csv"])
    assert runs_again(study) == ["compare"]
    assert not os.path.lexists(path)


def test_figures_and_weights_are_recorded_beside_the_tables(study, capsys):
    run = study / "runs" / "a b"
    for name in ("model.pt", "curves.png", "model.pt.damaged"):
        (run / name).write_text(f"content of {name}")
    record = study / "checksums" / "train.sha256"
    checksums.record(record, [run / "scores.csv"])
    names = [Path(name).name for name in checksums.read(record)]
    assert names == ["curves.png", "model.pt", "run.json", "scores.csv"]
    (run / "model.pt").write_text("other weights")
    assert checksums.mend(study) == []  # they stay: they are checked when they are read
    assert "model.pt of demo is not the file that was written" in capsys.readouterr().err
    assert runs_again(study) == ["train"]


# Cut off, altered, empty; names out of the study are tests/tools/test_gather.py's.
@pytest.mark.parametrize("damage", [lambda x: x[:-7], lambda x: f"x{x}", lambda x: ""])
def test_a_damaged_list_of_checksums_has_its_step_done_again(study, damage, capsys):
    record = study / "checksums" / "train.sha256"
    record.write_text(damage(record.read_text()))
    assert checksums.read(record) is None
    checksums.mend(study)
    assert not record.exists()
    assert runs_again(study) == ["train"]
    assert "checksums/train.sha256 of demo is damaged" in capsys.readouterr().err


def test_half_written_files_and_a_report_of_failures_go(study):
    (study / "runs" / "a b" / "model.pt.123.partial").write_text("half")
    (study / "old.partial").mkdir()
    (study / f"a.{2**22 + 1}.partial").touch()
    for name in ("report.html", checksums.UNFINISHED):
        write_file(study / name, "1 of 5 steps failed")
    (study / f"report.html.{os.getpid()}.partial").write_text("half, by a process at work")
    records = study / checksums.RECORDS
    for name, content in {"good": b"{}", "empty": b"", "zeros": b"\0\0", "bits": b"\xff"}.items():
        write_file(records / name, content)
    checksums.mend(study)
    left = [path.name for path in study.rglob("*.partial")]
    assert left == [f"report.html.{os.getpid()}.partial"]
    assert [path.name for path in records.iterdir()] == ["good"]
    assert not (study / "report.html").exists()
    assert not (study / checksums.UNFINISHED).exists()


def test_times_of_the_future_are_set_to_now(study, capsys):
    late, early = study / SCORES, study / "compare" / "summary.csv"
    os.utime(late, (4e9, 4e9))
    os.utime(early, (1e9, 1e9))
    checksums.settle_times(study)
    assert late.stat().st_mtime <= time.time()
    assert early.stat().st_mtime == 1e9
    assert capsys.readouterr().err.startswith("note: 1 files bear times of the future")

"""Publishing: tables alone are copied, of an unfinished study those of its finished runs."""

import json
import os

import pytest

import publish as tool  # tools/publish.py
from thyroid_lib.files.fingerprint import file_digest


def write(run, key="k", **about):
    """Write a run's table, weights and picture, and its run.json."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "scores.csv").write_text(f"dice\n{run.name}\n")
    (run / "model.pt").write_bytes(b"weights")
    (run / "cases.png").write_bytes(b"picture")
    files = {"scores.csv": file_digest(run / "scores.csv")}
    (run / "run.json").write_text(json.dumps(about | {"key": key, "files": files}))


@pytest.fixture
def study(tmp_path):
    """A study with two finished runs and one that was begun."""
    folder = tmp_path / "results" / "small"
    for name, about in {"a-seed0": {}, "b-seed0": {"reused": "other"}, "c-seed0": {}}.items():
        write(folder / "runs" / name, **about)
    (folder / "runs" / "c-seed0" / "run.json").unlink()
    (folder / "compare").mkdir()
    (folder / "compare" / "summary.csv").write_text("dice\n1\n")
    return folder


def finish(study):
    (study / "report.html").write_text("whole")
    late = max(path.stat().st_mtime for path in study.glob("runs/*/run.json")) + 1
    os.utime(study / "report.html", (late, late))


def held(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_of_an_unfinished_study_the_tables_of_its_finished_runs(study, tmp_path):
    said = tool.publish(study, tmp_path / "reference")
    both = [
        f"runs/{r}/{name}" for r in ("a-seed0", "b-seed0") for name in ("run.json", "scores.csv")
    ]
    assert held(tmp_path / "reference" / "small") == both
    assert "runs copied 2, kept 0; no more" in said
    finish(study)
    assert "the study's tables" in tool.publish(study, tmp_path / "reference")
    write(study / "runs" / "c-seed0")  # a run that the report does not know
    os.utime(study / "runs" / "c-seed0" / "run.json", (4e9, 4e9))
    assert "runs copied 2, kept 1; no more" in tool.publish(study, tmp_path / "reference")


def test_what_is_there_stays_and_what_was_made_anew_replaces_it(study, tmp_path):
    to = tmp_path / "reference" / "small"
    for name in ("a-seed0", "b-seed0", "d-seed1"):
        write(to / "runs" / name)
        (to / "runs" / name / "classes.csv").write_text("of the former run")
    (to / "compare").mkdir()
    (to / "compare" / "classes.csv").write_text("of the former study")
    finish(study)
    said = tool.publish(study, to.parent)
    assert said == f"{to}: runs copied 1, kept 1; the study's tables"
    assert held(to / "runs" / "a-seed0") == ["run.json", "scores.csv"]  # made anew
    assert "classes.csv" in held(to / "runs" / "b-seed0")  # was taken from committed tables
    assert "classes.csv" in held(to / "runs" / "d-seed1")  # of another machine
    assert held(to / "compare") == ["summary.csv"]


@pytest.mark.parametrize("there", ["half of it", "of another training", "with another table"])
def test_a_reused_run_is_copied_where_what_is_there_does_not_fit(study, tmp_path, there):
    kept = tmp_path / "reference" / "small" / "runs" / "b-seed0"
    write(kept, key="other" if there == "of another training" else "k")
    if there == "half of it":
        (kept / "run.json").unlink()
    if there == "with another table":
        (kept / "scores.csv").write_text("dice\n0.9\n")
    assert "runs copied 2, kept 0" in tool.publish(study, tmp_path / "reference")
    assert (kept / "scores.csv").read_text() == "dice\nb-seed0\n"
    assert held(kept) == ["run.json", "scores.csv"]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", "[]", "run.json is damaged"),
        ("run.json", "null", "run.json is damaged"),
        ("run.json", "{", "run.json is damaged"),
        ("scores.csv", "dice\n0.99\n", "scores.csv is not the file that was written"),
        ("scores.csv", None, "scores.csv is not the file that was written"),
    ],
)
def test_a_run_that_is_not_as_it_was_written_is_named(study, tmp_path, file, content, said):
    path = study / "runs" / "a-seed0" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=said):
        tool.publish(study, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


@pytest.mark.parametrize("empty", ["nothing", "begun"])
def test_a_study_without_a_finished_run_is_refused(study, tmp_path, empty):
    folder = study.parent / "nothing"
    if empty == "begun":
        write(folder / "runs" / "c-seed0")
        (folder / "runs" / "c-seed0" / "run.json").unlink()
    with pytest.raises(ValueError, match="has no finished run: make study"):
        tool.publish(folder, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_the_committed_folder_is_not_published_into_itself(study):
    before = held(study)
    with pytest.raises(ValueError, match="is the committed folder itself"):
        tool.publish(study, study.parent)
    assert held(study) == before

"""Publishing: tables alone are copied, of an unfinished study those of its finished runs."""

import json

import pytest

import publish as tool  # tools/publish.py


@pytest.fixture
def study(tmp_path):
    """A study with two finished runs and one that was begun."""
    folder = tmp_path / "results" / "small"
    for name, about in {"a-seed0": {}, "b-seed0": {"reused": "other"}, "c-seed0": None}.items():
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "scores.csv").write_text(f"dice\n{name}\n")
        (run / "model.pt").write_bytes(b"weights")
        (run / "cases.png").write_bytes(b"picture")
        if about is not None:
            (run / "run.json").write_text(json.dumps(about))
    (folder / "compare").mkdir()
    (folder / "compare" / "summary.csv").write_text("dice\n1\n")
    return folder


def held(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_of_an_unfinished_study_the_tables_of_its_finished_runs(study, tmp_path):
    said = tool.publish(study, tmp_path / "reference")
    both = [
        f"runs/{run}/{name}"
        for run in ("a-seed0", "b-seed0")
        for name in ("run.json", "scores.csv")
    ]
    assert held(tmp_path / "reference" / "small") == both
    assert "runs copied 2, kept 0; no more, as there is no report.html yet" in said


def test_what_is_there_stays_and_what_was_made_anew_replaces_it(study, tmp_path):
    to = tmp_path / "reference" / "small"
    for name in ("a-seed0", "b-seed0", "d-seed1"):
        (to / "runs" / name).mkdir(parents=True)
        (to / "runs" / name / "classes.csv").write_text("of the former run")
    (to / "compare").mkdir()
    (to / "compare" / "classes.csv").write_text("of the former study")
    (study / "report.html").write_text("whole")
    said = tool.publish(study, to.parent)
    assert said == f"{to}: runs copied 1, kept 1; the study's tables"
    assert held(to / "runs" / "a-seed0") == ["run.json", "scores.csv"]  # made anew
    assert held(to / "runs" / "b-seed0") == ["classes.csv"]  # was taken from committed tables
    assert held(to / "runs" / "d-seed1") == ["classes.csv"]  # of another machine
    assert held(to / "compare") == ["summary.csv"]


@pytest.mark.parametrize("empty", ["nothing", "begun"])
def test_a_study_without_a_finished_run_is_refused(study, tmp_path, empty):
    folder = study.parent / "nothing"
    if empty == "begun":
        (folder / "runs" / "c-seed0").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no finished run: make study"):
        tool.publish(folder, tmp_path / "reference")
    assert not (tmp_path / "reference").exists()

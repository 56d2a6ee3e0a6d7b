"""Results of several machines become one: what is taken, what is refused, and that it is whole."""

import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

from thyroid_lib import checkpoint, safekeeping

pytest.importorskip("snakemake")
ROOT = Path(__file__).parent.parent

import gather  # noqa: E402

A, B = "unet-grouped-fold0-seed0", "resunet-grouped-fold0-seed0"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A study of two runs, in a project's folder that is empty."""
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "here"))
    monkeypatch.delenv("THYROID_RESULTS", raising=False)
    config = yaml.safe_load((ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8"))
    config |= {"models": ["unet", "resunet"], "protocols": ["grouped"], "seeds": [0]}
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here" / "results" / "demo"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def session(folder: Path, *, done=(), begun=None, store: str = "the store", scores: str = "0.9"):
    """What one kernel leaves: these runs done, those begun with so many epochs."""
    study = folder / "results" / "demo"
    made = [write(study / "store" / name, store) for name in ("store.json", "images.npy")]
    made.append(write(study / "notebooks" / "1-preprocess.ipynb", "{}"))
    safekeeping.record(study / "checksums" / "1-preprocess.sha256", made)
    write(study / "logs" / "1-preprocess.ipynb", "a log")
    for run in done:
        made = [write(study / "runs" / run / name, scores) for name in (*gather.TABLES, "run.json")]
        made.append(write(study / "notebooks" / f"3-train-{run}.ipynb", "{}"))
        write(study / "runs" / run / "model.pt", "weights")
        write(study / "provenance" / f"3-train-{run}.json", "{}")
        safekeeping.record(study / "checksums" / f"3-train-{run}.sha256", made)
    for run, (epochs, steps) in (begun or {}).items():
        (study / "runs" / run).mkdir(parents=True)
        within = {"steps": steps} if steps else None
        checkpoint.save(study / "runs" / run / "checkpoint.pt", {"epoch": epochs, "within": within})
    return folder


def reached(study: Path, run: str) -> tuple:
    return gather._reached(checkpoint.read(study / "runs" / run / "checkpoint.pt"))


def contents(study: Path) -> dict:
    files = (path for path in study.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(study)): path.read_bytes() for path in files}


def test_two_sessions_become_one_study(settings, here, tmp_path):
    first = session(tmp_path / "one", done=[A])
    second = session(tmp_path / "two", begun={B: (3, 0)})
    said = gather.gather(settings, [first, second])
    assert f"3-train-{A} is done (from one)" in said
    assert "1 of 2 runs are done" in said
    assert f"{B}: goes on after 3 epochs" in said
    assert f"next: make kaggle PARAMETERS={settings}" in said
    names = set(contents(here))
    assert {f"notebooks/3-train-{A}.ipynb", f"provenance/3-train-{A}.json"} <= names
    assert {f"runs/{A}/model.pt", f"runs/{B}/checkpoint.pt", "store/images.npy"} <= names
    assert not any(name.startswith("logs/") for name in names)
    assert safekeeping.mend(here) == []  # and all is as it was written down
    before = contents(here)
    assert gather.gather(settings, [first, second]).startswith("nothing new")
    assert contents(here) == before


def test_what_is_finished_wins_and_then_what_came_furthest(settings, here, tmp_path):
    sources = [
        session(tmp_path / "1", begun={A: (5, 0), B: (2, 4)}),
        session(tmp_path / "2", begun={A: (9, 0), B: (2, 7)}),
        session(tmp_path / "3", begun={A: (7, 0), B: (1, 9)}),
    ]
    gather.gather(settings, sources)
    assert (reached(here, A), reached(here, B)) == ((9, 0), (2, 7))
    # less is never brought over more
    assert gather.gather(settings, [sources[0]]).startswith("nothing new")
    assert reached(here, A) == (9, 0)
    said = gather.gather(settings, [session(tmp_path / "4", done=[A])])
    assert f"3-train-{A} is done (from 4)" in said
    assert not (here / "runs" / A / "checkpoint.pt").exists()
    # nor what is begun over what is done
    gather.gather(settings, [sources[1]])
    assert not (here / "runs" / A / "checkpoint.pt").exists()


def test_two_results_of_one_run_are_refused_and_nothing_is_written(settings, here, tmp_path):
    sources = [
        session(tmp_path / "one", done=[A, B]),
        session(tmp_path / "two", done=[A], scores="0.8"),
    ]
    with pytest.raises(ValueError, match=f"{A}: finished in one, two, but its history.csv differs"):
        gather.gather(settings, sources)
    assert contents(here) == {}
    sources[1] = session(tmp_path / "three", done=[A])  # the same bytes are fine
    assert "next: make study" in gather.gather(settings, sources)


def test_other_frames_are_refused(settings, here, tmp_path):
    sources = [
        session(tmp_path / "one", done=[A]), session(tmp_path / "two", done=[B], store="others")
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"store/store.json differs between one, two: these"):
        gather.gather(settings, sources)
    assert contents(here) == {}


@pytest.mark.parametrize("name", ["scores.csv", "run.json"])
def test_a_damaged_run_is_named_and_left_out(settings, here, tmp_path, name, capsys):
    one = session(tmp_path / "one", done=[A, B])
    (one / "results" / "demo" / "runs" / A / name).write_text("0.7")
    said = gather.gather(settings, [one])
    assert f"note: one: 3-train-{A}: runs/{A}/{name} is missing or not" in capsys.readouterr().err
    assert "1 of 2 runs are done" in said
    assert f"{A}: not begun" in said


def test_a_damaged_checkpoint_is_no_progress(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", begun={A: (4, 0)})
    two = session(tmp_path / "two", begun={A: (8, 0)})
    path = two / "results" / "demo" / "runs" / A / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    gather.gather(settings, [one, two])
    assert reached(here, A) == (4, 0)
    assert "note: two: checkpoint.pt" in capsys.readouterr().err


def test_a_zip_is_as_good_as_a_folder(settings, here, tmp_path):
    one = session(tmp_path / "one", done=[A])
    shutil.make_archive(str(tmp_path / "output"), "zip", one)
    said = gather.gather(settings, [tmp_path / "output.zip"])
    assert f"3-train-{A} is done (from output.zip)" in said
    assert contents(here)[f"runs/{A}/model.pt"] == b"weights"


def test_frames_that_were_left_out_are_no_damage(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A])
    (one / "results" / "demo" / "store" / "images.npy").unlink()
    gather.gather(settings, [one])
    assert capsys.readouterr().err == ""
    assert not (here / "store").exists()


def test_what_cannot_be_gathered_is_said(settings, here, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing of the study demo in 1 sources"):
        gather.gather(settings, [tmp_path / "empty"])
    with pytest.raises(ValueError, match="there is no such folder or zip"):
        gather.gather(settings, [tmp_path / "none"])
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ValueError, match=r"cut.zip: is no zip that can be read"):
        gather.gather(settings, [tmp_path / "cut.zip"])
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr("../../mine.txt", "not mine")
    with pytest.raises(ValueError, match="leads out of it"):
        gather.gather(settings, [tmp_path / "evil.zip"])
    assert not here.exists()


OUTSIDE = [
    "runs/../../../PWNED.mk",
    "./../PWNED.mk",
    "../PWNED.mk",
    "runs/..",
    "/tmp/PWNED.mk",
    "..\\PWNED.mk",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_that_leads_out_writes_nothing(settings, here, tmp_path, name, capsys):
    one = session(tmp_path / "one", done=[A, B])
    study = one / "results" / "demo"
    write(one / "PWNED.mk", "not mine")
    (study / "..\\PWNED.mk").write_text("not mine")
    record = study / "checksums" / f"3-train-{A}.sha256"
    digest = gather.file_digest(one / "PWNED.mk")
    record.write_text(f"{record.read_text()}{digest}  {name}\n")
    said = gather.gather(settings, [one])
    assert f"checksums/3-train-{A}.sha256 is damaged: left out" in capsys.readouterr().err
    assert f"{A}: not begun" in said
    assert not list((tmp_path / "here").rglob("*PWNED*"))
    # nor does a study's own: the step is done again, and what lies outside is let alone
    safekeeping.mend(study)
    assert not (study / "notebooks" / f"3-train-{A}.ipynb").exists()
    assert (one / "PWNED.mk").read_text() == "not mine"


def test_dots_in_a_name_lead_nowhere():
    for name in ("runs/a..b/..c", "runs/c../x", "...", "runs/a b/scores.csv", "runs/.x"):
        assert safekeeping.LINE.fullmatch(f"{'0' * 64}  {name}")[2] == name


def test_nothing_is_brought_through_a_link(tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "runs").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        gather._bring(write(tmp_path / "from", "x"), study, "runs/to")
    assert not (tmp_path / "to").exists()


def test_a_study_at_work_is_let_alone(settings, here, tmp_path):
    lock = safekeeping.claim(here)
    with pytest.raises(BlockingIOError, match="another start of this study is at work"):
        gather.gather(settings, [session(tmp_path / "one", done=[A])])
    lock.close()

"""Results of several machines become one: what is taken, what is refused, and that it is whole."""

import json
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from thyroid_lib.models import checkpoint
from thyroid_lib.study import checksums

pytest.importorskip("snakemake")
ROOT = Path(__file__).parents[2]

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


def settings_of(run: str, changes: dict) -> dict:
    """What run.json holds of a run of the demo, but for these changes."""
    config = yaml.safe_load((ROOT / "parameters" / "demo.yaml").read_text(encoding="utf-8"))
    same = ("size", "resize", "width", "epochs", "batch_size", "lr", "selection", "augment")
    return {key: config[key] for key in (*same, "val_share", "folds")} | {
        "model": run.split("-")[0], "protocol": "grouped", "fold": 0, "seed": 0, "mend": "text",
        "device": "cpu", "precision": "fp32", "threads": 1, "run_id": run,
    } | changes  # fmt: skip


def session(
    folder: Path,
    *,
    done=(),
    begun=None,
    store: str = "the store",
    scores: str = "0.9",
    about: dict = MappingProxyType({}),
):
    """What one kernel leaves: these runs done, those begun with so many epochs."""
    study = folder / "results" / "demo"
    made = [write(study / "store" / name, store) for name in ("store.json", "images.npy")]
    made.append(write(study / "notebooks" / "1-preprocess.ipynb", "{}"))
    checksums.record(study / "checksums" / "1-preprocess.sha256", made)
    write(study / "logs" / "1-preprocess.ipynb", "a log")
    for run in done:
        made = [write(study / "runs" / run / name, scores) for name in gather.TABLES]
        made.append(write(study / "runs" / run / "run.json", json.dumps(settings_of(run, about))))
        made.append(write(study / "notebooks" / f"3-train-{run}.ipynb", "{}"))
        write(study / "runs" / run / "model.pt", "weights")
        write(study / gather._snakemake_record(f"notebooks/3-train-{run}.ipynb"), "{}")
        checksums.record(study / "checksums" / f"3-train-{run}.sha256", made)
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
    record = gather._snakemake_record(f"notebooks/3-train-{A}.ipynb")
    assert {f"notebooks/3-train-{A}.ipynb", str(record)} <= names
    assert {f"runs/{A}/model.pt", f"runs/{B}/checkpoint.pt", "store/images.npy"} <= names
    assert not any(name.startswith("logs/") for name in names)
    assert checksums.mend(here) == []  # and all is as it was written down
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


def test_a_run_of_other_settings_is_none_of_this_study(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A], about={"epochs": 1, "lr": 0.5})
    two = session(tmp_path / "two", done=[B], about={"threshold": 0.4, "threads": 8})
    said = gather.gather(settings, [one, two])
    assert f"{A}: epochs 1, the study has 20; lr 0.5, the study has 0.006: left out" in (
        capsys.readouterr().err
    )
    assert f"{A}: not begun" in said
    assert f"3-train-{B} is done (from two)" in said  # scores alone are made anew
    # the one that lies here is none, either, and gives way to what is asked for
    session(tmp_path / "here", done=[A], about={"epochs": 1})
    said = gather.gather(settings, [session(tmp_path / "three", done=[A])])
    assert f"3-train-{A} is done (from three)" in said
    assert json.loads((here / "runs" / A / "run.json").read_text())["epochs"] == 20


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("width", 9, False), ("seed", 1, False), ("mend", "", False), ("device", "cuda", False),
        ("folds", 5, False), ("precision", "bf16", True), ("tolerance_px", 3, True),
    ],
)  # fmt: skip
def test_what_makes_another_training(settings, tmp_path, key, value, same):
    config = gather.read_study([settings], overrides={"device": "cpu", "precision": "auto"})
    (tmp_path / "run.json").write_text(json.dumps(settings_of(A, {key: value})))
    assert (gather.differing(tmp_path, A, config) == "") == same
    assert same or gather.differing(tmp_path, A, config).startswith(f"{key} ")


def test_the_reported_protocol_has_frames_and_a_selection_of_its_own(tmp_path):
    config = settings_of(A, {"models": ["unet"], "protocols": ["reported"], "seeds": [0]})
    config |= {"mend": ["text"], "device": "auto", "precision": "auto"}
    about = settings_of(A, {"protocol": "reported", "selection": "test", "mend": "", "folds": 9})
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert gather.differing(tmp_path, "unet-reported-fold0-seed0", config) == ""


def test_a_record_that_lacks_a_table_is_no_finished_run(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A, B])
    record = one / "results" / "demo" / "checksums" / f"3-train-{A}.sha256"
    lines = [line for line in record.read_text().splitlines(True) if "scores.csv" not in line]
    record.write_text("".join(lines))
    assert f"{A}: not begun" in gather.gather(settings, [one])
    assert f"runs/{A}/scores.csv is missing" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a/output", "b/output"), ("results", "b"), ("x", "x/y")])
def test_equal_names_hide_no_contradiction(settings, here, tmp_path, names):
    first = session(tmp_path / names[0], done=[A])
    second = session(tmp_path / names[1], done=[A], scores="0.8")
    with pytest.raises(ValueError, match=f"finished in .*{names[0]}.*, .*{names[1]}.*, but"):
        gather.gather(settings, [first, second])
    assert contents(here) == {}


def test_a_source_named_results_is_not_the_study_here(settings, here, tmp_path):
    session(tmp_path / "here", done=[A])
    before = contents(here)
    other = session(tmp_path / "results", done=[A], scores="0.8")
    with pytest.raises(ValueError, match=f"finished in {here}, results, but its history.csv"):
        gather.gather(settings, [other])
    with pytest.raises(ValueError, match=r"store.json differs between"):
        gather.gather(settings, [session(tmp_path / "b" / "results", done=[B], store="others")])
    assert contents(here) == before


@pytest.mark.parametrize("kind", ["deflated", "lzma", "bzip2", "encrypted"])
def test_a_damaged_zip_is_named(settings, here, tmp_path, kind):
    how = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
    path = tmp_path / "cut.zip"
    with zipfile.ZipFile(path, "w", how) as zipped:
        zipped.writestr("results/demo/runs/x", "frames " * 999)
    raw = bytearray(path.read_bytes())
    if kind == "encrypted":  # the flag, in the file's header and in the directory
        raw[6] |= 1
        raw[raw.index(b"PK\1\2") + 8] |= 1
    else:
        begin = 30 + len("results/demo/runs/x")
        for place in range(begin, raw.index(b"PK\1\2")):
            raw[place] = 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"cut.zip: is no zip that can be read"):
        gather.gather(settings, [path])


def test_what_comes_next_has_the_settings_that_were_given(settings, here, tmp_path):
    one = session(tmp_path / "one", done=[A], about={"epochs": 3, "lr": 0.001})
    given = {"epochs": 3, "lr": 0.001, "models": ["unet", "resunet"], "pin_instructions": True}
    said = gather.gather(settings, [one], given)
    word = 'SET="epochs=3 lr=0.001 models=[unet,resunet] pin_instructions=true"'
    assert f"next: make kaggle PARAMETERS={settings} {word} OWNER=" in said
    assert f"or, to finish here: make study PARAMETERS={settings} {word}" in said
    two = session(tmp_path / "two", done=[B], about={"epochs": 3, "lr": 0.001})
    assert f"next: make study PARAMETERS={settings} {word}" in gather.gather(settings, [two], given)


def test_words_are_paths_or_what_a_shell_would_make_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("output-2", "output-1 (1)", "a[1]"):
        (tmp_path / name).mkdir()
    assert gather.matching(["output-*", "a[1]", "none-*", "~/a*"]) == [
        Path("output-1 (1)"), Path("output-2"), Path("a[1]"), Path("none-*"), tmp_path / "a[1]",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["x;touch PWNED", "x'; touch PWNED; '", "out-*", "~/x.zip", "(x)"])
def test_make_hands_words_over_as_they_are(word):
    command = [
        "make",
        "-n",
        "--no-print-directory",
        "-o",
        ".venv/.ready",
        "gather",
        f"FROM=first {word}",
        "SET=lr=1",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout.replace("\\\n", " "))
    assert words[-len(word.split()) - 2 :] == ["--", "first", *word.split()]
    assert words[2:6] == ["--parameters", "parameters/demo.yaml", "--set", "lr=1"]


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
    checksums.mend(study)
    assert not (study / "notebooks" / f"3-train-{A}.ipynb").exists()
    assert (one / "PWNED.mk").read_text() == "not mine"


def test_dots_in_a_name_lead_nowhere():
    for name in ("runs/a..b/..c", "runs/c../x", "...", "runs/a b/scores.csv", "runs/.x"):
        assert checksums.LINE.fullmatch(f"{'0' * 64}  {name}")[2] == name


def test_nothing_is_brought_through_a_link(tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "runs").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        gather._bring(write(tmp_path / "from", "x"), study, "runs/to")
    assert not (tmp_path / "to").exists()


def test_a_study_at_work_is_let_alone(settings, here, tmp_path):
    lock = checksums.claim(here)
    with pytest.raises(BlockingIOError, match="another start of this study is at work"):
        gather.gather(settings, [session(tmp_path / "one", done=[A])])
    lock.close()

"""Merging the results of several machines: what is taken, what is refused, and why."""

import json
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

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
    return {key: config[key] for key in (*gather.TRAINED, "folds")} | {
        "model": run.split("-")[0], "protocol": "grouped", "fold": 0, "seed": 0, "mend": "text",
        "device": "cpu", "precision": "fp32", "threads": 1, "run_id": run,
    } | changes  # fmt: skip


def session(folder: Path, *, done=(), begun=None, store="the store", scores="0.9", about=None):
    """What one kernel leaves: finished runs, and unfinished ones with so many epochs."""
    study = folder / "results" / "demo"
    files = [write(study / "store" / name, store) for name in ("store.json", "images.npy")]
    files.append(write(study / "notebooks" / "1-preprocess.ipynb", "{}"))
    checksums.record(study / "checksums" / "1-preprocess.sha256", files)
    write(study / "logs" / "1-preprocess.ipynb", "a log")
    for run in done:
        step = f"3-train-{run}"
        files = [write(study / "runs" / run / name, scores) for name in gather.TABLES]
        text = json.dumps(settings_of(run, about or {}))
        files.append(write(study / "runs" / run / "run.json", text))
        files.append(write(study / "notebooks" / f"{step}.ipynb", "{}"))
        write(study / "runs" / run / "model.pt", "weights")
        for name in gather.records_of([f"notebooks/{step}.ipynb"]):
            write(study / name, "{}")
        checksums.record(study / "checksums" / f"{step}.sha256", files)
    for run, state in (begun or {}).items():
        state = state if isinstance(state, dict) else {"epoch": state}
        (study / "runs" / run).mkdir(parents=True)
        checkpoint.save(study / "runs" / run / "checkpoint.pt", state)
    return folder


def epochs_of(study: Path, run: str) -> int:
    return checkpoint.read(study / "runs" / run / "checkpoint.pt")["epoch"]


def contents(study: Path) -> dict:
    files = (path for path in study.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(study)): path.read_bytes() for path in files}


def test_two_sessions_become_one_study(settings, here, tmp_path):
    sources = [session(tmp_path / "one", done=[A]), session(tmp_path / "two", begun={B: 3})]
    lines = gather.gather(settings, sources).splitlines()
    assert lines[1:] == [
        f"3-train-{A} is done (from one)",
        f"{B} goes on after 3 epochs (from two)",
        "1 of 2 runs are done",
        f"{B}: goes on after 3 epochs",
        f"next: make kaggle PARAMETERS={settings} OWNER=<your name>",
        f"or, to finish here: make study PARAMETERS={settings}",
    ]
    names = set(contents(here))
    assert set(gather.records_of([f"notebooks/3-train-{A}.ipynb"])) <= names
    assert {f"notebooks/3-train-{A}.ipynb", f"runs/{A}/model.pt", "store/images.npy"} <= names
    assert not any(name.startswith("logs/") for name in names)
    assert checksums.mend(here) == []  # every file has its recorded checksum
    before = contents(here)
    assert gather.gather(settings, sources).startswith("nothing new")
    assert contents(here) == before


def test_finished_runs_go_before_unfinished_ones_and_more_epochs_before_fewer(
    settings, here, tmp_path
):
    begun = ({A: 5, B: 2}, {A: 9, B: 4}, {A: 7, B: 1})
    sources = [session(tmp_path / f"{n}", begun=each) for n, each in enumerate(begun)]
    gather.gather(settings, sources)
    assert (epochs_of(here, A), epochs_of(here, B)) == (9, 4)
    assert gather.gather(settings, [sources[0]]).startswith("nothing new")
    lines = gather.gather(settings, [session(tmp_path / "4", done=[A])])
    assert f"3-train-{A} is done (from 4)" in lines
    gather.gather(settings, [sources[1]])
    assert not (here / "runs" / A / "checkpoint.pt").exists()


def test_another_training_of_an_unfinished_run_is_left_out(settings, here, tmp_path, capsys):
    for name, epochs in (("one", 2), ("two", 5)):
        state = {"epoch": epochs, "key": name}
        gather.gather(settings, [session(tmp_path / name, begun={A: state})])
    assert f"note: {A}: two holds another training of it" in capsys.readouterr().err
    assert epochs_of(here, A) == 2


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"done": [A], "scores": "0.8"}, f"{A}: finished in one, two, but its history.csv differs"),
        ({"done": [B], "store": "others"}, "store/store.json differs between one, two: these"),
    ],
)
def test_contradictions_are_refused_and_nothing_is_written(
    settings, here, tmp_path, second, message
):
    one = session(tmp_path / "one", done=[A])
    with pytest.raises(ValueError, match=message):
        gather.gather(settings, [one, session(tmp_path / "two", **second)])
    assert contents(here) == {}
    same = session(tmp_path / "three", done=[A, B])
    assert "next: make study" in gather.gather(settings, [one, same])
    before = contents(here)
    with pytest.raises(ValueError, match="differs"):  # what is here counts as well
        gather.gather(settings, [tmp_path / "two"])
    assert contents(here) == before


@pytest.mark.parametrize("names", [("a/output", "b/output"), ("results", "b"), ("x", "x/y")])
def test_sources_of_equal_names_hide_no_contradiction(settings, here, tmp_path, names):
    first = session(tmp_path / names[0], done=[A])
    second = session(tmp_path / names[1], done=[A], scores="0.8")
    with pytest.raises(ValueError, match=f"finished in .*{names[0]}.*, .*{names[1]}.*, but"):
        gather.gather(settings, [first, second])
    assert contents(here) == {}


@pytest.mark.parametrize("name", ["scores.csv", "run.json"])
@pytest.mark.parametrize("damage", ["changed", "not recorded"])
def test_a_damaged_run_is_named_and_left_out(settings, here, tmp_path, name, damage, capsys):
    one = session(tmp_path / "one", done=[A, B])
    if damage == "changed":
        (one / "results" / "demo" / "runs" / A / name).write_text("0.7")
    else:
        record = one / "results" / "demo" / "checksums" / f"3-train-{A}.sha256"
        lines = [line for line in record.read_text().splitlines(True) if name not in line]
        record.write_text("".join(lines))
    lines = gather.gather(settings, [one])
    assert f"note: one: 3-train-{A}: runs/{A}/{name} is missing or not" in capsys.readouterr().err
    assert "1 of 2 runs are done" in lines
    assert f"{A}: not begun" in lines


def test_a_damaged_checkpoint_is_left_out(settings, here, tmp_path, capsys):
    one, two = session(tmp_path / "one", begun={A: 4}), session(tmp_path / "two", begun={A: 8})
    path = two / "results" / "demo" / "runs" / A / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    gather.gather(settings, [one, two])
    assert epochs_of(here, A) == 4
    assert "note: two: checkpoint.pt" in capsys.readouterr().err


def test_a_zip_is_read_like_a_folder(settings, here, tmp_path):
    one = session(tmp_path / "one", done=[A])
    shutil.make_archive(str(tmp_path / "output"), "zip", one)
    with zipfile.ZipFile(tmp_path / "output.zip", "a") as zipped:
        zipped.writestr("../../../../PWNED.txt", "outside")
    lines = gather.gather(settings, [tmp_path / "output.zip"])
    assert f"3-train-{A} is done (from output.zip)" in lines
    assert contents(here)[f"runs/{A}/model.pt"] == b"weights"
    assert not [*tmp_path.parent.glob("PWNED*"), *tmp_path.rglob("PWNED*")]


def test_removed_frames_are_no_damage(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A])
    (one / "results" / "demo" / "store" / "images.npy").unlink()
    gather.gather(settings, [one])
    assert capsys.readouterr().err == ""
    assert not (here / "store").exists()


def test_a_source_without_the_study_is_an_error(settings, here, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing of the study demo in 1 sources"):
        gather.gather(settings, [tmp_path / "empty"])
    with pytest.raises(ValueError, match="there is no such folder or zip"):
        gather.gather(settings, [tmp_path / "none"])
    assert not here.exists()


@pytest.mark.parametrize("kind", ["truncated", "deflated", "lzma", "bzip2", "encrypted"])
def test_a_damaged_zip_is_an_error(settings, here, tmp_path, kind):
    how = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
    path, name = tmp_path / "cut.zip", "results/demo/runs/x"
    with zipfile.ZipFile(path, "w", how) as zipped:
        zipped.writestr(name, "frames " * 999)
    raw = bytearray(path.read_bytes())
    begin, directory = 30 + len(name), raw.index(b"PK\1\2")
    if kind == "encrypted":  # the flag, in the file's header and in the directory
        raw[6] = raw[directory + 8] = 1
    elif kind == "truncated":
        raw = raw[:40]
    else:
        raw[begin:directory] = b"\xff" * (directory - begin)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"cut.zip: cannot be read as a zip"):
        gather.gather(settings, [path])


def test_a_run_of_other_settings_is_left_out(settings, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A], about={"epochs": 1, "lr": 0.5})
    two = session(tmp_path / "two", done=[B], about={"threshold": 0.4, "threads": 8})
    lines = gather.gather(settings, [one, two])
    note = f"{A}: epochs 1, the study has 20; lr 0.5, the study has 0.006: left out"
    assert note in capsys.readouterr().err
    assert f"{A}: not begun" in lines
    assert f"3-train-{B} is done (from two)" in lines  # only its scores are computed again
    session(tmp_path / "here", done=[A], about={"epochs": 1})  # nor does one here count
    lines = gather.gather(settings, [session(tmp_path / "three", done=[A])])
    assert f"3-train-{A} is done (from three)" in lines
    assert json.loads((here / "runs" / A / "run.json").read_text())["epochs"] == 20


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("width", 9, False), ("seed", 1, False), ("mend", "", False), ("device", "cuda", False),
        ("folds", 5, False), ("precision", "bf16", True), ("tolerance_px", 3, True),
    ],
)  # fmt: skip
def test_settings_that_change_the_weights(settings, tmp_path, key, value, same):
    config = gather.read_study([settings], overrides={"device": "cpu", "precision": "auto"})
    (tmp_path / "run.json").write_text(json.dumps(settings_of(A, {key: value})))
    assert (gather.differing(tmp_path, A, config) == "") == same
    assert same or gather.differing(tmp_path, A, config).startswith(f"{key} ")


def test_the_reported_protocol_has_its_own_frames_and_selection(tmp_path):
    config = settings_of(A, {"models": ["unet"], "protocols": ["reported"], "seeds": [0]})
    config |= {"mend": ["text"], "device": "auto", "precision": "auto"}
    about = settings_of(A, {"protocol": "reported", "selection": "test", "mend": "", "folds": 9})
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert gather.differing(tmp_path, "unet-reported-fold0-seed0", config) == ""


def test_the_next_command_repeats_the_given_settings(settings, here, tmp_path):
    given = {"epochs": 3, "lr": 0.001, "models": ["unet", "resunet"], "pin_instructions": True}
    sources = [session(tmp_path / "one", done=[A, B], about={"epochs": 3, "lr": 0.001})]
    word = 'SET="epochs=3 lr=0.001 models=[unet,resunet] pin_instructions=true"'
    assert f"next: make study PARAMETERS={settings} {word}" in gather.gather(
        settings, sources, given
    )


def test_words_are_expanded_as_a_shell_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("output-2", "output-1 (1)", "a[1]"):
        (tmp_path / name).mkdir()
    assert gather.matching(["output-*", "a[1]", "none-*", "~/a*"]) == [
        Path("output-1 (1)"), Path("output-2"), Path("a[1]"), Path("none-*"), tmp_path / "a[1]",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["x;touch PWNED", "x'; touch PWNED; '", "out-*", "~/x.zip", "(x)"])
def test_make_passes_words_on_unexpanded(word):
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "gather"]
    command += [f"FROM=first {word}", "SET=lr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    words = shlex.split(done.stdout.replace("\\\n", " "))
    assert words[-len(word.split()) - 2 :] == ["--", "first", *word.split()]
    assert words[2:6] == ["--parameters", "parameters/demo.yaml", "--set", "lr=1"]


OUTSIDE = [
    "runs/../../../PWNED.mk", "./../PWNED.mk", "../PWNED.mk", "runs/..", "/tmp/PWNED.mk",
    "..\\PWNED.mk",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_that_names_a_file_outside_copies_nothing(settings, here, tmp_path, name, capsys):
    one = session(tmp_path / "one", done=[A, B])
    study = one / "results" / "demo"
    write(one / "PWNED.mk", "not mine")
    (study / "..\\PWNED.mk").write_text("not mine")
    record = study / "checksums" / f"3-train-{A}.sha256"
    digest = gather.file_digest(one / "PWNED.mk")
    record.write_text(f"{record.read_text()}{digest}  {name}\n")
    assert f"{A}: not begun" in gather.gather(settings, [one])
    assert f"checksums/3-train-{A}.sha256 is damaged: left out" in capsys.readouterr().err
    assert not list((tmp_path / "here").rglob("*PWNED*"))
    # the same record in the study itself: the step is done again, the file outside stays
    checksums.mend(study)
    assert not (study / "notebooks" / f"3-train-{A}.ipynb").exists()
    assert (one / "PWNED.mk").read_text() == "not mine"


def test_nothing_is_copied_through_a_link(tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "runs").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of"):
        gather._copy(write(tmp_path / "from", "x"), study, "runs/to")
    assert not (tmp_path / "to").exists()


def test_a_study_in_use_is_an_error(settings, here, tmp_path):
    lock = checksums.claim(here)
    with pytest.raises(BlockingIOError, match="another start of this study is at work"):
        gather.gather(settings, [session(tmp_path / "one", done=[A])])
    lock.close()

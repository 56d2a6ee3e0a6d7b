"""Merging the results of several machines: what is taken, what is refused, and why."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

import gather
from thyroid_lib.files.writing import write_file as write
from thyroid_lib.models import checkpoint
from thyroid_lib.settings import read_study
from thyroid_lib.study import checksums

ROOT = Path(__file__).parents[2]
DEMO = read_study([ROOT / "parameters" / "demo.yaml"])

A, B = "unet-grouped-fold0-seed0", "resunet-grouped-fold0-seed0"
OTHER = {"done": [A], "scores": "0.8"}
CONTRADICTIONS = [
    (("a", "b"), OTHER, f"{A}: finished in a, b, but its history.csv differs"),
    (("a", "b"), {"done": [B], "store": "others"}, "store.json differs between a, b: these"),
    # sources of equal names hide none
    (("a/output", "b/output"), OTHER, "finished in .*a/output.*, .*b/output.*, but"),
]
OUTSIDE = "runs/../../../PWNED.mk", "./../PWNED.mk", "runs/..", "/tmp/PWNED.mk", "..\\PWNED.mk"


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A study of two runs, in a project's folder that is empty."""
    monkeypatch.setenv("THYROID_ROOT", str(tmp_path / "here"))
    monkeypatch.delenv("THYROID_RESULTS", raising=False)
    path = tmp_path / "demo.yaml"
    more = {"models": ["unet", "resunet"], "protocols": ["grouped"], "seeds": [0]}
    path.write_text(yaml.safe_dump(DEMO | more))
    return path


@pytest.fixture
def here(tmp_path):
    return tmp_path / "here" / "results" / "demo"


@pytest.fixture
def merge(settings, tmp_path):
    """Gather sources, given as folders or as keywords of `session`; return the lines."""

    def merged(*sources, **more) -> list[str]:
        sources = [s if isinstance(s, Path) else session(tmp_path / s, **more[s]) for s in sources]
        return gather.gather(settings, sources).splitlines()

    return merged


def settings_of(run: str, changes: dict) -> dict:
    """What run.json holds of a run of the demo, but for these changes."""
    return {key: DEMO[key] for key in (*gather.TRAINED, "folds")} | {
        "model": run.split("-")[0], "protocol": "grouped", "fold": 0, "seed": 0, "mend": "text",
        "device": "cpu", "precision": "fp32", "threads": 1, "run_id": run,
    } | changes  # fmt: skip


def session(folder: Path, *, done=(), begun=None, store="the store", scores="0.9", about=None):
    """What one kernel leaves: finished runs, and unfinished ones with so many epochs."""
    study = folder / "results" / "demo"
    steps = {"1-preprocess": {f"store/{name}": store for name in ("store.json", "images.npy")}}
    for run in done:
        steps[f"3-train-{run}"] = {f"runs/{run}/{name}": scores for name in gather.TABLES}
        steps[f"3-train-{run}"][f"runs/{run}/run.json"] = json.dumps(settings_of(run, about or {}))
        write(study / "runs" / run / "model.pt", "weights")
        for name in gather.records_of([f"notebooks/3-train-{run}.ipynb"]):
            write(study / name, "{}")
    for step, contents in steps.items():
        contents[f"notebooks/{step}.ipynb"] = "{}"
        files = [write(study / name, text) for name, text in contents.items()]
        checksums.record(study / "checksums" / f"{step}.sha256", files)
    write(study / "logs" / "1-preprocess.ipynb", "a log")
    for run, state in (begun or {}).items():
        (study / "runs" / run).mkdir(parents=True)
        state = state if isinstance(state, dict) else {"epoch": state}
        checkpoint.save(study / "runs" / run / "checkpoint.pt", state)
    return folder


def epochs_of(study: Path, run: str) -> int:
    return checkpoint.read(study / "runs" / run / "checkpoint.pt")["epoch"]


def contents(study: Path) -> dict:
    files = (path for path in study.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(study)): path.read_bytes() for path in files}


def test_two_sessions_become_one_study(merge, settings, here, tmp_path):
    lines = merge("one", "two", one={"done": [A]}, two={"begun": {B: 3}})
    assert lines[1:] == [
        f"3-train-{A} is done (from one)",
        f"{B} goes on after 3 epochs (from two)",
        "1 of 2 runs are done",
        f"{B}: goes on after 3 epochs",
        f"next: make kaggle PARAMETERS={settings} OWNER=<your name>",
        f"or, to finish here: make study PARAMETERS={settings}",
    ]
    before, step = contents(here), f"notebooks/3-train-{A}.ipynb"
    records = gather.records_of([step])
    assert {step, f"runs/{A}/model.pt", "store/images.npy", *records} <= set(before)
    assert not any(name.startswith("logs/") for name in before)
    assert checksums.mend(here) == []  # every file has its recorded checksum
    assert merge(tmp_path / "one", tmp_path / "two")[0] == "nothing new"
    assert contents(here) == before


def test_finished_runs_go_before_unfinished_ones_and_more_epochs_before_fewer(
    merge, here, tmp_path
):
    begun = {"0": {A: 5, B: 2}, "1": {A: 9, B: 4}, "2": {A: 7, B: 1}}
    merge(*begun, **{name: {"begun": each} for name, each in begun.items()})
    assert (epochs_of(here, A), epochs_of(here, B)) == (9, 4)
    assert merge(tmp_path / "0")[0] == "nothing new"
    assert f"3-train-{A} is done (from 4)" in merge("4", **{"4": {"done": [A]}})
    merge(tmp_path / "1")
    assert not (here / "runs" / A / "checkpoint.pt").exists()


def test_another_training_of_an_unfinished_run_is_left_out(merge, here, capsys):
    merge("one", one={"begun": {A: {"epoch": 2, "key": "one"}}})
    merge("two", two={"begun": {A: {"epoch": 5, "key": "two"}}})
    assert f"note: {A}: two holds another training of it" in capsys.readouterr().err
    assert epochs_of(here, A) == 2


@pytest.mark.parametrize(("names", "second", "message"), CONTRADICTIONS)
def test_contradictions_are_refused_and_nothing_is_written(
    merge, here, tmp_path, names, second, message
):
    with pytest.raises(ValueError, match=message):
        merge(*names, **dict(zip(names, ({"done": [A]}, second), strict=True)))
    assert contents(here) == {}
    merge("three", three={"done": [A, B]})
    with pytest.raises(ValueError, match="differs"):  # what is here counts as well
        merge(tmp_path / names[1])


@pytest.mark.parametrize(("name", "damage"), [("scores.csv", "0.7"), ("run.json", "not recorded")])
def test_a_damaged_run_is_named_and_left_out(merge, tmp_path, name, damage, capsys):
    study = session(tmp_path / "one", done=[A, B]) / "results" / "demo"
    record = study / "checksums" / f"3-train-{A}.sha256"
    if name == "run.json":
        record.write_text(re.sub(".*run.json\n", "", record.read_text()))
    else:
        (study / "runs" / A / name).write_text(damage)
    lines = merge(tmp_path / "one")
    assert f"note: one: 3-train-{A}: runs/{A}/{name} is missing or not" in capsys.readouterr().err
    assert {"1 of 2 runs are done", f"{A}: not begun"} < set(lines)


def test_a_damaged_checkpoint_is_left_out(merge, here, tmp_path, capsys):
    two = session(tmp_path / "two", begun={A: 8})
    path = two / "results" / "demo" / "runs" / A / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    merge("one", two, one={"begun": {A: 4}})
    assert epochs_of(here, A) == 4
    assert "note: two: checkpoint.pt" in capsys.readouterr().err


def test_a_zip_is_read_like_a_folder(merge, here, tmp_path):
    shutil.make_archive(str(tmp_path / "output"), "zip", session(tmp_path / "one", done=[A]))
    with zipfile.ZipFile(tmp_path / "output.zip", "a") as zipped:
        zipped.writestr("../../../../PWNED.txt", "outside")
    assert f"3-train-{A} is done (from output.zip)" in merge(tmp_path / "output.zip")
    assert contents(here)[f"runs/{A}/model.pt"] == b"weights"
    assert not [*tmp_path.parent.glob("PWNED*"), *tmp_path.rglob("PWNED*")]


@pytest.mark.parametrize("kind", ["truncated", "deflated", "encrypted"])
def test_a_damaged_zip_is_an_error(merge, tmp_path, kind):
    path, name = tmp_path / "cut.zip", "results/demo/runs/x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(name, "frames " * 999)
    raw = bytearray(path.read_bytes())
    begin, directory = 30 + len(name), raw.index(b"PK\1\2")
    if kind == "encrypted":  # the flag, in the file's header and in the directory
        raw[6] = raw[directory + 8] = 1
    elif kind == "deflated":
        raw[begin:directory] = b"\xff" * (directory - begin)
    path.write_bytes(raw[:40] if kind == "truncated" else raw)
    with pytest.raises(ValueError, match=r"cut.zip: cannot be read as a zip"):
        merge(path)


def test_removed_frames_are_no_damage(merge, here, tmp_path, capsys):
    one = session(tmp_path / "one", done=[A])
    (one / "results" / "demo" / "store" / "images.npy").unlink()
    merge(one)
    assert capsys.readouterr().err == ""
    assert not (here / "store").exists()


def test_a_source_without_the_study_is_an_error(merge, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "nothing of the study demo in 1"), ("none", "there is no such")):
        with pytest.raises(ValueError, match=words):
            merge(tmp_path / name)


def test_a_run_of_other_settings_is_left_out(merge, tmp_path, capsys):
    one = {"done": [A], "about": {"epochs": 1, "lr": 0.5}}
    lines = merge("one", "two", one=one, two={"done": [B], "about": {"threshold": 0.4}})
    note = f"{A}: epochs 1, the study has 20; lr 0.5, the study has 0.006: left out"
    assert note in capsys.readouterr().err
    # of the second, only the scores are computed again
    assert {f"{A}: not begun", f"3-train-{B} is done (from two)"} < set(lines)
    session(tmp_path / "here", done=[A], about={"epochs": 1})  # nor does one here count
    assert f"3-train-{A} is done (from three)" in merge("three", three={"done": [A]})


def test_settings_that_change_the_weights(settings, tmp_path):
    config = gather.read_study([settings], overrides={"device": "cpu", "precision": "auto"})
    for key, value in {
        "width": 9, "seed": 1, "mend": "", "device": "cuda", "folds": 5, "precision": "bf16",
        "tolerance_px": 3,
    }.items():  # fmt: skip
        write(tmp_path / "run.json", json.dumps(settings_of(A, {key: value})))
        said = gather.differing(tmp_path, A, config).partition(" ")[0]
        assert said == ("" if key in ("precision", "tolerance_px") else key)


def test_the_reported_protocol_has_its_own_frames_and_selection(tmp_path):
    config = settings_of(A, {"models": ["unet"], "protocols": ["reported"], "seeds": [0]})
    config |= {"mend": ["text"], "device": "auto", "precision": "auto"}
    about = settings_of(A, {"protocol": "reported", "selection": "test", "mend": "", "folds": 9})
    write(tmp_path / "run.json", json.dumps(about))
    assert gather.differing(tmp_path, "unet-reported-fold0-seed0", config) == ""


def test_the_next_command_repeats_the_given_settings(settings, tmp_path):
    given = {"epochs": 3, "lr": 0.001, "models": ["unet", "resunet"], "pin_instructions": True}
    sources = [session(tmp_path / "one", done=[A, B], about={"epochs": 3, "lr": 0.001})]
    word = 'SET="epochs=3 lr=0.001 models=[unet,resunet] pin_instructions=true"'
    said = gather.gather(settings, sources, given)
    assert f"next: make study PARAMETERS={settings} {word}" in said


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_that_names_a_file_outside_copies_nothing(merge, tmp_path, name, capsys):
    study = session(tmp_path / "one", done=[A, B]) / "results" / "demo"
    outside = write(tmp_path / "one" / "PWNED.mk", "not mine")
    (study / "..\\PWNED.mk").write_text("not mine")
    with (study / "checksums" / f"3-train-{A}.sha256").open("a") as record:
        record.write(f"{gather.file_digest(outside)}  {name}\n")
    assert f"{A}: not begun" in merge(tmp_path / "one")
    assert f"checksums/3-train-{A}.sha256 is damaged: left out" in capsys.readouterr().err
    assert not list((tmp_path / "here").rglob("*PWNED*"))


def test_nothing_is_copied_through_a_link(merge, here, tmp_path):
    here.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (here / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of"):
        merge("one", one={"done": [A]})
    assert not list((tmp_path / "elsewhere").iterdir())

"""Comparison of two folders of results: identical, or the first difference, known by hand."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat.v4 as v4
import numpy as np
import pytest
from PIL import Image

from thyroid_lib.files.writing import write_file
from thyroid_lib.study.verify import compare

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "reference" / "demo"
SUMMARY = "protocol,model,dice,groups\ngrouped,unet,0.760000,2\ngrouped,segnet,0.400000,2\n"
NOTEBOOK, TABLE, PICTURE = "notebooks/3-train.ipynb", "compare/summary.csv", "compare/frames.png"
MODEL, ABOUT = "runs/unet/model.pt", "runs/unet/run.json"
DOTS = np.zeros((4, 5), np.uint8)
DOTS[1, 2] = DOTS[3, 4] = 200
CHANGES = [
    (TABLE, "0.400000", "0.400004", "row 2 (grouped, segnet), column dice: expected 0.400000, "
     "got 0.400004"),
    (TABLE, "grouped,segnet,0.400000,2\n", "",
     "line 3: expected grouped,segnet,0.400000,2, got nothing"),
    (ABOUT, '"seed": 0', '"seed": 1', 'line 2: expected  "seed": 0, got  "seed": 1'),
    (NOTEBOOK, '"b\\n"', '"d\\n"', "1 differences, the first:\n"
     "modified /cells/1/outputs/0/text:\n@@ -1,3 +1,3 @@\n a\n-b\n+d\n c"),
    (NOTEBOOK, "It should.", "It must.", "1 differences, the first:\n"
     "modified /cells/0/source:\n@@ -1,3 +1,3 @@\n ## Does it learn?\n \n-It should.\n"
     "+It must."),
]  # fmt: skip
AFTERWARDS = {  # what is done to the new results: exit code, what is printed
    "true": (0, "identical: "),
    "echo more >>compare/summary.csv": (2, "summary.csv: line 8: expected nothing, got more"),
    "exit 1": (2, ""),
}


def png(gray: np.ndarray, **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "png", **how)
    return file.getvalue()


def notebook() -> str:
    outputs = [v4.new_output("stream", name="stdout", text="a\nb\nc\n")]
    text = "## Does it learn?\n\nIt should."
    cells = [v4.new_markdown_cell(text, id="text")]
    cells.append(v4.new_code_cell("# no heading\ntrain()", id="code", outputs=outputs))
    return v4.writes(v4.new_notebook(cells=cells))


def weights(values: bytes, seconds: str) -> bytes:
    """A zip in the form of torch's files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", seconds)
        archive.writestr("archive/data/0", values)
    return file.getvalue()


def write_study(folder: Path, seconds: float) -> Path:
    """A small study; only what holds times depends on `seconds`."""
    files = {
        NOTEBOOK: notebook(),
        TABLE: SUMMARY,
        "compare/summary.md": "| dice |\n|-----:|\n| 0.76 |\n",
        PICTURE: png(DOTS),
        ABOUT: json.dumps({"seed": 0, "train_seconds": seconds}, indent=1),
        MODEL: weights(b"01234567", f"{seconds}"),
        "compare/cost.csv": f"model,seconds\nunet,{seconds}\n",
        "logs/3-train.ipynb": f"{seconds}",
        ".snakemake/metadata/x": f"{seconds}",
        "report.html": f"{seconds} s",
    }
    for name, content in files.items():
        write_file(folder / name, content)
    return folder


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return write_study(tmp_path / "first", 1.5), write_study(tmp_path / "second", 9.25)


def only_difference(pair, name: str) -> str:
    found = compare(*pair)
    assert [each.file for each in found.differences] == [name]
    assert found.files == 5  # of the six that are compared
    return found.differences[0].what


def test_equal_studies_are_identical_although_their_times_differ(pair):
    found = compare(*pair)
    assert found[:2] == (6, [])
    assert found.report().startswith("identical: 6 files\nnot compared, because")
    for name in ("compare/cost.csv", "logs/", ".snakemake/", "report.html", "parts of run.json"):
        assert name in " ".join(found.left_out)


@pytest.mark.parametrize(("name", "old", "new", "what"), CHANGES)
def test_one_change_is_named(pair, name, old, new, what):
    text = (pair[1] / name).read_text(encoding="utf-8")
    assert text.count(old) == 1
    (pair[1] / name).write_text(text.replace(old, new), encoding="utf-8")
    assert only_difference(pair, name) == what


def test_pictures_are_compared_by_their_pixels(pair):
    dimmer = DOTS.copy()
    dimmer[1, 2] -= 3
    for content, what in (
        (png(dimmer), "another picture: 1 of 20 pixels differ, by 3 of 255 at most"),
        (png(DOTS[:3]), "another picture: expected 5×4 px, got 5×3 px"),
        (png(DOTS, compress_level=0), "the same content, written in another way"),
    ):
        (pair[1] / PICTURE).write_bytes(content)
        assert only_difference(pair, PICTURE) == what


def test_weights_are_compared_and_the_rest_of_the_file_must_be_whole(pair):
    file = pair[1] / MODEL
    content = file.read_bytes()
    file.write_bytes(weights(b"01234577", "9"))
    assert only_difference(pair, MODEL) == "1 of 8 bytes differ, the first is byte 6"
    assert content.count(b"9.25") == 1  # the zip's checksum shows that this is damage
    file.write_bytes(content.replace(b"9.25", b"9.26"))
    assert "checksums do not match" in only_difference(pair, MODEL)


def test_missing_and_unexpected_files_are_named_and_notebooks_come_first(pair):
    (pair[1] / NOTEBOOK).unlink()
    (pair[1] / "compare/left.csv.partial").touch()
    found = compare(*pair)
    partial = "compare/left.csv.partial", "was not expected"
    assert found.differences == [(NOTEBOOK, "is missing"), partial]
    said = f"different: 2 of 7 files\n\n{NOTEBOOK}: is missing\n\nalso different:\n  compare/left"
    assert found.report().startswith(said)


@pytest.mark.parametrize("name", [NOTEBOOK, TABLE, PICTURE, ABOUT, MODEL])
def test_a_damaged_file_is_a_difference_and_no_traceback(pair, name):
    whole = (pair[1] / name).read_bytes()
    for content in (whole[: len(whole) * 2 // 3], b"", b"\0\xff\0", b"[1]", b'{"cells": [3]}'):
        (pair[1] / name).write_bytes(content)
        assert only_difference(pair, name)
        assert only_difference(pair[::-1], name)


def test_a_committed_set_is_a_selection_of_a_study(pair, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (NOTEBOOK, TABLE):
        shutil.copy(pair[0] / name, kept)
    assert (compare(kept, pair[1]).files, compare(kept, pair[1]).differences) == (2, [])
    (pair[1] / TABLE).unlink()
    shutil.copy(kept / "3-train.ipynb", pair[1] / "notebooks/3-more.ipynb")
    with pytest.raises(ValueError, match="no file to compare in"):
        compare(kept, tmp_path / "none")
    extra = "3-more.ipynb", "was not expected"
    assert compare(kept, pair[1]).differences == [extra, ("summary.csv", "is missing")]


@pytest.mark.study
@pytest.mark.parametrize("afterwards", AFTERWARDS)
def test_make_verify_removes_equal_results_and_keeps_others(tmp_path, afterwards):
    code, says = AFTERWARDS[afterwards]
    programs, temporary = tmp_path / "bin", tmp_path / "temporary"
    for folder in (temporary, programs):
        folder.mkdir()
    workflow = f"""echo "$@" >{tmp_path}/options; cd "$THYROID_RESULTS"
        mkdir -p demo/notebooks demo/compare && cd demo && cp {DEMO}/*.ipynb notebooks &&
        cp {DEMO}/*.[!i]* compare && {afterwards}"""
    runner = 'case "$*" in *thyroid_lib.study.runner*) exit;; esac'  # the quickstart is there
    python = f'{runner}; exec {sys.executable} "$@"'
    for name, does in (("snakemake", workflow), ("python", python)):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-o", ".venv/.ready", "verify", f"BIN={programs}", "SET=epochs=1"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout
    left = [path / "demo" for path in temporary.iterdir()]
    assert len(left) == (code > 0)
    assert all(f"the new run is kept: {path}\n" in done.stdout for path in left)
    assert "epochs=1" not in (tmp_path / "options").read_text(encoding="utf-8")

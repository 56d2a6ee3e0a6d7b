"""Two sets of results are the same, or the first difference is named: with answers made by hand."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.study.verify import Comparison, Difference, compare

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "results" / "reference" / "demo"
SUMMARY = "protocol,model,dice,groups\ngrouped,unet,0.760000,2\ngrouped,segnet,0.400000,2\n"


def png(gray: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(gray).save(file, "png")
    return file.getvalue()


def two_dots() -> np.ndarray:
    picture = np.zeros((4, 5), np.uint8)
    picture[1, 2] = picture[3, 4] = 200
    return picture


def notebook(printed: str, picture: np.ndarray) -> str:
    shown = {"image/png": base64.b64encode(png(picture)).decode(), "text/plain": ["<Figure>"]}
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": [f"{line}\n" for line in printed]},
        {"output_type": "display_data", "data": shown, "metadata": {}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["## Does it learn?\n", "\n", "It should."]},
        {"cell_type": "code", "source": ["# no heading\n", "train()"], "outputs": outputs},
    ]
    return json.dumps({"cells": cells, "metadata": {}}, indent=1)


def weights(values: bytes, seconds: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # the shape of a file of torch's
        archive.writestr("archive/data.pkl", seconds)
        archive.writestr("archive/data/0", values)
    return file.getvalue()


def write_study(folder: Path, *, seconds: float = 1.5) -> Path:
    """A study in small; only the files of times depend on `seconds`."""
    run_json = json.dumps({"seed": 0, "train_seconds": seconds}, indent=1)
    files = {
        "notebooks/3-train.ipynb": notebook("abc", two_dots()),
        "compare/summary.csv": SUMMARY,
        "compare/summary.md": "| dice |\n|-----:|\n| 0.76 |\n",
        "compare/frames.png": png(two_dots()),
        "compare/cost.csv": f"model,seconds\nunet,{seconds}\n",
        "logs/3-train.ipynb": f"{seconds}",
        "report.html": f"{seconds} s",
        "runs/unet/run.json": run_json,
        "runs/unet/model.pt": weights(b"01234567", f"{seconds}"),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return write_study(tmp_path / "first"), write_study(tmp_path / "second", seconds=9.25)


def only_difference(pair) -> Difference:
    found = compare(*pair)
    assert len(found.differences) == 1
    assert found.files == 5  # of the six that are compared
    return found.differences[0]


def test_equal_studies_are_identical_though_their_times_differ(pair):
    found = compare(*pair)
    assert found.differences == []
    sizes = [p.stat().st_size for p in pair[0].rglob("*") if p.is_file()]
    omitted = [pair[0] / n for n in ("logs/3-train.ipynb", "report.html", "compare/cost.csv")]
    assert (found.files, found.bytes) == (6, sum(sizes) - sum(p.stat().st_size for p in omitted))
    assert found.report().startswith(f"identical: 6 files, {found.bytes} bytes\nleft out, since")
    for name in ("compare/cost.csv", "logs/", "report.html", "train_seconds", "model.pt"):
        assert name in found.left_out or name in " ".join(found.left_out)


@pytest.mark.parametrize(
    ("name", "old", "new", "what"),
    [
        (
            "compare/summary.csv", "0.400000", "0.400004",
            "row 2 (grouped, segnet), column dice: expected 0.400000, got 0.400004 "
            "(relative difference 1e-05)",
        ),
        (
            "compare/summary.csv", "grouped,segnet,0.400000,2\n", "",
            "expected 2 rows, got 1; those that both have are equal",
        ),
        (
            "compare/summary.csv", "dice,", "iou,",
            "other columns: line 1\n- protocol,model,dice,groups\n+ protocol,model,iou,groups",
        ),
        (
            "compare/summary.csv", ",0.400000,", ",,",
            "row 2 (grouped, segnet), column dice: expected 0.400000, got nothing",
        ),
        ("compare/summary.md", "0.76", "0.77", "line 3\n- | 0.76 |\n+ | 0.77 |"),
        (
            "notebooks/3-train.ipynb", '"b\\n"', '"d\\n"',
            "cell 2 (“Does it learn?”), output 1, stdout: line 2\n- b\n+ d",
        ),
        (
            "notebooks/3-train.ipynb", "It should.", "It must.",
            "cell 1 (“Does it learn?”), its text: line 3\n- It should.\n+ It must.",
        ),
        ("runs/unet/run.json", '"seed": 0', '"seed": 1', 'line 2\n-  "seed": 0\n+  "seed": 1'),
        ("runs/unet/model.pt", "01234567", "01234577", "1 of 8 bytes differ, the first is byte 6"),
    ],
)  # fmt: skip
def test_one_change_is_named(pair, name, old, new, what):
    file = pair[1] / name
    content = weights(new.encode(), "9") if name.endswith(".pt") else None
    if content is None:
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1
        content = text.replace(old, new).encode()
    file.write_bytes(content)
    assert only_difference(pair) == Difference(name, what)


def test_one_pixel_is_counted_in_a_figure_and_in_a_notebook(pair):
    picture = two_dots()
    picture[1, 2] -= 3
    what = "another picture: 1 of 20 pixels differ, by 3 of 255 at most"
    (pair[1] / "compare/frames.png").write_bytes(png(picture))
    assert only_difference(pair) == Difference("compare/frames.png", what)
    shutil.copy(pair[0] / "compare/frames.png", pair[1] / "compare")
    (pair[1] / "notebooks/3-train.ipynb").write_text(notebook("abc", picture), encoding="utf-8")
    where = "cell 2 (“Does it learn?”), output 2, image/png: "
    assert only_difference(pair) == Difference("notebooks/3-train.ipynb", where + what)


def test_another_size_and_the_same_pixels_in_another_file_are_told_apart(pair):
    file = pair[1] / "compare/frames.png"
    file.write_bytes(png(two_dots()[:3]))
    assert only_difference(pair).what == "another picture: expected 5×4 px, got 5×3 px"
    Image.fromarray(two_dots()).save(file, compress_level=0)
    assert only_difference(pair).what == "the same pixels in another file"


def test_missing_and_surplus_files_are_named_and_notebooks_come_first(pair):
    (pair[1] / "notebooks/3-train.ipynb").unlink()
    (pair[1] / "compare/left.csv.partial").write_text("", encoding="utf-8")
    found = compare(*pair)
    assert found.differences == [
        Difference("notebooks/3-train.ipynb", "is missing"),
        Difference("compare/left.csv.partial", "is surplus: it was not expected"),
    ]
    assert found.report().startswith(
        "different: 2 of 7 files\n\nnotebooks/3-train.ipynb: is missing\n\n"
        "also different:\n  compare/left.csv.partial\n"
    )


def test_outputs_that_came_or_went_are_named(pair):
    file = pair[1] / "notebooks/3-train.ipynb"
    content = json.loads(file.read_text(encoding="utf-8"))
    stream, figure = content["cells"][1]["outputs"]
    error = {"output_type": "error", "ename": "ValueError", "evalue": "lr is 0", "traceback": []}
    for outputs, what in (
        ([stream, error], "output 2, error: was not expected\n+ ValueError: lr is 0"),
        ([stream], "output 2, text/plain: is missing"),
        ([stream, figure, stream], "output 3, stdout: was not expected\n+ a"),
    ):
        content["cells"][1]["outputs"] = outputs
        file.write_text(json.dumps(content), encoding="utf-8")
        assert only_difference(pair).what == f"cell 2 (“Does it learn?”), {what}"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("notebooks/3-train.ipynb", "this notebook cannot be read: it is damaged or breaks off at"),
        ("compare/frames.png", "another picture: this one cannot be read (image file is truncated"),
        ("runs/unet/run.json", "line"),
        ("runs/unet/model.pt", "expected"),
    ],
)
def test_a_truncated_file_is_a_sentence(pair, name, what):
    content = (pair[0] / name).read_bytes()
    (pair[1] / name).write_bytes(content[: len(content) * 2 // 3])
    difference = only_difference(pair)
    assert difference.file == name
    assert difference.what.startswith(what)


def test_a_model_whose_other_part_is_damaged_is_not_the_same(pair):
    file = pair[1] / "runs/unet/model.pt"
    content = file.read_bytes()
    assert content.count(b"9.25") == 1  # zip knows by its checksum that this is not what it was
    file.write_bytes(content.replace(b"9.25", b"9.26"))
    assert only_difference(pair).file == "runs/unet/model.pt"
    for path in pair:
        (path / "runs/unet/model.pt").write_bytes(f"no zip, {path.name}".encode())
    assert only_difference(pair).file == "runs/unet/model.pt"


@pytest.mark.parametrize(
    "name", ["notebooks/3-train.ipynb", "compare/summary.csv", "runs/unet/run.json"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff\x00", b"[1]", b'{"cells": [3]}', b"{}"])
def test_whatever_stands_in_a_file_it_is_a_difference_and_no_traceback(pair, name, content):
    (pair[1] / name).write_bytes(content)
    assert only_difference(pair).what
    assert only_difference(pair[::-1]).what


def test_a_committed_set_is_a_selection_of_a_study(pair, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("notebooks/3-train.ipynb", "compare/summary.csv"):
        shutil.copy(pair[0] / name, kept)
    assert (compare(kept, pair[1]).files, compare(kept, pair[1]).differences) == (2, [])
    (pair[1] / "compare/summary.csv").unlink()
    shutil.copy(kept / "3-train.ipynb", pair[1] / "notebooks/3-more.ipynb")
    assert compare(kept, pair[1]).differences == [
        Difference("3-more.ipynb", "is surplus: it was not expected"),
        Difference("summary.csv", "is missing"),
    ]


def test_the_command_says_it_and_its_exit_code_too(tmp_path):
    """On the committed demo, as `make verify` asks, and without torch."""
    again = tmp_path / "demo"
    for kept in DEMO.iterdir():
        part = again / ("notebooks" if kept.suffix == ".ipynb" else "compare")
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, part)
    files = list(DEMO.iterdir())
    size = sum(path.stat().st_size for path in files)
    done = verify(DEMO, again)
    assert (done.returncode, done.stdout) == (0, f"identical: {len(files)} files, {size} bytes\n")
    table = again / "compare" / "summary.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("unet", "U-Net"), encoding="utf-8")
    done = verify(DEMO, again)
    assert done.returncode == 1
    assert done.stdout.startswith(f"different: 1 of {len(files)} files\n\nsummary.csv: row 1 (")
    assert "column model: expected unet, got U-Net" in done.stdout
    (tmp_path / "empty").mkdir()
    for folders in ((DEMO, tmp_path / "none"), (tmp_path / "empty", again)):
        done = verify(*folders)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: no f")


def verify(*folders: Path) -> subprocess.CompletedProcess:
    code = (
        "import sys\nfrom thyroid_lib.study import verify\ncode = verify.main()\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("afterwards", "code", "says"),
    [
        ("true", 0, "identical: "),
        ("echo more >>compare/summary.csv", 2, "summary.csv: expected 6 rows, got 7; those"),
        ("exit 1", 2, ""),
    ],
)
def test_make_verify_forgets_equal_results_and_keeps_others(tmp_path, afterwards, code, says):
    """With programs that take their results from the committed ones instead of computing them."""
    programs, temporary = tmp_path / "bin", tmp_path / "temporary"
    temporary.mkdir()
    programs.mkdir()
    workflow = (
        f'echo "$@" >{tmp_path}/options; mkdir -p "$THYROID_RESULTS/demo/notebooks" && '
        f'mkdir "$THYROID_RESULTS/demo/compare" && cp {DEMO}/*.ipynb '
        f'"$THYROID_RESULTS/demo/notebooks" && cd "$THYROID_RESULTS/demo" && '
        f"cp {DEMO}/*.[!i]* compare && {afterwards}"
    )
    runner = 'case "$*" in *thyroid_lib.study.runner*) exit;; esac'  # the quickstart is there
    for name, does in (
        ("snakemake", workflow),
        ("python", f'{runner}; exec {sys.executable} "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-o", ".venv/.ready", "verify", f"BIN={programs}", "SET=epochs=1"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stdout
    left = [str(path / "demo") for path in temporary.iterdir()]
    assert len(left) == (code > 0)
    assert all(f"the new run is kept: {path}\n" in done.stdout for path in left)
    options = (tmp_path / "options").read_text(encoding="utf-8").split()
    assert {"parameters/demo.yaml", "--drop-metadata"} <= set(options)
    assert "epochs=1" not in options


def test_a_long_list_is_cut():
    differences = [Difference(f"{number}.csv", "is missing") for number in range(30)]
    report = Comparison(1, 10, differences, []).report()
    assert report.startswith("different: 30 of 31 files\n\n0.csv: is missing\n")
    assert report.endswith("  20.csv\n  and 9 more")

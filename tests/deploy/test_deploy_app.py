"""The page, by Streamlit's own tests and in a real browser, held to the predictor."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.parse
import zipfile
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ellipse_pair, write_release
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("streamlit")
pytest.importorskip("gdcm")

import dicoms
import onnxruntime
import pydicom
from streamlit.testing.v1 import AppTest

from thyroid_lib.data import frames, phantom
from thyroid_lib.deploy import app, dicom
from thyroid_lib.deploy.predictor import Predictor

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "app" / "streamlit_app.py"
NOTICE = "Research use, not for diagnosis"


def picture(seed: int = 5, height: int = 90, width: int = 130) -> np.ndarray:
    return ellipse_pair(np.random.default_rng(seed), height, width)[0]


def image_bytes(image: np.ndarray, kind: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=kind, **how)
    return file.getvalue()


CINE = np.stack([picture(seed) for seed in range(4)])
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80)).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, with hardly anything in it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated_gif() -> bytes:
    file, pages = io.BytesIO(), [Image.fromarray(picture(seed)) for seed in range(3)]
    pages[0].save(file, format="GIF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def pages_tiff() -> bytes:
    file, pages = io.BytesIO(), [Image.fromarray(picture(seed)) for seed in range(3)]
    pages[0].save(file, format="TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frame.png", bytes(10_000_000))
    return file.getvalue()


def us(**attributes) -> bytes:
    return dicoms.to_bytes(dicoms.make_us(picture(), **attributes))


PNG = image_bytes(picture())
BROKEN = {
    "empty.png": b"",
    "empty.dcm": b"",
    "cut.png": PNG[: len(PNG) // 2],
    "cut.jpg": image_bytes(picture(), "JPEG")[:900],
    "flipped.png": PNG[:300] + bytes([PNG[300] ^ 255]) + PNG[301:],
    "text.png": b"just a text",
    "bomb.png": png_header(60_000, 60_000),
    "wide.png": png_header(20_000_000, 1),
    "zip.png": zip_bomb(),
    "animated.png": animated_gif(),
    "pages.tif": pages_tiff(),
    "nan.tif": image_bytes(np.full((30, 40), np.nan, np.float32), "TIFF"),
    "deep.tif": image_bytes(np.full((30, 40), 2**30, np.int32), "TIFF"),
    "one-pixel.png": image_bytes(np.zeros((1, 1), np.uint8)),
    "web.webp": image_bytes(picture(), "WEBP"),
    "<img src=x onerror=alert(1)>.png": b"<html><script>alert(1)</script></html>",
    "![x](http:,,192.0.2.1,x.png) :red[x] $x$ `x`.png": b"<svg onload='alert(1)'/>",
    "page.pdf": b"%PDF-1.7\n1 0 obj\n",
    "no-pixels.dcm": us(PixelData=None),
    "ct.dcm": us(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT"),
    "cut.dcm": us()[:2000],
    "huge.dcm": us(Rows=65535, Columns=65535),
    "many.dcm": us(NumberOfFrames=2_000_000_000),
    "noise.dcm": bytes(128) + b"DICM" + NOISE.tobytes(),
    "picture.dcm": PNG,
}


def names_of(elements) -> list[str]:
    return [element.label for element in elements]


def metrics(page) -> dict:
    return {element.label: element.value for element in page.metric}


@pytest.fixture
def page(release, monkeypatch):
    """The start page, with the release that takes no training."""
    monkeypatch.setenv("THYROID_RELEASE", str(release))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    assert not page.exception
    return page


@pytest.fixture(scope="module")
def used_page(release):
    """A page that many files are uploaded to, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THYROID_RELEASE", str(release))
        yield AppTest.from_file(str(ENTRY), default_timeout=30).run()


def upload(page, *files: tuple[str, bytes]):
    kind = "application/octet-stream"
    page = page.file_uploader[0].set_value([(name, content, kind) for name, content in files]).run()
    assert not page.exception
    return page


def expected(found) -> dict:
    """How the page writes what the predictor finds."""
    if found.area_mm2 is None:
        area, size = f"{found.area_px:,} px", "{:.0f} × {:.0f} px".format(*found.diameters_px)
    else:
        area, size = f"{found.area_mm2:,.1f} mm²", "{:.1f} × {:.1f} mm".format(*found.diameters_mm)
    return {"Area": area, "Diameters": size, "Confidence": f"{found.confidence:.2f}"}


def test_the_start_page_shows_a_phantom_already_segmented(page, release):
    sweep, _ = next(iter(app.EXAMPLES.values()))
    image = phantom.make_sweep(seed=7, sweep=sweep, frames=1, text=False)["images"][0]
    found = Predictor.open(release).predict(image)
    assert found.area_px > 0
    assert len(page.image) == 1
    if not found.refused:
        assert metrics(page) == expected(found)
    assert any(f'role="note">{NOTICE}<' in element.proto.body for element in page.html)


@pytest.mark.parametrize("example", app.EXAMPLES)
def test_every_example_is_a_phantom(page, release, example):
    page = page.selectbox(key="example").select(example).run()
    sweep, count = app.EXAMPLES[example]
    image = phantom.make_sweep(seed=7, sweep=sweep, frames=count, text=False)["images"][-1]
    if count > 1:
        slider = next(each for each in page.slider if each.label == "Frame")
        assert (slider.min, slider.max) == (1, count)
        page = slider.set_value(count).run()
    found = Predictor.open(release).predict(image)
    if found.refused:
        page = next(t for t in page.toggle if t.label.startswith("Show")).set_value(True).run()
    assert metrics(page) == expected(found)


def test_an_uploads_numbers_are_the_predictors(page, release, tmp_path):
    (tmp_path / "frame.png").write_bytes(PNG)
    gray = frames.read_gray(tmp_path / "frame.png")
    page = upload(page, ("frame.png", PNG))
    found = Predictor.open(release).predict(gray)
    assert found.area_px > 500
    assert metrics(page) == expected(found)
    assert not page.error
    assert page.success[0].value == "Quality checks passed."
    assert names_of(page.get("download_button")) == ["Mask, PNG", "Overlay, PNG"]
    page = page.number_input[0].set_value(0.125).run()
    found = Predictor.open(release).predict(gray, spacing_mm=(0.125, 0.125))
    assert metrics(page) == expected(found)
    assert "mm²" in metrics(page)["Area"]
    page = page.number_input[0].set_value(0.0).run()  # no scale
    assert "px" in metrics(page)["Area"]
    page = page.slider(key="threshold").set_value(0.8).run()
    assert metrics(page) == expected(Predictor.open(release).predict(gray, threshold=0.8))


def test_models_stand_side_by_side_each_by_its_own_threshold(page, release):
    page = upload(page, ("frame.png", PNG))
    page = page.pills(key="models").set_value(["segnet", "unet"]).run()
    assert names_of(page.metric) == ["Area", "Diameters", "Confidence"] * 2
    assert [each.value for each in page.main.subheader] == ["unet", "segnet"]
    areas = [each.value for each in page.metric if each.label == "Area"]
    found = [Predictor.open(release, model=name).predict(picture()) for name in ("unet", "segnet")]
    assert areas == [f"{each.area_px:,} px" for each in found]
    assert areas[0] != areas[1]
    page = page.pills(key="models").set_value([]).run()  # none is the selected one
    assert page.metric[0].value == areas[0]


def test_what_moves_no_pixel_runs_no_network(release, tmp_path, monkeypatch):
    """Nor is it run for a file that comes once more."""
    shutil.copytree(release, tmp_path / "release")  # no predictor has opened it
    monkeypatch.setenv("THYROID_RELEASE", str(tmp_path / "release"))
    runs, run = [], onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *args: runs.append(1) or run(*args)
    )
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    page = upload(page, ("frame.png", PNG))
    assert len(runs) == 2  # the example, the upload
    shown = page.image[0].value[0]
    page = page.slider(key="opacity").set_value(0.9).run()
    stronger = page.image[0].value[0]
    page = page.toggle(key="outline").set_value(False).run()
    assert len({shown, stronger, page.image[0].value[0]}) == 3
    page = page.slider(key="threshold").set_value(0.3).run()
    page = page.number_input[0].set_value(0.1).run()
    page = upload(page, ("again.png", PNG))
    assert not page.exception
    assert len(runs) == 2
    upload(page, ("other.png", image_bytes(picture(6))))
    assert len(runs) == 3


def test_a_refused_result_is_shown_on_request_alone(page, release):
    page = upload(page, ("noise.png", image_bytes(NOISE)))
    found = Predictor.open(release).predict(NOISE)
    assert found.refused
    assert page.error[0].value.startswith("**Refused.** ")
    assert all(doubt.text in page.error[0].value for doubt in found.doubts)
    assert set(metrics(page).values()) == {"–"}
    assert not page.get("download_button")
    hidden = page.image[0].value[0]
    page = (
        next(t for t in page.toggle if t.label == "Show the refused result").set_value(True).run()
    )
    assert metrics(page) == expected(found)
    assert page.error  # still marked
    assert page.image[0].value[0] != hidden
    assert len(page.get("download_button")) == 2


def test_a_doubtful_result_is_shown_with_its_doubts(page, release):
    dark = picture() // 5
    page = upload(page, ("dark.png", image_bytes(dark)))
    found = Predictor.open(release).predict(dark)
    shown = (page.error or page.warning)[0].value
    assert all(doubt.text in shown for doubt in found.doubts)
    assert "The frame is very dark" in shown


def table_of(monkeypatch) -> list:
    """Where every table that the page offers as CSV is noted."""
    texts, write = [], app.table_csv
    monkeypatch.setattr(app, "table_csv", lambda rows: texts.append(write(rows)) or texts[-1])
    return texts


def test_a_batch_is_a_table_and_a_csv_that_no_spreadsheet_runs(page, release, monkeypatch):
    texts = table_of(monkeypatch)
    names = ["a.png", "=cmd|' -C calc'!A0.png", "+b.png", "-c.png", "@d.png", "\t=e.png", "f,g.png"]
    files = [(name, image_bytes(picture(seed))) for seed, name in enumerate(names)]
    page = upload(
        page, *files, ("text.png", b"text"), ("noise.png", image_bytes(NOISE)),
        ("cine.dcm", dicoms.to_bytes(dicoms.make_us(CINE))),
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(texts[-1])))
    assert len(rows) == len(names) + 2 + len(CINE)
    assert not [row for row in rows if row["file"].strip()[0] in "=+-@"]
    assert rows[1]["file"] == "'" + names[1]
    predictor = Predictor.open(release)
    for seed, row in enumerate(rows[: len(names)]):
        found = predictor.predict(picture(seed))
        assert int(row["area_px"]) == found.area_px
        assert float(row["confidence"]) == pytest.approx(found.confidence, abs=1e-3)
        assert row["area_mm2"] == row["problem"] == ""
    assert rows[-6]["problem"] == "is no PNG, JPEG, BMP or TIFF image, convert it to one"
    assert (rows[-5]["refused"], rows[-5]["area_px"]) == ("yes", "")
    for number, row in enumerate(rows[-4:], start=1):
        found = predictor.predict(CINE[number - 1], spacing_mm=(0.08, 0.08))
        assert (int(row["frame"]), int(row["area_px"])) == (number, found.area_px)
        assert float(row["area_mm2"]) == pytest.approx(found.area_mm2, abs=1e-3)
    shown = page.dataframe[0].value
    assert list(shown["file"]) == [row["file"] for row in rows]
    page = page.selectbox(key="which").select_index(2).run()
    assert metrics(page) == expected(predictor.predict(picture(2)))
    page = next(t for t in page.toggle if t.label == "Measure all 10 files").set_value(False).run()
    assert not page.dataframe


def test_a_scale_counts_for_the_files_it_was_typed_for(page):
    page = upload(page, ("a.png", PNG))
    page = page.number_input[0].set_value(0.1).run()
    assert "mm²" in metrics(page)["Area"]
    page = upload(page, ("b.png", image_bytes(picture(1))))
    assert " px" in metrics(page)["Area"]
    page = upload(page, ("a.png", PNG), ("b.png", image_bytes(picture(1))))
    page = page.number_input[0].set_value(0.1).run()
    assert "For all files that have no scale of their own." in [each.value for each in page.caption]
    assert page.dataframe[0].value["area_mm2"].notna().all()


def test_another_release_at_the_same_place_measures_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("THYROID_RELEASE", str(write_release(tmp_path)))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    page = upload(page, ("a.png", PNG), ("b.png", image_bytes(picture(1))))
    before = metrics(page)["Area"]
    write_release(tmp_path, models=("segnet", "unet"))  # whose unet has another threshold
    page = page.pills(key="models").set_value(["unet"]).run()
    assert not page.exception
    assert metrics(page)["Area"] != before
    assert metrics(page)["Area"] == f"{page.dataframe[0].value['area_px'][0]:,} px"


def test_many_frames_are_measured_on_request(page, monkeypatch):
    texts = table_of(monkeypatch)
    cine = np.stack([picture(seed) for seed in range(app.AT_ONCE + 1)])
    page = upload(page, ("cine.dcm", dicoms.to_bytes(dicoms.make_us(cine))))
    assert not texts
    page = next(t for t in page.toggle if t.label == "Measure all 13 frames").set_value(True).run()
    assert len(texts[0].splitlines()) == 14
    assert len(page.dataframe[0].value) == 13


def test_no_more_files_are_taken_than_said(page, monkeypatch):
    monkeypatch.setattr(app, "MAX_FILES", 2)
    page = upload(page, *((f"{seed}.png", image_bytes(picture(seed))) for seed in range(3)))
    assert page.warning[0].value == "Of 3 files the first 2 are taken."
    assert len(page.selectbox(key="which").options) == 2


@pytest.mark.parametrize("syntax", dicoms.SYNTAXES)
def test_a_cine_by_its_slider_and_its_segmentation(page, release, syntax):
    content = dicoms.to_bytes(dicoms.make_us(CINE, syntax=syntax, spacing_mm=(0.1, 0.2)))
    page = upload(page, ("cine.dcm", content))
    predictor = Predictor.open(release)
    images = list(dicom.read_frames(dicom.read_file(content)))
    for number in (1, 3):
        slider = next(each for each in page.slider if each.label == "Frame")
        page = slider.set_value(number).run()
        found = predictor.predict(images[number - 1], spacing_mm=(0.1, 0.2))
        assert metrics(page) == expected(found)
        assert "mm²" in metrics(page)["Area"]
    assert page.number_input[0].disabled
    assert names_of(page.main.get("download_button"))[2] == "DICOM SEG, all frames"
    masks = {}
    for threshold in (None, 0.8):
        seg = app.make_segmentation(app.read_upload(content, ".dcm"), predictor, threshold)
        read = pydicom.dcmread(io.BytesIO(seg))
        masks[threshold] = read.pixel_array
        for image, mask in zip(images, read.pixel_array, strict=True):
            assert np.array_equal(mask, predictor.predict(image, threshold=threshold).mask)
        masks[threshold, "uid"] = read.SOPInstanceUID
    assert (masks[None] != masks[0.8]).any()
    assert masks[None, "uid"] != masks[0.8, "uid"]  # another mask is another object


def test_the_apps_mask_is_the_predictors(page, release, tmp_path, monkeypatch):
    """Whatever kind of file brings the frame."""
    written, write = [], app.mask_png
    monkeypatch.setattr(app, "mask_png", lambda mask: written.append(mask) or write(mask))
    kinds = {"a.png": PNG, "a.bmp": image_bytes(picture(), "BMP"),
             "a.tif": image_bytes(picture(), "TIFF"), "a.jpg": image_bytes(picture(), "JPEG"),
             "a.dcm": us(), "without-ending": us(syntax="rle")}  # fmt: skip
    predictor = Predictor.open(release)
    for name, content in kinds.items():
        page = upload(page, (name, content))
        if content[128:132] == b"DICM":
            image = picture()
        else:
            (tmp_path / name).write_bytes(content)
            image = frames.read_gray(tmp_path / name)
        assert np.array_equal(written[-1], predictor.predict(image).mask)
    assert len(written) == len(kinds)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_upload_is_answered_by_a_sentence(
    used_page, name, tmp_path, monkeypatch, capfd, caplog
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    page = upload(used_page, (name, BROKEN[name]))
    assert len(page.error) == 1
    text = page.error[0].value
    assert re.fullmatch(r"[^\n]+\.", text)
    assert "Traceback" not in text
    assert len(text) < 300
    if name == "one-pixel.png":
        assert text.startswith("**Refused.** ")
    else:
        assert text.startswith(f"`{name.replace('`', chr(39))[-80:]}` ")
        assert not page.metric
    assert not list((tmp_path / "temporary").iterdir())
    said = "".join(capfd.readouterr()) + caplog.text
    assert name not in said
    assert "Phantom^Anna" not in said + text


def test_files_within_the_uploaders_limit_and_beyond_the_apps(page, monkeypatch):
    monkeypatch.setattr(app, "MAX_MB", 0)
    page = upload(page, ("frame.png", image_bytes(picture(77))))
    assert page.error[0].value == "`frame.png` has more than 0 MB, save it smaller."
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (lambda: image_bytes(np.zeros((4001, 4001), np.uint8)), ".png"),
        (lambda: dicoms.to_bytes(dicoms.make_us(np.zeros((4001, 4001), np.uint8))), ".dcm"),
        (
            lambda: dicoms.to_bytes(
                dicoms.make_us(np.zeros((65, 1000, 1000), np.uint8), syntax="rle")
            ),
            ".dcm",
        ),
    ],
    ids=["png", "dicom", "cine"],
)
def test_more_pixels_than_the_app_takes(content, suffix):
    found = app.read_upload(content(), suffix)
    assert not found.frames
    assert re.fullmatch(r"has \d+ megapixels, give at most 8 a frame and 64 in all", found.problem)


def test_a_names_letters_have_no_meaning():
    assert app.escaped("<b>`x`</b>\n.png") == "`<b>'x'</b>�.png`"
    assert app.escaped("") == "`The file`"
    assert app.escaped("a\u202egnp.exe") == "`a�gnp.exe`"
    for start in "=+-@＝＠":
        assert app.safe_cell(f"{start}x") == f"'{start}x"
        assert app.safe_cell(f" {start}x").startswith("' ")
    assert app.safe_cell("x=1.png") == "x=1.png"


def test_an_overlay_by_hand():
    frame = np.full((4, 5), 100, np.uint8)
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    drawn = np.array(Image.open(io.BytesIO(app.draw_overlay(frame, mask, 0.5, 0))))
    assert drawn.shape == (800, 1000, 3)
    assert (drawn[:200] == 100).all()
    middle = (100 + np.array(app.BLUE)) / 2
    assert np.abs(drawn[200:600, 200:800] - middle).max() <= 1
    lined = np.array(Image.open(io.BytesIO(app.draw_overlay(frame, mask, 0.0, 1))))
    assert (lined[201, 500] == app.BLUE).all()
    assert (lined[400, 500] == 100).all()
    assert (lined[:200] == 100).all()  # the line lies within the mask
    for shape in ((3, 2000), (2000, 3), (1, 1000), (1000, 1)):  # a narrow one does not explode
        large = app.draw_overlay(np.zeros(shape, np.uint8), np.zeros(shape, bool), 1.0, 1)
        assert Image.open(io.BytesIO(large)).size == shape[::-1]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path / "nothing", "no model at"),
        (lambda path: (path / "release.json").unlink() or path, "release.json is missing"),
        (lambda path: (path / "release.json").write_text("{") and path, "is damaged"),
        (lambda path: (path / "unet.onnx").write_bytes(b"x") and path, "has changed"),
        (lambda path: (path / "unet.onnx").rename(path / "x.pt"), "x.pt needs torch"),
    ],
    ids=["nothing", "missing", "damaged", "changed", "torch"],
)
def test_a_model_that_cannot_be_opened_is_answered_by_a_sentence(
    release, tmp_path, monkeypatch, spoil, text
):
    shutil.copytree(release, tmp_path / "release")
    monkeypatch.setenv("THYROID_RELEASE", str(spoil(tmp_path / "release")))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    assert not page.exception
    assert len(page.error) == 1
    assert text in page.error[0].value
    assert not page.file_uploader


def test_where_no_model_is_there_the_page_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv("THYROID_RELEASE", raising=False)
    monkeypatch.setattr(app, "RELEASES", (str(tmp_path / "one"), str(tmp_path / "other")))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    assert not page.exception
    assert "make demo" in page.error[0].value


def test_a_model_is_named_on_the_command_line_or_in_the_environment(release, monkeypatch):
    monkeypatch.setenv("THYROID_RELEASE", "from/environment")
    assert app.find_release().parts[-2:] == ("from", "environment")
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", "--model", str(release)])
    assert app.find_release() == release


def test_one_onnx_is_a_model_too(release, monkeypatch):
    monkeypatch.setenv("THYROID_RELEASE", str(release / "segnet.onnx"))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    assert not page.exception
    assert list(page.pills(key="models").options) == ["segnet"]


def test_it_runs_with_what_hosting_installs(release):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'matplotlib', 'seaborn', 'statsmodels',"
        "'yaml', 'tqdm', 'papermill', 'nbformat', 'highdicom', 'onnx', 'pynetdicom'))\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_file({str(ENTRY)!r}, default_timeout=30).run()\n"
        "assert not page.exception, page.exception\n"
        "page = page.slider(key='threshold').set_value(0.4).run()\n"
        "print(len(page.image), page.exception)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"THYROID_RELEASE": str(release)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "1"


def test_hosting_installs_what_the_app_needs_and_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = {re.split("[<>=]", need)[0]: need for need in project["dependencies"]}
    wanted = project["optional-dependencies"]["app"]
    wanted = [*wanted, *(base[name] for name in ("numpy", "pandas", "pillow", "scipy"))]
    lines = (ENTRY.parent / "requirements.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(wanted)
    # hosting takes the first of these that it finds beside the entry
    assert not [
        name for name in ("uv.lock", "Pipfile", "environment.yml") if (ENTRY.parent / name).exists()
    ]


def test_limits_are_said_alike_and_nobody_is_told():
    config = tomllib.loads((ENTRY.parent / ".streamlit" / "config.toml").read_text("utf-8"))
    assert config["server"]["maxUploadSize"] == app.MAX_MB
    assert config["browser"]["gatherUsageStats"] is False
    assert config["client"]["showErrorDetails"] == "none"
    assert {"light", "dark"} <= set(config["theme"])


def test_the_committed_release_is_the_demos_selected_model(monkeypatch):
    """With it the app starts where no demo was run."""
    path = ROOT / app.RELEASES[1]
    release = json.loads((path / "release.json").read_text("utf-8"))
    demo = json.loads((ROOT / "results/reference/demo/selected.json").read_text("utf-8"))
    assert list(release["models"]) == [release["selected"]] == [demo["model"]]
    for line in (path / "SHA256SUMS").read_text("utf-8").splitlines():
        digest, name = line.split()
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    monkeypatch.setenv("THYROID_RELEASE", str(path))
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    assert not page.exception
    assert page.success
    assert metrics(page)["Area"].endswith(" px")


def contrast(one: str, other: str) -> float:
    """The contrast of two colours by WCAG 2, 1 to 21."""
    light = []
    for colour in (one, other):
        levels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(light) / min(light)


def test_colours_can_be_told_apart():
    theme = tomllib.loads((ENTRY.parent / ".streamlit" / "config.toml").read_text("utf-8"))["theme"]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for of in (theme["light"], theme["dark"]):
        grounds = [of["backgroundColor"], of["secondaryBackgroundColor"]]
        grounds += [of["sidebar"]["backgroundColor"], of["sidebar"]["secondaryBackgroundColor"]]
        for ground in grounds:
            assert contrast(of["textColor"], ground) >= 7
            assert contrast(of["primaryColor"], ground) >= 4.5
            assert contrast(of["grayColor"], ground) >= 4.5


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(release, tmp_path_factory):
    """The app, started from another folder: its address, and the file with what it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, temporary = (tmp_path_factory.mktemp("server") / name for name in ("log", "temporary"))
    temporary.mkdir()
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(ENTRY), "--server.headless=true",
             "--server.address=127.0.0.1", f"--server.port={port}", "--", "--model", str(release)],
            cwd=log.parent, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            time.sleep(0.1)
        yield address, log, temporary
    finally:
        process.terminate()
        process.wait(30)


def open_page(browser, address: str, *, width=1440, height=900, theme="light"):
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme, accept_downloads=True
    )
    page.set_default_timeout(20_000)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.locator("[data-testid=stImage] img").wait_for()
    return page


def give(page, *files: tuple[str, bytes]) -> None:
    """Upload through the page's own control, in place of what was there."""
    while page.get_by_role("button", name=re.compile("^Remove ")).count():
        page.get_by_role("button", name=re.compile("^Remove ")).first.click()
        page.get_by_test_id("stApp").and_(
            page.locator("[data-test-script-state=notRunning]")
        ).wait_for()
    page.locator("input[type=file]").set_input_files(
        [{"name": n, "mimeType": "application/octet-stream", "buffer": c} for n, c in files]
    )


def fetch(page, label: str) -> bytes:
    page.locator("[data-test-script-state=notRunning]").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path()).read_bytes()


def test_in_a_browser_from_upload_to_download(browser, server, release, record_property):
    address, log, temporary = server
    page, predictor = open_page(browser, address), Predictor.open(release)
    took = []
    for seed in (8, 7, 5):  # the quickest counts, as other tests may run beside this one
        found = predictor.predict(picture(seed))
        begun = time.perf_counter()
        give(page, ("frame.png", image_bytes(picture(seed))))
        shown = page.locator(f"img[alt$='thyroid by unet: {found.area_px} px']")
        shown.wait_for()
        shown.evaluate("image => image.decode()")  # until it can be seen
        took.append(round(time.perf_counter() - begun, 2))
    record_property("seconds from a PNG to its result", took)
    assert min(took) < 3, took
    assert page.get_by_test_id("stMetricValue").first.inner_text() == f"{found.area_px:,} px"
    assert shown.evaluate("image => image.complete && image.naturalWidth") == 1040
    mask = Image.open(io.BytesIO(fetch(page, "Mask, PNG")))
    assert np.array_equal(np.array(mask), found.mask * np.uint8(255))
    overlay = np.array(Image.open(io.BytesIO(fetch(page, "Overlay, PNG"))))
    assert overlay.shape == (720, 1040, 3)
    blue = overlay[4::8, 4::8, 2].astype(int) - overlay[4::8, 4::8, 0] > 20  # the pixels' middles
    assert np.array_equal(blue, found.mask)

    content = dicoms.to_bytes(dicoms.make_us(CINE, syntax="jpeg"))
    images = list(dicom.read_frames(dicom.read_file(content)))
    cine = [predictor.predict(image, spacing_mm=(0.08, 0.08)) for image in images]
    give(page, ("cine.dcm", content))
    page.locator(f"img[alt='Ultrasound frame 1, thyroid by unet: {cine[0].area_px} px']").wait_for()
    slider = page.get_by_role("slider", name="Frame")
    for number in (2, 3):
        slider.press("ArrowRight")
        what = f"Ultrasound frame {number}, thyroid by unet: {cine[number - 1].area_px} px"
        page.locator(f"img[alt='{what}']").wait_for()
    area = page.get_by_test_id("stMetricValue").first.inner_text()
    assert area == f"{cine[2].area_mm2:,.1f} mm²"
    read = pydicom.dcmread(io.BytesIO(fetch(page, "DICOM SEG, all frames")))
    assert np.array_equal(read.pixel_array, np.stack([each.mask for each in cine]))
    table = fetch(page, "Table, CSV").decode()
    assert [int(row["area_px"]) for row in csv.DictReader(io.StringIO(table))] == [
        each.area_px for each in cine
    ]
    assert {urllib.parse.urlsplit(url).netloc for url in page.asked if url.startswith("http")} == {
        urllib.parse.urlsplit(address).netloc
    }  # nobody else was asked for anything
    said = log.read_text("utf-8")
    assert not [word for word in ("frame.png", "cine.dcm", "Anna", "Traceback") if word in said]
    assert not list(temporary.rglob("*upload*"))
    page.close()


def test_in_a_browser_each_broken_upload_is_answered(browser, server):
    """All in one batch, then each by itself, chosen with the keyboard."""
    address, log, _ = server
    page, alarms = open_page(browser, address), []
    page.on("dialog", lambda dialog: alarms.append(dialog.message) or dialog.dismiss())
    names = list(BROKEN)
    give(page, *BROKEN.items())
    for place, name in enumerate(names):
        if place:
            chosen = page.get_by_role("combobox", name="File")
            chosen.click()
            page.get_by_role("option", name=name, exact=True).click()
        if name == "one-pixel.png":
            answer = page.get_by_test_id("stAlert").filter(has_text="Refused.")
        else:
            beginning = name.replace("`", "'")[-80:]
            answer = page.get_by_test_id("stAlert").filter(has_text=f"{beginning} ")
        answer.wait_for()
        assert answer.count() == 1
        assert page.get_by_test_id("stException").count() == 0
        assert "Traceback" not in page.inner_text("body")
    assert not alarms
    assert (
        page.locator("img[onerror], [data-testid=stAlert] img, [data-testid=stAlert] a").count()
        == 0
    )
    assert not [name for name in names if name in log.read_text("utf-8")]
    page.close()


@contextmanager
def settings(page, look):
    """Where the page is narrow, open its settings and close them again."""
    if look:
        page.get_by_test_id("stExpandSidebarButton").click()
        page.get_by_test_id("stSidebarContent").wait_for()
        look("settings")
    yield
    if look:
        page.get_by_test_id("stSidebarCollapseButton").locator("button").click()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1440, 900)])
def test_in_a_browser_of_any_size_and_theme(browser, server, tmp_path, width, height, theme):
    """Nothing is cut off or unnamed; the pictures in the test's folder are for looking at."""
    page = open_page(browser, server[0], width=width, height=height, theme=theme)

    def look(name: str) -> None:
        page.locator("[data-test-script-state=notRunning]").wait_for()
        page.wait_for_timeout(400)  # what slides in
        page.screenshot(path=tmp_path / f"{name}-{theme}-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        notice = page.get_by_text(NOTICE).bounding_box()
        assert notice["y"] + notice["height"] <= height
        assert page.evaluate(
            "y => document.elementFromPoint(20, y).className", notice["y"] + 5
        ) == "notice"  # and nothing lies over it  # fmt: skip
        boxes = [each.bounding_box() for each in page.get_by_test_id("stMetric").all()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)

    look("start")
    image = page.locator("[data-testid=stImage] img").bounding_box()
    assert image["width"] > (0.8 * width if width < 1100 else 0.45 * width)
    ground = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 380) == (theme == "light")
    with settings(page, look if width < 1000 else None):
        give(page, ("frame.png", PNG))
        page.get_by_role("button", name="segnet").click()
    page.locator("img[alt*='thyroid by segnet']").wait_for()
    look("side-by-side")
    with settings(page, look if width < 1000 else None):
        give(page, ("noise.png", image_bytes(NOISE)))
    page.get_by_text("Refused.").first.wait_for()
    look("refused")
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, img, [role=slider]")].filter(each =>
        each.offsetParent && each.getAttribute("alt") !== "" && !(each.ariaLabel || each.alt ||
        each.innerText || each.labels?.length || each.getAttribute("aria-labelledby"))).length"""
    )
    assert unnamed == 0
    page.close()


@pytest.mark.slow
def test_in_a_browser_by_keyboard_alone(browser, server):
    page = open_page(browser, server[0])
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText")
        )
    told = " ".join(filter(None, seen))
    for name in ("Threshold", "Opacity", "Outline", "mm per pixel", "unet", "Or an example"):
        assert name in told, told
    page.close()

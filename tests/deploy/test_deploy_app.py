"""The page, by Streamlit's own tests and in a real browser, compared with the predictor."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from pathlib import Path

import dicoms
import numpy as np
import onnxruntime
import pydicom
import pytest
from conftest import write_release
from pacs import free_port, listening
from PIL import Image
from streamlit.testing.v1 import AppTest
from test_deploy_predictor import picture, random_levels
from tiny_study import wait_until

from thyroid_lib.data import dicom, phantom
from thyroid_lib.data.label_maps import class_rgb
from thyroid_lib.deploy import NOTICE, app
from thyroid_lib.deploy.predictor import Predictor

pytestmark = pytest.mark.study  # AppTest takes seconds for each page
ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "app" / "streamlit_app.py"
CONFIG = tomllib.loads((ENTRY.parent / ".streamlit" / "config.toml").read_text("utf-8"))


def image_bytes(image: np.ndarray, kind: str = "PNG", **how) -> bytes:
    Image.fromarray(image).save(file := io.BytesIO(), format=kind, **how)
    return file.getvalue()


CINE = np.stack([picture(seed) for seed in range(4)])
NOISE = random_levels(60, 80)
PNG = image_bytes(picture())


def us(image=None, **attributes) -> bytes:
    return dicoms.to_bytes(dicoms.make_us(picture() if image is None else image, **attributes))


BROKEN = {  # bad pictures of every kind are in tests/data/test_bad_files.py
    "text.png": b"just a text",
    "one-pixel.png": image_bytes(np.zeros((1, 1), np.uint8)),
    "<img src=x onerror=alert(1)>.png": b"<html><script>alert(1)</script></html>",
    "![x](http:,,192.0.2.1,x.png) :red[x] $x$ `x`.png": b"<svg onload='alert(1)'/>",
    "ct.dcm": us(SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT"),
    "cut.dcm": us()[:2000],
    "picture.dcm": PNG,
}


def metrics(page) -> dict:
    return {element.label: element.value for element in page.metric}


def labelled(elements, label: str):
    return next(each for each in elements if each.label == label)


def class_lines(page) -> list[str]:
    return [each.proto.body for each in page.html if 'class="class"' in each.proto.body]


def open_app(monkeypatch, release):
    monkeypatch.setenv("THYROID_RELEASE", str(release))
    page = AppTest.from_file(str(ENTRY), default_timeout=120).run()
    assert not page.exception
    return page


@pytest.fixture
def page(release, monkeypatch):
    """The start page, with the release that takes no training."""
    return open_app(monkeypatch, release)


@pytest.fixture
def tables(monkeypatch) -> list:
    """Every table that the page offers as CSV."""
    texts, write = [], app.table_csv
    monkeypatch.setattr(app, "table_csv", lambda *of: texts.append(write(*of)) or texts[-1])
    return texts


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


def test_every_example_is_a_phantom_already_segmented(page, release):
    assert any(f'role="note">{NOTICE}<' in element.proto.body for element in page.html)
    for example, (sweep, count) in app.EXAMPLES.items():
        page = page.selectbox(key="example").select(example).run()
        image = phantom.make_sweep(seed=7, sweep=sweep, frames=count, text=False)["images"][0]
        found = Predictor.open(release).predict(image)
        assert found.area_px > 0
        if found.refused:
            page = labelled(page.toggle, "Show the refused result").set_value(True).run()
        assert metrics(page) == expected(found)


def test_doubts_are_shown_and_a_refused_result_on_request_alone(page, release):
    page = upload(page, ("noise.png", image_bytes(NOISE)))
    found = Predictor.open(release).predict(NOISE)
    assert page.error[0].value == "**Refused.** " + " ".join(doubt.text for doubt in found.doubts)
    assert set(metrics(page).values()) == {"–"}
    assert not page.get("download_button")
    page = labelled(page.toggle, "Show the refused result").set_value(True).run()
    assert metrics(page) == expected(found)
    assert page.error  # still marked


def test_an_uploads_numbers_are_the_predictors(page, release):
    predict = Predictor.open(release).predict
    a, b = ("a.png", PNG), ("b.png", image_bytes(picture(1)))
    page = upload(page, a)
    assert page.success[0].value == "Quality checks passed."
    assert [each.label for each in page.get("download_button")] == ["Mask, PNG", "Overlay, PNG"]
    assert metrics(page) == expected(predict(picture()))
    page = page.number_input[0].set_value(0.125).run()
    assert metrics(page) == expected(predict(picture(), spacing_mm=(0.125, 0.125)))
    page = upload(page, b)  # a scale counts for the files that it was typed for
    page = page.slider(key="threshold").set_value(0.8).run()
    assert metrics(page) == expected(predict(picture(1), threshold=0.8))
    page = upload(page, a, b).number_input[0].set_value(0.1).run()
    assert page.dataframe[0].value["area_mm2"].notna().all()


def test_models_stand_side_by_side_each_by_its_own_threshold(page, release):
    page = upload(page, ("frame.png", PNG))
    page = page.pills(key="models").set_value(["segnet", "unet"]).run()
    assert [each.value for each in page.main.subheader] == ["unet", "segnet"]
    areas = [each.value for each in page.metric if each.label == "Area"]
    found = [Predictor.open(release, model=name).predict(picture()) for name in ("unet", "segnet")]
    assert areas == [f"{each.area_px:,} px" for each in found]
    assert areas[0] != areas[1]


def test_each_class_has_its_colour_its_numbers_and_its_rows(class_release, monkeypatch, tables):
    page = upload(open_app(monkeypatch, class_release), ("frame.png", PNG))
    predict = Predictor.open(class_release).predict
    found = predict(picture())
    for text, each, colour in zip(class_lines(page), found.classes, class_rgb(2), strict=True):
        size = "{:.0f} × {:.0f} px".format(*each.diameters_px)
        said = each.name, f"{each.area_px:,} px", f"{size}, confidence {each.confidence:.2f}"
        assert tuple(re.findall(r">([^<>\n]+)<", text)) == said
        assert f"background: rgb{colour}" in text
    assert not page.metric
    page = upload(page, ("dim.png", image_bytes(np.minimum(picture(), 140))))
    assert [text.count("none found") for text in class_lines(page)] == [0, 1]
    labels = [each.label for each in page.get("download_button")]
    assert labels == ["Label map, PNG", "Overlay, PNG"]
    page = upload(page, ("cine.dcm", us(CINE)), ("noise.png", image_bytes(NOISE)))
    rows = list(csv.DictReader(io.StringIO(tables[-1])))
    expected = [each for image in CINE for each in predict(image).classes]
    assert [row["class"] for row in rows] == ["gland", "nodule"] * (len(CINE) + 1)
    assert [int(row["area_px"]) for row in rows[:-2]] == [each.area_px for each in expected]
    assert [(row["area_px"], row["parts"], row["refused"]) for row in rows[-2:]] == [
        ("", "", "yes")
    ] * 2
    of = app.read_upload(us(CINE), ".dcm"), Predictor.open(class_release), None
    seg = pydicom.dcmread(io.BytesIO(app.make_segmentation(*of)))
    assert np.array_equal(seg.pixel_array, [each.mask for each in expected])


def test_settings_of_the_view_run_no_network(release, tmp_path, monkeypatch):
    """Nor does a file that comes once more."""
    shutil.copytree(release, tmp_path / "release")  # no predictor has opened it
    runs, run = [], onnxruntime.InferenceSession.run
    counted = lambda *args: runs.append(1) or run(*args)  # noqa: E731
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    page = upload(open_app(monkeypatch, tmp_path / "release"), ("frame.png", PNG))
    assert len(runs) == 2  # the example, the upload
    before = page.image[0].value[0]
    page = page.toggle(key="outline").set_value(False).run()
    page = page.slider(key="opacity").set_value(0.9).run()
    assert page.image[0].value[0] != before
    page = page.slider(key="threshold").set_value(0.3).run()
    page = page.number_input[0].set_value(0.1).run()
    page = upload(page, ("again.png", PNG))
    assert len(runs) == 2
    upload(page, ("other.png", image_bytes(picture(6))))
    assert len(runs) == 3


def test_a_batch_is_a_table_and_a_csv_that_no_spreadsheet_runs(page, release, tables):
    names = ["a.png", "=cmd|' -C calc'!A0.png", "f,g.png", " ＝x.png"]
    files = [(name, image_bytes(picture(seed))) for seed, name in enumerate(names)]
    files += [("text.png", b"text"), ("noise.png", image_bytes(NOISE)), ("cine.dcm", us(CINE))]
    page = upload(page, *files)
    rows = list(csv.DictReader(io.StringIO(tables[-1])))
    guarded = [f"'{name}" if "=" in name or "＝" in name else name for name in names]
    others = ["text.png", "noise.png", *["cine.dcm"] * len(CINE)]
    assert [row["file"] for row in rows] == [*guarded, *others]
    for row, image in zip(rows[-len(CINE) :], CINE, strict=True):
        found = Predictor.open(release).predict(image, spacing_mm=(0.08, 0.08))
        assert int(row["area_px"]) == found.area_px
        assert float(row["confidence"]) == pytest.approx(found.confidence, abs=1e-3)
        assert float(row["area_mm2"]) == pytest.approx(found.area_mm2, abs=1e-3)
    assert [row["frame"] for row in rows[-len(CINE) :]] == ["1", "2", "3", "4"]
    text, noise = rows[len(names)], rows[len(names) + 1]
    assert "is no PNG, JPEG, BMP or TIFF image" in text["problem"]
    assert (noise["refused"], noise["area_px"]) == ("yes", "")


def test_another_release_at_the_same_place_measures_anew(tmp_path, monkeypatch):
    page = upload(open_app(monkeypatch, write_release(tmp_path)), ("a.png", PNG), ("b.png", PNG))
    before = metrics(page)["Area"]
    write_release(tmp_path, models=("segnet", "unet"))  # whose unet has another threshold
    page = page.pills(key="models").set_value(["unet"]).run()
    assert before != metrics(page)["Area"] == f"{page.dataframe[0].value['area_px'][0]:,} px"


def test_limits_of_frames_files_and_pixels(page, tables, monkeypatch):
    cine = np.stack([picture(seed) for seed in range(app.AT_ONCE + 1)])
    page = upload(page, ("cine.dcm", us(cine)))
    assert not tables  # until it is requested
    page = labelled(page.toggle, "Measure all 13 frames").set_value(True).run()
    assert len(tables[0].splitlines()) == 14
    monkeypatch.setattr(app, "MAX_FILES", 2)
    page = upload(page, *((f"{seed}.png", image_bytes(picture(seed))) for seed in range(3)))
    assert page.warning[0].value == "Of 3 files the first 2 are used."
    large = np.zeros((4001, 4001), np.uint8)
    several = us(np.zeros((65, 1000, 1000), np.uint8), syntax="rle")
    for content, suffix in ((image_bytes(large), ".png"), (us(large), ".dcm"), (several, ".dcm")):
        found = app.read_upload(content, suffix)
        assert re.fullmatch(r"has \d+ megapixels, give at most 8 .* 64 in all", found.problem)


def test_a_cine_by_its_slider_and_its_segmentation(page, release):
    content = us(CINE, syntax="jpeg", spacing_mm=(0.1, 0.2))
    page, predict = upload(page, ("cine.dcm", content)), Predictor.open(release).predict
    images = list(dicom.read_frames(dicom.read_file(content)))
    for number in (1, 3):
        page = labelled(page.slider, "Frame").set_value(number).run()
        assert metrics(page) == expected(predict(images[number - 1], spacing_mm=(0.1, 0.2)))
        assert "mm²" in metrics(page)["Area"]
    assert page.main.get("download_button")[2].label == "DICOM SEG, all frames"
    for threshold in (None, 0.8):
        of = app.read_upload(content, ".dcm"), Predictor.open(release), threshold
        seg = pydicom.dcmread(io.BytesIO(app.make_segmentation(*of)))
        masks = [predict(image, threshold=threshold).mask for image in images]
        assert np.array_equal(seg.pixel_array, masks)


def test_a_broken_upload_is_answered_by_a_sentence(page, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, content in BROKEN.items():
        [error] = upload(page, (name, content)).error
        assert re.fullmatch(r"[^\n]{1,299}\.", error.value)
        named = f"`{name.replace('`', chr(39))[-80:]}` "
        assert error.value.startswith("**Refused.** " if name == "one-pixel.png" else named)
        assert not list(tmp_path.iterdir())
        printed = "".join(capfd.readouterr()) + caplog.text
        assert name not in printed
        assert not re.search(r"Traceback|Phantom\^Anna", printed + error.value)


def test_an_overlay_by_hand():
    frame, mask = np.full((4, 5), 100, np.uint8), np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    filled, lined = (
        np.array(Image.open(io.BytesIO(app.draw_overlay(frame, mask, *how))))
        for how in ((0.5, 0), (0.0, 1))
    )
    assert filled.shape == (800, 1000, 3)
    assert (filled[:200] == 100).all()
    assert np.abs(filled[200:600, 200:800] - (100 + np.array(app.BLUE)) / 2).max() <= 1
    assert (lined[201, 500] == app.BLUE).all()
    assert (lined[400, 500] == 100).all()
    assert (lined[:200] == 100).all()  # the line lies within the mask
    labels = mask + mask * (np.arange(5) > 2).astype(np.uint8)  # the second class on the right
    both = app.draw_overlay(frame, labels, 1.0, 0, [(9, 8, 7), (1, 2, 3)])
    both = np.array(Image.open(io.BytesIO(both)))
    assert both[400, [100, 300, 500, 700, 900]].tolist() == [
        [100] * 3, [9, 8, 7], [9, 8, 7], [1, 2, 3], [100] * 3,
    ]  # fmt: skip


def test_a_model_that_cannot_be_opened_is_a_sentence(release, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "RELEASES", (str(tmp_path / "one"), str(tmp_path / "other")))
    copy = shutil.copytree(release, tmp_path / "release")
    (copy / "unet.onnx").write_bytes(b"x")
    cases = {copy / "x.pt": "no model at", copy: "has changed", "": "make demo"}
    for path, said in cases.items():
        page = open_app(monkeypatch, path)
        [error] = page.error
        assert said in error.value
        assert not page.file_uploader


def test_it_runs_with_what_hosting_installs(release):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'matplotlib', 'seaborn', 'statsmodels',"
        "'yaml', 'tqdm', 'papermill', 'nbformat', 'highdicom', 'onnx', 'pynetdicom'))\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_file({str(ENTRY)!r}, default_timeout=120).run()\n"
        "assert len(page.image) == 1 and not page.exception, page.exception"
    )
    env = os.environ | {"THYROID_RELEASE": str(release)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (ENTRY.parent / "requirements.txt").read_text("utf-8").splitlines()
    needs = {line for line in lines if not line.startswith("#")}
    assert needs <= {*project["dependencies"], *project["optional-dependencies"]["app"]}


def test_the_committed_release_is_the_demos_selected_model(monkeypatch):
    """With it the app starts where no demo was run."""
    path = ROOT / app.RELEASES[1]
    release = json.loads((path / "release.json").read_text("utf-8"))
    demo = json.loads((ROOT / "results/reference/demo/selected.json").read_text("utf-8"))
    assert list(release["models"]) == [release["selected"]] == [demo["model"]]
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=path, check=True)
    assert open_app(monkeypatch, path).success


def test_settings_of_the_page():
    assert CONFIG["browser"]["gatherUsageStats"] is False
    assert CONFIG["client"]["showErrorDetails"] == "none"
    for of in (CONFIG["theme"]["light"], CONFIG["theme"]["dark"]):  # text stands out from all
        for ground in (part["backgroundColor"] for part in (of, of["sidebar"])):
            assert np.ptp([sum(bytes.fromhex(c[1:])) for c in (of["textColor"], ground)]) > 500


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
    """The app, started from another folder: its address, the file with its log, its TMPDIR."""
    log, temporary = (tmp_path_factory.mktemp("server") / name for name in ("log", "temporary"))
    temporary.mkdir()
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        sys.executable, "-m", "streamlit", "run", ENTRY, "--server.headless=true",
        "--server.address=127.0.0.1", f"--server.port={port}", "--", "--model", release,
    ]  # fmt: skip
    env = os.environ | {"TMPDIR": str(temporary)}
    with open(log, "w") as file:
        how = {"cwd": log.parent, "stdout": file, "stderr": file, "env": env}
        process = subprocess.Popen(command, **how)
    try:
        wait_until(lambda: listening(port))
        yield address, log, temporary
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def open_page(browser, server):
    """Open the page in the browser; `asked` has the addresses of all its requests."""
    pages = []

    def run(*, width=1440, height=900, theme="light"):
        view = {"width": width, "height": height}
        page = browser.new_page(viewport=view, color_scheme=theme, accept_downloads=True)
        pages.append(page)
        page.set_default_timeout(120_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(server[0])
        page.locator("[data-testid=stImage] img").wait_for()
        return page

    yield run
    for page in pages:
        page.close()


def give(page, name: str, content: bytes) -> None:
    """Upload through the page's own control, in place of what was there."""
    while (remove := page.get_by_role("button", name=re.compile("^Remove "))).count():
        remove.first.click()
        page.locator("[data-test-script-state=notRunning]").wait_for()
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    page.locator("input[type=file]").set_input_files([file])


def fetch(page, label: str) -> bytes:
    page.locator("[data-test-script-state=notRunning]").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path()).read_bytes()


def test_in_a_browser_from_upload_to_download(open_page, server, release):
    address, log, temporary = server
    page, found = open_page(), Predictor.open(release).predict(picture())
    give(page, "frame.png", PNG)
    shown = page.locator(f"img[alt$='thyroid by unet: {found.area_px} px']")
    shown.wait_for()
    assert page.get_by_test_id("stMetricValue").first.inner_text() == f"{found.area_px:,} px"
    mask = Image.open(io.BytesIO(fetch(page, "Mask, PNG")))
    assert np.array_equal(np.array(mask), found.mask * np.uint8(255))
    assert fetch(page, "Overlay, PNG").startswith(b"\x89PNG")
    give(page, "cine.dcm", us(CINE, syntax="jpeg"))
    page.get_by_role("slider", name="Frame").press("ArrowRight")
    page.locator("img[alt^='Ultrasound frame 2, thyroid by unet']").wait_for()
    seg = pydicom.dcmread(io.BytesIO(fetch(page, "DICOM SEG, all frames")))
    assert seg.pixel_array.shape == CINE.shape
    assert fetch(page, "Table, CSV").count(b"cine.dcm") == len(CINE)
    alarms = []
    page.on("dialog", lambda dialog: alarms.append(dialog.message) or dialog.dismiss())
    for name in [each for each in BROKEN if "(" in each]:  # names and contents have no effect
        give(page, name, BROKEN[name])
        answer = page.get_by_test_id("stAlert").filter(has_text=name.replace("`", "'")[-80:])
        answer.wait_for()
        assert page.locator("img[onerror]").count() == answer.locator("img, a").count() == 0
        assert name not in log.read_text("utf-8")
    assert not alarms
    hosts = {urllib.parse.urlsplit(url).netloc for url in page.asked if url.startswith("http")}
    assert hosts == {urllib.parse.urlsplit(address).netloc}
    assert not re.search(r"frame\.png|cine\.dcm|Anna|Traceback", log.read_text("utf-8"))
    assert not list(temporary.rglob("*upload*"))


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (768, 1024), (1440, 900)])
def test_in_a_browser_of_any_size_and_theme(open_page, width, height, theme):
    """Nothing is cut off or unnamed."""
    page = open_page(width=width, height=height, theme=theme)
    page.locator("[data-test-script-state=notRunning]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    notice = page.get_by_text(NOTICE).bounding_box()
    assert notice["y"] + notice["height"] <= height
    top = page.evaluate("y => document.elementFromPoint(20, y).className", notice["y"] + 5)
    assert top == "notice"  # nothing lies over it
    image = page.locator("[data-testid=stImage] img").bounding_box()
    assert image["width"] > (0.8 * width if width < 1100 else 0.45 * width)
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, img, [role=slider]")].filter(each =>
        each.offsetParent && each.getAttribute("alt") !== "" && !(each.ariaLabel || each.alt ||
        each.innerText || each.labels?.length || each.getAttribute("aria-labelledby"))).length"""
    )
    assert unnamed == 0

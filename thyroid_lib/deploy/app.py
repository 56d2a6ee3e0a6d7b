"""A page for the selected model: a frame in; its outline, its size and what speaks against it out.

    make app
    streamlit run app/streamlit_app.py -- --model results/demo/deploy

Everything shown is what `Predictor` finds. ONNX Runtime, no torch. An upload lives in memory, and
in a temporary file for as long as it is read; its name and content are not logged.
"""

import argparse
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import numpy as np
import streamlit as st
from PIL import Image, ImageChops, ImageFilter
from pydicom import Dataset

from thyroid_lib import frames, phantom, place

try:
    from thyroid_lib.deploy import dicom
except ImportError:
    dicom = None
from thyroid_lib.deploy.predictor import Prediction, Predictor, mask_png, table_csv

RELEASES = ("results/demo/deploy", "results/reference/demo-release")  # where none is given
EXAMPLES = {  # name: sweep of seed 7, which the demo does not train on, and frames
    "Phantom 1": (16, 1),
    "Phantom 2": (14, 1),
    "Phantom 3, unlike the training frames": (21, 1),
    "Phantom cine, 12 frames": (16, 12),
}
MAX_MB, MAX_FILES = 50, 100  # the first as server.maxUploadSize
MAX_FRAME, MAX_PIXELS = 16_000_000, 64_000_000  # of one frame, of all of a file
AT_ONCE = 12  # frames that are measured unasked
BLUE = (58, 168, 255)  # the prediction in every figure of the study
SHOWN = 1000  # pixels across that a picture is drawn with, at least
NOTICE = "Research use, not for diagnosis"
STYLE = """<style>
.stMainBlockContainer {padding: 3.4rem clamp(1rem, 3vw, 3rem) 4.5rem; max-width: 1560px}
[data-testid=stSidebarHeader] {height: 2.2rem; margin: 0}
[data-testid=stSidebarContent] {padding-bottom: 2.5rem}
[data-testid=stExpandSidebarButton] {width: auto !important; padding: .2rem .7rem !important;
  border: 1px solid currentColor; border-radius: .6rem}
[data-testid=stExpandSidebarButton]::after {content: "Upload and settings"; font-size: .9rem;
  padding-left: .4rem; white-space: nowrap}
[data-testid=stImage] img {width: 100%; max-height: 72vh; object-fit: contain;
  background: #000; border-radius: .35rem}
[data-testid=stMetricValue] {font-variant-numeric: tabular-nums; font-size: 1.7rem}
[data-testid=stMetric] {min-width: 9.5rem}
.brand {display: flex; gap: .9rem; align-items: center}
.brand img {width: 3.2rem; flex: none}
.brand h1 {font-size: clamp(1.5rem, 3vw, 2rem); padding: 0; margin: 0; line-height: 1.15}
.brand p {margin: .1rem 0 0; opacity: .8}
@media (max-width: 1100px) {
  .stMainBlockContainer {padding-top: 4.6rem}
  .st-key-alone [data-testid=stColumn] {min-width: 100%}}
.notice {position: fixed; inset: auto 0 0 0; z-index: 1000000; padding: .3rem 1rem;
  text-align: center; font-weight: 600; font-size: .85rem; background: #f0c000; color: #14181c}
</style>"""
LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48"><rect width="48" height="48"
  rx="8" fill="#14181c"/><path d="M24 27c3 0 4-3 6-8s7-7 9-3 1 15-3 18-8-2-12-2-8 5-12 2-4-14-3-18
  7-2 9 3 3 8 6 8z" fill="#1f5c8c" stroke="#3aa8ff" stroke-width="2"/></svg>"""
HEAD = f"""<div class="brand"><img alt="" src="data:image/svg+xml,{quote(LOGO)}"><div>
  <h1>Thyroid outline</h1><p>Outlines the thyroid in an ultrasound frame, measures it, and says when
  not to trust it.</p></div></div><div class="notice" role="note">{NOTICE}</div>"""


@dataclass(frozen=True, eq=False)
class Upload:
    """What a file held: frames, uint8 (H,W) or RGB (H,W,3), or one sentence on why there are none.

    spacing_mm: of rows and columns, where a DICOM file says it.
    dataset: the DICOM file itself.
    """

    frames: tuple = ()
    spacing_mm: tuple[float, float] | None = None
    dataset: Dataset | None = None
    problem: str = ""


@st.cache_resource(max_entries=4, show_spinner="Reading the file …")
def read_upload(content: bytes, name: str) -> Upload:
    """Read an uploaded picture or DICOM file; what cannot be read has a `problem`."""
    try:
        if len(content) > MAX_MB * 2**20:
            raise ValueError(f"has more than {MAX_MB} MB, save it smaller")
        if content[128:132] == b"DICM" or name.lower().endswith((".dcm", ".dicom")):
            dataset = dicom.read_file(content)
            pixels = dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1)
            if pixels > MAX_PIXELS:
                raise ValueError(
                    f"has more than {MAX_PIXELS // 10**6} megapixels, send a part of it"
                )
            found = tuple(dicom.read_frames(dataset))
            return Upload(found, dicom.spacing_of(dataset), dataset)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "upload"  # and not by its own name, which may be anything
            path.write_bytes(content)
            gray = frames.read_gray(path)
        if gray.size > MAX_FRAME:
            raise ValueError(f"has more than {MAX_FRAME // 10**6} megapixels, save it smaller")
        return Upload((gray,))
    except ValueError as error:
        return Upload(problem=str(error).removeprefix("'upload' "))


@st.cache_resource(show_spinner=False)
def draw_example(name: str) -> Upload:
    """Draw an example, a phantom."""
    sweep, count = EXAMPLES[name]
    return Upload(
        tuple(phantom.make_sweep(seed=7, sweep=sweep, frames=count, text=False)["images"])
    )


def find_release() -> Path:
    """Return the model that was asked for, or the demo's.

    Raises:
        FileNotFoundError: there is none; says how to make one.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default=os.environ.get("THYROID_RELEASE", ""))
    given = parser.parse_known_args()[0].model
    for path in map(place, [given] if given else RELEASES):
        if given or path.is_dir():
            return path
    raise FileNotFoundError(
        "There is no model yet: run “make demo”, which trains and exports one in minutes, or give "
        "one, streamlit run app/streamlit_app.py -- --model FOLDER."
    )


def list_models(path: Path) -> dict[str, str]:
    """Return the models of a release, the selected one first, each with the precision to run."""
    if not path.is_dir():
        return {"": "fp32"}
    Predictor.open(path)  # says what is wrong with it
    release = json.loads((path / "release.json").read_text("utf-8"))
    names = sorted(release["models"], key=lambda name: name != release["selected"])
    return {name: sorted(release["models"][name])[0] for name in names}  # "fp32" before "int8"


@st.cache_resource(max_entries=8, show_spinner="Opening the model …")
def open_predictor(path: Path, model: str, precision: str, changed: int) -> Predictor:
    """Open a model, which then remembers its answers: what does not change the frame runs nothing.

    Args:
        changed: when the release was made, so that a new one is opened anew.
    """
    if path.suffix == ".pt":
        raise ValueError(f"{path.name} needs torch: give a release folder or an .onnx, by 6-deploy")
    predictor = Predictor.open(path, model=model, precision=precision)
    network = predictor.network

    @lru_cache(maxsize=128)  # by content; 256² px take 0.3 MB each
    def answer(content: bytes, shape: tuple) -> np.ndarray:
        return network(np.frombuffer(content, np.uint8).reshape(shape))

    predictor.network = lambda squares: answer(squares.tobytes(), squares.shape)
    return predictor


def draw_overlay(frame: np.ndarray, mask: np.ndarray, opacity: float, line: int) -> bytes:
    """Draw a mask over its frame, as PNG; small frames are enlarged by a whole number.

    Args:
        frame: uint8 (H,W) or (H,W,3); mask: bool (H,W).
        opacity: of the area, from 0 to 1; line: width of the outline, 1 is thin, 0 none.
    """
    factor = max(1, -(-SHOWN // frame.shape[1]))
    size = (frame.shape[1] * factor, frame.shape[0] * factor)
    picture = Image.fromarray(frame).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    large = Image.fromarray(mask).convert("L").resize(size, Image.Resampling.NEAREST)
    picture.paste(BLUE, mask=large.point(lambda level: round(level * opacity)))
    if line:
        inner = large.filter(ImageFilter.MinFilter(2 * round(line * size[0] / 600) + 1))
        picture.paste(BLUE, mask=ImageChops.subtract(large, inner))
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return file.getvalue()


COLUMNS = (
    "file", "frame", "model", "height", "width", "area_px", "area_mm2", "longest_px", "across_px",
    "longest_mm", "across_mm", "confidence", "doubts", "refused", "problem",
)  # fmt: skip


@st.cache_data(max_entries=1000, show_spinner=False)
def measure(
    key: str, name: str, model: str, settings: tuple, _load: Callable, _predictor: Predictor
) -> list[dict]:
    """Measure all frames of one file, one row each; a refused frame's numbers are left out.

    Args:
        key: the file's checksum; settings: spacing that the user gave, and threshold.
    """
    upload, (spacing, threshold) = _load(), settings
    blank = dict.fromkeys(COLUMNS) | {"file": safe_cell(name), "model": model}
    if upload.problem:
        return [blank | {"problem": upload.problem}]
    rows = []
    for number, frame in enumerate(upload.frames, start=1):
        found = _predictor.predict(
            frame, spacing_mm=upload.spacing_mm or spacing, threshold=threshold
        )
        row = blank | {"frame": number, "refused": "yes" if found.refused else None}
        row["height"], row["width"] = found.mask.shape
        row["doubts"] = " ".join(doubt.code for doubt in found.doubts) or None
        if not found.refused:
            row["area_px"] = found.area_px
            row["longest_px"], row["across_px"] = (round(each, 1) for each in found.diameters_px)
            if found.area_mm2 is not None:
                row["area_mm2"] = round(found.area_mm2, 2)
                row["longest_mm"], row["across_mm"] = (round(x, 2) for x in found.diameters_mm)
            if found.confidence is not None:
                row["confidence"] = round(found.confidence, 4)
        rows.append(row)
    return rows


def safe_cell(name: str) -> str:
    """Return a name as a CSV's cell that no spreadsheet takes for a formula."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name)
    return f"'{name}" if name.lstrip()[:1] in tuple("=+-@＝＋－＠") else name


def escaped(name: str) -> str:
    """Return a name for a sentence of the page: as code, in which nothing has a meaning."""
    name = "".join(letter if letter.isprintable() else "�" for letter in name[-80:])
    return f"`{name.replace('`', chr(39)) or 'file'}`"


def show_result(predictor, upload, index, source, settings, view, places) -> None:
    """Show what one model finds in one frame: picture, doubts, numbers, downloads."""
    (spacing, threshold), (picture, doubts, numbers, downloads) = settings, places
    frame, model = upload.frames[index], predictor.about["model"]
    found = predictor.predict(frame, spacing_mm=spacing, threshold=threshold)
    with doubts:
        show_doubts(found)
        shown = not found.refused or st.toggle(
            "Show the refused result", key=f"show {source.key} {index} {model}"
        )
    with numbers:
        show_numbers(found, shown)
    overlay = draw_overlay(frame, found.mask & shown, *view)
    what = f"thyroid by {model}: {found.area_px} px" if shown else "result refused, not shown"
    picture.image(
        overlay, f"{escaped(source.name)}, {frame.shape[1]} × {frame.shape[0]} px",
        width="stretch", alt=f"Ultrasound frame {index + 1}, {what}",
    )  # fmt: skip
    stem = re.sub(r"[^\w.-]", "_", Path(source.name).stem)[:60] or "frame"
    stem += f"-{index + 1}" if len(upload.frames) > 1 else ""
    files = {"Mask": mask_png(found.mask), "Overlay": overlay} if shown else {}
    for what, content in files.items():
        downloads.download_button(
            f"{what}, PNG", content, f"{stem}-{model}-{what.lower()}.png", "image/png",
            icon=":material/download:", on_click="ignore", width="stretch", key=f"{what} {model}",
        )  # fmt: skip


def make_places(chosen: list[str]) -> list[tuple]:
    """Return where picture, doubts, numbers and downloads of each model go."""
    if len(chosen) == 1:
        left, right = st.container(key="alone").columns([2.8, 1], gap="medium")
        rest = (right.container(), *(right.container(horizontal=True) for _ in range(2)))
        return [(left, *rest)]
    places = []
    for column, name in zip(st.columns(len(chosen)), chosen, strict=True):
        column.subheader(name, anchor=False)
        picture, numbers, doubts = (column.container() for _ in range(3))
        places.append((picture, doubts, numbers, column.container(horizontal=True)))
    return places


def show_doubts(found: Prediction) -> None:
    texts = " ".join(doubt.text for doubt in found.doubts)
    if found.refused:
        st.error(f"**Refused.** {texts}", icon=":material/block:")
    elif texts:
        st.warning(f"**Look twice.** {texts}", icon=":material/warning:")
    else:
        st.success("Quality checks passed.", icon=":material/check_circle:")


def show_numbers(found: Prediction, shown: bool) -> None:
    area, diameters = f"{found.area_px:,} px", "{:.0f} × {:.0f} px".format(*found.diameters_px)
    share = f"{100 * found.mask.mean():.1f} % of the frame"
    if found.area_mm2 is not None:
        area, share = f"{found.area_mm2:,.1f} mm²", f"{area}, {share}"
        diameters = "{:.1f} × {:.1f} mm".format(*found.diameters_mm)
    sure = "–" if found.confidence is None else f"{found.confidence:.2f}"
    for label, value, note, more in (
        ("Area", area, share, "Of all parts."),
        ("Diameters", diameters, "longest × across it", "Of the largest part: the longest straight "
         "line within it, and its extent across that one."),
        ("Confidence", sure, "expected Dice", "How well the outline should overlap with an "
         "expert's: 1 is all of it. Calibrated on validation frames."),
    ):  # fmt: skip
        st.metric(
            label, value if shown else "–", note if shown else None, delta_color="off",
            delta_arrow="off", border=True, help=more,
        )  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A file, or an example, that was not read yet."""

    name: str
    key: str
    load: Callable[[], Upload]


def find_sources(files: list, example: str) -> list[Source]:
    if not files:
        return [Source(example, example, lambda: draw_example(example))]
    sources = []
    for file in files:
        content = file.getvalue()
        kind = Path(file.name).suffix.lower()
        load = lambda content=content, kind=kind: read_upload(content, kind)  # noqa: E731
        sources.append(Source(file.name, hashlib.sha256(content).hexdigest() + kind, load))
    return sources


def show_table(sources: list[Source], predictors: dict, settings: tuple, count: int) -> None:
    """Measure every frame of every file, on request where there are many; a table and its CSV."""
    what = "files" if len(sources) > 1 else "frames"
    if not st.toggle(f"Measure all {count} {what}", value=count <= AT_ONCE, key=f"all {count}"):
        return
    bar, rows = st.progress(0.0, "Measuring …"), []
    for place, source in enumerate(sources, start=1):
        for name, predictor in predictors.items():
            rows += measure(source.key, source.name, name, settings, source.load, predictor)
        bar.progress(place / len(sources), f"Measuring, {place} of {len(sources)} …")
    bar.empty()
    told = [name for name in COLUMNS if any(row[name] is not None for row in rows)]
    st.dataframe([{name: row[name] for name in told} for row in rows], hide_index=True)
    st.download_button("Table, CSV", table_csv(rows), "areas.csv", "text/csv", on_click="ignore")


def main() -> None:
    """Show the page."""
    st.set_page_config("Thyroid outline", LOGO, layout="wide")
    st.html(STYLE + HEAD)
    try:
        path = find_release()
        models = list_models(path)
        made = (path / "release.json" if path.is_dir() else path).stat().st_mtime_ns
        predictors = {
            name or path.stem: open_predictor(path, name, precision, made)
            for name, precision in models.items()
        }
    except (OSError, ValueError, ImportError) as error:
        st.error(str(error))
        st.stop()
    selected = next(iter(predictors))
    usual = predictors[selected].about["threshold"]
    with st.sidebar:
        st.subheader("Frame", anchor=False)
        files = st.file_uploader(
            "Upload frames", accept_multiple_files=True, key="files",
            help="PNG, JPEG, BMP, TIFF or DICOM, one or many. Nothing is kept.",
        )  # fmt: skip
        example = st.selectbox("Or an example", EXAMPLES, key="example", disabled=bool(files))
        st.subheader("Model", anchor=False)
        picked = st.pills(
            "Models", list(predictors), selection_mode="multi", default=selected, key="models",
            help="Several are shown side by side.",
        )  # fmt: skip
        chosen = [name for name in predictors if name in (picked or [selected])]
        about = predictors[chosen[0]].about
        st.caption(" · ".join([about["run_id"], f"{about['size']}² px", about["precision"]]))
        threshold = st.slider(
            "Threshold", 0.05, 0.95, usual, 0.01, key="threshold",
            help="A pixel is thyroid where its probability is above this.",
        )  # fmt: skip
        st.subheader("View", anchor=False)
        opacity = st.slider("Opacity", 0.0, 1.0, 0.3, 0.05, key="opacity")
        outline = st.toggle("Outline", value=True, key="outline")
    threshold = None if threshold == usual else threshold  # each model by its own
    sources = find_sources(files[:MAX_FILES], example)
    if len(files) > MAX_FILES:
        st.warning(f"Only the first {MAX_FILES} of {len(files)} files are taken.")
    which = 0
    if len(sources) > 1:
        which = st.selectbox(
            "File", range(len(sources)), format_func=lambda i: sources[i].name, key="which"
        )
    source = sources[which]
    upload = source.load()
    with st.sidebar:
        st.subheader("Scale", anchor=False)
        mm = st.number_input(
            "mm per pixel", 0.0, 10.0, None, 0.001, "%.4f", key="mm", placeholder="not known",
            disabled=upload.spacing_mm is not None,
            help="For areas in mm². Where a DICOM file has its own, that one counts.",
        )  # fmt: skip
        if upload.spacing_mm:
            st.caption("From the file: {:.4f} × {:.4f} mm.".format(*upload.spacing_mm))
    given = (mm, mm) if mm else None
    if upload.problem:
        st.error(f"{escaped(source.name)} {upload.problem}.", icon=":material/error:")
    else:
        index = 0
        if len(upload.frames) > 1:
            index = st.slider("Frame", 1, len(upload.frames), 1, key=f"frame {source.key}") - 1
        settings, view = (upload.spacing_mm or given, threshold), (opacity, outline * len(chosen))
        for name, places in zip(chosen, make_places(chosen), strict=True):
            show_result(predictors[name], upload, index, source, settings, view, places)
    count = len(sources) if len(sources) > 1 else len(upload.frames)
    if count > 1:
        several = {name: predictors[name] for name in chosen}
        show_table(sources, several, (given, threshold), count)


if __name__ == "__main__":
    main()

"""Web page (Streamlit) for a release: outline, size and doubts of uploaded frames.

    streamlit run app/streamlit_app.py -- --model results/demo/deploy

All results are `Predictor`'s, by ONNX Runtime without torch. An upload stays in memory, and in a
temporary folder while it is read; its name and content are not logged.
"""

import argparse
import html
import io
import json
import os
import re
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageChops
from scipy import ndimage

from thyroid_lib.data import phantom
from thyroid_lib.data.label_maps import class_rgb
from thyroid_lib.deploy import NOTICE
from thyroid_lib.deploy.predict_folder import mask_png, table_csv
from thyroid_lib.deploy.predictor import Prediction, Predictor, read_picture
from thyroid_lib.files.packages import packages
from thyroid_lib.files.paths import project_path

with packages("pydicom", "streamlit"):
    import streamlit as st
    from pydicom import Dataset

    from thyroid_lib.data import dicom
    from thyroid_lib.deploy.segmentation import segmentation

RELEASES = "results/demo/deploy", "results/reference/demo-release"  # the default: the first found
EXAMPLES = {  # name: sweep of seed 7, on which no study trains, and number of frames
    "Phantom 1": (29, 1), "Phantom 2": (34, 1), "Phantom 3, unlike the training frames": (31, 1),
    "Phantom cine, 12 frames": (29, 12),
}  # fmt: skip
MAX_FILES = 100
MAX_FRAME, MAX_ALL = 8, 64  # megapixels of one frame, of all frames of a file
AT_ONCE = 12  # files or frames that are measured without a request
BLUE = 58, 168, 255  # the prediction in every figure of the study; classes have their own colours
DRAWN = 1000  # pixels of a picture's longer side, at least
LOGO = Path(__file__).with_suffix(".svg")
CLASS = """<div class="class"><i style="background: rgb{}"></i><b>{}</b><span>{}</span>
<small>{}, confidence {}</small></div>"""


class Upload(NamedTuple):
    """The frames of a file, uint8 (H,W) or RGB (H,W,3), or a problem."""

    frames: tuple = ()
    spacing_mm: tuple[float, float] | None = None
    dataset: Dataset | None = None
    problem: str = ""
    name: str = ""


def read_upload(content: bytes, suffix: str) -> Upload:
    """Read a picture or a DICOM file; `problem` says why it cannot be used."""
    dataset = None
    try:
        if content[128:132] == b"DICM" or suffix.lower() in (".dcm", ".dicom"):
            dataset = dicom.read_file(content)
            dicom.check(dataset)
            frames, count = dicom.read_frames(dataset), int(dataset.get("NumberOfFrames") or 1)
            pixels, spacing = dataset.Rows * dataset.Columns, dicom.spacing_of(dataset)
        else:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "upload"  # the file's own name may hold anything
                path.write_bytes(content)
                frames, count, spacing = [read_picture(path)], 1, None
            pixels = frames[0].shape[0] * frames[0].shape[1]
        if pixels > MAX_FRAME * 10**6 or pixels * count > MAX_ALL * 10**6:
            most = f"give at most {MAX_FRAME} a frame and {MAX_ALL} in all"
            raise ValueError(f"has {pixels * count / 1e6:.0f} megapixels, {most}")
        return Upload(tuple(frames), spacing, dataset)
    except dicom.Refused as error:
        return Upload(problem=f"is not accepted: {error}")
    except ValueError as error:
        return Upload(problem=str(error).removeprefix("'upload' "))


@st.cache_resource(max_entries=2, scope="session", show_spinner="Reading …")
def load(key: str, _file) -> Upload:
    """Read an uploaded file, whose key is unique, or draw the example that the key names."""
    if _file:
        return read_upload(_file.getvalue(), Path(_file.name).suffix)._replace(name=_file.name)
    sweep, count = EXAMPLES[key]
    drawn = phantom.make_sweep(seed=7, sweep=sweep, frames=count, text=False)
    return Upload(tuple(drawn["images"]), name=key)


def find_release() -> Path:
    """Return the model that --model or THYROID_RELEASE names, else the demo's."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", default=os.environ.get("THYROID_RELEASE", ""))
    given = parser.parse_known_args()[0].model
    for path in map(project_path, [given] if given else RELEASES):
        if given or path.is_dir():
            return path
    raise FileNotFoundError("There is no model: “make demo” makes one, or give --model FOLDER.")


@st.cache_resource(max_entries=2, show_spinner="Opening the models …")
def open_models(path: Path, changed: int) -> dict[str, Predictor]:
    """Open a release's models, the selected one first; `changed` is its modification time."""
    selected = Predictor.open(path)
    found = {selected.name: selected}
    if path.is_dir():
        models = json.loads((path / "release.json").read_text("utf-8"))["models"]
        for name in sorted(set(models) - set(found)):  # "fp32" comes before "int8"
            found[name] = Predictor.open(path, model=name, precision=min(models[name]))
    for predictor in found.values():
        predictor.network = _cached(predictor.network)
    return found


def _cached(network):
    @lru_cache(maxsize=128)  # opacity, threshold and spacing do not run the network again
    def logits(content: bytes, shape: tuple) -> np.ndarray:
        return network(np.frombuffer(content, np.uint8).reshape(shape))

    return lambda squares: logits(squares.tobytes(), squares.shape)


def draw_overlay(
    frame: np.ndarray, labels: np.ndarray, opacity: float, line: int, colours=(BLUE,)
) -> bytes:
    """Draw a label map (H,W) over its frame, as PNG; a `line` of 1 is a thin outline, 0 none."""
    factor = max(1, -(-DRAWN // max(frame.shape[:2])))
    size = (frame.shape[1] * factor, frame.shape[0] * factor)
    picture = Image.fromarray(frame).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    for label, colour in enumerate(colours, 1):
        mask = Image.fromarray(labels == label)
        large = mask.convert("L").resize(size, Image.Resampling.NEAREST)
        picture.paste(colour, mask=large.point(lambda level: round(level * opacity)))
        if line:
            inner = ndimage.minimum_filter(np.array(large), 2 * round(line * size[0] / 600) + 1)
            picture.paste(colour, mask=ImageChops.subtract(large, Image.fromarray(inner)))
    file = io.BytesIO()
    picture.save(file, format="PNG", compress_level=1)
    return file.getvalue()


@st.cache_data(max_entries=1000, scope="session", show_spinner=False)
def measure(key: str, release: str, model: str, spacing, threshold, _file, _predictor) -> list:
    """Return the rows of each frame of a file; `release`, path and time, is for the cache."""
    upload, rows = load(key, _file), []
    same = {"file": safe_cell(upload.name), "model": model}
    how = {"spacing_mm": upload.spacing_mm or spacing, "threshold": threshold}
    for number, frame in enumerate(upload.frames, start=1):
        found = _predictor.predict(frame, **how)
        numbers = {*_predictor.columns} - {"class", "doubts", "refused"}
        hidden = dict.fromkeys(numbers) if found.refused else {}
        rows += [same | row | hidden | {"frame": number} for row in found.rows()]
    return rows or [same | {"problem": upload.problem}]


def printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "�" for letter in name)


def safe_cell(name: str) -> str:
    """Return a name as a cell that no spreadsheet takes for a formula."""
    return "'" * (name.strip()[:1] in tuple("=+-@＝＋－＠")) + printable(name)


def make_segmentation(upload: Upload, predictor: Predictor, threshold: float | None) -> bytes:
    """Segment all frames of a DICOM file; a DICOM Segmentation as a file."""
    about = predictor.about | ({} if threshold is None else {"threshold": threshold})
    found = (predictor.predict(frame, threshold=threshold) for frame in upload.frames)
    file = io.BytesIO()
    segmentation(upload.dataset, found, about).save_as(file, enforce_file_format=True)
    return file.getvalue()


def show_result(predictor, key, upload, index, spacing, threshold, view, places) -> None:
    """Show one model's result for one frame: a picture; beside it doubts, numbers, downloads."""
    picture, side = places
    frame, model = upload.frames[index], predictor.name
    found = predictor.predict(frame, spacing_mm=spacing, threshold=threshold)
    texts, shown = " ".join(doubt.text for doubt in found.doubts), True
    with side:
        if found.refused:
            st.error(f"**Refused.** {texts}", icon=":material/block:")
            shown = st.toggle("Show the refused result", key=f"show {key} {index} {model}")
        elif texts:
            st.warning(f"**Look twice.** {texts}", icon=":material/warning:")
        else:
            st.success("Quality checks passed.", icon=":material/check_circle:")
    several = len(found.classes) > 1
    colours = class_rgb(len(found.classes)) if several else [BLUE]
    for each, colour in zip(found.of_class, colours, strict=several):
        area, _, sizes, sure = describe(each) if shown else "––––"
        sizes = sizes if each.area_px or not shown else "none found"
        side.html(CLASS.format(colour, html.escape(each.name), area, sizes, sure))
    if not several:
        with side.container(horizontal=True):
            show_numbers(found, shown)
    overlay = draw_overlay(frame, found.labels * shown, *view, colours)
    height, width = found.mask.shape
    sizes = [f"{each.name} {each.area_px}" for each in found.of_class] or [str(found.area_px)]
    summary = f"{predictor.structure} by {model}: {', '.join(sizes)} px"
    summary = summary if shown else "result refused, not shown"
    picture.image(
        overlay, f"{width} × {height} px · {predictor.about.get('run_id', model)}",
        width="stretch", alt=f"Ultrasound frame {index + 1}, {summary}",
    )  # fmt: skip
    stem = (re.sub(r"[^\w-]", "_", Path(upload.name).stem)[:60] or "frame") + f"-{model}"
    cine = len(upload.frames) > 1
    at = stem + f"-{index + 1}" * cine
    kind = "Label map" if several else "Mask"
    name = f"{at}-{kind.replace(' ', '-').lower()}.png"
    files = {f"{kind}, PNG": (mask_png(found), name, "image/png")}
    files["Overlay, PNG"] = overlay, f"{at}-overlay.png", "image/png"
    if upload.dataset:
        seg = lambda: make_segmentation(upload, predictor, threshold)  # noqa: E731
        files["DICOM SEG" + ", all frames" * cine] = seg, f"{stem}.dcm", "application/dicom"
    downloads = side.container(horizontal=True)
    for label, content in files.items() if shown else ():
        downloads.download_button(
            label, *content, icon=":material/download:", on_click="ignore", width="stretch",
            key=f"{label} {model}",
        )  # fmt: skip


def describe(found: Prediction) -> tuple[str, str, str, str]:
    """Return area, the same in another unit, diameters, and confidence, as texts."""
    area, sizes = f"{found.area_px:,} px", "{:.0f} × {:.0f} px".format(*found.diameters_px)
    note = f"{100 * found.mask.mean():.1f} % of the frame"
    if found.area_mm2 is not None:
        area, note = f"{found.area_mm2:,.1f} mm²", area
        sizes = "{:.1f} × {:.1f} mm".format(*found.diameters_mm)
    sure = "–" if found.confidence is None else f"{found.confidence:.2f}"
    return area, note, sizes, sure


def show_numbers(found: Prediction, shown: bool) -> None:
    area, note, sizes, sure = describe(found)
    for label, value, below, more in (
        ("Area", area, note, "Of all parts."),
        ("Diameters", sizes, "longest × across it", "Of the largest part: the longest straight "
         "line within it, and its extent across that one."),
        ("Confidence", sure, "expected Dice", "The overlap to be expected with an expert's "
         "outline, 1 is all of it. Calibrated on validation frames."),
    ):  # fmt: skip
        how = {"delta_color": "off", "delta_arrow": "off", "border": True, "help": more}
        st.metric(label, value if shown else "–", below if shown else None, **how)


def make_places(chosen: list[str]) -> list:
    """Return two containers for each model: for its picture, and for all else."""
    if len(chosen) == 1:
        return [st.container(key="alone").columns([2.8, 1], gap="medium")]
    columns = st.columns(len(chosen))
    for name, column in zip(chosen, columns, strict=True):
        column.subheader(name, anchor=False)
    return [(column.container(), column.container()) for column in columns]


def show_table(sources: dict, release, predictors: dict, spacing, threshold, count) -> None:
    """Measure every frame of every file, many on request only: a table and its CSV."""
    label = f"Measure all {count} {'files' if len(sources) > 1 else 'frames'}"
    if not st.toggle(label, value=count <= AT_ONCE, key=f"{label} {next(iter(sources))}"):
        return
    bar, rows = st.progress(0.0, "Measuring …"), []
    for done, (key, file) in enumerate(sources.items(), start=1):
        for name, predictor in predictors.items():
            rows += measure(key, release, name, spacing, threshold, file, predictor)
        bar.progress(done / len(sources), f"Measuring, {done} of {len(sources)} …")
    bar.empty()
    columns = ("file", "frame", "model", *next(iter(predictors.values())).columns, "problem")
    filled = [name for name in columns if any(row.get(name) is not None for row in rows)]
    st.dataframe(rows, hide_index=True, column_order=filled, placeholder="", alt="Measurements")
    st.download_button(
        "Table, CSV", table_csv(rows, columns), "areas.csv", "text/csv",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip


def main() -> None:
    st.set_page_config("Thyroid outline", str(LOGO), layout="wide")
    st.html(LOGO.with_suffix(".css"))
    head = LOGO.with_suffix(".html").read_text("utf-8")
    st.html(head.format(quote(LOGO.read_text("utf-8")), NOTICE))
    try:
        path = find_release()
        dated = path / "release.json" if path.is_dir() else path
        changed = dated.stat().st_mtime_ns if dated.exists() else 0
        predictors = open_models(path, changed)
    except (OSError, ValueError, ImportError) as error:
        st.error(str(error), icon=":material/error:")
        st.stop()
    selected = next(iter(predictors))
    usual, structure = predictors[selected].about["threshold"], predictors[selected].structure
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
        threshold = st.slider(
            "Threshold", 0.01, 0.99, usual, 0.01, key="threshold",
            help=f"A pixel is {structure} where its probability is above this.",
        )  # fmt: skip
        st.subheader("View", anchor=False)
        opacity = st.slider("Opacity", 0.0, 1.0, 0.3, 0.05, key="opacity")
        outline = st.toggle("Outline", value=True, key="outline")
    chosen = [name for name in predictors if name in (picked or [selected])]
    threshold = None if threshold == usual else threshold  # None: each model's own
    sources = {file.file_id: file for file in files[:MAX_FILES]} or {example: None}
    which = next(iter(sources))
    if len(files) > MAX_FILES:
        st.warning(f"Of {len(files)} files the first {MAX_FILES} are used.")
    if len(sources) > 1:
        which = st.selectbox("File", sources, 0, lambda key: sources[key].name, "which")
    upload = load(which, sources[which])
    with st.sidebar:
        st.subheader("Scale", anchor=False)
        mm = st.number_input(
            "mm per pixel", 0.0, 10.0, None, 0.001, "%.4f", placeholder="not known",
            key=f"mm {hash(tuple(sources))}", disabled=upload.spacing_mm is not None,
            help="For areas in mm². A scale in a DICOM file is used instead of this.",
        )  # fmt: skip
        if upload.spacing_mm:
            st.caption("The file has {:.4f} × {:.4f} mm.".format(*upload.spacing_mm))
    spacing = (mm, mm) if mm else None
    if upload.problem:
        name = printable(upload.name)[-80:].replace("`", "'")  # as code: no letter has a meaning
        st.error(f"`{name}` {upload.problem}.", icon=":material/error:")
    else:
        index = 0
        if len(upload.frames) > 1:
            index = st.slider("Frame", 1, len(upload.frames), 1, key=f"frame {which}") - 1
        how = which, upload, index, upload.spacing_mm or spacing, threshold
        view = opacity, outline * len(chosen)
        for name, places in zip(chosen, make_places(chosen), strict=True):
            show_result(predictors[name], *how, view, places)
    count = len(sources) if len(sources) > 1 else len(upload.frames)
    if count > 1:
        several, release = {name: predictors[name] for name in chosen}, f"{path} {changed}"
        show_table(sources, release, several, spacing, threshold, count)
    if (card := path / "model_card.md").is_file():
        st.expander("Model card").markdown(card.read_text("utf-8"))

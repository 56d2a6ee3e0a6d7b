"""Small data that several tests need; the real frames are used where they are."""

import hashlib
import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thyroid_lib.data import frames
from thyroid_lib.data.look import look
from thyroid_lib.data.store import build_store
from thyroid_lib.evaluate.familiarity import describe_frames
from thyroid_lib.evaluate.networks import METADATA

HERE = Path(__file__).resolve().parent
NEEDED = "dicomweb_client", "gdcm", "highdicom", "onnxscript", "pynetdicom", "streamlit"
if not all(map(find_spec, NEEDED)):  # the extras app, deploy and dicom
    collect_ignore = ["deploy", "data/test_data_dicom.py"]
# Begun in a shell's background, Ctrl-C would be ignored, here and in all that the tests start.
with suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGINT, signal.default_int_handler)
# jsonschema, and so nbformat, would compile its grammar for over a second at import.
sys.modules.setdefault("rfc3987_syntax", None)
LONG = ["test_workflow", "test_kaggle", "test_torture", "test_slurm", "test_platform_notebooks"]
# a training in seconds: arguments of `train_model`
SMALL = {
    "model": "unet", "width": 4, "folds": 4, "epochs": 3, "batch_size": 5, "lr": 1e-3,
    "threads": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip
BACKEND = os.environ.get("MPLBACKEND")
for part in ("benchmarks", "tools"):  # whose files are no package
    sys.path.append(str(HERE.parent / part))


def ellipse_pair(rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright smooth ellipse in noise and its mask: image uint8 (H,W), mask bool (H,W)."""
    rows, columns = np.mgrid[:height, :width]
    y, x = rng.uniform(0.4, 0.6, 2) * (height, width)
    half_y, half_x = rng.uniform(0.18, 0.3, 2) * (height, width)
    inside = 1 - np.hypot((rows - y) / half_y, (columns - x) / half_x)
    image = 60 + 110 / (1 + np.exp(-12 * inside)) + rng.normal(0, 10, (height, width))
    return image.clip(0, 255).astype(np.uint8), inside > 0


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def save_pairs(folder: Path, images, masks, names) -> None:
    """Write arrays of images and masks as images/ and masks/ by name, in PNG."""
    for part, arrays in (("images", images), ("masks", masks)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, array in zip(names, arrays, strict=True):
            Image.fromarray(array).save(folder / part / f"{name}.png")


def write_folder(path: Path, *, groups: int, frames: int, height: int, width: int) -> Path:
    """Write images/, masks/ and groups.csv; names a00 … b05, groups a, b …"""
    lines = ["case_id,group"]
    for group in "abcdefgh"[:groups]:
        rng = np.random.default_rng(ord(group))
        for frame in range(frames):
            name = f"{group}{frame:02d}"
            image, mask = ellipse_pair(rng, height, width)
            save_pairs(path, [image], [mask.astype(np.uint8) * 255], [name])
            lines.append(f"{name},{group}")
    (path / "groups.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_release(path: Path, *, size=64, models=("unet", "segnet"), classes=()) -> Path:
    """Write a release whose networks are one multiplication: thyroid is what is bright.

    A unet's threshold is gray level 115, that of every further model lies 10 higher. Of several
    classes the second begins where the image is 40 levels brighter, the third 80, …
    """
    onnx = pytest.importorskip("onnx")
    make, number, files, sums = onnx.helper, onnx.numpy_helper.from_array, {}, {}
    rng = np.random.default_rng(0)
    drawn = [ellipse_pair(rng, 60 + 2 * i, 150 - 2 * i)[0] for i in range(40)]
    known = np.stack([frames.fit_image(image, size, "square") for image in drawn])
    nodes = [
        make.make_node("Sub", ["image", "level"], ["above"]),
        make.make_node("Mul", ["above", "slope"], ["logits"]),
    ]
    channels = {"image": 1, "logits": len(classes) + 1 if classes else 1}
    image, logits = (
        make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", count, size, size])
        for name, count in channels.items()
    )
    path.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(models):
        level = np.float32((115 + 10 * place) / 255)
        slope = np.float32(40)
        if classes:  # the line of class k crosses that of class k - 1 where it has to, background 0
            slope = np.arange(len(classes) + 1, dtype=np.float32)[:, None, None] * 40  # (K+1,1,1)
            level = level + np.float32(20 / 255) * np.maximum(slope / 40 - 1, 0)
        constants = [number(level, "level"), number(slope, "slope")]
        graph = make.make_graph(nodes, name, [image], [logits], constants)
        proto = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
        about = {
            "model": name, "run_id": f"{name}-grouped-fold0-seed0", "width": 1, "size": size,
            "resize": "square", "threshold": 0.5, "precision": "fp32", "temperature": 1.0,
            "confidence_low": 0.5, "quality": describe_frames(known[::2], known[1::2]),
        } | ({"classes": list(classes)} if classes else {})  # fmt: skip
        make.set_model_props(proto, {METADATA: json.dumps(about, sort_keys=True)})
        content = proto.SerializeToString(deterministic=True)
        files[name] = {"fp32": f"{name}.onnx"}
        sums[f"{name}.onnx"] = hashlib.sha256(content).hexdigest()
        (path / f"{name}.onnx").write_bytes(content)
    about = {"selected": models[0], "models": files, "files": sums}
    (path / "release.json").write_text(json.dumps(about), "utf-8")
    return path


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> Path:
    """A release folder that takes no training: see `write_release`."""
    return write_release(tmp_path_factory.mktemp("release") / "release")


@pytest.fixture(scope="session")
def class_release(tmp_path_factory) -> Path:
    """Such a release of two classes."""
    folder = tmp_path_factory.mktemp("class-release") / "release"
    return write_release(folder, classes=("gland", "nodule"))


@pytest.fixture(scope="session")
def predictor(release):
    from thyroid_lib.deploy.predictor import Predictor

    return Predictor.open(release)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real frames, which are no part of this repository."""
    path = Path(os.environ.get("THYROID_SHARED_DATA") or HERE.parent.parent / "shared" / "data")
    if not (path / "tg3k-sample").is_dir():
        pytest.skip("no real frames: set THYROID_SHARED_DATA to the folder that has tg3k-sample/")
    return path


@pytest.fixture
def small_folder(tmp_path) -> Path:
    """Six cases of 40 x 50 px in two groups, a and b, each with a soft ellipse; writable."""
    return write_folder(tmp_path / "small", groups=2, frames=3, height=40, width=50)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory):
    """A store of 24 cases, 4 groups of 6, size 32."""
    path = tmp_path_factory.mktemp("tiny")
    data = write_folder(path / "data", groups=4, frames=6, height=44, width=56)
    return build_store(look(data).cases, path / "store", size=32)


@pytest.fixture(scope="session")
def class_store(tmp_path_factory):
    """A store as `tiny_store` with the classes gland and nodule, its lower right quarter.

    In group d only the gland is annotated.
    """
    path, classes = tmp_path_factory.mktemp("classes"), {"gland": "1", "nodule": "2"}
    data = write_folder(path / "data", groups=4, frames=6, height=44, width=56)
    for file in (data / "masks").iterdir():
        levels = np.array(Image.open(file)) // 255
        levels[22:, 28:] *= 2
        Image.fromarray(levels).save(file)
    cases = look(data, classes=classes).cases
    away = cases["group"] == "d"
    cases.loc[away, "mask_rule"] = "1=above:0"
    cases = cases.assign(annotated=away.map({True: "gland", False: ""}))
    return build_store(cases, path / "store", size=32, task="gland+nodule", classes=classes)


@pytest.fixture
def counts() -> Counter:
    """What a fuzz test counts as refused and as accepted."""
    return Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave tests on real frames, which take seconds, out of `make unit`; begin with long files.

    A file that takes minutes would otherwise end alone, with the other worker idle.
    """
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("study")
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish():
    """Take back what streamlit sets when it is imported: notebooks that tests run inherit it."""
    os.environ.pop("MPLBACKEND", None)
    if BACKEND is not None:
        os.environ["MPLBACKEND"] = BACKEND

"""Trained networks from their files: a release or one of its .onnx files, a run or its model.pt.

    network, about = open_network("results/demo/deploy")
    logits = network(squares)  # uint8 (N,S,S) to float32 (N,S,S), of K > 1 classes (N,K+1,S,S)

A release needs ONNX Runtime, and no torch.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thyroid_lib.files.fingerprint import file_digest
from thyroid_lib.files.packages import packages

METADATA = "thyroid_lib"  # the key of an .onnx file's metadata under which it is described, JSON
REQUIRED = ("model", "size", "resize", "threshold")


def open_network(
    path: str | Path,
    *,
    model: str = "",
    precision: str = "fp32",
    threads: int = 1,
    device: str = "cpu",
) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Open a release's folder, one of its .onnx files, a run's folder, or its model.pt.

    Of a release, `model` "" is the selected one; `threads` are ONNX Runtime's, 0 for all;
    `device` is torch's. Returns the network, uint8 (N,S,S) to logits, float32 (N,S,S) or, of K > 1
    classes, (N,K+1,S,S); and its metadata: REQUIRED and what else is known. FileNotFoundError,
    ValueError: no such model or precision, or a damaged file.
    """
    path = Path(path)
    if (path / "model.pt").is_file():
        path = path / "model.pt"
    if path.is_dir():
        path = _release_file(path, model, precision)
    if not path.is_file():
        need = "give a release folder, an .onnx or a model.pt"
        raise FileNotFoundError(f"no model at {path}: {need}")
    return _open_torch(path, device) if path.suffix == ".pt" else _open_onnx(path, threads)


def _release_file(folder: Path, model: str, precision: str) -> Path:
    """Return the path of a release's .onnx, after a check of its digest."""
    if not (listing := folder / "release.json").is_file():
        need = "release.json is missing; make one with 6-deploy"
        raise FileNotFoundError(f"no release in {folder}: {need}")
    try:
        release = json.loads(listing.read_text("utf-8"))
        digests, selected, files = (release[key] for key in ("files", "selected", "models"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"release.json in {folder} is damaged ({error}): make it again") from error
    model = model or selected
    for name, got, choices in (("model", model, files), ("precision", precision, files.get(model))):
        if got not in choices:
            raise ValueError(f"{name}: got {got!r}, this release has {', '.join(choices)}")
    path = folder / files[model][precision]
    if path.is_file() and file_digest(path) != digests.get(path.name):
        raise ValueError(f"{path.name} has changed since the release was made: copy it again")
    return path


def _open_onnx(path: Path, threads: int) -> tuple:
    with packages("onnxruntime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
        [about[key] for key in REQUIRED]
    except Exception as error:  # ONNX Runtime raises a dozen kinds on what it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        need = "give one that 6-deploy has made"
        raise ValueError(f"{path.name} is no model of this project ({reason}): {need}") from error
    name = session.get_inputs()[0].name

    def network(squares: np.ndarray) -> np.ndarray:
        image = squares[:, None].astype(np.float32) / 255  # (N,1,S,S)
        return _drop_single(session.run(None, {name: image})[0])

    return network, about


def _open_torch(path: Path, device: str) -> tuple:
    from thyroid_lib.evaluate.predict import load_model, predict_logits

    (model, about), run = load_model(path, device), path.with_name("run.json")
    if run.is_file():
        about = about | {"temperature": json.loads(run.read_text("utf-8")).get("temperature")}

    def network(squares: np.ndarray) -> np.ndarray:
        parts = predict_logits(model, squares, device=device)
        return _drop_single(np.concatenate([part.cpu().numpy() for _, part in parts]))

    return network, about


def _drop_single(logits: np.ndarray) -> np.ndarray:
    return logits[:, 0] if logits.shape[1] == 1 else logits


def model_name(about: dict) -> str:
    """Return a model's name in its study: its variant's, without one its network's."""
    return about.get("variant") or about["model"]

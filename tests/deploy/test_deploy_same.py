"""One frame, one mask: from the notebooks, an export, the page and the DICOM node."""

import json
import subprocess
import sys
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from test_deploy_export import make, write_study

from thyroid_lib.data import frames
from thyroid_lib.deploy.predictor import METADATA, Predictor, read_picture
from thyroid_lib.evaluate.predict import segment_case

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("streamlit")
dicoms = pytest.importorskip("dicoms")
app = pytest.importorskip("thyroid_lib.deploy.app")
queues = pytest.importorskip("thyroid_lib.deploy.object_queue")
reports = pytest.importorskip("thyroid_lib.deploy.structured_report")


def by_its_own_words(path, image: np.ndarray) -> np.ndarray:
    """The mask as the metadata of an .onnx describe it, in ONNX Runtime, Pillow and NumPy alone."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about["resize"] == "square"
    size, bilinear = (about["size"], about["size"]), Image.Resampling.BILINEAR
    fitted = np.float32(Image.fromarray(image).resize(size, bilinear)) / np.float32(255)
    logits = session.run(["logits"], {"image": fitted[None, None]})[0][0, 0]
    prob = Image.fromarray((1 / (1 + np.exp(-logits))).astype(np.float32))
    return np.asarray(prob.resize(image.shape[::-1], bilinear)) > about["threshold"]


class Pacs:
    """Keeps what is stored, and says so."""

    def __init__(self):
        self.objects = []

    def store_instances(self, objects) -> dict:
        self.objects += objects
        stored = [{"ReferencedSOPInstanceUID": each.SOPInstanceUID} for each in objects]
        return {"ReferencedSOPSequence": stored}


def from_the_node(release, content: bytes, folder) -> np.ndarray:
    """The mask in what the node stores for an object that it received."""
    pacs, queue = Pacs(), queues.Queue(folder)
    answer = partial(reports.answer, predictor=Predictor.open(release))
    worker = queues.Worker(queue, pacs, answer)
    queue.put("one", content)
    worker.serve(queue.waiting.get())
    seg, sr = pacs.objects
    assert (seg.Modality, sr.Modality) == ("SEG", "SR")
    return mask_of(seg)


def mask_of(seg) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    return bits[: seg.Rows * seg.Columns].reshape(seg.Rows, seg.Columns) > 0


def from_the_command(model, images, out) -> None:
    command = [sys.executable, "-m", "thyroid_lib.deploy.predict_folder", "--model", model]
    subprocess.run([*command, "--images", images, "--out", out], check=True)


@pytest.mark.study
def test_notebook_export_command_page_and_node_give_the_same_mask(tiny_store, tmp_path):
    how = {"models": ["resunet"], "seeds": [0], "epochs": 15, "lr": 1e-3}
    study, release = write_study(tmp_path / "tiny", tiny_store, **how), tmp_path / "release"
    chosen = study / "runs" / make(study, release).about["runs"]["resunet"]["run_id"]
    on_page = app.open_models(release, 0)["resunet"]
    images = tiny_store.folder.parent / "data" / "images"
    for model in (release, chosen / "model.pt"):
        from_the_command(model, images, tmp_path / f"of {model.name}")
    for case in ("a00", "b03", "d05"):
        path = images / f"{case}.png"
        content = dicoms.to_bytes(dicoms.make_us(frames.read_gray(path)))
        upload = app.read_upload(path.read_bytes(), ".png")
        seg = app.make_segmentation(app.read_upload(content, ".dcm"), on_page, None)
        found = {
            "3-train, by torch": segment_case(chosen, tiny_store, case),
            "6-deploy": Predictor.open(release).predict(read_picture(path)).mask,
            "the export by itself": by_its_own_words(release / "resunet.onnx", upload.frames[0]),
            "command, release": frames.read_mask(tmp_path / f"of release/masks/{case}.png"),
            "command, model.pt": frames.read_mask(tmp_path / f"of model.pt/masks/{case}.png"),
            "page, PNG": on_page.predict(upload.frames[0]).mask,
            "page, DICOM": mask_of(dcmread(BytesIO(seg))),
            "node": from_the_node(release, content, tmp_path / case),
        }
        first = found["6-deploy"]
        assert 0 < first.sum() < first.size
        for name, mask in found.items():
            assert np.array_equal(mask, first), f"{case}: {name}"

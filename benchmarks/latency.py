"""Time of a frame from its arrival in the PACS until its segmentation is there.

    python benchmarks/latency.py --model results/demo/deploy

A real Orthanc and the node, both on 127.0.0.1: a phantom frame is uploaded by HTTP, Orthanc sends
it to the node by C-STORE, and is asked for the segmentation by QIDO-RS every 5 ms. One frame at a
time, without the first five. Needs Orthanc, its DICOMweb plugin and cc.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from dicoms import make_us, to_bytes  # noqa: E402
from pacs import Pacs, free_port, node_environment  # noqa: E402
from tiny_study import wait_until  # noqa: E402

from thyroid_lib.data import phantom  # noqa: E402
from thyroid_lib.deploy.predictor import Predictor  # noqa: E402

SEG, WARM = "1.2.840.10008.5.1.4.1.1.66.4", 5

parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
parser.add_argument("--model", required=True, help="release folder")
parser.add_argument("--frames", default=60, type=int)
args = parser.parse_args()

predictor = Predictor.open(args.model)
frames = [
    np.array(Image.fromarray(frame).resize((640, 480)))
    for sweep in range(4)
    for frame in phantom.make_sweep(sweep=sweep, frames=-(-(args.frames + WARM) // 4))["images"]
][: args.frames + WARM]
totals, inferences = [], []
with tempfile.TemporaryDirectory() as folder:
    folder, port = Path(folder), free_port()
    with Pacs(folder / "orthanc", port) as pacs:
        command = [
            sys.executable, "-m", "thyroid_lib.deploy.node", "serve", "--model", args.model,
            "--port", str(port), "--caller", "ORTHANC", "--pacs", pacs.web,
            "--queue", folder / "queue",
        ]  # fmt: skip
        with open(folder / "log", "w") as log:
            node = subprocess.Popen(command, stderr=log, cwd=ROOT, env=node_environment())
        try:
            wait_until(lambda: "listens on" in (folder / "log").read_text() or node.poll())
            assert node.poll() is None, (folder / "log").read_text()
            for number, frame in enumerate(frames, 1):
                content = to_bytes(make_us(frame, uid=f"1.2.826.0.1.77.{number}.1"))
                began = time.perf_counter()
                predictor.predict(frame, spacing_mm=(0.08, 0.08))
                inferences.append(time.perf_counter() - began)
                query = f"/dicom-web/studies/1.2.826.0.1.77.{number}.7/instances?SOPClassUID={SEG}"
                began = time.perf_counter()
                pacs.upload(content)
                wait_until(lambda query=query: pacs.get(query).json(), "", 30, 0.005)
                totals.append(time.perf_counter() - began)
        finally:
            node.terminate()
            node.wait(20)

total, inference = np.array(totals[WARM:]), np.array(inferences[WARM:])
print(f"{len(total)} frames of 640 x 480, {predictor.about['model']}, seconds:")
print("| | median | 90th percentile |\n|:--|--:|--:|")
for name, values in (
    ("upload until the segmentation is seen", total),
    ("inference", inference),
    ("difference, frame by frame", total - inference),
):
    print(f"| {name} | {np.median(values):.3f} | {np.percentile(values, 90):.3f} |")
